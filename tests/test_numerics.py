"""Rounding: what single precision costs, piece by piece, and that the same question gets the same answer."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_faults import CLASSES, EVERY, SIZE, Small, SmallRecurrent, Spot

from steplab.clips import Clip
from steplab.config import BASELINES, make_config
from steplab.engine import Descent
from steplab.explain import explain
from steplab.losses import (
    area_loss,
    area_loss_per_frame,
    core_loss,
    gaussian_smooth_time,
    second_order_difference,
    window_means,
)
from steplab.masks import BOUNDARIES, MaskGenerator
from steplab.networks import Network
from steplab.perturb import KINDS, Perturbation, hottest_first

FRAMES, SIDE = 8, 56
TRIES = 5


def sparse(numbers, *shape):
    """Values of which half are 0 or 1, as in a mask that has converged."""
    x = torch.rand(*shape, generator=numbers, dtype=torch.float64)
    return (2 * x - 0.5).clamp(0, 1)


def seeds_of(boundary):
    generator = MaskGenerator((FRAMES, SIDE, SIDE), boundary=boundary)
    return lambda n: sparse(n, 1, *generator.seed_shape), generator.whole


def masks(numbers):
    return sparse(numbers, 1, FRAMES, SIDE, SIDE)


def perturbed(kind):
    clip = torch.rand(
        1, 3, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    return masks, lambda m: Perturbation(clip.to(m.dtype), kind)(m)


# A piece: what goes in, what it does, how far single precision may lie from double, of what comes out and
# of its gradient, as a share of the largest number in it.
PIECES = {
    **{f"masks, {b}": (*seeds_of(b), 5e-6) for b in BOUNDARIES},
    **{f"perturbation, {kind}": (*perturbed(kind), 5e-6) for kind in KINDS},
    "area": (masks, lambda m: area_loss(m, 0.1), 5e-6),
    "area per frame": (masks, lambda m: area_loss_per_frame(m, 0.1), 5e-6),
    "windows": (masks, window_means, 5e-6),
    "core": (masks, lambda m: core_loss(m, 0.1), 2e-5),
    "core, balanced": (masks, lambda m: core_loss(m, 0.1, balanced=True), 2e-5),
    "smoothing over time": (masks, lambda m: gaussian_smooth_time(m, 2), 5e-6),
    "second difference": (masks, second_order_difference, 5e-6),
}


def distance(a, b):
    return float((a.double() - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize("piece", PIECES)
def test_single_precision_is_as_near_double_precision_as_stated(piece, promise):
    draw, apply, bound = PIECES[piece]
    value = slope = 0.0
    for seed in range(TRIES):
        numbers = torch.Generator().manual_seed(seed)
        rounded = draw(numbers).float().requires_grad_()
        exact = rounded.detach().double().requires_grad_()  # the same numbers
        a, b = apply(rounded), apply(exact)
        weight = torch.rand(b.shape, generator=numbers, dtype=torch.float64)
        (da,) = torch.autograd.grad((a * weight.float()).sum(), rounded)
        (db,) = torch.autograd.grad((b * weight).sum(), exact)
        value, slope = max(value, distance(a, b)), max(slope, distance(da, db))
    promise(
        f"Single beside double precision, {piece}: within {bound:.0e} of the largest value",
        f"value {value:.0e}, gradient {slope:.0e}",
    )
    assert value < bound and slope < bound, (value, slope)


def one_step(kind: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """The energy of STEP's first masks, and the seeds after a step."""
    numbers = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, FRAMES, SIDE, SIDE, generator=numbers).to(device, kind)
    torch.manual_seed(0)
    module = Small(*(Spot(lambda x, n: x) for _ in range(2))).eval().to(device, kind)
    network, config = Network(module, CLASSES), make_config("step", "lesson", (FRAMES, SIDE, SIDE), {})
    search = Descent(lambda x: network(x).log_softmax(1), pixels, [1], [0], [0.1], config)
    return search.step()["energy"].cpu(), search.seeds.detach().cpu()


