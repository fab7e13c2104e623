"""Does the explanation follow the network? Measures that ask the network, where `metrics` asks the truth.

>>> insertion(network, clip.pixels, heatmap, "juggling").area  # high, if what is hot matters
>>> deletion(network, clip.pixels, heatmap, "juggling").area  # low; always both, beside a random map's
>>> sensitivity(network, clip.pixels, explainer)  # falls to 0, if the map shows what was learnt
>>> null_bias(explainer, (16, 112, 112))  # where it looks when there is nothing to see

An explainer is any function (network, pixels) -> heat map (T, H, W), such as

>>> explainer = lambda network, pixels: explain(network, pixels, 0, "grad-cam", progress=False).heatmap
"""

import copy
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .engine import untouched
from .metrics import border_bias, frame_shares, null_network
from .networks import Network
from .perturb import Perturbation, hottest_first

Explainer = Callable[[Network, Tensor], Tensor]


class Curve(NamedTuple):
    """Probability of a class while a clip comes or goes: `ratios` of its voxels, `probability` at each."""

    ratios: Float[Tensor, "points"]
    probability: Float[Tensor, "points"]

    @property
    def area(self) -> float:
        """Area under the curve by trapezia, 0 to 1."""
        return float(torch.trapezoid(self.probability, self.ratios))


def insertion(
    network: Network,
    pixels: Float[Tensor, "3 time height width"],
    heatmap: Float[Tensor, "time height width"],
    target: int | str,
    *,
    steps: int = 20,
    kind: str = "blur",
    sigma: float | None = None,
    seed: int = 0,
    batch: int = 8,
) -> Curve:
    """Probability of `target` as the hottest voxels are put back first into the perturbed clip.

    At ratio r the clip is M (x) X with M = 1 on the r T H W hottest voxels. `area`: 0 to 1, more is better;
    read it only beside `deletion` and a random map's. Petsiuk, Das, Saenko 2018, "RISE".

    Args:
        heatmap: any finite numbers; only their order counts, and ties are broken at random under `seed`.
        target: class, by number or name.
        steps: equal shares in which voxels come; the curve has one point more.
        kind, sigma: of the perturbation, see `Perturbation`.
        batch: clips at once in memory.

    Raises:
        ValueError: no such class, a map of another shape than the clip or with NaN, no step, an unknown kind.
    """
    target = network.index(target)
    if heatmap.shape != pixels.shape[1:]:
        expected = f"{tuple(pixels.shape[1:])} as the clip"
        raise ValueError(f"heatmap: got shape {tuple(heatmap.shape)}, expected {expected}")
    if min(steps, batch) < 1:
        raise ValueError(f"steps, batch: got {steps}, {batch}, expected at least 1 of each")
    pixels = pixels.to(_device(network, pixels))
    rank = hottest_first(heatmap, seed).to(pixels.device)
    counts = torch.linspace(0, rank.numel(), steps + 1, dtype=torch.float64).round().to(rank)
    perturbation = Perturbation(pixels[None], kind, sigma)
    found = []
    with untouched(network), torch.no_grad():
        for some in counts.split(batch):
            masks = (rank < some[:, None, None, None]).to(pixels)
            clips = perturbation(masks, torch.zeros_like(some))
            found.append(network.probabilities(clips)[:, target].double().cpu())
    return Curve(counts.cpu().double() / rank.numel(), torch.cat(found))


def deletion(
    network: Network,
    pixels: Float[Tensor, "3 time height width"],
    heatmap: Float[Tensor, "time height width"],
    target: int | str,
    **settings,
) -> Curve:
    """Probability of `target` as the hottest voxels of the clip are perturbed first.

    At ratio r the clip is M (x) X with M = 0 on the r T H W hottest voxels. `area`: 0 to 1, less is better;
    but noise does well in it too. Arguments, settings, errors, source: as `insertion`, read only beside it.
    """
    coming = insertion(network, pixels, -heatmap, target, **settings)  # the same, told from its end
    return Curve(1 - coming.ratios.flip(0), coming.probability.flip(0))


def _device(network: Network, pixels: Tensor) -> torch.device:
    first = next(network.module.parameters(), None) if network.module is not None else None
    return pixels.device if first is None else first.device


