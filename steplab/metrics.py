"""How good is an explanation? Numbers for one clip, and intervals over many.

>>> iou = [mask_iou(result.masks[0], record.mask) for result, record in zip(results, records)]
>>> interval(iou)                                   # mean, and where it lies with 95 % confidence
>>> compare(iou, iou_of_another_method)             # mean paired difference and its interval
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from torch import Tensor

from .networks import Network
from .perturb import perturb


class Interval(NamedTuple):
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} .. {self.high:+.3f})"


def interval(values: ArrayLike, level: float = 0.95, draws: int = 4000) -> Interval:
    """Mean of `values` (NaN: left out) and its percentile bootstrap interval; always the same draws.

    Raises:
        ValueError: no value, or a level outside (0, 1).
    """
    numbers = np.asarray(values, float).ravel()
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        raise ValueError("values: got none that is a number, expected at least one")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}, expected a number between 0 and 1")
    means = np.random.default_rng(0).choice(numbers, (draws, len(numbers))).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def compare(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of a - b, clip by clip, with its interval; pairs with a NaN are left out.

    Raises:
        ValueError: not as many values in `a` as in `b`.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"b: got {b.shape} values, expected {a.shape} as in a: the same clips")
    return interval(a - b, level)


def pointing_game(
    heatmap: Float[Tensor, "time height width"], boxes: Sequence[Tensor], radius: float = 7
) -> float:
    """S-PT of one clip: the share of frames whose hottest pixel lies within `radius` px of a box.

    Args:
        boxes: of each frame, (n, 4) of x0, y0, x1, y1 in pixels, ends excluded; frames without one do not
            count.
        radius: of the disc round the hottest pixel that has to touch a box.

    Returns:
        0 to 1, NaN if no frame has a box. Of pixels tied for the hottest, the share that hits counts: a
        constant map scores what a random point does.

    Raises:
        ValueError: not as many boxes as frames.
    """
    if len(boxes) != len(heatmap):
        raise ValueError(f"boxes: got {len(boxes)} entries, expected {len(heatmap)}, one a frame")
    hits = []
    for frame, found in zip(heatmap, boxes, strict=True):
        if len(found):
            y, x = (frame == frame.max()).nonzero().to(found.dtype).T[:, :, None]
            aside = (found[:, 0] - x).clamp(min=0) + (x - (found[:, 2] - 1)).clamp(min=0)
            above = (found[:, 1] - y).clamp(min=0) + (y - (found[:, 3] - 1)).clamp(min=0)
            hits.append((aside**2 + above**2 <= radius**2).any(1).float().mean().item())
    return float(np.mean(hits)) if hits else float("nan")


def mask_iou(mask: Float[Tensor, "time height width"], truth: Bool[Tensor, "time height width"]) -> float:
    """Intersection over union of the mask above one half and the true one, over the whole clip; 0 to 1."""
    kept = mask > 0.5
    return float((kept & truth).sum() / (kept | truth).sum().clamp(min=1))


def flicker(masks: Float[Tensor, "time height width"]) -> float:
    """Mean over t of |S_(t+1) - S_t| / |S_t|, both summed over the frame; 0 for a frozen map.

    Frames in which there is nothing are left out; NaN if that leaves none.
    """
    change = (masks[1:] - masks[:-1]).abs().sum((1, 2))
    size = masks[:-1].abs().sum((1, 2))
    return float((change / size)[size > 0].mean())


def leakage(
    network: Network,
    mask: Float[Tensor, "time height width"],
    others: Sequence[Float[Tensor, "3 time height width"]],
    target: int,
    kind: str = "blur",
) -> Float[Tensor, "others"]:
    """Probability of class `target` when the mask is laid over clips that do not show it.

    A faithful mask tells nothing without its clip: these should be near what the network says without it.
    """
    with torch.no_grad():
        return torch.stack(
            [network.probabilities(perturb(x[None], mask[None], kind))[0, target] for x in others]
        )


def null_network(size: Sequence[int], seed: int = 0, signal: float = 1e-3) -> Network:
    """A network to which no place and no frame means anything: a random linear map of the pixels.

    Args:
        size: (T, H, W) of its clips.
        signal: standard deviation of the weights; 0: it ignores its input.
    """
    numbers = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, 3 * int(np.prod(size)), generator=numbers) * signal
    return Network(lambda x: x.flatten(1) @ weights.T, ("one", "other"), name=f"null {seed}")


def border_bias(masks: Float[Tensor, "batch time height width"]) -> float:
    """Share of the masks in the border (11 px of 112) less the border's share of the frame; 0 is neutral."""
    height, width = masks.shape[-2:]
    b = round(11 * min(height, width) / 112)
    inside = masks[..., b : height - b, b : width - b]
    return float(1 - inside.sum() / masks.sum()) - (1 - inside[0, 0].numel() / (height * width))


def frame_shares(masks: Float[Tensor, "batch time height width"]) -> Float[Tensor, "time"]:
    """What each frame keeps, over the mean of all frames, all masks together; 1 is neutral."""
    return masks.mean(dim=(0, 2, 3)) / masks.mean()
