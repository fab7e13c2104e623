"""What a mask should be like: as large as the ratio says (area), in one piece in space and time (L_K).

All losses take masks `(batch, T, H, W)` with values in [0,1] and give one number for each of the batch.
They are sums, as in the paper's equations; divide by the number of terms for a mean.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .names import pick

KERNEL = (7, 11, 11)
STRIDE = (1, 11, 11)
TIME_PADDINGS = ("none", "replicate", "wrap")


class _Ranked(torch.autograd.Function):
    """sum a w1 (x-1)^2 + (1-a) w0 x^2 for each row of x, a = 1 for the k largest values, else 0.

    w0 = w1 = 1, or if `balanced` one over the number of values that each is for. With both 1 this is
    ||vecsort(x) - r||^2 = sum x^2 + k - 2 * (sum of the k largest), so the k-th largest value replaces the
    sort. Values equal to it share the ones that are left for them equally (a is then a fraction): which of
    them a sort puts first is an accident of memory order, and would favour the first frames wherever a mask
    is constant.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, ones: Tensor, balanced: bool) -> Tensor:
        rows = rows.detach()
        if one_by_one(rows):
            losses, slope = [], torch.empty_like(rows)
            for x, out, k in zip(rows, slope, ones.tolist(), strict=True):
                a = _assign(x, int(k))
                error = x - a
                if not balanced:
                    losses.append(torch.dot(error, error) + torch.dot(a, 1 - a))
                    torch.mul(error, 2, out=out)
                else:
                    top, rest = 1 / max(k, 1), 1 / max(len(x) - k, 1)
                    pull, press = a * (x - 1), (1 - a) * x
                    losses.append(top * torch.dot(pull, x - 1) + rest * torch.dot(press, x))
                    torch.add(pull.mul_(2 * top), press, alpha=2 * rest, out=out)
            ctx.save_for_backward(slope)
            return torch.stack(losses)
        a, k = _assign_rows(rows, ones), ones[:, None]
        top, rest = (1 / k.clamp(1), 1 / (rows.shape[1] - k).clamp(1)) if balanced else (1.0, 1.0)
        pull, press = top * a * (rows - 1), rest * (1 - a) * rows
        ctx.save_for_backward((2 * (pull + press)).to(rows))
        return (pull * (rows - 1) + press * rows).sum(1).to(rows)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (slope,) = ctx.saved_tensors
        return slope * gradients[0][:, None], None, None


