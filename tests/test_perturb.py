import pytest
import torch

from steplab.perturb import KINDS, Perturbation, blur, gaussian_matrix, perturb


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


def test_errors_say_what_was_expected(pixels):
    with pytest.raises(ValueError, match="kind"):
        Perturbation(pixels, "noise")
    with pytest.raises(ValueError, match="pixels"):
        Perturbation(pixels[0])
    with pytest.raises(ValueError, match="sigma"):
        Perturbation(pixels, sigma=-1)
    with pytest.raises(ValueError, match="masks"):
        Perturbation(pixels)(torch.rand(2, 4, 24, 20))
    with pytest.raises(ValueError, match="items"):
        Perturbation(pixels)(torch.rand(3, 4, 20, 24))
