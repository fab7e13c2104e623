"""The ways in: files that start the kit elsewhere, commands that are promised, the README's picture."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
OLDEST = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))


def variable(name: str) -> str:
    return re.search(rf"^{name} [?:]= (.+)$", MAKEFILE, re.MULTILINE)[1]


def test_a_codespace_builds_what_make_builds(tmp_path):
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    version = re.fullmatch(r"python:(\d+)\.(\d+)-\w+", container["image"]).groups()
    assert tuple(map(int, version)) >= OLDEST
    assert container["forwardPorts"] == [int(variable("PORT"))] == [*map(int, container["portsAttributes"])]
    python = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert python == f"{variable('VENV')}/bin/python"
    command, target = container["postCreateCommand"].split()
    assert command == "make"
    if shutil.which("make") is None:
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml"):  # into a folder where nothing is built
        shutil.copyfile(ROOT / name, tmp_path / name)
    done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"--editable '\.\[real\]'", done.stdout)


def test_binder_installs_the_kit():
    """Binder takes `environment.yml`, unless a folder of its own hides it."""
    yaml = pytest.importorskip("yaml")
    assert not (ROOT / "binder").exists() and not (ROOT / ".binder").exists()
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(item["pip"] for item in packages if isinstance(item, dict))
    extra = re.fullmatch(r"--editable \.\[(\w+)\]", pip[0])[1]
    assert len(pip) == 1 and extra in PROJECT["optional-dependencies"]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data/README.md", "Makefile"])
def test_make_has_what_is_promised(name):
    targets = set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split())
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
    text = (ROOT / name).read_text()
    promised = set(re.findall(r"(?:`|^|echo \")make ([a-z]+)", text, re.MULTILINE))
    assert promised and promised <= targets
    if name == "Makefile":
        assert promised == targets - {"help"}, "`make help` lists all"


def test_the_readme_opens_with_a_moving_picture():
    head = (ROOT / "README.md").read_text().split("\n## ")[0]
    words, file = re.search(r"!\[([^]]+)\]\(([^)]+)\)", head).groups()
    assert len(words.split()) > 10
    with Image.open(ROOT / file) as film:
        seconds = 0.0
        for k in range(film.n_frames):
            film.seek(k)
            film.load()
            seconds += film.info["duration"] / 1000
        assert 6 <= seconds <= 10 and film.info["loop"] == 0  # again and again
        assert 600 <= film.width <= 800
    assert (ROOT / file).stat().st_size <= 1_500_000


def test_the_script_draws_the_search_from_all_to_little():
    import step_at_work

    record, steps, result = step_at_work.search("smoke")
    assert [k for k, _, _ in steps] == list(range(1, len(steps) + 1))
    film = step_at_work.pictures(record, steps, result)
    assert len(film) == step_at_work.FIRST + step_at_work.SEARCH + step_at_work.LAST
    assert len({picture.size for picture in film}) == 1
    edge, top, side, gap = (getattr(step_at_work, name) for name in ("EDGE", "TOP", "SIDE", "GAP"))

    def half(picture: Image.Image, x: int) -> bytes:
        return picture.crop((x, top, x + side, top + side)).tobytes()

    assert half(film[0], edge) == half(film[0], edge + side + gap)  # at first all is kept
    assert half(film[-1], edge) != half(film[-1], edge + side + gap)
    assert half(film[0], edge) == half(film[16], edge) != half(film[8], edge)  # the clip plays on
