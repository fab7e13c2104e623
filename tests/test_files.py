"""Stored files, cut, flipped, forged: a clear refusal or the same numbers again, never others."""

import json
import os
import pickle
import random
import struct

import pytest
import safetensors.torch
import torch

import steplab as sl
from steplab.explanation import Explanation
from steplab.networks import load_network, save_network
from steplab.store import Store

FACTS = {"metric": "S-PT", "value": 0.4375, "label": "raises arms"}


class Mean(torch.nn.Module):
    def forward(self, pixels):
        return pixels.mean((2, 3, 4))


@pytest.fixture(scope="module")
def explained():
    pixels = torch.rand(3, 7, 21, 21, generator=torch.Generator().manual_seed(0))
    network = sl.Network(Mean(), ("red", "green", "blue"))
    ask = {"preset": "smoke", "iterations": 3, "ratios": (0.1, 0.2), "progress": False}
    return sl.explain(network, sl.Clip(pixels, torch.arange(7.0), "clip"), 0, "ep3d", step=3, **ask)


@pytest.fixture(scope="module")
def small_network():
    torch.manual_seed(0)
    module = sl.narrow.NarrowR2Plus1D(3, width=4).eval()
    return sl.Network(module, ("a", "b", "c"), frames=8, size=32, name="small")


def cuts(data: bytes) -> list[bytes]:
    """The file cut after each hundredth of its length."""
    return [data[: len(data) * k // 100] for k in range(100)]


def flips(data: bytes, count: int = 300, head: int = 0) -> list[bytes]:
    """One bit turned in each copy, a third of them among the first `head` bytes: lengths and names."""
    numbers, found = random.Random(0), []
    for k in range(count):
        at = numbers.randrange(head if head and k % 3 == 0 else len(data))
        found.append(data[:at] + bytes([data[at] ^ 1 << numbers.randrange(8)]) + data[at + 1 :])
    return found


def header(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_a_damaged_explanation_is_refused(explained, promise):
    data, refused = explained.to_bytes(), 0
    again = Explanation.from_bytes(data)
    assert torch.equal(again.masks, explained.masks) and again.config == explained.config
    tried = [*cuts(data), *flips(data, 3000 if "STEPLAB_SOAK" in os.environ else 300, header(data))]
    for damaged in tried:
        try:
            found = Explanation.from_bytes(damaged)
        except ValueError:
            refused += 1
            continue
        # a letter of a name that is read in either case, or white space of the header: all else is the same
        assert found.to_bytes() == data
    figure = f"{len(tried):,}: {refused:,} refused, {len(tried) - refused} the same to the bit, 0 others"
    promise("Stored explanations cut at every hundredth or with a bit turned", figure)


def test_a_damaged_entry_of_a_store_is_unknown_or_the_same(explained, tmp_path):
    store = Store(tmp_path)
    store.keep_facts("m", **FACTS)
    store.put("e.safetensors", explained.to_bytes(pixels=False))
    data, known = (tmp_path / "m.json").read_bytes(), (FACTS["value"], FACTS["label"])
    assert store.facts("m") == known
    for damaged in [*cuts(data), *flips(data), b"[]", b"3", b"null", b"{}"]:
        (tmp_path / "m.json").write_bytes(damaged)
        assert Store(tmp_path).facts("m") in (None, known)
    data = (tmp_path / "e.safetensors").read_bytes()
    for damaged in [*cuts(data)[::10], *flips(data, 60, header(data))]:
        (tmp_path / "e.safetensors").write_bytes(damaged)
        found = Store(tmp_path).explanation("e", explained.clip)
        assert found is None or found.to_bytes() == explained.to_bytes()


def test_a_damaged_network_is_refused(small_network, tmp_path):
    path = save_network(small_network, "small", folder=tmp_path)
    whole, facts = path.read_bytes(), path.with_suffix(".json").read_bytes()
    expected = small_network.module.state_dict()
    for damaged in [*cuts(whole)[::4], *flips(whole, 60, header(whole))]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot load"):
            load_network(path)
    path.write_bytes(whole)
    for damaged in [*cuts(facts)[::4], *flips(facts, 60)]:
        path.with_suffix(".json").write_bytes(damaged)
        try:
            found = load_network(path).module.state_dict()
        except ValueError:
            continue
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


class Payload:
    """What a pickle may do to whoever opens it."""

    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


def forged(explained, **change) -> bytes:
    """An explanation with other tensors, and a checksum that is right."""
    from steplab.explanation import _checksum

    data = explained.to_bytes()
    tensors = safetensors.torch.load(data) | change
    facts = json.loads(json.loads(data[8 : header(data)])["__metadata__"]["steplab"])
    facts.pop("sha256")
    facts["sha256"] = _checksum(tensors, facts)
    return safetensors.torch.save(tensors, {"steplab": json.dumps(facts)})


def test_a_forger_who_knows_the_checksum_gets_in_with_the_right_shapes_only(explained):
    assert torch.equal(Explanation.from_bytes(forged(explained)).masks, explained.masks)
    wrong = {
        "masks": [explained.masks.half(), explained.masks[0], explained.masks[:1], explained.masks.long()],
        "heatmap": [explained.heatmap[:3], explained.heatmap.double()],
        "probability": [explained.probability[:1], explained.probability.int()],
        "pixels": [explained.clip.pixels[:2], explained.clip.pixels[:, :1]],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match="stored explanation"):
                Explanation.from_bytes(forged(explained, **{name: value.contiguous()}))


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Payload()),
        b"",
        b"\0" * 100,
        struct.pack("<Q", 2**63) + b"{}",  # a header longer than any file
        struct.pack("<Q", 2) + b"{}",
        b"PK\3\4" + bytes(40),
        json.dumps({"masks": [[1]]}).encode(),
    ],
    ids=["pickle", "empty", "zeros", "lying header", "no tensors", "zip", "json"],
)
def test_other_files_are_refused_and_nothing_in_them_is_run(data, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="x.safetensors is not a stored explanation"):
        Explanation.load(path)
    path.with_suffix(".json").write_bytes(data)
    with pytest.raises(ValueError, match="cannot load x.safetensors"):
        load_network(path)
    assert not Payload.ran


def test_what_is_saved_is_whole_or_not_there(explained, tmp_path, monkeypatch):
    path = explained.save(tmp_path / "deep" / "a.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        explained.save(path)
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]


def test_labels_and_names_lead_nowhere(explained, tmp_path):
    """Entries are named by hashes: what a label or a clip is called never becomes a path."""
    store = Store(tmp_path / "store")
    label = "../../outside<script>"
    store.keep_facts("k", "S-PT", 1.0, label)
    assert store.facts("k") == (1.0, label)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["k.json"]
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (tmp_path / "store" / "linked.json").symlink_to(secret)
    store.keep_facts("linked", **FACTS)
    assert secret.read_text() == "mine", "a link is replaced, not followed"
    assert store.facts("linked") == (FACTS["value"], FACTS["label"])
