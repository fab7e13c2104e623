"""Assignments: right answers get all points, wrong ones lose their own; whatever is handed in is graded."""

import copy
import csv
import importlib
import json
import os
import re
import subprocess
import sys
import traceback
import warnings
from functools import cache
from pathlib import Path

import nbformat
import pytest
import torch
from lab import ROOT

FOLDER = ROOT / "notebooks" / "assignments"
NAMES = sorted(path.parent.name for path in FOLDER.glob("source/*/*.ipynb"))


def marks(cell) -> dict:
    return cell.metadata.get("nbgrader", {})


def name_of(cell) -> str:
    return marks(cell).get("grade_id", "")


@cache
def read(kind: str, name: str):
    return nbformat.read(FOLDER / kind / name / f"{name}.ipynb", as_version=4)


def code(kind: str, name: str) -> list:
    return [cell for cell in read(kind, name).cells if cell.cell_type == "code"]


def exams_of(kind: str, name: str) -> dict[str, str]:
    """Cells that give points by themselves: their names and sources."""
    cells = [cell for cell in code(kind, name) if marks(cell).get("grade") and not marks(cell)["solution"]]
    return {name_of(cell): cell.source for cell in cells}


def answers_of(kind: str, name: str) -> dict[str, str]:
    cells = [cell for cell in code(kind, name) if marks(cell).get("solution") and not marks(cell)["grade"]]
    return {name_of(cell): cell.source for cell in cells}


def run(source: str, namespace: dict, title: str) -> str:
    """What a cell raises, as text; nothing if it is content."""
    try:
        exec(compile(source, title, "exec"), namespace)
    except Exception:
        return traceback.format_exc(limit=-3)
    return ""


@cache
def reference(name: str) -> dict:
    """The names that are there when the source has run from top to bottom without an error."""
    namespace: dict = {"__name__": "__main__"}
    place, threads = os.getcwd(), torch.get_num_threads()
    os.chdir(FOLDER / "source" / name)
    try:
        for k, cell in enumerate(code("source", name)):
            problem = run(cell.source, namespace, f"{name}, code cell {k} {name_of(cell)}")
            assert not problem, problem
    finally:
        os.chdir(place)
        torch.set_num_threads(threads)
    return namespace


def failures(name: str, answers: dict[str, str], kind: str = "source") -> dict[str, str]:
    """Which tests fail, and how, where these answers take the place of the right ones.

    Tests that name nothing which the answers define find what they found with the right ones: nothing.
    """
    namespace = dict(reference(name))
    for task, source in answers.items():
        run(source, namespace, task)  # an answer that raises is a wrong answer, no more
    new = [key for key, value in namespace.items() if value is not reference(name).get(key)]
    concerned = re.compile(rf"\b({'|'.join(map(re.escape, new)) or '-'})\b")
    exams = {task: source for task, source in exams_of(kind, name).items() if concerned.search(source)}
    problems = {task: run(source, dict(namespace), task) for task, source in exams.items()}
    return {task: problem for task, problem in problems.items() if problem}


@cache
def outcome(name: str, task: str, what: str, kind: str) -> dict[str, str]:
    return failures(name, {task: wrong_answers(name)[task][what]}, kind)


def wrong_answers(name: str) -> dict[str, dict[str, str]]:
    return importlib.import_module(f"wrong_answers.{name}").WRONG


def test_there_are_four():
    assert [name[:3] for name in NAMES] == ["ps1", "ps2", "ps3", "ps4"]


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_pass_in_silence(name, capfd):
    """Cells that give points print nothing: nbgrader takes a word on stderr for a failure."""
    reference(name)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is a warning here is a line on stderr there
        problems = {
            task: run(source, dict(reference(name)), task)
            for task, source in exams_of("source", name).items()
        }
        assert not any(problems.values()), problems
    said = capfd.readouterr()
    assert said.out == said.err == ""


@pytest.mark.parametrize("name", NAMES)
def test_untouched_copies_get_nothing(name):
    everything = set(exams_of("source", name))
    starter = answers_of("release", name)
    assert set(starter) == set(answers_of("source", name))
    assert set(failures(name, starter)) == everything
    assert set(failures(name, starter, "release")) == everything, "without the hidden tests"