def standard_ranks(maps: Float[Tensor, "*batch time height width"]) -> Float[Tensor, "*batch time pixels"]:
    """Ranks in each frame (of equals the mean), so that two rows' product is Spearman's; NaN if constant."""
    rows = maps.detach().flatten(-2).contiguous()
    ordered = rows.sort(-1).values
    below = torch.searchsorted(ordered, rows)
    ranks = (below + torch.searchsorted(ordered, rows, right=True)).double()
    ranks -= ranks.mean(-1, keepdim=True)
    constant = ordered[..., :1] == ordered[..., -1:]
    return (ranks / ranks.norm(dim=-1, keepdim=True)).masked_fill(constant, float("nan"))


def similarity(a: Float[Tensor, "time height width"], b: Float[Tensor, "time height width"]) -> float:
    """Spearman's rank correlation of two heat maps, frame by frame, averaged; -1 to 1, 1: the same order.

    Frames in which either map is constant are left out; NaN if that leaves none. Errors: as `stability`.
    """
    return stability([a, b])


def stability(
    heatmaps: Sequence[Float[Tensor, "time height width"]] | Float[Tensor, "maps time height width"],
) -> float:
    """Mean `similarity` over all pairs of maps (of several seeds, say); -1 to 1, 1: always the same.

    Raises:
        ValueError: fewer than two maps, maps of different shapes, or NaN in one.
    """
    shapes = [tuple(each.shape) for each in heatmaps]
    if len(shapes) < 2 or len(set(shapes)) > 1:
        raise ValueError(f"heatmaps: got shapes {shapes}, expected two or more of one shape")
    maps = torch.stack([each.detach().cpu() for each in heatmaps])
    if not torch.isfinite(maps).all():
        raise ValueError("heatmaps: got NaN or infinite values, expected finite numbers")
    ranks = standard_ranks(maps).transpose(0, 1)  # (T, maps, pixels)
    pairs = (ranks @ ranks.mT).nanmean(0)
    one, other = torch.triu_indices(len(maps), len(maps), 1)
    return float(pairs[one, other].nanmean())


def randomised(
    network: Network, seed: int = 0, cascading: bool = True, stops: int | None = None
) -> Iterator[tuple[str, Network]]:
    """Copies of a network whose weights are drawn anew, from the top layer down: (layer's name, copy).

    Adebayo et al. 2018, "Sanity checks for saliency maps". A layer is a module that holds a matrix or kernel,
    with the normalisations that follow it. Its own `reset_parameters` draws; if it has none, a normal
    distribution with each parameter's mean and deviation. Top means registered last: usually what acts last.

    Args:
        seed: of the new weights; those of a layer do not depend on what else is drawn.
        cascading: each copy keeps the new weights of the layers above; False: one layer at a time.
        stops: most copies to make, spread evenly from the top layer to the lowest; None: one a layer.

    Raises:
        ValueError: the network wraps a plain callable, or a module without weights; fewer than one stop.
    """
    layers = _layers(network)
    count = len(layers) if stops is None else stops
    if count < 1:
        raise ValueError(f"stops: got {stops}, expected at least 1")
    at = {round(i) for i in np.linspace(len(layers) - 1, 0, min(count, len(layers)))}
    drawn: list[list[str]] = []
    for i, parts in enumerate(layers):
        drawn = [*drawn, parts] if cascading else [parts]
        if i in at:
            module = copy.deepcopy(network.fn)
            for names in drawn:
                _draw(module, names, seed)  # type: ignore[arg-type]
            other = copy.copy(network)
            other.fn = module
            other.name = f"{network.name}, {parts[0]} {'and above ' if cascading else ''}drawn anew ({seed})"
            yield parts[0], other


def _layers(network: Network) -> list[list[str]]:
    """Names of modules with weights of their own, each with the normalisations after it; last first."""
    layers: list[list[str]] = []
    for name, module in network.module.named_modules() if network.module is not None else ():
        own = list(module.parameters(recurse=False))
        if any(p.ndim > 1 for p in own) or (own and not layers):
            layers.append([name])
        elif own:
            layers[-1].append(name)
    if not layers:
        raise ValueError(f"network: {network.name} wraps no module with weights, expected one that does")
    return layers[::-1]


def _draw(module: nn.Module, names: Sequence[str], seed: int) -> None:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        for name in names:
            torch.manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            part = module.get_submodule(name)
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
                continue
            for p in part.parameters(recurse=False):
                p.copy_(torch.randn_like(p) * p.std(correction=0) + p.mean())