def one_by_one(x: Tensor) -> bool:
    """Whether to work at one mask after the other, as is best on a CPU.

    An accelerator, and a compiler, take all at once in few operations, without asking the host for a number.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _assign(x: Tensor, k: int) -> Tensor:
    """The k ones among the largest of x; those tied at the k-th place get equal fractions."""
    if k <= 0:
        return torch.zeros_like(x)
    values = x.numpy()  # a partition with vector instructions: several times faster than kthvalue
    lit = values[values > 0]  # most of a converged mask is exactly 0, and ties slow a partition down
    values = lit if len(lit) >= k else values
    kth = float(np.partition(values, len(values) - k)[len(values) - k])
    above = x > kth
    tied = x == kth
    share = (k - above.sum()) / tied.sum()
    return above.to(x.dtype).add_(tied.to(x.dtype).mul_(share.to(x.dtype)))


def _assign_rows(rows: Tensor, ones: Tensor) -> Tensor:
    """The same for each row, by a sort."""
    place = (ones - 1).clamp(0)[:, None].long()
    kth = rows.sort(dim=1, descending=True).values.gather(1, place)
    above, tied = rows > kth, rows == kth
    share = (ones - above.sum(1)).clamp(0) / tied.sum(1)  # none are wanted: none is above, and 0 is shared
    return above.to(rows.dtype) + tied * share.to(rows.dtype)[:, None]


def _as_list(ratio: float | Sequence[float] | Tensor, batch: int) -> list[float]:
    values = ratio.tolist() if isinstance(ratio, Tensor) else ratio
    values = [float(values)] * batch if isinstance(values, int | float) else [float(v) for v in values]
    if len(values) != batch:
        raise ValueError(f"ratio must be one number or one for each of {batch} masks, got {len(values)}")
    if not all(0 <= v <= 1 for v in values):
        raise ValueError(f"ratio must lie in [0, 1], got {values}")
    return values


def area_loss(
    masks: Float[Tensor, "batch time height width"],
    ratio: float | Sequence[float] | Float[Tensor, "batch"],
    ones: Sequence[int] | Tensor | None = None,
) -> Float[Tensor, "batch"]:
    """||vecsort(M) - r_v||^2 over all of T*H*W values together (eq. 5, 6); 0 .. T*H*W, 0 for a binary mask.

    Args:
        masks: values in [0,1]; with a margin if the mask's boundary is "padded".
        ratio: v, the share of values that should be 1: one number, or one for each mask. k = round(v T H W).
        ones: k of each mask, instead of `ratio`.

    Raises:
        ValueError: if a ratio lies outside [0, 1] or their number is not the batch's.
    """
    rows = masks.flatten(1)
    if ones is None:
        ones = [round(v * rows.shape[1]) for v in _as_list(ratio, len(rows))]
    return _Ranked.apply(rows, torch.as_tensor(ones, device=rows.device), False)


def area_loss_per_frame(
    masks: Float[Tensor, "batch time height width"],
    ratio: float | Sequence[float] | Float[Tensor, "batch"],
    ones: Sequence[int] | Tensor | None = None,
) -> Float[Tensor, "batch"]:
    """sum_t ||vecsort(m_t) - r_v||^2: the ratio imposed on every frame (EP-3D-Evenly, eq. 10, 11).

    Arguments as those of :func:`area_loss`, `ones` of a frame.
    """
    batch, time = masks.shape[:2]
    frames = masks.flatten(0, 1).flatten(1)
    if ones is None:
        ones = [round(v * frames.shape[1]) for v in _as_list(ratio, batch)]
    each = torch.as_tensor(ones, device=masks.device).repeat_interleave(time)
    return _Ranked.apply(frames, each, False).view(batch, time).sum(1)


def log_odds(
    log_p: Float[Tensor, "items classes"], targets: Tensor, against: int | None = None
) -> Float[Tensor, "items"]:
    """log Phi_c - log (sum of all other Phi), or, with a class `against`, log Phi_c - log Phi_against.

    Of logits z it is z_c - logsumexp of the others. Its gradient is that of log Phi_c divided by 1 - Phi_c:
    where Phi_c = .9999, log Phi_c has a ten-thousandth of it left, and what else the energy holds decides.
    Taken from log-probabilities, never from 1 - Phi_c, it stays exact where Phi_c rounds to 0 or 1.
    A network of a single class has no odds: then it is log Phi_c, which is 0.
    """
    own = log_p.gather(1, targets[:, None])[:, 0]
    if against is not None:
        return own - log_p[:, against]
    if log_p.shape[1] == 1:
        return own
    return own - log_p.scatter(1, targets[:, None], -torch.inf).logsumexp(1)


def ellipsoid_kernel(
    size: tuple[int, int, int] = KERNEL, normalised: bool = True, device: torch.device | None = None
) -> Float[Tensor, "time height width"]:
    """K of eq. 8 and 9: ones inside the ellipsoid that touches the block's sides, divided by their number Z.

    Computed in whole numbers, since rounding costs border voxels: the 7 x 11 x 11 kernel has Z = 311 ones,
    1, 45, 69, 81, 69, 45, 1 in its seven frames. `normalised=False` gives the ones themselves.

    Raises:
        ValueError: if a side is not positive, or no voxel lies inside: one side is 2, and another is even.
    """
    if min(size) < 1:
        raise ValueError(f"size of the kernel must be three positive numbers, got {size}")
    if 2 in size and sum([n % 2 == 0 for n in size]) > 1:
        raise ValueError(f"size of the kernel: no voxel of a block of {size} lies in the ellipsoid in it")
    # (2i/(n-1) - 1)^2 = (2i-n+1)^2/(n-1)^2, brought to a common denominator; a side of 1 has only its centre
    spans = [max(n - 1, 1) for n in size]
    common = math.prod([span**2 for span in spans])
    parts = [
        (2 * torch.arange(n, device=device) - (n - 1)) ** 2 * (common // s**2)
        for n, s in zip(size, spans, strict=True)
    ]
    inside = parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :] <= common
    kernel = inside.to(torch.float32)
    return kernel / kernel.sum() if normalised else kernel


def window_count(ratio: float, size: Sequence[int], kernel: tuple[int, int, int] = KERNEL) -> int:
    """k = ceil(v T H W / Z) windows should be full: 13/33/65/130/194 for .02/.05/.1/.2/.3 at 16x112x112."""
    ones = int(ellipsoid_kernel(kernel, normalised=False).sum())
    return math.ceil(round(ratio * math.prod(size) / ones, 6))


def full_windows(
    ratio: float, size: Sequence[int], kernel: tuple[int, int, int], windows: tuple[int, int] | None = None
) -> int:
    """`window_count`, times as many as there are `windows` for one of the kernel's own stride, if given."""
    count = window_count(ratio, size, kernel)
    if windows is None:
        return count
    return math.ceil(count * math.prod(windows) * math.prod(kernel[1:]) / math.prod(size[1:]))


