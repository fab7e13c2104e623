"""One cell of a study, computed anywhere: in this process, in another, on a cluster.

A cell is one clip explained to one network by one method under one seed, and what the metrics say of it. Only
what comes out travels; the process that asked writes it to the store.
"""

import math
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch

from . import faithfulness, metrics
from .clips import Record
from .config import StepConfig
from .explain import Explanation, explain, smallest_ratio
from .explanation import fingerprint, versions
from .networks import Network, load_network
from .processes import follow_parent
from .store import engine_code, metrics_code
from .training import grow

_MARGIN = 4  # px by which a true mask is grown before a found one is laid on it: seeds are 7 px apart
# Explaining touches global state (flags of a cached network, random numbers): one cell at a time a process.
_ALONE = threading.RLock()


@dataclass(frozen=True)
class Job:
    """All that a cell needs to be computed. `network`: a name, an object, or a pickled object.

    `known`: the explanation if the store has it, as bytes; `stamp`: what must be the same on both sides.
    """

    network: str | bytes | Network
    record: Record
    asked: dict[str, Any]
    overrides: dict[str, Any]
    metrics: tuple[str, ...]
    device: str | None
    threads: int
    stamp: dict[str, str]
    known: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a job: the explanation if it was made now, values and errors of metrics by name."""

    label: str = ""
    explanation: bytes | None = None
    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def failed(cls, job_metrics: tuple[str, ...], error: BaseException | str) -> "Outcome":
        return cls(errors=dict.fromkeys(job_metrics, _line(error)))


def stamp(network: str) -> dict[str, str]:
    """What decides a cell's result besides the job itself; `network` is its fingerprint."""
    return {**versions(), "engine": engine_code(), "metrics": metrics_code(), "network": network}


def answer(job: Job) -> bytes:
    """The explanation alone, as the store keeps it: raises whatever `explain` raises."""
    with _ALONE, _threads(job.threads):
        network = _ready(job)
        if job.known is not None:
            return job.known
        result = explain(
            network, job.record.clip, progress=False, device=job.device, **job.asked, **job.overrides
        )
        assert isinstance(result, Explanation)
        if result.interrupted:
            raise KeyboardInterrupt
        return result.to_bytes(pixels=False)


def compute(job: Job | bytes) -> Outcome:
    """Explain and measure. Never raises but KeyboardInterrupt: errors are in the outcome, as text."""
    if isinstance(job, bytes):
        job = pickle.loads(job)
        assert isinstance(job, Job)
    with _ALONE, _threads(job.threads):
        try:
            data, network = answer(job), _ready(job)
            # Measured as stored, so that a resumed study measures the same.
            result = Explanation.from_bytes(data, job.record.clip)
        except Exception as error:
            return Outcome.failed(job.metrics, error)
        outcome = Outcome(result.label, None if data is job.known else data)
        for name in job.metrics:
            try:
                outcome.values[name] = float(METRICS[name](result, job.record, network))
            except Exception as error:
                outcome.errors[name] = _line(error)
        return outcome


def _ready(job: Job) -> Network:
    """The job's network, if this process would answer as the one that asked."""
    network = job.network if isinstance(job.network, Network) else _network(job.network, job.device)
    here = stamp(fingerprint(network))
    if differ := [k for k in job.stamp if job.stamp[k] != here[k]]:
        told = ", ".join(f"{k} {here[k][:12]} for {job.stamp[k][:12]}" for k in differ)
        raise RuntimeError(f"the worker differs from the process that asked: {told}")
    return network


def _line(error: BaseException | str) -> str:
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


@lru_cache(maxsize=8)
def _network(given: str | bytes, device: str | None) -> Network:
    network = load_network(given) if isinstance(given, str) else pickle.loads(given)
    if device is not None and network.module is not None:
        network.module.to(device)
    return network


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --------------------------------------------------------------------------------------------------- where


class Here(Executor):
    """The executor that is no other process: done when `submit` returns."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _begin() -> None:
    """In a new process: leave Ctrl-C to the one that asked, and do not outlive it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()


class OneProcess(Executor):
    """A process of its own, so that when one dies it is known which cell it was at; it is then replaced."""

    def __init__(self):
        self._pool, self._last = self._start(), Future()
        self._last.cancel()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)

    def submit(self, fn, /, *args, **kwargs):
        try:
            self._last = self._pool.submit(fn, *args, **kwargs)
        except BrokenProcessPool:
            self.shutdown(wait=False)
            self._pool = self._start()
            self._last = self._pool.submit(fn, *args, **kwargs)
        return self._last

    def shutdown(self, wait=True, *, cancel_futures=False):
        """Ends the process, in the middle of a cell if need be."""
        for process in [] if self._last.done() else [*(self._pool._processes or {}).values()]:
            process.kill()
        self._pool.shutdown(wait, cancel_futures=cancel_futures)


