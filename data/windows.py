"""Clips to train on, and the windows through which a network sees them.

A network trained on plain clips will read an action off a moving window that is blurred or greyed out: the
window performs the action itself. So training shows windows that mean nothing: cut from other clips, moving
over still pictures, wiping out the actor; the right answer is then "nothing". With the evidence kept and all
else perturbed, the answer stays. `Rival` makes the windows as bad as it can.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from steplab.drawing import NEUTRAL
from steplab.masks import MaskGenerator
from steplab.perturb import perturb
from steplab.stage import FRAMES, SIZE, Stage
from steplab.training import grow

FADES = ("fade-mean", "fade-black", "fade-grey")

# ----------------------------------------------------------------------------------------------- clips


def _render(arguments) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    stage, index = arguments
    torch.set_num_threads(1)
    record, limbs = stage.play(index)
    pixels = (record.clip.pixels * 255).round().to(torch.uint8)
    return pixels.numpy(), np.packbits(record.mask.numpy()), record.label, limbs


@dataclass
class Pool:
    """Rendered clips in memory: 8-bit pixels, bit-packed masks, labels (600 kB a clip)."""

    pixels: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    limbs: np.ndarray

    @classmethod
    def render(cls, stages: list[Stage], workers: int = 2, progress: bool = True) -> "Pool":
        """Every clip of `stages`, rendered by `workers` processes."""
        todo = [(stage, i) for stage in stages for i in range(len(stage))]
        pixels = np.empty((len(todo), 3, FRAMES, SIZE, SIZE), np.uint8)
        masks = np.empty((len(todo), FRAMES * SIZE * SIZE // 8), np.uint8)
        labels = np.empty(len(todo), np.int64)
        limbs = np.empty((len(todo), FRAMES, len(NEUTRAL)), np.float32)
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as executor:
            done = executor.map(_render, todo, chunksize=16)
            for i, item in enumerate(tqdm(done, "rendering", len(todo), disable=not progress, unit="clip")):
                pixels[i], masks[i], labels[i], limbs[i] = item
        return cls(pixels, masks, labels, limbs)

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, i: int) -> tuple[Tensor, Tensor, int]:
        """Pixels (3, T, H, W) in [0, 1], mask (T, H, W) of 0 and 1, label."""
        mask = np.unpackbits(self.masks[i]).reshape(FRAMES, SIZE, SIZE)
        return (
            torch.from_numpy(self.pixels[i]).float() / 255,
            torch.from_numpy(mask).float(),
            int(self.labels[i]),
        )


# --------------------------------------------------------------------------------------------- windows


def _boxed(mask: Tensor) -> Tensor:
    """Each frame's mask, filled up to its bounding box."""
    rows, columns = mask.amax(-1), mask.amax(-2)

    def between(line):
        return torch.minimum(line.cummax(-1).values, line.flip(-1).cummax(-1).values.flip(-1))

    return between(rows)[..., :, None] * between(columns)[..., None, :]


def _blobs(rng: np.random.Generator, frames: int) -> Tensor:
    """(T, H, W) smooth random windows that come and go, like masks drawn from coarse seeds."""
    grid = torch.from_numpy(rng.standard_normal((1, 1, int(rng.integers(2, 9)), 7, 7)).astype(np.float32))
    field = F.interpolate(grid, size=(frames, SIZE, SIZE), mode="trilinear", align_corners=False)[0, 0]
    threshold = torch.quantile(field.flatten()[::37], float(rng.uniform(0.7, 0.97)))
    return torch.sigmoid((field - threshold) * 12)


def _perturb(rng: np.random.Generator, pixels: Tensor, mask: Tensor) -> Tensor:
    """The clip where the mask is one; blurred, faded, or another colour where it is zero."""
    if rng.random() < 0.5:
        sigma = float(rng.choice([6.0, 12.0, 20.0, 20.0]))
        return perturb(pixels[None], mask[None], kind="blur", sigma=sigma)[0]
    if rng.random() < 0.7:
        return perturb(pixels[None], mask[None], kind=str(rng.choice(FADES)))[0]
    other = torch.from_numpy(rng.random((3, 1, 1, 1), dtype=np.float32))
    return pixels * mask + other * (1 - mask)


