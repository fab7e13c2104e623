"""Hundreds of explanations in one process, notebooks side by side: nothing grows and nothing stays behind.

Run as a script, this file is the process that is watched.
"""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_faults import CLASSES, EVERY, SIZE, Small, SmallRecurrent, Spot

from steplab.clips import Clip
from steplab.explain import explain
from steplab.networks import Network
from steplab.tables import find_notebooks, run_tables

SOAK = "STEPLAB_SOAK" in os.environ
EXPLANATIONS = 500 if SOAK else 2 * len(EVERY)


def traces(*networks: torch.nn.Module) -> dict[str, int]:
    """What a process holds: memory in kB, and things that somebody may have forgotten to close or remove."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    hooks = [
        h
        for n in networks
        for m in n.modules()
        for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
    ]
    return {
        "memory": int(status["VmRSS"].split()[0]),
        "files": len(os.listdir("/proc/self/fd")),
        "tasks": len(os.listdir("/proc/self/task")),
        "threads": threading.active_count(),
        "children": len(Path("/proc/self/task", str(os.getpid()), "children").read_text().split()),
        "hooks": sum(map(len, hooks)),
        "tensors": sum(type(thing) is torch.Tensor for thing in gc.get_objects()),
    }


def watched(count: str) -> None:
    """Explain clips with one method after another; print what is held after each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    modules = [kind(*(Spot(lambda x, n: x) for _ in range(2))).eval() for kind in (Small, SmallRecurrent)]
    plain, recurrent = (Network(module, CLASSES) for module in modules)
    for n in range(int(count)):
        pixels = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(n))
        clip = Clip(pixels, torch.arange(SIZE[0]) / 4, f"clip {n}")
        method = EVERY[n % len(EVERY)]
        network = recurrent if method == "eb-r" else plain
        explain(network, clip, n % 3, method, (0.05, 0.1), "smoke", progress=False)
        print(json.dumps(traces(*modules)), flush=True)


if __name__ == "__main__":
    watched(sys.argv[1])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_many_explanations_in_one_process_leave_nothing_behind(promise):
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(EXPLANATIONS)]
    done = subprocess.run(
        command, env=quiet, capture_output=True, text=True, timeout=3600, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    held = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(held) == EXPLANATIONS
    warm, last = held[len(EVERY) - 1], held[-1]  # every method has run once: what is loaded once is loaded
    for kind in ("files", "tasks", "threads", "children", "hooks", "tensors"):
        assert last[kind] <= warm[kind], (
            f"{kind}: {warm[kind]} after the first {len(EVERY)}, then {last[kind]}"
        )
    growth = last["memory"] / warm["memory"] - 1
    assert growth < 0.05, [h["memory"] for h in held]
    figure = f"memory {growth:+.1%} ({warm['memory'] // 1024} to {last['memory'] // 1024} MB) after the first"
    what = (
        "Explanations in one process, all methods in turn: memory flat, no file, thread, process or hook left"
    )
    promise(what, f"{EXPLANATIONS}: {figure} {len(EVERY)}; nothing left")


@pytest.mark.skipif(not SOAK, reason="minutes on all cores: `make soak`")
def test_eight_lessons_at_once_finish(tmp_path, promise):
    start = time.perf_counter()
    names = [path.stem for path in find_notebooks()][:8]
    runs = run_tables(names, {"preset": "smoke"}, out=tmp_path, jobs=8)
    assert [run.error for run in runs] == [""] * 8
    cores = len(os.sched_getaffinity(0))
    promise(
        f"Lessons 00 to 07 at once on {cores} cores finish", f"8 of 8, {time.perf_counter() - start:.0f} s"
    )
