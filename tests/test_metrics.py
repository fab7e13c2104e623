"""Closed forms and corner cases of the numbers that grade explanations."""

import math

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


def test_iou():
    truth = torch.zeros(2, 4, 4, dtype=torch.bool)
    truth[:, :2] = True
    mask = torch.zeros(2, 4, 4)
    mask[:, 1:3] = 0.6
    assert metrics.mask_iou(mask, truth) == pytest.approx(1 / 3)
    assert metrics.mask_iou(truth.float(), truth) == 1 and metrics.mask_iou(0.4 * mask, truth) == 0
    assert metrics.mask_iou(mask * 0, truth & False) == 0, "nothing and nothing: no credit"


def test_flicker():
    frozen = torch.rand(4, 4).expand(5, 4, 4)
    assert metrics.flicker(frozen) == 0
    blinking = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)] * 3)
    assert metrics.flicker(blinking) == 1, "from dark frames nothing can be said"
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
    with pytest.raises(ValueError, match="level: got 1"):
        metrics.interval([1.0], 1)


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
    blind = metrics.null_network(size, signal=0).probabilities(x)
    assert torch.equal(blind, torch.full((2, 2), 0.5))
    found = explain(one, x[0], ratios=(0.2,), preset="smoke", progress=False, iterations=2)
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
