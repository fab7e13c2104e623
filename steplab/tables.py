"""Run notebooks with other parameters and gather what comes of it: a lesson is a table run as well.

>>> run_tables(["00_start_here"], {"preset": "smoke", "seed": 3}, out="runs")

Each notebook's first code cell, tagged `parameters`, lists what may be set: `name: type = value  # meaning`.
What it hands to `publish` is stored beside it and shown in the index. `paper` holds the published numbers,
`beside` sets ours next to them.
"""

import base64
import html
import io
import json
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import pandas as pd

from .comparison import DASH, REFERENCE, TableError, beside, joined, paper, reference
from .files import RUNS, write_whole
from .parameters import (
    NOTEBOOKS,
    check_parameters,
    find_notebooks,
    list_parameters,
    parse_value,
    read_notebook,
    read_parameters,
)
from .processes import follow_parent

if TYPE_CHECKING:
    from traitlets.config import Config

__all__ = [
    "NOTEBOOKS",
    "PUBLISH",
    "REFERENCE",
    "RUNS",
    "Run",
    "TableError",
    "beside",
    "joined",
    "check_parameters",
    "find_notebooks",
    "list_parameters",
    "paper",
    "parse_value",
    "publish",
    "read_notebook",
    "read_parameters",
    "reference",
    "run_tables",
    "write_index",
]

PUBLISH = "STEPLAB_PUBLISH"  # environment of a notebook run by run_tables: the folder its tables go to
_LIST = "published.txt"  # in that folder: names of the files, in the order of publication
_ROWS = 50  # of a table shown in the index; its CSV has all
Published = TypeVar("Published")


def publish(what: Published, name: str) -> Published:
    """Pass a table or figure on for display; in a notebook run by `run_tables`, store it as well.

    Stored are `<name>.csv` and `<name>.tex` of a table, `<name>.png` of a figure, each written whole or not
    at all. Opened by hand, a notebook stores nothing.

    Args:
        what: a pandas DataFrame or a matplotlib Figure.
        name: of the files: letters, digits, `-` and `_`.

    Raises:
        TableError: another kind of thing or of name.
    """
    from matplotlib.figure import Figure

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", name):
        raise TableError(f"name: got {name!r}, expected letters, digits, - and _, at most 80")
    if not isinstance(what, pd.DataFrame | Figure):
        raise TableError(f"what: got {type(what).__name__}, expected a DataFrame or a matplotlib Figure")
    if not (folder := os.environ.get(PUBLISH)):
        return what
    if isinstance(what, pd.DataFrame):
        index = not isinstance(what.index, pd.RangeIndex)
        flat = what.copy()
        if what.columns.nlevels > 1:
            flat.columns = [" | ".join(filter(None, map(str, column))) for column in what.columns]
        files = {".csv": flat.to_csv(index=index).encode(), ".tex": _latex(what, index).encode()}
    else:
        file = io.BytesIO()
        what.savefig(file, format="png", dpi=150, bbox_inches="tight")
        files = {".png": file.getvalue()}
    for suffix, data in files.items():
        write_whole(Path(folder) / f"{name}{suffix}", data)
        with (Path(folder) / _LIST).open("a") as listed:
            listed.write(f"{name}{suffix}\n")
    return what


def _latex(table: pd.DataFrame, index: bool) -> str:
    text = table.to_latex(index=index, escape=True, float_format="%.4g", na_rep="--", multicolumn_format="c")
    for sign, code in {
        DASH: "--",
        "Δ": r"$\Delta$",
        "Φ": r"$\Phi$",
        "λ": r"$\lambda$",
        "±": r"$\pm$",
    }.items():
        text = text.replace(sign, code)  # which LaTeX's usual fonts lack
    return text


@dataclass
class Run:
    """What came of one notebook."""

    name: str
    title: str
    parameters: dict[str, Any]
    seconds: float = 0.0
    error: str = ""  # empty when all went well
    picture: str = ""  # its first figure, as a data URI
    files: list[str] = field(default_factory=list)  # page, notebook, what it published; seen from the index


def run_tables(
    names: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    jobs: int = 1,
    folder: Path = NOTEBOOKS,
    timeout: int = 3600,
) -> list[Run]:
    """Execute notebooks with parameters; write `out/<name>/`, and `out/index.html` that shows it all.

    `out/<name>/` holds the executed notebook, the same as a page, and what it gave to `publish`. A failing
    notebook does not stop the others; its error is in the index and in the run returned. The index also shows
    what earlier calls left in `out`. Relative paths in parameters are seen from the current folder.

    Args:
        names: notebooks by name, number or path; all of `folder` by default.
        parameters: values for the parameters cells; each notebook gets those that it declares.
        jobs: how many run at once, each in a process of its own.
        timeout: seconds one cell may take.

    Raises:
        TableError: before anything runs, for an unknown notebook, a parameter that none of them declares, or
            a value of the wrong type.
    """
    taken = check_parameters(find_notebooks(names, folder), parameters or {})
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    # Processes, not threads: the runner changes the working directory, which threads share.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, jobs), mp_context=spawn, initializer=follow_parent) as pool:
        waiting = {pool.submit(_run_one, p, out.resolve(), given, timeout): p for p, given in taken.items()}
        for done in as_completed(waiting):
            try:
                run = done.result()
            except BrokenExecutor:  # killed from outside, or out of memory
                name = waiting[done].stem
                run = Run(name, name, {}, error="the process that ran it was killed")
            runs.append(run)
            print(
                f"{run.name}: {'FAILED: ' + run.error if run.error else 'done'} ({run.seconds:.0f} s)",
                flush=True,
            )
            write_index([*_earlier(out, {path.stem for path in taken}), *runs], out)
    return sorted(runs, key=lambda r: r.name)


