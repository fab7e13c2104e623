"""The command line on a tiny network: three files that can be read again, one line for whatever is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import steplab as sl
from steplab.__main__ import main
from steplab.clips import write_video

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("red", "green", "blue", "dark grey", "7")


class Colours(torch.nn.Module):
    """Says which colour a clip has most of."""

    def forward(self, pixels):
        mean = pixels.mean((2, 3, 4))
        return 8 * torch.cat([mean, 0.3 - mean.sum(1, keepdim=True), mean[:, :1] * 0 - 1], 1)


@pytest.fixture
def colours(monkeypatch):
    network = sl.Network(Colours(), CLASSES, name="colours", frames=4, size=28)
    monkeypatch.setattr("steplab.networks.load_network", lambda name: network)
    return network


@pytest.fixture
def video(tmp_path):
    pixels = torch.zeros(3, 6, 32, 48)
    pixels[0, :, 8:24, 12:36] = 0.9
    pixels[2, :, :8] = 0.3
    return str(write_video(tmp_path / "red patch.mp4", pixels))


def explain(video, out, *more):
    return main(["explain", video, "--preset", "smoke", "--ratios", "0.1,0.3", "--out", str(out), *more])


def test_a_video_is_explained_in_three_files(colours, video, tmp_path, capfd):
    out = tmp_path / "made" / "here"
    assert explain(video, out, "--seed", "5", "--all-ratios") == 0
    printed = capfd.readouterr().out
    lines = printed.splitlines()
    assert lines[0] == "colours on red patch.mp4:" and lines[1].split()[1] == "red"
    assert len([line for line in lines if line.startswith("   ")]) >= 5 and "Explaining 'red'" in printed
    table = [line for line in lines if line.startswith((" 10.0%", " 30.0%"))]
    assert len(table) == 2 and lines[lines.index(table[0]) - 1].endswith("Kept    probability")
    assert {p.name for p in out.iterdir()} == {
        "red patch.overlay.mp4",
        "red patch.filmstrip.png",
        "red patch.explanation.safetensors",
    }
    result = sl.Explanation.load(out / "red patch.explanation.safetensors")
    rows = zip((" 10.0%", " 30.0%"), result.probability.tolist(), result.converged, strict=True)
    assert table == [f"{v}  {p:.3f}{'' if final else '  (not settled)'}" for v, p, final in rows]
    assert result.label == "red" and result.seed == 5 and result.masks.shape == (2, 4, 28, 28)
    assert sl.read_clip(out / "red patch.overlay.mp4", frames=4).pixels.std() > 0.01
    from PIL import Image

    width, height = Image.open(out / "red patch.filmstrip.png").size
    assert width > height > 100


FADED = ["--perturbation", "fade-black"]  # all that is not kept is lost


def test_ratios_are_tried_upwards_until_one_is_enough(colours, video, tmp_path, capfd):
    few, ratios = ["--preset", "lesson", *FADED], "0.3,0.01,0.1,0.5"
    assert explain(video, tmp_path, *few, "--ratios", ratios) == 0
    printed = capfd.readouterr().out
    result = sl.Explanation.load(tmp_path / "red patch.explanation.safetensors")
    assert result.ratios == (0.01, 0.1, 0.3) and result.enough == (False, False, True)
    p = [f"{float(v):.3f}" for v in result.probability]
    start = next(k for k, line in enumerate(printed.splitlines()) if "Kept    probability" in line)
    table = [line.removesuffix("  (not settled)") for line in printed.splitlines()[start + 1 : start + 6]]
    assert table[:3] == [f" 30.0%  {p[2]}", f"  1.0%  {p[0]}  not enough", f" 10.0%  {p[1]}  not enough"]
    assert table[3:] == result.remarks() and len(table) == 5 and table[4].endswith("try 0.3.")
    assert explain(video, tmp_path, *few, "--ratios", ratios, "--all-ratios") == 0
    whole = sl.Explanation.load(tmp_path / "red patch.explanation.safetensors")
    assert whole.ratios == (0.01, 0.1, 0.3, 0.5) and torch.equal(whole.masks[:3], result.masks)


def test_what_is_not_enough_or_unsure_or_not_settled_is_said(colours, video, tmp_path, capfd, monkeypatch):
    from steplab.config import PRESETS

    assert explain(video, tmp_path, "--target", "dark grey", *FADED, "--ratios", "0.01") == 0
    printed = capfd.readouterr().out
    assert "The network itself is unsure: p = 0.02 for the whole clip." in printed
    assert explain(video, tmp_path, *FADED, "--ratios", "0.01") == 0
    printed = capfd.readouterr().out
    assert "is unsure" not in printed
    assert (
        "  not enough" in printed
        and "\n1 % of the clip keeps " in printed
        and "that is enough; try 0.02." in printed
    )
    monkeypatch.setitem(PRESETS, "smoke", {**PRESETS["smoke"], "iterations": 2})
    assert explain(video, tmp_path) == 0
    assert "(not settled)" in capfd.readouterr().out


def test_variant_and_against_reach_the_engine(colours, video, tmp_path, capfd):
    assert explain(video, tmp_path, "--variant", "delete", "--against", "blue", *FADED) == 0
    printed = capfd.readouterr().out
    result = sl.Explanation.load(tmp_path / "red patch.explanation.safetensors")
    assert (result.config.variant, result.config.against) == ("delete", "blue")
    assert "Removed probability" in printed and "Kept" not in printed


def test_options_reach_the_engine(colours, video, tmp_path):
    options = ["--target", "blue", "--method", "ep3d", "--perturbation", "fade-black", "--frames", "8"]
    options += ["--fit", "stretch", "--all-ratios"]
    assert explain(video, tmp_path, *options) == 0
    result = sl.Explanation.load(tmp_path / "red patch.explanation.safetensors")
    assert (result.label, result.method, result.config.perturbation) == ("blue", "ep3d", "fade-black")
    assert (result.config.variant, result.config.against) == ("preserve", None)
    assert result.masks.shape[1] == 8 and result.ratios == (0.1, 0.3)
    whole = sl.read_clip(video, frames=8, size=28, fit="stretch")
    assert torch.equal(result.clip.pixels, whole.pixels)


@pytest.mark.parametrize("target, label", [("2", "blue"), ("7", "7"), ("dark grey", "dark grey")])
def test_a_target_is_a_name_or_a_number(colours, video, tmp_path, target, label):
    assert explain(video, tmp_path, "--target", target) == 0
    assert sl.Explanation.load(tmp_path / "red patch.explanation.safetensors").label == label


@pytest.mark.parametrize(
    "change, words",
    [
        (["--target", "gren"], "green"),
        (["--target", "99"], "target"),
        (["--method", "stepp"], "method"),
        (["--preset", "lesion"], "preset"),
        (["--perturbation", "smear"], "smear"),
        (["--variant", "remove"], "variant"),
        (["--target", "red", "--against", "red"], "against"),
        (["--frames", "0"], "frames"),
        (["--start", "99"], "start"),
        (["--device", "toaster"], "toaster"),
        (["--out", "TEXT/inside"], "TEXT"),
    ],
)
def test_bad_options_are_told_in_one_line(colours, video, tmp_path, capfd, change, words):
    (tmp_path / "TEXT").write_text("a file, not a folder")
    change = [str(tmp_path / c) if c.startswith("TEXT") else c for c in change]
    assert explain(video, tmp_path / "out", *change) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("steplab: ") and words in error[0]


@pytest.mark.parametrize("content", [None, b"", b"no video at all", bytes(1000)])
def test_bad_files_are_told_in_one_line(colours, tmp_path, capfd, content):
    path = tmp_path / "bad.mp4"
    if content is not None:
        path.write_bytes(content)
    assert explain(str(path), tmp_path / "out") == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "bad.mp4" in error[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ratios", ["", "0", "1.5", "a", "0.1;0.2"])
def test_bad_ratios_are_refused(ratios, capfd):
    with pytest.raises(SystemExit) as exit:
        main(["explain", "x.mp4", "--ratios", ratios])
    assert exit.value.code == 2 and "between 0 and 1" in capfd.readouterr().err


def test_unknown_names_are_told_in_one_line(tmp_path, capfd):
    for command in (
        ["explain", "x.mp4", "--network", "imagenet-consenus"],
        ["tables", "no_such_notebook"],
    ):
        assert main(command) == 2
        error = capfd.readouterr().err.strip().splitlines()
        assert len(error) == 1 and command[-1] in error[0], error


def test_a_warning_is_one_line(colours, tmp_path, capfd, monkeypatch):
    import warnings

    from steplab import clips

    read = clips.read_clip

    def warn(*arguments, **options):
        warnings.warn("two frames are damaged")
        return read(*arguments, **options)

    monkeypatch.setattr(clips, "read_clip", warn)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # put back afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        main(["explain", str(tmp_path / "none.mp4")])
    assert capfd.readouterr().err.splitlines()[0] == "steplab: warning: two frames are damaged"


def test_ctrl_c_ends_without_a_traceback(colours, video, tmp_path, capfd, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(colours, "probabilities", interrupt)
    assert explain(video, tmp_path) == 130
    assert capfd.readouterr().err.strip() == "steplab: interrupted"


def test_a_failing_notebook_is_named_with_its_cell(tmp_path, capfd):
    from test_tables import notebook

    path = notebook(tmp_path / "wrong.ipynb", "fine = 1", "1 / 0", parameters="seed: int = 0")
    assert main(["tables", str(path), "--set", "seed=3", "--out", str(tmp_path / "out")]) == 1
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1] == (
        "steplab: 1 of 1 failed: wrong: cell [4] '1 / 0': ZeroDivisionError: division by zero"
    )
    assert printed.out.splitlines()[-1] == f"wrote {tmp_path / 'out' / 'index.html'}"


def test_help_lists_the_parameters_of_the_notebooks(capfd):
    with pytest.raises(SystemExit) as exit:
        main(["tables", "--help"])
    assert exit.value.code == 0
    lines = [line.strip() for line in capfd.readouterr().out.splitlines()]
    preset = next(line for line in lines if line.startswith("preset: str = 'lesson'  # "))
    assert "00_start_here" in lines[lines.index(preset) + 1]
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    assert "preset: str" not in capfd.readouterr().out


# ---------------------------------------------------------------------------------------------- own networks

OWN = """
import steplab as sl

