"""The house rules that a program can check."""

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import steplab

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "steplab").glob("*.py"))
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def tracked_files() -> list[Path]:
    """What git tracks, or would if it were added; skips outside a checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def requirement(text: str) -> tuple[str, str]:
    name, floor = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)", text).groups()
    return name.lower(), floor


def test_environment_names_the_same_packages_and_floors():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "environment.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge"] and len(text.splitlines()) <= 25
    listed = [item for item in environment["dependencies"] if isinstance(item, str) and item != "pip"]
    conda = dict(requirement(item) for item in listed)
    assert ">=" + conda.pop("python") == project["requires-python"]
    conda["torch"] = conda.pop("pytorch")  # the only package whose name differs there
    assert conda == dict(requirement(item) for item in project["dependencies"])


def test_the_makefile_installs_what_pyproject_offers():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) == {"test", "oracle", "real", "book", "grading", "cluster", "soak"}
    named = set(re.findall(r"\.\[([a-z,]+)\]", (ROOT / "Makefile").read_text()))
    assert named == {"real", "real,test,book,grading", "real,book", "real,grading", "soak"}


def test_the_top_level_is_small_and_all_there():
    """Every name imports from the module that the annotations for type checkers name."""
    assert len(steplab.__all__) <= 15
    source = ast.parse((ROOT / "steplab/__init__.py").read_text())
    typed = {
        alias.name: node.module
        for block in source.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }
    assert typed == steplab._HOME and sorted(typed) == sorted(steplab.__all__)
    for name in steplab.__all__:
        assert getattr(steplab, name) is getattr(import_module(f"steplab.{steplab._HOME[name]}"), name)
    for name in steplab._SUBMODULES:
        assert (ROOT / f"steplab/{name}.py").is_file(), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = steplab.nothing


def test_importing_is_quick_and_explain_stays_a_function():
    """`import steplab` loads no torch, and whatever is imported first, `steplab.explain` is callable."""
    program = (
        "import sys, steplab; assert 'torch' not in sys.modules\n"
        "from steplab.explain import StepConfig; assert callable(steplab.explain)\n"
        "from steplab import explain; assert callable(explain)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings, on which nobody should save."""
    text, lines = path.read_text(), set()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent | {tokenize.ENDMARKER}:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_modules_stay_small():
    lines = {path.name: lines_of_code(path) for path in MODULES}
    assert sum(lines.values()) <= 8540, lines
    assert max(lines.values()) <= 350, lines


def imports_at_the_top(path: Path) -> set[str]:
    """Modules of the package that a module imports while it is being imported."""
    found, names = set(), {p.stem for p in MODULES}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (
            node.level == 1 or (node.module or "").startswith("steplab")
        ):
            inner = (node.module or "").removeprefix("steplab").removeprefix(".")
            found |= {inner.split(".")[0]} if inner else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("steplab.")}
    return found & names


def test_imports_have_no_circles_and_keep_their_order():
    graph = {path.stem: imports_at_the_top(path) for path in MODULES}
    reached = {}

    def below(name, trail=()):
        assert name not in trail, " → ".join([*trail, name])
        if name not in reached:
            reached[name] = graph[name].union(*(below(other, (*trail, name)) for other in graph[name]))
        return reached[name]

    for name in graph:
        below(name)
    for name in ("clips", "stage", "losses", "masks", "perturb", "figures"):
        assert not reached.get(name, set()) & {"networks", "explain", "training", "widgets"}, name
    assert not reached.get("networks", set()) & {"explain", "training", "widgets"}


def test_nothing_names_a_registry_or_a_path_of_one_machine():
    """The words are put together here so that this file does not hold them itself."""
    hosts = [
        "py" + "pi.org",
        "python" + "hosted",
        "download.py" + "torch.org",
        "registry.npm" + "js",
        "anaconda" + ".org",
    ]
    paths = [str(ROOT), "/ro" + "ot/", "/wo" + "rk/", "/ho" + "me/", "/Us" + "ers/"]
    option = r"(index|registry)[-_ ]?" + "url"
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", "replace")
        for word in hosts + paths:
            assert word not in text, f"{path.relative_to(ROOT)} holds {word!r}"
        assert not re.search(option, text, re.IGNORECASE), path.relative_to(ROOT)


def test_tracked_files_are_small():
    for path in tracked_files():
        limit = 300_000 if path.suffix == ".ipynb" else 3_200_000
        assert path.stat().st_size <= limit, path.relative_to(ROOT)


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ is empty"


