"""Notebooks run as tables: parameters are checked before anything runs, results land in the index."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from steplab.clips import write_video
from steplab.tables import (
    PUBLISH,
    Run,
    TableError,
    beside,
    check_parameters,
    find_notebooks,
    joined,
    list_parameters,
    paper,
    parse_value,
    publish,
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
    assert {p.name: (p.type, p.default, p.meaning) for p in found.values()} == {
        "preset": ("str", "lesson", "how long to look"),
        "seed": ("int", 0, ""),
        "ratios": ("list", [0.05, 0.1], ""),
        "rate": ("float", 0.5, ""),
    }


def test_parameters_are_listed_with_the_notebooks_that_have_them(tmp_path):
    notebook(tmp_path / "00_a.ipynb")
    notebook(tmp_path / "01_b.ipynb", parameters=PARAMETERS.replace("0.5", "0.25"))
    listed = list_parameters(tmp_path).splitlines()
    where = listed.index("  preset: str = 'lesson'  # how long to look")
    assert listed[where + 1] == "      in 00_a, 01_b"
    where = [line.strip() for line in listed].index("rate: float = 0.25  #")
    assert listed[where + 1] == "      in 01_b"


def test_each_notebook_gets_the_parameters_it_declares(tmp_path):
    a = notebook(tmp_path / "a.ipynb", parameters="seed: int = 0")
    b = notebook(tmp_path / "b.ipynb", parameters="seed: int = 0\nclips: str = ''")
    given = {"seed": 3, "clips": "*.mp4"}
    assert check_parameters([a, b], given) == {a: {"seed": 3}, b: given}
    with pytest.raises(TableError, match="a has no 'clips'"):
        check_parameters([a], given)
    with pytest.raises(TableError, match="no notebook has 'clip', expected .* did you mean 'clips'"):
        check_parameters([a, b], {"clip": ""})
    with pytest.raises(TableError, match="b: clips: got 3, expected str"):
        check_parameters([a, b], {"clips": 3})


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
    for name in ("00_start_here", "00", "00_start_here.ipynb", str(tmp_path / "00_start_here.ipynb")):
        assert [p.stem for p in find_notebooks([name], tmp_path)] == ["00_start_here"]
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


TABLE = """
import pandas as pd, matplotlib.pyplot as plt
from steplab.tables import publish
publish(pd.DataFrame({"a_%": [seed, 2], "label": ["<script>x</script>", "–"]}), "table-1")"""


def test_notebooks_run_and_one_failure_does_not_stop_the_rest(tmp_path, capfd):
    """The first fails halfway: what it had published stays; the second has a figure and a parameter more."""
    figure = "figure = plt.figure()\nplt.plot([seed, 2])\nassert publish(figure, 'curve') is figure"
    notebook(
        tmp_path / "bad.ipynb",
        TABLE,
        "\n\nx = 1\nraise ValueError('<script>no</script>')",
        parameters="seed = 0",
    )
    notebook(
        tmp_path / "good.ipynb", "print('seed is', seed, preset)", TABLE, figure, title="Good <b>&</b> plain"
    )
    given, out = {"seed": 41, "rate": 1}, tmp_path / "runs"
    bad, good = run_tables(parameters=given, out=out, folder=tmp_path, timeout=120)
    assert good.error == "" and good.parameters["seed"] == 41 and good.parameters["preset"] == "lesson"
    assert bad.parameters == {"seed": 41}
    assert re.fullmatch(r"cell \[4\] 'x = 1': ValueError: <script>no</script>", bad.error)
    assert bad.files == [f"bad/{name}" for name in ("bad.html", "bad.ipynb", "table-1.csv", "table-1.tex")]
    assert good.files[2:] == [f"good/{name}" for name in ("table-1.csv", "table-1.tex", "curve.png")]
    assert "seed is 41 lesson" in (out / "good/good.html").read_text()
    assert "widgets" not in json.loads((out / "good/good.ipynb").read_text())["metadata"]
    index = (out / "index.html").read_text()
    assert "Good &lt;b&gt;&amp;&lt;/b&gt; plain" in index and "&lt;script&gt;no" in index
    assert index.count("<td>&lt;script&gt;x&lt;/script&gt;</td>") == 2 and "<script>" not in index
    links = re.findall(r'(?:src|href)="([^"]+)"', index)
    assert "good/curve.png" in links and "bad/table-1.tex" in links
    assert all((out / link).is_file() for link in links)  # relative, and there
    assert "bad: FAILED: cell [4]" in capfd.readouterr().out
    assert 'src="http' not in (out / "good/good.html").read_text()
    assert not [p.name for p in out.rglob(".*")]  # no half-written files

    # another run of the failing one, repaired: the other's results stay in sight, its own old ones go
    notebook(tmp_path / "bad.ipynb", "pass", parameters="seed = 0", title="Repaired")
    (again,) = run_tables(["bad"], out=out, folder=tmp_path, timeout=120)
    assert not again.error and not (out / "bad/table-1.csv").exists()
    index = (out / "index.html").read_text()
    assert (
        "Good" in index and "good/curve.png" in index and "Repaired" in index and "failed" not in index[900:]
    )


@pytest.mark.skipif(os.name != "posix", reason="kernels talk through ports there")
def test_kernels_talk_through_files_of_their_own(tmp_path, monkeypatch):
    """Not in the folder one stands in, where those of two runs would meet."""
    say = "from ipykernel.kernelapp import IPKernelApp as A\nprint(A.instance().transport, A.instance().ip)"
    paths = [str(notebook(tmp_path / f"{name}.ipynb", say)) for name in "ab"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    runs = run_tables(paths, {}, out=tmp_path / "out", jobs=2)
    assert [run.error for run in runs] == ["", ""]
    told = [json.loads((tmp_path / f"out/{n}/{n}.ipynb").read_text())["cells"][-1]["outputs"] for n in "ab"]
    transports, places = zip(*(outputs[0]["text"][0].split() for outputs in told), strict=True)
    assert set(transports) == {"ipc"} and len(set(places)) == 2
    for place in places:
        assert tmp_path / "here" not in Path(place).parents and not Path(place).parent.exists()
    assert not any((tmp_path / "here").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_nothing_goes_on_when_the_run_is_killed(tmp_path):
    """Neither the process of a notebook nor its kernel outlives the command."""
    say = "import os, time\nopen('pids', 'w').write(f'{os.getpid()} {os.getppid()}')\ntime.sleep(600)"
    path = notebook(tmp_path / "a.ipynb", say)
    command = [sys.executable, "-m", "steplab", "tables", str(path), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=tmp_path) as run:
        until(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
        run.kill()
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    until(lambda: not any(alive(pid) for pid in pids))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # a dead process that nobody has waited for is still listed
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.1)


def test_a_published_table_can_be_read_again(tmp_path, monkeypatch):
    columns = pd.MultiIndex.from_tuples([("action / UCF_101", "R(2+1)D", "ours"), ("x", "", "paper")])
    table = pd.DataFrame([["0.42 (0.31 .. 0.53)", "–"], ["5 %", "a & b"]], ["EP-3D (Δt=1)", "é"], columns)
    monkeypatch.setenv(PUBLISH, str(tmp_path))
    assert publish(table, "t") is table and table.columns.nlevels == 3
    read = pd.read_csv(tmp_path / "t.csv", index_col=0)
    assert [*read.columns] == ["action / UCF_101 | R(2+1)D | ours", "x | paper"]
    assert read.to_numpy().tolist() == table.to_numpy().tolist() and [*read.index] == [*table.index]
    latex = (tmp_path / "t.tex").read_text()
    for code in (r"5 \%", r"a \& b", r"UCF\_101", r"$\Delta$t=1", r"\begin{tabular}"):
        assert code in latex
    assert "–" not in latex and "Δ" not in latex
    publish(Figure(), "f")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv", "t.tex", "f.png", "published.txt"}


def test_outside_of_a_run_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv(PUBLISH, raising=False)
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame({"a": [1]})
    assert publish(table, "t") is table and not [*tmp_path.iterdir()]
    for name in ("", "../t", "a/b", "a\\b", ".t", "t.csv", "a b", "x" * 81, "t\n"):
        with pytest.raises(TableError, match="name: got"):
            publish(table, name)
    with pytest.raises(TableError, match="what: got list, expected a DataFrame or"):
        publish([1], "t")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    import os

    monkeypatch.setenv(PUBLISH, str(tmp_path))
    publish(pd.DataFrame({"a": [1]}), "t")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        publish(pd.DataFrame({"a": [2]}), "t")
    assert pd.read_csv(tmp_path / "t.csv")["a"].tolist() == [1]
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv", "t.tex", "published.txt"}


def test_everything_in_the_index_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>'
    run = Run(evil, evil, {evil: evil}, error=evil, files=[evil])
    assert "<script>" not in write_index([run], tmp_path).read_text()


def test_reference_tables_are_read_by_name():
    table = reference("ep3d_vs_step")
    assert {"STEP", "EP-3D"} <= set(table["method"]) and table["IoU"].between(0, 1).all()
    with pytest.raises(TableError, match="name: got 'ep3d', expected one of .*ep3d_vs_step"):
        reference("ep3d")


def test_the_papers_tables():
    """A few cells typed by hand, among them the unflattering ones and the empty ones."""
    cells = {
        (1, "UCF101-24", "R(2+1)D", "", "top-1"): 1.0,
        (1, "EPIC-Object", "VGG16LSTM", "", "top-5"): 0.84,
        (1, "EPIC-Action", "VGG16LSTM", "", "top-1"): 0.81,
        (2, "EPIC-Object", "R(2+1)D", "", "smallest ratio"): 0.064,
        (2, "UCF101-24", "VGG16LSTM", "", "smallest ratio"): 0.28,
        (3, "EPIC-Object", "R(2+1)D", "Saliency Tubes", "S-PT"): 0.066,
        (3, "UCF101-24", "VGG16LSTM", "Grad-CAM", "S-PT"): 0.355,
        (3, "UCF101-24", "R(2+1)D", "STEP", "S-PT"): 0.567,
        (4, "UCF101-24", "VGG16LSTM", "EP-3D-Evenly", "S-PT"): 0.532,
        (4, "UCF101-24", "VGG16LSTM", "EP-3D (Δt=3)", "S-PT"): 0.543,
        (5, "EPIC-Action", "VGG16LSTM", "EB-R", "T-PT"): 0.57,
        (5, "EPIC-Action", "R(2+1)D", "EP-3D", "T-PT"): 0.34,
    }
    keys = ["dataset", "network", "method", "metric"]
    tables = {k: paper(k) for k in range(1, 6)}
    assert [len(t) for t in tables.values()] == [12, 4, 16, 24, 11]
    for (number, *key), value in cells.items():
        assert tables[number].set_index(keys)["value"].to_dict()[tuple(key)] == value
    for table in tables.values():
        assert not table.duplicated(keys).any() and table["value"].between(0, 1).all()
    shared = pd.merge(tables[3], tables[4], on=keys)  # what both tables have is the same
    assert len(shared) == 8 and (shared["value_x"] == shared["value_y"]).all()
    found = tables[3].set_index(["method", "network"]).index
    assert ("EB-R", "R(2+1)D") not in found and ("Saliency Tubes", "VGG16LSTM") not in found
    with pytest.raises(TableError, match="table: got 6, expected 1 to 5"):
        paper(6)


def ours(*lines):
    return pd.DataFrame(lines, columns=["dataset", "network", "method", "mean", "low", "high"])


def test_ours_beside_the_papers():
    nan = float("nan")
    table = beside(
        ours(
            ("action", "stage-action-vgg16lstm", "random", 0.1, 0.0, 0.2),
            ("action", "stage-action-vgg16lstm", "step", 0.42, 0.314, 0.53),
            ("action", "mine", "Grad-CAM", nan, nan, nan),
            ("moment", "stage-moment-r2plus1d", "EP-3D", 0.5, nan, nan),
        ),
        paper(3),
        {"object": "EPIC-Object", "action": "UCF101-24"},
    )
    assert [*table.index] == ["Grad-CAM", "Saliency Tubes", "EB-R", "EP-3D", "STEP", "random"]
    both = ("R(2+1)D", "VGG16LSTM")
    pairs = [("object / EPIC-Object", n) for n in both] + [("action / UCF101-24", n) for n in (*both, "mine")]
    pairs += [("moment", "R(2+1)D")]
    assert [*table.columns] == [(*pair, side) for pair in pairs for side in ("ours", "paper")]
    cell = {
        (c[0].split(" ")[0], *c[1:], row): text for c, column in table.items() for row, text in column.items()
    }
    assert cell["action", "VGG16LSTM", "ours", "STEP"] == "0.42 (0.31 .. 0.53)"
    assert cell["action", "VGG16LSTM", "paper", "STEP"] == "0.527"
    assert cell["action", "VGG16LSTM", "ours", "random"] == "0.10 (0.00 .. 0.20)"
    assert cell["moment", "R(2+1)D", "ours", "EP-3D"] == "0.50"
    assert cell["object", "R(2+1)D", "paper", "STEP"] == "0.090"
    for missing in (
        ("action", "VGG16LSTM", "paper", "random"),
        ("action", "VGG16LSTM", "ours", "EB-R"),
        ("action", "R(2+1)D", "paper", "EB-R"),
        ("object", "VGG16LSTM", "ours", "STEP"),
        ("action", "mine", "ours", "Grad-CAM"),
        ("moment", "R(2+1)D", "paper", "EP-3D"),
    ):
        assert cell[missing] == "–", missing
    assert sum(text != "–" for text in cell.values()) == 16 + 3


def test_a_summary_of_a_study_stands_beside_the_papers():
    from steplab.study import summary

    columns = ["dataset", "network", "clip", "method", "seed", "metric", "value"]
    network, nan = "stage-moment-vgg16lstm", float("nan")
    lines = [
        ("moment", network, f"c{k}", m, 0, "T-PT", v) for m in ("step", "random") for k, v in ((0, 1), (1, 1))
    ]
    lines += [("moment", network, "c0", "EB-R", 0, "T-PT", nan)]
    found = beside(summary(pd.DataFrame(lines, columns=columns), "T-PT"), paper(5), {"moment": "EPIC-Action"})
    shown = found["moment / EPIC-Action"]["VGG16LSTM"]
    assert shown.loc["STEP"].tolist() == ["1.00 (1.00 .. 1.00)", "0.490"]
    assert shown.loc["random"].tolist() == ["1.00 (1.00 .. 1.00)", "–"]
    assert shown.loc["EB-R"].tolist() == ["–", "0.570"]


def test_joined_puts_the_papers_number_in_a_column():
    mine = pd.concat(
        [
            ours(("action", "stage-action-vgg16lstm", m, 0.4, 0.3, 0.5))
            for m in ("step", "EP-3D (Δt=2)", "random")
        ]
    )
    found = joined(mine, paper(4), {"action": "UCF101-24"})
    assert found["paper"].tolist()[:2] == [0.527, 0.526] and found["paper"].isna().tolist()[2]
    assert set(found["network"]) == {"VGG16LSTM"} and found["mean"].tolist() == [0.4] * 3


def test_tables_1_and_2_stand_beside_ours_by_metric():
    mine = ours(("action", "stage-action-r2plus1d", "smallest ratio", 0.03, 0.02, 0.04))
    table = beside(
        mine.rename(columns={"method": "metric"}), paper(2), {"action": "UCF101-24"}, rows="metric"
    )
    assert table["action / UCF101-24"]["R(2+1)D"].to_numpy().tolist() == [["0.03 (0.02 .. 0.04)", "0.170"]]
    assert beside(mine.iloc[:0].rename(columns={"method": "metric"}), paper(1), rows="metric").shape == (
        2,
        12,
    )


def test_what_cannot_stand_beside_is_refused():
    line = ("action", "stage-action-r2plus1d", "step", 0.5, 0.4, 0.6)
    with pytest.raises(TableError, match="got two numbers for STEP, action, stage-action-r2plus1d"):
        beside(ours(line, line), paper(3))
    with pytest.raises(TableError, match=r"ours: got columns .* expected also \['mean'\]"):
        beside(ours(line).drop(columns="mean"), paper(3))
    with pytest.raises(TableError, match="theirs: got columns"):
        beside(ours(line), paper(3).drop(columns="value"))
    two = ours(line, ("action", "kinetics-r2plus1d_18", *line[2:]))  # of one family: each under its own name
    names = {column[1] for column in beside(two, paper(3).iloc[:0]).columns}
    assert names == {"stage-action-r2plus1d", "kinetics-r2plus1d_18"}


OWN = """
import torch
import steplab as sl