def make_network():
    import torch
    return sl.Network(torch.nn.Dropout(), ("a", "b"))

def fails():
    raise RuntimeError("no weights here")

def other():
    return 3

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with modules of one's own, in which one stands."""
    (tmp_path / "own_module.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import nowhere_to_be_found")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("own_module", "own_broken"):
        sys.modules.pop(name, None)


def test_a_network_of_ones_own_is_loaded_and_put_to_work(own):
    network = sl.load_network("own_module:make_network")
    assert network.classes == ("a", "b") and not network.module.training
    assert sys.path[-1] == str(own) and sys.path[0] != str(own)  # last: it hides nothing installed


@pytest.mark.parametrize(
    "name, words",
    [
        ("own_modul:make_network", "no module 'own_modul' here or installed"),
        ("own_broken:make_network", "importing it raised ModuleNotFoundError.*nowhere_to_be_found"),
        ("own_module:make_networks", "no function 'make_networks'"),
        ("own_module:number", "no function 'number'"),
        ("own_module:fails", r"fails\(\) raised RuntimeError\('no weights here'\)"),
        ("own_module:other", "expected it to return a Network, got int"),
        ("own module:f", "no network 'own module:f'.*my_module:make_network"),
    ],
)
def test_own_networks_that_cannot_be_used_are_told_in_one_line(own, capfd, name, words):
    with pytest.raises(ValueError, match=words) as caught:
        sl.load_network(name)
    assert (caught.value.__cause__ is not None) == ("raised" in words or "no module" in words)
    assert main(["explain", "x.mp4", "--network", name]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_unknown_options_are_refused_except_for_jupyterlab(capfd, monkeypatch):
    import steplab.__main__

    with pytest.raises(SystemExit) as exit:
        main(["explain", "x.mp4", "--nonsense", "1"])
    assert exit.value.code == 2 and "unrecognized arguments: --nonsense 1" in capfd.readouterr().err
    called = []

    def run(command):
        called.append(command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(steplab.__main__.subprocess, "run", run)
    assert main(["lab", "--port", "8899", "a.ipynb"]) == 3
    assert called[0][1:3] == ["-m", "jupyterlab"] and called[0][-3:] == ["--port", "8899", "a.ipynb"]


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "steplab", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() == f"steplab {sl.__version__}"
