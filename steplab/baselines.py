"""Other ways to attribute a network's answer to a clip, and controls that know nothing of the network.

>>> result = explain(network, clip, method="grad-cam")
>>> result.heatmap.shape, result.masks.shape        # (T, H, W); (ratios, T, H, W), the hottest of all voxels

What is attributed is the score of the class: its logit, or for networks that return probabilities the log
of its probability. A heat map is not negative. Methods whose parts add up to the score (integrated-gradients,
deep-lift, occlusion, lime) show the positive ones of the sum over colours. Those which only tell how
sensitive the score is (smooth-grad, guided-backprop, deconvolution) have signs that mean little: the sum over
colours of absolute values is shown.

Feature maps (grad-cam, saliency-tubes, excitation-backprop, eb-r) are stretched over the whole clip. A
network whose preprocessing crops sees less than that: give it clips of its own size.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .config import AttributionConfig
from .excitation import excitation, recurrent_excitation
from .layers import Tap, plain_activations, tap, target_layer
from .networks import CUT_OFF, Network, ScoresError
from .perturb import Perturbation, blur, hottest_first
from .vgg_lstm import VGGLSTM


def attribute(
    network: Network,
    pixels: Float[Tensor, "1 3 time height width"],
    target: int,
    method: str,
    config: AttributionConfig,
    seed: int = 0,
    batch: int = 1,
    progress: bool = False,
) -> Float[Tensor, "time height width"]:
    """The heat map of one clip, not negative; to be called within :func:`steplab.engine.untouched`.

    Args:
        target: number of the class.
        method: one of `BASELINES`.
        seed: of what is random. It is the same for each clip of a call, so that a batch changes nothing.
        batch: clips that go through the network at once, at most.

    Raises:
        ValueError: the method does not fit the network (says which do), or the map is not finite.
    """
    task = _Task(network, pixels, target, config, seed, batch, progress)
    # Hooks do not reach into compiled code. Where nothing was compiled, the compiler is not even loaded.
    compiled = "torch._dynamo" in sys.modules
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with plain_activations(network.module), eager, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="captum")  # of hooks that it sets, and takes away again
        torch.manual_seed(seed)
        try:
            heat = _MAPS[method](task).detach().float().cpu()
        except RuntimeError as error:  # a graph of the network's own weights, without the pixels
            if "not have been used in the graph" in str(error):
                raise ScoresError(CUT_OFF) from error
            raise
    if not torch.isfinite(heat).all():
        raise ValueError(f"method: {method} gave values that are not finite numbers")
    return blur(heat.clamp(min=0), config.heat_sigma * min(heat.shape[1:]))


def hottest(
    heat: Float[Tensor, "time height width"], ratios: Sequence[float], seed: int = 0
) -> Float[Tensor, "ratios time height width"]:
    """Binary masks of the hottest voxels, one for each ratio; `seed` decides which of equals come first."""
    rank = hottest_first(heat, seed)
    return torch.stack([(rank < max(1, round(ratio * heat.numel()))).float() for ratio in ratios])


@dataclass(frozen=True)
class _Task:
    """One clip, as the methods below are given it."""

    network: Network
    pixels: Tensor
    target: int
    config: AttributionConfig
    seed: int
    batch: int
    progress: bool

    @property
    def size(self) -> tuple[int, int, int]:
        time, height, width = self.pixels.shape[2:]
        return time, height, width

    @property
    def block(self) -> list[int]:
        """Frames and pixels of one block."""
        return [-(-n // min(k, n)) for n, k in zip(self.size, self.config.blocks, strict=True)]

    def scores(self, pixels: Tensor) -> Tensor:
        """(batch, classes): logits or log-probabilities. The network is given a copy: it may spoil it."""
        out = self.network(pixels.clone())
        return out if self.network.output == "logits" else out.clamp_min(1e-12).log()

    def absent(self) -> Tensor:
        """The clip with all replaced, the baseline of those methods that need one."""
        return self.perturbation()(torch.zeros_like(self.pixels[:, 0]))

    def perturbation(self) -> Perturbation:
        return Perturbation(self.pixels, self.config.perturbation, self.config.blur_sigma)

    def differentiable(self) -> Tensor:
        """The clip, asking for a gradient. Refuses a network that gives none before hooks trip over it."""
        pixels = self.pixels.clone().requires_grad_()
        self.scores(pixels)
        return pixels

    def refuse_scripted(self) -> None:
        """For methods that hook into layers. Raises ValueError: in scripted ones nobody hears a hook."""
        module = self.network.module
        if module is not None and any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
            raise ValueError(
                f"network: {self.network.name} holds a scripted module, whose layers cannot be read; give "
                "the module it was made from, or use integrated-gradients, occlusion, rise, lime or step"
            )

    def tap(self):
        self.refuse_scripted()
        return tap(self.network, target_layer(self.network, self.config.target_layer))

    def maps(self, seen: Tap, values: Tensor) -> Tensor:
        return seen.maps(values, len(self.pixels), self.size[0])

    def module(self) -> "_Scores":
        return _Scores(self)


class _Scores(nn.Module):
    """Pixels to scores as a module, which captum asks for."""

    def __init__(self, task: _Task):
        super().__init__()
        self.inner = task.network.module  # where captum looks for layers
        self.score = task.scores

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(pixels)


def _linear_upsampling(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(1, t, h, w) to (T, H, W)."""
    return F.interpolate(maps[:, None], tuple(size), mode="trilinear")[0, 0]


