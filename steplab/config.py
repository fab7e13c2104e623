"""Every constant of the method and of the baselines, and the named sets of them: methods and presets."""

from collections.abc import Sequence
from dataclasses import dataclass

from .names import nearest, pick
from .perturb import KINDS

PAPER_SEEDS = 16 * 16 * 16


@dataclass(frozen=True)
class StepConfig:
    """Every constant of the method. `explain(..., method=, preset=, **overrides)` builds one.

    The energy that is minimised, for a mask M of N = T*H*W values drawn from seeds:

        area_weight * area_growth^i * ||vecsort(M) - r_v||^2 / N + core_weight * L_K - reward_weight * R

    R is Phi_c(M (x) X) for reward "probability" (the paper's equations), log Phi_c for "log" (the published
    demo's), and for "log-odds" those of `losses.log_odds`, divided by a running norm of their gradient.
    Sizes in pixels whose default is None grow with the frame.

    Optimiser "budget" minimises it under the constraint mean(M) = v (eq. 2) instead of paying for the area,
    see `Descent.spend`; while a mask keeps less than the first one did, all but the reward counts less.

    L_K to the letter sums over windows one frame apart, of which only v N / Z shall be full. But a full
    one's neighbours are full to four fifths and count among those to be emptied, so that a mask with all its
    windows full costs twice as much as none. Two means, as in the published demo, weigh the few against the
    many. And stride 11 does not fit the seeds' 7: some seeds lie in the middle of a window, others at its
    rim, always the same ones. So by default each seed has a window. LITERAL goes by the letter instead.
    """

    # what is asked of a mask
    per_frame: bool = False  # the ratio holds for every frame (EP-3D-Evenly, eq. 11)
    smooth_reach: int = 0  # seeds smoothed over time, dt frames (eq. 12)
    time_wrap: bool = True  # last frame beside the first in that and in the second difference
    core_weight: float = 0.0  # of L_K (eq. 7): STEP
    second_order_weight: float = 0.0  # of the mean squared second difference over time
    # the energy
    variant: str = "preserve"  # what is enough; "delete": without which it falls; "dual": both at once
    against: str | int | None = None  # a class: why the target and not this one
    reward: str = "log"  # "log-odds", "log" or "probability"
    reward_weight: float = 30.0  # the paper gives no weights; these were found on the stage
    reward_reach: tuple[float, float] = (0.0, 0.0)  # R's gradient is blurred: frames, share of min(H, W)
    area_weight: float = 300.0  # lambda
    area_growth: float = 1.0  # lambda grows by this factor each iteration
    core_start: int = 0  # iterations before L_K sets in
    core_kernel: tuple[int, int, int] = (7, 11, 11)
    core_stride: tuple[int, int, int] = (1, 11, 11)
    core_padding: str = "wrap"  # in time: "wrap", "replicate", or "none" (the paper's letter)
    core_layout: str = "seeds"  # a window round every seed of the torus, or "stride"
    core_balanced: bool = True  # mean over the k windows plus mean over the others; False: one sum (eq. 7)
    core_ideal: bool = False  # k from the volume of the ideal ellipsoid, 443 voxels for 311, as in the demo
    # masks
    step: int = 7  # pixels from seed to seed
    sigma: float | None = None  # of a seed's disc; None: 11 px at 112
    boundary: str = "wrap"  # see MaskGenerator
    perturbation: str = "blur"  # see Perturbation
    blur_sigma: float | None = None  # None: 20 px at 112
    # the descent
    start_noise: float = 0.01  # seeds start at 1 less so much at random: where nothing decides, the seed does
    iterations: int = 2000
    learning_rate: float = 0.05  # share of the way from 1 to 0 that the area moves a seed, at first
    cooling: float = 1.0  # share of the learning rate and of `reward_reach` left at the end, "budget" only
    scale_to_size: bool = True  # weights and learning_rate hold at 16 x 112 x 112; False: at any size
    optimiser: str = "momentum"  # "sgd": torch's, its first step undampened; "budget": see Descent.spend
    momentum: float = 0.9
    dampening: float = 0.9
    shrink: int = 0  # iterations in which the ratio falls from 1 to what was asked
    # running
    heat_sigma: float = 0.09  # blur of the masks that are summed to a heat map, share of min(H, W)
    compiled: bool = False  # by torch.compile, on a GPU as CUDA graphs; where that fails, as usual
    precision: str = "auto"  # "auto", "float32" or "bfloat16": of the network's own arithmetic
    callback_every: int = 5  # iterations


METHODS: dict[str, dict] = {
    "step": {"core_weight": 30.0},
    "step-padded": {"core_weight": 30.0, "core_padding": "replicate"},
    "ep3d": {},
    "ep3d-evenly": {"per_frame": True},
    "ep3d-gaussian-1": {"smooth_reach": 1},
    "ep3d-gaussian-2": {"smooth_reach": 2},
    "ep3d-gaussian-3": {"smooth_reach": 3},
    "ep3d-second-order": {"second_order_weight": 300.0},
}


@dataclass(frozen=True)
class AttributionConfig:
    """Constants of the baselines, each read by the methods named beside it.

    What is absent looks the same to all: a voxel that is not kept, occluded or not yet reached by the path of
    integrated gradients is replaced as `perturbation` says, by default by the blurred clip.
    """

    target_layer: str | None = None  # dotted name; None: the network's own (CAMs, excitation backprop)
    cam_weights: str = "clip"  # Grad-CAM: gradients averaged over the "clip", or over each "frame" by itself
    perturbation: str = "blur"  # see Perturbation
    blur_sigma: float | None = None  # None: 20 px at 112
    heat_sigma: float = 0.0  # blur of the finished map, share of min(H, W); 0: as the method gives it
    blocks: tuple[int, int, int] = (4, 7, 7)  # over time, height, width (occlusion, lime, rise)
    rise_masks: int = 1000
    rise_keep: float = 0.5  # probability that a block is kept
    occlusion_steps: int = 2  # steps in which the window, one block large, passes over its own length
    lime_samples: int = 600
    lime_ridge: float = 1.0  # penalty on the squared weights
    path_steps: int = 50  # integrated gradients
    noise_samples: int = 40  # smooth-grad
    noise: float = 0.15  # its standard deviation, share of the clip's range
    motion_sigma: float = 0.04  # blur of the differences, share of min(H, W)
    middle_sigma: float = 0.25  # of the bump, share of T, H and W


