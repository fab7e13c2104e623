"""Whole iterations on a GPU, plain and compiled, beside the published loop there. For report.py.

Without a GPU its figures stay unmeasured. What the compiler makes of an iteration is then timed on the CPU
with a narrow network: that the path runs and what it costs there, not what it would gain.
"""

import importlib
import statistics
import time

import torch
from published import PublishedLoop

import steplab as sl
from steplab.engine import Descent, untouched
from steplab.networks import Network

door = importlib.import_module("steplab.explain")
FOUR = (0.05, 0.1, 0.2, 0.3)


def seconds(device: torch.device, rounds: int, work) -> float:
    """Median of a call, waiting for the device; after three that do not count (compiling, recording)."""
    spent = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[3:])


def iterations(network: Network, device: torch.device, masks: int, rounds: int) -> dict[str, float]:
    """ms of the network forward and backward, of an iteration of STEP, of it compiled; most memory, MB."""
    found, clips = {"masks": float(masks)}, door.as_clips(random_pixels(network))[0]
    ratios = [0.05 + 0.9 * k / masks for k in range(masks)]
    for name in ("plain", "compiled"):
        more = {"compiled": name == "compiled"}
        config, _ = door._settings(network, clips[0], device, "step", "lesson", more)
        with untouched(network, device):
            run = door._Run(network, clips, 0, config, device, False, None, 0)
            if name == "plain":
                shown = run.pixels.expand(masks, -1, -1, -1, -1).clone().requires_grad_()

                def ask(run=run, shown=shown):
                    torch.autograd.grad(run.plain_score(shown)[:, 0].sum(), shown)

                found["network"] = 1000 * seconds(device, rounds, ask)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            descent = Descent(run.plain_score, run.pixels, [0], [0] * masks, ratios, config)
            found[name] = 1000 * seconds(device, rounds, descent.step)
            if device.type == "cuda":
                found[f"MB, {name}"] = torch.cuda.max_memory_allocated(device) / 1e6
            assert descent.compiled == (name == "compiled"), "it went on without"
    return found


def whole(network: Network, device: torch.device, rounds: int, preset: str = "lesson") -> dict[str, float]:
    """Seconds of four ratios of a clip, compiled; ms of an iteration of the published loop, one ratio."""
    pixels = random_pixels(network)
    ask = {"ratios": FOUR, "preset": preset, "device": device, "max_batch": 4, "compiled": True}
    with untouched(network, device):
        loop = PublishedLoop(network.log_probabilities, pixels[None].to(device), 0, 0.1)
        loop.iteration = 100  # L_K is on
        published = 1000 * seconds(device, rounds, loop.step)
    spent = []
    for _ in range(2):  # the first compiles
        start = time.perf_counter()
        sl.explain(network, pixels, 0, progress=False, **ask)
        spent.append(time.perf_counter() - start)
    return {"four ratios, s": spent[1], "first time, s": spent[0], "published": published}


def random_pixels(network: Network) -> torch.Tensor:
    return torch.rand(3, 16, network.size or 112, network.size or 112)
