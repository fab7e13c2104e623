"""The optimisation itself: one energy, its descent, and a network left as it was found.

`explain.py` is the door; nothing here reads or writes files.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .config import PAPER_SEEDS, StepConfig
from .losses import (
    area_loss,
    area_loss_per_frame,
    core_loss,
    ellipsoid_kernel,
    full_windows,
    gaussian_smooth_time,
    second_order_difference,
)
from .masks import MaskGenerator
from .networks import CUT_OFF, Network, ScoresError
from .perturb import Perturbation, gaussian_matrix


@contextmanager
def untouched(network: Network, device: torch.device | None = None) -> Iterator[None]:
    """Evaluation mode without weight gradients inside; outside, whatever happens, everything as it was.

    Restored: weights and buffers (the very storages, though `forward` may write into them or replace them),
    training and requires_grad flags, `.grad`, hooks, and the state of the global random numbers of torch,
    NumPy and Python. Inside, the module lies on `device`, and its weights are copies.
    cuDNN is off inside if the module holds a recurrent layer: its backward refuses evaluation mode.
    """
    module = network.module
    modules = list(module.modules()) if module is not None else []
    parameters = list(module.parameters()) if module is not None else []
    flags = [m.training for m in modules]
    kept = [(p, p.data, p.grad, p.requires_grad) for p in parameters]
    buffers = [(m, name, b, b.clone()) for m in modules for name, b in m._buffers.items() if b is not None]
    plain = [m for m in modules if not isinstance(m, torch.jit.ScriptModule)]
    tables: list[tuple[dict, dict]] = [(d, dict(d)) for m in plain for d in (m._parameters, m._buffers)]
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
                with torch.inference_mode(False):  # else the copies could not be differentiated
                    p.data = p.data.to(p.device if device is None else device, copy=True)
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
        for table, before in (*tables, *((m.__dict__[kind], before) for m, kind, before in hooks)):
            table.clear()
            table.update(before)
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
        probability, energy: (items,) of those masks, before this iteration's step; where the network was not
            asked (`ask_every`), by what it said last.
        terms: the energy's terms with their weights, by name ("area", "reward", for STEP "core"): (items,)
            each; their sum is the energy.
    """

    iteration: int
    iterations: int
    clips: list[int]
    ratios: list[float]
    masks: Float[Tensor, "items time height width"]
    probability: Float[Tensor, "items"]
    energy: Float[Tensor, "items"]
    terms: dict[str, Float[Tensor, "items"]]


