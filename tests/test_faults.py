"""Bad networks, clips, settings: each works as promised or is refused in words, and leaves no trace."""

import functools
import math
import random
import re
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_explain import Mishap, differences, photograph
from torch import nn

from steplab.clips import Clip
from steplab.config import BASELINES, METHODS, PRESETS
from steplab.explain import explain
from steplab.masks import MaskGenerator
from steplab.networks import Network
from steplab.vgg_lstm import VGGLSTM

SIZE = (8, 28, 28)
RATIO = 0.1
CLASSES = ("red", "green", "blue")
EVERY = (*METHODS, *BASELINES)


class Small(nn.Module):
    """A CNN with two places for faults: amid the features (`spot`) and behind the scores (`spoil`)."""

    target_layer = "features.5"

    def __init__(self, spot: nn.Module, spoil: nn.Module):
        super().__init__()
        first = nn.Conv3d(3, 4, 3, stride=(1, 4, 4), padding=1), nn.BatchNorm3d(4), nn.ReLU()
        self.features = nn.Sequential(*first, spot, nn.Conv3d(4, 4, 3, padding=1), nn.ReLU())
        self.fc, self.spoil = nn.Linear(4, 3), spoil

    def forward(self, x):
        return self.spoil(self.fc(self.features(x).mean((2, 3, 4))))


