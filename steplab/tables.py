"""Run notebooks with other parameters and gather what comes of it: a lesson is a table run as well.

>>> run_tables(["00_start_here"], {"preset": "smoke", "seed": 3}, out="runs")

Each notebook's first code cell, tagged `parameters`, lists what may be set: `name: type = value  # meaning`.
"""

import ast
import base64
import difflib
import html
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

# Kernels talk through files that only their owner can open, not through ports; Windows has no such files.
KERNELS = {"KernelManager": {"transport": "ipc"}} if os.name == "posix" else {}
NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
RUNS = NOTEBOOKS.parent / "runs"
REFERENCE = NOTEBOOKS.parent / "data" / "reference"  # long runs, stored with the scripts that made them


class TableError(ValueError):
    """A notebook that is not there, or a parameter it does not have or not with such a value."""


def reference(name: str) -> pd.DataFrame:
    """A stored table of `data/reference`, made by a long run of the script of the same name.

    Raises:
        TableError: there is none of that name.
    """
    path = REFERENCE / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in REFERENCE.glob("*.csv")))
        raise TableError(f"name: got {name!r}, expected one of {known}")
    return pd.read_csv(path)


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    type: str  # as annotated, or the default's type where nothing is annotated
    default: Any


@dataclass
class Run:
    """What came of one notebook."""

    name: str
    title: str
    parameters: dict[str, Any]
    seconds: float = 0.0
    error: str = ""  # empty when all went well
    picture: str = ""  # its first figure, as a data URI
    files: list[str] = field(default_factory=list)


def read_notebook(path: Path) -> dict:
    """A notebook's JSON.

    Raises:
        TableError: the file is not a notebook.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TableError(f"notebook: {path.name} is not a notebook that can be read ({error})") from error
    return notebook


def read_parameters(path: Path) -> dict[str, Parameter]:
    """The parameters a notebook declares, by name.

    Raises:
        TableError: no cell tagged `parameters`, or one that holds more than `name: type = literal` lines.
    """
    for cell in read_notebook(path)["cells"]:
        if cell["cell_type"] == "code" and "parameters" in cell["metadata"].get("tags", []):
            break
    else:
        raise TableError(f"notebook: {path.name} has no code cell tagged 'parameters'")
    found = {}
    try:
        for line in ast.parse("".join(cell["source"])).body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
                name, kind, value = line.target.id, ast.unparse(line.annotation), line.value
            elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                name, kind, value = line.targets[0].id, "", line.value
            else:
                raise ValueError(f"line {line.lineno} sets no parameter")
            default = ast.literal_eval(value)
            found[name] = Parameter(name, kind or type(default).__name__, default)
    except (SyntaxError, ValueError) as error:
        raise TableError(f"notebook: {path.name}: parameters cell: {error}") from error
    return found


def parse_value(text: str) -> Any:
    """A Python literal if the text is one, else the text itself: 3, 0.1, [0.05, 0.1], True, lesson."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def check_parameters(path: Path, given: Mapping[str, Any]) -> None:
    """Refuse what a notebook does not declare, before it runs: the runner itself would only warn.

    Raises:
        TableError: an unknown name, or a value of another type than the default's.
    """
    known = read_parameters(path)
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TableError(
                f"parameters: {path.stem} has no {name!r}, expected one of {sorted(known)}{hint}"
            )
        default = known[name].default
        same = isinstance(value, bool) == isinstance(default, bool) and (
            isinstance(value, type(default))
            or (isinstance(default, float) and isinstance(value, int))
            or (isinstance(default, list | tuple) and isinstance(value, list | tuple))
        )
        optional = default is None or (value is None and "None" in known[name].type)
        if not (same or optional):
            raise TableError(f"parameters: {path.stem}: {name}: got {value!r}, expected {known[name].type}")