def _cubic_upsampling(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(1, t, h, w) to (T, H, W), over space and then over time."""
    time, height, width = size
    frames = F.interpolate(maps, (height, width), mode="bicubic")
    rows = F.interpolate(frames.flatten(2)[:, None], (time, height * width), mode="bicubic")
    return rows.view(time, height, width)


def _grad_cam(task: _Task) -> Tensor:
    """relu(sum_i w_i A_i), w_i the mean over T, H, W (or, frame by frame, over H, W) of d score / d A_i."""
    with task.tap() as seen:
        score = task.scores(task.pixels)[0, task.target]
    gradient, maps = task.maps(seen, seen.gradient(score)), task.maps(seen, seen.raw.detach())
    axes = (2, 3, 4) if task.config.cam_weights == "clip" else (3, 4)
    cam = (gradient.mean(axes, keepdim=True) * maps).sum(1).relu()
    return _linear_upsampling(cam, task.size)


def _saliency_tubes(task: _Task) -> Tensor:
    """sum_i W_fc[c, i] A_i (Stergiou et al. 2019), without bias or ReLU, scaled to 0..1."""
    with task.tap() as seen, torch.no_grad():
        logits = task.network(task.pixels.clone())
    maps = task.maps(seen, seen.raw.detach())
    shape = (logits.shape[1], maps.shape[1])
    pooled = maps.mean((2, 3, 4))
    for head in reversed(list(task.network.module.modules())):  # type: ignore[union-attr]
        if isinstance(head, nn.Linear | nn.Conv3d) and tuple(head.weight.flatten(1).shape) == shape:
            weight = head.weight.detach().flatten(1)
            expected = F.linear(pooled, weight, None if head.bias is None else head.bias.detach())
            if torch.allclose(expected, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
                tubes = torch.einsum("c,bcthw->bthw", weight[task.target], maps)
                tubes = _cubic_upsampling(tubes, task.size)
                return (tubes - tubes.min()) / (tubes.max() - tubes.min()).clamp(min=1e-30)
    raise ValueError(
        f"method: saliency-tubes needs one linear layer on the average of the last map, and in "
        f"{task.network.name} none follows on the average of {seen.name!r}; grad-cam fits"
    )


def _recurrent(module: nn.Module | None) -> bool:
    kinds = nn.RNNBase | nn.RNNCellBase | VGGLSTM
    return module is not None and any(isinstance(m, kinds) for m in module.modules())


def _excitation_backprop(task: _Task) -> Tensor:
    if _recurrent(task.network.module):
        fits = "eb-r" if isinstance(task.network.module, VGGLSTM) else "grad-cam"
        raise ValueError(f"method: excitation-backprop is not for recurrent networks; {fits} fits")
    if task.network.output != "logits":
        raise ValueError("method: excitation-backprop starts at logits, the network gives probabilities")
    with task.tap() as seen:
        p = excitation(lambda: task.network(task.pixels.clone()), task.target, seen)
    return _linear_upsampling(task.maps(seen, p).sum(1), task.size)


def _eb_r(task: _Task) -> Tensor:
    network = task.network
    if not isinstance(network.module, VGGLSTM):
        raise ValueError(
            f"method: eb-r is for the VGG-LSTM family, {network.name} is none; excitation-backprop fits a CNN"
        )
    x = task.pixels.clone() if network.preprocess is None else network.preprocess(task.pixels)
    with task.tap() as seen:
        p = recurrent_excitation(network.module, x, task.target, seen)
    return _linear_upsampling(task.maps(seen, p).sum(1), task.size)


def _rise(task: _Task) -> Tensor:
    """Mean of random masks, weighted with what they keep of the class (Petsiuk et al. 2018), for clips.

    Each voxel is divided by how often it was kept, so that where the masks make no difference nothing shows.
    """
    config, numbers = task.config, torch.Generator().manual_seed(task.seed)
    perturbation, total = task.perturbation(), torch.zeros(2, *task.size, dtype=torch.float64)
    cells = [-(-n // b) + 1 for n, b in zip(task.size, task.block, strict=True)]
    grids = (torch.rand(config.rise_masks, *cells, generator=numbers) < config.rise_keep).float()
    shifts = [torch.randint(b, (config.rise_masks,), generator=numbers).tolist() for b in task.block]
    starts = list(zip(*shifts, strict=True))
    fine = [n * b for n, b in zip(cells, task.block, strict=True)]
    for i in tqdm(range(0, config.rise_masks, task.batch), "masks", disable=not task.progress, leave=False):
        whole = F.interpolate(grids[i : i + task.batch, None], fine, mode="trilinear")[:, 0]
        crops = [
            one[tuple(slice(s, s + n) for s, n in zip(start, task.size, strict=True))]
            for one, start in zip(whole, starts[i : i + task.batch], strict=True)
        ]
        masks = torch.stack(crops).to(task.pixels)
        with torch.no_grad():
            clips = perturbation(masks, torch.zeros(len(masks), dtype=torch.long, device=masks.device))
            weight = task.network.probabilities(clips)[:, task.target]
        both = torch.stack([weight, torch.ones_like(weight)])
        total += torch.einsum("kb,bthw->kthw", both.double(), masks.double()).cpu()
    return total[0] / total[1].clamp(min=1e-12)


def _random(task: _Task) -> Tensor:
    """The hottest voxel lies anywhere with the same probability."""
    return torch.rand(task.size, generator=torch.Generator().manual_seed(task.seed))


def _middle(task: _Task) -> Tensor:
    """A bump round the middle pixel of the middle frame."""
    heat = torch.ones(())
    for n in task.size:
        away = (torch.arange(n, dtype=torch.float32) - n // 2) / (task.config.middle_sigma * n)
        heat = heat[..., None] * torch.exp(-(away**2) / 2)
    return heat


def _motion(task: _Task) -> Tensor:
    """Absolute differences to the frames before and after, mean of those there are, blurred in space."""
    x = task.pixels[0]
    moved = (x[:, 1:] - x[:, :-1]).abs().sum(0)
    heat = torch.zeros_like(x[0])
    heat[1:] += moved
    heat[:-1] += moved
    heat[1:-1] /= 2
    return blur(heat, task.config.motion_sigma * min(task.size[1:]))


def _positive(parts: Any) -> Tensor:
    return parts[0].sum(0).clamp(min=0)


def _shared(parts: Any) -> Tensor:
    """As `_positive` where each of the three colours is given what they are worth together."""
    return _positive(parts) / parts.shape[1]


def _magnitude(parts: Any) -> Tensor:
    return parts[0].abs().sum(0)


def _integrated_gradients(task: _Task) -> Tensor:
    from captum.attr import IntegratedGradients

    return _positive(
        IntegratedGradients(task.module()).attribute(
            task.pixels,
            task.absent(),
            task.target,
            n_steps=task.config.path_steps,
            internal_batch_size=task.batch,
        )
    )


def _smooth_grad(task: _Task) -> Tensor:
    from captum.attr import NoiseTunnel, Saliency

    x = task.pixels
    return _magnitude(
        NoiseTunnel(Saliency(task.module())).attribute(
            x,
            nt_type="smoothgrad",
            nt_samples=task.config.noise_samples,
            nt_samples_batch_size=task.batch,
            stdevs=task.config.noise * float(x.max() - x.min()),
            target=task.target,
            abs=False,
        )
    )


def _modified_relu(name: str) -> Callable[[_Task], Tensor]:
    """Methods that replace the gradient of each `nn.ReLU`; others are beyond captum's reach.

    The two ReLUs inside the LSTM of the VGG-LSTM family keep their ordinary gradient.
    """

    def found(task: _Task) -> Tensor:
        import captum.attr

        task.refuse_scripted()
        modules = [] if task.network.module is None else list(task.network.module.modules())
        if not any(isinstance(m, nn.ReLU) for m in modules):
            raise ValueError(
                f"method: {name} changes the gradient of nn.ReLU modules, and {task.network.name} has none: "
                "it would be the plain gradient; integrated-gradients and smooth-grad fit"
            )
        explainer = getattr(captum.attr, name)(task.module())
        return _magnitude(explainer.attribute(task.differentiable(), task.target))

    return found


def _deep_lift(task: _Task) -> Tensor:
    """Contributions, by the rescale rule, to the score's difference from that of the absent clip."""
    from captum.attr import DeepLift

    module, fits = task.network.module, "integrated-gradients and occlusion fit"
    task.refuse_scripted()
    if module is None or _recurrent(module):
        raise ValueError(
            f"method: deep-lift needs modules, none of them recurrent; not so {task.network.name}; {fits}"
        )
    absent, pixels = task.absent(), task.differentiable()
    parts = DeepLift(task.module()).attribute(pixels, absent, task.target).detach()
    with torch.no_grad():
        scores = torch.cat([task.scores(x) for x in (task.pixels, absent)])[:, task.target]
    gained, rounding = float(scores[0] - scores[1]), 1e-6 * float(scores.abs().max())
    if abs(float(parts.sum()) - gained) > 0.05 * max(1.0, abs(gained)) + rounding:
        raise ValueError(
            f"method: deep-lift's parts add up to {float(parts.sum()):.3g}, expected {gained:.3g}, the score "
            f"less that of the absent clip: {task.network.name} uses a module twice, or something for which "
            f"captum has no rule; {fits}"
        )
    return _positive(parts)


def _occlusion(task: _Task) -> Tensor:
    """What the score loses when a window is replaced, averaged over the windows that hold a voxel."""
    from captum.attr import Occlusion

    steps = task.config.occlusion_steps
    return _shared(
        Occlusion(task.module()).attribute(
            task.pixels,
            (3, *task.block),
            (3, *(max(1, b // steps) for b in task.block)),
            task.absent(),
            task.target,
            perturbations_per_eval=task.batch,
            show_progress=task.progress,
        )
    )


def _lime(task: _Task) -> Tensor:
    """Weights of a linear model of the score, in which blocks are kept; the fit is weighted as LIME does."""
    from captum._utils.models.model import Model
    from captum.attr import Lime

    penalty = task.config.lime_ridge

    class Ridge(Model):
        """Least squares with a penalty on all but the constant; captum's own needs scikit-learn."""

        def fit(self, train_data, **_):
            x, y, w = (torch.cat(column).double() for column in zip(*train_data, strict=True))
            w = w.reshape(-1, 1)
            x, y = x.flatten(1), y.reshape(-1, 1)
            x, y = x - (w * x).sum(0) / w.sum(), y - (w * y).sum(0) / w.sum()
            square = x.T @ (w * x) + penalty * torch.eye(x.shape[1]).to(x)
            self.weights = torch.linalg.solve(square, x.T @ (w * y))[:, 0].float()

        def representation(self):
            return self.weights

        def __call__(self, x):
            return x @ self.weights

    index = [torch.arange(n) // b for n, b in zip(task.size, task.block, strict=True)]
    counts = [int(i[-1]) + 1 for i in index]
    t, h, w = torch.meshgrid(*index, indexing="ij")
    blocks = ((t * counts[1] + h) * counts[2] + w).to(task.pixels.device)
    return _shared(
        Lime(task.module(), interpretable_model=Ridge()).attribute(
            task.pixels,
            task.absent(),
            task.target,
            feature_mask=blocks[None, None].expand_as(task.pixels),
            n_samples=task.config.lime_samples,
            perturbations_per_eval=task.batch,
            show_progress=task.progress,
        )
    )


_MAPS: dict[str, Callable[[_Task], Tensor]] = {
    "grad-cam": _grad_cam,
    "saliency-tubes": _saliency_tubes,
    "excitation-backprop": _excitation_backprop,
    "eb-r": _eb_r,
    "rise": _rise,
    "integrated-gradients": _integrated_gradients,
    "smooth-grad": _smooth_grad,
    "guided-backprop": _modified_relu("GuidedBackprop"),
    "deconvolution": _modified_relu("Deconvolution"),
    "deep-lift": _deep_lift,
    "occlusion": _occlusion,
    "lime": _lime,
    "random": _random,
    "middle": _middle,
    "motion": _motion,
}
