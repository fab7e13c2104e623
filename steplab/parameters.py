"""What may be set in a notebook: read from its first code cell, checked before anything runs.

>>> check_parameters(find_notebooks(["07"]), {"preset": "smoke"})

The cell is tagged `parameters`; each line says `name: type = value  # meaning`.
"""

import ast
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .comparison import TableError
from .names import nearest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    type: str  # as annotated, or the default's type where nothing is annotated
    default: Any
    meaning: str = ""  # the comment behind it


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
    source = "".join(cell["source"])
    try:
        lines = ast.parse(source).body
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = {t.end[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
        for line in lines:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value:
                name, kind, value = line.target.id, ast.unparse(line.annotation), line.value
            elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                name, kind, value = line.targets[0].id, "", line.value
            else:
                raise ValueError(f"line {line.lineno} sets no parameter")
            default = ast.literal_eval(value)
            meaning = comments.get(line.end_lineno or 0, "")
            found[name] = Parameter(name, kind or type(default).__name__, default, meaning)
    except (SyntaxError, ValueError) as error:
        raise TableError(f"notebook: {path.name}: parameters cell: {error}") from error
    return found


def parse_value(text: str) -> Any:
    """A Python literal if the text is one, else the text itself: 3, 0.1, [0.05, 0.1], True, lesson."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def list_parameters(folder: Path = NOTEBOOKS) -> str:
    """What can be set in which notebook, as text: name, type, default, and what it means."""
    found: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(folder.glob("*.ipynb")):
        for p in read_parameters(path).values():
            found.setdefault((p.name, f"{p.type} = {p.default!r}", p.meaning), []).append(path.stem)
    lines = ["parameters of the notebooks:"]
    for (name, value, meaning), names in sorted(found.items()):
        lines += [f"  {name}: {value}  # {meaning}", f"      in {', '.join(names)}"]
    return "\n".join(lines)


def check_parameters(paths: Iterable[Path], given: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """What of `given` each notebook takes; refuses the rest before anything runs: the runner would only warn.

    Raises:
        TableError: a name that none of the notebooks declares, or a value of another type than the default's.
    """
    known = {path: read_parameters(path) for path in paths}
    names = sorted({name for declared in known.values() for name in declared})
    for name, value in given.items():
        if name not in names:
            where = f"{next(iter(known)).stem} has no" if len(known) == 1 else "no notebook has"
            raise TableError(f"parameters: {where} {name!r}, expected one of {names}{nearest(name, names)}")
        for path, declared in known.items():
            if name in declared and not _fits(value, declared[name]):
                kind = declared[name].type
                raise TableError(f"parameters: {path.stem}: {name}: got {value!r}, expected {kind}")
    # The runner knows lists, and would hand a tuple over as text.
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return {path: {n: v for n, v in given.items() if n in declared} for path, declared in known.items()}


def _fits(value: Any, parameter: Parameter) -> bool:
    default = parameter.default
    same = isinstance(value, bool) == isinstance(default, bool) and (
        isinstance(value, type(default))
        or (isinstance(default, float) and isinstance(value, int))
        or (isinstance(default, list | tuple) and isinstance(value, list | tuple))
    )
    return same or default is None or (value is None and "None" in parameter.type)


def find_notebooks(names: Iterable[str] = (), folder: Path = NOTEBOOKS) -> list[Path]:
    """Paths of the notebooks named (by name, its number or path), or of all in the folder.

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
            (
                p
                for p in [*here, Path(name)]
                if name in (p.stem, p.name, str(p), p.stem.split("_")[0]) and p.is_file()
            ),
            None,
        )
        if path is None:
            known = [p.stem for p in here]
            raise TableError(f"notebooks: no {name!r}{nearest(name, known) or f'; expected one of {known}'}")
        found.append(path)
    return found
