"""How good is an explanation? Numbers for one clip or many, and intervals over many.

What needs the network besides the map is in `faithfulness.py`.

>>> iou = mask_iou(torch.stack([r.masks[0] for r in results]), [record.mask for record in records])
>>> interval(iou)                                   # mean, and where it lies with 95 % confidence
>>> compare(iou, iou_of_another_method)             # mean paired difference and its interval
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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


def over_clips(metric: Callable[..., float]) -> Callable[..., Any]:
    """Let a metric of one clip take several: maps (B, T, H, W) and a list of truths give B values.

    A truth that is None (nobody knows it) gives NaN. Maps of another shape, and maps that hold a NaN or an
    infinity, are refused: no order holds among such numbers.
    """
    signature = inspect.signature(metric)
    first, second = (*signature.parameters, "")[:2]

    @functools.wraps(metric)
    def call(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        maps, truth = given[first], given.get(second, ())
        if maps.ndim not in (3, 4):
            raise ValueError(f"{first}: got shape {tuple(maps.shape)}, expected (T, H, W) or (B, T, H, W)")
        if not torch.isfinite(maps).all():
            raise ValueError(f"{first}: got NaN or infinite values, expected finite numbers")
        if maps.ndim == 3:
            return float("nan") if truth is None else metric(**given)
        if not second:
            return np.array([metric(each) for each in maps])
        if len(truth) != len(maps):
            raise ValueError(f"{second}: got {len(truth)} entries, expected {len(maps)}, one a clip")
        pairs = zip(maps, truth, strict=True)
        return np.array([call(**(given | {first: each, second: its})) for each, its in pairs])

    return call


@over_clips
def pointing_game(
    heatmap: Float[Tensor, "time height width"], boxes: Sequence[Tensor], radius: float = 7
) -> float:
    """S-PT: the share of frames whose hottest pixel lies within `radius` px of a box (sec. 4.3).

    Args:
        heatmap: (T, H, W); several clips: (B, T, H, W), then `boxes` is a list of B, and so are the values.
        boxes: of each frame, (n, 4) of x0, y0, x1, y1 in pixels, ends excluded; frames without one do not
            count.
        radius: of the disc round the hottest pixel that has to touch a box.

    Returns:
        0 to 1, more is better; NaN if no frame has a box. Of pixels tied for the hottest, the share that hits
        counts: a constant map scores what a random point does.

    Raises:
        ValueError: not as many boxes as frames; a NaN in the map.
    """
    hits = _hits(heatmap, boxes, radius)
    return float(hits.mean())  # of none: NaN


def _hits(heatmap: Tensor, boxes: Sequence[Tensor], radius: float) -> Tensor:
    """Of each frame that has a box, the share of its hottest pixels that are near one."""
    if len(boxes) != len(heatmap):
        raise ValueError(f"boxes: got {len(boxes)} entries, expected {len(heatmap)}, one a frame")
    marked = [t for t, found in enumerate(boxes) if len(found)]
    if not marked:
        return torch.zeros(0)
    listed = [boxes[t].to(heatmap.device, torch.float64) for t in marked]
    frames = heatmap[marked]
    at, y, x = (frames == frames.amax((1, 2), keepdim=True)).nonzero(as_tuple=True)
    # frames with fewer boxes than others are filled up with NaN, which is near nothing
    x0, y0, x1, y1 = pad_sequence(listed, True, float("nan"))[at].unbind(2)
    aside = (x0 - x[:, None]).clamp(min=0) + (x[:, None] - (x1 - 1)).clamp(min=0)
    above = (y0 - y[:, None]).clamp(min=0) + (y[:, None] - (y1 - 1)).clamp(min=0)
    near = (aside**2 + above**2 <= radius**2).any(1)
    return torch.bincount(at, near.double()) / torch.bincount(at)


@over_clips
def temporal_pointing_game(
    heatmap: Float[Tensor, "time height width"], segment: tuple[int, int] | None
) -> float:
    """T-PT: does the hottest voxel's frame lie in the true segment (sec. 4.4)? 1 yes, 0 no; more is better.

    Args:
        heatmap: (T, H, W); several clips: (B, T, H, W), then `segment` is a list of B.
        segment: its first frame, and one past its last; None gives NaN.

    Returns:
        of voxels tied for the hottest, the share in the segment; a constant map scores the segment's length.

    Raises:
        ValueError: a segment that is empty or outside the clip; a NaN in the map.
    """
    first, end = segment or (0, 0)
    if not 0 <= first < end <= len(heatmap):
        raise ValueError(f"segment: got {segment}, expected 0 <= first < end <= {len(heatmap)}")
    ties = (heatmap == heatmap.max()).sum((1, 2))
    return float(ties[first:end].sum() / ties.sum())


def _region(heatmap: Tensor, truth: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(value, inside the truth?) of every voxel of the frames that count."""
    if isinstance(truth, Tensor):
        if truth.dtype != torch.bool or truth.shape != heatmap.shape:
            got = f"{truth.dtype} of shape {tuple(truth.shape)}"
            raise ValueError(f"truth: got {got}, expected torch.bool of shape {tuple(heatmap.shape)}")
        return heatmap.flatten(), truth.flatten()
    if len(truth) != len(heatmap):
        raise ValueError(f"truth: got boxes of {len(truth)} frames, expected {len(heatmap)}")
    y, x = (torch.arange(n, device=heatmap.device) + 0.5 for n in heatmap.shape[1:])
    inside = torch.zeros_like(heatmap, dtype=torch.bool)
    for frame, found in zip(inside, truth, strict=True):
        x0, y0, x1, y1 = found.to(heatmap.device).T[:, :, None]
        frame |= (((y0 <= y) & (y < y1))[:, :, None] & ((x0 <= x) & (x < x1))[:, None]).any(0)
    marked = [len(found) > 0 for found in truth]
    return heatmap[marked].flatten(), inside[marked].flatten()


