"""Make the students' copies of the assignments, and grade what comes back, both by nbgrader.

python notebooks/assignments/grade.py release [NAME ...]
python notebooks/assignments/grade.py grade SUBMISSIONS [--out runs/grades] [--timeout 120] [--jobs 1]

SUBMISSIONS holds a folder for each student with NAME.ipynb or NAME/NAME.ipynb. Grading runs their code.
"""

import argparse
import csv
import html
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, GenerateAssignment, GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import Execute
from nbgrader.utils import capture_log
from traitlets.config import Config

# nbgrader starts `alembic` by its name, and an environment need not be activated to be used.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
HERE = Path(__file__).resolve().parent
STUDENT = "student"  # what nbgrader calls every student: no name from outside becomes a path or a pattern
STUB = {"python": "raise NotImplementedError  # your code here"}
MOST_BYTES = 50_000_000  # of a submitted notebook
MOST_STOPS = 8  # cells of one notebook that may hang or kill their kernel
OUTSIDE = re.compile(r"<script[^>]*\bsrc=[^>]*>\s*</script>")  # nbgrader's page fetches MathJax, say
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def assignments() -> list[str]:
    """Names of the assignments that there are sources for."""
    return sorted(path.parent.name for path in HERE.glob("source/*/*.ipynb") if path.stem == path.parent.name)


class Run(Execute):
    """Runs every cell; one that hangs or kills the kernel fails, and the rest runs in a new one without it.

    An interrupt would be cheaper, but a loop that catches exceptions does not mind interrupts.
    """

    def preprocess(self, nb, resources, km=None):
        self.stopped: dict[int, str] = {}
        while True:
            try:
                return super().preprocess(nb, resources, km)
            except (CellTimeoutError, DeadKernelError) as error:
                slow = isinstance(error, CellTimeoutError)
                said = f"stopped after {self.timeout} s" if slow else "the kernel died: memory, or an exit?"
                self.stopped[self.at] = said
                if len(self.stopped) > MOST_STOPS:
                    raise

    def preprocess_cell(self, cell, resources, index):
        self.at = index
        if index not in self.stopped:
            return super().preprocess_cell(cell, resources, index)
        said = self.stopped[index]
        cell.outputs = [nbformat.v4.new_output("error", ename="Stopped", evalue=said, traceback=[said])]
        return cell, resources


def course(root: Path, timeout: int = 120) -> CourseDirectory:
    """A course in `root`, with the settings of everything that nbgrader does here."""
    c = Config()
    c.CourseDirectory.root, c.CourseDirectory.course_id = str(root), "steplab"
    c.ClearSolutions.code_stub, c.ClearSolutions.text_stub = STUB, "*Your answer here.*"
    c.Execute.timeout, c.Execute.interrupt_on_timeout, c.Execute.error_on_timeout = timeout, False, {}
    c.HTMLExporter.sanitize_html = True  # a submission may hold scripts
    return CourseDirectory(config=c)


def convert(kind: type, directory: CourseDirectory, name: str, student: str = STUDENT) -> None:
    """Let one of nbgrader's converters work; RuntimeError with the last line of what it says if it fails."""
    directory.assignment_id, directory.student_id = name, student
    converter = kind(coursedir=directory, config=directory.config, force=True)
    converter.log.setLevel(logging.INFO)
    converter.log.propagate = False
    if kind is Autograde:
        steps = converter.autograde_preprocessors
        converter.autograde_preprocessors = [Run if step is Execute else step for step in steps]
    done = capture_log(converter)
    if not done["success"]:
        lines = [line for line in done.get("log", "").splitlines() if re.match(r"\w+(\.\w+)*: ", line)]
        raise RuntimeError((lines or done["error"].strip().splitlines())[-1])


