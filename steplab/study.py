"""Explanations that are found once and kept, and grids of them that become tables.

>>> result = explain_once(network, clip, method="step", ratios=(0.1,), preset="lesson")
>>> study = Study(records, ["stage-action-r2plus1d"], {"STEP": "step", "chance": "random"}, metrics=("S-PT",))
>>> table = study.run(workers=2).table()                # one row per clip, method, seed and metric
>>> pivot(table, "S-PT")                                # like the paper's tables, with intervals
"""

import pickle
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import cells
from .cells import METRICS, Job, Outcome
from .clips import Clip, Record
from .config import make_config
from .explain import as_clips, check_ratios, explain
from .explanation import Explanation, fingerprint, versions
from .files import RUNS
from .names import pick
from .networks import Network, load_network
from .store import Store, explanation_key, metric_key, network_facts, truth_facts
from .summaries import compare, orderings, pivot, summary
from .vgg_lstm import VGGLSTM

__all__ = ["METRICS", "Study", "compare", "explain_once", "orderings", "pivot", "summary"]

STORE = RUNS / "explanations"
_PENDING = "not computed yet"
_COLUMNS = ["dataset", "network", "clip", "label", "method", "seed", "metric", "value", "error"]


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

    The same means: of the same network (weights, the printed form of its module and preprocessing, the source
    of their classes), the same clip, constants, seed, versions and code of the engine.

    A file that cannot be read is made anew. What was interrupted is not kept, nor what a plain callable said:
    its code cannot be told from another's. Where nothing can be written, nothing is kept.

    Args:
        store: folder; `None` is `runs/explanations` in the checkout.
        others: as for `explain`.

    Raises:
        ValueError: as `explain`.
    """
    clip = as_clips(clip)[0][0]
    asked = {"target": target, "method": method, "ratios": tuple(ratios), "preset": preset, "seed": seed}
    if network.module is None:
        return _explain(network, clip, asked, overrides)
    key = explanation_key(network_facts(network), fingerprint(clip), clip.pixels.shape[1:], asked, overrides)
    shelf = Store(store or STORE)
    if (known := shelf.explanation(key, clip)) is not None:
        return known
    result = _explain(network, clip, asked, overrides)
    if not result.interrupted:
        shelf.put(f"{key}.safetensors", result.to_bytes(pixels=False))
    return result


def paper_ratios(network: Network) -> tuple[float, ...]:
    """The four at which the paper explains networks of this family; a CNN-LSTM gets larger ones."""
    return (0.05, 0.1, 0.2, 0.3) if isinstance(network.module, VGGLSTM) else (0.02, 0.05, 0.1, 0.2)


def _explain(network: Network, clip: Clip, asked: dict, overrides: dict) -> Explanation:
    result = explain(network, clip, progress=False, **asked, **overrides)
    assert isinstance(result, Explanation)
    return result


@dataclass(frozen=True)
class _Cell:
    """One place of the grid; `keys`: of its metrics' entries, by name of the metric."""

    network: str
    record: Record
    method: str
    seed: int
    asked: dict[str, Any]
    key: str
    keys: dict[str, str]
    stamp: dict[str, str]


