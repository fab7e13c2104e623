"""From seeds to masks: a coarse grid of numbers becomes a smooth mask of every frame.

Each seed lights a soft disc round its place; where discs overlap, a smooth maximum decides (Fong,
Patrick, Vedaldi 2019). Frames are treated alike and apart: nothing is smoothed over time here.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .losses import one_by_one
from .names import pick

COLDNESS = 20.0  # of the smooth maximum: sum of x * softmax(COLDNESS * x)
BOUNDARIES = ("wrap", "crop", "padded")


def disc(distance: Float[Tensor, "..."], sigma: float) -> Float[Tensor, "..."]:
    """Weight of a seed `distance` pixels away: 1 up to sigma/2, then exp(-2 (d/sigma - 1/2)^2)."""
    return torch.exp(-2 * (distance / sigma - 0.5).clamp(min=0) ** 2)


class MaskGenerator:
    """Seeds `(batch, T, h, w)` in [0,1] to masks `(batch, T, H, W)` in [0,1], differentiable in the seeds.

    >>> generator = MaskGenerator((16, 112, 112))
    >>> generator(torch.rand(2, *generator.seed_shape)).shape
    torch.Size([2, 16, 112, 112])

    A pixel of the mask is the smooth maximum s = sum_k x_k softmax(20 x)_k of x_k = weight_k * seed_k over
    the (2r+1)^2 seeds nearest to it, r = 1 + ceil(sigma/step): 49 of them at step 7, sigma 11.

    `boundary` says what lies outside the frame, and so whether some places are cheaper than others for an
    optimiser that pays for lit pixels:

    - ``"wrap"``: the grid is a torus and every seed lights equally much; no place is cheaper. The frame holds
      a whole number of seeds, ceil(H/step) x ceil(W/step), at the centres of equal cells. If `step` does not
      divide H or W, the mask is drawn at the next multiple and resized to the frame (bilinearly), so that the
      torus still closes at the frame's edge.
    - ``"crop"``: zero outside, mask cut at the frame (TorchRay's cropped mask). Seeds at the edge are cheap.
    - ``"padded"``: the same masks, and :meth:`whole` also gives what lies up to `sigma` pixels outside of the
      frame, which the published demo of STEP counts in its losses. Seeds at the edge are dear.

    Args:
        size: (T, H, W) of a mask, in frames and pixels.
        step: pixels from one seed to the next.
        sigma: radius of a seed's disc in pixels; default 11 px at 112 px, in proportion at other sizes.
        boundary: one of the above.

    Raises:
        ValueError: if a number is not positive or `boundary` is not one of the above.
    """

    def __init__(
        self, size: tuple[int, int, int], step: int = 7, sigma: float | None = None, boundary: str = "wrap"
    ):
        if len(size) != 3 or min(size) < 1:
            raise ValueError(f"size must be three positive numbers (T, H, W), got {size}")
        if step < 1 or step != int(step):
            raise ValueError(f"step must be a positive whole number of pixels, got {step}")
        pick("boundary", boundary, BOUNDARIES)
        time, height, width = size
        self.size = (int(time), int(height), int(width))
        self.step, self.boundary = int(step), boundary
        self.sigma = 11 * min(height, width) / 112 if sigma is None else float(sigma)
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.seed_shape = (self.size[0], math.ceil(height / step), math.ceil(width / step))
        self.radius = 1 + math.ceil(self.sigma / step)
        zero_outside = boundary in ("crop", "padded")
        # The zero-outside masks follow TorchRay to the digit: a seed at each cell's corner, a margin all
        # round, and the window of seeds counted from the margin's edge. The others have it at the centre.
        self.margin = round(self.sigma) if zero_outside else 0
        self.padding = 1 + math.ceil(2 * self.sigma / step) if zero_outside else self.radius
        # That padding is too little at some sizes (below 36 px, 98, 105): then more zeros follow the grid.
        self.extra = (0, 0)
        self.extra = tuple(
            math.ceil((n + 2 * self.margin - drawn) / step) if drawn < n + self.margin else 0
            for n, drawn in zip((height, width), self.drawn_size(), strict=True)
        )
        offset = self.sigma if zero_outside else (step - 1) / 2
        first = step * (torch.arange(2 * self.radius + 1) - self.padding) + offset
        distance = torch.arange(step)[:, None] - first[None, :]  # (phase, neighbour), pixels
        square = distance[:, None, :, None] ** 2 + distance[None, :, None, :] ** 2
        self.weights = (
            disc(square.sqrt(), self.sigma).permute(2, 3, 0, 1).contiguous()
        )  # (ky, kx, row, column)
        self._work: dict = {}

    def __call__(self, seeds: Float[Tensor, "batch time h w"]) -> Float[Tensor, "batch time height width"]:
        """Masks of the frame. Raises ValueError if `seeds` has not the shape `(batch, *seed_shape)`."""
        return self.crop(self.whole(seeds))

    def whole(self, seeds: Float[Tensor, "batch time h w"]) -> Float[Tensor, "batch time height2 width2"]:
        """The mask that the losses see: with its margin for ``"padded"``, that of the frame otherwise."""
        if seeds.ndim != 4 or tuple(seeds.shape[1:]) != self.seed_shape:
            raise ValueError(f"seeds must be (batch, {self.seed_shape}), got shape {tuple(seeds.shape)}")
        _, height, width = self.size
        grid = self._surround(seeds)
        if one_by_one(grid):  # blocks stay in the cache, and rounding is each one's own
            drawn = torch.stack([_Drawing.apply(item, self) for item in grid])
        else:
            drawn = self._draw_at_once(grid)
        if self.boundary == "padded":
            return drawn
        if self.boundary == "wrap" and drawn.shape[2:] != (height, width):
            return F.interpolate(drawn, size=(height, width), mode="bilinear", align_corners=False)
        m = self.margin
        return drawn[:, :, m : m + height, m : m + width]

    def crop(
        self, whole: Float[Tensor, "batch time height2 width2"]
    ) -> Float[Tensor, "batch time height width"]:
        """Cut the frame out of what :meth:`whole` gave."""
        if self.boundary != "padded":
            return whole
        m, (_, height, width) = self.margin, self.size
        return whole[:, :, m : m + height, m : m + width]

    def _surround(self, seeds: Tensor) -> Tensor:
        """The grid with what lies outside, so that every window of a drawn pixel is whole."""
        if self.boundary in ("crop", "padded"):
            p, (below, beside) = self.padding, self.extra
            return F.pad(seeds, (p, p + beside, p, p + below))
        for axis in (2, 3):
            count = seeds.shape[axis]
            index = torch.arange(-self.padding, count + self.padding, device=seeds.device)
            seeds = seeds.index_select(axis, index % count)
        return seeds

    def drawn_size(self) -> tuple[int, int]:
        """Rows and columns that the surrounded grid draws, before cutting or resizing."""
        grown = 2 * self.padding - 2 * self.radius
        h, w = (n + grown + more for n, more in zip(self.seed_shape[1:], self.extra, strict=True))
        if self.boundary == "padded":
            # One whole cell less a pixel short, as in TorchRay: 134 x 134 for 112 x 112.
            return self.step * (h - 1) + 1, self.step * (w - 1) + 1
        return self.step * h, self.step * w

    def frame_means(self, seeds: Float[Tensor, "batch time h w"]) -> Float[Tensor, "batch time"]:
        """Estimate each frame's mean from the middle pixel of every cell: a 49th of the work at step 7."""
        side, middle = 2 * self.radius + 1, self.step // 2
        windows = self._surround(seeds).unfold(2, side, 1).unfold(3, side, 1).flatten(4).flatten(2, 3)
        lit = windows * self.weights[:, :, middle, middle].flatten().to(seeds)  # (batch, T, cells, terms)
        power = torch.exp(COLDNESS * lit)
        return ((lit * power).sum(-1) / power.sum(-1)).mean(-1)

    def _draw_at_once(self, grid: Tensor) -> Tensor:
        """As `_Drawing`, in few operations on tensors that hold every term: 40 MB for 16 x 112 x 112.

        An accelerator takes longer to start hundreds of small operations than to do all their work.
        """
        side = 2 * self.radius + 1
        windows = grid.unfold(2, side, 1).unfold(3, side, 1)  # (batch, T, rows, columns, ky, kx)
        rows, columns = windows.shape[2:4]
        weights = self.weights.to(grid).flatten(0, 1).permute(1, 2, 0)[:, None]  # (row, 1, column, terms)
        lit = windows.reshape(*grid.shape[:2], rows, 1, columns, 1, side**2) * weights
        value = (lit * (COLDNESS * lit).softmax(-1)).sum(-1)  # (batch, T, rows, row, columns, column)
        height, width = self.drawn_size()
        drawn = value.reshape(*grid.shape[:2], self.step * rows, self.step * columns)
        return drawn[:, :, :height, :width]

    def _buffers(self, columns: int, like: Tensor) -> tuple[Tensor, ...]:
        """Four kept blocks: the CPU allocator would hand them back and page them in at every iteration."""
        key = (columns, like.device, like.dtype)
        if self._work.get("key") != key:
            weights = self.weights.to(like).flatten(2)[..., None]
            blocks = tuple(like.new_empty(self.step**2, columns) for _ in range(3))
            self._work = {"key": key, "blocks": (weights, *blocks)}
        return self._work["blocks"]


class _Drawing(torch.autograd.Function):
    """Smooth maximum over a window of seeds: `(n, h', w')` to `(n, drawn height, drawn width)`.

    The weights depend only on a pixel's row and column modulo `step`, so pixels are kept as
    (row, column) phase x (frame, cell) and each of the window's terms is one outer product of
    step^2 weights with the shifted grid: no tensor has an axis for the terms.
    """

    @staticmethod
    def forward(ctx, grid: Tensor, generator: MaskGenerator) -> Tensor:
        reach, step = 2 * generator.radius, generator.step
        n, rows, columns = grid.shape[0], grid.shape[1] - reach, grid.shape[2] - reach
        weights, z, e, total = generator._buffers(n * rows * columns, grid)
        value, total = torch.zeros_like(z), total.zero_()
        for ky in range(reach + 1):
            for kx in range(reach + 1):
                shifted = grid[:, ky : ky + rows, kx : kx + columns].reshape(1, -1)
                torch.mul(weights[ky, kx] * COLDNESS, shifted, out=z)  # at most 20: exp needs no shift
                torch.exp(z, out=e)
                total += e
                value.addcmul_(z, e)
        value /= total
        value /= COLDNESS
        value.clamp_(max=1)  # of rounding
        ctx.save_for_backward(grid, value, total.clone())
        ctx.generator = generator
        image = value.view(step, step, n, rows, columns).permute(2, 3, 0, 4, 1)
        height, width = generator.drawn_size()
        return image.reshape(n, step * rows, step * columns)[:, :height, :width]

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        grid, value, total = ctx.saved_tensors
        generator: MaskGenerator = ctx.generator
        reach, step = 2 * generator.radius, generator.step
        n, rows, columns = grid.shape[0], grid.shape[1] - reach, grid.shape[2] - reach
        weights, z, e, a = generator._buffers(n * rows * columns, grid)
        g = gradients[0]
        g = F.pad(g, (0, step * columns - g.shape[2], 0, step * rows - g.shape[1]))
        g = g.reshape(n, rows, step, columns, step).permute(2, 4, 0, 1, 3).reshape(step**2, -1)
        # ds/dx_k = softmax_k (1 + 20 x_k - 20 s); with b = g/total and a = b (1 - 20 s): e_k (a + b z_k)
        b = g / total
        torch.mul(value, -COLDNESS, out=a)
        a += 1
        a *= b
        result = torch.zeros_like(grid)
        for ky in range(reach + 1):
            for kx in range(reach + 1):
                window = slice(ky, ky + rows), slice(kx, kx + columns)
                shifted = grid[:, window[0], window[1]].reshape(1, -1)
                torch.mul(weights[ky, kx] * COLDNESS, shifted, out=z)
                torch.exp(z, out=e)
                z *= b
                z += a
                z *= e
                result[:, window[0], window[1]] += (weights[ky, kx].T @ z).view(n, rows, columns)
        return result, None