def find_notebooks(names: Iterable[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Paths of the notebooks named (by name or path), or of all in the folder.

    Raises:
        TableError: one of them is not there.
    """
    here = sorted(folder.glob("*.ipynb"))
    if not (names := list(names)):
        if not here:
            raise TableError(f"notebooks: none in {folder.name}/")
        return here
    found = []
    for name in names:
        path = next(
            (p for p in [*here, Path(name)] if name in (p.stem, p.name, str(p)) and p.is_file()), None
        )
        if path is None:
            near = difflib.get_close_matches(name, [p.stem for p in here], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {[p.stem for p in here]}"
            raise TableError(f"notebooks: no {name!r}; {hint}")
        found.append(path)
    return found


def run_tables(
    names: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    jobs: int = 1,
    folder: Path = NOTEBOOKS,
    timeout: int = 3600,
) -> list[Run]:
    """Execute notebooks with parameters and write `out/<name>.ipynb`, `out/<name>.html` and `out/index.html`.

    A failing notebook does not stop the others; its error is in the index and in the run returned.

    Args:
        names: notebooks by name or path; all of `folder` by default.
        parameters: values for the parameters cell, the same for each notebook.
        jobs: how many run at once, each in a process of its own.
        timeout: seconds one cell may take.

    Raises:
        TableError: before anything runs, for an unknown notebook or parameter, or a value of the wrong type.
    """
    parameters = dict(parameters or {})
    paths = find_notebooks(names, folder)
    for path in paths:
        check_parameters(path, parameters)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    # Processes, not threads: the runner changes the working directory, which threads share.
    with ProcessPoolExecutor(max(1, jobs), mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(_run_one, path, out.resolve(), parameters, timeout) for path in paths]
        for done in as_completed(waiting):
            run = done.result()
            runs.append(run)
            print(
                f"{run.name}: {'FAILED: ' + run.error if run.error else 'done'} ({run.seconds:.0f} s)",
                flush=True,
            )
            write_index(sorted(runs, key=lambda r: r.name), out)
    return sorted(runs, key=lambda r: r.name)


def _run_one(path: Path, out: Path, parameters: dict[str, Any], timeout: int) -> Run:
    import papermill
    from traitlets.config import Config

    os.environ.pop("MPLBACKEND", None)  # else figures would not appear in the notebook
    notebook = read_notebook(path)
    shown = {p.name: parameters.get(p.name, p.default) for p in read_parameters(path).values()}
    run = Run(path.stem, _title(notebook) or path.stem, shown)
    result = out / path.name
    start = time.perf_counter()
    for attempt in (1, 2):
        try:
            papermill.execute_notebook(
                str(path),
                str(result),
                parameters,
                cwd=str(path.parent),
                kernel_name="python3",
                progress_bar=False,
                config=Config(KERNELS),
                execution_timeout=timeout,
                store_widget_state=False,  # it would not survive reopening, and is large
            )
        except papermill.PapermillExecutionError as error:
            run.error = f"cell {error.cell_index}: {error.ename}: {error.evalue}"
        except RuntimeError as error:  # two kernels starting at once can race for a port
            run.error = f"{type(error).__name__}: {error}"
            if attempt == 1 and "Kernel" in str(error):
                continue
        except Exception as error:  # one broken notebook must not take the others down
            run.error = f"{type(error).__name__}: {error}"
        else:
            run.error = ""
        break
    run.seconds = time.perf_counter() - start
    if result.exists():
        run.files = [result.name]
        run.picture = _first_picture(read_notebook(result))
        run.files.insert(0, _to_html(result).name)
    return run


def _to_html(path: Path) -> Path:
    from nbconvert import HTMLExporter

    # Nothing is fetched from elsewhere when the page is opened, so formulas stay as they are typed.
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    body, _ = exporter.from_filename(str(path))
    page = path.with_suffix(".html")
    page.write_text(body, encoding="utf-8")
    return page


def _title(notebook: dict) -> str:
    for cell in notebook["cells"]:
        for line in "".join(cell["source"]).splitlines():
            if cell["cell_type"] == "markdown" and line.startswith("# "):
                return line[2:].strip()
    return ""


def _first_picture(notebook: dict) -> str:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            for kind in ("image/png", "image/jpeg", "image/webp"):
                if kind in output.get("data", {}):
                    data = "".join(output["data"][kind]).replace("\n", "")
                    base64.b64decode(data, validate=True)  # it goes into the page unescaped
                    return f"data:{kind};base64,{data}"
    return ""


_STYLE = """
body { font: 16px/1.5 sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222 }
article { border-top: 1px solid #ccc; padding: 1rem 0 } h2 { margin: 0 0 .3rem } img { max-width: 100% }
.note { color: #666; font-size: .9rem } .failed { color: #a11 } code { overflow-wrap: anywhere }
"""


def write_index(runs: Iterable[Run], out: str | Path) -> Path:
    """Write `index.html`: each run's title, first figure, parameters, time, files, and error if it failed."""
    parts = []
    for run in runs:
        e = {"title": html.escape(run.title), "name": html.escape(run.name), "error": html.escape(run.error)}
        settings = ", ".join(f"{html.escape(k)} = {html.escape(repr(v))}" for k, v in run.parameters.items())
        links = " · ".join(f'<a href="{html.escape(f)}">{html.escape(f)}</a>' for f in run.files)
        parts.append(f"<article><h2>{e['title']}</h2>")
        if run.error:
            parts.append(f'<p class="failed">failed: {e["error"]}</p>')
        if run.picture:
            parts.append(f'<img alt="first figure of {e["name"]}" src="{run.picture}">')
        parts.append(f"<p>{links}</p>")
        parts.append(f'<p class="note">{run.seconds:.0f} s with <code>{settings}</code></p></article>')
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>steplab tables</title>'
    head += f"<style>{_STYLE}</style>"
    page = Path(out) / "index.html"
    page.write_text(head + "<h1>steplab tables</h1>" + "\n".join(parts) + "</html>\n", encoding="utf-8")
    return page
