"""Hashes of what the package computes and calls things, to hold a move of code against: on one machine only.

    python tests/golden.py runs/golden.json            # write them, before
    python tests/golden.py runs/golden.json --check    # compare, after; says what differs

Masks and heat maps of every method, preset and family after a few iterations, the stage's pixels, the public
names and their signatures, and what `--help` prints. Another processor rounds otherwise: nothing to commit.
"""

import argparse
import hashlib
import inspect
import json
import sys
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path

import torch

import steplab as sl
from steplab.__main__ import main as command
from steplab.config import BASELINES, METHODS, PRESETS

COMMANDS = ((), ("explain",), ("tables",), ("train",), ("lab",), ("data", "check"))
TASKS = ("action", "object", "moment", "confounded")


def digest(*tensors: torch.Tensor) -> str:
    found = hashlib.sha256()
    for t in tensors:
        found.update(f"{t.dtype} {tuple(t.shape)}".encode())
        found.update(t.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def masks() -> dict[str, str]:
    found, record = {}, sl.Stage("action", "test", seed=1)[1]
    for family in ("r2plus1d", "vgg16lstm"):
        network = sl.load_network(f"stage-action-{family}")
        for method in (*METHODS, *BASELINES):
            for preset in PRESETS if method in METHODS else ("smoke",):
                more = {"iterations": 3} if method in METHODS else {}
                about = record.label, method, (0.1,), preset
                one = sl.explain(network, record.clip, *about, progress=False, **more)
                key = f"{family} {method} {preset}"
                found[key] = digest(one.masks, one.heatmap, one.probability)
                print(key, found[key], flush=True)
    return found


def names() -> dict[str, str]:
    return {f"steplab.{name}": str(inspect.signature(getattr(sl, name))) for name in sl.__all__}


def pages() -> dict[str, str]:
    found = {}
    for words in COMMANDS:
        said = StringIO()
        with redirect_stdout(said):
            with suppress(SystemExit):
                command([*words, "--help"])
        found[f"steplab {' '.join(words)} --help"] = said.getvalue()
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("path", type=Path)
    options.add_argument("--check", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    records = {task: sl.Stage(task, "test", seed=0)[0] for task in TASKS}
    stage = {f"stage {task}": digest(r.clip.pixels, r.mask, *r.boxes) for task, r in records.items()}
    now = {**names(), **pages(), **stage, **masks()}
    if not chosen.check:
        chosen.path.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    before = json.loads(chosen.path.read_text())
    moved = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    print("\n".join(moved) or f"{len(now)} as before")
    return bool(moved)


if __name__ == "__main__":
    sys.exit(main())
