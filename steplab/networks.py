"""Networks: one wrapper for any video classifier, and the names under which ready ones are served.

>>> network = load_network("stage-action-r2plus1d")
>>> network.probabilities(clip.pixels[None])          # (1, 9), sums to 1
>>> network = Network(my_module, classes=("cat", "dog"), preprocess=lambda x: (x - 0.5) / 0.25)

Names: `stage-<task>-<family>` (small, trained on the stage, shipped), `kinetics-<torchvision model>`
(downloaded by torchvision), `imagenet-consensus` and `transnetv2-cuts` (extra `real`); all listed by
`available_networks`.
Your own: "my_module:make_network".
"""

import hashlib
import importlib
import json
import operator
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import SupportsIndex

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import pretrained
from .names import nearest, pick
from .narrow import NarrowR2Plus1D, NarrowVGG16LSTM
from .r2plus1d import R2Plus1D18
from .vgg_lstm import VGG16LSTM

__all__ = [
    "NarrowR2Plus1D",
    "NarrowVGG16LSTM",
    "Network",
    "R2Plus1D18",
    "VGG16LSTM",
    "available_networks",
    "load_network",
    "save_network",
]

# A saved file may only name one of these: loading it runs no code but ours.
_FAMILIES: dict[str, type[nn.Module]] = {
    family.__name__: family for family in (NarrowR2Plus1D, NarrowVGG16LSTM, R2Plus1D18, VGG16LSTM)
}


# What there is to say of a network without a gradient.
CUT_OFF = (
    "fn: expected scores with a gradient in the pixels, got scores that are cut off from them "
    "(detach, no_grad, numpy); occlusion, rise and lime need no gradient"
)


class ScoresError(ValueError):
    """What a network gave cannot be explained: no scores of its classes, not finite, or no gradient."""