BASELINES = (
    "grad-cam",
    "saliency-tubes",
    "excitation-backprop",
    "eb-r",
    "rise",
    "integrated-gradients",
    "smooth-grad",
    "guided-backprop",
    "deconvolution",
    "deep-lift",
    "occlusion",
    "lime",
    "random",
    "middle",
    "motion",
)
_SMOKE = {
    "blocks": (2, 4, 4),
    "rise_masks": 24,
    "occlusion_steps": 1,
    "lime_samples": 48,
    "path_steps": 4,
    "noise_samples": 4,
}

LITERAL = {"core_layout": "stride", "core_padding": "none", "core_balanced": False, "time_wrap": False}

_LESSON = {
    "iterations": 44,
    "shrink": 20,
    "optimiser": "budget",
    "learning_rate": 0.2,
    "cooling": 0.15,
    "momentum": 0.5,
    "reward": "log-odds",
    "reward_weight": 100.0,
    "reward_reach": (2.0, 0.08),
    "area_weight": 50.0,  # the budget is met without it: it sharpens
}
PRESETS: dict[str, dict] = {
    "smoke": {**_LESSON, "iterations": 12, "shrink": 6},
    "lesson": _LESSON,
    # The published demo's step is .0073 of the way at 16 x 112 x 112. Much larger ones overshoot: with
    # momentum .9 seeds go on falling for ten iterations, and dead ones hardly come back.
    "paper": {
        "iterations": 2000,
        "learning_rate": 0.01,
        "reward": "probability",
        "area_growth": 1.0008668,
    },
    "released": {
        "iterations": 2000,
        "boundary": "padded",
        "perturbation": "pyramid",
        "learning_rate": 0.05,
        "scale_to_size": False,
        "core_ideal": True,
        "core_padding": "none",
        "time_wrap": False,
        "core_layout": "stride",
        "core_start": 101,
        "start_noise": 0.0,
        "optimiser": "sgd",
    },
}


def config_class(method: str) -> type[StepConfig] | type[AttributionConfig]:
    """The kind of constants that a method has."""
    return AttributionConfig if method in BASELINES else StepConfig


def make_config(
    method: str, preset: str, size: Sequence[int], overrides: dict
) -> StepConfig | AttributionConfig:
    """The constants of a method under a preset for clips of `size` (T, H, W); `overrides` win.

    A baseline has two presets: "smoke" takes few samples, all others take the full number.

    Raises:
        ValueError: unknown method, preset or constant; names those that look alike.
    """
    pick("method", method, (*METHODS, *BASELINES))
    pick("preset", preset, PRESETS)
    kind = config_class(method)
    unknown = set(overrides) - set(kind.__dataclass_fields__)
    if unknown:
        known = ", ".join(kind.__dataclass_fields__)
        hint = nearest(min(unknown), kind.__dataclass_fields__)
        raise ValueError(f"unknown constant {', '.join(sorted(unknown))}; {kind.__name__} has {known}{hint}")
    if kind is AttributionConfig:
        return _check_attribution(AttributionConfig(**{**(_SMOKE if preset == "smoke" else {}), **overrides}))
    values = {**METHODS[method], **PRESETS[preset]}
    if preset == "released":
        is_step = method.startswith("step")
        values["reward_weight"] = 1.0 if is_step else 100.0
        values["core_weight"] = 300.0 if is_step else 0.0
        values["area_growth"] = 1.0008668 if is_step else 1.0
        values["sigma"] = 23.0 if min(size[1:]) >= 224 else None
        if method == "step-padded":
            values["core_padding"] = "replicate"
    config = StepConfig(**{**values, **overrides})
    positive = "iterations", "callback_every", "learning_rate", "cooling", "heat_sigma", "area_weight"
    for name in positive:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    for name, allowed in (
        ("variant", ("preserve", "delete", "dual")),
        ("reward", ("log-odds", "log", "probability")),
        ("optimiser", ("budget", "momentum", "sgd")),
        ("core_layout", ("seeds", "stride")),
        ("precision", ("auto", "float32", "bfloat16")),
        ("perturbation", KINDS),
    ):
        pick(name, getattr(config, name), allowed)
    return config


def _check_attribution(config: AttributionConfig) -> AttributionConfig:
    for name, allowed in (("cam_weights", ("clip", "frame")), ("perturbation", KINDS)):
        pick(name, getattr(config, name), allowed)
    for name in ("rise_masks", "occlusion_steps", "lime_samples", "path_steps", "noise_samples"):
        if not getattr(config, name) >= 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    for name in ("lime_ridge", "noise", "motion_sigma", "middle_sigma"):
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    if not config.heat_sigma >= 0:
        raise ValueError(f"heat_sigma must not be negative, got {config.heat_sigma}")
    if not 0 < config.rise_keep < 1:
        raise ValueError(f"rise_keep must lie in (0, 1), got {config.rise_keep}")
    if len(config.blocks) != 3 or min(config.blocks) < 1:
        raise ValueError(f"blocks must be three numbers from 1, over T, H and W, got {config.blocks}")
    return config
