import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from steplab import losses
from steplab.losses import (
    area_loss,
    area_loss_per_frame,
    core_loss,
    ellipsoid_kernel,
    gaussian_smooth_time,
    second_order_difference,
    window_count,
    window_means,
)


def random_masks(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sorted_form(masks, k):
    """The paper's formula as it is written: ||vecsort(M) - r||^2, each clip on its own."""
    rows = masks.flatten(1).sort(dim=1, descending=True).values
    goal = torch.zeros_like(rows)
    for row, n in zip(goal, k, strict=True):
        row[:n] = 1
    return ((rows - goal) ** 2).sum(1)


def test_area_loss_is_the_full_sort_where_nothing_ties():
    masks = random_masks(3, 4, 9, 9).requires_grad_()
    ratios = [0.05, 0.1, 0.5]
    ours = area_loss(masks, ratios)
    theirs = sorted_form(masks, [round(v * 4 * 81) for v in ratios])
    torch.testing.assert_close(ours, theirs)
    (a,) = torch.autograd.grad(ours.sum(), masks)
    (b,) = torch.autograd.grad(theirs.sum(), masks)
    torch.testing.assert_close(a, b)


def test_area_loss_value_is_the_sorted_form_with_ties_too():
    masks = (random_masks(2, 4, 9, 9) * 3).round() / 3
    torch.testing.assert_close(area_loss(masks, 0.4), sorted_form(masks, [round(0.4 * 324)] * 2))


def test_tied_values_share_the_ones_equally():
    masks = torch.full((1, 4, 5, 5), 0.7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(area_loss(masks, 0.2).sum(), masks)
    torch.testing.assert_close(gradient, torch.full_like(masks, 2 * (0.7 - 0.2)))
    # two above, eight tied for three places
    row = (
        torch.tensor([0.9, 0.8] + [0.5] * 8 + [0.1] * 2, dtype=torch.float64)
        .view(1, 1, 3, 4)
        .requires_grad_()
    )
    (gradient,) = torch.autograd.grad(area_loss(row, 0.0, ones=[5]).sum(), row)
    wanted = torch.tensor([1.0, 1.0] + [3 / 8] * 8 + [0.0] * 2, dtype=torch.float64)
    torch.testing.assert_close(gradient.flatten(), 2 * (row.detach().flatten() - wanted))


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_area_loss_at_the_ends(ratio):
    torch.testing.assert_close(area_loss(torch.full((1, 2, 3, 3), ratio), ratio), torch.zeros(1))
    torch.testing.assert_close(area_loss(torch.full((1, 2, 3, 3), 1 - ratio), ratio), torch.full((1,), 18.0))


def test_per_frame_area_is_the_area_of_each_frame():
    masks = random_masks(2, 3, 8, 8)
    frames = [area_loss(masks[:, t : t + 1], [0.1, 0.3]) for t in range(3)]
    torch.testing.assert_close(area_loss_per_frame(masks, [0.1, 0.3]), torch.stack(frames).sum(0))


def test_losses_of_a_batch_are_those_one_by_one():
    masks, ratios = random_masks(3, 8, 22, 22), [0.05, 0.1, 0.3]
    for loss in (area_loss, area_loss_per_frame, core_loss):
        one_by_one = torch.cat([loss(masks[i : i + 1], v) for i, v in enumerate(ratios)])
        torch.testing.assert_close(loss(masks, torch.tensor(ratios)), one_by_one, rtol=0, atol=1e-12)


def gradient_is_right(loss, masks):
    return torch.autograd.gradcheck(loss, masks.clone().requires_grad_(), fast_mode=True)


def test_gradients_in_double_precision():
    masks = random_masks(2, 4, 9, 9, seed=3)
    assert gradient_is_right(lambda m: area_loss(m, [0.1, 0.3]), masks)
    assert gradient_is_right(lambda m: area_loss_per_frame(m, 0.3), masks)
    small = dict(kernel=(3, 4, 4), stride=(1, 4, 4))
    for padding in ("none", "replicate", "wrap"):
        options = dict(time_padding=padding, balanced=padding == "none", **small)
        assert gradient_is_right(lambda m, o=options: core_loss(m, 0.3, ones=[1, 2], **o), masks)


def test_kernel_is_the_papers_ellipsoid():
    ones = ellipsoid_kernel(normalised=False)
    assert ones.sum() == 311
    assert ones.sum((1, 2)).tolist() == [1, 45, 69, 81, 69, 45, 1]
    assert (ones == ones.flip(0)).all() and (ones == ones.transpose(1, 2)).all()
    torch.testing.assert_close(ellipsoid_kernel().sum(), torch.tensor(1.0))
    assert ellipsoid_kernel((1, 3, 3), normalised=False).sum() == 5
    for wrong in ((0, 3, 3), (3, 3, -1)):
        with pytest.raises(ValueError, match="size of the kernel must be three positive numbers"):
            ellipsoid_kernel(wrong)
    with pytest.raises(ValueError, match=r"no voxel of a block of \(1, 2, 2\) lies in the ellipsoid"):
        ellipsoid_kernel((1, 2, 2))


@pytest.mark.parametrize(
    "size", [(7, 11, 11), (3, 5, 7), (5, 3, 9), (1, 4, 6), (4, 4, 4), (2, 3, 5), (1, 1, 1), (9, 1, 8)]
)
def test_kernel_in_exact_fractions(size):
    """(2i/(n-1) - 1)^2 summed over the three axes is at most 1; a side of 1 has only its centre."""
    part = [[(Fraction(2 * i, n - 1) - 1) ** 2 if n > 1 else Fraction(0) for i in range(n)] for n in size]
    ones = ellipsoid_kernel(size, normalised=False)
    for (t, i, j), value in np.ndenumerate(ones.numpy()):
        assert value == (part[0][t] + part[1][i] + part[2][j] <= 1), (t, i, j)


def test_window_count():
    counts = [window_count(v, (16, 112, 112)) for v in (0.02, 0.05, 0.1, 0.2, 0.3)]
    assert counts == [13, 33, 65, 130, 194]


def literal_core_loss(mask, ratio, kernel_size, stride, padding, windows=None, ones=None, balanced=False):
    """Eq. 7 to 9 with nothing but loops; `windows`: so many at the middles of equal parts of the torus."""
    kernel = ellipsoid_kernel(kernel_size).double()
    time, height, width = mask.shape
    frames = (
        range(time - kernel_size[0] + 1)
        if padding == "none"
        else range(-(kernel_size[0] // 2), time - kernel_size[0] // 2)
    )
    rows = range(0, height - kernel_size[1] + 1, stride[1])
    columns = range(0, width - kernel_size[2] + 1, stride[2])
    if windows is not None:
        rows, columns = (
            [round((n + 0.5) * side / count - k / 2) for n in range(count)]
            for side, count, k in zip((height, width), windows, kernel_size[1:], strict=True)
        )
    values = []
    for t0 in frames:
        for i0 in rows:
            for j0 in columns:
                total = 0.0
                for t in range(kernel_size[0]):
                    s = t0 + t
                    s = s % time if padding == "wrap" else min(max(s, 0), time - 1)
                    for i in range(kernel_size[1]):
                        for j in range(kernel_size[2]):
                            total += float(kernel[t, i, j] * mask[s, (i0 + i) % height, (j0 + j) % width])
                values.append(total)
    k = math.ceil(ratio * mask.numel() / int((kernel > 0).sum())) if ones is None else ones
    values.sort(reverse=True)
    full, empty = sum((v - 1) ** 2 for v in values[:k]), sum(v**2 for v in values[k:])
    return full / max(k, 1) + empty / max(len(values) - k, 1) if balanced else full + empty


@pytest.mark.parametrize("kernel", [(3, 4, 5), (4, 3, 5), (3, 5, 3)])
@pytest.mark.parametrize("padding", ["none", "replicate", "wrap"])
def test_core_loss_is_the_literal_loop(padding, kernel):
    mask, stride = random_masks(1, 6, 9, 10, seed=5), (1, *kernel[1:])
    how = dict(kernel=kernel, stride=stride, time_padding=padding)
    ours = core_loss(mask, 0.3, **how)
    assert ours.item() == pytest.approx(literal_core_loss(mask[0], 0.3, kernel, stride, padding), abs=1e-6)
    count = window_means(mask, **how).numel()
    for ones in (0, 1, 5, count - 1, count):
        expected = literal_core_loss(mask[0], 0.3, kernel, stride, padding, ones=ones, balanced=True)
        assert core_loss(mask, 0.3, ones=[ones], balanced=True, **how).item() == pytest.approx(expected)


def test_windows_lie_at_the_middles_of_equal_parts_of_the_torus():
    mask = random_masks(1, 5, 10, 11, seed=7)
    how = dict(kernel=(3, 4, 5), time_padding="wrap", windows=(3, 4))
    density = 3 * 4 * 4 * 5 / (10 * 11)  # how often each voxel is looked at
    ones = math.ceil(window_count(0.2, (5, 10, 11), (3, 4, 5)) * density)
    expected = literal_core_loss(mask[0], 0.2, (3, 4, 5), (1, 1, 1), "wrap", (3, 4), ones)
    assert core_loss(mask, 0.2, **how).item() == pytest.approx(expected, abs=1e-6)
    assert core_loss(mask, 0.2, ones=[ones], **how).item() == pytest.approx(expected, abs=1e-6)


def test_gradient_of_two_means_is_that_of_the_formula():
    """Also where both means are of equally many windows."""
    for ones in (3, 6):  # of 12
        masks = random_masks(1, 3, 8, 8, seed=ones).requires_grad_()
        means = window_means(masks, (1, 4, 4), (1, 4, 4)).flatten()
        order = means.detach().argsort(descending=True)
        literal = (means[order[:ones]] - 1).square().mean() + means[order[ones:]].square().mean()
        ours = core_loss(masks, 0.1, (1, 4, 4), (1, 4, 4), ones=[ones], balanced=True)
        torch.testing.assert_close(ours[0], literal)
        for a, b in zip(torch.autograd.grad(ours, masks), torch.autograd.grad(literal, masks), strict=True):
            torch.testing.assert_close(a, b)


def test_core_loss_of_the_papers_kernel_is_the_literal_loop():
    mask = random_masks(1, 8, 24, 24, seed=6)
    expected = literal_core_loss(mask[0], 0.1, (7, 11, 11), (1, 11, 11), "none")
    assert core_loss(mask, 0.1).item() == pytest.approx(expected, abs=1e-5)


def test_windows_of_the_paper():
    full = torch.zeros(1, 16, 112, 112)
    assert window_means(full).shape == (1, 10, 10, 10)
    assert window_means(full, time_padding="wrap").shape == (1, 16, 10, 10)
    seen = torch.zeros(1, 16, 112, 112, requires_grad=True)
    (weight,) = torch.autograd.grad(window_means(seen).sum(), seen)
    assert (weight == 0).double().mean().item() == pytest.approx(0.48, abs=0.005)  # the blind spot
    per_frame = (weight[0].sum((1, 2)) / weight.sum()).tolist()
    assert per_frame[0] < 0.001 and per_frame[7] > 1.5 / 16
    (even,) = torch.autograd.grad(window_means(seen, time_padding="wrap").sum(), seen)
    torch.testing.assert_close(even[0].sum((1, 2)) / even.sum(), torch.full((16,), 1 / 16))


@pytest.mark.parametrize("size", [(112, 112), (100, 108)])
def test_windows_round_the_torus_see_every_seed_alike(size):
    grid = tuple(math.ceil(n / 7) for n in size)
    seen = torch.zeros(1, 7, *size, requires_grad=True)
    means = window_means(seen, time_padding="wrap", windows=grid)
    assert means.shape == (1, 7, *grid)
    (weight,) = torch.autograd.grad(means.sum(), seen)
    assert (weight > 0).all()
    if size == (112, 112):
        torch.testing.assert_close(weight, weight.roll((7, 7), dims=(2, 3)))


def test_two_means_reward_full_windows_where_the_letter_of_the_formula_punishes_them():
    """Windows are one frame apart: a full one's neighbours are nearly full and ought to be empty."""
    empty, full = torch.zeros(2, 1, 16, 112, 112).unbind(0)
    for n in range(65):  # k of ratio .1, all apart
        i, j = divmod(n, 10)
        full[0, 4:11, 11 * i : 11 * i + 11, 11 * j : 11 * j + 11] = ellipsoid_kernel(normalised=False)
    assert (window_means(full) > 0.999).sum() == 65 == window_count(0.1, (16, 112, 112))
    for padding in ("none", "wrap"):
        options = dict(ratio=0.1, time_padding=padding)
        assert core_loss(full, **options) > 1.5 * core_loss(empty, **options)
        assert core_loss(full, balanced=True, **options) < 0.3 * core_loss(empty, balanced=True, **options)


def test_two_means_prefer_one_piece_to_dust():
    tube, dust = torch.zeros(1, 16, 112, 112), torch.zeros(1, 16, 112, 112)
    tube[0, 4:12, 33:66, 33:66] = 1
    order = torch.randperm(dust.numel(), generator=torch.Generator().manual_seed(0))
    dust.view(-1)[order[: int(tube.sum())]] = 1
    assert core_loss(tube, 0.04, balanced=True) < core_loss(dust, 0.04, balanced=True) / 2


def test_smoothing_over_time():
    seeds = torch.zeros(1, 9, 2, 2, dtype=torch.float64)
    seeds[:, 4] = 1
    smooth = gaussian_smooth_time(seeds, 2)[0, :, 0, 0]
    z = 1 + 2 * math.exp(-1 / 1.2) + 2 * math.exp(-4 / 1.2)
    torch.testing.assert_close(smooth[4].item(), 1 / z)
    torch.testing.assert_close(smooth[6].item(), math.exp(-4 / 1.2) / z)
    assert smooth[7] == 0
    constant = torch.full((1, 5, 2, 2), 0.3, dtype=torch.float64)
    torch.testing.assert_close(gaussian_smooth_time(constant, 3), constant)
    assert torch.equal(gaussian_smooth_time(seeds, 0), seeds)
    first = gaussian_smooth_time(seeds.roll(-4, 1), 2)[0, :, 0, 0]  # a spike in the first of nine frames
    weights = [1, math.exp(-1 / 1.2), math.exp(-4 / 1.2)]
    expected = [
        weights[t] / sum(weights[abs(u - t)] for u in range(9) if abs(u - t) <= 2) if t < 3 else 0
        for t in range(9)
    ]
    assert first.tolist() == pytest.approx(expected)
    assert gaussian_smooth_time(seeds.roll(-4, 1), 2, wrap=True)[0, 8, 0, 0] > 0.1
    for reach in (1, 2, 3):  # joined end to end, every frame counts alike, however short the clip
        for time in (4, 9):
            frames = torch.zeros(1, time, 1, 1, dtype=torch.float64, requires_grad=True)
            (share,) = torch.autograd.grad(gaussian_smooth_time(frames, reach, wrap=True).sum(), frames)
            torch.testing.assert_close(share, torch.ones_like(share))


def test_second_difference():
    ramp = torch.linspace(0, 1, 5, dtype=torch.float64).view(1, 5, 1, 1).expand(1, 5, 3, 3)
    assert second_order_difference(ramp).item() == pytest.approx(0)
    spike = torch.zeros(1, 5, 1, 1)
    spike[0, 2] = 1
    assert second_order_difference(spike).item() == 1 + 4 + 1
    assert second_order_difference(spike[:, 1:4]).item() == 4, "three frames have one"
    torch.testing.assert_close(second_order_difference(spike.roll(2, 1), wrap=True), torch.tensor([6.0]))


def test_errors_say_what_was_expected():
    masks = torch.zeros(2, 8, 22, 22)
    with pytest.raises(ValueError, match="ratio"):
        area_loss(masks, 1.5)
    with pytest.raises(ValueError, match="ratio"):
        area_loss(masks, -0.01)
    with pytest.raises(ValueError, match="ratio"):
        area_loss(masks, [0.1])
    with pytest.raises(ValueError, match="time_padding"):
        window_means(masks, time_padding="mirror")
    with pytest.raises(ValueError, match="smaller than the kernel"):
        window_means(masks[:, :4])
    for small in (masks[:, :, :10], masks[..., :10]):
        with pytest.raises(ValueError, match="smaller than the kernel"):
            window_means(small, time_padding="wrap")
    for kernel in ((1, 23, 3), (1, 3, 23)):
        with pytest.raises(ValueError, match="smaller than the kernel"):
            window_means(masks, kernel)
    with pytest.raises(ValueError, match="stride over time must be 1"):
        window_means(masks, stride=(2, 11, 11))
    with pytest.raises(ValueError, match="reach must not be negative"):
        gaussian_smooth_time(masks, -1)
    assert window_means(masks[:, :7, :11, :11]).shape == (2, 1, 1, 1), "just one"
    with pytest.raises(ValueError, match="masks of 7x11x10 are smaller"):
        window_means(masks[:, :7, :11, :10])
    for few in (1, 2):
        with pytest.raises(ValueError, match=f"at least 3 frames, got {few}"):
            second_order_difference(masks[:, :few])


@pytest.mark.parametrize("kind", ["drawn", "half of them alike", "all alike", "steps"])
@pytest.mark.parametrize("loss", ["area", "each frame", "windows, one sum", "windows, two means"])
def test_all_rows_at_once_are_the_same_losses(loss, kind, monkeypatch):
    """With ties, none wanted and all wanted: the values and the gradients of one row after the other."""
    masks = random_masks(4, 8, 28, 28, seed=1)
    if kind == "half of them alike":
        masks[:, :4] = 0.5
    elif kind == "all alike":
        masks[:] = 0.25
    elif kind == "steps":
        masks = (4 * masks).floor() / 4
    ratio, kernel = [0.0, 0.1, 0.5, 1.0], (3, 7, 7)
    how = {"kernel": kernel, "stride": (1, 7, 7), "time_padding": "wrap"}

    def found():
        leaf = masks.clone().requires_grad_()
        if loss == "area":
            value = losses.area_loss(leaf, ratio)
        elif loss == "each frame":
            value = losses.area_loss_per_frame(leaf, ratio)
        else:
            value = losses.core_loss(leaf, ratio, balanced=loss.endswith("means"), **how)
        return value.detach(), torch.autograd.grad((value * torch.arange(1, 5)).sum(), leaf)[0]

    one_by_one = found()
    monkeypatch.setattr(losses, "one_by_one", lambda x: False)
    for a, b in zip(one_by_one, found(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # of ones shared in float32
    assert one_by_one[1].abs().max() > 0


def test_a_kernel_is_refused_where_no_voxel_lies_inside_and_nowhere_else():
    """By fractions: the voxels nearest to the middle decide."""
    for size in product(range(1, 8), repeat=3):
        nearest = [min(Fraction(2 * i - n + 1, max(n - 1, 1)) ** 2 for i in range(n)) for n in size]
        if sum(nearest) > 1:
            with pytest.raises(ValueError, match="no voxel"):
                ellipsoid_kernel(size)
        else:
            assert ellipsoid_kernel(size, normalised=False).sum() >= 1
