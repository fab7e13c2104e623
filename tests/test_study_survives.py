"""A study survives what happens to long runs: killed processes, torn files, full disks, each other.

Run as a script, this file is the process that is killed.
"""

import errno
import importlib.util
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from steplab.clips import Clip, Record
from steplab.networks import Network
from steplab.study import Study

HERE = Path(__file__).resolve()
T, SIZE = 4, 14


class Tiny(torch.nn.Module):
    """Refuses clips that begin with 1; at those that begin with 0 a worker process drops dead."""

    def __init__(self):
        super().__init__()
        self.see = torch.nn.Conv3d(3, 4, 3, padding=1)
        self.say = torch.nn.Linear(4 * T, 2)

    def forward(self, x):
        first = x[:, 0, 0, 0, 0]
        if (first == 1).any():
            raise RuntimeError("this clip cannot be seen")
        if (first == 0).any() and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.say(self.see(x).relu().mean((3, 4)).flatten(1)) * 5


def make_network() -> Network:
    torch.manual_seed(0)
    return Network(Tiny().eval(), ("one", "other"), name="tiny")


def record(name: str, first: float | None = None) -> Record:
    numbers = torch.Generator().manual_seed(len(name) + ord(name[0]))
    pixels = 0.1 + 0.8 * torch.rand(3, T, SIZE, SIZE, generator=numbers)
    if first is not None:
        pixels[0, 0, 0, 0] = first
    boxes = [torch.tensor([[2.0, 2, 6, 6]])] * T
    mask = torch.zeros(T, SIZE, SIZE, dtype=torch.bool)
    mask[1:, 2:6, 2:6] = True
    return Record(Clip(pixels, torch.arange(T) / 4, name), 1, boxes, mask, (1, T), name)


def study(store: Path | str, *extra: Record, **changes) -> Study:
    records = [*map(record, "abcd"), record("unseen", 1.0), *extra]
    ask = {
        "methods": {"STEP": "step", "EP-3D": {"method": "ep3d"}, "chance": "random"},
        "metrics": ("S-PT", "T-PT", "IoU", "probability", "insertion"),
        "seeds": (0, 1),
        **changes,
    }
    network = "test_study_survives:make_network"
    return Study(
        records, network, ratios=(0.1,), preset="smoke", store=store, name="tiny", iterations=12, **ask
    )


@pytest.fixture(autouse=True)
def in_this_folder(monkeypatch):
    """From where a process finds `test_study_survives:make_network`."""
    monkeypatch.chdir(HERE.parent)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    """The table of a run that nothing happened to, as CSV."""
    before = Path.cwd()
    os.chdir(HERE.parent)
    try:
        return study(tmp_path_factory.mktemp("calm")).run(progress=False).table().to_csv()
    finally:
        os.chdir(before)


def entries_are_whole(store: Path) -> None:
    """No entry is torn, doubled or half-written; the study's own eyes find all of them."""
    assert {p.suffix for p in store.iterdir() if p.suffix != ".part"} == {".json", ".safetensors"}
    one = study(store)
    for path in store.glob("*.json"):
        json.loads(path.read_text())
    assert all(one.store.whole(p.stem) for p in store.glob("*.safetensors"))
    known = {c.key for c in one._grid(one.networks, one.records)}
    assert {p.stem for p in store.glob("*.safetensors")} <= known


def script(*arguments) -> subprocess.CompletedProcess:
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, str(HERE), *map(str, arguments)]
    return subprocess.run(command, cwd=HERE.parent, env=quiet, capture_output=True, text=True, timeout=3000)


def run_and_write(store: str, table: str) -> None:
    Path(table).write_text(study(store).run(progress=False).table().to_csv())


def forked(store: str, table: str) -> int:
    """A process of its own that runs the study; not a thread is running here, so that forking is safe."""
    if (child := os.fork()) == 0:
        try:
            run_and_write(store, table)
            sys.stdout.flush()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def killed_again_and_again(folder: str, times: str, seed: str) -> None:
    """Runs a study, kills it, goes on; where it has come to its end, a new one begins. Prints how many."""
    numbers, begun = random.Random(int(seed)), time.perf_counter()
    os.waitpid(forked(f"{folder}/store0", f"{folder}/table0"), 0)
    lasts, killed, studies = time.perf_counter() - begun, 0, 1
    while killed < int(times):
        child = forked(f"{folder}/store{studies}", f"{folder}/table{studies}")
        time.sleep(numbers.uniform(0, 0.5 * lasts))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        studies += code == 0
    assert os.waitpid(forked(f"{folder}/store{studies}", f"{folder}/table{studies}"), 0)[1] == 0
    print(f"studies {studies}", flush=True)


def two_at_once(store: str, table: str) -> None:
    children = [forked(store, f"{table}{i}") for i in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def with_workers(store: str) -> None:
    def told():
        while len(found := multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        time.sleep(2)  # at work
        print(*(p.pid for p in found), flush=True)

    threading.Thread(target=told, daemon=True).start()
    study(store, seeds=range(40)).run(workers=2, progress=False)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])


