"""Notebooks run as tables: parameters are checked before anything runs, results land in the index."""

import json
from pathlib import Path

import pytest

from steplab.tables import (
    Run,
    TableError,
    find_notebooks,
    parse_value,
    read_parameters,
    reference,
    run_tables,
    write_index,
)

PARAMETERS = (
    'preset: str = "lesson"  # how long to look\nseed: int = 0\nratios: list = [0.05, 0.1]\nrate: float = 0.5'
)


def notebook(path: Path, *cells: str, parameters: str | None = PARAMETERS, title="A lesson") -> Path:
    def cell(kind, source, **metadata):
        extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
        return {
            "cell_type": kind,
            "source": source,
            "metadata": metadata,
            "id": f"c{abs(hash(source))}",
            **extra,
        }

    content = [cell("markdown", f"# {title}\n\ntext")]
    if parameters is not None:
        content.append(cell("code", parameters, tags=["parameters"]))
    content += [cell("code", source) for source in cells]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def test_parameters_are_read_with_their_types(tmp_path):
    found = read_parameters(notebook(tmp_path / "a.ipynb"))
    assert {p.name: (p.type, p.default) for p in found.values()} == {
        "preset": ("str", "lesson"),
        "seed": ("int", 0),
        "ratios": ("list", [0.05, 0.1]),
        "rate": ("float", 0.5),
    }


@pytest.mark.parametrize(
    "parameters", [None, "import os", "seed: int = open('x')", "seed: int =", "seed: int"]
)
def test_a_bad_parameters_cell_is_refused(tmp_path, parameters):
    with pytest.raises(TableError, match="parameters"):
        read_parameters(notebook(tmp_path / "a.ipynb", parameters=parameters))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"sed": 3}, "did you mean 'seed'"),
        ({"colour": 3}, "expected one of"),
        ({"seed": "three"}, "seed: got 'three', expected int"),
        ({"seed": True}, "got True"),
        ({"preset": 3}, "expected str"),
        ({"ratios": 0.1}, "expected list"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(tmp_path, given, words):
    notebook(tmp_path / "a.ipynb", "raise SystemExit")
    with pytest.raises(TableError, match=words):
        run_tables(parameters=given, out=tmp_path / "runs", folder=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_unknown_notebooks_are_refused(tmp_path):
    notebook(tmp_path / "00_start_here.ipynb")
    (tmp_path / "broken.ipynb").write_text("not json")
    assert [p.stem for p in find_notebooks(["00_start_here"], tmp_path)] == ["00_start_here"]
    with pytest.raises(TableError, match="did you mean '00_start_here'"):
        find_notebooks(["00_start_her"], tmp_path)
    with pytest.raises(TableError, match="none in"):
        find_notebooks([], tmp_path / "elsewhere")
    with pytest.raises(TableError, match="broken.ipynb is not a notebook"):
        run_tables(["broken"], folder=tmp_path, out=tmp_path / "runs")


def test_values_are_literals_or_text():
    assert [parse_value(t) for t in ("3", "0.5", "[1, 2]", "True", "lesson", "__import__('os')")] == [
        3,
        0.5,
        [1, 2],
        True,
        "lesson",
        "__import__('os')",
    ]


def test_notebooks_run_and_one_failure_does_not_stop_the_rest(tmp_path, capfd):
    figure = "import matplotlib.pyplot as plt\nplt.plot([seed, 2]);"
    notebook(tmp_path / "good.ipynb", "print('seed is', seed, preset)", figure, title="Good <b>&</b> plain")
    notebook(tmp_path / "bad.ipynb", "raise ValueError('<script>no</script>')")
    runs = run_tables(parameters={"seed": 41}, out=tmp_path / "runs", folder=tmp_path, timeout=120)
    bad, good = runs
    assert good.error == "" and good.parameters["seed"] == 41 and good.parameters["preset"] == "lesson"
    assert "ValueError" in bad.error
    out = tmp_path / "runs"
    assert "seed is 41 lesson" in (out / "good.html").read_text()
    done = json.loads((out / "good.ipynb").read_text())
    assert "widgets" not in done["metadata"]
    index = (out / "index.html").read_text()
    assert "Good &lt;b&gt;&amp;&lt;/b&gt; plain" in index and "data:image/png;base64," in index
    assert "&lt;script&gt;no" in index and "<script>" not in index
    assert "bad: FAILED" in capfd.readouterr().out
    for page in ("index.html", "good.html"):
        assert 'src="http' not in (out / page).read_text()


def test_everything_in_the_index_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>'
    run = Run(evil, evil, {evil: evil}, error=evil, files=[evil])
    assert "<script>" not in write_index([run], tmp_path).read_text()


def test_reference_tables_are_read_by_name():
    table = reference("ep3d_vs_step")
    assert {"STEP", "EP-3D"} <= set(table["method"]) and table["IoU"].between(0, 1).all()
    with pytest.raises(TableError, match="name: got 'ep3d', expected one of .*ep3d_vs_step"):
        reference("ep3d")
