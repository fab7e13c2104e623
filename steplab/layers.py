"""Feature maps inside a network: which layer to read, and its output as batch x channel x time x y x x.

>>> with tap(network, "layer4") as seen:
...     scores = network(pixels)
>>> seen.maps(seen.raw), seen.maps(seen.gradient(scores[0, target]))
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .networks import Network

# Class of torchvision's video models → its last map. MViT answers from its class token alone, so that the
# gradient of what the last block gives is zero everywhere else: the block before is read.
_LAST_MAPS = {"VideoResNet": "layer4", "S3D": "features", "SwinTransformer3d": "norm", "MViT": "blocks.{}"}


def target_layer(network: Network, override: str | None = None) -> str:
    """Dotted name of the layer that is read: `override`, the network's own, or what its class is known for.

    Raises:
        ValueError: a plain callable, which has no layers; none is known; no layer of that name.
    """
    module = network.module
    if module is None:
        raise ValueError(
            f"network: {network.name} wraps a plain function, which has no layers to read; "
            "integrated-gradients, occlusion, rise, lime and step need none"
        )
    name = override or network.target_layer or getattr(module, "target_layer", None)
    if name is None and type(module).__name__ in _LAST_MAPS:
        name = _LAST_MAPS[type(module).__name__]
        name = name.format(len(module.blocks) - 2) if "{}" in name else name  # type: ignore[arg-type]
    layers = dict(module.named_modules())
    if name is None or name not in layers:
        convolutions = [k for k, m in layers.items() if isinstance(m, nn.Conv2d | nn.Conv3d)]
        hint = f", for instance {convolutions[-1]!r}" if convolutions else ""
        raise ValueError(f"target_layer: got {name!r}, expected the name of a layer of {network.name}{hint}")
    return str(name)


class Tap:
    """What flowed out of a layer.

    Attributes:
        raw: the output as the layer gave it, a leaf of the graph: what lies before it is not differentiated.
    """

    def __init__(self, name: str, layer: nn.Module):
        self.name, self.layer, self.grid, self.calls, self.raw = name, layer, None, 0, torch.empty(0)

    def _hook(self, _module, inputs, output):
        first, *rest = output if isinstance(output, tuple) else (output,)
        self.calls += 1
        if not isinstance(first, Tensor) or not first.is_floating_point():
            raise ValueError(f"target_layer: {self.name!r} gives {type(first).__name__}, expected a tensor")
        if rest and isinstance(rest[0], tuple | list | torch.Size) and len(rest[0]) == 3:
            self.grid = tuple(int(n) for n in rest[0])  # MViT: tokens, and how many over time, height, width
        self.raw = first.detach().clone().requires_grad_()
        onward = self.raw.clone()  # a ReLU in place after this layer must not overwrite what was read
        return (onward, *rest) if isinstance(output, tuple) else onward

    def gradient(self, of: Tensor, weights: Tensor | None = None) -> Tensor:
        """Of `of` (summed with `weights`, if it is not a number) with respect to `raw`.

        Raises:
            ValueError: the layer did not run exactly once, or what it gave does not matter.
        """
        found = None
        if self.calls == 1 and of.requires_grad:
            (found,) = torch.autograd.grad(of, self.raw, weights, allow_unused=True)
        if found is None:
            unused = ", and the scores do not depend on it" if self.calls == 1 else ""
            raise ValueError(
                f"target_layer: {self.name!r} ran {self.calls} times in one pass{unused}; "
                "expected once, between pixels and scores"
            )
        return found

    def maps(
        self, values: Float[Tensor, "..."], clips: int = 1, frames: int | None = None
    ) -> Float[Tensor, "clips channel t h w"]:
        """`values`, of the shape of `raw`, as volumes: images are unfolded, tokens laid out on their grid.

        Raises:
            ValueError: they are no feature map; names the layer.
        """
        shape = tuple(values.shape)
        if self.grid is not None and values.ndim == 3 and 0 <= shape[1] - math.prod(self.grid) <= 1:
            return values[:, -math.prod(self.grid) :].transpose(1, 2).unflatten(2, self.grid)
        if values.ndim == 4 and shape[0] % clips == 0 and (shape[0] > clips or frames == 1):
            return values.unflatten(0, (clips, -1)).transpose(1, 2)
        if values.ndim == 5:
            norms = (m.normalized_shape for m in self.layer.modules() if isinstance(m, nn.LayerNorm))
            return values.permute(0, 4, 1, 2, 3) if any(n == (shape[4],) for n in norms) else values
        raise ValueError(
            f"target_layer: {self.name!r} gives shape {shape}, expected batch x channel x time x height x "
            "width, or batch*time x channel x height x width"
        )


@contextmanager
def tap(network: Network, name: str) -> Iterator[Tap]:
    """Within, the output of layer `name` is seen. `gradient` and `maps` check that it fits."""
    layer = network.module.get_submodule(name)  # type: ignore[union-attr]
    seen = Tap(name, layer)
    handle = layer.register_forward_hook(seen._hook)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def plain_activations(module: nn.Module | None) -> Iterator[None]:
    """Within, no activation overwrites its input; after it, modules have no attribute but those from before.

    Some methods keep notes on the modules and leave them there after an exception.
    """
    modules = [] if module is None else list(module.modules())
    before = [(m, m.__dict__.get("inplace"), set(m.__dict__)) for m in modules]
    try:
        for m, inplace, _ in before:
            if inplace is True:
                m.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for m, inplace, names in before:
            for name in set(m.__dict__) - names:
                del m.__dict__[name]
            if inplace is True:
                m.inplace = True  # type: ignore[assignment]