def test_killed_at_random_moments_it_goes_on(undisturbed, tmp_path, promise):
    seed, times = random.SystemRandom().randrange(10**6), 200 if "STEPLAB_SOAK" in os.environ else 6
    done = script("killed_again_and_again", tmp_path, times, seed)
    assert done.returncode == 0, done.stderr
    assert "made anew" not in done.stdout, "a torn entry was left"
    studies = int(done.stdout.split()[-1])
    for number in range(1, studies + 1):
        assert (tmp_path / f"table{number}").read_bytes().decode() == undisturbed, f"seed {seed}"
        entries_are_whole(tmp_path / f"store{number}")
    promise(
        "Studies killed by SIGKILL at random moments and resumed: no entry torn, the final tables identical",
        f"{times} kills in {studies} studies: {studies} tables identical",
    )


def test_two_runs_share_a_store(undisturbed, tmp_path):
    done = script("two_at_once", tmp_path / "store", tmp_path / "table")
    assert done.returncode == 0, done.stderr
    for i in range(2):
        assert (tmp_path / f"table{i}").read_bytes().decode() == undisturbed
    entries_are_whole(tmp_path / "store")
    assert not list((tmp_path / "store").glob(".*")), "nothing half-written is left"


class Killer(threading.Thread):
    """Kills a process once the store has its first entries."""

    def __init__(self, store: Path, victim, wait_for: int = 3):
        super().__init__(daemon=True)
        self.store, self.victim, self.wait_for, self.killed = store, victim, wait_for, None

    def run(self):
        while len(list(self.store.glob("*.json"))) < self.wait_for:
            time.sleep(0.005)
        self.killed = self.victim()
        os.kill(self.killed, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_a_deadly_cell_given_up(undisturbed, tmp_path):
    ask = {"methods": {"EP-3D": "ep3d"}}
    killer = Killer(tmp_path, lambda: random.choice(multiprocessing.active_children()).pid)
    killer.start()
    table = study(tmp_path, record("deadly", 0.0), **ask).run(workers=2, progress=False).table()
    assert killer.killed is not None
    given_up = table[table["clip"] == "deadly"]
    assert (given_up.error == "its worker process died").all() and given_up.value.isna().all()
    calm = pd.read_csv(
        io.StringIO(undisturbed), index_col=0, keep_default_na=False, na_values={"value": [""]}
    )
    calm = calm[calm.method == "EP-3D"].reset_index(drop=True)
    assert table[table["clip"] != "deadly"].to_csv() == calm.to_csv()
    assert not multiprocessing.active_children()
    entries_are_whole(tmp_path)


def test_when_the_whole_run_is_killed_its_workers_end_too(tmp_path):
    command = [sys.executable, str(HERE), "with_workers", str(tmp_path / "store")]
    run = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    children = [int(n) for n in run.stdout.readline().split()]
    assert len(children) == 2 and all(map(alive, children))
    run.kill()
    run.wait()
    run.stdout.close()
    deadline = time.monotonic() + 60
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs the extra `cluster`")
def test_on_a_cluster_that_loses_a_worker(undisturbed, tmp_path):
    facts, started = tmp_path / "scheduler.json", []

    def dask(*arguments):
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard", "--scheduler-file", str(facts)]
        started.append(subprocess.Popen(command, cwd=HERE.parent, stderr=subprocess.DEVNULL))

    try:
        dask("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not facts.exists():
            assert started[0].poll() is None, "no scheduler"
            time.sleep(0.05)
        for _ in range(2):
            dask("worker", "--no-nanny", "--nthreads", "1", "--resources", "EYE=1")
        killer = Killer(tmp_path / "store", lambda: started[1].pid)
        killer.start()
        address = json.loads(facts.read_text())["address"]
        ran = study(tmp_path / "store").run(cluster=address, resources={"EYE": 1}, progress=False)
        assert ran.table().to_csv() == undisturbed
        assert killer.killed == started[1].pid
        entries_are_whole(tmp_path / "store")
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_torn_entry_is_made_anew_and_said(undisturbed, tmp_path, capsys):
    ask = {"methods": {"EP-3D": "ep3d"}, "seeds": (0,)}
    before = study(tmp_path, **ask).run(progress=False).table().to_csv()
    torn = [sorted(tmp_path.glob(f"*.{kind}"))[0] for kind in ("safetensors", "json")]
    whole = [path.read_bytes() for path in torn]
    for path, data in zip(torn, whole, strict=True):
        path.write_bytes(data[: len(data) // 2])
    assert "nan" in str(study(tmp_path, **ask).table().value.tolist()), "torn, so not known"
    assert study(tmp_path, **ask).run(progress=False).table().to_csv() == before
    said = capsys.readouterr().out
    assert all(f"made anew: {path.name}" in said for path in torn)
    assert [path.read_bytes() for path in torn] == whole


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_loses_nothing(undisturbed, tmp_path, monkeypatch, where):
    real, left = getattr(os, where), [7]

    def full(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, where, full)
    with pytest.warns(UserWarning, match="No space left") as warned:
        one = study(tmp_path).run(progress=False)
    assert len(warned) == 1
    assert one.table().to_csv() == undisturbed
    assert len(list(tmp_path.iterdir())) == 7, "nothing half-written"
    left[0] = 10**6  # somebody has made room
    assert one.run(progress=False).table().to_csv() == undisturbed
    monkeypatch.undo()
    os.chdir(HERE.parent)
    assert study(tmp_path).table().value.notna().sum() == one.table().value.notna().sum(), (
        "all on disk by now"
    )
    entries_are_whole(tmp_path)
