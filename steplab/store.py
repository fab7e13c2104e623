"""A folder in which whatever was found once is found again: one entry a question, whole or not at all.

An entry's name is a hash of all that decides its content, so that entries are never out of date and two runs
that write the same one at once write the same thing. Explanations lie there without their clips' pixels.
"""

import hashlib
import inspect
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .clips import Clip, Record
from .config import make_config
from .explanation import Explanation, fingerprint, versions
from .files import write_whole
from .networks import Network

# The code that decides what a metric says, and the code that decides nothing: what is drawn, rendered, run.
# All other modules decide what an explanation is, those that are yet to be written as well.
_METRICS = ("faithfulness", "metrics", "training")
_ASIDE = (
    "__init__ __main__ cells charts checks comparison datasets drawing epic figures files finetune folders"
)
_ASIDE += " live names painting parameters processes saving sketch splices stage store study summaries tables"
_ASIDE += " toys ucf101 widgets"
_ABANDONED = 3600.0  # seconds after which an unfinished file's writer must be dead
_MOST_HELD = 2**30  # bytes kept in memory for a disk that is full


class Store:
    """A folder of entries, made when the first is written.

    Where nothing can be written (a full disk), that is said once, and entries are held in memory, up to a
    gigabyte, until something can be written again: nothing computed is lost while the process lives.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._held: dict[str, bytes] = {}
        self._said: set[str] = set()
        with suppress(OSError):  # what a killed run left half-written
            for path in self.folder.glob(".*.part"):
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()

    def put(self, name: str, data: bytes) -> bool:
        """Write an entry under another name, flush, rename; says whether that, and what was held, worked."""
        self._held[name] = data
        return self.flush()

    def flush(self) -> bool:
        """Write what is held; says whether nothing is left."""
        for waiting in reversed([*self._held]):
            try:
                write_whole(self.folder / waiting, self._held[waiting])
            except OSError as error:
                if len(self._held) == 1:
                    warnings.warn(f"store: {self.folder} cannot be written to ({error}): held in memory")
                while sum(map(len, self._held.values())) > _MOST_HELD:
                    self._held.pop(max(self._held, key=lambda n: len(self._held[n])))
                return False
            del self._held[waiting]
        return True

    def get(self, name: str) -> bytes | None:
        """The entry's bytes; None if there is none that can be read."""
        with suppress(OSError):
            return self._held[name] if name in self._held else (self.folder / name).read_bytes()
        return None

    def explanation(self, key: str, clip: Clip) -> Explanation | None:
        """The stored explanation with its clip; None, and said so, if the file is torn."""
        if (data := self.get(f"{key}.safetensors")) is None:
            return None
        try:
            return Explanation.from_bytes(data, clip)
        except ValueError as error:
            return self._torn(f"{key}.safetensors", error)

    def whole(self, key: str) -> bool:
        """Whether the explanation is there and complete, by its header and its length."""
        name = f"{key}.safetensors"
        if name in self._held:
            return True
        try:
            with safe_open(self.folder / name, "pt") as file:
                return "steplab" in file.metadata()
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError, TypeError) as error:
            return bool(self._torn(name, error))

    def facts(self, key: str) -> tuple[float, str] | None:
        """A metric's value and the label explained; None, and said so, if the file is torn."""
        if (data := self.get(f"{key}.json")) is None:
            return None
        try:
            facts = json.loads(data)
            if facts.pop("sha256") != digest(facts):
                raise ValueError("its sha256 differs from the one it was stored with")
            return float(facts["value"]), str(facts["label"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return self._torn(f"{key}.json", error)

    def keep_facts(self, key: str, metric: str, value: float, label: str) -> None:
        """Write what :meth:`facts` reads."""
        facts = {"metric": metric, "value": value, "label": label}
        self.put(f"{key}.json", json.dumps({**facts, "sha256": digest(facts)}).encode())

    def _torn(self, name: str, error: Exception) -> None:
        if name not in self._said:
            print(f"made anew: {name} in {self.folder} cannot be read ({error})")
        self._said.add(name)


def explanation_key(
    network: Mapping[str, str],
    clip: str,
    size: Sequence[int],
    asked: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> str:
    """Hash of all that decides an explanation.

    Args:
        network: its `network_facts`.
        clip, size: its fingerprint and (T, H, W).
        asked: of `explain`: target, method, ratios, preset, seed.
        overrides: constants of the method.

    Raises:
        ValueError: as `make_config`.
    """
    config = vars(make_config(asked["method"], asked["preset"], size, dict(overrides)))
    return digest(
        {**asked, "config": config, "versions": versions(), "code": engine_code(), **network, "clip": clip}
    )


def metric_key(explanation: str, metric: str, function: Callable, truth: str) -> str:
    """Hash of all that decides what a metric says of an explanation; `truth` of the record's."""
    return digest([explanation, metric, _own_source(function), metrics_code(), truth])


def truth_facts(record: Record) -> str:
    """sha256 of what a record knows besides its clip: boxes, mask, segment."""
    found = hashlib.sha256(repr((record.segment, [tuple(b.shape) for b in record.boxes])).encode())
    for value in [*record.boxes, *([] if record.mask is None else [record.mask])]:
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def network_facts(network: Network) -> dict[str, str]:
    """What tells a network from any other: weights, printed form, source of its classes; and where it is."""
    facts = {"network": fingerprint(network), "module": repr(network.module), "device": _device(network)}
    facts |= {"layer": repr(network.target_layer), "preprocess": repr(network.preprocess)}
    modules = [] if network.module is None else network.module.modules()
    kinds = {type(m) for m in modules} | {type(network.preprocess)}
    return facts | {"source": digest(sorted(map(_source, kinds)))}


def digest(what: Any) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@cache
def _own_source(function: Callable) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return repr(function)


@cache
def _source(kind: type) -> str:
    """sha256 of the file that defines a class; its name where there is none, as in a notebook."""
    try:
        return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return kind.__qualname__


def _device(network: Network) -> str:
    first = None if network.module is None else next(iter(network.module.parameters()), None)
    return "cpu" if first is None else first.device.type


@cache
def engine_code() -> str:
    """sha256 of the modules that decide an explanation: another engine, another answer."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    return _hash_modules(name for name in names if name not in (*_ASIDE.split(), *_METRICS))


@cache
def metrics_code() -> str:
    """sha256 of the modules that decide what a metric says of an explanation."""
    return _hash_modules(_METRICS)


def _hash_modules(names: Iterable[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return found.hexdigest()
