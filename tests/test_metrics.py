"""Closed forms and corner cases of the numbers that grade explanations."""

import math
import warnings

import numpy as np
import pytest
import torch

from steplab import metrics
from steplab.explain import explain
from steplab.networks import Network
from steplab.perturb import perturb


def spot(y: int, x: int, size: int = 112, value: float = 1.0):
    frame = torch.zeros(size, size)
    frame[y, x] = value
    return frame


def game(y, x, box, radius=7.0):
    return metrics.pointing_game(spot(y, x)[None], [torch.tensor([box], dtype=torch.float32)], radius)


def test_pointing_is_a_disc_not_a_larger_box():
    box = (20, 20, 40, 40)  # last pixel 39
    assert game(30, 30, box) == 1, "inside"
    assert game(30, 46, box) == 1 and game(30, 47, box) == 0, "seven pixels beside it, not eight"
    assert game(13, 30, box) == 1 and game(12, 30, box) == 0
    assert game(15, 15, box) == 0, "(5, 5) off a corner: 7.07 px, although a box grown by 7 px holds it"
    assert game(16, 15, box) == 1 and game(15, 15, box, 7.1) == 1


def test_pointing_tells_x_from_y():
    box = (80, 0, 100, 10)
    assert game(5, 90, box) == 1 and game(90, 5, box) == 0


def test_frames_without_a_box_do_not_count_and_any_box_will_do():
    heat = torch.stack([spot(5, 5), spot(5, 5), spot(90, 90)])
    none, near, far = torch.zeros(0, 4), torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[50.0, 50, 60, 60]])
    assert metrics.pointing_game(heat, [none, near, near]) == 0.5
    assert metrics.pointing_game(heat, [none, torch.cat([far, near]), far]) == 0.5
    assert math.isnan(metrics.pointing_game(heat, [none] * 3))
    with pytest.raises(ValueError, match="boxes: got 2 entries, expected 3"):
        metrics.pointing_game(heat, [none] * 2)


def test_a_constant_map_scores_what_chance_does():
    box = torch.tensor([[30.0, 30, 50, 50]])
    rows = torch.arange(112.0)
    away = (30 - rows).clamp(min=0) + (rows - 49).clamp(min=0)
    chance = (away[:, None] ** 2 + away[None] ** 2 <= 49).float().mean()
    assert metrics.pointing_game(torch.ones(1, 112, 112), [box]) == pytest.approx(float(chance))
    two = (spot(40, 40) + spot(100, 100))[None]
    assert metrics.pointing_game(two, [box]) == 0.5, "two hottest pixels, one of them hits"


def scenes(count=6, time=4, size=24, seed=0):
    """Maps with ties, and boxes: none, one or several a frame."""
    rng = np.random.default_rng(seed)
    heat = torch.tensor(rng.integers(0, 40, (count, time, size, size)), dtype=torch.float32)
    boxes = []
    for _ in range(count):
        corners = [rng.integers(0, size - 5, (rng.integers(0, 3), 2)) for _ in range(time)]
        ends = [c + rng.integers(2, 6, c.shape) for c in corners]
        boxes.append([torch.tensor(np.hstack(pair)) for pair in zip(corners, ends, strict=True)])
    return heat, boxes


def inside(boxes, size=24):
    truth = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for frame, found in zip(truth, boxes, strict=True):
        for x0, y0, x1, y1 in found:
            frame[y0:y1, x0:x1] = True
    return truth


def test_pointing_is_torchrays():
    game = pytest.importorskip("torchray.benchmark.pointing_game").PointingGame(1, 3)
    heat, boxes = scenes()
    for clip, its in zip(heat, boxes, strict=True):
        expected = []
        for frame, mask, found in zip(clip, inside(its), its, strict=True):
            ties = (frame == frame.max()).nonzero().tolist()
            if len(found):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    expected.append(np.mean([game.evaluate(mask, (x, y)) == 1 for y, x in ties]))
        # their disc is open, so its last pixel is ours at a radius a little smaller
        ours = metrics.pointing_game(clip, its, 2.999)
        assert ours == pytest.approx(np.mean(expected) if expected else math.nan, nan_ok=True)


