"""finetune.py: networks trained on real videos; stopped, resumed, shared among processes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import miniatures
import pytest
import torch

from steplab import finetune as module
from steplab.__main__ import main
from steplab.finetune import Recipe, finetune
from steplab.networks import load_network

ROOT = Path(__file__).resolve().parents[1]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    return miniatures.ucf101(tmp_path_factory.mktemp("ucf"), train=4, test=2)


@pytest.mark.parametrize(
    "network, start, epochs",
    [
        ("narrow-r2plus1d", "stage-action-r2plus1d", 2),
        ("narrow-vgg16lstm", "stage-action-vgg16lstm", 4),
    ],
)
def test_both_families_learn_new_classes(tmp_path, network, start, epochs):
    """Two actions under other names, from networks whose last layer is lost: nine of ten are told apart."""
    root = miniatures.ucf101(tmp_path / "ucf", 12, 10, ("waves", "sits down"))
    recipe = Recipe("ucf101-24", network, start, epochs=epochs, batch=6, rate=1e-3, seed=1)
    torch.manual_seed(recipe.seed)
    core = module.NETWORKS[network].build(24).eval()
    module._begin(core, recipe)
    trained = finetune(recipe, root, tmp_path / "out", cache=tmp_path / "cache", **QUIET)
    rows = list(csv.DictReader((tmp_path / "out/log.csv").open()))
    assert [row["epoch"] for row in rows] == [str(k + 1) for k in range(epochs)]
    saved = load_network(tmp_path / f"out/ucf101-24-{network}")
    facts = json.loads((tmp_path / f"out/ucf101-24-{network}.json").read_text())
    assert facts["report"]["test top-1"] == float(rows[-1]["test top-1"]) and facts["report"]["clips"] == 20
    assert facts["recipe"]["init"] == start and saved.classes[:3] == trained.classes[:3]
    data = module.open_dataset("ucf101-24", root, cache=tmp_path / "cache")
    x, labels = module._batch([data[k] for k in range(20)])
    with torch.no_grad():
        scores = saved(x)
        assert torch.equal(scores, trained(x))
        before = core(saved.preprocess(x))
    right, chance = ((s.argmax(1) == labels).float().mean().item() for s in (scores, before))
    assert right == pytest.approx(facts["report"]["test top-1"]) and chance < 0.5 and right >= 0.9
    assert (tmp_path / "out/training.png").stat().st_size > 5000


def state(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def same(one, other):
    """Two checkpoints, but for the seconds."""
    drop = [{k: v for k, v in row.items() if k != "seconds"} for row in (*one["log"], *other["log"])]
    assert drop[: len(one["log"])] == drop[len(one["log"]) :]
    for part in ("core", "optimiser"):
        flat = [str(_numbers(c[part])) for c in (one, other)]
        assert flat[0] == flat[1]


def _numbers(item):
    if isinstance(item, torch.Tensor):
        return item.double().sum().item(), item.double().abs().sum().item(), tuple(item.shape)
    if isinstance(item, dict):
        return {k: _numbers(v) for k, v in item.items()}
    return [_numbers(v) for v in item] if isinstance(item, list | tuple) else item


def command(root, out, *more):
    words = "train --dataset ucf101-24 --network narrow-vgg16lstm --init stage-action-vgg16lstm"
    words += " --epochs 4 --batch 3"
    return [*words.split(), "--root", str(root), "--out", str(out), *more]


def test_a_run_that_is_killed_ends_like_one_that_is_not(ucf, tmp_path):
    """SIGKILL in the second epoch, resumed by the same command; then a third run has nothing to do."""
    start = [sys.executable, "-m", "steplab"]
    quiet = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*start, *command(ucf, tmp_path / "a")], **quiet) as process:
        while not (tmp_path / "a/checkpoint.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = len(state(tmp_path / "a")["log"])
    assert 1 <= done < 4 and not (tmp_path / "a/training.png").exists()
    for out in ("a", "b"):
        subprocess.run([*start, *command(ucf, tmp_path / out)], check=True, **quiet)
    same(state(tmp_path / "a"), state(tmp_path / "b"))
    before = (tmp_path / "a/checkpoint.pt").stat().st_mtime_ns
    assert main(command(ucf, tmp_path / "a")) == 0
    assert (tmp_path / "a/checkpoint.pt").stat().st_mtime_ns == before
    one, other = (load_network(tmp_path / out / "ucf101-24-narrow-vgg16lstm").module for out in ("a", "b"))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_two_processes_share_each_batch(ucf, tmp_path):
    """`torchrun` on two processes; a network without batch norm would do the same steps as one process."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    told = subprocess.run(
        [*torchrun, "-m", "steplab", *command(ucf, tmp_path / "out", "--epochs", "1", "--device", "cpu")],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-3000:]
    (row,) = state(tmp_path / "out")["log"]
    assert row["epoch"] == 1 and told.stdout.count("test top-1") == 1
    saved = tmp_path / "out/ucf101-24-narrow-vgg16lstm"
    facts = json.loads(saved.with_suffix(".json").read_text())
    assert facts["report"]["clips"] == 4 and facts["report"]["trained on"] == 8
    data = module.open_dataset("ucf101-24", ucf)
    x, labels = module._batch([data[k] for k in range(4)])
    with torch.no_grad():
        scores = load_network(saved)(x)
    place = (scores > scores.gather(1, labels[:, None])).sum(1)
    for k in (1, 5):  # of the five, each process finds another number
        assert row[f"test top-{k}"] == (place < k).float().mean()