@pytest.mark.parametrize("name", NAMES)
def test_each_wrong_answer_loses_its_own_task_and_no_other(name):
    slips = []
    for task, wrongs in wrong_answers(name).items():
        assert len(wrongs) >= 2, task
        for what in wrongs:
            found = outcome(name, task, what, "source")
            assert set(found) == {f"{task}_test"}, f"{task}, {what}: {found}"
            if not outcome(name, task, what, "release"):
                slips.append(f"{task}, {what}")
    predictions = {task for task in answers_of("source", name) if "predict" in task}
    assert set(wrong_answers(name)) >= set(answers_of("source", name)) - predictions
    assert slips, "hidden tests catch nothing that the visible checks let pass"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_check_says_is_one_sentence(name):
    for task, wrongs in wrong_answers(name).items():
        for what in wrongs:
            for problem in outcome(name, task, what, "release").values():
                said = problem.strip().splitlines()[-1]
                assert re.match(r"steplab\.checks\.CheckFailed: \w", said), f"{task}, {what}: {problem}"
                assert len(said) < 400 and "    assert " not in problem, "the check's own lines are shown"
                assert re.search(r"[.?!]$", said), said


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_marked_as_they_should(name):
    cells = read("source", name).cells
    assert not any(cell.get("outputs") for cell in cells)
    names = [name_of(cell) for cell in cells if marks(cell)]
    assert len(set(names)) == len(names)
    tests = exams_of("source", name)
    assert 4 <= len([task for task in tests if "predict" not in task]) <= 7
    assert sum("predict" in task for task in tests) == 1
    for cell in cells:
        if marks(cell):
            assert marks(cell)["schema_version"] == 3 and marks(cell)["locked"] != marks(cell)["solution"]
        if name_of(cell) in tests:
            assert name_of(cell).endswith("_test") and marks(cell)["points"] > 0
            assert "checks." in cell.source and "### BEGIN HIDDEN TESTS" in cell.source
            last = [line for line in cell.source.splitlines() if not line.startswith("###")][-1]
            assert not re.fullmatch(r"[\w.]+", last.strip()), "a bare value would be taken for points"
    for source in answers_of("source", name).values():
        assert source.count("### BEGIN SOLUTION") == source.count("### END SOLUTION") >= 1
    header = cells[0].source
    for word in ("points", "minutes", "Predict", "goal"):
        assert word.lower() in "\n".join(c.source for c in cells if c.cell_type == "markdown").lower(), word
    assert "| **Run time** |" in header


# ---------- by nbgrader


pytest.importorskip("nbgrader", reason="no nbgrader: extra `grading`")