def test_several_clips_at_once_are_each_on_its_own():
    heat, boxes = scenes()
    truths: list = [inside(b) for b in boxes]
    truths[2], boxes[4] = None, [torch.zeros(0, 4)] * 4
    segments = [(0, 1), None, (1, 3), (2, 4), (0, 4), (0, 2)]
    for metric, given in (
        (metrics.pointing_game, boxes),
        (metrics.temporal_pointing_game, segments),
        (metrics.energy_pointing, truths),
        (metrics.energy_pointing, boxes),
        (metrics.rank_accuracy, truths),
        (metrics.mask_iou, truths),
    ):
        found = metric(heat, given)
        alone = [metric(clip, its) for clip, its in zip(heat, given, strict=True)]
        assert isinstance(alone[0], float) and found.shape == (6,)
        np.testing.assert_array_equal(found, alone)
        assert np.isnan(found).sum() == 1, "nobody knows: NaN"
        with pytest.raises(ValueError, match="got 5 entries, expected 6, one a clip"):
            metric(heat, given[:5])
        broken = heat.clone()
        broken[1, 2, 3, 4] = float("nan")
        for wrong in (broken, broken[1]):
            with pytest.raises(ValueError, match="got NaN or infinite"):
                metric(wrong, given if wrong.ndim == 4 else given[0])
        with pytest.raises(ValueError, match=r"got shape \(24, 24\), expected \(T, H, W\) or"):
            metric(heat[0, 0], given)
    assert metrics.flicker(heat).tolist() == [metrics.flicker(clip) for clip in heat]
    np.testing.assert_array_equal(
        metrics.pointing_game(heat, boxes=boxes, radius=2), metrics.pointing_game(heat, boxes, 2)
    )


def test_temporal_pointing():
    heat = torch.zeros(6, 8, 8)
    heat[3, 5, 5] = 2
    assert (
        metrics.temporal_pointing_game(heat, (3, 4)) == 1
        and metrics.temporal_pointing_game(heat, (0, 3)) == 0
    )
    heat[4, :2, 0] = 2
    assert metrics.temporal_pointing_game(heat, (4, 6)) == pytest.approx(2 / 3), "two of three tied voxels"
    assert metrics.temporal_pointing_game(heat * 0, (1, 3)) == pytest.approx(2 / 6), "chance"
    for wrong in ((2, 2), (-1, 3), (4, 7), ()):
        with pytest.raises(ValueError, match="segment: got .* <= 6"):
            metrics.temporal_pointing_game(heat, wrong)


def test_energy_and_rank_by_hand():
    heat = torch.tensor([[[4.0, 3, 3], [3, 1, 0]], [[0, 2, 0], [0, 0, 0]]])
    truth = torch.zeros(2, 2, 3, dtype=torch.bool)
    truth[0, 0, :2] = True  # 4 and one of three 3s
    assert metrics.energy_pointing(heat, truth) == pytest.approx(7 / 16)
    assert metrics.rank_accuracy(heat, truth) == pytest.approx((1 + 1 / 3) / 2), "the tied place is drawn"
    box, none = torch.tensor([[0.0, 0, 2, 1]]), torch.zeros(0, 4)
    assert metrics.energy_pointing(heat, [box, none]) == pytest.approx(7 / 14), (
        "no box: the frame does not count"
    )
    assert metrics.rank_accuracy(heat, [box, none]) == metrics.rank_accuracy(heat, truth)
    assert metrics.mask_iou((heat > 2).float(), [box, none]) == pytest.approx(2 / 4)
    for metric in (metrics.energy_pointing, metrics.rank_accuracy):
        for flat in (heat * 0, heat * 0 + 3):
            assert metric(flat, truth) == pytest.approx(2 / 12), "a constant map scores the truth's share"
        assert metric(truth.float(), truth) == 1 and metric(1 - truth.float(), truth) == 0
        assert math.isnan(metric(heat, truth & False)) and math.isnan(metric(heat, [none, none]))
        with pytest.raises(ValueError, match=r"truth: got torch.bool of shape \(1, 2, 3\), expected"):
            metric(heat, truth[:1])
        with pytest.raises(ValueError, match="truth: got boxes of 1 frames, expected 2"):
            metric(heat, [box])
    for sign, least in ((1, "-4"), (1 / 16, "-0.25")):
        with pytest.raises(ValueError, match=f"heatmap: got values down to {least}"):
            metrics.energy_pointing(-heat * sign, truth)
    assert metrics.rank_accuracy(-heat, truth) == 0


