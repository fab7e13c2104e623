"""What an explanation holds, how it is stored and shown."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from . import __version__
from .clips import Clip
from .config import AttributionConfig, StepConfig, config_class
from .files import write_whole
from .networks import Network
from .perturb import blur

UNSURE = 0.2  # a network that gives its class less than this does not know, and its masks explain little


@dataclass(eq=False)
class Explanation:
    """What was found, and all that is needed to find it again.

    Attributes:
        masks: (R, T, H, W) in [0,1], 1 = kept; one for each ratio.
        heatmap: (T, H, W), not negative: sum over ratios of the masks blurred in space.
        probability: (R,) Phi_c of the clip as each mask preserves it; of variant "delete", Phi_c of the clip
            without what the mask holds.
        history: arrays (R, iterations + 1): "energy", "probability", "mean" of the mask, "area", for STEP
            "core", before each iteration and, last, of the mask that is returned; NaN after that, if Ctrl-C
            came. If a callback changed constants, they stand here by their names, NaN before.
        ratios: the preservation ratios asked for.
        target, label: number and name of the explained class.
        original: Phi_c of the clip as it is.
        clip: the clip itself.
        method, preset, config, seed: what was asked.
        versions: of the packages; fingerprints: sha256 of "network" and "clip".
        converged: (R,) whether each mask's mean is .97 to 1.005 of its ratio and its probability stood still
            (within .05) in the last eighth of the search.
        interrupted: True if the keyboard stopped it: the masks are the latest there were.
    """

    masks: Float[Tensor, "ratios time height width"]
    heatmap: Float[Tensor, "time height width"]
    probability: Float[Tensor, "ratios"]
    history: dict[str, Float[np.ndarray, "ratios iterations"]]
    ratios: tuple[float, ...]
    target: int
    label: str
    original: float
    clip: Clip
    method: str
    preset: str
    config: StepConfig | AttributionConfig
    seed: int
    versions: dict[str, str]
    fingerprints: dict[str, str]
    converged: tuple[bool, ...]
    interrupted: bool = False

    @property
    def enough(self) -> tuple[bool, ...]:
        """(R,) whether each mask keeps half of the clip's own probability; of "delete": leaves less."""
        kept = (self.probability >= self.original / 2).tolist()
        return tuple(k != self._deletes for k in kept)

    @property
    def _deletes(self) -> bool:
        return getattr(self.config, "variant", "") == "delete"

    def caption(self, k: int) -> str:
        """Ratio and probability of mask k, and if that is not enough, a line that says so."""
        from .painting import percent

        words = f"{'remove' if self._deletes else 'keep'} {percent(self.ratios[k])}"
        return f"{words}\np = {float(self.probability[k]):.2f}" + "\nnot enough" * (not self.enough[k])

    def remarks(self) -> list[str]:
        """What to know before believing it, a sentence each: an unsure network, masks that are not enough."""
        from .painting import percent

        found = []
        if self.original < UNSURE:
            found.append(f"The network itself is unsure: p = {self.original:.2f} for the whole clip.")
        better = [v for v, enough in zip(self.ratios, self.enough, strict=True) if enough]
        for ratio, p, enough in zip(self.ratios, self.probability.tolist(), self.enough, strict=True):
            larger = [v for v in better if v > ratio] or [min(2 * ratio, 0.9)]
            said = f"{'leaves' if self._deletes else 'keeps'} {percent(p / max(self.original, 1e-12))}"
            if not enough:
                found.append(
                    f"{percent(ratio)} of the clip {said} of the answer: at this ratio nothing was found "
                    f"that is enough; try {min(larger):g}."
                )
        return found

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file; returns its path."""
        write_whole(Path(path), self.to_bytes())
        return Path(path)

    def to_bytes(self, pixels: bool = True) -> bytes:
        """What :meth:`save` writes; without `pixels` the clip must be given back by whoever reads it."""
        tensors = {
            "masks": self.masks,
            "heatmap": self.heatmap,
            "probability": self.probability,
            "times": self.clip.times,
            **({"pixels": self.clip.pixels} if pixels else {}),
            **{f"history/{k}": torch.from_numpy(v) for k, v in self.history.items()},
        }
        facts = {
            k: getattr(self, k)
            for k in ("ratios", "target", "label", "original", "method", "preset", "seed", "versions")
            + ("fingerprints", "converged", "interrupted")
        }
        facts |= {"config": asdict(self.config), "source": self.clip.source}
        stored = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        facts["sha256"] = _checksum(stored, facts)
        return safetensors.torch.save(stored, {"steplab": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path) -> "Explanation":
        """Read what :meth:`save` wrote. Raises ValueError if it is something else, damaged or changed."""
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a stored explanation: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes, clip: Clip | None = None) -> "Explanation":
        """What :meth:`to_bytes` gave; `clip` is needed, and used, where the pixels were left out.

        Raises:
            ValueError: other data or torn data, no clip where one is needed, or another clip than explained.
        """
        try:
            tensors = safetensors.torch.load(data)
            facts = json.loads(
                json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["steplab"]
            )
            if facts.pop("sha256", None) != _checksum(tensors, facts):
                raise ValueError("its sha256 differs from the one it was stored with: damaged or changed")
            config: dict[str, Any] = facts.pop("config")
            config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
            history = {k.removeprefix("history/"): v.numpy() for k, v in tensors.items() if "/" in k}
            source = facts.pop("source")
            if "pixels" in tensors:
                clip = Clip(tensors["pixels"], tensors["times"], source)
            elif clip is None or fingerprint(clip) != facts["fingerprints"]["clip"]:
                raise ValueError("stored without its clip, which must be given: that very one")
            facts |= {"ratios": tuple(facts["ratios"]), "converged": tuple(facts["converged"])}
            maps = {k: tensors[k] for k in ("masks", "heatmap", "probability")}
            one, count = tuple(clip.pixels.shape[1:]), len(facts["ratios"])
            shapes = {"masks": (count, *one), "heatmap": one, "probability": (count,)}
            for name, shape in shapes.items():
                if tuple(maps[name].shape) != shape or maps[name].dtype != torch.float32:
                    raise ValueError(f"{name}: {maps[name].dtype} {tuple(maps[name].shape)}, not {shape}")
            return cls(
                **maps, history=history, clip=clip, config=config_class(facts["method"])(**config), **facts
            )
        except Exception as error:
            raise ValueError(f"expected a stored explanation, got {error!r}") from error

    def filmstrip(self, path: str | Path | None = None, ratio: float | None = None):
        """Frames above, what is kept below: one `ratio`, or all, those that are enough first; a figure."""
        from .figures import filmstrip

        shown = [k for k, v in enumerate(self.ratios) if ratio in (None, v)]
        if not shown:
            raise ValueError(f"ratio must be one of {self.ratios}, got {ratio}")
        shown.sort(key=lambda k: not self.enough[k])
        return filmstrip(
            self.clip.pixels,
            self.masks[shown],
            labels=[self.caption(k) for k in shown],
            times=self.clip.times,
            title=f"“{self.label}”, p = {self.original:.2f} for the whole clip"
            + ": the network is unsure" * (self.original < UNSURE),
            path=path,
        )

    def to_video(self, path: str | Path, fps: float = 8) -> Path:
        """The clip with its heat map laid over it, as an mp4 file."""
        from .clips import write_video
        from .figures import overlay

        return write_video(path, overlay(self.clip.pixels, self.heatmap), fps=fps)


def _checksum(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """sha256 of all that is stored."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def heat_map(
    masks: Float[Tensor, "ratios time height width"], sigma: float = 0.09
) -> Float[Tensor, "time height width"]:
    """Sum over ratios of each mask blurred in space; sigma is a share of min(H, W).

    The paper does not say how its pointing game reads several masks; this is how the method's ancestor does.
    """
    return blur(masks, sigma * min(masks.shape[-2:])).sum(0)


def fingerprint(what: Network | Clip) -> str:
    """sha256 of a clip's pixels, or of a network's weights, buffers and class names.

    A network that wraps a plain callable has no weights to read: its name and classes must do.
    """
    digest = hashlib.sha256()
    if isinstance(what, Clip):
        digest.update(repr(tuple(what.pixels.shape)).encode())
        digest.update(what.pixels.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
    digest.update(json.dumps([what.name, what.output, what.classes]).encode())
    if what.module is not None:
        for name, value in what.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of everything that a mask depends on."""
    return {
        "steplab": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
