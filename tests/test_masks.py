import math

import numpy as np
import pytest
import torch

from steplab.masks import BOUNDARIES, MaskGenerator, _Drawing, disc


def seeds_for(generator, batch=1, seed=0, dtype=torch.float64):
    numbers = torch.Generator().manual_seed(seed)
    return torch.rand(batch, *generator.seed_shape, generator=numbers, dtype=dtype)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", [(2, 14, 7), (1, 13, 17)])
def test_gradient_in_double_precision(boundary, size):
    generator = MaskGenerator(size, sigma=6, boundary=boundary)
    seeds = seeds_for(generator).requires_grad_()
    assert torch.autograd.gradcheck(generator.whole, seeds, fast_mode=True)


def literal_pixel(seeds, y, x, sigma, step, radius):
    """Smooth maximum at one pixel, seed by seed; seeds lie at the centres of their cells."""
    h, w = seeds.shape
    values = []
    for i in range(y // step - radius, y // step + radius + 1):
        for j in range(x // step - radius, x // step + radius + 1):
            distance = ((y - step * i - (step - 1) / 2) ** 2 + (x - step * j - (step - 1) / 2) ** 2) ** 0.5
            values.append(disc(torch.tensor(distance, dtype=torch.float64), sigma) * seeds[i % h, j % w])
    values = torch.stack(values)
    return (values * torch.softmax(20 * values, dim=0)).sum()


def test_mask_is_the_formula_pixel_by_pixel():
    generator = MaskGenerator((1, 56, 63), sigma=11)
    seeds = seeds_for(generator, seed=1)
    mask = generator(seeds)[0, 0]
    for y, x in [(0, 0), (3, 59), (17, 30), (55, 62), (28, 1)]:
        expected = literal_pixel(seeds[0, 0], y, x, 11, 7, 3)
        torch.testing.assert_close(mask[y, x], expected)


@pytest.mark.parametrize("size", [7, 14, 21, 28, 35, 97, 98, 105])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_every_boundary_draws_the_whole_frame(boundary, size):
    """At these sizes the usual padding ends before the frame does."""
    generator = MaskGenerator((2, size, size + 1), boundary=boundary)
    numbers = torch.Generator().manual_seed(size)
    seeds = torch.rand(1, *generator.seed_shape, generator=numbers, dtype=torch.float64).requires_grad_()
    whole = generator.whole(seeds)
    masks = generator.crop(whole)
    assert masks.shape == (1, 2, size, size + 1)
    if size < 20:
        assert torch.autograd.gradcheck(generator.whole, seeds, fast_mode=True)
    if boundary == "padded":
        assert whole.shape[2] >= size + 2 * generator.margin, "a margin below the frame as well as above"


@pytest.mark.parametrize("height, width, sigma", [(21, 28, 2.1), (35, 20, 3), (98, 105, 9.6), (63, 56, 11)])
def test_mask_with_nothing_outside_is_the_formula_pixel_by_pixel(height, width, sigma):
    """A seed at each cell's corner, zeros around the grid; some sizes need more of them than others."""
    padded = MaskGenerator((1, height, width), sigma=sigma, boundary="padded")
    seeds, m, step = seeds_for(padded, seed=3), padded.margin, 7
    assert m == round(sigma) and padded.radius == 1 + math.ceil(sigma / step)
    whole = padded.whole(seeds)[0, 0].numpy()
    outside = np.pad(seeds[0, 0].numpy(), 30)  # zeros all round, more than are ever asked for
    span = np.arange(2 * padded.radius + 1) - 1 - math.ceil(2 * sigma / step)

    def literal(at):
        rows, columns = (n // step + span for n in at)
        down, across = (at[0] - step * rows - sigma) ** 2, (at[1] - step * columns - sigma) ** 2
        distance = np.sqrt(down[:, None] + across)
        weight = np.exp(-2 * np.clip(distance / sigma - 0.5, 0, None) ** 2)
        lit = weight * outside[np.ix_(rows + 30, columns + 30)]
        return (lit * np.exp(20 * lit)).sum() / np.exp(20 * lit).sum()

    places = np.random.default_rng(0).integers(0, whole.shape, (12, 2)).tolist()
    corners = [(y, x) for y in (0, m, m + height - 1, len(whole) - 1) for x in (0, m, m + width - 1)]
    for at in [*map(tuple, places), *corners]:
        assert whole[at] == pytest.approx(literal(at), abs=1e-6), at
    cropped = MaskGenerator((1, height, width), sigma=sigma, boundary="crop")(seeds)
    torch.testing.assert_close(cropped, padded(seeds))
    torch.testing.assert_close(padded(seeds)[0, 0], torch.tensor(whole[m : m + height, m : m + width]))


def test_a_frame_that_the_step_does_not_divide_is_drawn_larger_and_resized():
    """Bilinear between the middles of pixels: pixel y of 17 is at (y + 1/2) 21 / 17 - 1/2 of the 21 drawn."""
    generator, larger = MaskGenerator((1, 17, 30), sigma=6), MaskGenerator((1, 21, 35), sigma=6)
    seeds = seeds_for(generator, seed=4)
    assert generator.seed_shape == larger.seed_shape == (1, 3, 5)
    drawn, mask = larger(seeds)[0, 0], generator(seeds)[0, 0]

    def between(n, small, large):
        place = min(max((n + 0.5) * large / small - 0.5, 0), large - 1)
        low = min(int(place), large - 2)
        return low, place - low

    for y, x in [(0, 0), (16, 29), (5, 7), (11, 23), (16, 0)]:
        (i, down), (j, across) = between(y, 17, 21), between(x, 30, 35)
        near, far = ((1 - across) * drawn[i + k, j] + across * drawn[i + k, j + 1] for k in (0, 1))
        torch.testing.assert_close(mask[y, x], (1 - down) * near + down * far)


def test_disc_is_flat_within_half_its_radius_and_falls_as_a_bell():
    assert disc(torch.tensor([0.0, 2.0, 5.5]), 11).tolist() == [1, 1, 1]
    found = disc(torch.tensor([11.0, 16.5]), 11).tolist()
    assert found == pytest.approx([math.exp(-0.5), math.exp(-2)])


def test_wrapped_masks_move_with_their_seeds():
    generator = MaskGenerator((2, 56, 70))
    seeds = seeds_for(generator, seed=2)
    moved = generator(seeds.roll((3, 4), dims=(2, 3)))
    torch.testing.assert_close(moved, generator(seeds).roll((21, 28), dims=(2, 3)))
    torch.testing.assert_close(generator(seeds.flip(3)), generator(seeds).flip(3))


@pytest.mark.parametrize("size", [(1, 112, 112), (1, 100, 108), (1, 64, 90)])
def test_on_the_torus_every_seed_costs_the_same(size):
    generator = MaskGenerator(size)
    seeds = torch.full((1, *generator.seed_shape), 0.5, dtype=torch.float64, requires_grad=True)
    (cost,) = torch.autograd.grad(generator(seeds).sum(), seeds)
    spread = (cost.max() - cost.min()) / cost.mean()
    assert spread < (1e-9 if size[1:] == (112, 112) else 0.02)


def test_cropped_edges_are_cheap_and_padded_edges_dear():
    cost = {}
    for boundary in ("crop", "padded"):
        generator = MaskGenerator((1, 112, 112), boundary=boundary)
        seeds = torch.zeros(1, 1, 16, 16)
        middle, corner = seeds.clone(), seeds.clone()
        middle[..., 8, 8], corner[..., 0, 0] = 1, 1
        cost[boundary] = (generator.whole(corner).sum() / generator.whole(middle).sum()).item()
    assert cost["crop"] < 0.5
    assert cost["padded"] > 0.8


def test_one_seed_lights_a_disc_of_437_pixels():
    generator = MaskGenerator((1, 112, 112))
    seeds = torch.zeros(1, *generator.seed_shape)
    seeds[0, 0, 8, 8] = 1
    assert abs(int((generator(seeds) > 0.5).sum()) - 437) <= 8


def test_padded_masks_have_the_published_size():
    generator = MaskGenerator((16, 112, 112), boundary="padded")
    seeds = torch.ones(1, *generator.seed_shape)
    assert generator.whole(seeds).shape == (1, 16, 134, 134)
    assert torch.equal(generator.whole(seeds)[..., 11:123, 11:123], generator(seeds))


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_values_stay_in_range_and_frames_apart(boundary):
    generator = MaskGenerator((3, 45, 60), boundary=boundary)
    seeds = seeds_for(generator, 2, dtype=torch.float32)
    seeds[:, 1] = 0
    masks = generator(seeds)
    assert masks.shape == (2, 3, 45, 60)
    assert masks.min() >= 0 and masks.max() <= 1
    assert (masks[:, 1] == 0).all()


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_all_terms_at_once_are_the_same_masks(boundary):
    """As on an accelerator, here on the CPU: values and gradients."""
    generator = MaskGenerator((2, 45, 60), boundary=boundary)
    grid = generator._surround(seeds_for(generator, 2, seed=5)).requires_grad_()
    blocks = torch.stack([_Drawing.apply(item, generator) for item in grid])
    at_once = generator._draw_at_once(grid)
    torch.testing.assert_close(at_once, blocks, rtol=0, atol=1e-12)
    weight = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    (a,), (b,) = (torch.autograd.grad((drawn * weight).sum(), grid) for drawn in (at_once, blocks))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_frames_mean_is_estimated_from_the_middles_of_its_cells(boundary):
    generator = MaskGenerator((3, 56, 63), sigma=11, boundary=boundary)
    seeds = seeds_for(generator, 2, seed=7)
    seeds[:, 1] *= 0.3
    found, masks = generator.frame_means(seeds), generator(seeds)
    if boundary == "wrap":
        torch.testing.assert_close(found, masks[:, :, 3::7, 3::7].mean((2, 3)))
        torch.testing.assert_close(found, masks.mean((2, 3)), rtol=0.03, atol=0)
    assert torch.autograd.gradcheck(generator.frame_means, seeds.requires_grad_(), fast_mode=True)
    assert (found[:, 1] < 0.5 * found[:, 0]).all() and (found[:, 2] > 0).all()


def test_batches_and_kept_buffers_change_nothing():
    generator = MaskGenerator((2, 35, 35))
    seeds = seeds_for(generator, 3, dtype=torch.float32)
    together = generator(seeds)
    alone = torch.cat([generator(seeds[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    a = seeds[:1].clone().requires_grad_()
    first = generator(a)
    generator(seeds[1:2])  # another use of the buffers between forward and backward
    (gradient,) = torch.autograd.grad(first.sum(), a)
    (fresh,) = torch.autograd.grad(MaskGenerator((2, 35, 35))(a).sum(), a)
    torch.testing.assert_close(gradient, fresh)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="boundary"):
        MaskGenerator((1, 14, 14), boundary="mirror")
    with pytest.raises(ValueError, match="size"):
        MaskGenerator((14, 14))  # type: ignore[arg-type]
    for wrong in ((0, 14, 14), (1, 14, 0)):
        with pytest.raises(ValueError, match="size"):
            MaskGenerator(wrong)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match="step"):
            MaskGenerator((1, 14, 14), step=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sigma"):
        MaskGenerator((1, 14, 14), sigma=0)
    assert MaskGenerator((1, 14, 14), sigma=0.1, step=1).sigma == 0.1
    with pytest.raises(ValueError, match="seeds"):
        MaskGenerator((1, 14, 14))(torch.rand(1, 1, 3, 3))
