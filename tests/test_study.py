"""What was found once is found again, and nothing else is taken for it."""

import pytest
import torch

from steplab import store, study
from steplab.clips import Clip
from steplab.networks import Affine, Network
from steplab.study import explain_once

ASK = {"preset": "smoke", "iterations": 3, "ratios": (0.2,)}


@pytest.fixture
def clip():
    numbers = torch.Generator().manual_seed(0)
    return Clip(torch.rand(3, 7, 14, 14, generator=numbers), torch.arange(7) / 4, "noise")


@pytest.fixture
def network():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 7 * 14 * 14, 2))
    return Network(module, ("one", "other"))


@pytest.fixture
def calls(monkeypatch):
    """How often something was really explained."""
    made = []
    real = study.explain

    def counted(*args, **kwargs):
        made.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(study, "explain", counted)
    return made


def test_the_second_time_it_is_read(network, clip, tmp_path, calls):
    first = explain_once(network, clip, store=tmp_path, **ASK)
    again = explain_once(network, clip, store=tmp_path, **ASK)
    assert len(calls) == 1 and torch.equal(first.masks, again.masks)
    assert again.config == first.config and again.label == first.label
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"], "nothing is left lying about"


def test_whatever_is_asked_otherwise_is_found_anew(network, clip, tmp_path, calls):
    explain_once(network, clip, store=tmp_path, **ASK)
    explain_once(network, clip, store=tmp_path, **{**ASK, "iterations": 4})
    explain_once(network, clip, store=tmp_path, **ASK, method="ep3d")
    explain_once(network, clip, store=tmp_path, **ASK, seed=1)
    explain_once(network, clip, store=tmp_path, **ASK, target=0)
    explain_once(network, Clip(clip.pixels.flip(1), clip.times, "noise"), store=tmp_path, **ASK)
    turned = Network(network.module, network.classes, Affine((0.5,) * 3, (0.2,) * 3))
    explain_once(turned, clip, store=tmp_path, **ASK)
    with torch.no_grad():
        network.module[1].weight += 1
    explain_once(network, clip, store=tmp_path, **ASK)
    assert len(calls) == 8
    explain_once(turned, clip, store=tmp_path, **ASK)  # the same module, so it has changed as well
    assert len(calls) == 9


def test_another_engine_another_answer(network, clip, tmp_path, calls, monkeypatch):
    explain_once(network, clip, store=tmp_path, **ASK)
    monkeypatch.setattr(store, "engine_code", lambda: "changed")
    explain_once(network, clip, store=tmp_path, **ASK)
    assert len(calls) == 2


def test_a_torn_file_is_made_anew(network, clip, tmp_path, calls, capsys):
    first = explain_once(network, clip, store=tmp_path, **ASK)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    again = explain_once(network, clip, store=tmp_path, **ASK)
    assert torch.equal(first.masks, again.masks) and "made anew" in capsys.readouterr().out
    explain_once(network, clip, store=tmp_path, **ASK)
    assert len(calls) == 2


def test_nothing_is_kept_where_it_cannot_be_or_should_not(network, clip, tmp_path, calls):
    (tmp_path / "file").write_text("not a folder")
    assert explain_once(network, clip, store=tmp_path / "file", **ASK).masks.shape == (1, 7, 14, 14)
    bare = Network(lambda x: network.module(x), ("one", "other"))
    for _ in range(2):
        explain_once(bare, clip, store=tmp_path / "store", **ASK)
    assert len(calls) == 3 and not (tmp_path / "store").exists()


def test_nothing_interrupted_is_kept(network, clip, tmp_path, monkeypatch):
    real = study.explain

    def stopped(*args, **kwargs):
        def stop(state):
            raise KeyboardInterrupt

        return real(*args, callback=stop, callback_every=1, **kwargs)

    monkeypatch.setattr(study, "explain", stopped)
    assert explain_once(network, clip, store=tmp_path, **ASK).interrupted
    assert not list(tmp_path.iterdir())