@contextmanager
def places(workers: int, cluster: str | None, resources: dict[str, float] | None) -> Iterator[list[Executor]]:
    """As many executors as cells may be at work at once; several entries may be the same one.

    Raises:
        ImportError: a cluster without the package that talks to it.
        ConnectionError: no scheduler at that address.
        RuntimeError: processes cannot be started.
    """
    with ExitStack() as scope:
        if cluster is None:
            kind = Here if workers == 1 else OneProcess
            lanes: list[Executor] = [scope.enter_context(kind()) for _ in range(workers)]
            try:
                lanes[0].submit(os.getpid).result()
            except BrokenProcessPool as error:
                raise RuntimeError(
                    "workers: no process can be started; in a script, put what calls run() under "
                    'if __name__ == "__main__":'
                ) from error
            yield lanes
            return
        try:
            from distributed import Client
        except ImportError as error:
            raise ImportError("cluster: needs dask.distributed: pip install 'steplab[cluster]'") from error
        try:
            client = scope.enter_context(Client(cluster, timeout=20, set_as_default=False))
        except (OSError, ValueError) as error:
            raise ConnectionError(f"cluster: no Dask scheduler answers at {cluster!r} ({error})") from error
        threads = sum(dict(client.nthreads()).values())  # type: ignore[arg-type]  # not awaited in this mode
        if not threads:
            print(f"{cluster}: no worker yet, waiting for one")
        executor = client.get_executor(pure=False, **({"resources": resources} if resources else {}))
        yield [executor] * max(16, 2 * threads)


# ------------------------------------------------------------------------------------------------- metrics


def _pointing(result: Explanation, record: Record, network: Network) -> float:
    return metrics.pointing_game(result.heatmap, record.boxes)


def _temporal_pointing(result: Explanation, record: Record, network: Network) -> float:
    return metrics.temporal_pointing_game(result.heatmap, record.segment)


def _probability(result: Explanation, record: Record, network: Network) -> float:
    return float(result.probability[0])


def _original(result: Explanation, record: Record, network: Network) -> float:
    return result.original


def _iou(result: Explanation, record: Record, network: Network) -> float:
    if record.mask is None:
        return math.nan
    return metrics.mask_iou(result.masks[0], grow(record.mask.float(), _MARGIN).bool())


def _energy_pointing(result: Explanation, record: Record, network: Network) -> float:
    return metrics.energy_pointing(result.heatmap, record.mask)


def _insertion(result: Explanation, record: Record, network: Network) -> float:
    steps = 4 if result.preset == "smoke" else 20
    curve = faithfulness.insertion(network, record.clip.pixels, result.heatmap, result.target, steps=steps)
    return curve.area


def _deletion(result: Explanation, record: Record, network: Network) -> float:
    steps = 4 if result.preset == "smoke" else 20
    curve = faithfulness.deletion(network, record.clip.pixels, result.heatmap, result.target, steps=steps)
    return curve.area


def _flicker(result: Explanation, record: Record, network: Network) -> float:
    return metrics.flicker(result.masks[0])


def _frames(result: Explanation, record: Record, network: Network) -> float:
    return metrics.frames_in_use(result.masks[0])


def _again(result: Explanation) -> dict[str, Any]:
    """What to ask for the same once more."""
    asked = {k: getattr(result, k) for k in ("method", "preset", "seed")}
    return {**asdict(result.config), **asked, "progress": False}


def _randomised(result: Explanation, record: Record, network: Network) -> float:
    _, other = next(faithfulness.randomised(network, stops=1))
    again = explain(other, record.clip, result.target, ratios=result.ratios, **_again(result))
    assert isinstance(again, Explanation)
    return faithfulness.similarity(result.heatmap, again.heatmap)


def _smallest_ratio(result: Explanation, record: Record, network: Network) -> float:
    if not isinstance(result.config, StepConfig):
        return math.nan
    found = smallest_ratio(network, record.clip, result.target, **_again(result))
    if found.interrupted:
        raise KeyboardInterrupt
    return found.ratio


# Each of (explanation, record, network); NaN where it does not apply. Probability, IoU, flicker, frames and
# border are of the mask of the first ratio, the others of the heat map; `randomised` is its likeness to
# what the same network gives with all of its weights drawn anew.
METRICS: dict[str, Callable[[Explanation, Record, Network], float]] = {
    "S-PT": _pointing,
    "T-PT": _temporal_pointing,
    "probability": _probability,
    "original": _original,
    "IoU": _iou,
    "energy pointing": _energy_pointing,
    "insertion": _insertion,
    "deletion": _deletion,
    "flicker": _flicker,
    "frames": _frames,
    "smallest ratio": _smallest_ratio,
    "randomised": _randomised,
}
