"""The perturbation operator M (x) X: keep a clip where the mask is 1, blur or fade it where the mask is 0."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .names import pick

KINDS = ("blur", "pyramid", "fade-mean", "fade-black", "fade-grey")
PYRAMID_LEVELS = 8


def gaussian_matrix(length: int, sigma: float, padding: str = "replicate") -> Float[Tensor, "length length"]:
    """Gaussian blur of `length` samples as a matrix; sigma in samples, cut at 4 sigma, float64.

    `padding`: ``"replicate"`` repeats the outermost sample outside (rows sum to 1), ``"zero"`` puts zeros
    there, ``"wrap"`` goes round. Blurring an image is then two small matrix products, whatever sigma is.
    """
    if sigma <= 0:
        return torch.eye(length, dtype=torch.float64)
    reach = math.ceil(4 * sigma)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weight = torch.exp(-(offset**2) / (2 * sigma**2))
    weight /= weight.sum()
    rows = torch.arange(length)[:, None].expand(-1, len(offset))
    columns = rows + offset.long()
    if padding == "zero":
        weight = weight * ((columns >= 0) & (columns < length))
    columns = columns % length if padding == "wrap" else columns.clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.index_put_((rows, columns), weight.expand(length, -1), accumulate=True)


def blur(
    images: Float[Tensor, "*batch height width"], sigma: float, padding: str = "replicate"
) -> Float[Tensor, "*batch height width"]:
    """Gaussian blur of the last two axes; sigma in pixels."""
    down = gaussian_matrix(images.shape[-2], sigma, padding).to(images)
    across = gaussian_matrix(images.shape[-1], sigma, padding).to(images)
    return down @ images @ across.T


class Perturbation:
    """The perturbed versions of some clips, made once; called with masks, it gives M (x) X.

    >>> perturbation = Perturbation(torch.rand(2, 3, 16, 112, 112))
    >>> perturbation(torch.ones(2, 16, 112, 112)).shape     # all kept: the clips themselves
    torch.Size([2, 3, 16, 112, 112])

    Args:
        pixels: clips `(batch, 3, T, H, W)`, values in [0,1].
        kind: ``"blur"`` m x + (1-m) (k * x), the paper's eq. 1, edges replicated; ``"pyramid"``: m picks
            among 8 blurs from `sigma` (m = 0) down to none (m = 1), linear between two levels, as the
            published demo does; ``"fade-mean"`` (to the clip's mean colour), ``"fade-black"``,
            ``"fade-grey"`` (.5).
        sigma: of the strongest blur, in pixels; default 20 px at 112 px, in proportion at other sizes.
        outside: color that ``"pyramid"`` sees beyond the frame's edges, red, green, blue in [0,1]. The demo
            pads with zeros after normalization: with the network's mean color (`Network.zero_color`).

    Raises:
        ValueError: if `pixels` has another shape, or `kind` is not one of the above, or sigma is negative.
    """

    def __init__(
        self,
        pixels: Float[Tensor, "batch 3 time height width"],
        kind: str = "blur",
        sigma: float | None = None,
        outside: Sequence[float] = (0.0, 0.0, 0.0),
    ):
        if pixels.ndim != 5:
            raise ValueError(f"pixels must be (batch, 3, T, H, W), got shape {tuple(pixels.shape)}")
        pick("kind", kind, KINDS)
        self.kind = kind
        self.sigma = 20 * min(pixels.shape[-2:]) / 112 if sigma is None else float(sigma)
        if self.sigma < 0:
            raise ValueError(f"sigma of the blur must not be negative, got {sigma}")
        self.pixels = pixels
        with torch.no_grad():
            if kind == "pyramid":
                strengths = [self.sigma * (1 - i / (PYRAMID_LEVELS - 1)) for i in range(PYRAMID_LEVELS)]
                # (batch, level, 3, T, H, W); the next level minus this one makes the blend one multiply-add
                color = pixels.new_tensor(outside)[:, None, None, None]
                blurred = [blur(pixels - color, s, "zero") + color for s in strengths[:-1]]
                self.levels = torch.stack([*blurred, pixels], dim=1)
                self.differences = self.levels[:, 1:] - self.levels[:, :-1]
            else:
                self.baseline = self._baseline(pixels)
                self.difference = pixels - self.baseline

    def _baseline(self, pixels: Tensor) -> Tensor:
        if self.kind == "blur":
            return blur(pixels, self.sigma)
        if self.kind == "fade-mean":
            return pixels.mean(dim=(2, 3, 4), keepdim=True).expand_as(pixels)
        return torch.full_like(pixels, 0.0 if self.kind == "fade-black" else 0.5)

    def __call__(
        self, masks: Float[Tensor, "batch time height width"], items: Tensor | None = None
    ) -> Float[Tensor, "batch 3 time height width"]:
        """Perturbed clips. `items[i]` is the clip that mask i belongs to; default: one mask for each clip."""
        pick = slice(None) if items is None else items
        if items is None and len(masks) != len(self.pixels):
            raise ValueError(
                f"{len(masks)} masks for {len(self.pixels)} clips: say in `items` which is whose"
            )
        if masks.shape[1:] != self.pixels.shape[2:]:
            raise ValueError(
                f"masks must be (batch, T, H, W) with T, H, W = {tuple(self.pixels.shape[2:])}, "
                f"got {tuple(masks.shape)}"
            )
        m = masks[:, None]
        if self.kind != "pyramid":
            return torch.addcmul(self.baseline[pick], m, self.difference[pick])
        depth = m * (PYRAMID_LEVELS - 1)
        level = depth.detach().floor().clamp(0, PYRAMID_LEVELS - 2)
        index = level.long()[:, None].expand(-1, 1, self.pixels.shape[1], -1, -1, -1)
        low = self.levels[pick].gather(1, index)[:, 0]
        return low + (depth - level) * self.differences[pick].gather(1, index)[:, 0]


def perturb(
    pixels: Float[Tensor, "batch 3 time height width"],
    masks: Float[Tensor, "batch time height width"],
    kind: str = "blur",
    sigma: float | None = None,
) -> Float[Tensor, "batch 3 time height width"]:
    """M (x) X in one call; see :class:`Perturbation`."""
    return Perturbation(pixels, kind, sigma)(masks)


def hottest_first(heatmap: Float[Tensor, "time height width"], seed: int = 0) -> Tensor:
    """Rank of each voxel by heat, 0 the hottest, (T, H, W); ties are broken at random under `seed`."""
    if not torch.isfinite(heatmap).all():
        raise ValueError("heatmap: got NaN or infinite values, expected finite numbers")
    shuffle = torch.randperm(heatmap.numel(), generator=torch.Generator().manual_seed(seed))
    order = shuffle[heatmap.detach().cpu().flatten()[shuffle].argsort(descending=True, stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).view(heatmap.shape)