def test_another_recipe_or_a_damaged_checkpoint_is_refused(ucf, tmp_path):
    recipe = Recipe("ucf101-24", "narrow-vgg16lstm", "stage-action-vgg16lstm", epochs=1, batch=4)
    finetune(recipe, ucf, tmp_path, **QUIET)
    written = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="holds a run with epochs = 1, now 2; expected the same"):
        finetune(replace(recipe, epochs=2), ucf, tmp_path, **QUIET)
    assert (tmp_path / "checkpoint.pt").read_bytes() == written
    for damaged in (written[: len(written) // 2], b""):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint.pt is no checkpoint"):
            finetune(recipe, ucf, tmp_path, **QUIET)


@pytest.mark.parametrize("network", ["r2plus1d_18", "vgg16lstm"])
def test_the_networks_of_the_paper_take_a_step(tmp_path, network):
    """At full size, and can be loaded again; clips of 112 px are enlarged to what a VGG needs."""
    root = miniatures.ucf101(tmp_path / "ucf", 1, 1, actions=("waves",), ending="avi")
    recipe = Recipe("ucf101-24", network, epochs=1, batch=1, optimiser="sgd", size=112)
    trained = finetune(recipe, root, tmp_path / "out", **QUIET)
    facts = state(tmp_path / "out")
    assert len(facts["log"]) == 1 and facts["log"][0]["loss"] > 0 and facts["schedule"]["last_epoch"] == 1
    saved = load_network(tmp_path / f"out/ucf101-24-{network}")
    assert type(saved.module) is type(trained.module) and (saved.frames, saved.size) == (16, 112)
    x = torch.rand(1, 3, 4, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(saved(x), trained(x)) and saved(x).shape == (1, 24)
    assert saved.preprocess(x).shape[-1] == (224 if network == "vgg16lstm" else 112)


def test_weights_of_torchvision_go_where_they_belong(monkeypatch):
    """Planted ones: no download."""
    from torchvision.models import vgg16
    from torchvision.models.video import r2plus1d_18

    for name, init, theirs, pairs in (
        ("r2plus1d_18", "kinetics400", r2plus1d_18(), {"net.stem.0.weight": "stem.0.weight"}),
        (
            "vgg16lstm",
            "imagenet",
            vgg16(),
            {"features.28.weight": "features.28.weight", "fc6.weight": "classifier.0.weight",
             "fc7.bias": "classifier.3.bias"},
        ),
    ):  # fmt: skip
        planted = theirs.state_dict()
        monkeypatch.setattr(module, "fetch", lambda weights, name, planted=planted: planted)
        core = module.NETWORKS[name].build(3)
        head = {
            k: v.clone() for k, v in core.state_dict().items() if k.startswith(module.NETWORKS[name].head)
        }
        module._begin(core, Recipe("ucf101-24", name, init))
        found = core.state_dict()
        assert head and all(torch.equal(found[k], v) for k, v in head.items())
        for ours, key in pairs.items():
            assert torch.equal(found[ours], planted[key])


def test_offline_is_told_clearly(ucf, tmp_path, monkeypatch, capfd):
    from urllib.error import URLError

    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    options = ["--network", "r2plus1d_18", "--init", "kinetics400", "--out", str(tmp_path / "out")]
    assert main(["train", "--dataset", "ucf101-24", "--root", str(ucf), *options]) == 2
    assert "could not download" in capfd.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"dataset": "ucf"}, "dataset: got 'ucf', expected one of ucf101-24"),
        ({"network": "vgg"}, "network: got 'vgg'"),
        ({"optimiser": "adam"}, "optimiser: got 'adam', expected one of adamw, sgd"),
        ({"init": "imagenet"}, "init: got 'imagenet' for r2plus1d_18, expected kinetics400, none or"),
        (
            {"network": "narrow-vgg16lstm", "init": "kinetics400"},
            "init: got 'kinetics400' for narrow-vgg16lstm",
        ),
        ({"epochs": 0}, "epochs: got 0, expected at least 1"),
        ({"batch": 0}, "batch: got 0"),
        ({"rate": 0.0}, "rate: got 0.0, expected more than 0"),
        ({"average": "logits"}, "average: got 'logits'"),
        ({"precision": "half"}, "precision: got 'half'"),
    ],
)
def test_what_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**({"dataset": "ucf101-24"} | change))


