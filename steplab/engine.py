"""The optimisation itself: constants, one energy, its descent, and a network left as it was found.

`explain.py` is the door; nothing here reads or writes files.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .losses import (
    area_loss,
    area_loss_per_frame,
    core_loss,
    ellipsoid_kernel,
    gaussian_smooth_time,
    second_order_difference,
)
from .masks import MaskGenerator
from .networks import Network
from .perturb import KINDS, Perturbation


@dataclass(frozen=True)
class StepConfig:
    """Every constant of the method. `explain(..., method=, preset=, **overrides)` builds one.

    The energy that is minimised, for a mask M of N = T*H*W values drawn from seeds:

        area_weight * area_growth^i * ||vecsort(M) - r_v||^2 / N + core_weight * L_K Z / N - reward_weight * R

    R is Phi_c(M (x) X) for reward "probability" (the paper's equations) and log Phi_c for "log" (the
    published demo's); Z is the number of voxels that a window of L_K stands for. Sizes in pixels whose
    default is None grow with the frame.
    """

    # what is asked of a mask
    per_frame: bool = False  # the ratio holds for every frame (EP-3D-Evenly, eq. 11)
    smooth_reach: int = 0  # seeds smoothed over time, dt frames (eq. 12)
    core_weight: float = 0.0  # of L_K (eq. 7): STEP
    second_order_weight: float = 0.0  # of the mean squared second difference over time
    # the energy
    reward: str = "log"  # "log" or "probability"
    reward_weight: float = 1.0
    area_weight: float = 300.0  # lambda
    area_growth: float = 1.0  # lambda grows by this factor each iteration
    core_start: int = 0  # iterations before L_K sets in
    core_kernel: tuple[int, int, int] = (7, 11, 11)
    core_stride: tuple[int, int, int] = (1, 11, 11)
    core_padding: str = "wrap"  # in time: "wrap", "replicate", or "none" (the paper's letter)
    core_spread: bool = True  # windows share the 2 pixels that stride 11 leaves over at the edge of 112
    released_core: bool = False  # L_K as in the published demo: ideal ellipsoid, two means
    # masks
    step: int = 7  # pixels from seed to seed
    sigma: float | None = None  # of a seed's disc; None: 11 px at 112
    boundary: str = "wrap"  # see MaskGenerator
    perturbation: str = "blur"  # see Perturbation
    blur_sigma: float | None = None  # None: 20 px at 112
    # the descent
    iterations: int = 2000
    optimiser: str = "sgd"  # "sgd" or "adam"
    learning_rate: float = 0.05  # share of the way from 1 to 0 that the area moves a seed at the start
    scale_rate: bool = True  # False: learning_rate multiplies the gradient as it is, whatever the size
    momentum: float = 0.9
    dampening: float = 0.9
    shrink: int = 0  # iterations in which the ratio falls from 1 to what was asked
    patience: int = 0  # stop when nothing has moved for so many iterations; 0: never
    tolerance: float = 0.01  # ... no more than this share of the energy
    ratio_tolerance: float = 0.1  # a mask is final only if its mean is this near to the ratio, relative to it
    # running
    heat_sigma: float = 0.09  # blur of the masks that are summed to a heat map, share of min(H, W)
    precision: str = "auto"  # "auto", "float32" or "bfloat16": of the network's own arithmetic
    callback_every: int = 5  # iterations


METHODS: dict[str, dict] = {
    "step": {"core_weight": 300.0},
    "step-padded": {"core_weight": 300.0, "core_padding": "replicate"},
    "ep3d": {},
    "ep3d-evenly": {"per_frame": True},
    "ep3d-gaussian-1": {"smooth_reach": 1},
    "ep3d-gaussian-2": {"smooth_reach": 2},
    "ep3d-gaussian-3": {"smooth_reach": 3},
    "ep3d-second-order": {"second_order_weight": 300.0},
}

PRESETS: dict[str, dict] = {
    "smoke": {"iterations": 12, "learning_rate": 0.25},
    "lesson": {"iterations": 150, "learning_rate": 0.2, "shrink": 60, "patience": 12},
    "paper": {"iterations": 2000, "reward": "probability"},
    "released": {
        "iterations": 2000,
        "boundary": "padded",
        "perturbation": "pyramid",
        "scale_rate": False,
        "released_core": True,
        "core_padding": "none",
        "core_spread": False,
        "core_start": 100,
    },
}


def make_config(method: str, preset: str, size: Sequence[int], overrides: dict) -> StepConfig:
    """The constants of a method under a preset for clips of `size` (T, H, W); `overrides` win.

    Raises:
        ValueError: unknown method, preset or constant.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    unknown = set(overrides) - set(StepConfig.__dataclass_fields__)
    if unknown:
        known = ", ".join(StepConfig.__dataclass_fields__)
        raise ValueError(f"unknown constant {', '.join(sorted(unknown))}; StepConfig has {known}")
    values = {**METHODS[method], **PRESETS[preset]}
    if preset == "released":
        is_step = method.startswith("step")
        values["reward_weight"] = 1.0 if is_step else 100.0
        values["area_growth"] = 1.0008668 if is_step else 1.0
        values["sigma"] = 23.0 if min(size[1:]) >= 224 else None
        if method == "step-padded":
            values["core_padding"] = "replicate"
    config = StepConfig(**{**values, **overrides})
    for name in ("iterations", "callback_every", "learning_rate", "heat_sigma", "area_weight"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    for name, allowed in (
        ("reward", ("log", "probability")),
        ("optimiser", ("sgd", "adam")),
        ("precision", ("auto", "float32", "bfloat16")),
        ("perturbation", KINDS),
    ):
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")
    return config


@contextmanager
def untouched(network: Network, device: torch.device | None = None) -> Iterator[None]:
    """Evaluation mode without weight gradients inside; outside, whatever happens, everything as it was.

    Restored: weights and buffers (the very storages), training and requires_grad flags, `.grad`, hooks, and
    the state of the global random numbers of torch, NumPy and Python. Inside, the module lies on `device`.
    cuDNN is off inside if the module holds a recurrent layer: its backward refuses evaluation mode.
    """
    module = network.module
    modules = list(module.modules()) if module is not None else []
    parameters = list(module.parameters()) if module is not None else []
    flags = [m.training for m in modules]
    kept = [(p, p.data, p.grad, p.requires_grad) for p in parameters]
    buffers = [(m, name, b, b.clone()) for m in modules for name, b in m._buffers.items() if b is not None]
    hook_kinds = [k for k in nn.Module().__dict__ if k.endswith("_hooks")]
    hooks = [(m, k, dict(m.__dict__[k])) for m in modules for k in hook_kinds]
    numbers = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda_numbers = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    recurrent = any(isinstance(m, nn.RNNBase) for m in modules)
    try:
        with ExitStack() as scope:
            if recurrent:
                scope.enter_context(torch.backends.cudnn.flags(enabled=False))
            for m in modules:
                m.training = False
            for p in parameters:
                p.requires_grad_(False)
                if device is not None:
                    p.data = p.data.to(device)
            if device is not None:
                for m, name, b, _ in buffers:
                    m._buffers[name] = b.to(device)
            yield
    finally:
        for m, flag in zip(modules, flags, strict=True):
            m.training = flag
        for p, data, grad, wanted in kept:
            p.data = data
            p.grad = grad
            p.requires_grad_(wanted)
        with torch.no_grad():
            for m, name, b, value in buffers:
                b.copy_(value)
                m._buffers[name] = b
        for m, kind, before in hooks:
            m.__dict__[kind].clear()
            m.__dict__[kind].update(before)
        torch.set_rng_state(numbers[0])
        np.random.set_state(numbers[1])
        random.setstate(numbers[2])
        if cuda_numbers is not None:
            torch.cuda.set_rng_state_all(cuda_numbers)


@dataclass
class State:
    """What a callback sees. All tensors are detached and belong to the callback.

    Attributes:
        iteration: how many iterations are done, from 1; `iterations`: how many there are at most.
        clips, ratios: of each mask in work, which clip (from 0) and which ratio.
        masks: (items, T, H, W) in [0,1].
        probability, energy: (items,) of those masks, before this iteration's step.
    """

    iteration: int
    iterations: int
    clips: list[int]
    ratios: list[float]
    masks: Float[Tensor, "items time height width"]
    probability: Float[Tensor, "items"]
    energy: Float[Tensor, "items"]


class Descent:
    """Gradient descent on the seeds of several masks at once; item i: clip `clips[i]`, ratio `ratios[i]`."""

    def __init__(
        self,
        score: Callable[[Tensor], Tensor],
        pixels: Float[Tensor, "clips 3 time height width"],
        targets: Sequence[int],
        clips: Sequence[int],
        ratios: Sequence[float],
        config: StepConfig,
        start: Float[Tensor, "items time h w"] | None = None,
        seed: int = 0,
    ):
        self.score, self.config = score, config
        self.numbers = torch.Generator().manual_seed(
            seed
        )  # the same draws for every item: batches change nothing
        self.clips, self.ratios = list(clips), list(ratios)
        size = tuple(pixels.shape[2:])
        self.generator = MaskGenerator(size, config.step, config.sigma, config.boundary)
        self.perturbation = Perturbation(pixels, config.perturbation, config.blur_sigma)
        self.items = torch.tensor(self.clips, device=pixels.device)
        self.targets = torch.tensor([targets[c] for c in self.clips], device=pixels.device)
        shape = (len(self.ratios), *self.generator.seed_shape)
        self.seeds = pixels.new_ones(shape) if start is None else start.to(pixels).clone()
        self.first_ratios = [float(s.mean()) for s in self.seeds]  # where a shrinking ratio begins
        self.seeds.requires_grad_()
        self.velocity = torch.zeros_like(self.seeds, requires_grad=False)
        self.square = torch.zeros_like(self.velocity)
        self.rate = config.learning_rate
        if config.scale_rate:  # at the start, d(area/N)/d(seed) = 2 / number of seeds, however large the clip
            self.rate *= self.seeds[0].numel() / (2 * config.area_weight)
        self.iteration = 0

    def targets_now(self) -> list[float]:
        """The ratios asked for in this iteration: they fall geometrically from the start to the goal."""
        c = self.config
        if self.iteration >= c.shrink:
            return self.ratios
        part = (self.iteration + 1) / (c.shrink + 1)
        return [
            min(1.0, max(a, v)) ** (1 - part) * v**part
            for a, v in zip(self.first_ratios, self.ratios, strict=True)
        ]

    def masks(self) -> tuple[Tensor, Tensor]:
        """(what the losses see, what the network sees) of the present seeds."""
        seeds = gaussian_smooth_time(self.seeds, self.config.smooth_reach)
        whole = self.generator.whole(seeds)
        return whole, self.generator.crop(whole)

    def energy(self) -> dict[str, Tensor]:
        """The energy of each item and its parts."""
        c, ratios = self.config, self.targets_now()
        whole, masks = self.masks()
        log_p = (
            self.score(self.perturbation(masks, self.items)).gather(1, self.targets[:, None])[:, 0].float()
        )
        reward = log_p if c.reward == "log" else log_p.exp()
        area = (area_loss_per_frame if c.per_frame else area_loss)(whole, ratios) / whole[0].numel()
        energy = c.area_weight * c.area_growth**self.iteration * area - c.reward_weight * reward
        parts = {"area": area}
        if c.core_weight and self.iteration >= c.core_start:
            parts["core"] = self._core(whole, ratios)
            energy = energy + c.core_weight * parts["core"]
        if c.second_order_weight and masks.shape[1] > 2:
            energy = energy + c.second_order_weight * second_order_difference(whole) / whole[0].numel()
        mean = masks.detach().mean(dim=(1, 2, 3))
        return {"energy": energy, "probability": log_p.exp(), "mean": mean, "masks": masks, **parts}

    def _core(self, whole: Tensor, ratios: list[float]) -> Tensor:
        c = self.config
        size = whole.shape[1:]
        if c.released_core:  # the ideal ellipsoid's voxels, rounded down; two means
            voxels = int(np.prod(c.core_kernel) * 0.5236)
            ones = [int(np.ceil(v * np.prod(size) / voxels)) for v in ratios]
            return core_loss(whole, ratios, c.core_kernel, c.core_stride, c.core_padding, ones, balanced=True)
        loss = core_loss(whole, ratios, c.core_kernel, c.core_stride, c.core_padding, spread=c.core_spread)
        # per window, so that L_K is of the area's scale: as many windows as the mask has voxels / Z
        return loss * float(ellipsoid_kernel(c.core_kernel, False).sum()) / whole[0].numel()

    def step(self) -> dict[str, Tensor]:
        """One iteration; returns the parts of the energy before it."""
        c = self.config
        parts = self.energy()
        (gradient,) = torch.autograd.grad(parts["energy"].sum(), self.seeds)
        with torch.no_grad():
            if c.optimiser == "sgd":
                fresh = (
                    1 - c.dampening if self.iteration else 1.0
                )  # the first step is whole, as torch.optim.SGD's
                self.velocity.mul_(c.momentum).add_(gradient, alpha=fresh)
                self.seeds.sub_(self.velocity, alpha=self.rate)
            else:
                self.velocity.mul_(c.momentum).add_(gradient, alpha=1 - c.momentum)
                self.square.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
                n = self.iteration + 1
                m = self.velocity / (1 - c.momentum**n)
                self.seeds.sub_(c.learning_rate * m / ((self.square / (1 - 0.99**n)).sqrt() + 1e-6))
            self.seeds.clamp_(0, 1)
        self.iteration += 1
        return {k: v.detach() for k, v in parts.items()}

    def finish(self) -> dict[str, Tensor]:
        """The present masks, seeds and the probabilities they keep, on the CPU."""
        with torch.no_grad():
            _, masks = self.masks()
            scores = self.score(self.perturbation(masks, self.items)).float()
        kept = scores.gather(1, self.targets[:, None])[:, 0].exp()
        found = {"masks": masks, "probability": kept, "seeds": self.seeds}
        return {k: v.detach().cpu().clone() for k, v in found.items()}

    def keep(self, which: Sequence[int]) -> None:
        """Go on with these items only."""
        index = torch.tensor(list(which), dtype=torch.long, device=self.seeds.device)
        self.clips, self.ratios = [self.clips[j] for j in which], [self.ratios[j] for j in which]
        self.first_ratios = [self.first_ratios[j] for j in which]
        for name in ("items", "targets", "velocity", "square"):
            setattr(self, name, getattr(self, name)[index])
        self.seeds = self.seeds.detach()[index].requires_grad_()