def _earlier(out: Path, names: set[str]) -> list[Run]:
    """What earlier calls left, other than `names`."""
    found = []
    for path in out.glob("*/run.json"):
        try:
            if path.parent.name not in names:
                found.append(Run(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # not one of ours
    return found


@contextmanager
def _kernels() -> Iterator["Config"]:
    """Kernels that talk through files only their owner can open, not ports; Windows has no such files.

    Each in a folder of its own: by default two that start in one folder at once may share a file.
    """
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="steplab-") as folder:
        own = {"transport": "ipc", "ip": f"{folder}/kernel"} if os.name == "posix" else {}
        yield Config({"KernelManager": own})


def _run_one(path: Path, out: Path, parameters: dict[str, Any], timeout: int) -> Run:
    import papermill
    from nbclient.exceptions import DeadKernelError

    os.environ.pop("MPLBACKEND", None)  # else figures would not appear in the notebook
    notebook = read_notebook(path)
    shown = {p.name: parameters.get(p.name, p.default) for p in read_parameters(path).values()}
    run = Run(path.stem, _title(notebook) or path.stem, shown)
    out = out / path.stem
    out.mkdir(exist_ok=True)
    for name in (*_published(out), _LIST, "run.json"):
        (out / name).unlink(missing_ok=True)
    os.environ[PUBLISH] = str(out)
    result, part = out / path.name, out / f".{path.name}"
    start = time.perf_counter()
    for attempt in (1, 2):
        try:
            with _kernels() as config:
                papermill.execute_notebook(
                    str(path),
                    str(part),
                    parameters,
                    cwd=os.getcwd(),
                    kernel_name="python3",
                    progress_bar=False,
                    config=config,
                    execution_timeout=timeout,
                    store_widget_state=False,  # it would not survive reopening, and is large
                )
        except papermill.PapermillExecutionError as error:
            run.error = f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            run.error = "its kernel died: killed, most likely for want of memory"
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
    if part.exists():
        os.replace(part, result)
        executed = read_notebook(result)
        run.picture = _first_picture(executed)
        run.error = run.error and f"{_stopped(executed)}{run.error}"
        run.files = [f"{out.name}/{name}" for name in (_to_html(result).name, result.name, *_published(out))]
    write_whole(out / "run.json", json.dumps(asdict(run), default=repr).encode())
    return run


def _published(folder: Path) -> list[str]:
    """Names of the files that a notebook published there, in that order, each once."""
    listed = folder / _LIST
    names = dict.fromkeys(listed.read_text().split()) if listed.is_file() else {}
    return [n for n in names if re.fullmatch(r"[\w-]+\.(csv|tex|png)", n) and (folder / n).is_file()]


def _stopped(notebook: dict) -> str:
    """Where an executed notebook stopped: the number shown beside the cell, and the cell's first line."""
    by_status = {c["metadata"].get("papermill", {}).get("status"): c for c in notebook["cells"]}
    # A cell that ran out of time, or whose kernel died, is called completed: the last of those.
    cell = by_status.get("failed") or by_status.get("running") or by_status.get("completed")
    if not cell:
        return ""
    first = next(filter(None, map(str.strip, "".join(cell["source"]).splitlines())), "")
    return f"cell [{cell.get('execution_count') or '*'}] {first!r}: "


def _to_html(path: Path) -> Path:
    from nbconvert import HTMLExporter

    # Nothing is fetched from elsewhere when the page is opened, so formulas stay as they are typed.
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    body, _ = exporter.from_filename(str(path))
    page = path.with_suffix(".html")
    write_whole(page, body.encode())
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
figure { margin: 1rem 0; overflow-x: auto } figcaption { font-weight: bold }
table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left }
"""


def write_index(runs: Iterable[Run], out: str | Path) -> Path:
    """Write `index.html`: of each run its title, tables, figures, parameters, time, files, and any error."""
    parts = []
    for run in sorted(runs, key=lambda r: r.name):
        settings = ", ".join(f"{html.escape(k)} = {html.escape(repr(v))}" for k, v in run.parameters.items())
        links = " · ".join(f'<a href="{quote(f)}">{html.escape(Path(f).name)}</a>' for f in run.files)
        parts.append(f"<article><h2>{html.escape(run.title)}</h2>")
        if run.error:
            parts.append(f'<p class="failed">failed: {html.escape(run.error)}</p>')
        shown = [figure for name in run.files if (figure := _figure(Path(out), name))]
        if run.picture and not shown:
            name = html.escape(run.name)
            shown = [f'<img alt="first figure of {name}" src="{html.escape(run.picture)}">']
        parts += shown
        parts.append(f"<p>{links}</p>")
        parts.append(f'<p class="note">{run.seconds:.0f} s with <code>{settings}</code></p></article>')
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>steplab tables</title>'
    head += f"<style>{_STYLE}</style>"
    page = Path(out) / "index.html"
    write_whole(page, (head + "<h1>steplab tables</h1>" + "\n".join(parts) + "</html>\n").encode())
    return page


def _figure(out: Path, name: str) -> str:
    """A published table or picture as HTML; nothing for other files."""
    path, label = out / name, html.escape(Path(name).stem)
    if path.suffix == ".png":
        return f'<figure><figcaption>{label}</figcaption><img alt="{label}" src="{quote(name)}"></figure>'
    if path.suffix != ".csv" or not path.is_file():
        return ""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rest = f'<p class="note">and {len(table) - _ROWS} more rows</p>' if len(table) > _ROWS else ""
    body = table.head(_ROWS).to_html(index=False, border=0)  # escapes what is in it
    return f"<figure><figcaption>{label}</figcaption>{body}{rest}</figure>"
