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
    log_odds,
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
        probability, energy: (items,) of those masks, before this iteration's step.
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
NORM_MEMORY = 0.7  # of the norm by which the gradient of the log-odds is divided
BELOW = 0.995  # share of the ratio that is aimed at, so that what is missed does not lie above it
BISECTIONS = 12  # 2^12 is the number of seeds at 16 x 112 x 112
CHANGEABLE = ("area_weight", "core_weight", "learning_rate")  # constants that a callback may change


class Descent:
    """Search for the seeds of several masks at once; item i: clip `clips[i]`, ratio `ratios[i]`."""

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
        outside: Sequence[float] = (0.0, 0.0, 0.0),
        against: int | None = None,
    ):
        self.score, self.config, self.against = score, config, against
        self.clips, self.ratios = list(clips), list(ratios)
        time, height, width = pixels.shape[2:]
        self.generator = MaskGenerator((time, height, width), config.step, config.sigma, config.boundary)
        self.generator.weights = self.generator.weights.to(pixels)
        drawn = self.generator.drawn_size() if config.boundary == "padded" else (height, width)
        self.whole_size = (time, *drawn)  # of what the losses see
        self.windows = self.generator.seed_shape[1:] if config.core_layout == "seeds" else None
        self.core_voxels = float(ellipsoid_kernel(config.core_kernel, False).sum())
        self.perturbation = Perturbation(pixels, config.perturbation, config.blur_sigma, outside)
        self.blurs = [torch.eye(n).to(pixels) for n in (time, height, width)]
        self.reach(1.0)
        self.items = torch.tensor(self.clips, device=pixels.device)
        self.targets = torch.tensor([targets[c] for c in self.clips], device=pixels.device)
        shape = (len(self.ratios), *self.generator.seed_shape)
        if start is None:  # the same numbers for every item, so that a batch changes nothing
            noise = torch.rand(shape[1:], generator=torch.Generator().manual_seed(seed))
            start = (1 - config.start_noise * noise).expand(shape)
        self.seeds = start.to(pixels).clone()
        self.first_ratios = [float(s.mean()) for s in self.seeds]  # where a shrinking ratio begins
        self.seeds.requires_grad_()
        # Of the masks that are no larger than their ratio, the one with the largest reward.
        self.best = torch.full((len(self.ratios),), -torch.inf).to(self.seeds.detach())
        self.best_seeds = self.seeds.detach()
        self.norm: Tensor | None = None  # running L1 norm of the reward's gradient in the masks
        self.first: Tensor | None = None  # Phi_c of the first masks, which hold all of the clip
        self.velocity = torch.zeros_like(self.seeds, requires_grad=False)
        self.square = torch.zeros_like(self.velocity)
        # d(area / N) / d(seed) is at first 2 / number of seeds: the larger the clip, the weaker each seed is
        # pressed, while the network pulls as before. So each is pressed as in the paper's 16 x 112 x 112,
        # where there are 4096, and moves at first by `learning_rate`.
        self.pressure, self.pace = 1.0, 1.0
        if config.scale_to_size and config.optimiser != "budget":  # whose steps have no such scale
            self.pressure = self.seeds[0].numel() / PAPER_SEEDS
            self.pace = PAPER_SEEDS / (2 * config.area_weight)
        self.iteration = 0
        self.compiled = config.compiled
        if config.compiled:  # on a GPU they are replayed as CUDA graphs
            mode = "reduce-overhead" if pixels.device.type == "cuda" else "default"
            pieces = self.draw, self.answer, self.press
            self.pieces = tuple(torch.compile(p, dynamic=False, mode=mode) for p in pieces)
        self.terms: dict[str, Tensor] = {}  # of the energy, of the latest iteration
        self.changed = False

    def reach(self, share: float) -> None:
        """Blur the reward's gradient by this share of `reward_reach` from now on."""
        c, side = self.config, min(self.generator.size[1:])
        over, beside = share * c.reward_reach[0], share * c.reward_reach[1] * side
        ways = (over, c.time_wrap), (beside, c.boundary == "wrap"), (beside, c.boundary == "wrap")
        for blur, (sigma, wrap) in zip(self.blurs, ways, strict=True):
            blur.copy_(gaussian_matrix(len(blur), sigma, "wrap" if wrap else "replicate"))

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

    def answer(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """log Phi of the class for each perturbed clip, and what a mask is rewarded for, (items,) each.

        Variant "preserve" shows M (x) X and rewards the class, "delete" shows (1 - M) (x) X and rewards its
        absence, "dual" does both; log Phi is then of M (x) X.
        """
        c = self.config
        seen = BlurGradient.apply(masks, *self.blurs) if any(c.reward_reach) else masks
        log_p, reward = None, 0.0
        for shown, sign in ((seen, 1), (1 - seen, -1)):
            if c.variant == ("delete" if sign > 0 else "preserve"):
                continue
            scores = self.score(self.perturbation(shown, self.items)).float()
            own = scores.gather(1, self.targets[:, None])[:, 0]
            log_p = own if log_p is None else log_p
            if c.reward == "log-odds":
                own = log_odds(scores, self.targets, self.against)
            elif self.against is not None:
                other = scores[:, self.against]
                own = own - other if c.reward == "log" else own.exp() - other.exp()
            elif c.reward == "probability":
                own = own.exp()
            reward = reward + sign * own
        return log_p, reward  # type: ignore[return-value]

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

    def ask(self, masks: Tensor, answer: Callable) -> tuple[Tensor, Tensor, Tensor]:
        """log Phi, the reward's term of the energy (items,), and that term's gradient in the masks.

        The gradient of the log-odds is brought to the L1 norm `reward_weight` by a running mean of its own:
        log-odds grow with the scale of a network's logits, and one weight would not serve two networks.

        Raises:
            ScoresError: the gradient does not reach the pixels.
        """
        c, masks = self.config, masks.detach().requires_grad_()
        log_p, reward = answer(masks)
        scaled = c.reward == "log-odds"
        term = -reward if scaled else -c.reward_weight * reward
        (slope,) = torch.autograd.grad(term.sum(), masks, allow_unused=True)
        if slope is None:
            raise ScoresError(CUT_OFF)
        log_p, term, slope = log_p.detach().clone(), term.detach().clone(), slope.clone()
        self.reward = reward.detach().clone()
        if scaled:
            norm = slope.abs().sum((1, 2, 3))
            self.norm = norm if self.norm is None else torch.lerp(norm, self.norm, NORM_MEMORY)
            weight = c.reward_weight / self.norm.clamp(1e-12)
            term, slope = weight * term, weight[:, None, None, None] * slope
        return log_p, term, slope

    def energy(self, draw: Callable, answer: Callable, press: Callable) -> dict[str, Tensor]:
        """The energy of each item and its parts; the arguments are the methods of that name, or compiled."""
        c = self.config
        ones = [self._ones(v) for v in self.targets_now()]
        lit, full = torch.tensor(ones, device=self.seeds.device).T
        whole, masks = draw(self.seeds)
        log_p, reward, slope = self.ask(masks, answer)
        plane = (slope * masks).flatten(1).sum(1)
        core = bool(c.core_weight) and self.iteration >= c.core_start
        parts = press(whole, lit, full if core else None)
        weights = {
            "area": self.pressure * (c.area_weight * c.area_growth**self.iteration),
            "core": self.pressure * c.core_weight,
            "bend": self.pressure * c.second_order_weight,
        }
        if c.optimiser == "budget":  # while the answer is not kept, the rest of the energy waits
            self.first = log_p.exp() if self.first is None else self.first
            share = (log_p.exp() / self.first.clamp(1e-12)).clamp(max=1)
            weights = {name: share * weight for name, weight in weights.items()}
        terms = {name: weights[name] * part for name, part in parts.items()}
        terms["reward"] = reward + (plane - plane.detach())
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
        with torch.no_grad():
            self.iteration += 1
            if c.optimiser == "budget":
                self._note(parts["mean"])
                self.seeds.copy_(self.spend(gradient, parts["masks"]))
                self.reach(c.cooling ** (self.iteration / c.iterations))
            else:
                self.seeds.sub_(self.direction(gradient) * (c.learning_rate * self.pace)).clamp_(0, 1)
        return {k: v.detach() for k, v in parts.items()}

    def direction(self, gradient: Tensor) -> Tensor:
        """Where to go, before the learning rate: the gradient with momentum."""
        c = self.config
        first = c.optimiser == "sgd" and self.iteration == 1  # torch's SGD does not dampen its first step
        return self.velocity.mul_(c.momentum).add_(gradient, alpha=1 - (0 if first else c.dampening))

    def spend(self, gradient: Tensor, masks: Tensor) -> Tensor:
        """Seeds after a step to masks of the mean that the next iteration asks for: eq. 2's own constraint.

        Adam's direction (Kingma, Ba 2015) less lambda times the gradient of the mean, each seed moving by at
        most the learning rate. lambda, the multiplier of the constraint, is found by bisection among the
        seeds' own prices, their gain by their cost: those that gain more are lit, the others go out. If no
        step that short is small enough, the seeds are shifted down by what is left.
        """
        c, n = self.config, self.iteration
        if not c.learning_rate:  # a callback stopped it
            return self.seeds.detach()
        rate = c.learning_rate * c.cooling ** (n / c.iterations)
        self.velocity.mul_(c.momentum).add_(gradient, alpha=1 - c.momentum)
        self.square.mul_(ADAM_MEMORY).addcmul_(gradient, gradient, value=1 - ADAM_MEMORY)
        spread = (self.square / (1 - ADAM_MEMORY**n)).sqrt().add_(1e-12)
        gain = self.velocity / -(1 - c.momentum**n)

        def means(seeds: Tensor) -> Tensor:
            """Of each mask, (items, 1), or of each of its frames, (items, T)."""
            smooth = gaussian_smooth_time(seeds, c.smooth_reach, c.time_wrap)
            frames = self.generator.frame_means(smooth)
            return frames if c.per_frame else frames.mean(1, keepdim=True)

        with torch.enable_grad():
            seeds = self.seeds.detach().requires_grad_()
            now = means(seeds)
            (cost,) = torch.autograd.grad(now.sum(), seeds)
        seeds, cost = seeds.detach(), cost * (seeds[0].numel() / now.shape[1])  # about 1 for a seed alone
        actual = masks.detach().mean((2, 3))
        actual = actual if c.per_frame else actual.mean(1, keepdim=True)
        goal = torch.tensor(self.targets_now()).to(seeds)[:, None] * BELOW
        goal = goal * (now.detach() / actual.clamp(1e-6)).clamp(1e-3, 1e3)  # by what the estimate is off

        def moved(price: Tensor) -> Tensor:
            step = ((gain - price[..., None, None] * cost) / spread).clamp(-1, 1)
            return (seeds + rate * step).clamp(0, 1)

        prices = torch.where(cost > 1e-3, gain / cost, 0).view(*now.shape, -1).sort(-1).values
        low = torch.zeros_like(now, dtype=torch.long)
        high = low + prices.shape[-1] - 1
        for _ in range(BISECTIONS):
            middle = (low + high) // 2
            over = means(moved(prices.gather(-1, middle[..., None])[..., 0])) > goal
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        seeds = moved(prices.gather(-1, high[..., None])[..., 0])
        if not (means(seeds) > goal).any():
            return seeds
        low, high = torch.zeros_like(now), (means(seeds) > goal).to(seeds)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            over = means((seeds - middle[..., None, None]).clamp(min=0)) > goal
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        return (seeds - high[..., None, None]).clamp(min=0)

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

    def finish(self, interrupted: bool = False) -> dict[str, Tensor]:
        """Masks, seeds and parts of the energy to end with, on the CPU: the best, unless `interrupted`."""
        if self.config.optimiser == "budget" and not interrupted:
            with torch.no_grad():
                best = (self.best > -torch.inf)[:, None, None, None]
                self.seeds.copy_(torch.where(best, self.best_seeds, self.seeds))
        found = {**self.energy(self.draw, self.answer, self.press), "seeds": self.seeds}
        return {k: v.detach().cpu().clone() for k, v in found.items()}

    def _note(self, mean: Tensor) -> None:
        """Remember the seeds if no mask as large as asked was better; of equals the latest."""
        as_probability = {"log-odds": torch.sigmoid, "log": torch.exp, "probability": torch.clone}
        value = as_probability[self.config.reward](self.reward)
        ratios = torch.tensor(self.ratios).to(mean)
        fits = (mean <= ratios) & (mean >= 0.97 * ratios)
        self.best = torch.where(fits, torch.maximum(self.best, value), self.best)
        chosen = fits & (value >= self.best - 0.005)  # what rounding decides must not matter
        self.best_seeds = torch.where(chosen[:, None, None, None], self.seeds.detach(), self.best_seeds)


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