ADAM_MEMORY = 0.9  # of the squared gradient; the usual .999 would remember the whole of a short search
CHANGEABLE = ("area_weight", "core_weight", "learning_rate")  # constants that a callback may change


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
        self.clips, self.ratios = list(clips), list(ratios)
        time, height, width = pixels.shape[2:]
        self.generator = MaskGenerator((time, height, width), config.step, config.sigma, config.boundary)
        self.generator.weights = self.generator.weights.to(pixels)
        drawn = self.generator.drawn_size() if config.boundary == "padded" else (height, width)
        self.whole_size = (time, *drawn)  # of what the losses see
        self.windows = self.generator.seed_shape[1:] if config.core_layout == "seeds" else None
        self.core_voxels = float(ellipsoid_kernel(config.core_kernel, False).sum())
        self.perturbation = Perturbation(pixels, config.perturbation, config.blur_sigma)
        over, beside = config.reward_reach
        reaches = (over, beside * min(height, width), beside * min(height, width))
        wraps = (config.time_wrap, config.boundary == "wrap", config.boundary == "wrap")
        self.blurs = [
            gaussian_matrix(n, reach, "wrap" if wrap else "replicate").to(pixels)
            for n, reach, wrap in zip((time, height, width), reaches, wraps, strict=True)
        ]
        self.items = torch.tensor(self.clips, device=pixels.device)
        self.targets = torch.tensor([targets[c] for c in self.clips], device=pixels.device)
        shape = (len(self.ratios), *self.generator.seed_shape)
        if start is None:  # the same numbers for every item, so that a batch changes nothing
            noise = torch.rand(shape[1:], generator=torch.Generator().manual_seed(seed))
            start = (1 - config.start_noise * noise).expand(shape)
        self.seeds = start.to(pixels).clone()
        self.first_ratios = [float(s.mean()) for s in self.seeds]  # where a shrinking ratio begins
        self.seeds.requires_grad_()
        # The losses ask for this share of each ratio. Where the reward makes a mask larger than its ratio it
        # falls a little in every iteration, and rises again where the mask has become smaller.
        self.aims = torch.ones(len(self.ratios)).to(self.seeds.detach())
        self.best = torch.full_like(
            self.aims, -1
        )  # probability kept by the best mask not larger than its ratio
        self.best_seeds = self.seeds.detach()
        self.velocity = torch.zeros_like(self.seeds, requires_grad=False)
        self.square = torch.zeros_like(self.velocity)
        # d(area / N) / d(seed) is at first 2 / number of seeds: the larger the clip, the weaker each seed is
        # pressed, while the network pulls as before. So each is pressed as in the paper's 16 x 112 x 112,
        # where there are 4096, and moves at first by `learning_rate`.
        self.pressure, self.pace = 1.0, 1.0
        if config.scale_to_size:
            self.pressure = self.seeds[0].numel() / PAPER_SEEDS
            self.pace = PAPER_SEEDS / (2 * config.area_weight)
        self.iteration = 0
        self.known: tuple[Tensor, Tensor] | None = None  # log Phi and slope, as the network said last
        self.compiled = config.compiled
        if config.compiled:  # on a GPU they are replayed as CUDA graphs
            mode = "reduce-overhead" if pixels.device.type == "cuda" else "default"
            pieces = self.draw, self.answer, self.press
            self.pieces = tuple(torch.compile(p, dynamic=False, mode=mode) for p in pieces)
        self.terms: dict[str, Tensor] = {}  # of the energy, of the latest iteration
        self.changed = False

    def change(self, constants: Mapping[str, float]) -> None:
        """Go on with other weights or another learning rate. Raises ValueError: not one of `CHANGEABLE`."""
        if wrong := [name for name in constants if name not in CHANGEABLE]:
            raise ValueError(
                f"a callback asked to change {wrong[0]!r}, expected one of {', '.join(CHANGEABLE)}"
            )
        if wrong := [f"{name} = {value}" for name, value in constants.items() if not 0 <= value < np.inf]:
            raise ValueError(f"a callback asked for {wrong[0]}, expected a finite number from 0")
        before, self.config = self.config, replace(self.config, **constants)
        self.changed |= self.config != before

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

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Masks: (what the losses see, what the network sees)."""
        seeds = gaussian_smooth_time(seeds, self.config.smooth_reach, self.config.time_wrap)
        whole = self.generator.whole(seeds)
        return whole, self.generator.crop(whole)

    def answer(self, masks: Tensor) -> Tensor:
        """log Phi of the class for each perturbed clip, (items,)."""
        seen = BlurGradient.apply(masks, *self.blurs) if any(self.config.reward_reach) else masks
        scores = self.score(self.perturbation(seen, self.items)).float()
        return scores.gather(1, self.targets[:, None])[:, 0]

    def press(self, whole: Tensor, lit: Tensor, full: Tensor | None) -> dict[str, Tensor]:
        """What else the energy is a sum of, before weights, (items,) each; `lit`, `full`: see `_ones`."""
        c, voxels = self.config, whole[0].numel()
        area = (area_loss_per_frame if c.per_frame else area_loss)(whole, 0.0, lit) / voxels
        parts = {"area": area}
        if full is not None:
            how = c.core_kernel, c.core_stride, c.core_padding
            loss = core_loss(whole, 0.0, *how, full, c.core_balanced, self.windows)
            # a sum over windows, each of which stands for the Z voxels in it, is brought to the area's scale
            parts["core"] = loss if c.core_balanced else loss * (self.core_voxels / voxels)
        if c.second_order_weight and whole.shape[1] > 2:
            parts["bend"] = second_order_difference(whole, c.time_wrap) / voxels
        return parts

    def ask(self, masks: Tensor, answer: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """What the network says: log Phi, (items,), and its term of the energy's gradient in the masks.

        Raises:
            ScoresError: the gradient does not reach the pixels.
        """
        c, masks = self.config, masks.detach().requires_grad_()
        log_p = answer(masks)
        term = -c.reward_weight * (log_p if c.reward == "log" else log_p.exp())
        (slope,) = torch.autograd.grad(term.sum(), masks, allow_unused=True)
        if slope is None:
            raise ScoresError(CUT_OFF)
        return log_p.detach().clone(), slope.clone()

    def energy(self, draw: Callable, answer: Callable, press: Callable) -> dict[str, Tensor]:
        """The energy of each item and its parts; the arguments are the methods of that name, or compiled.

        Where the network is not asked, what it said last holds: its scores, and its gradient as a plane.
        """
        c = self.config
        ratios = [v * a for v, a in zip(self.targets_now(), self.aims.tolist(), strict=True)]
        ones = [self._ones(v) for v in ratios]
        lit, full = torch.tensor(ones, device=self.seeds.device).T
        whole, masks = draw(self.seeds)
        if self.known is None or self.iteration % c.ask_every == 0:
            self.known = self.ask(masks, answer)
        log_p, slope = self.known
        plane = (slope * masks).flatten(1).sum(1)
        core = bool(c.core_weight) and self.iteration >= c.core_start
        parts = press(whole, lit, full if core else None)
        weights = {
            "area": self.pressure * (c.area_weight * c.area_growth**self.iteration),
            "core": self.pressure * c.core_weight,
            "bend": self.pressure * c.second_order_weight,
        }
        terms = {name: weights[name] * part for name, part in parts.items()}
        reward = log_p if c.reward == "log" else log_p.exp()
        terms["reward"] = -c.reward_weight * reward + (plane - plane.detach())
        self.terms = {name: term.detach() for name, term in terms.items()}
        found = {name: part for name, part in parts.items() if name != "bend"}
        found |= {"energy": torch.stack([*terms.values()]).sum(0), "probability": log_p.exp(), "masks": masks}
        if self.changed:  # on record, since the settings no longer tell
            found |= {name: torch.full_like(log_p, getattr(c, name)) for name in CHANGEABLE}
        return {**found, "mean": masks.detach().mean(dim=(1, 2, 3))}

    def _ones(self, ratio: float) -> tuple[int, int]:
        """How many voxels of a mask (of a frame, if `per_frame`) shall be lit, and how many windows full."""
        c, size = self.config, self.whole_size
        lit = round(ratio * int(np.prod(size[1:] if c.per_frame else size)))
        if c.core_ideal:
            return lit, int(np.ceil(ratio * np.prod(size) / int(np.prod(c.core_kernel) * 0.5236)))
        return lit, full_windows(ratio, size, c.core_kernel, self.windows)

    def step(self) -> dict[str, Tensor]:
        """One iteration; returns the parts of the energy before it.

        Raises:
            ScoresError: the network's gradient does not reach the pixels, or is not finite.
        """
        c = self.config
        parts, gradient = self._differentiate()
        if not torch.isfinite(gradient).all():
            raise ScoresError(
                "fn: expected scores with a finite gradient, got NaN or inf; occlusion and rise need none"
            )
        if c.hold_rate and self.iteration >= c.shrink and self.iteration % c.ask_every == 0:
            self._note(parts["mean"], parts["probability"].detach())
        with torch.no_grad():
            step = self.direction(gradient) * (c.learning_rate * self.pace)
            self.seeds.sub_(step.clamp_(-c.largest_step, c.largest_step)).clamp_(0, 1)
            self.iteration += 1
            goal = torch.tensor(self.targets_now()).to(parts["mean"])
            self.aims *= (goal / parts["mean"].clamp(1e-6)) ** c.hold_rate
            self.aims.clamp_(0.3, 1)
        return {k: v.detach() for k, v in parts.items()}

    def direction(self, gradient: Tensor) -> Tensor:
        """Where to go, before the learning rate: the gradient with momentum, or Adam's (Kingma, Ba 2015).

        Adam moves every seed by about the learning rate, however little it matters to the energy.
        """
        c, past = self.config, self.iteration + 1
        self.velocity.mul_(c.momentum).add_(gradient, alpha=1 - c.dampening)
        if c.optimiser == "momentum":
            return self.velocity
        self.square.mul_(ADAM_MEMORY).addcmul_(gradient, gradient, value=1 - ADAM_MEMORY)
        spread = (self.square / (1 - ADAM_MEMORY**past)).sqrt().add_(1e-8)
        return self.velocity / ((1 - c.momentum**past) * self.pace * spread)

    def _differentiate(self) -> tuple[dict[str, Tensor], Tensor]:
        """The parts of the energy, and its gradient in the seeds.

        The first iteration is never compiled: there faults of the network show, in its own words.
        """
        if self.compiled and self.iteration:
            try:
                torch.compiler.cudagraph_mark_step_begin()
                with torch._dynamo.config.patch(recompile_limit=64):  # methods, ratios at once, L_K or none
                    parts = self.energy(*self.pieces)
                    (gradient,) = torch.autograd.grad(parts["energy"].sum(), self.seeds)
                parts["masks"] = parts["masks"].clone()  # the next replay writes there
                return parts, gradient
            except Exception as error:
                self.compiled = False
                why = f"{type(error).__name__}: {error}"
                warnings.warn(f"compiled: goes on without, since {why}", stacklevel=2)
        parts = self.energy(self.draw, self.answer, self.press)
        (gradient,) = torch.autograd.grad(parts["energy"].sum(), self.seeds)
        return parts, gradient

    def finish(self, trim: bool = False) -> dict[str, Tensor]:
        """The present masks, seeds and the probabilities they keep, on the CPU; `trim`: none too large."""
        with torch.no_grad():
            seeds = self.seeds
            if trim:
                seeds = torch.where((self.best >= 0)[:, None, None, None], self.best_seeds, seeds)
                seeds = self._trim(seeds)
            _, masks = self.draw(seeds)
            found = {"masks": masks, "probability": self.answer(masks).exp(), "seeds": seeds}
        return {k: v.detach().cpu().clone() for k, v in found.items()}

    def _note(self, mean: Tensor, probability: Tensor) -> None:
        """Remember the seeds if no mask that is small enough kept more; of equals the latest."""
        small = mean <= 1.02 * torch.tensor(self.ratios).to(mean)
        self.best = torch.where(small, torch.maximum(self.best, probability), self.best)
        chosen = small & (probability >= self.best - 0.005)  # what rounding decides must not matter
        self.best_seeds = torch.where(chosen[:, None, None, None], self.seeds.detach(), self.best_seeds)

    def _trim(self, seeds: Tensor) -> Tensor:
        """Seeds shifted down until no mask is larger than its ratio; to about .1 % of a seed."""
        goal = torch.tensor(self.ratios).to(seeds)
        low, high = torch.zeros_like(goal), seeds.flatten(1).amax(1)

        def lower(shift: Tensor) -> Tensor:
            return (seeds - shift[:, None, None, None]).clamp(min=0)

        def larger(shift: Tensor) -> Tensor:
            return self.draw(lower(shift))[1].mean(dim=(1, 2, 3)) > goal

        over = larger(low)
        for _ in range(10 if over.any() else 0):
            middle = (low + high) / 2
            above = larger(middle)
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return lower(torch.where(over, high, torch.zeros_like(high)))

    def keep(self, which: Sequence[int]) -> None:
        """Go on with these items only."""
        index = torch.tensor(list(which), dtype=torch.long, device=self.seeds.device)
        self.clips, self.ratios = [self.clips[j] for j in which], [self.ratios[j] for j in which]
        self.first_ratios = [self.first_ratios[j] for j in which]
        for name in ("items", "targets", "velocity", "square", "aims", "best", "best_seeds"):
            setattr(self, name, getattr(self, name)[index])
        self.seeds = self.seeds.detach()[index].requires_grad_()
        self.known = None


class BlurGradient(torch.autograd.Function):
    """Masks as they are; their gradient blurred over time, height and width by a matrix each.

    What a network wants of a single voxel is mostly noise, and seeds that follow it flicker and deceive it.
    Blurred, the gradient tells what it wants of a region. It is no longer the gradient of the energy: where
    it leads must be judged by results, as benchmarks/convergence.py does.
    """

    @staticmethod
    def forward(ctx, masks: Tensor, over_time: Tensor, down: Tensor, across: Tensor) -> Tensor:
        ctx.save_for_backward(over_time, down, across)
        return masks.view_as(masks)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        over_time, down, across = ctx.saved_tensors
        return torch.einsum("st,bthw->bshw", over_time, down @ gradients[0] @ across.T), None, None, None
