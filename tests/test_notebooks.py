"""Every notebook runs from top to bottom, with its parameters set otherwise too, and its widgets answer."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lab import CHROMIUM

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
CELL_TIMEOUT = 900  # seconds; a busy machine is ten times slower than an idle one

# What a reader does with the mouse, after the last cell: every control is moved to its ends and back.
MOVE_ALL = """
import gc
from steplab.widgets import ExplanationViewer, Explorer, PerturbationExplorer

everything = gc.get_objects()  # most have no name; some fall over when they are asked for their class
shown = [w for w in everything if issubclass(type(w), (ExplanationViewer, Explorer))]
assert shown, "a lesson without a slider"
for widget in shown:
    viewer = isinstance(widget, ExplanationViewer)
    names = ("frame", "ratio", "view", "opacity", "which", "clip") if viewer else widget.controls
    controls = [getattr(widget, n) for n in names] if viewer else [*widget.controls.values()]
    pictures = set()
    for control in controls:
        before = control.index
        for index in sorted({0, len(control.options) - 1, before}):
            control.index = index
            pictures.add(widget.picture() if viewer else bytes(widget.picture.value))
        control.index = before
    assert all(p.startswith(b"\\xff\\xd8") for p in pictures), "no JPEG"
    choice = any(len(control.options) > 1 for control in controls)
    assert len(pictures) > 1 or not choice, f"nothing moves in {names}"
for widget in [w for w in everything if issubclass(type(w), PerturbationExplorer)]:
    before = widget.judgement.ratio, widget.note.value
    widget.draw(1 - widget.seeds)
    assert widget.judgement.ratio != before[0] and widget.note.value != before[1]
"""

# Where there is a browser, test_browser.py runs every lesson and moves all that can be moved, but it does not
# draw by hand as lesson 01 lets one do.
HERE = LESSONS[:2] if CHROMIUM else LESSONS
# What else to run each lesson with, beside another seed.
OTHERWISE = {"00_start_here": {"index": 3, "network_name": "stage-action-r2plus1d"}}
OTHERWISE |= {p.stem: {"workers": 1} for p in LESSONS if p.stem[:2] >= "04"}


def run_by_nbval(path: Path, folder: Path, more: str = "") -> None:
    """A copy at `smoke` with another seed through nbval, in a process of its own, without shape checks."""
    pytest.importorskip("nbval")
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    notebook = parameterize_notebook(load_notebook_node(str(path)), {"preset": "smoke", "seed": 1})
    if more:
        notebook.cells.append(nbformat.v4.new_code_cell(more))
    nbformat.write(notebook, folder / path.name)
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    command += [f"--nbval-cell-timeout={CELL_TIMEOUT}", "--nbval-sanitize-with=tests/sanitize.cfg"]
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    done = subprocess.run(
        [*command, str(folder / path.name)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_run(path, tmp_path):
    assert path.name in {lesson.name for lesson in LESSONS}
    run_by_nbval(path, tmp_path)


@pytest.mark.parametrize("path", HERE, ids=lambda p: p.stem)
def test_lesson_runs_by_papermill_with_other_parameters_and_its_controls_answer(path, tmp_path):
    from steplab.tables import run_tables

    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(MOVE_ALL))
    nbformat.write(notebook, tmp_path / path.name)
    given = {"preset": "smoke", "seed": 1, **OTHERWISE.get(path.stem, {})}
    (run,) = run_tables([str(tmp_path / path.name)], given, out=tmp_path / "out", timeout=CELL_TIMEOUT)
    assert run.error == "" and run.picture, run.error
    assert run.title in (tmp_path / "out" / "index.html").read_text()


OWN = """import torch

import steplab as sl
from steplab.narrow import NarrowVGG16LSTM


def make_network():
    torch.manual_seed(0)  # never trained, and small: all that is asked here is that it can be used
    module = NarrowVGG16LSTM(8, width=4).eval()
    return sl.Network(module, sl.Stage("action").classes, frames=16, size=112)
"""


@pytest.mark.parametrize("name", [p.stem for p in LESSONS if p.stem[:2] in ("04", "05", "06", "07")])
def test_your_own_network_and_videos_by_parameters_alone(name, tmp_path, monkeypatch):
    """A module, two films and a table of boxes in the folder one stands in."""
    import pandas as pd

    import steplab as sl
    from steplab.clips import write_video
    from steplab.tables import run_tables

    monkeypatch.chdir(tmp_path)
    Path("my_module.py").write_text(OWN)
    stage, rows = sl.Stage("action", "test", seed=4), ["video,frame,x0,y0,x1,y1,label,start,stop"]
    for k in range(2):
        record = stage[k]
        write_video(f"film{k}.mp4", record.clip.pixels)
        for t, boxes in enumerate(record.boxes):
            for box in boxes.tolist():
                numbers = ",".join(f"{v:g}" for v in box)
                rows.append(f"film{k}.mp4,{t},{numbers},{stage.classes[record.label]},2,9")
    Path("boxes.csv").write_text("\n".join(rows) + "\n")
    given = {"networks": "my_module:make_network", "clips": "*.mp4", "boxes": "boxes.csv", "preset": "smoke"}
    given["workers"] = 1
    (run,) = run_tables([name], given, out="out", timeout=CELL_TIMEOUT)
    assert run.error == "", run.error
    cells = pd.read_csv(tmp_path / "out" / name / "cells.csv")
    assert set(cells["clip"]) == {"film0", "film1"} and set(cells.network) == {"my_module:make_network"}
    assert cells[cells.metric == "S-PT"].value.between(0, 1).sum() >= 14


def test_a_broken_notebook_is_not_passed(tmp_path):
    """The runner above can fail: on an error in a cell, on a control that answers nothing."""
    parameters = nbformat.v4.new_code_cell(
        'preset: str = "lesson"  # how long', metadata={"tags": ["parameters"]}
    )
    (tmp_path / "run").mkdir()
    for k, source in enumerate(("assert preset == 'lesson'", "nothing = 1")):
        broken = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(source)])
        broken.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(broken, tmp_path / f"broken{k}.ipynb")
        with pytest.raises(AssertionError, match="AssertionError"):
            run_by_nbval(tmp_path / f"broken{k}.ipynb", tmp_path / "run", MOVE_ALL if k else "")