def test_rank_is_what_sorting_says():
    numbers = torch.Generator().manual_seed(0)
    for _ in range(20):
        heat = torch.randn(2, 4, 5, generator=numbers)
        truth = torch.rand(2, 4, 5, generator=numbers) < 0.5
        hottest = heat.flatten().argsort(descending=True)[: int(truth.sum())]
        expected = truth.flatten()[hottest].double().mean()
        assert metrics.rank_accuracy(heat, truth) == pytest.approx(float(expected))


def test_truth_may_be_boxes_or_their_mask():
    heat, boxes = scenes()
    for clip, its in zip(heat, boxes, strict=True):
        marked = [t for t, found in enumerate(its) if len(found)]
        for metric in (metrics.energy_pointing, metrics.rank_accuracy, metrics.mask_iou):
            expected = metric(clip[marked], inside(its)[marked]) if marked else metric(clip, its)
            assert metric(clip, its) == pytest.approx(expected, nan_ok=True)


def test_a_pixel_lies_in_a_box_if_its_middle_does():
    """From the first side on, up to but not including the last: 0.5 to 2.5 holds the middles 0.5 and 1.5."""
    truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    truth[0, :2, :2] = True
    assert metrics.mask_iou(truth.float(), [torch.tensor([[0.5, 0.5, 2.5, 2.5]])]) == 1


def test_energy_and_rank_are_quantus():
    quantus = pytest.importorskip("quantus")
    truth = torch.stack([inside(b) for b in scenes(12)[1]])
    truth = truth[truth.flatten(1).any(1)]
    heat = torch.rand(
        truth.shape, generator=torch.Generator().manual_seed(0)
    )  # no ties: they break them by place
    images, segments = (x.flatten(1, 2)[:, None].numpy() for x in (heat, truth))
    for metric, theirs in (
        (metrics.energy_pointing, quantus.RelevanceMassAccuracy),
        (metrics.rank_accuracy, quantus.RelevanceRankAccuracy),
    ):
        score = theirs(abs=False, normalise=False, disable_warnings=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            labels = np.zeros(len(truth), int)
            found = score(torch.nn.Identity(), images, labels, images, segments)
        np.testing.assert_allclose(metric(heat, list(truth)), found, atol=1e-6)


def test_iou():
    truth = torch.zeros(2, 4, 4, dtype=torch.bool)
    truth[:, :2] = True
    mask = torch.zeros(2, 4, 4)
    mask[:, 1:3] = 0.6
    assert metrics.mask_iou(mask, truth) == pytest.approx(1 / 3)
    assert metrics.mask_iou(0.5 * truth, truth) == 0, "one half is not above it"
    assert metrics.mask_iou(truth.float(), truth) == 1 and metrics.mask_iou(0.4 * mask, truth) == 0
    assert metrics.mask_iou(mask * 0, truth & False) == 0, "nothing and nothing: no credit"
    assert metrics.mask_iou(torch.ones(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)) == 1
    with pytest.raises(ValueError, match="truth: got torch.float32 of shape"):
        metrics.mask_iou(mask, truth.float())


def test_frames_in_use():
    even, one = torch.ones(6, 2, 3), torch.zeros(6, 2, 3)
    one[4] = 0.3
    assert metrics.frames_in_use(even) == pytest.approx(6) and metrics.frames_in_use(one) == pytest.approx(1)
    two = torch.zeros(6, 2, 3)
    two[1], two[2] = 1, 0.5
    assert metrics.frames_in_use(two) == pytest.approx(1.5**2 / 1.25)
    assert math.isnan(metrics.frames_in_use(torch.zeros(6, 2, 3)))
    assert metrics.frames_in_use(torch.stack([even, one])).tolist() == pytest.approx([6, 1])


def test_flicker():
    frozen = torch.rand(4, 4).expand(5, 4, 4)
    assert metrics.flicker(frozen) == 0
    blinking = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)] * 3)
    assert metrics.flicker(blinking) == 1, "from dark frames nothing can be said"
    growing = torch.tensor([1.0, 2.0, 4.0])[:, None, None].expand(3, 2, 2)
    assert metrics.flicker(growing) == 1, "each against the frame before it"
    moving = torch.stack([spot(0, t, 8) for t in range(5)])
    assert metrics.flicker(moving) == 2
    assert math.isnan(metrics.flicker(torch.zeros(3, 2, 2)))