class Study:
    """Clips x networks x methods x seeds, explained once each and measured.

    Args:
        records: clips with what is known of them; their `label` is the class explained (number, name, or None
            for the likeliest).
        networks: names for `load_network`, or `Network`s around modules; or a mapping from names to show.
        methods: of `explain`; or a mapping from names to show to a method or to settings, such as
            `{"method": "step", "core_padding": "none"}`; `preset` and `ratios` of its own may be among them.
        metrics: names in `METRICS`; at `smoke`, insertion and deletion take 4 steps instead of 20.
        ratios, preset: as for `explain`; or ratios="paper", the paper's four for each network's family.
        seeds: one explanation each. What `explain` gets mixes it with the clip's name: all methods of a clip
            start alike, each clip otherwise.
        name: of the data, the table's column `dataset`.
        store: folder; `None` is `runs/explanations` in the checkout.
        device: where to explain; None: where the network is. Part of what makes an explanation the same.
        overrides: constants for all methods that have them.

    Raises:
        ValueError: before anything is computed, for whatever is unknown, empty, doubled or does not fit.
    """

    def __init__(
        self,
        records: Iterable[Record],
        networks: str | Network | Sequence[str | Network] | Mapping[str, str | Network],
        methods: str | Sequence[str] | Mapping[str, str | Mapping[str, Any]],
        metrics: Sequence[str] = ("S-PT",),
        ratios: Sequence[float] | str = (0.1,),
        preset: str = "lesson",
        seeds: Sequence[int] = (0,),
        name: str = "action",
        store: str | Path | None = None,
        device: str | None = None,
        **overrides,
    ):
        self.records = list(records)
        if strange := [type(r).__name__ for r in self.records if not isinstance(r, Record)]:
            raise ValueError(f"records: got {strange[0]}, expected Record")
        self._records = {r.name: r for r in self.records}
        _distinct("records", [r.name for r in self.records])
        self._given = _shown("networks", networks, (str, Network))
        self.networks = {k: v if isinstance(v, Network) else load_network(v) for k, v in self._given.items()}
        for shown, network in self.networks.items():
            if network.module is None:
                raise ValueError(
                    f"networks: {shown!r} is a plain callable, whose code cannot be told from another's; "
                    "expected one around an nn.Module"
                )
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        _distinct("metrics", self.metrics)
        if unknown := [m for m in self.metrics if m not in METRICS]:
            raise ValueError(f"metrics: got {unknown[0]!r}, expected some of {', '.join(METRICS)}")
        self.seeds = tuple(seeds)
        _distinct("seeds", self.seeds)
        if strange := [s for s in self.seeds if isinstance(s, bool) or not isinstance(s, int)]:
            raise ValueError(f"seeds: got {strange[0]!r}, expected whole numbers")
        self.ratios = None if ratios == "paper" else check_ratios(ratios)  # type: ignore[arg-type]
        self.preset, self.name, self.device = preset, name, device
        self.methods = self._settings(_shown("methods", methods, (str, Mapping)), overrides)
        for network in self.networks.values():
            for record in self.records:
                _target(network, record)
        self.store = Store(store or STORE)
        self._errors: dict[str, str] = {}

    def _settings(self, methods: dict[str, Any], overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Of each method: its name, preset and constants."""
        sizes = {tuple(r.clip.pixels.shape[1:]) for r in self.records}
        found, used = {}, set()
        for shown, given in methods.items():
            own = {"method": given} if isinstance(given, str) else dict(given)
            method, preset = own.pop("method", None), own.pop("preset", self.preset)
            ratios = check_ratios(own.pop("ratios")) if "ratios" in own else self.ratios
            if not isinstance(method, str):
                raise ValueError(f"methods: {shown!r} has settings without a method: {given!r}")
            for size in sizes:
                known = {f.name for f in fields(make_config(method, preset, size, own))}
                mine = {k: v for k, v in overrides.items() if k in known}
                make_config(method, preset, size, {**mine, **own})
            used |= set(mine)
            found[shown] = {
                "method": method,
                "preset": preset,
                "ratios": ratios,
                "constants": {**mine, **own},
            }
        if unknown := set(overrides) - used:
            raise ValueError(f"overrides: none of the methods has a constant {', '.join(sorted(unknown))}")
        return found

    def _grid(self, networks: Iterable[str], records: Sequence[Record]) -> list[_Cell]:
        """Cells in the order of the table. Networks and clips are read anew: they may have changed."""
        clips = {r.name: (fingerprint(r.clip), truth_facts(r)) for r in records}
        found = []
        for shown in networks:
            network = self.networks[shown]
            facts = network_facts(network)
            stamp = cells.stamp(facts["network"])
            facts |= {"device": torch.device(self.device).type} if self.device else {}
            for record in records:
                clip, truth = clips[record.name]
                size = record.clip.pixels.shape[1:]
                for method, settings in self.methods.items():
                    for seed in self.seeds:
                        asked: dict[str, Any] = {"target": _target(network, record)}
                        asked |= {k: settings[k] for k in ("method", "preset")}
                        asked["ratios"] = settings["ratios"] or paper_ratios(network)
                        asked["seed"] = zlib.crc32(f"{seed} {record.name}".encode())
                        key = explanation_key(facts, clip, size, asked, settings["constants"])
                        keys = {m: metric_key(key, m, METRICS[m], truth) for m in self.metrics}
                        found.append(_Cell(shown, record, method, seed, asked, key, keys, stamp))
        return found

    def run(
        self,
        workers: int = 1,
        cluster: str | None = None,
        threads: int = 1,
        progress: bool = True,
        retries: int = 1,
        resources: dict[str, float] | None = None,
    ) -> "Study":
        """Compute what is missing; returns the study itself.

        Workers send what they found to this process, and only it writes to the store. A cell that fails, or
        whose process dies, is tried again `retries` times; its error is then recorded (`failures()`) and the
        rest goes on. Another `run` tries it anew. Ctrl-C stops; what is stored is found again.

        Args:
            workers: processes on this machine; 1: this one.
            cluster: address of a Dask scheduler, such as "tcp://10.0.0.1:8786", whose workers have the same
                steplab and packages and, best, one thread each. Networks had better be given by name.
            threads: of torch in each process. With another number the last digits may differ.
            progress: show a bar; what was there already counts at once.
            resources: that a Dask worker must have for a cell, such as {"GPU": 1}.

        Raises:
            ValueError: an argument is not as described, or a network cannot be sent to another process.
            ImportError, ConnectionError, RuntimeError: there is no cluster, or it is lost; no process starts.
        """
        for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}, expected a whole number, {least} or more")
        if cluster is not None and workers != 1:
            raise ValueError(f"workers: got {workers} with a cluster, expected one or the other")
        away = cluster is not None or workers > 1
        networks = {k: _packed(k, v) if away else self.networks[k] for k, v in self._given.items()}
        self.store.flush()
        self._errors, grid = {}, self._grid(self.networks, self.records)
        todo = deque((cell, 0) for cell in grid if self._missing(cell))
        bar = tqdm(
            total=len(grid), initial=len(grid) - len(todo), desc=self.name, unit="cell", disable=not progress
        )
        # No process is started where nothing is to do.
        with bar, cells.places(workers if todo else 1, cluster if todo else None, resources) as free:
            flying: dict[Future, tuple] = {}
            while todo or flying:
                while todo and free:
                    cell, tried = todo.popleft()
                    missing = self._missing(cell)  # again: another run may be at the same store
                    if not missing:
                        bar.update()
                        continue
                    lane, job = free.pop(), self._job(cell, missing, networks[cell.network], threads)
                    future = lane.submit(cells.compute, pickle.dumps(job) if away else job)
                    flying[future] = cell, tried, lane, missing
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    cell, tried, lane, missing = flying.pop(future)
                    free.append(lane)
                    outcome = _outcome(future, missing)
                    self._keep(cell, outcome)
                    if outcome.errors and tried < retries:
                        todo.append((cell, tried + 1))
                    else:
                        bar.update()
        return self

    def _job(self, cell: _Cell, metrics: tuple[str, ...], network: Any, threads: int) -> Job:
        stored = self.store.explanation(cell.key, cell.record.clip)
        known = None if stored is None else stored.to_bytes(pixels=False)
        constants = self.methods[cell.method]["constants"]
        return Job(
            network, cell.record, cell.asked, constants, metrics, self.device, threads, cell.stamp, known
        )

    def _missing(self, cell: _Cell) -> tuple[str, ...]:
        """The metrics that are to be computed; all of them where the explanation itself is not there."""
        if not self.store.whole(cell.key):
            return self.metrics
        return tuple(m for m in self.metrics if self.store.facts(cell.keys[m]) is None)

    def _keep(self, cell: _Cell, outcome: Outcome) -> None:
        if outcome.explanation is not None:
            self.store.put(f"{cell.key}.safetensors", outcome.explanation)
        for metric, value in outcome.values.items():
            self.store.keep_facts(cell.keys[metric], metric, value, outcome.label)
            self._errors.pop(cell.keys[metric], None)
        self._errors |= {cell.keys[m]: error for m, error in outcome.errors.items()}

    def table(self) -> pd.DataFrame:
        """What is known by now, one row for each cell and metric, in the order of the grid.

        Columns: dataset, network, clip, label, method, seed, metric, value, error. Value is NaN where the
        metric does not apply, the cell failed (`error` says why) or is not computed yet (says that).
        """
        rows = []
        for cell in self._grid(self.networks, self.records):
            for metric, key in cell.keys.items():
                facts = self.store.facts(key)
                value, found, error = (
                    (np.nan, "", self._errors.get(key, _PENDING)) if facts is None else (*facts, "")
                )
                rows.append((*self._where(cell, found), metric, value, error))
        return pd.DataFrame(rows, columns=_COLUMNS)

    def measure(self, metric: str, function: Callable[[Explanation, Record, Network], float]) -> pd.DataFrame:
        """What a function of your own says of the explanations that are stored: rows as in `table()`.

        Computed in this process, not stored. Value is NaN where there is no explanation; `error` says why.

        Args:
            metric: what to call it.
            function: called with explanation, record and network; NaN says that it does not apply.
        """
        rows = []
        for cell in self._grid(self.networks, self.records):
            found = self.store.explanation(cell.key, cell.record.clip)
            failed = next((self._errors[k] for k in cell.keys.values() if k in self._errors), _PENDING)
            label, error = ("", failed) if found is None else (found.label, "")
            value = (
                np.nan if found is None else float(function(found, cell.record, self.networks[cell.network]))
            )
            rows.append((*self._where(cell, label), metric, value, error))
        return pd.DataFrame(rows, columns=_COLUMNS)

    def _where(self, cell: _Cell, found: str) -> tuple[str, str, str, str, str, int]:
        """The columns that say where in the grid a row is; `found`: the label that was explained."""
        target = cell.asked["target"]
        label = found if target is None else self.networks[cell.network].classes[target]
        return self.name, cell.network, cell.record.name, label, cell.method, cell.seed

    def about(self) -> pd.DataFrame:
        """What a stored table must come with: a row for each network, with its sha256, settings, versions.

        Columns: dataset, network, sha256, clips, preset, ratios, seeds, and one for each of `versions()`.
        """
        asked, rows = {"clips": len(self.records), "preset": self.preset}, []
        for shown, network in self.networks.items():
            where = {"dataset": self.name, "network": shown, "sha256": fingerprint(network)}
            used = [s["ratios"] or paper_ratios(network) for s in self.methods.values()]
            asked["ratios"] = " ".join(map(str, dict.fromkeys(v for ratios in used for v in ratios)))
            asked["seeds"] = " ".join(map(str, self.seeds))
            rows.append({**where, **asked, **versions()})
        return pd.DataFrame(rows)

    def failures(self) -> pd.DataFrame:
        """The rows of `table()` that failed in the last run of this study, each with its error."""
        table = self.table()
        return table.loc[~table.error.isin(["", _PENDING])].reset_index(drop=True)

    def explanation(
        self,
        record: Record | str,
        network: str | None = None,
        method: str | None = None,
        seed: int | None = None,
    ) -> Explanation:
        """The stored explanation of one cell, with its clip; found now if it is not there.

        Args:
            record: a record or the name of one; network, method, seed: as in the table, the first by default.

        Raises:
            ValueError: not in the grid, or whatever makes that cell fail.
        """
        name = record.name if isinstance(record, Record) else record
        network = next(iter(self.networks)) if network is None else network
        method = next(iter(self.methods)) if method is None else method
        seed = self.seeds[0] if seed is None else seed
        for argument, value, known in (
            ("record", name, self._records),
            ("network", network, self.networks),
            ("method", method, self.methods),
            ("seed", seed, self.seeds),
        ):
            pick(argument, value, known)
        grid = self._grid([network], [self._records[name]])
        cell = next(c for c in grid if (c.method, c.seed) == (method, seed))
        if (found := self.store.explanation(cell.key, cell.record.clip)) is None:
            data = cells.answer(self._job(cell, (), self.networks[network], 1))
            self.store.put(f"{cell.key}.safetensors", data)
            found = Explanation.from_bytes(data, cell.record.clip)
        return found


def _distinct(argument: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"{argument}: got none, expected at least one")
    if doubled := [v for i, v in enumerate(values) if v in values[:i]]:
        raise ValueError(f"{argument}: got {doubled[0]!r} twice, expected each once")


def _shown(argument: str, given: Any, kinds: tuple[type, ...]) -> dict[str, Any]:
    """Names to show, and what stands behind them."""
    if isinstance(given, Mapping):
        shown = dict(given)
    else:
        values = [given] if isinstance(given, str | Network) else list(given)
        names = [v.name if isinstance(v, Network) else Path(str(v)).name for v in values]
        _distinct(argument, names)
        shown = dict(zip(names, values, strict=True))
    _distinct(argument, list(shown))
    for name, value in shown.items():
        if not isinstance(name, str) or not isinstance(value, kinds):
            told = " or ".join(k.__name__ for k in kinds)
            raise ValueError(f"{argument}: got {value!r} for {name!r}, expected {told}")
    return shown


def _target(network: Network, record: Record) -> int | None:
    return None if record.label is None else network.index(record.label)


def _packed(shown: str, network: str | Network) -> str | bytes:
    """A network as it can be sent to another process."""
    if isinstance(network, str):
        return network
    try:
        return pickle.dumps(network)
    except Exception as error:
        raise ValueError(
            f"networks: {shown!r} cannot be sent to another process ({error}); give it by name, or workers=1"
        ) from error


def _outcome(future: Future, metrics: tuple[str, ...]) -> Outcome:
    try:
        return future.result()
    except CancelledError as error:
        raise ConnectionError("cluster: scheduler lost; the next run goes on from what is stored") from error
    except BrokenProcessPool:
        return Outcome.failed(metrics, "its worker process died")
    except Exception as error:  # of the cluster: compute itself raises nothing
        return Outcome.failed(metrics, error)
