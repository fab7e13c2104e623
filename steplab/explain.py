"""Explain a network's answer to a clip: which part of space and time keeps it.

>>> result = explain(network, clip, method="step", ratios=(0.05, 0.1))
>>> result.masks.shape, result.probability          # (2, T, H, W) in [0,1]; Phi_c of each preserved clip
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from .baselines import attribute, hottest
from .clips import Clip
from .config import BASELINES, METHODS, AttributionConfig, StepConfig, make_config
from .engine import Descent, State, untouched
from .explanation import Explanation, fingerprint, heat_map, versions
from .masks import MaskGenerator
from .networks import Network, ScoresError
from .perturb import Perturbation


def explain(
    network: Network,
    clip: Clip | Tensor | Sequence[Clip | Tensor],
    target: str | SupportsIndex | Sequence[str | SupportsIndex] | None = None,
    method: str = "step",
    ratios: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    preset: str = "lesson",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    callback: Callable[[State], Mapping[str, float] | None] | None = None,
    max_batch: int | None = None,
    until_enough: bool = False,
    **overrides,
) -> Explanation | list[Explanation]:
    """For each ratio, the mask that keeps so much of the clip and as much of the class as it can.

    A baseline attributes instead: its map is the heat map, and a mask holds the hottest voxels of it.

    Args:
        network: wrapped by :class:`steplab.Network`; it is left exactly as it was, whatever happens.
        clip: a Clip, a tensor (3, T, H, W) in [0,1], or several: a list, or a tensor (B, 3, T, H, W).
        target: class name or number; None: the most probable of each clip. One for all clips, or a list.
        method: step, step-padded, ep3d, ep3d-evenly, ep3d-gaussian-1/2/3, ep3d-second-order; or a baseline:
            grad-cam, saliency-tubes, excitation-backprop, eb-r, rise, integrated-gradients, smooth-grad,
            guided-backprop, deconvolution, deep-lift, occlusion, lime, random, middle, motion.
        ratios: preservation ratios, each in (0, 1). In frames well below 112 px discs leave gaps between the
            seeds: with `step` 7 the largest mask has a mean of .89 at 42 px, .59 at 28 px, .34 at 21 px.
        preset: smoke (12 iterations; to see that it runs), lesson (44), paper (2000, the paper's energy) or
            released (2000, the published demo's). Baselines take few samples in smoke, else all.
        seed: of the small noise that masks start with, or of a baseline's samples; the same call gives the
            same masks on the same device.
        device: where to compute; default: where the network is.
        progress: show a progress bar.
        callback: called with a :class:`State` every `callback_every` iterations; a baseline has none. What it
            returns, if anything, are constants to go on with, by name: area_weight, core_weight,
            learning_rate. The history then holds what was in force.
        max_batch: masks in work at once; bounds memory. Default: 1 on a CPU, which is no slower, else 8.
        until_enough: leave out the ratios after the first that is enough (`Explanation.enough`) for a clip.
        overrides: any constant of :class:`StepConfig`, for a baseline of :class:`AttributionConfig`. Among
            them `variant`: "preserve", the part that is enough for the class; "delete", the part without
            which it falls; "dual", both at once. And `against`: a class, why the target and not that one.

    Returns:
        one Explanation, or a list of them if several clips were given.

    Raises:
        ValueError: naming the argument, what came and what was expected; of the network's scores also the
            iteration. What was found before an exception, the network's own as well, is in its attribute
            `results`: a list of Explanations, marked `interrupted`, the last perhaps of fewer ratios.

    Ctrl-C ends the search early and returns the masks there are (of fewer ratios, of fewer clips, if it came
    before their turn), marked `interrupted`.
    """
    clips, single = as_clips(clip)
    ratios = check_ratios(ratios)
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch must be at least 1, got {max_batch}")
    config, device = _settings(network, clips[0], device, method, preset, overrides)
    if isinstance(config, StepConfig):
        _largest_ratio(config, clips[0].pixels.shape[1:], ratios)
    found: list[list[dict]] = [[] for _ in clips]
    run: Any = None

    def results() -> list[Explanation]:
        """Of what was found so far: in the order of clips, each perhaps with fewer ratios."""
        groups = [(i, group) for i, group in enumerate(found) if group]
        return [_explanation(run, i, ratios, group, method, preset) for i, group in groups]

    try:
        with untouched(network, device), torch.inference_mode(False), torch.enable_grad():
            run = _Run(network, clips, target, config, device, progress, callback, seed)
            size = 1 if until_enough else max_batch or (1 if device.type == "cpu" else 8)
            if isinstance(config, AttributionConfig):
                run.bar.reset(total=len(clips))
                for i in range(len(clips)):
                    found[i] = run.attribute(i, method, ratios, size)
            work = [(c, v) for c in range(len(clips)) for v in ratios if not found[c]]
            for i in range(0, len(work), size):
                some = work[i : i + size]
                if run.interrupted:
                    break
                if until_enough and found[some[0][0]] and results()[-1].enough[-1]:
                    continue
                for (c, _), one in zip(some, run.optimise(some), strict=True):
                    found[c].append(one)
            run.bar.close()
    except Exception as error:
        if run is not None:
            run.interrupted = True
        with suppress(AttributeError):  # some exceptions take none
            error.results = results()  # type: ignore[attr-defined]
        raise
    return results()[0] if single else results()


def _explanation(run: "_Run", i: int, ratios, mine: list[dict], method: str, preset: str) -> Explanation:
    """What was found for clip i, a dict for each ratio or for the first few of them."""
    masks, clip = torch.stack([f["masks"] for f in mine]), run.clips[i]
    return Explanation(
        masks=masks,
        heatmap=mine[0]["heatmap"] if "heatmap" in mine[0] else heat_map(masks, run.config.heat_sigma),
        probability=torch.stack([f["probability"] for f in mine]),
        history=_side_by_side([f["history"] for f in mine]),
        ratios=ratios[: len(mine)],
        target=run.targets[i],
        label=run.network.classes[run.targets[i]],
        original=run.originals[i],
        clip=clip,
        method=method,
        preset=preset,
        config=run.config,
        seed=run.seed,
        versions=versions(),
        fingerprints={"network": fingerprint(run.network), "clip": fingerprint(clip)},
        converged=tuple(f["converged"] for f in mine),
        interrupted=run.interrupted,
    )


def _settings(network, clip: Clip, device, method, preset, overrides) -> tuple[Any, torch.device]:
    """The constants, with the arithmetic that "auto" comes to, and the device."""
    config = make_config(method, preset, clip.pixels.shape[1:], overrides)
    if device is not None:
        try:
            device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: expected one that torch has here, got {device!r}: {error}") from error
    else:
        first = next(iter(network.module.parameters()), None) if network.module is not None else None
        device = first.device if first is not None else torch.device("cpu")
    if device.type == "meta":
        raise ValueError("device: expected one that computes, got meta, which holds shapes without values")
    if isinstance(config, StepConfig) and config.precision == "auto":
        used = "bfloat16" if _bfloat16_pays(network, device) else "float32"
        config = replace(config, precision=used)
    return config, device


class _Run:
    """Clips, targets and arithmetic shared by the masks of one call."""

    def __init__(self, network, clips, target, config, device, progress, callback, seed):
        self.network, self.config, self.callback, self.seed = network, config, callback, seed
        self.clips, self.where = clips, "for the clip itself"
        self.pixels = torch.stack([c.pixels for c in clips]).to(device)
        self.reduced = isinstance(config, StepConfig) and config.precision == "bfloat16"
        if self.reduced:
            _reduced_precision(network)
        with torch.no_grad():
            p = torch.cat([self.score(x[None].clone()).float().exp() for x in self.pixels])
        self.targets = as_targets(network, target, p)
        self.originals = [float(row[t]) for row, t in zip(p, self.targets, strict=True)]
        self.against, against = None, getattr(config, "against", None)
        if against is not None:
            self.against = network.index(against, "against")
            if self.against in self.targets:
                raise ValueError(f"against: expected a class that is not explained, got {against!r}")
        pyramid = config.perturbation == "pyramid"
        self.outside = network.zero_color(self.pixels) if pyramid else (0.0, 0.0, 0.0)
        self.interrupted = False
        self.progress, self.bar = progress, tqdm(disable=not progress, unit="it", leave=False)

    def score(self, pixels: Tensor) -> Tensor:
        """log Phi, (batch, classes). Raises ScoresError: bad scores, and where in the run."""
        with self._naming():
            return self.plain_score(pixels)

    def plain_score(self, pixels: Tensor) -> Tensor:
        """The same without the place, as a compiler can take it in."""
        if not self.reduced:
            return self.network.log_probabilities(pixels)
        pixels = pixels.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(pixels.device.type, torch.bfloat16):
            return self.network.log_probabilities(pixels)

    @contextmanager
    def _naming(self):
        """Within, what is said of bad scores ends in where they came up."""
        try:
            yield
        except ScoresError as error:
            where = f", {self.where}"
            raise error if str(error).endswith(where) else ScoresError(f"{error}{where}") from error.__cause__

    def attribute(self, clip: int, method: str, ratios: Sequence[float], size: int) -> list[dict]:
        """What a baseline finds in one clip, for each ratio in the form of `optimise`."""
        c, pixels, target = self.config, self.pixels[clip : clip + 1], self.targets[clip]
        self.bar.set_description(f"{method}, clip {clip + 1} of {len(self.pixels)}")
        self.where = f"for {method}, clip {clip + 1} of {len(self.pixels)}"
        with self._naming():
            heat = attribute(self.network, pixels, target, method, c, self.seed, size, self.progress)
        masks = hottest(heat, ratios, self.seed)
        preserve = Perturbation(pixels, c.perturbation, c.blur_sigma)
        with torch.no_grad():
            kept = [float(self.score(preserve(m[None].to(pixels)))[0, target].exp()) for m in masks]
        self.bar.update()
        facts = {"heatmap": heat, "history": [], "converged": True}
        pairs = zip(masks, kept, strict=True)
        return [{"masks": m, "probability": torch.tensor(p), **facts} for m, p in pairs]

    def optimise(self, work: list[tuple[int, float]], start: Tensor | None = None) -> list[dict]:
        """Masks of a group of (clip, ratio)."""
        c = self.config
        clips, ratios = [i for i, _ in work], [v for _, v in work]
        about = self.plain_score, self.pixels, self.targets, clips, ratios, c, start, self.seed
        descent = Descent(*about, self.outside, self.against)
        rows: list[dict[str, list]] = []

        def note(parts: dict[str, Tensor]) -> None:
            rows.append({k: v.cpu().tolist() for k, v in parts.items() if k not in ("masks", "seeds")})

        self.bar.reset(total=c.iterations)
        self.bar.set_description("ratio " + ", ".join(f"{v:g}" for v in dict.fromkeys(ratios)))
        which = ", ".join(f"{v:g}" for v in ratios)
        with self._naming():
            while descent.iteration < c.iterations and not self.interrupted:
                try:
                    self.where = f"in iteration {descent.iteration + 1} of {c.iterations}, ratio {which}"
                    parts = descent.step()
                    note(parts)
                    self.bar.update()
                    if self.callback is not None and descent.iteration % c.callback_every == 0:
                        self._ask(descent, parts)
                except KeyboardInterrupt:
                    self.interrupted = True
            final = descent.finish(self.interrupted)
        note(final)
        found = []
        for j, ratio in enumerate(ratios):
            history = [{k: v[j] for k, v in row.items()} for row in rows]
            found.append({k: final[k][j] for k in ("masks", "probability", "seeds")} | {"history": history})
            found[j]["converged"] = not self.interrupted and _converged(history, ratio)
        return found

    def _ask(self, descent: Descent, parts: dict[str, Tensor]) -> None:
        """Show the callback where a descent stands, and do what it answers."""
        assert self.callback is not None
        where = descent.iteration, self.config.iterations, list(descent.clips), list(descent.ratios)
        state = State(*where, parts["masks"], parts["probability"], parts["energy"], descent.terms)
        if changes := self.callback(state):
            descent.change(changes)


def _converged(history: list[dict], ratio: float) -> bool:
    """Whether a mask is as large as asked, and its probability stood still in the search's last eighth."""
    last = [row["probability"] for row in history[-max(3, len(history) // 8) :]]
    return 0.97 * ratio <= history[-1]["mean"] <= 1.005 * ratio and max(last) - min(last) <= 0.05


def _side_by_side(histories: list[list[dict[str, float]]]) -> dict[str, np.ndarray]:
    """The iterations of each mask as (masks, iterations) for each part; NaN where there is none."""
    longest = max(map(len, histories), default=0)
    rows = [[*history, *[{}] * (longest - len(history))] for history in histories]
    names = dict.fromkeys(name for history in rows for row in history[::-1] for name in row)
    return {n: np.array([[row.get(n, np.nan) for row in h] for h in rows], np.float32) for n in names}


def as_clips(clip: Any) -> tuple[list[Clip], bool]:
    """Whatever was given as checked clips of one size, and whether it was a single one."""
    single = isinstance(clip, Clip) or (isinstance(clip, Tensor) and clip.ndim == 4)
    if isinstance(clip, Tensor) and clip.ndim not in (4, 5) or not isinstance(clip, Clip | Iterable):
        _from_tensor(clip)  # says what is wrong with it
    given: list[Any] = [clip] if single else [*clip]  # type: ignore[misc]
    if not given:
        raise ValueError("clip must be at least one clip, got an empty list")
    clips = [c if isinstance(c, Clip) else _from_tensor(c) for c in given]
    shapes = {tuple(c.pixels.shape) for c in clips}
    if len(shapes) > 1:
        raise ValueError(f"clips of one call must have one shape, got {sorted(shapes)}")
    return clips, single


def _from_tensor(pixels) -> Clip:
    if not isinstance(pixels, Tensor) or pixels.ndim != 4:
        shape = tuple(pixels.shape) if hasattr(pixels, "shape") else type(pixels).__name__
        raise ValueError(f"clip must be a Clip or a tensor (3, T, H, W), got {shape}")
    if pixels.shape[0] != 3:
        hint = "; it looks like (T, 3, H, W): use .transpose(0, 1)" if pixels.shape[1] == 3 else ""
        raise ValueError(f"clip must be (3, T, H, W), got {tuple(pixels.shape)}{hint}")
    if pixels.shape[1] == 3:
        raise ValueError(
            f"clip of shape {tuple(pixels.shape)} could be 3 colours x 3 frames or 3 frames x 3 colours; "
            "give a Clip if it is (3, T, H, W)"
        )
    if not pixels.is_floating_point() or not pixels.numel():
        raise ValueError(
            "clip must hold floats in [0, 1], divide bytes by 255; got "
            f"{tuple(pixels.shape)} of {pixels.dtype}"
        )
    if pixels.is_meta:
        raise ValueError("clip must hold finite numbers in [0, 1], got none: a tensor on device meta")
    pixels = pixels.detach().float().cpu()
    if not torch.isfinite(pixels).all():
        raise ValueError("clip must hold finite numbers in [0, 1], got NaN or infinite ones")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 1:
        raise ValueError(f"clip must hold values in [0, 1], got {low:.3g} to {high:.3g}")
    return Clip(pixels, torch.arange(pixels.shape[1], dtype=torch.float32), "tensor")


def check_ratios(ratios) -> tuple[float, ...]:
    """Preservation ratios as floats, in their order. Raises ValueError: none, not in (0, 1), or one twice."""
    try:
        values = tuple(float(v) for v in (ratios if isinstance(ratios, Iterable) else [ratios]))
    except (TypeError, ValueError):
        values = ()
    if not values or not all(0 < v < 1 for v in values) or len(set(values)) < len(values):
        raise ValueError(f"ratios must be different numbers between 0 and 1, got {ratios!r}")
    return values


def _largest_ratio(config: StepConfig, size: Sequence[int], ratios: Sequence[float] = ()) -> float:
    """The largest mean of a mask in frames of such a size; 1 if it is nearly that.

    In frames well below 112 px discs are small beside the step from seed to seed, and leave gaps.

    Raises:
        ValueError: no room for a window of L_K, or one of `ratios` is out of reach; names a step that fits.
    """
    generator = MaskGenerator((1, size[1], size[2]), config.step, config.sigma, config.boundary)
    whole = generator.whole(torch.ones(1, *generator.seed_shape))
    room, kernel = (size[0], *whole.shape[2:]), config.core_kernel
    needed = (kernel[0] if config.core_padding == "none" else 1, *kernel[1:])
    if config.core_weight and any(n < k for n, k in zip(room, needed, strict=True)):
        raise ValueError(
            f"clip: got T, H, W = {tuple(size)}, expected at least {needed}, the windows of L_K "
            "(core_kernel); ep3d has none"
        )
    reach = float(generator.crop(whole).mean())
    if beyond := [v for v in ratios if v > 1.05 * reach]:
        raise ValueError(
            f"ratios: got {beyond[0]:g}, expected at most {reach:.2g}: no mask is larger in frames of "
            f"{size[1]} x {size[2]} px, with seeds {config.step} px apart and discs of {generator.sigma:.3g} "
            f"px; step={max(1, round(0.6 * generator.sigma))} fits, or larger frames"
        )
    return reach if 1.05 * reach < 1 else 1.0


def as_targets(network: Network, target, probabilities: Tensor) -> list[int]:
    """The class of each clip as a number; `target` as for `explain`. Raises ValueError: no such class."""
    count = len(probabilities)
    if target is None:
        return probabilities.argmax(dim=1).tolist()
    several = isinstance(target, Iterable) and not isinstance(target, str) and getattr(target, "ndim", 1)
    targets: list = [*target] if several else [target] * count
    if len(targets) != count:
        raise ValueError(f"target must be one class or one for each of {count} clips, got {len(targets)}")
    return [network.index(t) for t in targets]


def _reduced_precision(network: Network) -> None:
    """Convolution weights in bfloat16 and channels-last; `untouched` puts the originals back."""
    for m in network.module.modules() if network.module is not None else ():
        if isinstance(m, torch.nn.Conv3d):
            m.weight.data = m.weight.data.to(torch.bfloat16, memory_format=torch.channels_last_3d)


def _bfloat16_pays(network: Network, device: torch.device) -> bool:
    """Whether the processor multiplies in bfloat16 and the network is large enough to gain by it.

    Decided by size, not by a stopwatch, so that the same call computes the same thing.
    """
    if network.module is None or sum(p.numel() for p in network.module.parameters()) < 1e7:
        return False
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return device.type == "cpu" and (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


@dataclass(frozen=True, eq=False)
class SmallestRatio:
    """The smallest ratio whose mask keeps the class (eq. 3).

    Attributes:
        ratio: a*, between 0 and 1, to within `tolerance`; 1.0 if no smaller one that can be drawn kept it.
        threshold: the probability that had to be kept.
        probability: what the mask of `ratio` keeps.
        mask: (T, H, W), that mask.
        tried: (ratio, probability) of each step, in order.
        interrupted: True if the keyboard stopped the search.
    """

    ratio: float
    threshold: float
    probability: float
    mask: Float[Tensor, "time height width"]
    tried: tuple[tuple[float, float], ...]
    interrupted: bool = False


def smallest_ratio(
    network: Network,
    clip: Clip | Tensor,
    target: str | SupportsIndex | None = None,
    method: str = "step",
    preset: str = "lesson",
    threshold: float | None = None,
    tolerance: float = 0.005,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = True,
    **overrides,
) -> SmallestRatio:
    """a* = min{v : Phi_c(M_v (x) X) >= threshold} by bisection, starting from the last mask that held.

    Of `variant="delete"`: the smallest ratio without which Phi_c <= threshold. Of "dual": the smallest that
    keeps the threshold, and without which half of the clip's own probability is gone.

    Args:
        threshold: probability to keep; default Phi_c(X), that of the whole clip; of "delete", half of it.
        tolerance: half the width of the interval that is left; the true a* is within this of the result.
        others: as in :func:`explain`.

    Raises:
        ValueError: as :func:`explain`, or if `threshold` or `tolerance` lies outside (0, 1].
    """
    clips, _ = as_clips(clip)
    for name, value in (("threshold", threshold), ("tolerance", tolerance)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {value}")
    if method in BASELINES:
        raise ValueError(f"method: {method!r} finds no masks, expected one of {', '.join(METHODS)}")
    config, device = _settings(network, clips[0], device, method, preset, overrides)
    largest = _largest_ratio(config, clips[0].pixels.shape[1:])
    with untouched(network, device), torch.inference_mode(False), torch.enable_grad():
        run = _Run(network, clips[:1], target, config, device, progress, None, seed)
        original, deletes = run.originals[0], config.variant == "delete"
        goal = threshold or (original / 2 if deletes else original)
        low, high, start, tried = 0.0, 1.0, None, []
        show = Perturbation(run.pixels[:1], config.perturbation, config.blur_sigma, run.outside)
        best = {"masks": torch.ones(clips[0].pixels.shape[1:]), "probability": torch.tensor(original)}

        def without(mask: Tensor) -> Tensor:
            with torch.no_grad():
                return run.score(show(1 - mask[None].to(run.pixels)))[0, run.targets[0]].exp().cpu()

        if deletes:
            best["probability"] = without(best["masks"])
        while min(high, largest) - low > 2 * tolerance and not run.interrupted:
            middle = (low + high) / 2
            if middle > largest:  # in small frames discs leave gaps: no mask has so large a mean
                middle = (low + largest) / 2
            found = run.optimise([(0, middle)], start)[0]
            tried.append((middle, float(found["probability"])))
            held = found["probability"] <= goal if deletes else found["probability"] >= goal
            if held and config.variant == "dual":
                held = without(found["masks"]) <= original / 2
            if held:
                high, best, start = middle, found, found["seeds"][None]
            else:
                low = middle
        run.bar.close()
    # `high` was shown to do; the true a* lies in (low, high]
    found = float(best["probability"])
    return SmallestRatio(high, goal, found, best["masks"], tuple(tried), run.interrupted)
