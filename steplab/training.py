"""Train a network, and measure how well it answers and whether it looks where the label is.

The stage's own networks are trained by `data/course.py`, from clips seen through windows.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .networks import Network
from .perturb import perturb
from .stage import REVERSED_PAIRS, Stage


def fit(
    module: nn.Module,
    loss_of: Callable[[int], Tensor],
    parameters: list[nn.Parameter],
    steps: int,
    rate: float,
    *,
    decay: float,
    progress: bool = True,
    watch: Callable[[int], dict[str, float]] | None = None,
    title: str = "training",
) -> nn.Module:
    """AdamW with a short warm-up and a cosine decay on `loss_of(step)`; returns the module in eval mode.

    Args:
        watch: called every 100 steps; what it returns is shown on the progress bar.
    """
    if steps < 1:
        return module.eval()
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.15)
    bar = tqdm(range(steps), title, disable=not progress, unit="step")
    mean, shown = math.nan, {}
    for step in bar:
        module.train()
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimiser.step()
        schedule.step()
        mean = loss.item() if math.isnan(mean) else 0.95 * mean + 0.05 * loss.item()
        if watch is not None and (step % 100 == 99 or step == steps - 1):
            module.eval()
            shown = watch(step)
        bar.set_postfix({k: f"{v:.3f}" for k, v in {"loss": mean, **shown}.items()})
    return module.eval()


def _plain(record: Any) -> tuple[np.ndarray, np.ndarray, int]:
    return record.clip.pixels.numpy(), record.mask.numpy(), record.label


def rendered(stage: Stage, workers: int = 2) -> Iterable[tuple[np.ndarray, np.ndarray, int]]:
    """Pixels, mask and label of each clip of `stage` in turn, drawn by `workers` processes."""
    context = "spawn" if workers else None
    return DataLoader(stage, None, num_workers=workers, collate_fn=_plain, multiprocessing_context=context)


def grow(mask: Float[Tensor, "*batch height width"], pixels: int) -> Float[Tensor, "*batch height width"]:
    """The mask with every point grown to a square of `2·pixels + 1` px."""
    rows, columns = (torch.arange(n) for n in mask.shape[-2:])
    tall = ((rows[:, None] - rows[None]).abs() <= pixels).to(mask)
    wide = ((columns[:, None] - columns[None]).abs() <= pixels).to(mask)
    return ((tall @ mask @ wide) > 0.5).to(mask)


@torch.no_grad()
def accuracy(network: Network, stage: Stage, workers: int = 2, progress: bool = True) -> float:
    """Share of the clips of `stage` whose label gets the highest score."""
    right = 0
    for pixels, _, label in tqdm(rendered(stage, workers), "accuracy", disable=not progress, unit="clip"):
        right += int(network.probabilities(torch.from_numpy(pixels)[None]).argmax() == label)
    return right / len(stage)


def evidence_report(
    network: Network, stage: Stage, margin: int = 4, workers: int = 2, progress: bool = True
) -> dict:
    """How much the true mask, grown by `margin` px, carries: does the network look where the label is?

    Returns:
        for each of "blur" and "fade-mean": mean probability of the label with only the true mask kept
        (`kept`), with only it perturbed (`wiped`), and, of the class it was cut from, with a true mask laid
        over a clip of another class (`leakage`) or a still picture (`leakage_still`, where time matters);
        also `plain`, the mean probability of the untouched clips, and for tasks with ordered pairs `swapped`,
        the share of their clips that change to the pair's other class when played backwards.
    """
    clips = list(rendered(stage, workers))
    sums: dict[str, list[float]] = {}

    def note(key, pixels, label):
        sums.setdefault(key, []).append(float(network.probabilities(pixels[None])[0, label]))

    pairs = {a: b for pair in REVERSED_PAIRS for a, b in (pair, pair[::-1])}
    with torch.no_grad():
        for i in tqdm(range(len(clips)), "evidence", disable=not progress, unit="clip"):
            pixels, mask, label = clips[i]
            pixels, window = torch.from_numpy(pixels), grow(torch.from_numpy(mask).float(), margin)
            after = clips[i + 1 :] + clips[:i]
            other = torch.from_numpy(next(p for p, _, wrong in after if wrong != label))
            note("plain", pixels, label)
            for kind in ("blur", "fade-mean"):
                note(f"{kind}/kept", perturb(pixels[None], window[None], kind=kind)[0], label)
                note(f"{kind}/wiped", perturb(pixels[None], 1 - window[None], kind=kind)[0], label)
                note(f"{kind}/leakage", perturb(other[None], window[None], kind=kind)[0], label)
                if stage.task != "object":
                    still = other[:, 8:9].expand_as(other).contiguous()
                    note(f"{kind}/leakage_still", perturb(still[None], window[None], kind=kind)[0], label)
            name = stage.classes[label]
            if stage.task in ("action", "confounded") and name in pairs:
                answer = int(network.probabilities(pixels.flip(1)[None]).argmax())
                sums.setdefault("swapped", []).append(float(network.classes[answer] == pairs[name]))
    return {key: float(np.mean(values)) for key, values in sums.items()} | {"clips": len(clips)}
