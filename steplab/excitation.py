"""Excitation backprop (Zhang et al. 2016) and its recurrent form EB-R (Bargal et al. 2018).

A unit of "attention" starts at the class and goes down: through a linear map y = W x to the inputs in
proportion to what they excite,

    p'_j = x_j sum_i w+_ij p_i / (W+ x)_i,          w+ = max(w, 0); nothing where the denominator is 0

so that sum(p) = 1 at each layer. The bias gets nothing: a unit that only its bias excites keeps its share to
itself. Inputs below 0, which the original forbids, excite through negative weights; where there are none
nothing changes by that. Batch norm counts as part of the convolution before it. An addition splits p among
its terms in proportion to their positive parts, average pooling is a linear map with equal weights,
max-pooling and ReLU pass p on as they do gradients.

Nothing of the network is replaced: while :class:`Excitation` is entered it sees each operation that torch is
asked for, and gives those that have a rule of their own another gradient.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .layers import Tap
from .vgg_lstm import VGGLSTM

_WEIGHTED = {F.linear, F.conv1d, F.conv2d, F.conv3d}
_MEANS = {torch.mean, Tensor.mean, torch.sum, Tensor.sum} | {
    getattr(F, f"{kind}avg_pool{n}d") for kind in ("", "adaptive_") for n in (1, 2, 3)
}
_ADDITIONS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
_WITHOUT_RULE = {
    *(
        "softmax",
        "log_softmax",
        "layer_norm",
        "group_norm",
        "instance_norm",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
    ),
    *("elu", "leaky_relu", "hardswish", "matmul", "__matmul__", "bmm"),
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    "scaled_dot_product_attention",
    *("mul", "__mul__", "__rmul__", "mul_", "__imul__", "div", "__truediv__", "sub", "__sub__"),
}
_TINY = 1e-30


class Excitation(TorchFunctionMode):
    """Within it, gradients of what is computed are excitations.

    Attributes:
        recurrent: set it while a recurrent unit runs. Its linear maps keep the rule; all else in it, sums and
            gates, has its ordinary gradient.
    """

    def __init__(self):
        super().__init__()
        self.recurrent = False
        self._convolution: tuple | None = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return function(*args, **kwargs)
        if function in _WEIGHTED:
            x, weight, _, *rest = args if len(args) > 2 else (*args[:2], None)
            more = {k: v for k, v in kwargs.items() if k != "bias"}
            return self._linear(
                x, function(*args, **kwargs), lambda a, w: function(a, w, None, *rest, **more), weight
            )
        if function is F.batch_norm and not self.recurrent:
            return self._normed(args[0], args[2], kwargs["weight"], kwargs["eps"], function(*args, **kwargs))
        if function in _MEANS:
            more = args[1:]
            return _Share.apply(
                args[0], function(*args, **kwargs), lambda a, _: function(a, *more, **kwargs), None
            )
        if self.recurrent:
            return function(*args, **kwargs)
        if function in _ADDITIONS and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            return _Split.apply(args[0], args[1])
        if function.__name__ in _WITHOUT_RULE:
            raise ValueError(
                f"method: excitation backprop has no rule for {function.__name__!r}, which the network uses; "
                "grad-cam, integrated-gradients, occlusion, rise and step fit"
            )
        return function(*args, **kwargs)

    def _linear(self, x: Tensor, y: Tensor, apply: Callable, weight: Tensor) -> Tensor:
        out = _Share.apply(x, y, apply, weight)
        self._convolution = (out, x, apply, weight)
        return out

    def _normed(self, x: Tensor, variance: Tensor, gain: Tensor | None, eps: float, y: Tensor) -> Tensor:
        """Batch norm moves into the convolution before it; where there is none, p passes as it is."""
        if self._convolution is None or x is not self._convolution[0]:
            return _Through.apply(x, y)
        _, x, apply, weight = self._convolution
        scale = (variance + eps).rsqrt() * (1 if gain is None else gain)
        return _Share.apply(x, y, apply, weight * scale.view(-1, *[1] * (weight.ndim - 1)))


class _Share(torch.autograd.Function):
    """y, computed already, as a linear map of x; backward shares p out."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, apply: Callable, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.linear, ctx.weight = apply, weight
        return y.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (x,), weight = ctx.saved_tensors, ctx.weight
        pairs = [(x.clamp(min=0), None if weight is None else weight.clamp(min=0))]
        if weight is not None and (x < 0).any():
            pairs.append((x.clamp(max=0), weight.clamp(max=0)))
        with torch.enable_grad():
            parts = [part.detach().requires_grad_() for part, _ in pairs]
            z = torch.stack([ctx.linear(a, w) for a, (_, w) in zip(parts, pairs, strict=True)]).sum(0)
        share = torch.where(z > _TINY, gradients[0] / z.clamp(min=_TINY), 0)
        found = torch.autograd.grad(z, parts, share)
        return sum(a.detach() * g for a, g in zip(parts, found, strict=True)), None, None, None


class _Split(torch.autograd.Function):
    """a + b; backward splits p in proportion to their positive parts."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a.clone(), b.clone())  # the sum may overwrite one of them
        return a + b

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        a, b = (v.clamp(min=0) for v in ctx.saved_tensors)
        share = gradients[0] / (a + b).clamp(min=_TINY)
        return (share * a).sum_to_size(a.shape), (share * b).sum_to_size(b.shape)


class _Through(torch.autograd.Function):
    """y for x, elementwise; p passes as it is."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        return gradients[0], None


class _Normalised(torch.autograd.Function):
    """x itself; backward divides p by its sum over all of a clip."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        p = gradients[0]
        return p / p.flatten(1).sum(1).clamp(min=_TINY).view(-1, *[1] * (p.ndim - 1))


def excitation(
    scores: Callable[[], Float[Tensor, "batch classes"]], target: int, seen: Tap
) -> Float[Tensor, "..."]:
    """p at the layer that `seen` taps, from p = 1 at `target`; it sums to 1 for each clip.

    Args:
        scores: computes logits, one pass of the network.
    """
    with Excitation():
        logits = scores()
    start = torch.zeros_like(logits)
    start[:, target] = 1
    return seen.gradient(logits, start)


def recurrent_excitation(
    module: VGGLSTM, pixels: Float[Tensor, "batch 3 time height width"], target: int, seen: Tap
) -> Float[Tensor, "..."]:
    """EB-R: p at the layer that `seen` taps, normalised over all frames of a clip at fc7.

    The answer is an average of the steps' probabilities, so each step starts with its share of it. Within the
    LSTM linear maps follow the rule and the unit its ordinary gradient, which is nowhere negative as no state
    is. Where the h-branch is added to the x-branch all goes to the x-branch: only the cell state carries
    evidence from one moment to another.

    Args:
        pixels: preprocessed.
    """
    mode = Excitation()

    def enter(_, inputs):
        mode.recurrent = True
        return (_Normalised.apply(inputs[0]), *inputs[1:])

    def leave(*_):
        mode.recurrent = False

    lstm = module.lstm
    with ExitStack() as hooks:
        for handle in (
            lstm.register_forward_pre_hook(enter),
            lstm.register_forward_hook(leave),
            lstm.h_branch.register_forward_hook(lambda *call: call[2].detach()),
        ):
            hooks.callback(handle.remove)
        with mode:
            logits = module.step_logits(pixels)
    log_p = logits.detach().log_softmax(-1)[..., target]
    start = torch.zeros_like(logits)
    start[..., target] = log_p.softmax(
        1
    )  # p of each step over their sum, also where all are too small to be held
    return seen.gradient(logits, start)