@over_clips
def energy_pointing(
    heatmap: Float[Tensor, "time height width"],
    truth: Bool[Tensor, "time height width"] | Sequence[Tensor] | None,
) -> float:
    """Share of the heat inside the truth: sum of h over the truth / sum of h; 0 to 1, more is better.

    Wang et al. 2020, "Score-CAM" (energy-based pointing game). Compare with the truth's share of the clip,
    which is what a constant map scores; one without any heat counts as constant.

    Args:
        heatmap: (T, H, W), not negative; several clips: (B, T, H, W), then `truth` is a list of B.
        truth: True inside, (T, H, W); or of each frame boxes as for `pointing_game`: frames without one do
            not count. None, or nothing inside, gives NaN.

    Raises:
        ValueError: negative heat, NaN in the map, a truth of another shape.
    """
    if heatmap.min() < 0:
        raise ValueError(f"heatmap: got values down to {float(heatmap.min()):.3g}, expected none below 0")
    heat, inside = _region(heatmap.double(), truth)  # type: ignore[arg-type]
    if not inside.any():
        return float("nan")
    return float(heat[inside].sum() / heat.sum() if heat.any() else inside.double().mean())


@over_clips
def rank_accuracy(
    heatmap: Float[Tensor, "time height width"],
    truth: Bool[Tensor, "time height width"] | Sequence[Tensor] | None,
) -> float:
    """Of the n hottest voxels, n being the truth's size, the share inside it; 0 to 1, more is better.

    Arras et al. 2022, "CLEVR-XAI" (relevance rank accuracy). Among voxels tied for the last places a random
    choice is expected: a constant map scores the truth's share of the clip. Arguments and errors: as for
    `energy_pointing`, but any sign will do.
    """
    heat, inside = _region(heatmap, truth)  # type: ignore[arg-type]
    n = int(inside.sum())
    if not n:
        return float("nan")
    last = heat.kthvalue(len(heat) - n + 1).values
    above, tied = heat > last, heat == last
    rest = (n - above.sum()) * (tied & inside).sum().double() / tied.sum()
    return float(((above & inside).sum() + rest) / n)


@over_clips
def mask_iou(
    mask: Float[Tensor, "time height width"],
    truth: Bool[Tensor, "time height width"] | Sequence[Tensor] | None,
) -> float:
    """Intersection over union of the mask above one half and the true one, over the whole clip.

    0 to 1, more is better; two empty masks score 0 (nothing was found), no truth (None) gives NaN. `truth`
    may be boxes and both may be of several clips, as for `energy_pointing`.
    """
    kept, inside = _region(mask > 0.5, truth)  # type: ignore[arg-type]
    return float((kept & inside).sum() / (kept | inside).sum().clamp(min=1))


@over_clips
def flicker(masks: Float[Tensor, "time height width"]) -> float:
    """Mean over t of |S_(t+1) - S_t| / |S_t|, both summed over the frame; 0 for a frozen map, no upper end.

    Frames in which there is nothing are left out; NaN if that leaves none. Several clips: (B, T, H, W).
    """
    change = (masks[1:] - masks[:-1]).abs().sum((1, 2))
    size = masks[:-1].abs().sum((1, 2))
    return float((change / size)[size > 0].mean())


@over_clips
def frames_in_use(masks: Float[Tensor, "time height width"]) -> float:
    """(sum_t s_t)^2 / sum_t s_t^2, s_t what is kept of frame t: 1 if all is in one frame, T if spread evenly.

    The participation ratio of the frames; NaN if nothing is kept. Several clips: (B, T, H, W).
    """
    shares = masks.double().sum((1, 2))
    return float(shares.sum() ** 2 / (shares**2).sum())


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
