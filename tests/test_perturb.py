import math

import pytest
import torch

from steplab.perturb import KINDS, Perturbation, blur, gaussian_matrix, hottest_first, perturb


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 4, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_all_kept_is_the_clip_itself(pixels, kind):
    torch.testing.assert_close(perturb(pixels, torch.ones(2, 4, 20, 24), kind), pixels)


def test_nothing_kept(pixels):
    none = torch.zeros(2, 4, 20, 24)
    assert (perturb(pixels, none, "fade-black") == 0).all()
    assert (perturb(pixels, none, "fade-grey") == 0.5).all()
    mean = pixels.mean(dim=(2, 3, 4), keepdim=True).expand_as(pixels)
    torch.testing.assert_close(perturb(pixels, none, "fade-mean"), mean)
    torch.testing.assert_close(perturb(pixels, none, "blur", 3.0), blur(pixels, 3.0))
    torch.testing.assert_close(perturb(pixels, none, "pyramid", 3.0), blur(pixels, 3.0, "zero"))


def test_blur_is_a_blend_between_two_levels(pixels):
    half = torch.full((2, 4, 20, 24), 0.5)
    torch.testing.assert_close(perturb(pixels, half, "blur", 3.0), (pixels + blur(pixels, 3.0)) / 2)
    # the pyramid blends neighbouring levels instead: at 5.5/7 between levels 5 and 6
    deep = torch.full((2, 4, 20, 24), 5.5 / 7)
    two = (blur(pixels, 3 * 2 / 7, "zero") + blur(pixels, 3 * 1 / 7, "zero")) / 2
    torch.testing.assert_close(perturb(pixels, deep, "pyramid", 3.0), two, rtol=1e-4, atol=1e-5)


def test_sigma_grows_with_the_frame():
    assert Perturbation(torch.rand(1, 3, 1, 112, 140)).sigma == 20
    assert Perturbation(torch.rand(1, 3, 1, 224, 280)).sigma == 40


@pytest.mark.parametrize("kind", ["blur", "pyramid", "fade-mean"])
def test_gradient_in_double_precision(kind):
    pixels = torch.rand(1, 3, 2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    operator = Perturbation(pixels, kind, 1.5)
    assert torch.autograd.gradcheck(operator, masks.requires_grad_())


def test_items_say_whose_mask_it_is(pixels):
    masks = torch.rand(3, 4, 20, 24)
    for kind in ("blur", "pyramid"):
        operator = Perturbation(pixels, kind)
        mixed = operator(masks, torch.tensor([1, 0, 1]))
        alone = Perturbation(pixels[1:], kind)(masks[2:])
        torch.testing.assert_close(mixed[2:], alone)


def test_gaussian_matrix():
    kept = gaussian_matrix(30, 2.0)
    torch.testing.assert_close(kept.sum(1), torch.ones(30, dtype=torch.float64))
    impulse = kept[15]
    assert (impulse[15] / impulse[17]).item() == pytest.approx(2.718281828**0.5)
    assert gaussian_matrix(30, 2.0, "zero")[0].sum() < 0.7
    ring = gaussian_matrix(9, 30.0, "wrap")
    torch.testing.assert_close(ring, torch.full_like(ring, 1 / 9), rtol=0, atol=1e-5)
    assert torch.equal(gaussian_matrix(5, 0), torch.eye(5, dtype=torch.float64))
    assert gaussian_matrix(5, 0.1)[2, 2] == 1 and gaussian_matrix(5, 0.1).dtype == torch.float64


@pytest.mark.parametrize("sigma", [0.6, 1.3])
@pytest.mark.parametrize("padding", ["replicate", "zero", "wrap"])
def test_gaussian_matrix_is_the_sum_over_samples(padding, sigma):
    """exp(-u^2 / (2 sigma^2)) for |u| <= 4 sigma, over their sum; what lies outside by the padding."""
    length, reach = 9, math.ceil(4 * sigma)
    weight = {u: math.exp(-(u**2) / (2 * sigma**2)) for u in range(-reach, reach + 1)}
    expected = torch.zeros(length, length, dtype=torch.float64)
    for i in range(length):
        for u, w in weight.items():
            j = i + u
            if padding == "zero" and not 0 <= j < length:
                continue
            j = j % length if padding == "wrap" else min(max(j, 0), length - 1)
            expected[i, j] += w / sum(weight.values())
    torch.testing.assert_close(gaussian_matrix(length, sigma, padding), expected)


def test_blur_goes_down_and_across():
    spot = torch.zeros(2, 9, 7, dtype=torch.float64)
    spot[1, 4, 2] = 1
    found = blur(spot, 1.0)
    down, across = gaussian_matrix(9, 1.0)[:, 4], gaussian_matrix(7, 1.0)[:, 2]
    torch.testing.assert_close(found[1], down[:, None] * across)
    assert (found[0] == 0).all()


def test_hottest_first():
    heat = torch.tensor([[[0.1, 3.0], [-2.0, 0.5]], [[9.0, -7.0], [0.2, 0.3]]])
    assert hottest_first(heat).tolist() == [[[5, 1], [6, 2]], [[0, 7], [4, 3]]]
    tied = torch.zeros(1, 3, 3)
    orders = {tuple(hottest_first(tied, seed).flatten().tolist()) for seed in range(20)}
    assert len(orders) == 20 and all(sorted(order) == list(range(9)) for order in orders)
    assert torch.equal(hottest_first(tied), hottest_first(tied, 0)), "the seed's default"
    with pytest.raises(ValueError, match="heatmap: got NaN or infinite"):
        hottest_first(tied / 0)


def test_errors_say_what_was_expected(pixels):
    with pytest.raises(ValueError, match="kind"):
        Perturbation(pixels, "noise")
    with pytest.raises(ValueError, match="pixels"):
        Perturbation(pixels[0])
    with pytest.raises(ValueError, match="sigma"):
        Perturbation(pixels, sigma=-1)
    assert torch.equal(Perturbation(pixels, sigma=0)(torch.zeros(2, 4, 20, 24)), pixels), "no blur at all"
    with pytest.raises(ValueError, match="masks"):
        Perturbation(pixels)(torch.rand(2, 4, 24, 20))
    with pytest.raises(ValueError, match="items"):
        Perturbation(pixels)(torch.rand(3, 4, 20, 24))
