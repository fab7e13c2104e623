"""What an accelerator and a compiler are given: the same numbers, and nothing that stays on the host.

There is no accelerator here. Its operations are run on the CPU, compiled for it by inductor's C++, and traced
on tensors that claim to lie on a GPU and hold no values.
"""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor import cpp_builder
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steplab.config import METHODS, make_config
from steplab.engine import Descent
from steplab.explain import explain
from steplab.networks import Affine, Network

SIZE = (8, 28, 28)


def pixels(clips=1, seed=0):
    return torch.rand(clips, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 4, 3, stride=2)
    module = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        module[-1].weight.mul_(20)
    return Network(module.eval(), ["a", "b", "c"], Affine((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))


def has_compiler() -> bool:
    try:
        return bool(cpp_builder.get_cpp_compiler())
    except Exception:
        return False


class OnHost(TorchDispatchMode):
    """Notes every tensor that is made on the host."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.made += [str(func) for t in tensors if t.device.type == "cpu"]
        return out


def to_gpu(thing) -> None:
    """Every tensor of an object, and of those of its parts that hold some, moved in place."""
    for name, value in vars(thing).items():
        if isinstance(value, torch.Tensor):
            setattr(thing, name, torch.empty_like(value, device="cuda").requires_grad_(value.requires_grad))
        elif isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            setattr(thing, name, [torch.empty_like(v, device="cuda") for v in value])
        elif name in ("generator", "perturbation"):
            to_gpu(value)


@pytest.mark.parametrize("preset", ["lesson", "paper", "released"])
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_nothing_lies_on_the_host_and_nothing_is_asked_of_it(method, preset):
    """As a CUDA graph demands. Traced forward: the backward makes no constants."""
    config = make_config(method, preset, (16, 112, 112), {})
    search = Descent(lambda x: x, torch.rand(1, 3, 16, 112, 112), [0], [0, 0], [0.1, 0.2], config)
    with FakeTensorMode(allow_non_fake_inputs=True), OnHost() as host:
        layer = nn.Conv3d(3, 2, 3, device="cuda")
        wrapped = Network(lambda x: layer(x).mean((2, 3, 4)), ["a", "b"], Affine((0.4,) * 3, (0.2,) * 3))
        wrapped._check = lambda *_: None  # as while compiling
        search.score = wrapped.log_probabilities
        to_gpu(search)
        lit = torch.empty(2, dtype=torch.long, device="cuda")
        host.made.clear()
        whole, masks = search.draw(search.seeds)
        log_p, reward = search.answer(masks)
        parts = search.press(whole, lit, lit if config.core_weight else None)
        assert not host.made
    found = [*parts.values(), masks, log_p, reward]
    assert {t.device.type for t in found} == {"cuda"} and all(t.requires_grad for t in found)
    assert masks.shape == (2, 16, 112, 112) and log_p.shape == reward.shape == (2,)


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_compiled_iterations_are_near_the_plain_ones():
    """Two masks of STEP by inductor's C++; not by many iterations, since rounding sends searches apart."""
    ask = {"target": 1, "ratios": (0.1, 0.3), "preset": "lesson", "max_batch": 2, "progress": False}
    ask |= {"step": 4, "core_kernel": (3, 5, 5), "iterations": 4}
    wrapped = network()
    before = {name: value.clone() for name, value in wrapped.module.state_dict().items()}
    plain = explain(wrapped, pixels()[0], **ask)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled: goes on without")
        compiled = explain(wrapped, pixels()[0], compiled=True, **ask)
    for name in plain.history:
        np.testing.assert_allclose(compiled.history[name], plain.history[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.masks, plain.masks, rtol=0, atol=1e-4)
    torch.testing.assert_close(compiled.probability, plain.probability, rtol=0, atol=1e-4)
    assert plain.masks.std() > 0.01, "they have moved"
    assert all(torch.equal(value, before[name]) for name, value in wrapped.module.state_dict().items())


def test_without_a_compiler_it_goes_on_as_usual(monkeypatch):
    def broken(function, **_):
        def fail(*_):
            raise RuntimeError("no compiler in here")

        return fail

    ask = {"target": 1, "ratios": (0.1, 0.3), "preset": "smoke", "step": 4, "core_kernel": (3, 5, 5)}
    plain = explain(network(), pixels()[0], progress=False, **ask)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="compiled: goes on without, .*no compiler in here"):
        compiled = explain(network(), pixels()[0], progress=False, compiled=True, **ask)
    assert torch.equal(plain.masks, compiled.masks)
    assert plain.history.keys() == compiled.history.keys()


def test_all_iterations_but_the_first_are_compiled_each_for_all_masks_of_a_group(monkeypatch):
    """The first is plain, since there faults of the network show, and so is the end."""
    ask = {"target": 1, "ratios": (0.1, 0.3, 0.5), "preset": "smoke", "max_batch": 3, "progress": False}
    ask |= {"step": 4, "core_kernel": (3, 5, 5)}
    plain = explain(network(), pixels()[0], **ask)
    seen = []

    def as_it_is(function, **_):
        return lambda *given: (seen.append((function.__name__, len(given[0]))), function(*given))[1]

    monkeypatch.setattr(torch, "compile", as_it_is)
    compiled = explain(network(), pixels()[0], compiled=True, **ask)
    torch.testing.assert_close(compiled.masks, plain.masks, rtol=0, atol=1e-4)
    for name in plain.history:
        np.testing.assert_allclose(compiled.history[name], plain.history[name], rtol=1e-4, atol=1e-5)
    assert seen == [(name, 3) for name in ("draw", "answer", "press")] * (plain.config.iterations - 1)


def test_faults_of_the_network_are_told_in_its_own_words():
    """The first iteration is plain."""
    cut_off = Network(lambda x: x.detach().mean((3, 4))[:, :, 0], ["a", "b", "c"])
    ask = {"preset": "smoke", "step": 4, "core_kernel": (3, 5, 5), "progress": False}
    told = []
    for compiled in (False, True):
        with pytest.raises(ValueError, match="cut off") as error:
            explain(cut_off, pixels()[0], 1, compiled=compiled, **ask)
        told.append(str(error.value))
    assert told[0] == told[1]


WHOLE = """
import sys, warnings, torch, steplab as sl
warnings.filterwarnings("error", "compiled: goes on without")
plain = torch.compile
torch.compile = lambda function, **_: plain(function, backend="aot_eager", fullgraph=True, dynamic=False)
clip, (name, method, precision) = torch.rand(3, 16, 112, 112), sys.argv[1:]
ask = {"method": method, "precision": precision, "ratios": (0.1, 0.3), "max_batch": 2}
ask |= {"iterations": 2, "progress": False}
sl.explain(sl.load_network(name), clip, 0, preset="lesson", compiled=True, **ask)
"""


@pytest.mark.parametrize(
    ("family", "method", "precision"),
    [("r2plus1d", "step", "bfloat16"), ("vgg16lstm", "ep3d-second-order", "float32")],
)
def test_an_iteration_is_one_piece_for_the_compiler(family, method, precision):
    """The network in it. In a process of its own: here shapes are checked at each call, which cuts it."""
    command = [sys.executable, "-c", WHOLE, f"stage-action-{family}", method, precision]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