class Red(torch.nn.Module):
    def forward(self, pixels):
        mean = pixels.mean((2, 3, 4))
        return 9 * mean[:, :2]

def make_network():
    return sl.Network(Red(), ("red", "green"), frames=8, size=32, name="mine")
"""


def test_a_network_and_clips_of_ones_own_go_in_by_parameters_alone(tmp_path, monkeypatch):
    """What the folder one stands in holds: a module, videos, a CSV. What comes out: a table of hits."""
    (tmp_path / "films").mkdir()
    (tmp_path / "my_own_network.py").write_text(OWN)
    pixels = torch.full((3, 16, 48, 64), 0.2)
    pixels[0, :, 20:40, 30:50] = 1
    write_video(tmp_path / "films/patch.mp4", pixels)
    lines = [f"patch.mp4,{frame},30,20,50,40,red" for frame in range(16)]
    (tmp_path / "boxes.csv").write_text("\n".join(["video,frame,x0,y0,x1,y1,label", *lines]))
    parameters = 'preset: str = "lesson"\nnetwork: str = ""\nclips: str = ""\nboxes: str = ""'
    (tmp_path / "lessons").mkdir()
    notebook(
        tmp_path / "lessons/hits.ipynb",
        "import pandas as pd, torch, steplab as sl\nfrom steplab import datasets\ntorch.set_num_threads(1)",
        "(eye,) = map(sl.load_network, datasets.networks_of(network, 'action'))\n"
        "(record,) = datasets.records(clips, boxes, 'action', 2, frames=eye.frames, size=eye.size)\n"
        "result = sl.explain(eye, record.clip, record.label, ratios=(0.1,), preset=preset, progress=False)",
        "x0, y0, x1, y1 = record.boxes[0][0].round().int().tolist()\n"
        "inside = float(result.masks[0, :, y0:y1, x0:x1].sum() / result.masks[0].sum())\n"
        "table = pd.DataFrame({'clip': [record.name], 'label': [result.label], 'inside': [inside]})\n"
        "sl.tables.publish(table, 'hits')",
        parameters=parameters,
    )
    monkeypatch.chdir(tmp_path)
    given = {"network": "my_own_network:make_network", "clips": "films/*.mp4", "boxes": "boxes.csv"}
    (run,) = run_tables(parameters=given | {"preset": "smoke"}, folder=tmp_path / "lessons", timeout=300)
    assert run.error == ""
    (line,) = pd.read_csv(tmp_path / "runs/hits/hits.csv").to_dict("records")
    assert (line["clip"], line["label"]) == ("patch", "red") and line["inside"] > 0.3  # the box fills 17 %


NASTY = [
    *("x'; import os; os.abort()", 'x"; import os; os.abort()', "a\nimport os; os.abort()", "\\'; 1/0 #"),
    *(
        "'''\n1/0\n'''",
        '"""',
        "\\",
        "\\\\'",
        "%%bash\nexit 1",
        "!exit 1",
        "{1/0}",
        "$(exit 1)",
        "\0\r\t\x1b[0m",
    ),
    *("<script>harm()</script>", "\u2028", "\u202e", "é\U0001f600", "", " ", "None", "[1"),
]