def grade(*arguments, cwd=ROOT) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    command = [sys.executable, str(FOLDER / "grade.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_release_is_up_to_date_and_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import grade as grading

    for name, fresh in grading.generate(tmp_path, NAMES).items():
        grading.write(fresh, tmp_path / "fresh.ipynb")
        stored = FOLDER / "release" / name / f"{name}.ipynb"
        assert stored.read_bytes() == (tmp_path / "fresh.ipynb").read_bytes(), f"{name}: run `make release`"
        text = stored.read_text(encoding="utf-8")
        for word in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS"):
            assert word not in text
        solutions = re.findall(
            r"### BEGIN SOLUTION\n(.*?)### END", "\n".join(answers_of("source", name).values()), re.S
        )
        for line in {line.strip() for part in solutions for line in part.splitlines()}:
            assert len(line) < 25 or json.dumps(line)[1:-1] not in text, f"{name} tells {line!r}"


def hand_in(
    folder: Path, student: str, name: str, kind: str = "answered", change=None, nested: bool = False
) -> None:
    notebook = copy.deepcopy(read("release", name))
    right = {name_of(cell): cell.source for cell in read("source", name).cells if marks(cell).get("solution")}
    for cell in notebook.cells if kind == "answered" else ():
        cell.source = right.get(name_of(cell), cell.source)
    if change is not None:
        change({name_of(cell): cell for cell in notebook.cells if marks(cell)}, notebook)
    path = folder / student / (f"{name}/{name}.ipynb" if nested else f"{name}.ipynb")
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


NOISE = """{source}
import sys

silent = {name}


def {name}(*arguments):
    print("a warning", file=sys.stderr)
    return silent(*arguments)
"""


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A room of submissions, graded by one command: what it printed, and the two tables."""
    folder = tmp_path_factory.mktemp("room")
    submissions, out = folder / "submissions", folder / "grades"
    ps1 = NAMES[0]
    first, second, *_ = answers_of("source", ps1)

    def put(task, source):
        return lambda cells, _: cells[task].update(source=source)

    hand_in(submissions, "right", ps1, nested=True)
    hand_in(submissions, "untouched", ps1, "release")
    wrong = wrong_answers(ps1)[first]
    hand_in(submissions, "wrong", ps1, change=put(first, next(iter(wrong.values()))))
    hand_in(submissions, "endless", ps1, change=put(first, "import time\n\nwhile True:\n    time.sleep(1)"))

    def noisy(cells, _):
        source = cells[first].source
        name = re.search(r"^def (\w+)", source, re.M)[1]
        cells[first].source = NOISE.format(source=source, name=name)

    hand_in(submissions, "noisy", ps1, change=noisy)

    def cheat(cells, _):
        put(first, "raise NotImplementedError")(cells, _)
        cells[f"{first}_test"].source = "assert True"

    hand_in(submissions, "cheat", ps1, change=cheat)
    hand_in(submissions, "deleted", ps1, change=lambda cells, whole: whole.cells.remove(cells[second]))
    hand_in(submissions, "import", ps1, change=put(second, "import no_such_module"))
    (submissions / "broken").mkdir()
    (submissions / "broken" / f"{ps1}.ipynb").write_text("{")
    (submissions / "=cmd <b>").mkdir()
    (submissions / "=cmd <b>" / "essay.ipynb").write_text("{}")
    for name in NAMES[1:]:
        hand_in(submissions, f"right {name[:3]}", name)
        hand_in(submissions, f"untouched {name[:3]}", name, "release")
    done = grade("grade", submissions, "--out", out, "--timeout", 45, "--jobs", 2, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    tables = [list(csv.DictReader((out / f"{n}.csv").open(encoding="utf-8"))) for n in ("grades", "tasks")]
    return done.stdout, {row["student"]: row for row in tables[0]}, tables[1], out


def lost(graded, student: str) -> dict[str, str]:
    """Tasks in which points are missing, with the reason."""
    return {
        row["task"]: row["reason"]
        for row in graded[2]
        if row["student"] == student and float(row["score"]) < float(row["max_score"])
    }


def test_right_answers_get_all_points_and_untouched_copies_none(graded):
    for name in NAMES:
        suffix = "" if name == NAMES[0] else f" {name[:3]}"
        right, untouched = graded[1][f"right{suffix}"], graded[1][f"untouched{suffix}"]
        by_hand = float(right["manual_open"])
        assert float(right["score"]) + by_hand == float(right["max_score"]) > 0, right
        assert right["status"] == "graded" and float(untouched["score"]) == 0, untouched
        assert (by_hand > 0) == name.startswith("ps4")


def test_whatever_happens_costs_one_task_and_is_said(graded):
    first, second, *_ = answers_of("source", NAMES[0])
    for student, task, words in (
        ("wrong", first, ""),
        ("endless", first, "stopped after 45 s"),
        ("noisy", first, "prints to stderr, which counts as an error: a warning"),
        ("cheat", first, f"{first}_test was edited: put back"),
        ("deleted", second, f"{second} is missing: put back"),
        ("import", second, "No module named 'no_such_module'"),
    ):
        assert set(lost(graded, student)) == {f"{task}_test"}, (student, lost(graded, student))
        assert words in graded[1][student]["reason"] and words in graded[0]
    assert lost(graded, "wrong")[f"{first}_test"], "a reason from the check"
    assert graded[1]["wrong"]["status"] == "graded" and graded[1]["endless"]["status"] == "trouble"


def test_what_cannot_be_graded_is_said_and_stops_nobody(graded):
    said, grades, _, out = graded
    assert (
        grades["broken"]["status"] == "failed"
        and "cannot be read as a notebook" in grades["broken"]["reason"]
    )
    strange = grades["'=cmd <b>"]  # no spreadsheet takes it for a formula
    assert strange["status"] == "failed" and "no assignment has this name" in strange["reason"]
    assert len(grades) == 10 + 2 * len(NAMES[1:])
    assert said.strip().splitlines()[-1].startswith(f"{len(grades)} submissions")
    pages = sorted(out.glob("feedback/*/*.html"))
    assert len(pages) == len(grades) - 1
    page = (out / "feedback" / "wrong" / f"{NAMES[0]}.html").read_text(encoding="utf-8")
    fetched = (
        r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//|@import|url\([\"']?https?:"
    )
    assert not re.findall(fetched, page), "a page of feedback loads something from outside"
    assert not list(out.glob("*.db"))


def test_names_that_are_no_text_and_second_copies_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import grade as grading

    for path in (f"ada/{NAMES[0]}.ipynb", f"ada/{NAMES[0]}/{NAMES[0]}.ipynb", f"{NAMES[1]}.ipynb"):
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_text("{}")
    found = grading.find(tmp_path / "in", NAMES)
    assert [(one.student, one.status) for one in found] == [
        ("", "failed"),
        ("ada", "graded"),
        ("ada", "failed"),
    ]
    assert "no student's folder" in found[0].notes[0] and "handed in twice" in found[2].notes[0]
    found[1].page = "<p>graded</p>"
    grading.report(
        [*found, grading.Graded("\udcff", "", status="failed", notes=["no notebook"])], tmp_path / "out"
    )
    (page,) = (tmp_path / "out" / "feedback").rglob("*.html")
    assert page.read_text() == "<p>graded</p>"
    rows = list(csv.DictReader((tmp_path / "out" / "grades.csv").open(encoding="utf-8")))
    assert [row["student"] for row in rows] == ["", "ada", "ada", r"\udcff"]


def test_a_folder_that_is_none_is_an_error(tmp_path):
    assert grade("grade", tmp_path / "nothing").returncode == 2
    (tmp_path / "empty").mkdir()
    assert grade("grade", tmp_path / "empty").returncode == 2