def test_every_process_needs_a_clip(ucf, tmp_path):
    recipe = Recipe("ucf101-24", "narrow-vgg16lstm", batch=2)
    with pytest.raises(ValueError, match="batch: got 2 for 3 processes, expected a clip for each"):
        module._Run(recipe, ucf, tmp_path, None, 0, torch.device("cpu"), 0, 3)


def test_weights_of_another_family_are_refused(ucf, tmp_path):
    recipe = Recipe("ucf101-24", "narrow-vgg16lstm", "stage-action-r2plus1d")
    with pytest.raises(ValueError, match="init: .* is a NarrowR2Plus1D, expected a NarrowVGG16LSTM"):
        finetune(recipe, ucf, tmp_path, **QUIET)


def test_folders_need_a_split_and_missing_videos_are_told(tmp_path):
    """`train/` and `val/` with a folder for each label; a label that is not tested keeps its place."""
    recipe = Recipe("folders", "narrow-vgg16lstm", epochs=1, batch=4, rate=1e-9)
    for split, count, labels in (("train", 2, ("waves", "kicks")), ("val", 1, ("waves",))):
        for k, record in enumerate(miniatures.clips("action", labels, count, "train")):
            path = tmp_path / "own" / split / labels[k // count] / f"{k}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            miniatures.write_video(path, record.clip.pixels)
    with pytest.raises(ValueError, match="is for training and for testing; expected train/ and"):
        finetune(recipe, tmp_path / "own/train", tmp_path / "out", **QUIET)
    trained = finetune(recipe, tmp_path / "own", tmp_path / "out", **QUIET)
    assert trained.classes == ("kicks", "waves")
    root = miniatures.ucf101(tmp_path / "ucf", 2, 1)
    next((root / "Basketball").glob("*_g02_*")).unlink()
    with pytest.warns(UserWarning, match="1 of 4 clips are missing; `steplab data check` lists them"):
        finetune(replace(recipe, dataset="ucf101-24"), root, tmp_path / "other", **QUIET)


def test_no_gradient_crosses_the_steps_where_the_paper_blocks_it():
    """Of the last step's loss: only its own frame has a gradient if states are blocked, all frames if not."""
    core = module.NETWORKS["narrow-vgg16lstm"].build(3).eval()  # batch norm would mix frames
    core.training = True
    x = torch.rand(1, 3, 4, 112, 112, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for blocked, frames in ((True, [3]), (False, [0, 1, 2, 3])):
        core.detach_state, core.plays = blocked, 1
        (grad,) = torch.autograd.grad(core.step_logits(x)[0, -1, 0], x)
        assert grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == frames


def test_the_loss_of_an_lstm_is_that_of_the_mean_or_of_each_step():
    core = module.NETWORKS["narrow-vgg16lstm"].build(3).eval()
    x = torch.rand(2, 3, 4, 112, 112, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        steps = core.step_logits(x).log_softmax(-1)
        of_mean, right = module._Loss(core, "probabilities")(x, labels)
        of_steps, _ = module._Loss(core, "losses")(x, labels)
        mean = steps.exp().mean(1)[[0, 1], labels]
        assert of_mean == pytest.approx(float(-mean.log().mean()), abs=1e-5)
        assert of_steps == pytest.approx(float(-steps[[0, 1], :, labels].mean()), abs=1e-5)
        assert int(right) == int((core(x).argmax(1) == labels).sum()) and of_mean < of_steps