def faults(path: Path, lesson: bool) -> list[str]:
    """What a notebook does against the house rules, a line each."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in code]
    words = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    found = []
    if "widgets" in notebook["metadata"] or "application/vnd.jupyter.widget" in text:
        found.append("stored widgets")
    if len(text.encode()) > 300_000:
        found.append(f"{len(text.encode()):,} bytes")
    if "parameters" not in code[0]["metadata"].get("tags", []):
        found.append("the first code cell is not tagged parameters")
    lines = [line for line in sources[0].splitlines() if line.strip()]
    found += ["too many parameters"] * (len(lines) > 6)
    names = {line.split(":")[0] for line in lines}
    found += [f"no parameter {name}" for name in ("preset", "seed") if name not in names]
    untyped = [line for line in lines if not re.fullmatch(r"\w+: [^=]+ = [^=#]+  # .+", line)]
    found += [f"{line!r}: expected name: type = value  # meaning" for line in untyped]
    if "import steplab as sl" not in sources[1]:
        found.append("the second code cell does not import steplab as sl")
    found += [f"a cell of {n} lines" for n in (len(source.splitlines()) for source in sources) if n > 15]
    if any(re.search(r"^\s*[!%]\s*(pip|conda)", source, re.MULTILINE) for source in sources):
        found.append("installs packages")
    outputs = [output for cell in code for output in cell["outputs"]]
    if any(output["output_type"] == "error" for output in outputs):
        found.append("a stored error")
    if any(re.search(r"\d+%\|", "".join(o.get("data", {}).get("text/plain", ""))) for o in outputs):
        found.append("a progress bar that has stopped")
    header = words[0].lower()
    found += [
        f"the header names no {w}"
        for w in ("task", "network", "data", "question", "run time")
        if w not in header
    ]
    heads = "\n".join(line for part in words for line in part.splitlines() if line.startswith("## ")).lower()
    closing = ("sanity check", "summary", "exercises", "references") if lesson else ()
    found += [f"no section {word}" for word in closing if word not in heads]
    if re.search(r"(?<![\w.])/(home|work|tmp|root|Users|opt)/|[A-Z]:\\\\", text):
        found.append("an absolute path")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.parent.name[:3]}-{p.stem}")
def test_notebooks_keep_the_house_rules(path):
    from steplab.tables import read_parameters

    assert faults(path, lesson=path.parent.name == "notebooks") == []
    assert {"preset", "seed"} <= set(read_parameters(path))


def sound() -> dict:
    """A lesson without a fault, to be broken."""

    def cell(kind, source):
        more = {"execution_count": None, "outputs": []} if kind == "code" else {}
        return {"cell_type": kind, "metadata": {}, "source": source, **more}

    header = "# A lesson\n| Task | Network | Data | Question | Run time |"
    parameters = 'preset: str = "lesson"  # how long\nseed: int = 0  # which luck'
    cells = [cell("markdown", header), cell("code", parameters), cell("code", "import steplab as sl")]
    cells += [cell("code", "1"), cell("markdown", "## Sanity check\n## Summary\n## Exercises\n## References")]
    cells[1]["metadata"]["tags"] = ["parameters"]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def put(k: int, source: str):
    return lambda notebook: notebook["cells"][k].update(source=source)


BREAKS = {
    "stored widgets": lambda notebook: notebook["metadata"].update(widgets={"state": {}}),
    "320": lambda notebook: notebook["cells"][3].update(
        outputs=[{"output_type": "stream", "text": "a" * 320_000}]
    ),
    "not tagged": lambda notebook: notebook["cells"][1].update(metadata={}),
    "too many": lambda notebook: put(
        1, "\n".join(f"{n}: int = 0  # n" for n in ("preset", "seed", *"abcde"))
    )(notebook),
    "no parameter seed": put(1, 'preset: str = "lesson"  # how long'),
    "expected name: type": put(1, "preset = 1\nseed: int = 0  # which luck"),
    "does not import": put(2, "import steplab"),
    "16 lines": put(3, "1\n" * 16),
    "installs": put(3, "!pip install torch"),
    "stored error": lambda notebook: notebook["cells"][3].update(outputs=[{"output_type": "error"}]),
    "has stopped": lambda notebook: notebook["cells"][3].update(
        outputs=[{"output_type": "display_data", "data": {"text/plain": "action: 0%|   | 0/8"}}]
    ),
    "names no data": put(0, "# A lesson\n| Task | Network | Question | Run time |"),
    "no section references": put(4, "## Sanity check\n## Summary\n## Exercises\nReferences"),
    "absolute path": put(3, "open('/ho" + "me/me/film.mp4')"),
}


@pytest.mark.parametrize("words", BREAKS)
def test_notebooks_that_break_a_rule_are_found(words, tmp_path):
    path, notebook = tmp_path / "broken.ipynb", sound()
    path.write_text(json.dumps(notebook))
    assert faults(path, lesson=True) == []
    BREAKS[words](notebook)
    path.write_text(json.dumps(notebook))
    found = faults(path, lesson=True)
    assert any(words in line for line in found) and len(found) <= 2, found


def test_the_readme_says_what_lessons_took_when_they_were_stored():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        took = re.search(r"(\d+) seconds from the start|lesson took (\d+) s", text)
        said = re.search(rf"^\| \[`{path.stem}`\].*\| (\d+) \|$", readme, re.M)
        assert took and said and said[1] == (took[1] or took[2]), path.stem
