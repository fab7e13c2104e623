"""What an iteration costs outside of the network: R(2+1)D-18, 16 x 112 x 112, one ratio. For report.py.

Times an iteration of STEP, and in it the network's own forward and backward; beside it the mask generator and
full sort of torchray (extra `oracle`).
"""

import statistics
import time
import warnings

import torch
from torchvision.models.video import r2plus1d_18

from steplab.config import make_config
from steplab.engine import Descent, untouched
from steplab.explain import _reduced_precision
from steplab.losses import area_loss, core_loss
from steplab.masks import MaskGenerator
from steplab.networks import Network
from steplab.perturb import Perturbation

SIZE = (16, 112, 112)


def median_ms(rounds: int, *works) -> list[float]:
    """Median of each, one after the other in every round, so that all meet the same machine."""
    for work in works:
        work()
    spent = [[0.0] * rounds for _ in works]
    for i in range(rounds):
        for row, work in zip(spent, works, strict=True):
            start = time.perf_counter()
            work()
            row[i] = 1000 * (time.perf_counter() - start)
    return [statistics.median(row) for row in spent]


def measure(rounds: int, precision: str) -> dict[str, float]:
    """Medians in ms for one arithmetic of the network."""
    torch.manual_seed(0)
    network = Network(r2plus1d_18(weights=None).eval(), [str(i) for i in range(400)], name="r2plus1d_18")
    pixels = torch.rand(1, 3, *SIZE)
    reduced = precision == "bfloat16"

    def score(x):
        if not reduced:
            return network.log_probabilities(x)
        with torch.autocast("cpu", torch.bfloat16):
            return network.log_probabilities(x.contiguous(memory_format=torch.channels_last_3d))

    clock: dict[str, float] = {}

    def now(name):
        clock[name] = time.perf_counter()

    def timed(x):
        x.register_hook(lambda _: now("input reached"))
        now("called")
        y = score(x)
        now("answered")
        y.register_hook(lambda _: now("asked back"))
        return y

    with untouched(network):
        if reduced:
            _reduced_precision(network)
        descent = Descent(timed, pixels, [0], [0], [0.1], make_config("step", "lesson", SIZE, {}))
        network_ms, iteration_ms = [], []
        for _ in range(rounds + 1):
            now("start")
            descent.step()
            now("end")
            there = clock["answered"] - clock["called"]
            back = clock["input reached"] - clock["asked back"]
            network_ms.append(1000 * (there + back))
            iteration_ms.append(1000 * (clock["end"] - clock["start"]))
    # each iteration's own share: on a busy machine two separate timings cannot be subtracted
    shares = [1 - n / i for n, i in zip(network_ms[1:], iteration_ms[1:], strict=True)]
    middle = statistics.median
    return {"network": middle(network_ms[1:]), "iteration": middle(iteration_ms[1:]), "rest": middle(shares)}


def parts(rounds: int) -> dict[str, float]:
    """Medians in ms of what is ours in an iteration, forward and backward."""
    generator = MaskGenerator(SIZE)
    seeds = torch.rand(1, *generator.seed_shape).requires_grad_()
    masks = generator(seeds).detach().requires_grad_()
    perturbation = Perturbation(torch.rand(1, 3, *SIZE))
    weight = torch.rand(1, 3, *SIZE)

    def backward(loss, at):
        torch.autograd.grad(loss, at)

    works = {
        "mask generator": lambda: backward(generator(seeds).sum(), seeds),
        "area loss": lambda: backward(area_loss(masks, 0.1).sum(), masks),
        "L_K": lambda: backward(
            core_loss(masks, 0.1, time_padding="wrap", balanced=True, windows=(16, 16)).sum(), masks
        ),
        "blend": lambda: backward((perturbation(masks) * weight).sum(), masks),
    }
    return dict(zip(works, median_ms(rounds, *works.values()), strict=True))


def torchray_parts(rounds: int) -> dict[str, float] | None:
    """The same of torchray: its generator on a padded mask, and a sort of all values."""
    try:
        from torchray.attribution.extremal_perturbation import MaskGenerator as Theirs
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = Theirs(SIZE[1:], 7, 11)
    seeds = torch.rand(SIZE[0], 1, 16, 16).requires_grad_()
    masks = torch.rand(SIZE).requires_grad_()
    goal = torch.zeros(masks.numel())
    goal[-masks.numel() // 10 :] = 1

    def generate():
        torch.autograd.grad(generator.generate(seeds)[0].sum(), seeds)

    def sort():
        torch.autograd.grad(((masks.flatten().sort().values - goal) ** 2).mean(), masks)

    return dict(zip(("mask generator", "area loss"), median_ms(rounds, generate, sort), strict=True))
