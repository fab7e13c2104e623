"""Every notebook runs from top to bottom as it is, and with other parameters as a table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT = 900  # seconds; a busy machine is ten times slower than an idle one


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path):
    """nbval in a process of its own, without the shape checks that the other tests add to the package."""
    pytest.importorskip("nbval")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    command += [f"--nbval-cell-timeout={CELL_TIMEOUT}", "--nbval-sanitize-with=tests/sanitize.cfg", str(path)]
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_with_other_parameters(path, tmp_path):
    from steplab.tables import run_tables

    (run,) = run_tables([str(path)], {"preset": "smoke", "seed": 1}, out=tmp_path, timeout=CELL_TIMEOUT)
    assert run.error == "" and run.picture, run.error
    assert run.title in (tmp_path / "index.html").read_text()
