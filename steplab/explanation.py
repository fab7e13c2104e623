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


@dataclass(eq=False)
class Explanation:
    """What was found, and all that is needed to find it again.

    Attributes:
        masks: (R, T, H, W) in [0,1], 1 = kept; one for each ratio.
        heatmap: (T, H, W), not negative: sum over ratios of the masks blurred in space.
        probability: (R,) Phi_c of the clip as each mask preserves it.
        history: arrays (R, iterations): "energy", "probability", "mean" of the mask, "area", for STEP "core";
            NaN after a mask's last iteration. If a callback changed constants, they stand here by their
            names, NaN before the first change.
        ratios: the preservation ratios asked for.
        target, label: number and name of the explained class.
        original: Phi_c of the clip as it is.
        clip: the clip itself.
        method, preset, config, seed: what was asked.
        versions: of the packages; fingerprints: sha256 of "network" and "clip".
        converged: (R,) whether each mask came to within `ratio_tolerance` of its ratio by itself. In
            preset `lesson` what is too much is then cut off; `probability` is of what is left.
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
        """Frames above, what is kept below, as a matplotlib figure; of one `ratio`, or of all of them."""
        from .figures import filmstrip

        shown = [k for k, v in enumerate(self.ratios) if ratio in (None, v)]
        if not shown:
            raise ValueError(f"ratio must be one of {self.ratios}, got {ratio}")
        return filmstrip(
            self.clip.pixels,
            self.masks[shown],
            ratios=[self.ratios[k] for k in shown],
            probability=self.probability[shown].tolist(),
            times=self.clip.times,
            title=f"“{self.label}”, p = {self.original:.2f} for the whole clip",
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
