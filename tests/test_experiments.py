"""The paper's experiment on its own data sets, small, in their official layouts: one command each."""

import miniatures
import pandas as pd
import pytest
import torch

from steplab.__main__ import main
from steplab.datasets import open_dataset, ratios_of, records, tasks_of
from steplab.finetune import Recipe, finetune
from steplab.networks import Network, load_network
from steplab.study import Study, paper_ratios


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    return miniatures.epic(tmp_path_factory.mktemp("epic"), count=6)


@pytest.fixture(scope="module")
def sports(tmp_path_factory):
    return miniatures.ucf101(tmp_path_factory.mktemp("ucf"), train=1, test=6)


def test_the_papers_clips_and_ratios_by_name(kitchen, sports):
    """5 test clips a class, or some of them, spread over the classes; boxes and segments come along."""
    asked = {
        "action": f"ucf101-24:{sports}",
        "object": f"epic-object:{kitchen}",
        "moment": f"epic-action:{kitchen}",
    }
    for task, clips in asked.items():
        assert tasks_of(clips) == [task] and ratios_of(clips) == "paper"
        found = records(clips, everything=True)
        assert [r.label for r in found].count(0) == [r.label for r in found].count(1) == 5
        some = records(clips, count=2)
        assert [r.label for r in some] == [0, 1] and [r.name for r in some] == [found[0].name, found[-1].name]
        assert all(tuple(r.clip.pixels.shape) == (3, 16, 112, 112) for r in some)
        if task != "moment":
            assert all(sum(map(len, r.boxes)) >= 1 for r in found)
    (kitchen / "videos").rename(kitchen / "away")
    with pytest.raises(ValueError, match="root: none of 10 clips is there, such as .*P01_"):
        records(asked["object"])
    (kitchen / "away").rename(kitchen / "videos")
    joined = records(asked["moment"], count=4, joined=True)
    assert all(2 < r.segment[1] - r.segment[0] < 13 for r in joined)
    assert all(r.segment == (0, 16) for r in records(asked["moment"], count=4))
    assert tasks_of("") == [] and tasks_of("films/*.mp4") == tasks_of("C:/films/*.mp4") == ["clips"]
    assert ratios_of("") == ratios_of("films/*.mp4") == (0.1,)
    with pytest.raises(ValueError, match="boxes: got 'b.csv' with 'ucf101-24:.*, which has its own"):
        records(asked["action"], "b.csv")


def test_each_family_gets_the_papers_ratios(sports, tmp_path):
    """Four ratios an explanation, other ones for the CNN-LSTM; `about` tells."""
    some = records(f"ucf101-24:{sports}", count=1)
    names = ["stage-action-r2plus1d", "stage-action-vgg16lstm"]
    study = Study(some, names, ["random"], ratios="paper", store=tmp_path, preset="smoke").run(progress=False)
    for name, ratios in zip(names, ((0.02, 0.05, 0.1, 0.2), (0.05, 0.1, 0.2, 0.3)), strict=True):
        assert study.explanation(some[0], name, "random").ratios == paper_ratios(load_network(name)) == ratios
    assert list(study.about().ratios) == ["0.02 0.05 0.1 0.2", "0.05 0.1 0.2 0.3"]
    other = Network(torch.nn.Flatten(), ["x"], name="flat")
    assert paper_ratios(other) == (0.02, 0.05, 0.1, 0.2)


@pytest.mark.parametrize("name", ["ucf101-24", "epic-object", "epic-action"])
def test_tables_of_a_data_set_by_one_command(name, sports, kitchen, tmp_path, monkeypatch, capfd):
    """A network of each family is trained for one epoch, then the lessons that fit run on both.

    Of the films of sport and of objects one family will do.
    """
    monkeypatch.chdir(tmp_path)
    root, lessons = (
        (sports, "06") if name == "ucf101-24" else (kitchen, "05 07" if "action" in name else "04")
    )
    families = {"r2plus1d": "R(2+1)D", "vgg16lstm": "VGG16LSTM"}
    families = families if name == "epic-action" else {"r2plus1d": "R(2+1)D"}
    for family in families:
        recipe = Recipe(name, f"narrow-{family}", f"stage-action-{family}", epochs=1, batch=2)
        finetune(recipe, root, tmp_path / "nets", progress=False)
        (tmp_path / "nets/checkpoint.pt").unlink()
    ratios = ["0.02 0.05 0.1 0.2", "0.05 0.1 0.2 0.3"]
    names = [f"nets/{name}-narrow-{family}" for family in families]
    given = ["--set", f"networks={' '.join(names)}", "--set", "preset=smoke", "--set", "workers=1"]
    given += ["--out", "out", "--jobs", "2"]
    code = main(["tables", *lessons.split(), "--dataset", name, "--root", str(root), *given])
    assert code == 0, capfd.readouterr().err
    data = open_dataset(name, root)
    table = {"ucf101-24": "3", "epic-object": "4", "epic-action": "5"}[name]
    column = {"ucf101-24": "UCF101-24", "epic-object": "EPIC-Object", "epic-action": "EPIC-Action"}[name]
    tables = {path.name for path in (tmp_path / "out").glob("*/table*.csv")}
    assert f"table{table}.csv" in tables and ("table1.csv" in tables) == (table == "5")
    for path in (tmp_path / "out").glob("*/table*.csv"):
        head = path.read_text().splitlines()[0]
        assert all(f"/ {column} | {family} | ours" in head for family in families.values()), path
    for path in (tmp_path / "out").glob("*/cells.csv"):
        cells = pd.read_csv(path, keep_default_na=False, na_values={"value": [""]})
        assert set(cells["clip"]) <= {item.name for item in data.items} and set(cells.network) == {
            n[5:] for n in names
        }
        about = pd.read_csv(path.with_name("about.csv"))
        assert "05" in path.parent.name or set(about.ratios) == set(ratios[: len(families)])
        metric = {"ucf101-24": "S-PT", "epic-object": "S-PT", "epic-action": "T-PT"}[name]
        hits = cells[(cells.metric == metric) & (cells.error == "")].value
        assert "05" in path.parent.name or (len(hits) >= 7 * len(families) and hits.between(0, 1).all())


def test_a_data_set_without_a_folder_is_refused(capfd):
    assert main(["tables", "05", "--dataset", "ucf101-24"]) == 2
    assert "dataset, root: got ucf101-24 and None, expected both" in capfd.readouterr().err
