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
    assert set(extras) == {"test", "oracle", "real", "book", "grading", "cluster"}
    named = set(re.findall(r"\.\[([a-z,]+)\]", (ROOT / "Makefile").read_text()))
    assert named == {"real", "real,test,book,grading", "real,book", "real,grading"}


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
    assert sum(lines.values()) <= 8300, lines
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_keep_the_house_rules(path):
    from steplab.tables import read_parameters

    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in notebook["metadata"], "stored widget state"
    assert "application/vnd.jupyter.widget-state" not in path.read_text()
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "parameters" in code[0]["metadata"].get("tags", []), "the first code cell is the parameters cell"
    lines = [line for line in "".join(code[0]["source"]).splitlines() if line.strip()]
    assert len(lines) <= 6
    for line in lines:
        assert re.fullmatch(r"\w+: [^=]+ = [^=#]+  # .+", line), (
            f"{line!r}: expected name: type = value  # meaning"
        )
    assert {"preset", "seed"} <= set(read_parameters(path))
    assert "import steplab as sl" in "".join(code[1]["source"])
    for cell in code:
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= 15, source
        assert not re.search(r"^\s*[!%]\s*(pip|conda)", source, re.MULTILINE), source
        for output in cell["outputs"]:
            assert output["output_type"] != "error", source
    first = "".join(notebook["cells"][0]["source"]).lower()
    for word in ("task", "network", "data", "question", "run time"):
        assert word in first, f"the header names no {word}"
    assert not re.search(r"(?<![\w.])/(home|work|tmp|root|Users|opt)/|[A-Z]:\\\\", path.read_text()), (
        "absolute path"
    )