def close_up(rng: np.random.Generator, pixels: Tensor, mask: Tensor, side: int = 64) -> Tensor:
    """A `side`-pixel crop with the mask about in its middle (anywhere, if the mask is empty)."""
    points = mask.amax(0).nonzero()
    middle = (
        (points.amin(0) + points.amax(0)) / 2 if len(points) else torch.from_numpy(rng.uniform(32, 80, 2))
    )
    y, x = (np.clip(middle.numpy() - side / 2 + rng.uniform(-8, 8, 2), 0, SIZE - side)).astype(int)
    return pixels[:, :, y : y + side, x : x + side]


def limb_targets(limbs: Float[Tensor, "time joint"]) -> Float[Tensor, "time target"]:
    """What a frame tells of the limbs whichever side they are on: of a pair the larger, the smaller angle."""
    size = limbs.abs()
    left, right = size[:, 1:9:2], size[:, 2:9:2]
    return torch.cat([size[:, :1], torch.maximum(left, right), torch.minimum(left, right), size[:, 9:]], 1)


def evidence_clip(
    rng: np.random.Generator,
    pixels: Tensor,
    mask: Tensor,
    label: int,
    nothing: int,
    other: Tensor,
    still_is_nothing: bool,
) -> tuple[Tensor, int]:
    """A clip seen through windows, and the label that is right for what is still to be seen.

    Args:
        pixels, mask, label: the clip (3, T, H, W), its true mask (T, H, W) and label.
        nothing: the label of clips that show no class.
        other: the true mask of another clip, for windows that mean nothing here.
        still_is_nothing: whether a frozen frame shows no class.
    """
    empty = label == nothing
    choice = rng.choice(
        ["plain", "keep", "wipe", "alien", "still", "miss"], p=[0.34, 0.3, 0.14, 0.08, 0.05, 0.09]
    )
    if choice == "plain":
        return pixels, label
    if choice in ("keep", "wipe") and not empty:
        window = grow(mask, int(rng.integers(2, 11)))
        shape = rng.random()
        if shape < 0.25:
            window = _boxed(window)
        elif shape < 0.5:
            window = torch.maximum(window, _blobs(rng, len(mask)))
        if choice == "keep":
            return _perturb(rng, pixels, window), label
        return _perturb(rng, pixels, 1 - window), nothing
    window = (
        _blobs(rng, len(mask))
        if not other.any() or rng.random() < 0.2
        else grow(other, int(rng.integers(2, 9)))
    )
    if choice == "miss":  # something else is wiped out
        hidden = (window * mask).sum() / mask.sum().clamp(min=1)
        return (pixels, label) if hidden > 0.3 else (_perturb(rng, pixels, 1 - window), label)
    if choice == "still" and still_is_nothing:
        frame = pixels[:, int(rng.integers(pixels.shape[1]))][:, None].expand_as(pixels)
        if rng.random() < 0.5:
            window = grow(mask, int(rng.integers(2, 9)))
        return (_perturb(rng, frame, window if rng.random() < 0.5 else 1 - window), nothing)
    if (window * mask).sum() > 0.1 * mask.sum() and not empty:
        return pixels, label
    return _perturb(rng, pixels, window), nothing


@dataclass
class Window:
    """A clip seen through a mask: max(the mask that `seeds` draw, `held`), for `label`.

    `free` is 0 where seeds must stay dark; `shown` counts how often a network saw it.
    """

    pixels: Tensor
    base: Tensor
    held: Tensor
    free: Tensor
    seeds: Tensor
    label: int
    shown: int = 0