def test_text_reaches_a_notebook_as_the_text_it_is(tmp_path):
    """Whatever is in a parameter is a value there and never program; a tuple comes as a list."""
    cell = "import json, pathlib\npathlib.Path('told').write_text(json.dumps([clips, several]))"
    path = notebook(tmp_path / "a.ipynb", cell, parameters='clips: str = ""\nseveral: list = []')
    command = [sys.executable, "-m", "steplab", "tables", str(path), "--out", str(tmp_path / "out")]
    command += ["--set", f"clips={NASTY[0]}", "--set", f"several={tuple(NASTY)!r}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "told").read_text()) == [NASTY[0], NASTY]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;harm()" in page


def test_a_kernel_that_is_killed_is_told_of_and_not_tried_again(tmp_path):
    """As the system kills what takes too much memory: by a signal that nothing can answer."""
    cell = "import os, signal\nopen('tries', 'a').write('x')\nos.kill(os.getpid(), signal.SIGKILL)"
    path = notebook(tmp_path / "a.ipynb", TABLE, f"import os\nos.chdir({str(tmp_path)!r})\n{cell}")
    (run,) = run_tables([str(path)], out=tmp_path / "out", timeout=120)
    said = r"cell \[(3|\*)\] 'import os': its kernel died: killed, most likely for want of memory"
    assert re.fullmatch(said, run.error)  # a kernel that dies at once may not have told its number
    assert (tmp_path / "tries").read_text() == "x", "once is enough"
    assert "out/table-1.csv" not in run.files and "a/table-1.csv" in run.files, "what it had published stays"


@pytest.mark.parametrize("number", ["04", "05", "06", "07", "08"])
def test_a_misspelt_preset_ends_a_lesson_with_the_name_that_was_meant(number):
    """Before anything else is begun; in the others the search itself refuses it."""
    (path,) = find_notebooks([number])
    cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    found: dict = {}
    with pytest.raises(ValueError, match="preset.*got 'leson'.*did you mean 'lesson'"):
        for cell in cells[:4]:
            exec(cell, found)
            found["preset"] = "leson"


@pytest.mark.skipif(os.name != "posix", reason="addresses of files")
def test_hostile_names_harm_nobody_who_opens_the_pages(tmp_path, browser):
    """In parameters, tables, what is printed and an error: shown as they are written, in index and page."""
    evil = "<img src=nowhere.png onerror='window.harmed = 1'><script>window.harmed = 1</script>"
    show = f"import pandas as pd\nfrom steplab.tables import publish\nevil = {evil!r}\nprint(evil)\n"
    show += "publish(pd.DataFrame({evil: [evil]}, index=[evil]), 'table-1')"
    path = notebook(tmp_path / "a.ipynb", show, f"raise ValueError({evil!r})", title="A &lt;b&gt; title")
    (run,) = run_tables([str(path)], {"preset": evil}, out=tmp_path / "out", timeout=120)
    assert evil in run.error
    for name, times in (("index.html", 4), ("a/a.html", 5)):
        page = browser.new_page()
        page.goto((tmp_path / "out" / name).as_uri())
        page.wait_for_timeout(500)
        assert page.evaluate("window.harmed") is None, f"a name was run as a program in {name}"
        assert page.locator("body").inner_text().count("onerror='window.harmed = 1'>") >= times
        page.close()