def generate(root: Path, names: list[str]) -> dict[str, nbformat.NotebookNode]:
    """The students' copies of these assignments, made in a course in `root` and known to its gradebook."""
    copies, directory = {}, course(root)
    for name in names:
        shutil.copytree(HERE / "source" / name, root / "source" / name)
        convert(GenerateAssignment, directory, name)
        copies[name] = nbformat.read(root / "release" / name / f"{name}.ipynb", as_version=4)
    return copies


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def release(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, notebook in generate(Path(folder), names).items():
            write(notebook.copy(), HERE / "release" / name / f"{name}.ipynb")
            print(f"{name}: {len(notebook.cells)} cells, {total(notebook):g} points")


def total(notebook: nbformat.NotebookNode) -> float:
    return sum(float(marks(cell).get("points", 0)) for cell in notebook.cells if marks(cell).get("grade"))


def marks(cell: nbformat.NotebookNode) -> dict:
    """What nbgrader knows of a cell."""
    return cell.metadata.get("nbgrader", {})


# ------------------------------------------------------------------------------------------- what comes back


@dataclass
class Graded:
    """One submission and what became of it.

    Attributes:
        student, assignment: as handed in.
        path: of the notebook; None if there is none that can be graded.
        status: "graded"; "trouble": graded, but a teacher should look at it; "failed": not graded.
        notes: what happened, one sentence each.
        tasks: of each task: name, points, most points, whether they are still to be given by hand, reason.
        page: feedback as HTML.
    """

    student: str
    assignment: str
    path: Path | None = None
    status: str = "graded"
    notes: list[str] = field(default_factory=list)
    tasks: list[tuple[str, float, float, bool, str]] = field(default_factory=list)
    page: str = ""

    @property
    def score(self) -> float:
        return sum(task[1] for task in self.tasks)

    @property
    def most(self) -> float:
        return sum(task[2] for task in self.tasks)

    @property
    def open(self) -> float:
        return sum(task[2] for task in self.tasks if task[3])


def find(folder: Path, names: list[str]) -> list[Graded]:
    """Every notebook that was handed in, whether it can be graded or not."""
    found = [
        Graded("", path.stem, path, "failed", ["lies in no student's folder"])
        for path in sorted(folder.glob("*.ipynb"))
    ]
    for student in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
        seen: set[str] = set()
        for path in sorted([*student.glob("*.ipynb"), *student.glob("*/*.ipynb")]):
            inside = path.relative_to(student).parts
            if any(part.startswith(".") for part in inside):
                continue
            one = Graded(student.name, path.stem, path)
            if path.stem not in names:
                one.notes = [f"no assignment has this name; there are {', '.join(names)}"]
            elif student.is_symlink() or any(p.is_symlink() for p in (path, path.parent)):
                one.notes = ["a link, not a file"]
            elif not path.is_file():
                one.notes = ["not a file"]
            elif path.stem in seen:
                one.notes = [f"handed in twice: {'/'.join(inside)} was not looked at"]
            one.status = "failed" if one.notes else "graded"
            seen.add(path.stem)
            found.append(one)
        if not seen:
            found.append(Graded(student.name, "", status="failed", notes=["no notebook in the folder"]))
    return found


def mend(path: Path, copy: nbformat.NotebookNode) -> tuple[nbformat.NotebookNode, list[str]]:
    """The submission as nbgrader wants it, and what was wrong with it.

    Only the text of its cells is taken over; which are graded, locked and worth how much stands in the copy
    that students got. A cell of it that is missing is put back as it was handed out: a test is run all the
    same, an answer is wrong.

    Raises:
        ValueError: no notebook.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES // 1_000_000} MB")
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        texts = [(c.cell_type, c.source, str(marks(c).get("grade_id", ""))) for c in notebook.cells]
        if not all(isinstance(source, str) for _, source, _ in texts):
            raise ValueError("a cell without text")
    except Exception as error:  # of a parser fed with anything at all
        raise ValueError(
            f"cannot be read as a notebook ({plain(f'{type(error).__name__}: {error}')})"
        ) from error
    asked = {marks(cell)["grade_id"]: cell for cell in copy.cells if marks(cell).get("grade_id")}
    last = {name: k for k, (_, _, name) in enumerate(texts)}
    notes = [f"{name} is there more than once: the last one counts" for name in asked if doubled(texts, name)]
    cells = []
    for k, (kind, source, name) in enumerate(texts):
        known = asked.get(name) if last[name] == k else None
        kind = known.cell_type if known is not None else kind
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        cells.append(new(source))
        if known is not None:
            cells[-1].metadata["nbgrader"] = {**marks(known)}
            if not marks(known)["solution"] and source.strip() != known.source.strip():
                notes.append(f"{name} was edited: put back as it was handed out")
    place = 0
    for name, cell in asked.items():
        at = [k for k, c in enumerate(cells) if marks(c).get("grade_id") == name]
        if not at:
            cells.insert(place, nbformat.from_dict({**cell}))
            notes.append(f"{name} is missing: put back as it was handed out")
        place = (at or [place])[0] + 1
    return nbformat.v4.new_notebook(cells=cells, metadata=copy.metadata), notes


def doubled(texts: list[tuple[str, str, str]], name: str) -> bool:
    return sum(name == other for _, _, other in texts) > 1


def plain(text: str, most: int = 300) -> str:
    """One printable line, also where the text comes from a student."""
    text = ANSI.sub("", " ".join(text.split()))
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def grade_one(one: Graded, copy: nbformat.NotebookNode, gradebook: Path, timeout: int) -> Graded:
    """Run one submission and read its points from a gradebook of its own."""
    warnings.simplefilter("ignore")
    name = one.assignment
    manual = {marks(c)["grade_id"] for c in copy.cells if marks(c).get("grade") and marks(c)["solution"]}
    points = {marks(c)["grade_id"]: float(marks(c)["points"]) for c in copy.cells if marks(c).get("grade")}
    one.tasks = [(task, 0.0, most, False, "") for task, most in points.items()]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copy(gradebook, root)
        try:
            notebook, one.notes = mend(one.path, copy)
            write(notebook, root / "submitted" / STUDENT / name / f"{name}.ipynb")
            directory = course(root, timeout)
            convert(Autograde, directory, name)
            convert(GenerateFeedback, directory, name)
            page = (root / "feedback" / STUDENT / name / f"{name}.html").read_text(encoding="utf-8")
            one.page = OUTSIDE.sub("", page)
            ran = nbformat.read(root / "autograded" / STUDENT / name / f"{name}.ipynb", as_version=4)
            with Gradebook(directory.db_url) as book:
                grades = {g.name: g for g in book.find_submission_notebook(name, name, STUDENT).grades}
                one.tasks = [
                    (task, grades[task].auto_score or 0.0, most, bool(grades[task].needs_manual_grade), "")
                    for task, most in points.items()
                ]
        except Exception as error:  # whatever it is, it stops nobody else
            one.status, one.notes = "failed", [*one.notes, plain(str(error))]
            return one
    said = {marks(cell).get("grade_id", f"cell {k}"): complaint(cell) for k, cell in enumerate(ran.cells, 1)}
    one.notes += [f"{cell}: {text}" for cell, (text, serious) in said.items() if serious]
    one.tasks = [
        (task, score, most, left, "" if task in manual or score == most else said[task][0])
        for task, score, most, left, _ in one.tasks
    ]
    one.status = "trouble" if one.notes else "graded"
    return one


def complaint(cell: nbformat.NotebookNode) -> tuple[str, bool]:
    """Why a cell that ran is worth nothing, and whether that is more than a wrong answer."""
    for output in cell.get("outputs", []):
        if output.output_type == "error":
            wrong = output.ename in ("AssertionError", "CheckFailed", "NotImplementedError")
            known = output.ename in ("AssertionError", "CheckFailed", "Stopped") and output.evalue
            return plain(output.evalue if known else f"{output.ename}: {output.evalue}"), not wrong
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr" and marks(cell).get("grade"):
            return plain(f"prints to stderr, which counts as an error: {output.text}"), True
    return "", False


# --------------------------------------------------------------------------------------------------- report


def safe(value):
    """A value of a table that no spreadsheet takes for a formula."""
    return "'" + value if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def report(graded: list[Graded], out: Path) -> None:
    """`grades.csv`, `tasks.csv` and a page for each submission, in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    head = ["student", "assignment", "score", "max_score", "manual_open", "status", "reason"]
    rows = [
        [one.student, one.assignment, one.score, one.most, one.open, one.status, "; ".join(one.notes)]
        for one in graded
    ]
    parts = ["student", "assignment", "task", "score", "max_score", "manual_open", "reason"]
    tasks = [[one.student, one.assignment, *task] for one in graded for task in one.tasks]
    for file, table in (("grades.csv", [head, *rows]), ("tasks.csv", [parts, *tasks])):
        # A folder's name need not be text.
        with open(out / file, "w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            csv.writer(stream).writerows([[safe(value) for value in row] for row in table])
    for one in reversed(graded):  # of two with one name the first was graded: its page stays
        if one.student and one.assignment in assignments():
            what = html.escape("; ".join(one.notes))
            page = one.page or f"<!DOCTYPE html><meta charset='utf-8'><p>Not graded: {what}</p>\n"
            (out / "feedback" / one.student).mkdir(parents=True, exist_ok=True)
            (out / "feedback" / one.student / f"{one.assignment}.html").write_text(page, encoding="utf-8")


def grade(folder: Path, out: Path, timeout: int, jobs: int) -> int:
    """Grade what lies in `folder`; the exit status."""
    if not folder.is_dir():
        print(f"{folder} is not a folder", file=sys.stderr)
        return 2
    names = assignments()
    graded = find(folder, names)
    if not graded:
        print(f"no folders of students in {folder}", file=sys.stderr)
        return 2
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(jobs) as pool:
        needed = sorted({one.assignment for one in graded if one.status == "graded"})
        copies, book = generate(Path(place), needed), Path(place) / "gradebook.db"
        waiting = {
            k: pool.submit(grade_one, one, copies[one.assignment], book, timeout)
            for k, one in enumerate(graded)
            if one.status == "graded"
        }
        for k, one in enumerate(graded):
            if k in waiting:
                try:
                    graded[k] = one = waiting[k].result()
                except Exception as error:  # its process died: the others are graded all the same
                    one.status, one.notes = (
                        "failed",
                        [plain(f"grading failed: {type(error).__name__}: {error}")],
                    )
            left = f" and {one.open:g} to give by hand" if one.open else ""
            print(
                f"{plain(one.student)}, {plain(one.assignment)}: {one.score:g} of {one.most:g}{left}",
                flush=True,
            )
            for note in one.notes:
                print(f"    {one.status}: {note}", flush=True)
    report(graded, out)
    print(f"{len(graded)} submissions: grades.csv, tasks.csv and the pages of feedback are in {out}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    releasing = commands.add_parser("release", help="make the students' copies")
    releasing.add_argument("names", nargs="*", help="by default all")
    grading = commands.add_parser("grade", help="grade what lies in a folder")
    grading.add_argument("folder", type=Path)
    grading.add_argument("--out", type=Path, default=Path("runs/grades"))
    grading.add_argument("--timeout", type=int, default=120, help="seconds that one cell may take")
    grading.add_argument("--jobs", type=int, default=1, help="notebooks at a time")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.command == "grade":
        return grade(options.folder, options.out, options.timeout, options.jobs)
    release(options.names or assignments())
    return 0


if __name__ == "__main__":
    sys.exit(main())
