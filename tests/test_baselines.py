"""Baselines against other implementations, closed forms, and controls; the network stays as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steplab as sl
from steplab.baselines import hottest
from steplab.clips import Clip
from steplab.config import BASELINES
from steplab.explanation import Explanation
from steplab.networks import Network

SIZE = (4, 14, 14)
NAMES = ("stage-action-r2plus1d", "stage-action-vgg16lstm")
# Where a method has no meaning, what its refusal names.
REFUSED = {
    ("stage-action-r2plus1d", "eb-r"): "excitation-backprop fits",
    ("stage-action-vgg16lstm", "excitation-backprop"): "eb-r",
    ("stage-action-vgg16lstm", "saliency-tubes"): "grad-cam fits",
    ("stage-action-vgg16lstm", "deep-lift"): "recurrent|LSTM|integrated",
}


class Plain(nn.Module):
    """3-D convolution, ReLU, average, linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.fc = nn.Conv3d(3, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x)).mean((2, 3, 4)))


def noise(size=SIZE, seed=0):
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
    return Clip(pixels, torch.arange(size[0]) / 4, "noise")


@pytest.fixture
def plain():
    return Network(Plain().eval(), ("a", "b", "c"), target_layer="relu")


def heat(network, clip, method, target=1, **settings) -> torch.Tensor:
    return sl.explain(network, clip, target, method, (0.2,), progress=False, **settings).heatmap


def same_up_to_scale(a, b):
    torch.testing.assert_close(a / a.max(), b / b.max(), rtol=0, atol=1e-5)


def test_grad_cam_is_captums(plain):
    captum = pytest.importorskip("captum.attr")
    clip = noise()
    cam = captum.LayerGradCam(plain.module, plain.module.relu).attribute(
        clip.pixels[None], target=1, relu_attributions=True
    )
    theirs = F.interpolate(cam, SIZE, mode="trilinear")[0, 0].detach()
    torch.testing.assert_close(heat(plain, clip, "grad-cam"), theirs, rtol=0, atol=1e-5)


def test_grad_cam_and_tubes_are_one_on_a_linear_head(plain):
    """Grad-CAM = relu(Tubes) / (T'H'W'), before both are stretched: here nothing is."""
    plain.module.conv = nn.Conv3d(3, 5, 3, padding=1)
    clip = noise()
    with torch.no_grad():
        maps = plain.module.relu(plain.module.conv(clip.pixels[None]))[0]
        tubes = torch.einsum("c,cthw->thw", plain.module.fc.weight[1], maps)
    torch.testing.assert_close(
        heat(plain, clip, "grad-cam"), tubes.relu() / tubes.numel(), rtol=1e-4, atol=1e-8
    )
    scaled = (tubes - tubes.min()) / (tubes.max() - tubes.min())
    torch.testing.assert_close(heat(plain, clip, "saliency-tubes"), scaled, rtol=0, atol=1e-5)


def test_the_two_conventions_of_grad_cam_differ_where_the_head_weighs_time(plain):
    class Weighing(Plain):
        def forward(self, x):
            per_frame = self.fc(self.relu(self.conv(x)).mean((3, 4)).transpose(1, 2))
            return per_frame[:, 0] - 0.5 * per_frame[:, 1]

    clip, module = noise(), Weighing().eval()
    network = Network(module, ("a", "b", "c"), target_layer="relu")
    clip_wise, frame_wise = (heat(network, clip, "grad-cam", cam_weights=w) for w in ("clip", "frame"))
    assert not torch.allclose(clip_wise, frame_wise, atol=1e-4)
    same = [heat(plain, clip, "grad-cam", cam_weights=w) for w in ("clip", "frame")]
    torch.testing.assert_close(same[0], same[1], rtol=1e-4, atol=1e-8)


def test_on_a_linear_network_all_is_weight_times_difference():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 14 * 14, 2, bias=False))
    network, clip = Network(module.eval(), ("a", "b")), noise()
    dark = {"perturbation": "fade-black"}
    weight = module[1].weight.detach()[1].view(3, *SIZE)
    exact = (weight * clip.pixels).sum(0).clamp(min=0)
    torch.testing.assert_close(
        heat(network, clip, "integrated-gradients", **dark), exact, rtol=1e-3, atol=1e-5
    )
    one = {"blocks": SIZE, "occlusion_steps": 1, **dark}  # as many blocks as voxels
    same_up_to_scale(heat(network, clip, "occlusion", **one), exact)


def test_controls_know_nothing_of_the_network(plain):
    clip = noise()
    other = Network(Plain().eval(), ("a", "b", "c"))
    for parameter in other.module.parameters():
        parameter.data.neg_()
    for method in ("random", "middle", "motion"):
        torch.testing.assert_close(
            heat(plain, clip, method, seed=3), heat(other, clip, method, target=0, seed=3)
        )
    middle = heat(plain, clip, "middle")
    assert middle.argmax() == torch.tensor(range(4 * 14 * 14)).view(SIZE)[2, 7, 7]
    places = torch.stack([heat(plain, clip, "random", seed=k).argmax() for k in range(40)])
    assert len(places.unique()) > 35


def test_masks_are_the_hottest_voxels_and_ties_are_drawn():
    masks = hottest(torch.arange(100.0).view(4, 5, 5), (0.1, 0.5))
    assert masks.flatten(1).sum(1).tolist() == [10, 50] and masks[0].flatten()[-10:].all()
    flat = torch.stack([hottest(torch.ones(4, 5, 5), (0.1,), seed=k)[0] for k in range(200)]).mean(0)
    assert flat.min() > 0.02 and flat.max() < 0.25, "some place is preferred"


def state(module):
    flags = [
        (m.training, {k: dict(v) for k, v in m.__dict__.items() if k.endswith("_hooks")})
        for m in module.modules()
    ]
    return (
        [v.clone() for v in module.state_dict().values()],
        [p.requires_grad for p in module.parameters()],
        flags,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", BASELINES)
def test_each_method_on_each_family(name, method, tmp_path):
    network, clip = sl.load_network(name), sl.Stage("action", "test", 1)[0].clip
    before = state(network.module)
    if (name, method) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name, method]):
            sl.explain(network, clip, 0, method, (0.1,), "smoke", progress=False)
    else:
        result = sl.explain(network, clip, 0, method, (0.1,), "smoke", progress=False)
        assert result.heatmap.shape == (16, 112, 112) and torch.isfinite(result.heatmap).all()
        assert result.heatmap.min() >= 0 and result.heatmap.max() > result.heatmap.min()
        assert float(result.masks.mean()) == pytest.approx(0.1, abs=1e-3)
        again = Explanation.load(result.save(tmp_path / "a.safetensors"))
        assert again.config == result.config and torch.equal(again.heatmap, result.heatmap)
    after = state(network.module)
    assert (
        all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True)) and before[1:] == after[1:]
    )


def test_an_exception_in_the_middle_leaves_no_hook(plain):
    before, real, calls = state(plain.module), plain.preprocess, []

    def failing(pixels):
        calls.append(1)
        if len(calls) > 1:  # not at the first look at the clip
            raise RuntimeError("in the middle")
        return pixels

    plain.preprocess = failing
    with pytest.raises(RuntimeError, match="in the middle"):
        heat(plain, noise(), "grad-cam")
    plain.preprocess = real
    assert state(plain.module)[1:] == before[1:]


def test_unknown_settings_and_layers_are_refused(plain):
    for wrong, words in (({"rise_mask": 3}, "rise_masks"), ({"target_layer": "convv"}, "conv")):
        with pytest.raises(ValueError, match=words):
            heat(plain, noise(), "grad-cam", **wrong)