def test_interval_covers_the_mean_as_often_as_it_says():
    numbers = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        found = metrics.interval(numbers.normal(3, 2, 40), draws=1000)
        hits += found.low <= 3 <= found.high
    assert 0.89 <= hits / 300 <= 0.98
    assert metrics.interval([2, 2, np.nan, 2]) == (2, 2, 2)
    values = numbers.normal(size=30)
    wide, narrow = metrics.interval(values), metrics.interval(values, 0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert metrics.interval(values) == wide, "same draws"
    assert str(metrics.Interval(0.1, -0.25, 0.5)) == "+0.100 (-0.250 .. +0.500)"
    with pytest.raises(ValueError, match="values: got none"):
        metrics.interval([np.nan])
    # means of two draws from 0 and 1 are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4
    assert metrics.interval([0, 1], 0.4) == (0.5, 0.5, 0.5) and metrics.interval([0, 1], 0.6) == (0.5, 0, 1)
    for level in (-0.5, 0, 1):
        with pytest.raises(ValueError, match=f"level: got {level}"):
            metrics.interval([1.0], level)


def test_a_metric_of_several_clips_keeps_its_name_and_text():
    assert metrics.flicker.__name__ == "flicker" and "frozen map" in metrics.flicker.__doc__


def test_compare_is_paired():
    clips = np.arange(20.0) * 10
    better = metrics.compare(clips + 1, clips)
    assert better == (1, 1, 1), "the clips differ by far more than the methods"
    assert metrics.compare([1, np.nan, 3], [0, 5, 2]).mean == 1
    with pytest.raises(ValueError, match=r"b: got \(2,\) values, expected \(3,\)"):
        metrics.compare([1, 2, 3], [1, 2])


def test_leakage_is_what_the_network_says_of_other_clips():
    def bright(x):
        score = x.mean(dim=(1, 2, 3, 4))
        return torch.stack([score, 1 - score], 1)

    network = Network(bright, ("bright", "dark"), output="probability")
    mask = torch.zeros(2, 8, 8)
    mask[:, :4] = 1
    others = [torch.rand(3, 2, 8, 8), torch.zeros(3, 2, 8, 8)]
    found = metrics.leakage(network, mask, others, 0, "fade-black")
    seen = perturb(others[0][None], mask[None], "fade-black")
    assert found.tolist() == pytest.approx([float(seen.mean()), 0])
    assert metrics.leakage(network, mask, others, 1, "fade-black")[1] == 1


def test_null_networks_know_nothing_and_differ():
    size = (7, 14, 14)
    x = torch.rand(2, 3, *size)
    one, again, other = (metrics.null_network(size, seed) for seed in (0, 0, 1))
    assert torch.equal(one.probabilities(x), again.probabilities(x))
    assert not torch.equal(one.probabilities(x), other.probabilities(x))
    assert torch.equal(one.probabilities(x), metrics.null_network(size).probabilities(x))
    usual, twice = (metrics.null_network(size, **how)(x) for how in ({}, {"signal": 2e-3}))
    torch.testing.assert_close(twice, 2 * usual)
    blind = metrics.null_network(size, signal=0).probabilities(x)
    assert torch.equal(blind, torch.full((2, 2), 0.5))
    found = explain(one, x[0], ratios=(0.1,), preset="smoke", progress=False, iterations=2)
    assert torch.isfinite(found.masks).all()


def test_border_and_frames_of_known_masks():
    flat = torch.full((3, 16, 112, 112), 0.1)
    assert metrics.border_bias(flat) == pytest.approx(0, abs=1e-6)
    assert metrics.frame_shares(flat).tolist() == pytest.approx([1] * 16)
    middle = torch.zeros(1, 4, 112, 112)
    middle[:, 1, 50:60, 50:60] = 1
    area = 1 - 90**2 / 112**2
    assert metrics.border_bias(middle) == pytest.approx(-area)
    assert metrics.border_bias(torch.flip(middle, [1]).roll(52, 2)) == pytest.approx(1 - area)
    assert metrics.frame_shares(middle).tolist() == pytest.approx([0, 4, 0, 0])
    large = torch.zeros(1, 1, 1120, 1120)  # a line just inside of 110 pixels of border
    large[..., 110] = 1
    assert metrics.border_bias(large) == pytest.approx(220 / 1120 - (1 - 900**2 / 1120**2))