class Network:
    """A video classifier: pixels in [0, 1] in, one score a class out.

    Args:
        fn: any callable from `batch x 3 x time x height x width` to `batch x classes`, differentiable in its
            input. An `nn.Module` is kept as it is: no flag is touched, so call `.eval()` on it before.
        classes: one name for each output.
        preprocess: applied to the pixels before `fn` (for instance a normalisation); None for nothing.
        output: what `fn` returns: "logits", or "probability" if it has soft-maxed already.
        frames, size: what the network was made for; None for anything. `read_clip(path, network.frames,
            network.size)` reads a fitting clip.
        name: shown in titles, stored with explanations.
        target_layer: dotted name, inside the module, of the layer whose output Grad-CAM and its kin read.

    Raises:
        ValueError: an argument is not as described.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        classes: Sequence[str],
        preprocess: Callable[[Tensor], Tensor] | None = None,
        output: str = "logits",
        *,
        frames: int | None = None,
        size: int | None = None,
        name: str = "network",
        target_layer: str | None = None,
    ):
        if not callable(fn):
            raise ValueError(f"fn: expected a callable from clips to scores, got {type(fn).__name__}")
        pick("output", output, ("logits", "probability"))
        if isinstance(classes, str) or not classes or not all(isinstance(c, str) for c in classes):
            raise ValueError(f"classes: expected a sequence of names, got {classes!r}")
        self.fn = fn
        self.classes = tuple(classes)
        self.preprocess = preprocess
        self.output = output
        self.frames, self.size, self.name, self.target_layer = frames, size, name, target_layer

    @property
    def module(self) -> nn.Module | None:
        """The wrapped `nn.Module`; None if a plain callable is wrapped."""
        return self.fn if isinstance(self.fn, nn.Module) else None

    def __call__(self, pixels: Float[Tensor, "batch 3 time height width"]) -> Float[Tensor, "batch classes"]:
        """Raw scores: logits or probabilities, as `output` says.

        Raises:
            ValueError: not a float batch of clips; weights of a precision other than the pixels'. A clip of
                three frames is refused unless the network wants three (`frames=3`): time and colour could
                have changed places.
            ScoresError: a ValueError; scores that are no tensor of floats, do not fit `classes`, are NaN,
                +inf or all -inf, are none in [0, 1] where `output` promises probabilities, or carry no
                gradient where the pixels ask for one.
        """
        shape = tuple(pixels.shape)
        if len(shape) != 5 or shape[1] != 3:
            raise ValueError(f"pixels: expected batch x 3 x time x height x width, got shape {shape}")
        if shape[2] == 3 and self.frames != 3:
            raise ValueError(
                f"pixels: shape {shape} has three frames and three colours, which may be swapped; "
                "give the network frames=3 if time really is the third axis"
            )
        if not pixels.is_floating_point():
            raise ValueError(f"pixels: expected floats in [0, 1], got {pixels.dtype}")
        given = pixels if self.preprocess is None else self.preprocess(pixels)
        try:
            scores = self.fn(given)
        except RuntimeError as error:
            if hint := self._precision_hint(error, given.dtype):
                raise ValueError(hint) from error
            raise
        self._check(scores, shape[0], pixels.requires_grad and torch.is_grad_enabled())
        return scores

    def _precision_hint(self, error: RuntimeError, given: torch.dtype) -> str | None:
        """What to do, if weights have another precision than the pixels and that may be why `fn` failed."""
        weights = [] if self.module is None else self.module.parameters()
        others = sorted({str(w.dtype) for w in weights if w.is_floating_point()} - {str(given)})
        # Running out of memory is a kind of RuntimeError. What torch says of precision names types.
        if type(error) is not RuntimeError or not others or "type" not in str(error):
            return None
        return (
            f"fn: expected weights of the pixels' {given}, got {', '.join(others)} ({error}); call .float() "
            f"on the module, or give the network preprocess=lambda x: x.to({others[0]})"
        )

    def _check(self, scores, batch: int, differentiable: bool) -> None:
        if not isinstance(scores, Tensor) or not scores.is_floating_point() or scores.is_meta:
            kind = f"{scores.dtype} tensor" if isinstance(scores, Tensor) else type(scores).__name__
            kind += " without values, on device meta" if isinstance(scores, Tensor) and scores.is_meta else ""
            raise ScoresError(f"fn: expected a tensor of float scores, got a {kind}; wrap it to give those")
        if tuple(scores.shape) != (batch, len(self.classes)):
            raise ScoresError(
                f"fn: expected {batch} x {len(self.classes)} scores (classes names {len(self.classes)}), "
                f"got shape {tuple(scores.shape)}"
            )
        if torch.compiler.is_compiling():  # asking for values would cut what is compiled in two
            return
        # A logit of -inf says that a class is impossible; not all of them can be.
        if not (scores < torch.inf).all() or not (scores > -torch.inf).any(dim=1).all():
            raise ScoresError(f"fn: expected finite scores, got {scores.detach().flatten().tolist()[:8]}")
        if self.output == "probability" and not ((scores >= 0) & (scores <= 1 + 1e-2)).all():
            worst = float(scores.detach().flatten()[(scores.detach() - 0.5).abs().argmax()])
            raise ScoresError(f"fn: expected probabilities in [0, 1], got {worst:.4g}; output='logits' fits")
        if differentiable and not scores.requires_grad:
            raise ScoresError(CUT_OFF)

    def probabilities(
        self, pixels: Float[Tensor, "batch 3 time height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Probabilities in [0, 1]; soft-maxed here only if the network returns logits."""
        scores = self(pixels)
        return scores if self.output == "probability" else scores.softmax(dim=1)

    def log_probabilities(
        self, pixels: Float[Tensor, "batch 3 time height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Natural log of `probabilities`, from -69: a probability of 0 counts as 1e-30, with a gradient."""
        scores = self(pixels)
        return (scores + 1e-30).log() if self.output == "probability" else scores.log_softmax(dim=1)

    def zero_color(self, pixels: Float[Tensor, "batch 3 time height width"]) -> tuple[float, ...]:
        """Red, green and blue of the pixels that `preprocess` makes 0; black if there is no such color.

        Args:
            pixels: of the shape, and on the device, that `preprocess` is asked with.
        """
        try:
            colors = torch.cat([torch.zeros(1, 3), torch.eye(3)]).to(pixels)[:, None, :, None, None, None]
            black, *pure = (self.preprocess(c * torch.ones_like(pixels[:1])).double() for c in colors)  # type: ignore[misc]
            slopes = torch.stack([(p - black).flatten() for p in pure])
            found = torch.linalg.solve(slopes @ slopes.T, -slopes @ black.flatten())
            shown = self.preprocess(found.to(pixels)[:, None, None, None] * torch.ones_like(pixels[:1]))  # type: ignore[misc]
            return tuple(found.clamp(0, 1).tolist()) if shown.abs().max() < 1e-3 else (0.0, 0.0, 0.0)
        except Exception:  # of no preprocessing, or of one that is no normalization
            return (0.0, 0.0, 0.0)

    def index(self, label: str | SupportsIndex, name: str = "target") -> int:
        """Number of a class, given its name (case does not matter) or its number.

        Raises:
            ValueError: no such class; names those that look alike.
        """
        if isinstance(label, str):
            lowered = [c.lower() for c in self.classes]
            if label.lower() in lowered:
                return lowered.index(label.lower())
            hint = nearest(label, self.classes) or f"; it has {_some(self.classes)}"
            raise ValueError(f"{name}: {self.name} has no class {label!r}{hint}")
        whole = isinstance(label, SupportsIndex) and not isinstance(label, bool)
        if not whole or not 0 <= operator.index(label) < len(self.classes):
            raise ValueError(f"{name}: expected 0..{len(self.classes) - 1} or a class name, got {label!r}")
        return operator.index(label)

    def __repr__(self) -> str:
        return f"Network({self.name!r}, {len(self.classes)} classes, {self.output})"


class Affine:
    """Preprocessing (x - mean) / std, one mean and std for each colour.

    Args:
        size: px to which frames of another size are stretched first (bilinear); None: they stay.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: int | None = None):
        self.mean, self.std, self.size = tuple(mean), tuple(std), size

    def __repr__(self) -> str:
        return f"Affine({self.mean}, {self.std}{f', {self.size}' if self.size else ''})"

    def __call__(self, pixels: Float[Tensor, "batch 3 time height width"]) -> Tensor:
        if self.size:
            pixels = pretrained.stretched(pixels, (self.size, self.size))
        return pretrained.normalised(pixels, self.mean, self.std)

    @classmethod
    def of(cls, preprocess: Callable[[Tensor], Tensor] | None) -> "Affine":
        """The same preprocessing in numbers, so that it can be stored without storing code.

        Raises:
            ValueError: `preprocess` is more than a scale and a shift for each colour.
        """
        if preprocess is None:
            return cls((0.0,) * 3, (1.0,) * 3)
        if isinstance(preprocess, cls):
            return preprocess
        black, white = (
            preprocess(torch.full((1, 3, 1, 1, 1), v, dtype=torch.float64)).flatten() for v in (0, 1)
        )
        std = 1 / (white - black)
        found = cls([round(v, 9) for v in (-black * std).tolist()], [round(v, 9) for v in std.tolist()])
        probe = torch.rand(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        if not torch.allclose(found(probe), preprocess(probe), atol=1e-5):
            raise ValueError("preprocess: only a scale and a shift for each colour can be saved")
        return found


def networks_folder() -> Path:
    """Where the shipped networks lie: `data/networks` inside the package or, in a checkout, beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "data" / "networks"
    return inside if inside.is_dir() else package.parent / "data" / "networks"


def available_networks() -> tuple[str, ...]:
    """Every name that `load_network` knows; the stage's only once they are trained."""
    shipped = sorted(
        path.stem for path in networks_folder().glob("*.json") if path.with_suffix(".safetensors").exists()
    )
    return (*shipped, *pretrained.NAMES)


def load_network(name_or_path: str | Path) -> Network:
    """A ready network in evaluation mode.

    Args:
        name_or_path: one of `available_networks()`, the path of a network saved by `save_network` (with or
            without its ending), or "my_module:make_network" for a function of your own that takes nothing
            and returns a `Network`. The module is looked for where Python looks, then in the current folder
            (which stays on `sys.path`), and **its code runs**: name only modules that you trust.

    Raises:
        ValueError: unknown name, a file that is damaged or does not match its JSON, or a function that is
            not there, fails or returns something else.
        ImportError: the name needs a package that is not installed; says what to install.
        ConnectionError: the weights must be downloaded and cannot be.
    """
    name = str(name_or_path)
    if name in pretrained.NAMES:
        return Network(**pretrained.build(name))
    for base in (networks_folder() / name, Path(name_or_path)) if Path(name).name else ():
        weights = base if base.suffix == ".safetensors" else base.with_name(base.name + ".safetensors")
        if weights.is_file():
            return _load_saved(weights)
    if re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", name):
        return _load_own(*name.split(":"))
    known = available_networks()
    hint = nearest(name, known) or f"; known: {', '.join(known)}"
    raise ValueError(f"name_or_path: no network {name!r}, and no such file{hint}, or my_module:make_network")


def save_network(
    network: Network,
    name: str,
    *,
    recipe: dict | None = None,
    report: dict | None = None,
    folder: str | Path | None = None,
) -> Path:
    """Write `<name>.safetensors` and `<name>.json` (classes, preprocessing, recipe, report, sha256).

    Args:
        network: wraps a network of this kit, full-size or narrow.
        name: file name without ending.
        recipe, report: what is needed to train it again, and what was measured; anything JSON can hold.
        folder: where to write; None is the kit's own `data/networks`.

    Returns:
        path of the safetensors file.

    Raises:
        ValueError: the network is of another kind, or its preprocessing cannot be put in numbers.
    """
    module = network.module
    family = type(module).__name__
    if module is None or _FAMILIES.get(family) is not type(module):
        raise ValueError(f"network: expected one that wraps {' or '.join(_FAMILIES)}, got {family}")
    affine = Affine.of(network.preprocess)
    out = Path(folder) if folder is not None else networks_folder()
    out.mkdir(parents=True, exist_ok=True)
    weights = out / f"{name}.safetensors"
    save_file({key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}, weights)
    facts = {
        "name": name,
        "family": family,
        "settings": module.settings,
        "classes": network.classes,
        "preprocess": {"mean": affine.mean, "std": affine.std}
        | ({"size": affine.size} if affine.size else {}),
        "output": network.output,
        "frames": network.frames,
        "size": network.size,
        "recipe": recipe or {},
        "report": report or {},
        "sha256": _sha256(weights),
    }
    weights.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return weights


def _load_own(module: str, function: str) -> Network:
    """What the user's own function returns. Runs the user's code."""
    name = f"{module}:{function}"
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file of yours hides no installed package
    importlib.invalidate_caches()
    try:
        make = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        said = f"no module {module!r} here or installed" if missing else f"importing it raised {error!r}"
        raise ValueError(f"name_or_path: {name}: {said}") from error
    if not callable(make):
        raise ValueError(f"name_or_path: {name}: the module has no function {function!r}")
    try:
        network = make()
    except Exception as error:
        raise ValueError(f"name_or_path: {name}: {function}() raised {error!r}") from error
    if not isinstance(network, Network):
        raise ValueError(
            f"name_or_path: {name}: expected it to return a Network, got {type(network).__name__}"
        )
    if network.module is not None:
        network.module.eval()
    return network


def _load_saved(weights: Path) -> Network:
    """The network in `weights` and the JSON beside it; refuses whatever does not fit together."""
    try:
        facts = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        if facts["sha256"] != _sha256(weights):
            raise ValueError("its sha256 differs from the one in the JSON: damaged or replaced")
        module = _FAMILIES[facts["family"]](**facts["settings"])
        if len(facts["classes"]) != facts["settings"]["classes"]:
            raise ValueError(f"{len(facts['classes'])} names for {facts['settings']['classes']} outputs")
        module.load_state_dict(load_file(weights))
        affine = Affine(**facts["preprocess"])
        network = Network(
            module.eval(),
            facts["classes"],
            affine,
            facts["output"],
            frames=facts["frames"],
            size=facts["size"],
            name=facts["name"],
            target_layer=str(module.target_layer),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"name_or_path: cannot load {weights.name}: {error}") from error
    return network


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