def window_means(
    masks: Float[Tensor, "batch time height width"],
    kernel: tuple[int, int, int] = KERNEL,
    stride: tuple[int, int, int] = STRIDE,
    time_padding: str = "none",
    windows: tuple[int, int] | None = None,
) -> Float[Tensor, "batch t i j"]:
    """M * K: the mean of the mask over each ellipsoid, values in [0,1].

    Stride (1, 11, 11) gives 10 x 10 x 10 windows on a 16 x 112 x 112 mask. Without padding 48 % of the voxels
    lie in no window and the first and last frame in hardly any; ``"replicate"`` and ``"wrap"`` give every
    frame a window of its own (16 x 10 x 10). `windows`, instead of a stride, sets so many rows and columns of
    them at even distances round the torus.
    """
    pick("time_padding", time_padding, TIME_PADDINGS)
    if stride[0] != 1:
        raise ValueError(f"stride over time must be 1, got {stride}")
    batch, time, height, width = masks.shape
    if height < kernel[1] or width < kernel[2] or (time_padding == "none" and time < kernel[0]):
        raise ValueError(f"masks of {time}x{height}x{width} are smaller than the kernel {kernel}")
    if windows is not None:
        for axis, count in zip((2, 3), windows, strict=True):
            span = kernel[axis - 1]
            place, within = torch.arange(count, device=masks.device), torch.arange(span, device=masks.device)
            first = ((place + 0.5) * masks.shape[axis] / count - span / 2).round().long()
            index = (first[:, None] + within).flatten() % masks.shape[axis]
            masks = masks.index_select(axis, index)
        stride = (1, kernel[1], kernel[2])
    blocks = masks.unfold(2, kernel[1], stride[1]).unfold(3, kernel[2], stride[2])
    weight = ellipsoid_kernel(kernel, device=masks.device).to(masks).flatten(1)  # (T_K, H_K*W_K)
    slices = blocks.reshape(*blocks.shape[:4], -1) @ weight.T  # (batch, T, i, j, T_K)
    if time_padding != "none":
        index = torch.arange(-(kernel[0] // 2), time + (kernel[0] - 1) // 2, device=masks.device)
        index = index % time if time_padding == "wrap" else index.clamp(0, time - 1)
        slices = slices.index_select(1, index)
    count = slices.shape[1] - kernel[0] + 1
    return torch.stack([slices[:, u : u + count, ..., u] for u in range(kernel[0])]).sum(0)


def core_loss(
    masks: Float[Tensor, "batch time height width"],
    ratio: float | Sequence[float] | Float[Tensor, "batch"],
    kernel: tuple[int, int, int] = KERNEL,
    stride: tuple[int, int, int] = STRIDE,
    time_padding: str = "none",
    ones: Sequence[int] | Tensor | None = None,
    balanced: bool = False,
    windows: tuple[int, int] | None = None,
) -> Float[Tensor, "batch"]:
    """L_K = ||vecsort(M*K) - r_v'||^2 (eq. 7): k windows full, the others empty, so the mask holds together.

    Args:
        masks, ratio: as in :func:`area_loss`.
        kernel, stride, time_padding, windows: of the windows, see :func:`window_means`.
        ones: k of each mask; default :func:`full_windows`.
        balanced: mean over the k windows plus mean over the others, as in the published demo, instead of
            the sum over all.
    """
    means = window_means(masks, kernel, stride, time_padding, windows).flatten(1)
    if ones is None:
        ones = [full_windows(v, masks.shape[1:], kernel, windows) for v in _as_list(ratio, len(masks))]
    ones = torch.as_tensor(ones, device=masks.device).clamp(max=means.shape[1])
    return _Ranked.apply(means, ones, balanced)


def gaussian_smooth_time(
    seeds: Float[Tensor, "batch time h w"], reach: int, wrap: bool = False
) -> Float[Tensor, "batch time h w"]:
    """Seeds smoothed over time (EP-3D(dt), eq. 12): weights exp(-u^2/(0.6 dt)), |u| <= dt = `reach` frames.

    Normalised over the frames that exist, so a constant stays what it is; `reach` 0 changes nothing. The
    first and last frame then count less than the others; `wrap` joins them, and all count alike.
    """
    if reach < 0:
        raise ValueError(f"reach must not be negative, got {reach}")
    if reach == 0:
        return seeds
    time = seeds.shape[1]
    offset = torch.arange(-reach, reach + 1, device=seeds.device)
    frame = torch.arange(time, device=seeds.device)[:, None] + offset
    value = torch.exp(-(offset.to(torch.float64) ** 2) / (0.6 * reach)).expand(time, -1)
    if not wrap:
        value = value * ((frame >= 0) & (frame < time))
    weight = torch.zeros(time, time, dtype=torch.float64, device=seeds.device)
    weight.scatter_add_(1, frame % time, value)
    weight = (weight / weight.sum(dim=1, keepdim=True)).to(seeds)
    return torch.einsum("ut,bthw->buhw", weight, seeds)


def second_order_difference(
    masks: Float[Tensor, "batch time height width"], wrap: bool = False
) -> Float[Tensor, "batch"]:
    """sum over t, i, j of (m_{t-1} - 2 m_t + m_{t+1})^2: the obvious way to smoothness (section 3.2.2).

    `wrap` joins the last frame to the first; otherwise the two are smoothed less than the others.
    """
    if masks.shape[1] < 3:
        raise ValueError(f"second differences need at least 3 frames, got {masks.shape[1]}")
    if wrap:
        masks = torch.cat([masks[:, -1:], masks, masks[:, :1]], dim=1)
    return (masks[:, :-2] - 2 * masks[:, 1:-1] + masks[:, 2:]).square().flatten(1).sum(1)
