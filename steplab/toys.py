"""Small things whose right explanation is known, for the checks of the assignments and their hidden tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .clips import Clip
from .explain import Explanation, explain
from .networks import Network
from .perturb import Perturbation


def moving_window(size: Sequence[int], place: Sequence[int], step: Sequence[int]) -> Tensor:
    """A square of 12 x 12 pixels that moves by `step` (rows, columns) a frame, (T, H, W), True inside."""
    window = torch.zeros(tuple(size), dtype=torch.bool)
    for t, frame in enumerate(window):
        y, x = place[0] + t * step[0], place[1] + t * step[1]
        frame[y : y + 12, x : x + 12] = True
    return window


WINDOW = moving_window((8, 42, 42), (2, 2), (3, 3))


def toy_network(window: Tensor) -> Network:
    """A network that knows whether it is bright in the window, (T, H, W): class 0 if half of it is."""

    def scores(pixels: Tensor) -> Tensor:
        seen = (pixels.mean(1) * window).sum((1, 2, 3)) / window.sum()
        return torch.stack([12 * (seen - 0.5), torch.zeros_like(seen)], 1)

    return Network(scores, ("bright", "dark"), name="toy")


def scene(window: Tensor, level: float = 1.0) -> tuple[Network, Clip]:
    """A toy network and a dark clip that is as bright as `level` in the network's window."""
    pixels = (0.1 + (level - 0.1) * window.float()).expand(3, *window.shape).clone()
    return toy_network(window), Clip(pixels, torch.arange(len(window)) / 8, "toy")


def near_boxes(boxes: Sequence[Tensor], size: Sequence[int], radius: float = 7) -> Tensor:
    """The pixels whose disc meets a box of their frame: True there, (frames, rows, columns)."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    near = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for frame, rows in zip(near, boxes, strict=True):
        for x0, y0, x1, y1 in rows.tolist():
            frame |= (x - x.clamp(x0, x1 - 1)) ** 2 + (y - y.clamp(y0, y1 - 1)) ** 2 <= radius**2
    return near


def kept(network: Network, clip: Clip, mask: Tensor, target: int) -> float:
    """The probability of the target that a mask (T, H, W) keeps; the rest is blurred."""
    with torch.no_grad():
        return float(network.probabilities(Perturbation(clip.pixels[None])(mask[None]))[0, target])


def explained(network: Network, clip: Clip, method: str, ratio: float) -> Explanation:
    """Class 0 explained by one mask."""
    found = explain(network, clip, 0, method, (ratio,), progress=False)
    assert isinstance(found, Explanation)  # of one clip
    return found