class SmallRecurrent(VGGLSTM):
    """The same of the only family that EB-R is for."""

    target_layer = "features.5"

    def __init__(self, spot: nn.Module, spoil: nn.Module):
        first = nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        features = nn.Sequential(*first, spot, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        super().__init__(features, 4 * 7 * 7, (6, 6), 4, 3)
        self.spoil = spoil

    def forward(self, x):
        return self.spoil(super().forward(x))


class Remembering(Small):
    """Frame after frame through an LSTM of torch's own."""

    def __init__(self, spot: nn.Module, spoil: nn.Module):
        super().__init__(spot, spoil)
        self.memory = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        steps, _ = self.memory(self.features(x).mean((3, 4)).transpose(1, 2))
        return self.spoil(self.fc(steps[:, -1]))


class Spot(nn.Module):
    """Does `act(x, n)` at the n-th call, from 1."""

    def __init__(self, act):
        super().__init__()
        self.act, self.calls = act, 0

    def forward(self, x):
        self.calls += 1
        return self.act(x, self.calls)


class Counting(nn.Module):
    """Counts its calls in buffers: one is overwritten, the other replaced."""

    def __init__(self):
        super().__init__()
        self.register_buffer("old", torch.zeros(1))
        self.register_buffer("new", torch.zeros(1))

    def forward(self, x):
        self.old += 1
        self.new = self.new + 1
        return x


class Overwriting(nn.Module):
    """Writes into one weight at every call and replaces another."""

    def __init__(self):
        super().__init__()
        self.written, self.replaced = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = x * self.written.clone() * self.replaced
        with torch.no_grad():
            self.written.copy_(self.written * 1.001)
        self.replaced = nn.Parameter(self.replaced.detach() * 0.999, requires_grad=False)
        return y


class Poison(torch.autograd.Function):
    """Sound numbers, whose gradient is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] * torch.nan


def small(method, spot=None, spoil=None, wrap=None, kind=None, prefix="", probable=False, **more) -> Network:
    """The network that suits a method, with a fault in it; `wrap` puts the module into something else."""
    kind = kind or (SmallRecurrent if method == "eb-r" else Small)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = kind(spot or nn.Identity(), spoil or nn.Identity()).eval()
    output = "probability" if probable or kind is SmallRecurrent else "logits"
    wrapped = module if wrap is None else wrap(module)
    return Network(wrapped, CLASSES, output=output, target_layer=prefix + module.target_layer, **more)


def raising(x, n):
    torch.rand(3), np.random.rand(), random.random()
    if n == 2:
        raise Mishap("the second call")
    return x


def noisy(x, _):
    return x + 1e-3 * torch.randn_like(x) + 1e-3 * (np.random.rand() + random.random())


def unable(x, _):
    with torch.inference_mode():
        return x + 0


def hooked(module):
    """Hooks of each kind, at a layer that methods read too, and one that writes into the input."""
    layer = module.features[4]
    layer.register_forward_hook(lambda *_: None)
    layer.register_full_backward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda _, given: given[0].add_(0))
    return module


def training(module):
    """In the midst of training: flags mixed, gradients there, one weight frozen."""
    module.train()
    module.features[4].eval()
    module.features[0].weight.requires_grad_(False)
    for weight in module.parameters():
        weight.grad = torch.ones_like(weight)
    return module


def in_place(module):
    module.features[2].inplace = module.features[5].inplace = True
    return module


def compiled_in_place(module):
    module.compile(backend="eager")
    return module


def saying(module, scale, more):
    """Scores times `scale`, plus `more`."""
    last = module.fc8 if isinstance(module, VGGLSTM) else module.fc
    with torch.no_grad():
        last.weight.mul_(scale), last.bias.mul_(scale).add_(torch.tensor(more))
    return module


def sharing(module):
    module.features[3].weight = module.features[4].weight
    return module


def twin(method):
    """A convolution like the one behind it."""
    kind = nn.Conv2d if method == "eb-r" else nn.Conv3d
    with torch.random.fork_rng():
        return kind(4, 4, 3, padding=1)


# A fault: what it makes of a method's network. `m` is the method.
FAULTS = {
    "none": lambda m: small(m),
    "hooks already there": lambda m: small(m, wrap=hooked),
    "in training mode": lambda m: small(m, nn.Dropout(0.9), wrap=training),
    "ReLU in place": lambda m: small(m, wrap=in_place),
    "counts in buffers": lambda m: small(m, Counting()),
    "overwrites its weights": lambda m: small(m, Overwriting()),
    "not repeatable": lambda m: small(m, Spot(noisy)),
    "shares weights": lambda m: small(m, twin(m), wrap=sharing),
    "recurrent": lambda m: small(m, kind=Remembering),
    "gives a tuple": lambda m: small(m, spoil=Spot(lambda x, _: (x, x))),
    "gives a dict": lambda m: small(m, spoil=Spot(lambda x, _: {"logits": x})),
    "gives whole numbers": lambda m: small(m, spoil=Spot(lambda x, _: (9 * x).round().long())),
    "wrong batch": lambda m: small(m, spoil=Spot(lambda x, _: torch.cat([x, x]))),
    "wrong classes": lambda m: small(m, spoil=Spot(lambda x, _: x[:, :2])),
    "NaN in the first call": lambda m: small(m, Spot(lambda x, n: x + torch.nan if n == 1 else x)),
    "NaN in the second call": lambda m: small(m, Spot(lambda x, n: x + torch.nan if n == 2 else x)),
    "infinite in the second call": lambda m: small(m, Spot(lambda x, n: x + torch.inf if n == 2 else x)),
    "NaN for a gradient": lambda m: small(m, Spot(lambda x, _: Poison.apply(x))),
    "raises in the second call": lambda m: small(m, Spot(raising)),
    "detaches": lambda m: small(m, Spot(lambda x, _: x.detach())),
    "infers only": lambda m: small(m, Spot(unable)),
    "half": lambda m: small(m, wrap=nn.Module.half, preprocess=torch.Tensor.half),
    "bfloat16": lambda m: small(m, wrap=nn.Module.bfloat16, preprocess=torch.Tensor.bfloat16),
    "half, given floats": lambda m: small(m, wrap=nn.Module.half),
    "compiled": lambda m: small(m, wrap=lambda x: torch.compile(x, backend="eager"), prefix="_orig_mod."),
    "scripted": lambda m: small(m, wrap=torch.jit.script, kind=Small),
    "parallel": lambda m: small(m, wrap=nn.DataParallel, prefix="module."),
    "a plain function": lambda m: small(m, wrap=lambda module: module.forward),
    "a plain function that detaches": lambda m: small(m, wrap=lambda module: lambda x: module(x.detach())),
    "compiled in place": lambda m: small(m, wrap=compiled_in_place),
    "without numbers": lambda m: small(m, wrap=lambda module: module.to("meta")),
    "sure of the class": lambda m: small(m, wrap=lambda module: saying(module, 1, (1e6, 0, 0))),
    "sure of another class": lambda m: small(m, wrap=lambda module: saying(module, 1, (-1e6, 0, 1e6))),
    "all scores equal": lambda m: small(m, wrap=lambda module: saying(module, 0, (0, 0, 0))),
    "probabilities above 1": lambda m: small(m, spoil=Spot(lambda x, _: x.exp() + 1), probable=True),
}
HARMLESS = {"hooks already there", "in training mode", "ReLU in place", "counts in buffers", "compiled"}
HARMLESS |= {
    "compiled in place",
    "scripted",
    "parallel",
    "a plain function",
}  # these give what the network gives without them
CAMS = {"grad-cam", "saliency-tubes", "excitation-backprop"}
BENT = {"guided-backprop", "deconvolution", "deep-lift"}  # they bend the gradients of modules
SLOPES = {*METHODS, *BENT, "integrated-gradients", "smooth-grad"}  # they follow a gradient to the pixels
REFUSED = {  # of the methods named, in these words; all others work
    "recurrent": ({"saliency-tubes", "excitation-backprop", "eb-r", "deep-lift"}, "method: .* fits?"),
    "gives a tuple": (EVERY, "fn: expected a tensor of float scores, got a tuple"),
    "gives a dict": (EVERY, "fn: expected a tensor of float scores, got a dict"),
    "gives whole numbers": (EVERY, "fn: expected a tensor of float scores, got a torch.int64 tensor"),
    "wrong batch": (EVERY, r"fn: expected 1 x 3 scores .*, got shape \(2, 3\)"),
    "wrong classes": (EVERY, r"fn: expected 1 x 3 scores .*, got shape \(1, 2\)"),
    "NaN in the first call": (EVERY, "fn: expected finite scores, got .nan"),
    "NaN in the second call": (EVERY, "fn: expected finite scores, got .nan|eb-r gave values .* not finite"),
    "infinite in the second call": (EVERY, "fn: expected finite scores|eb-r gave values .* not finite"),
    "NaN for a gradient": (SLOPES, "fn: expected scores with a finite gradient|method: .* not finite"),
    "raises in the second call": (EVERY, "the second call"),
    "detaches": (SLOPES, "fn: expected scores with a gradient in the pixels"),
    "infers only": (SLOPES, "fn: expected scores with a gradient in the pixels"),
    "half": ({"deep-lift"}, "deep-lift gave values that are not finite"),
    "half, given floats": (EVERY, "fn: expected weights of the pixels' torch.float32, got torch.float16"),
    "compiled": ({"eb-r"}, "eb-r is for the VGG-LSTM family"),
    "scripted": ({*CAMS, *BENT, "eb-r"}, "network: .* scripted|scripted; not so|nn.ReLU|VGG-LSTM family"),
    "parallel": ({"eb-r"}, "eb-r is for the VGG-LSTM family"),
    "probabilities above 1": (EVERY, r"fn: expected probabilities in \[0, 1\], got .*output='logits' fits"),
    "without numbers": (EVERY, "device: expected one that computes, got meta"),
    "a plain function that detaches": (
        {*SLOPES, *CAMS, "eb-r"},
        "scores with a gradient in the pixels|plain function|needs modules|nn.ReLU|VGG-LSTM family",
    ),
    "a plain function": ({*CAMS, *BENT, "eb-r"}, "plain function|needs modules|nn.ReLU|VGG-LSTM family"),
}


def quick(method):
    """Few samples or iterations, in which the ratio is reached."""
    if method in METHODS:
        return {"iterations": 6, "shrink": 4, "optimiser": "budget"}
    return {"rise_masks": 4, "lime_samples": 8, "path_steps": 2, "noise_samples": 2}


def run(network, method):
    clip = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    return explain(network, clip, 0, method, (RATIO,), "smoke", progress=False, **quick(method))


@functools.cache
def sound(method):
    return run(FAULTS["none"](method), method)


def check(result, size, ratios):
    """Finite masks in [0,1] whose mean is the ratio, or little less."""
    masks = result.masks
    assert masks.shape == (len(ratios), *size) and result.ratios == tuple(ratios)
    assert torch.isfinite(masks).all() and masks.min() >= 0 and masks.max() <= 1
    for mask, ratio in zip(masks, ratios, strict=True):
        few = result.method in METHODS  # so few iterations stop short of it
        low, high = (0.85, 1.02) if few else (0.95, 1.05)
        if few and result.preset == "released":  # in tiny frames its margin is larger than they are
            low, high = 0.0, math.inf
        assert low * ratio - 0.5 / mask.numel() <= mask.mean() <= high * ratio + 0.5 / mask.numel()
    assert torch.isfinite(result.heatmap).all() and result.heatmap.min() >= 0
    assert result.probability.min() >= 0 and result.probability.max() <= 1


def whole_photograph(network):
    """Also which hooks there are, in their order, and what stands on the modules beside them."""
    module = nn.Module() if network.module is None else network.module
    hooks = [
        (name, list(m.__dict__[name].values()))
        for m in module.modules()
        for name in nn.Module().__dict__
        if name.endswith("_hooks")
    ]
    return photograph(module) | {"hooks": hooks, "names": [sorted(vars(m)) for m in module.modules()]}


@pytest.fixture
def numbers_back(monkeypatch):
    """Of each guarded body, whether Python's own random numbers were as before it.

    Seen at the guard itself: outside of it the type checks that run in tests draw some.
    """
    module, found = sys.modules["steplab.explain"], []
    guard = module.untouched

    @contextmanager
    def watched(*args):
        before = random.getstate()
        try:
            with guard(*args):
                yield
        finally:
            found.append(random.getstate() == before)

    monkeypatch.setattr(module, "untouched", watched)
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", EVERY)
def test_a_bad_network_is_explained_or_refused_and_left_as_it_was(method, fault, numbers_back):
    network = FAULTS[fault](method)
    before = whole_photograph(network)
    methods, words = REFUSED.get(fault, ((), ""))
    if method in methods:
        kind = Mishap if fault.startswith("raises") else ValueError
        with pytest.raises(kind, match=words):
            run(network, method)
    else:
        result = run(network, method)
        check(result, SIZE, (RATIO,))
        if fault in HARMLESS:
            torch.testing.assert_close(result.heatmap, sound(method).heatmap, rtol=1e-4, atol=1e-6)
    assert differences(before, whole_photograph(network)) == []
    assert all(numbers_back) and (numbers_back or fault == "without numbers"), "that one is refused at once"


@functools.cache
def plain_network():
    """Takes clips of any size."""
    return Network(small("step").module, CLASSES, target_layer=Small.target_layer)


def as_given(pixels, form):
    """The same clip in another of the forms that are allowed."""
    return {
        "tensor": lambda: pixels,
        "half": lambda: pixels.half(),
        "double": lambda: pixels.double(),
        "not contiguous": lambda: pixels.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda: pixels[:1].expand(3, -1, -1, -1),
        "wants a gradient": lambda: pixels.clone().requires_grad_(),
        "clip": lambda: Clip(pixels, torch.arange(pixels.shape[1]) / 8, "drawn"),
        "batch": lambda: pixels[None],
        "list": lambda: [pixels, 1 - pixels],
    }[form]()


FORMS = [
    "tensor",
    "half",
    "double",
    "not contiguous",
    "expanded",
    "wants a gradient",
    "clip",
    "batch",
    "list",
]
FEW = settings(deadline=None, derandomize=True, database=None)


def reach(size, step=7, boundary="wrap"):
    """Mean of the largest mask: that of seeds which are all 1."""
    generator = MaskGenerator((1, *size[1:]), step, boundary=boundary)
    return float(generator(torch.ones(1, *generator.seed_shape)).mean())


@st.composite
def good_calls(draw, methods):
    method, preset = draw(st.sampled_from(methods)), draw(st.sampled_from(list(PRESETS)))
    published = preset == "released" and method in METHODS
    frames = st.integers(7 if published else 1, 9).filter(lambda n: n != 3)  # three might be colours
    sides = st.integers(11, 40)  # most of them not divisible by the step
    size = draw(st.tuples(frames, sides, sides))
    shares = draw(st.lists(st.integers(2, 95), min_size=1, max_size=2, unique=True))
    target = draw(st.sampled_from([None, 0, 2, "green", "BLUE", np.int64(1), torch.tensor(1)]))
    return method, preset, size, shares, target, draw(st.sampled_from(FORMS)), draw(st.integers(0, 2**31))


def check_good_call(call):
    method, preset, size, shares, target, form, seed = call
    boundary = "padded" if preset == "released" else "wrap"
    largest = reach(size, boundary=boundary) if method in METHODS else 1
    ratios = [share / 100 * largest for share in shares]  # in any order
    clip = as_given(torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)), form)
    found = explain(
        plain_network(), clip, target, method, ratios, preset, seed, progress=False, **quick(method)
    )
    for result in found if isinstance(found, list) else [found]:
        check(result, size, ratios)


@settings(FEW, max_examples=60)
@given(good_calls(list(METHODS)))
def test_masks_of_any_size_and_setting_are_finite_and_as_large_as_asked(call):
    check_good_call(call)


@settings(FEW, max_examples=60)
@given(good_calls([m for m in BASELINES if m != "eb-r"]))
def test_maps_of_any_size_and_setting_are_finite_and_as_large_as_asked(call):
    check_good_call(call)


def spoilt(value):
    """A clip with one such value in it, anywhere."""

    def put(place):
        pixels = torch.full((3, *SIZE), 0.5)
        pixels.flatten()[place] = value
        return pixels

    return st.integers(0, 3 * 8 * 28 * 28 - 1).map(put)


def shapes(*axes):
    return st.tuples(*axes).map(torch.zeros)


SIDE, FRAMES = st.integers(11, 30), st.integers(4, 9)
OUTSIDE = st.floats(1.001, 1e30) | st.floats(-1e30, -0.001)
NO_RATIO = st.floats(max_value=0) | st.floats(min_value=1) | st.just(float("nan"))
MISSPELT = st.tuples(st.sampled_from(["green", "blue"]), st.integers(1, 3)).map(
    lambda drawn: drawn[0][: drawn[1]] + drawn[0][drawn[1] + 1 :]
)
UNKNOWN = st.text().filter(lambda word: word not in {*EVERY, *PRESETS})
REFUSALS = {  # one argument drawn from the strategy, and the words
    "not a number": ("clip", spoilt(torch.nan), "finite numbers in .0, 1., got NaN"),
    "infinite": ("clip", spoilt(-torch.inf), "finite numbers in .0, 1., got NaN or infinite"),
    "outside": ("clip", OUTSIDE.flatmap(spoilt), r"values in \[0, 1\], got"),
    "whole numbers": (
        "clip",
        st.sampled_from([torch.uint8, torch.int64, torch.bool]).map(torch.ones(3, *SIZE).to),
        r"floats in \[0, 1\], divide bytes by 255; got",
    ),
    "rank": ("clip", st.integers(0, 3).map(lambda n: torch.zeros([3] * n)), r"tensor \(3, T, H, W\), got \("),
    "rank of six": ("clip", shapes(*[st.just(3)] * 6), r"tensor \(3, T, H, W\), got \("),
    "no colours": ("clip", shapes(st.just(1), FRAMES, SIDE, SIDE), r"\(3, T, H, W\), got \(1"),
    "swapped": ("clip", shapes(FRAMES, st.just(3), SIDE, SIDE), r"\(3, T, H, W\), got .*transpose"),
    "three frames": ("clip", shapes(st.just(3), st.just(3), SIDE, SIDE), "could be 3 colours x 3 frames"),
    "none in a batch": ("clip", shapes(st.just(0), st.just(3), FRAMES, SIDE, SIDE), "at least one clip, got"),
    "empty axis": ("clip", shapes(st.just(3), FRAMES, st.just(0), SIDE), "got .3, [0-9], 0"),
    "no clip": ("clip", st.none() | st.integers() | st.text(min_size=1), "must be a Clip or a tensor .* got"),
    "small": ("clip", shapes(st.just(3), FRAMES, SIDE, st.integers(1, 10)), "expected at least .1, 11, 11"),
    "ratio": ("ratios", NO_RATIO | st.tuples(st.just(0.1), NO_RATIO), "between 0 and 1, got"),
    "twice": ("ratios", st.floats(0.01, 0.5).map(lambda v: [v, 0.55, v]), "different numbers .* got"),
    "no ratios": ("ratios", st.just(()) | st.none() | st.text(), "between 0 and 1, got"),
    "too large": ("ratios", st.floats(0.8, 0.99), "got 0.[89].*, expected at most 0.59.* step=2 fits"),
    "class": (
        "target",
        st.integers(3, 2**70) | st.integers(max_value=-1) | st.booleans() | st.floats(),
        "expected 0..2 or a class name, got",
    ),
    "misspelt": ("target", MISSPELT, "no class .* did you mean '(green|blue)'"),
    "no such class": ("target", st.just("?") | st.just(""), "no class .* it has red, green, blue"),
    "targets": ("target", st.lists(st.integers(0, 2), min_size=2), "or one for each of 1 clips, got"),
    "method": ("method", UNKNOWN, "got .*, expected one of step, .*motion"),
    "preset": ("preset", UNKNOWN, "got .*, expected one of smoke, "),
    "device": ("device", st.sampled_from(["gpu", "cuda:99", "meta:", ""]), "expected one that torch .* got"),
}


@pytest.mark.parametrize("what", REFUSALS)
@settings(FEW, max_examples=10)
@given(data=st.data())
def test_refusals_name_the_argument_what_came_and_what_was_expected(what, data):
    name, drawn, words = REFUSALS[what]
    arguments = {"clip": torch.full((3, *SIZE), 0.5), "preset": "smoke", "ratios": (RATIO,)}
    arguments[name] = data.draw(drawn)
    with pytest.raises(ValueError, match=f"(?s){name}.*{words}"):
        explain(plain_network(), **arguments, progress=False, iterations=1)


def test_three_frames_are_explained_where_they_are_surely_frames():
    pixels = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    clip = Clip(pixels, torch.arange(3) / 8, "three")
    with pytest.raises(ValueError, match="three frames and three colours.*frames=3"):
        explain(plain_network(), clip, progress=False)
    network = Network(plain_network().module, CLASSES, frames=3)
    result = explain(network, clip, ratios=(0.1,), preset="smoke", progress=False, **quick("step"))
    check(result, (3, 28, 28), (0.1,))


def test_the_windows_of_the_published_preset_need_seven_frames():
    with pytest.raises(
        ValueError, match=r"clip: got T, H, W = \(6, 28, 28\), expected at least \(7, 11, 11\)"
    ):
        explain(plain_network(), torch.rand(3, 6, 28, 28), preset="released", progress=False)


@pytest.mark.parametrize("method", ["step", "ep3d-evenly"])
@pytest.mark.parametrize("size", [14, 21, 28])
def test_a_ratio_beyond_the_largest_mask_is_met_with_the_step_that_the_refusal_names(size, method):
    """Discs are small beside the usual step there, and leave gaps."""
    clip = torch.rand(3, 8, size, size, generator=torch.Generator().manual_seed(0))
    more = {"method": method, "ratios": (0.9,), "preset": "smoke", "progress": False, **quick(method)}
    with pytest.raises(ValueError, match=f"at most {reach((8, size, size)):.2g}: .* step=") as refusal:
        explain(plain_network(), clip, **more)
    step = int(re.search(r"step=(\d+)", str(refusal.value))[1])
    check(explain(plain_network(), clip, step=step, **more), (8, size, size), (0.9,))


def test_no_method_and_no_fault_is_forgotten(promise):
    refused = sum(len(methods) for methods, _ in REFUSED.values())
    cases = len(EVERY) * len(FAULTS)
    promise(
        "Networks with a fault, each with each method: a right answer or a refusal in words, and the network "
        "as it was to the bit",
        f"{len(FAULTS)} faults x {len(EVERY)} methods = {cases}: {refused} refused, {cases - refused} work",
    )
    assert not {*METHODS, *BASELINES} - set(EVERY)
    assert not {*REFUSED, *HARMLESS} - set(FAULTS)


def test_what_was_found_before_a_fault_is_kept():
    """The third ratio meets NaN: two masks are there, and the message says when."""
    calls = 1 + 2 * (6 + 1) + 3  # the clip itself, two searches with their ends, and into the third
    network = small("step", spoil=Spot(lambda x, n: x * (torch.nan if n >= calls else 1)))
    clip = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    ask = {"preset": "smoke", "progress": False, "iterations": 6}
    with pytest.raises(ValueError, match=r"finite scores.* in iteration 3 of 6, ratio 0.3") as error:
        explain(network, clip, 0, "ep3d", (0.1, 0.2, 0.3), **ask)
    (found,) = error.value.results
    assert found.ratios == (0.1, 0.2) and found.interrupted
    alone = explain(small("step"), clip, 0, "ep3d", (0.1, 0.2), **ask)
    assert torch.equal(found.masks, alone.masks)


def test_groups_that_had_finished_before_a_fault_are_kept():
    """Three ratios, two at a time: those end together, then the third meets NaN."""
    clip, ratios = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0)), (0.3, 0.2, 0.1)
    ask = {"preset": "smoke", "progress": False, "iterations": 6, "max_batch": 2}
    sizes = []

    def watched(x, _):
        sizes.append(len(x))
        return x

    whole = explain(small("step", spoil=Spot(watched)), clip, 0, "ep3d", ratios, **ask)
    assert sizes == [1] + [2] * 7 + [1] * 7
    for calls, kept in ((9, 2), (15, 2), (8, None)):  # in the second group, at its very end, in the first
        network = small("step", spoil=Spot(lambda x, n, calls=calls: x * (torch.nan if n >= calls else 1)))
        with pytest.raises(ValueError, match="finite scores") as error:
            explain(network, clip, 0, "ep3d", ratios, **ask)
        if kept is None:
            assert error.value.results == []
            continue
        (found,) = error.value.results
        assert found.interrupted and found.ratios == ratios[:kept]
        assert torch.equal(found.masks, whole.masks[:kept])


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ({"method": "stepp"}, "step"),
        ({"preset": "leson"}, "lesson"),
        ({"reward_weigth": 1.0}, "reward_weight"),
    ],
)
def test_names_that_look_alike_are_suggested(wrong, meant):
    clip = torch.rand(3, *SIZE)
    with pytest.raises(ValueError, match=f"did you mean .*'{meant}'"):
        explain(small("step"), clip, 0, progress=False, **wrong)
