"""Agreement with independent implementations; skipped where they are not installed (extra `oracle`)."""

import pytest
import torch

from steplab.masks import MaskGenerator
from steplab.perturb import Perturbation

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")
torchray = pytest.importorskip("torchray.attribution.extremal_perturbation")

# (height, width, step, sigma): those where the other's crop is whole
SIZES = [
    (112, 112, 7, 11),
    (56, 56, 7, 11),
    (112, 140, 7, 11),
    (84, 63, 7, 11),
    (98, 70, 7, 14),
    (224, 224, 7, 23),
    (64, 64, 8, 8),
    (60, 80, 5, 10),
    (100, 100, 10, 10),
    (48, 72, 6, 6),
]


@pytest.mark.parametrize("height, width, step, sigma", SIZES)
def test_masks_and_gradients_are_torchrays(height, width, step, sigma):
    ours = MaskGenerator((2, height, width), step, sigma, "padded")
    theirs = torchray.MaskGenerator((height, width), step, sigma)
    numbers = torch.Generator().manual_seed(height)
    seeds = torch.rand(1, *ours.seed_shape, generator=numbers).requires_grad_()
    whole = ours.whole(seeds)
    crop, padded = theirs.generate(seeds.flatten(0, 1)[:, None])
    assert crop.shape[2:] == (height, width), "choose a size where the other's crop is whole"
    torch.testing.assert_close(ours.crop(whole)[0], crop[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        MaskGenerator((2, height, width), step, sigma, "crop")(seeds)[0], crop[:, 0], rtol=0, atol=1e-5
    )
    if padded.shape[2:] == whole.shape[2:]:
        torch.testing.assert_close(whole[0], padded[:, 0], rtol=0, atol=1e-5)
    weight = torch.rand(crop.shape, generator=numbers) / 100  # gradients of order 1
    (a,) = torch.autograd.grad((ours.crop(whole) * weight[None, :, 0]).sum(), seeds)
    (b,) = torch.autograd.grad((crop * weight).sum(), seeds)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_pyramid_is_torchrays():
    image = torch.rand(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(1, 1, 56, 56, generator=torch.Generator().manual_seed(1))
    theirs = torchray.Perturbation(image, max_blur=20).apply(mask)
    ours = Perturbation(image[:, :, None], "pyramid", 20)(mask)[:, :, 0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