def sensitivity(
    network: Network,
    pixels: Float[Tensor, "3 time height width"],
    explainer: Explainer,
    **settings,
) -> dict[str, float]:
    """`similarity` of a clip's heat map to those that `randomised` copies of the network give; by layer.

    -1 to 1. A map that shows what the network has learnt falls to about 0 as the cascade goes down; one that
    stays near 1 shows the clip, or the explainer's habits. NaN: a copy's map was constant in every frame.

    `explainer` must choose the same target each time; settings and errors: as `randomised`.
    """

    def map_of(some: Network) -> Tensor:
        with untouched(some):
            return explainer(some, pixels)

    first = map_of(network)
    return {name: similarity(first, map_of(other)) for name, other in randomised(network, **settings)}


class NullBias(NamedTuple):
    """`border_bias` (0 is neutral) and `frame_shares` (1 is) of the masks, how often chance alone lies as far
    from neutral (`border_p`, `frames_p`), and the mean mask (T, H, W), flat if the explainer has no habits.
    """

    border: float
    border_p: float
    frames: Tensor
    frames_p: float
    mean: Tensor


def null_bias(
    explainer: Explainer,
    size: Sequence[int] = (16, 112, 112),
    seeds: Sequence[int] = range(16),
    ratio: float | None = 0.1,
    draws: int = 1000,
    networks: Callable[[int], Network] | None = None,
) -> NullBias:
    """Where an explainer looks when nothing means anything: on noise, asked of networks drawn at random.

    Neutral is flat but for chance. How much is chance? Each mask is moved round the torus at random, `draws`
    times: small p's are habits. Each network (`metrics.null_network`) is named `null <seed>`; an explainer
    that draws numbers should seed itself by that name: with one seed for all, chance would be one habit.

    Args:
        explainer: (network, pixels) -> heat map (T, H, W) of class 0; size: that (T, H, W).
        seeds: one network and one clip of noise for each.
        ratio: masks are the hottest voxels of each map, ties broken at random; None: the maps themselves, for
            explainers that return masks.
        networks: other networks that know nothing, by seed, such as `randomised` copies for an explainer that
            reads layers. What they prefer by their build is then told as well.

    Raises:
        ValueError: no seed; a map of another shape, with NaN, without heat or with negative heat.
    """
    if not len(seeds):
        raise ValueError("seeds: got none, expected at least one")
    masks = []
    for seed in seeds:
        pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(zlib.crc32(f"{seed}".encode())))
        network = null_network(size, seed) if networks is None else networks(seed)
        found = explainer(network, pixels).detach().cpu().float()
        if tuple(found.shape) != tuple(size):
            raise ValueError(f"explainer: got a map of shape {tuple(found.shape)}, expected {tuple(size)}")
        if ratio is not None:
            found = (hottest_first(found, seed) < round(ratio * found.numel())).float()
        if not (found.min() >= 0 and 0 < found.sum() < float("inf")):
            raise ValueError("explainer: got a map with NaN, negative or no heat, expected some heat")
        masks.append(found)
    masks = torch.stack(masks)
    in_space, in_time = chance_in_space(masks, draws), chance_in_time(masks, draws)
    return NullBias(border_bias(masks), in_space, frame_shares(masks), in_time, masks.mean(0))


def chance_in_time(masks: Float[Tensor, "batch time height width"], draws: int = 1000) -> float:
    """p of the largest deviation of a frame's share from 1, were each mask's place in time an accident."""
    rows = masks.double().sum((2, 3)).numpy()
    count, frames = rows.shape
    shifts = np.random.default_rng(0).integers(frames, size=(draws, count, 1))
    moved = rows[np.arange(count)[:, None], (np.arange(frames) + shifts) % frames].sum(1)  # (draws, T)
    neutral = rows.sum() / frames
    worst = np.abs(rows.sum(0) - neutral).max() - 1e-9 * neutral  # less what rounding does
    return float((np.abs(moved - neutral).max(1) >= worst).mean())


def chance_in_space(masks: Float[Tensor, "batch time height width"], draws: int = 1000) -> float:
    """p of the border bias, were each mask's place in the frame an accident."""
    height, width = masks.shape[-2:]
    b = round(11 * min(height, width) / 112)
    border = torch.ones(height, width, dtype=torch.float64)
    border[b : height - b, b : width - b] = 0
    spectrum = torch.fft.rfft2(masks.double().sum(1)) * torch.fft.rfft2(border).conj()
    held = torch.fft.irfft2(spectrum, s=(height, width)).flatten(1).numpy()  # in the border, for each shift
    places = np.random.default_rng(0).integers(held.shape[1], size=(draws, len(held)))
    shares = held[np.arange(len(held)), places].sum(1) / float(masks.double().sum()) - float(border.mean())
    return float((np.abs(shares) >= abs(border_bias(masks.double())) - 1e-9).mean())
