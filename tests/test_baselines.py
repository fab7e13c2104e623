"""Baselines against other implementations and closed forms; every network is left as it was."""

import math
from dataclasses import asdict

import pytest
import torch
from test_explain import Mishap, Small, differences, photograph
from torch import nn
from torchvision.models import video
from torchvision.models.video import mvit, swin_transformer

from steplab.baselines import _MAPS, attribute, hottest
from steplab.clips import Clip
from steplab.config import BASELINES, AttributionConfig, make_config
from steplab.explain import explain, smallest_ratio
from steplab.explanation import Explanation
from steplab.layers import plain_activations, tap, target_layer
from steplab.narrow import NarrowR2Plus1D, NarrowVGG16LSTM
from steplab.networks import Network, load_network
from steplab.perturb import blur
from steplab.stage import Stage
from steplab.vgg_lstm import VGG16LSTM

FIVE = [*"abcde"]


def numbers(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def wrapped(module: nn.Module, **more) -> Network:
    for p in module.parameters():
        p.requires_grad_(False)
    return Network(module.eval(), FIVE, **more)


def heat_of(network, pixels, method, target=2, seed=0, batch=1, **constants):
    return attribute(network, pixels, target, method, AttributionConfig(**constants), seed, batch)


@pytest.fixture(scope="module")
def r3d():
    torch.manual_seed(0)
    return wrapped(video.r3d_18(num_classes=5))


@pytest.fixture(scope="module")
def narrow():
    torch.manual_seed(1)
    module = NarrowR2Plus1D(5, 8)
    nn.init.normal_(module.fc.weight)
    return wrapped(module)


def resized(maps, size):
    return nn.functional.interpolate(maps[:, None], size, mode="trilinear")[0, 0]


def test_grad_cam_is_captums_and_torchcams(r3d):
    from captum.attr import LayerGradCam

    pixels = numbers(1, 3, 16, 64, 64)
    heat = heat_of(r3d, pixels, "grad-cam")
    cam = LayerGradCam(r3d.module, r3d.module.layer4).attribute(pixels, 2, relu_attributions=True)
    assert cam.shape == (1, 1, 2, 4, 4) and cam.max() > 0
    torch.testing.assert_close(heat, resized(cam[0], (16, 64, 64)).detach(), rtol=0, atol=1e-5)
    methods = pytest.importorskip("torchcam.methods")
    with methods.GradCAM(r3d.module, "layer4") as extractor:
        scores = r3d.module(pixels.clone().requires_grad_())
        (theirs,) = extractor(2, scores, normalized=False)
    torch.testing.assert_close(heat, resized(theirs, (16, 64, 64)), rtol=0, atol=1e-5)


def test_grad_cam_is_grad_cams(r3d):
    """The package `grad-cam`, up to its own upsampling, which it does with other borders."""
    peer = pytest.importorskip("pytorch_grad_cam").GradCAM
    pixels, layer = numbers(1, 3, 16, 64, 64), r3d.module.layer4
    with peer(model=r3d.module, target_layers=[layer]) as cam:
        seen = cam.activations_and_grads
        seen(pixels.clone().requires_grad_())[0, 2].backward()
        found = (seen.activations[0].numpy(), seen.gradients[0].numpy())
        theirs = torch.from_numpy(cam.get_cam_image(pixels, layer, [2], *found)).relu()
    heat = heat_of(r3d, pixels, "grad-cam")
    torch.testing.assert_close(heat, resized(theirs, (16, 64, 64)), rtol=0, atol=1e-5)


class OverTime(nn.Module):
    """A head that weighs the moments differently; its gradient is the weight itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.weight = nn.Conv3d(3, 4, 1), nn.Parameter(torch.randn(5, 4, 6))

    def forward(self, x):
        return torch.einsum("bcthw,kct->bk", self.conv(x), self.weight)


@pytest.mark.parametrize("convention", ["clip", "frame"])
def test_grad_cams_two_conventions(convention):
    torch.manual_seed(0)
    network, pixels = wrapped(OverTime()), numbers(1, 3, 6, 5, 5)
    weight = network.module.weight[2]
    weight = weight.mean(1, keepdim=True).expand(-1, 6) if convention == "clip" else weight
    expected = torch.einsum("ct,cthw->thw", weight, network.module.conv(pixels)[0]).relu()
    heat = heat_of(network, pixels, "grad-cam", target_layer="conv", cam_weights=convention)
    torch.testing.assert_close(heat, expected)


def test_grad_cam_unfolds_frames_and_explains_the_log_of_a_probability():
    torch.manual_seed(0)
    network = wrapped(NarrowVGG16LSTM(5, 4, 16), output="probability")
    pixels = numbers(1, 3, 6, 32, 32)
    kept = {}
    layer = network.module.get_submodule(network.module.target_layer)
    handle = layer.register_forward_hook(lambda _, __, y: kept.setdefault("y", y))
    score = network(pixels.clone().requires_grad_())[0, 2].log()
    (gradient,) = torch.autograd.grad(score, kept["y"])
    handle.remove()
    weight = gradient.mean((2, 3), keepdim=True)
    for convention, w in (("frame", weight), ("clip", weight.mean(0, keepdim=True))):
        maps = (w * kept["y"]).sum(1).relu().detach()[None]
        heat = heat_of(network, pixels, "grad-cam", cam_weights=convention)
        torch.testing.assert_close(heat, resized(maps, (6, 32, 32)))
    with pytest.raises(ValueError, match="none follows on the average of 'features.26'; grad-cam fits"):
        heat_of(network, pixels, "saliency-tubes")


def test_saliency_tubes_are_torchcams_and_grad_cam_without_relu(narrow):
    pixels = numbers(1, 3, 16, 64, 64)
    with tap(narrow, "last_map") as seen:
        logits = narrow(pixels)
    maps = seen.maps(seen.raw.detach())
    tubes = torch.einsum("c,bcthw->bthw", narrow.module.fc.weight[2], maps)
    heat = heat_of(narrow, pixels, "saliency-tubes")
    assert heat.min() == 0 and heat.max() == 1 and logits.shape == (1, 5)
    # cubic in space and then in time, by another way round
    by_time = nn.functional.interpolate(
        tubes.permute(0, 2, 3, 1).flatten(0, 1)[None], (tubes.shape[3], 16), mode="bicubic"
    ).view(*tubes.shape[2:], 16)
    other = nn.functional.interpolate(by_time.permute(2, 0, 1)[None], (64, 64), mode="bicubic")[0]
    torch.testing.assert_close(heat, (other - other.min()) / (other.max() - other.min()), atol=1e-5, rtol=0)
    cam = resized(tubes.relu() / math.prod(tubes.shape[1:]), (16, 64, 64))
    torch.testing.assert_close(heat_of(narrow, pixels, "grad-cam"), cam, rtol=0, atol=1e-6)
    methods = pytest.importorskip("torchcam.methods")
    with methods.CAM(narrow.module, "last_map", fc_layer="fc") as extractor:
        (theirs,) = extractor(2, narrow.module(pixels), normalized=False)
    torch.testing.assert_close(tubes.relu(), theirs.relu(), rtol=0, atol=1e-5)


def small_mvit():
    three, one = [3, 3, 3], [1, 1, 1]
    kinds = [
        mvit.MSBlockConfig(1, 8, 16, three, three, one, one),
        mvit.MSBlockConfig(2, 16, 16, three, three, [1, 2, 2], one),
        mvit.MSBlockConfig(2, 16, 16, three, three, one, one),
    ]
    return video.MViT((32, 32), 8, kinds, False, True, True, True, num_classes=5)


TRANSFORMERS_AND_CO = {
    "r2plus1d_18": (lambda: video.r2plus1d_18(num_classes=5), (2, 4, 4)),
    "mc3_18": (lambda: video.mc3_18(num_classes=5), (16, 4, 4)),
    "s3d": (lambda: video.s3d(num_classes=5), (2, 2, 2)),
    "swin": (
        lambda: swin_transformer.SwinTransformer3d([2, 4, 4], 8, [1, 1], [1, 2], [2, 4, 4], num_classes=5),
        (8, 8, 8),
    ),
    "mvit": (small_mvit, (4, 4, 4)),
}


@pytest.mark.parametrize("name", TRANSFORMERS_AND_CO)
def test_target_layers_of_torchvisions_models(name):
    make, grid = TRANSFORMERS_AND_CO[name]
    torch.manual_seed(0)
    network = wrapped(make())
    if name == "s3d":
        network.module.avgpool = nn.AdaptiveAvgPool3d(1)  # so that so small a clip will do
    size = (8, 32, 32) if name == "mvit" else (16, 64, 64)
    pixels = numbers(1, 3, *size)
    with tap(network, target_layer(network)) as seen:
        score = network(pixels)[0, 2]
    maps, gradient = seen.maps(seen.raw.detach()), seen.maps(seen.gradient(score))
    assert maps.shape[2:] == grid and gradient.shape == maps.shape
    assert gradient.abs().sum((0, 1)).min() > 0, "every place matters"
    heats = [
        heat_of(network, pixels, "grad-cam", target) for target in range(5)
    ]  # some are negative all over
    assert heats[0].shape == size and max(heat.std() for heat in heats) > 0
    if name == "mvit":
        tokens = seen.raw.detach()[0, 1:]  # the first is of the class
        assert torch.equal(maps[0, :, 1, 2, 3], tokens[(1 * 4 + 2) * 4 + 3])
        with pytest.raises(ValueError, match="none follows on the average"):
            heat_of(network, pixels, "saliency-tubes")
        with pytest.raises(ValueError, match="no rule for"):
            heat_of(network, pixels, "excitation-backprop")
        with pytest.raises(ValueError, match="nn.ReLU modules"):
            heat_of(network, pixels, "guided-backprop")
    else:
        assert heat_of(network, pixels, "saliency-tubes").max() == 1
    if name == "swin":  # channels come last there
        assert torch.equal(maps, seen.raw.detach().permute(0, 4, 1, 2, 3))


def test_full_and_narrow_networks_know_their_layer():
    assert target_layer(Network(NarrowR2Plus1D(5, 4), FIVE)) == "last_map"
    assert target_layer(Network(NarrowVGG16LSTM(5, 4), FIVE)) == "features.26"
    with torch.device("meta"):
        module = VGG16LSTM(5)
    assert isinstance(module.get_submodule(target_layer(Network(module, FIVE))), nn.ReLU)


@pytest.mark.parametrize(
    "layer, message",
    [
        ("nowhere", "got 'nowhere', expected the name of a layer of network, for instance 'stages"),
        ("fc", r"'fc' gives shape \(1, 5\)"),
        ("stages.0.first.space_norm", "ran 0 times"),
        ("stages.3.second.time", "ran 0 times|gives shape"),
        ("stages", "ran 0 times"),
    ],
)
def test_layers_that_do_not_fit_are_named(narrow, layer, message):
    with pytest.raises(ValueError, match=message):
        heat_of(narrow, numbers(1, 3, 16, 32, 32), "grad-cam", target_layer=layer)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.aside = nn.Conv3d(3, 3, 1), nn.Conv3d(3, 3, 1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        self.aside(x)
        return self.fc(torch.relu_(self.conv(torch.relu_(self.conv(x)))).mean((2, 3, 4)))


def test_a_layer_that_runs_twice_or_does_not_matter_is_refused():
    network, pixels = wrapped(Twice()), numbers(1, 3, 4, 8, 8)
    with pytest.raises(ValueError, match="'conv' ran 2 times"):
        heat_of(network, pixels, "grad-cam", target_layer="conv")
    with pytest.raises(ValueError, match="'aside' ran 1 times in one pass, and the scores do not depend"):
        heat_of(network, pixels, "grad-cam", target_layer="aside")
    with pytest.raises(ValueError, match="wraps a plain function"):
        heat_of(Network(lambda x: x.mean((2, 3, 4)), [*"abc"]), pixels, "grad-cam")


@pytest.mark.parametrize("method", ["grad-cam", "excitation-backprop", "guided-backprop", "deep-lift"])
def test_an_activation_in_place_changes_nothing(method):
    heats = []
    for inplace in (False, True):
        torch.manual_seed(0)
        parts = nn.Conv3d(3, 4, 3), nn.ReLU(inplace), nn.Conv3d(4, 4, 3), nn.ReLU(inplace)
        module = nn.Sequential(*parts, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
        heats.append(heat_of(wrapped(module), numbers(1, 3, 6, 12, 12), method, target_layer="0"))
        assert module[1].inplace == inplace
    assert torch.equal(*heats) and heats[0].max() > heats[0].min()


def test_notes_left_on_modules_are_removed():
    module = nn.Sequential(nn.ReLU(inplace=True))
    with pytest.raises(Mishap), plain_activations(module):
        assert not module[0].inplace
        module[0].input = torch.ones(1)
        raise Mishap
    assert module[0].inplace and not hasattr(module[0], "input")


def linear_network(size):
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * math.prod(size), 5))
    return wrapped(module), module[1].weight.detach()[2].view(3, *size)


def test_on_a_linear_network_all_give_input_times_weight():
    size = (2, 4, 6)
    torch.manual_seed(0)
    network, weight = linear_network(size)
    pixels = numbers(1, 3, *size)
    expected = (pixels[0] * weight).sum(0).clamp(min=0)
    black = {"perturbation": "fade-black"}
    for method in ("integrated-gradients", "occlusion", "deep-lift"):
        heat = heat_of(network, pixels, method, batch=8, blocks=size, **black)
        torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-6)
    blurred = heat_of(network, pixels, "integrated-gradients", perturbation="fade-grey")
    torch.testing.assert_close(
        blurred, ((pixels[0] - 0.5) * weight).sum(0).clamp(min=0), rtol=1e-4, atol=1e-6
    )
    blocks = (pixels[0] * weight).sum(0).view(1, 2, 2, 2, 3, 2).sum((1, 3, 5))
    lime = heat_of(network, pixels, "lime", blocks=(1, 2, 3), lime_samples=60, lime_ridge=1e-9, **black)
    whole = nn.functional.interpolate(blocks[None, None], size, mode="nearest")[0, 0]
    torch.testing.assert_close(lime, whole.clamp(min=0), rtol=1e-3, atol=1e-5)
    smooth = heat_of(network, pixels, "smooth-grad", noise_samples=3)
    torch.testing.assert_close(smooth, weight.abs().sum(0), rtol=1e-4, atol=1e-6)


def test_deep_lift_is_complete_or_refuses(narrow):
    pixels = numbers(1, 3, 8, 32, 32)
    assert heat_of(narrow, pixels, "deep-lift").max() > 0
    with pytest.raises(ValueError, match="none of them recurrent.*occlusion fit"):
        heat_of(wrapped(NarrowVGG16LSTM(5, 4, 16), output="probability"), pixels, "deep-lift")

    class Hidden(nn.Module):  # a nonlinearity that captum cannot see
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x):
            return self.fc((20 * x - 12).clamp(min=0).square().mean((2, 3, 4)))

    with pytest.raises(ValueError, match="deep-lift's parts add up to"):
        heat_of(wrapped(Hidden()), pixels, "deep-lift")


def test_guided_backprop_and_deconvolution_reach_every_relu():
    """By hand: the gradient of each ReLU replaced."""

    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, masked):
            ctx.save_for_backward(x)
            ctx.masked = masked
            return x.relu()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g.clamp(min=0) * ((x > 0) if ctx.masked else 1), None

    class Relu(nn.Module):
        def __init__(self, masked):
            super().__init__()
            self.masked = masked

        def forward(self, x):
            return Guided.apply(x, self.masked)

    for method, masked in (("guided-backprop", True), ("deconvolution", False)):
        torch.manual_seed(1)
        network = wrapped(NarrowR2Plus1D(5, 4))
        pixels = numbers(1, 3, 8, 32, 32)
        heat = heat_of(network, pixels, method)
        for module in list(network.module.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, Relu(masked))
        x = pixels.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(x)[0, 2], x)
        torch.testing.assert_close(heat, gradient[0].abs().sum(0))


def test_rise_finds_what_is_looked_at_and_nothing_where_nothing_is():
    size = (6, 14, 14)
    flat = Network(lambda x: torch.zeros(len(x), 5), FIVE)
    pixels = numbers(1, 3, *size)
    heat = heat_of(flat, pixels, "rise", batch=7, rise_masks=40)
    torch.testing.assert_close(heat, torch.full(size, 0.2))

    def looks(x):
        seen = (x[:, :, 2:4, 4:8, 8:12] - 0.5).abs().mean((1, 2, 3, 4))
        return torch.stack([seen * 40, *[torch.zeros_like(seen) + 3] * 4], dim=1)

    heat = heat_of(Network(looks, FIVE), pixels, "rise", 0, batch=8, rise_masks=400, perturbation="fade-grey")
    t, y, x = (int(i) for i in torch.nonzero(heat == heat.max())[0])
    assert 1 <= t <= 4 and 3 <= y <= 8 and 7 <= x <= 12
    alone = heat_of(Network(looks, FIVE), pixels, "rise", 0, batch=1, rise_masks=9)
    assert alone.max() > alone.min()


def test_controls():
    network = Network(lambda x: x.mean((2, 3, 4)), [*"abc"])
    pixels = torch.zeros(1, 3, 4, 6, 6)
    counts = torch.zeros(4 * 6 * 6)
    for seed in range(1440):
        counts[heat_of(network, pixels, "random", seed=seed).argmax()] += 1
    assert ((counts - 10) ** 2 / 10).sum() < 143 + 4 * math.sqrt(2 * 143)  # chi-square of a uniform place
    middle = heat_of(network, pixels, "middle")
    assert middle.argmax() == (2 * 6 + 3) * 6 + 3 and middle.min() > 0
    for t in range(4):
        pixels[0, :, t, 2, t] = 1
    motion = heat_of(network, pixels, "motion", motion_sigma=1e-3)
    moved = torch.zeros(4, 6, 6)
    for t, x, value in [(0, 0, 3), (0, 1, 3), (1, 0, 1.5), (1, 1, 3), (1, 2, 1.5)]:
        moved[t, 2, x] = value
    for t, x, value in [(2, 1, 1.5), (2, 2, 3), (2, 3, 1.5), (3, 2, 3), (3, 3, 3)]:
        moved[t, 2, x] = value
    torch.testing.assert_close(motion, moved)


def test_the_hottest_voxels():
    heat = numbers(4, 5, 6)
    masks = hottest(heat, (0.1, 0.5), 0)
    assert masks.sum((1, 2, 3)).tolist() == [12, 60] and heat[masks[0] > 0].min() > heat[masks[0] == 0].max()
    assert (masks[0] <= masks[1]).all()
    flat = [hottest(torch.zeros(4, 5, 6), (0.1,), seed) for seed in range(400)]
    assert torch.equal(flat[0], hottest(torch.zeros(4, 5, 6), (0.1,), 0))
    share = torch.cat(flat).mean(0)  # of equals, any
    assert share.min() > 0.03 and share.max() < 0.2


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Network(Small(), ("a", "b", "c"), name="small", target_layer="features.0")


QUICK = {"preset": "smoke", "progress": False, "ratios": (0.2,), "rise_masks": 4, "lime_samples": 12}


@pytest.mark.parametrize("method", BASELINES)
def test_the_network_is_untouched(method, small):
    clip = Clip(numbers(3, 6, 21, 21), torch.arange(6) / 8, "clip")
    module, calls = small.module, []
    before, names = photograph(module), [set(vars(m)) for m in module.modules()]
    inner = module.forward
    try:
        explain(small, clip, method=method, **QUICK)
    except ValueError as error:  # of those which a recurrent network does not suit
        assert method in ("saliency-tubes", "excitation-backprop", "eb-r", "deep-lift"), error
    assert differences(before, photograph(module)) == []

    def breaks(x):
        calls.append(1)
        if len(calls) > 1:
            y = inner(x)
            torch.rand(3)
            raise Mishap(str(y.shape))
        return inner(x)

    module.forward = breaks
    with pytest.raises((Mishap, ValueError)):
        explain(small, clip, method=method, **QUICK)
    del module.forward
    assert differences(before, photograph(module)) == []
    assert names == [set(vars(m)) for m in module.modules()] and module.features[2].inplace


def test_several_clips_are_explained_as_each_alone(narrow):
    clips = [Clip(numbers(3, 8, 32, 32, seed=k), torch.arange(8) / 8, f"{k}") for k in range(2)]
    for method in ("grad-cam", "rise", "smooth-grad", "lime", "random"):
        both = explain(narrow, clips, method=method, **QUICK)
        for one, clip in zip(both, clips, strict=True):
            alone = explain(narrow, clip, method=method, max_batch=3, **QUICK)
            torch.testing.assert_close(one.heatmap, alone.heatmap, rtol=1e-3, atol=1e-5)
            assert one.target == alone.target


def test_a_baselines_explanation_is_stored(narrow, tmp_path):
    clip = Clip(numbers(3, 8, 32, 32), torch.arange(8) / 8, "clip")
    result = explain(
        narrow, clip, None, "grad-cam", (0.1, 0.3), "smoke", seed=3, cam_weights="frame", progress=False
    )
    assert result.masks.shape == (2, 8, 32, 32) and result.converged == (True, True) and result.history == {}
    assert result.config == AttributionConfig(**{**asdict(result.config), "cam_weights": "frame"})
    preserved = torch.where(result.masks[1] > 0, clip.pixels, blur(clip.pixels, 20 * 32 / 112))
    kept = narrow.probabilities(preserved[None])[0, result.target]
    assert float(result.probability[1]) == pytest.approx(float(kept), abs=1e-5)
    again = Explanation.load(result.save(tmp_path / "x.safetensors"))
    assert again.config == result.config and again.history == {} and again.method == "grad-cam"
    assert torch.equal(again.heatmap, result.heatmap) and torch.equal(again.masks, result.masks)
    softer = explain(narrow, clip, None, "grad-cam", preset="smoke", heat_sigma=0.1, progress=False)
    assert softer.heatmap.std() < result.heatmap.std()


def test_settings():
    assert set(_MAPS) == set(BASELINES)
    size = (16, 112, 112)
    assert (
        make_config("rise", "smoke", size, {}).rise_masks < make_config("rise", "paper", size, {}).rise_masks
    )
    assert make_config("rise", "lesson", size, {}) == make_config("grad-cam", "released", size, {})
    for constants, message in [
        ({"iterations": 3}, "unknown constant iterations; AttributionConfig has target_layer"),
        ({"cam_weights": "video"}, "cam_weights: got 'video', expected one of clip, frame"),
        ({"perturbation": "noise"}, "perturbation: got 'noise', expected one of"),
        ({"rise_keep": 1.0}, r"rise_keep must lie in \(0, 1\), got 1.0"),
        ({"blocks": (4, 0, 7)}, "blocks must be three numbers"),
        ({"path_steps": 0}, "path_steps must be at least 1"),
        ({"noise": 0}, "noise must be positive"),
        ({"heat_sigma": -1}, "heat_sigma must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_config("rise", "lesson", size, constants)
    with pytest.raises(ValueError, match="method: got 'gradcam', expected .* did you mean 'grad-cam'"):
        make_config("gradcam", "lesson", size, {})
    with pytest.raises(ValueError, match="'rise' finds no masks"):
        smallest_ratio(Network(lambda x: x.mean((2, 3, 4)), [*"abc"]), numbers(3, 8, 16, 16), method="rise")


UNFIT = {"r2plus1d": {"eb-r"}, "vgg16lstm": {"saliency-tubes", "excitation-backprop", "deep-lift"}}


@pytest.mark.parametrize("family", UNFIT)
def test_every_method_on_the_shipped_networks(family):
    network, record = load_network(f"stage-action-{family}"), Stage("action", "test", seed=1)[0]
    for method in BASELINES:
        if method in UNFIT[family]:
            with pytest.raises(ValueError, match="fit"):
                explain(network, record.clip, record.label, method=method, **QUICK)
            continue
        result = explain(network, record.clip, record.label, method=method, **QUICK)
        assert isinstance(result, Explanation)
        assert torch.isfinite(result.heatmap).all() and result.heatmap.min() >= 0, method
        assert result.heatmap.std() > 0 and 0 <= float(result.probability[0]) <= 1, method
        assert result.masks.mean() == pytest.approx(0.2, abs=1e-3), method