class Rival:
    """Windows that move to where the network errs, a little each time that it is shown them.

    They are masks drawn from seeds, as explanations are. Some leave out all that carries the label, and the
    right answer is "nothing"; the others hold it, and the label is right. After each step of training their
    seeds follow the gradient of the loss uphill, while the mean of the mask's seeds is held, so that in the
    end neither the shape of a mask nor what it shows beside the evidence moves the network. The gradient
    comes with that of the training step: "free" adversarial training (Shafahi et al. 2019), of masks.

    Args:
        pool: clips; those of label `nothing` are left out.
        count: windows in work; each is replaced when it has been shown `life` times.
        step: how far most seeds move at once.
    """

    def __init__(self, pool: Pool, nothing: int, seed: int = 0, count: int = 48, life: int = 12, step=0.3):
        self.pool, self.nothing, self.life, self.step = pool, nothing, life, step
        self.generator = MaskGenerator((FRAMES, SIZE, SIZE))
        self.rng = np.random.default_rng([seed, 77])
        self.windows = [self._fresh() for _ in range(count)]
        for k, window in enumerate(self.windows):
            window.shown = k % life
        self.turn, self.now, self.seeds = 0, [], torch.empty(0)

    def _fresh(self) -> Window:
        rng, label = self.rng, self.nothing
        while label == self.nothing:
            pixels, mask, label = self.pool.get(int(rng.integers(len(self.pool))))
        shape = self.generator.seed_shape
        if rng.random() < 0.4:  # the evidence stays in sight
            held, free = grow(mask, int(rng.integers(2, 9))), torch.ones(shape)
        else:
            held, label = torch.zeros_like(mask), self.nothing
            near = F.adaptive_max_pool2d(grow(mask, 14)[:, None], shape[1:])[:, 0]
            free = 1 - near
        coarse = [int(n) for n in rng.integers((2, 4, 4), (17, 17, 17))]
        field = torch.from_numpy(rng.standard_normal((1, 1, *coarse)).astype(np.float32))
        field = F.interpolate(field, size=shape, mode="trilinear")[0, 0]
        level = torch.quantile(field, 1 - float(rng.uniform(0.03, 0.25)))
        seeds = torch.sigmoid(6 * (field - level)) * free
        kind, sigma = ("blur", float(rng.choice([12, 20]))) if rng.random() < 0.6 else ("fade-mean", None)
        base = perturb(pixels[None], torch.zeros_like(mask)[None], kind, sigma)[0]
        return Window(pixels, base, held, free, seeds, label)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Pixels (count, 3, T, H, W), connected to the seeds, and labels; moves the windows shown before."""
        if self.seeds.grad is not None:
            self._follow(self.seeds.grad)
        self.now = [(self.turn + k) % len(self.windows) for k in range(count)]
        self.turn += count
        items = [self.windows[k] for k in self.now]
        self.seeds = torch.stack([w.seeds for w in items]).requires_grad_()
        masks = torch.maximum(self.generator(self.seeds), torch.stack([w.held for w in items]))
        base, pixels = torch.stack([w.base for w in items]), torch.stack([w.pixels for w in items])
        return torch.lerp(base, pixels, masks[:, None]), torch.tensor([w.label for w in items])

    def _follow(self, gradients: Tensor) -> None:
        for k, gradient in zip(self.now, gradients, strict=True):
            window = self.windows[k]
            window.shown += 1
            if window.shown >= self.life:
                self.windows[k] = self._fresh()
                continue
            unit = gradient.abs().flatten().quantile(0.95).clamp(min=1e-12)
            moved = (window.seeds + self.step * (gradient / unit).clamp(-1, 1)) * window.free
            low, high, goal = -1.0, 1.0, window.seeds.mean()
            for _ in range(12):  # the shift that holds the mean, by bisection
                middle = (low + high) / 2
                above = ((moved + middle).clamp(0, 1) * window.free).mean() > goal
                low, high = (low, middle) if above else (middle, high)
            window.seeds = (moved + low).clamp(0, 1) * window.free