def test_an_iteration_in_single_precision_is_near_one_in_double(promise):
    single, double = one_step(torch.float32), one_step(torch.float64)
    energy, seeds = distance(single[0], double[0]), float((single[1] - double[1]).abs().max())
    promise(
        "Single beside double precision, an iteration of STEP: energy within 1e-05 of it, seeds within 1e-05",
        f"energy {energy:.0e}, seeds {seeds:.0e}",
    )
    assert energy < 1e-5 and seeds < 1e-5, (energy, seeds)
    assert float((double[1] - 1).abs().max()) > 0.01, "they have moved"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_iteration_on_a_gpu_is_near_one_on_the_cpu():
    """There masks are drawn by other operations."""
    there, here = one_step(torch.float32, "cuda"), one_step(torch.float64)
    assert distance(there[0], here[0]) < 1e-3 and float((there[1] - here[1]).abs().max()) < 1e-3


def clip_of(pixels) -> Clip:
    return Clip(pixels, torch.arange(len(pixels[0])) / 4, "clip")


def networks():
    torch.manual_seed(0)
    for kind in (Small, SmallRecurrent):
        module = kind(*(Spot(lambda x, n: x) for _ in range(2))).eval()
        yield Network(module, CLASSES, output="logits" if kind is Small else "probability")


def explained(pixels, method, seed=0):
    plain, recurrent = networks()
    network = recurrent if method == "eb-r" else plain
    return explain(network, clip_of(pixels), 1, method, (0.05, 0.1), "smoke", seed, progress=False)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", EVERY)
def test_a_clip_in_which_there_is_nothing_has_masks_all_the_same(method, value):
    result = explained(torch.full((3, *SIZE), value), method)
    assert torch.isfinite(result.masks).all() and torch.isfinite(result.heatmap).all()
    assert result.masks.min() >= 0 and result.masks.max() <= 1
    if method in BASELINES:
        assert result.masks.mean((1, 2, 3)).tolist() == pytest.approx([0.05, 0.1], abs=1e-3)


def test_where_all_voxels_are_equal_chance_decides_and_the_seed_is_its_name():
    heat = torch.ones(20, 30, 30)
    ranks = [hottest_first(heat, seed).double() for seed in (0, 0, 1)]
    assert torch.equal(ranks[0], ranks[1]) and not torch.equal(ranks[0], ranks[2])
    middle, spread = (heat.numel() - 1) / 2, heat.numel() / math.sqrt(12)
    for axes in ((1, 2), (0, 2), (0, 1)):  # no frame, row or column comes first: 5 standard errors
        means = ranks[0].mean(axes)
        assert (means - middle).abs().max() < 5 * spread / math.sqrt(heat.numel() / len(means))


def print_digests() -> None:
    torch.set_num_threads(1)
    pixels = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    for method in EVERY:
        result = explained(pixels, method)
        found = hashlib.sha256(result.masks.numpy().tobytes() + result.heatmap.numpy().tobytes())
        print(method, found.hexdigest(), result.probability.tolist(), flush=True)


if __name__ == "__main__":
    print_digests()


def test_another_process_gives_the_same_answer_to_the_bit(promise):
    """On one machine with as many threads. Other arithmetic gives other masks: that is no promise here."""
    command = [sys.executable, __file__]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"}
    both = [
        subprocess.run(command, env=quiet, capture_output=True, text=True, cwd=Path(__file__).parent)
        for _ in range(2)
    ]
    assert [done.returncode for done in both] == [0, 0], both[0].stderr
    lines = [done.stdout.splitlines() for done in both]
    assert len(lines[0]) == len(EVERY) and lines[0] == lines[1]
    what = "Another process on the same machine with as many threads: the same masks, to the bit"
    promise(what, f"{len(EVERY)} of {len(EVERY)} methods")
