"""Explanations that are found once and kept: the same question is answered from a file the next time.

>>> result = explain_once(network, clip, method="step", ratios=(0.1,), preset="lesson")
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from torch import Tensor

from .clips import Clip
from .config import make_config
from .explain import _as_clips, explain
from .explanation import Explanation, fingerprint, versions
from .networks import Network
from .tables import RUNS

STORE = RUNS / "explanations"
_SOURCES = ("config", "engine", "explain", "explanation", "losses", "masks", "networks", "perturb")


def explain_once(
    network: Network,
    clip: Clip | Tensor,
    target: str | int | None = None,
    method: str = "step",
    ratios: Sequence[float] = (0.1,),
    preset: str = "lesson",
    seed: int = 0,
    store: str | Path | None = None,
    **overrides,
) -> Explanation:
    """`explain` of one clip, read from `store` if the same was asked before.

    The same means: of the same network (weights and the printed form of its module and preprocessing), the
    same clip, constants, seed, versions and code of the engine.

    A file that cannot be read is made anew. What was interrupted is not kept, nor what a plain callable said:
    its code cannot be told from another's. Where nothing can be written, nothing is kept.

    Args:
        store: folder; `None` is `runs/explanations` in the checkout.
        others: as for `explain`.

    Raises:
        ValueError: as `explain`.
    """
    clip = _as_clips(clip)[0][0]
    asked = {"target": target, "method": method, "ratios": tuple(ratios), "preset": preset, "seed": seed}
    if network.module is None:
        return _explain(network, clip, asked, overrides)
    config = make_config(method, preset, clip.pixels.shape[1:], overrides)
    key = {**asked, "config": asdict(config), "versions": versions(), "code": _code()}
    key |= {"network": fingerprint(network), "clip": fingerprint(clip), "device": _device(network)}
    key |= {"module": repr(network.module), "preprocess": repr(network.preprocess)}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = Path(store or STORE) / f"{name}.safetensors"
    if path.is_file():
        try:
            return Explanation.load(path)
        except ValueError as error:
            print(f"made anew: {error}")
    result = _explain(network, clip, asked, overrides)
    if not result.interrupted:
        _keep(result, path)
    return result


def _explain(network: Network, clip: Clip, asked: dict, overrides: dict) -> Explanation:
    result = explain(network, clip, progress=False, **asked, **overrides)
    assert isinstance(result, Explanation)
    return result


def _keep(result: Explanation, path: Path) -> None:
    """Written under another name, flushed and renamed: whoever finds the file finds all of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            written = result.save(Path(folder) / path.name)
            with written.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(written, path)
    except OSError:
        pass  # a full disk, a folder that may not be written to: the result itself is not lost


def _device(network: Network) -> str:
    assert network.module is not None
    first = next(iter(network.module.parameters()), None)
    return "cpu" if first is None else first.device.type


@cache
def _code() -> str:
    """sha256 of the modules that decide what a mask looks like: another engine, another answer."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).with_name(f"{name}.py")).read_bytes())
    return digest.hexdigest()
