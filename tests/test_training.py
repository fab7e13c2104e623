"""Training: windows with the labels that are right for them, and a course that learns."""

import json

import course
import numpy as np
import pytest
import torch
from course import RECIPES, train_network
from windows import Pool, Rival, close_up, evidence_clip, limb_targets

from steplab.stage import FRAMES, SIZE, Stage
from steplab.training import fit, grow

NOTHING = 8


@pytest.fixture(scope="module")
def pool():
    return Pool.render([Stage("action", "train", length=6)], workers=1, progress=False)


def test_a_pool_holds_what_the_stage_renders(pool):
    record = Stage("action", "train")[4]
    pixels, mask, label = pool.get(4)
    assert label == record.label and torch.equal(mask.bool(), record.mask)
    assert (pixels - record.clip.pixels).abs().max() <= 0.5 / 255 + 1e-6


def test_grow_turns_a_point_into_a_square_and_stops_at_the_edge():
    mask = torch.zeros(2, 20, 30)
    mask[0, 10, 12] = 1
    mask[1, 0, 29] = 1
    grown = grow(mask, 4)
    assert grown[0].sum() == 81 and grown[0, 6:15, 8:17].sum() == 81
    assert grown[1].sum() == 25 and torch.equal(grow(mask, 0), mask)


def test_a_close_up_holds_the_whole_figure_when_it_fits(pool):
    rng = np.random.default_rng(0)
    for i in range(6):
        _, mask, _ = pool.get(i)
        cut = close_up(rng, mask.expand(3, -1, -1, -1), mask, 96)
        assert cut.shape == (3, FRAMES, 96, 96)
        assert cut[0].sum() >= 0.95 * mask.sum()


def test_limb_targets_do_not_know_left_from_right():
    limbs = torch.randn(5, 10)
    swapped = -limbs[:, [0, 2, 1, 4, 3, 6, 5, 8, 7, 9]]
    assert torch.allclose(limb_targets(limbs), limb_targets(swapped))
    assert not torch.allclose(limb_targets(limbs), limb_targets(limbs.flip(0)))


def test_a_window_shows_the_label_only_with_its_evidence(pool):
    """Where the label stays, so do most of its pixels; where it is "nothing", most are gone or frozen."""
    rng = np.random.default_rng(1)
    kept = lost = 0
    for k in range(120):
        i = k % 6
        pixels, mask, label = pool.get(i)
        other = pool.get((i + 1 + k // 6 % 5) % 6)[1]
        seen, right = evidence_clip(rng, pixels, mask, label, NOTHING, other, True)
        same = ((seen - pixels).abs().amax(0) < 0.15).float()
        share = float((same * mask).sum() / mask.sum())
        if right == label:
            kept += 1
            assert share > 0.6
        else:
            lost += 1
            assert right == NOTHING and share < 0.75
    assert kept > 40 and lost > 15


def test_a_rival_moves_its_windows_to_where_the_network_errs(pool):
    """A network that sees how bright a clip's upper half is: windows that raise its loss gather there."""
    rival = Rival(pool, NOTHING, count=4, life=100)
    kinds = [w.label for w in rival.windows]
    assert NOTHING in kinds and set(kinds) - {NOTHING}
    before = [w.seeds.clone() for w in rival.windows]
    for _ in range(9):
        pixels, labels = rival.batch(4)
        assert pixels.shape == (4, 3, FRAMES, SIZE, SIZE) and labels.tolist() == kinds
        difference = pixels - torch.stack([w.base for w in rival.windows])
        difference[:, :, :, : SIZE // 2].square().mean().backward()
    for window, old in zip(rival.windows, before, strict=True):
        new = window.seeds
        assert new[:, :8].mean() - old[:, :8].mean() > 0.01 > 0 > new[:, 8:].mean() - old[:, 8:].mean()
        assert abs(new.mean() - old.mean()) < 0.01 and window.shown >= 8
        hidden = torch.nn.functional.interpolate(1 - window.free[None], (SIZE, SIZE))[0] > 0
        assert not (new * (1 - window.free)).any() and hidden.any() == (window.label == NOTHING)


def test_what_a_rival_leaves_out_stays_out_of_sight(pool):
    """Windows of the answer "nothing" let none of the evidence through, those of a label all of it."""
    rival = Rival(pool, NOTHING, seed=1, count=8)
    masks = [
        (window, torch.maximum(rival.generator(window.seeds[None])[0], window.held))
        for window in rival.windows
    ]
    by_pixels = {pool.get(i)[0].sum().item(): pool.get(i)[1] for i in range(6)}
    for window, mask in masks:
        truth = by_pixels[window.pixels.sum().item()]
        share = float((mask * truth).sum() / truth.sum())
        assert share < 0.1 if window.label == NOTHING else share == 1


def test_fit_learns_a_line_and_shows_what_it_watches():
    torch.manual_seed(0)
    line = torch.nn.Linear(2, 1)
    x = torch.randn(64, 2)
    y = x @ torch.tensor([[2.0], [-1.0]])
    seen = []

    def watch(step):
        seen.append(step)
        return {"error": 0.0}

    fit(line, lambda _: (line(x) - y).square().mean(), list(line.parameters()), 150, 0.1, decay=0.0,
        progress=False, watch=watch)  # fmt: skip
    assert (line(x) - y).abs().max() < 0.1
    assert seen == [99, 149] and not line.training


def test_a_course_trains_saves_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(course, "accuracy", lambda *_: 0.5)
    monkeypatch.setattr(course, "evidence_report", lambda *_: {"plain": 0.5})
    monkeypatch.setattr(course, "HELD", 8)
    small = dict(clips=8, nothing=4, batch=4, close=2, short=2, steps=2, duel=3, polish=2, rivals=2)
    for name in ("stage-action-vgg16lstm", "stage-moment-vgg16lstm", "stage-object-r2plus1d"):
        network, report = train_network(name, tmp_path, progress=False, workers=1, **small)
        assert report["test_accuracy"] == 0.5
        saved = json.loads((tmp_path / f"{name}.json").read_text())
        assert saved["recipe"]["clips"] == 8 and saved["classes"][-1] == "nothing"
        p = network.probabilities(torch.rand(2, 3, FRAMES, SIZE, SIZE))
        assert p.shape == (2, 9) and torch.allclose(p.sum(1), torch.ones(2), atol=1e-4)


def test_a_short_clip_that_does_not_show_the_object_is_nothing():
    recipe = course.Recipe("object", "r2plus1d", 0, 1, 0, 0, clips=24, nothing=1, cut=4)
    mine = course.Course(recipe, "small", None, 1, False)
    mine.pool.masks[:12] = 0  # as if the camera had lost sight of it for good
    seen = {True: [], False: []}
    for k in range(80):
        rng = np.random.default_rng(k)
        i = int(np.random.default_rng(k).integers(len(mine.pool)))
        pixels, label, _ = mine.example(rng, close=True, frames=4)
        assert pixels.shape == (3, 4, 64, 64)
        if i < 24:
            seen[i < 12].append(label == NOTHING)
    assert all(seen[True]) and sum(seen[False]) < 0.4 * len(seen[False])


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"^name: got 'stage-dance-r2plus1d'"):
        train_network("stage-dance-r2plus1d")
    assert len(RECIPES) == 7
