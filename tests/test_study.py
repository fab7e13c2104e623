"""What was found once is found again, and nothing else is taken for it; grids of it become tables."""

import io
import itertools
import math
import zlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from steplab import cells, metrics, store, study
from steplab.clips import Clip, Record
from steplab.explain import Explanation, explain, smallest_ratio
from steplab.explanation import fingerprint
from steplab.faithfulness import deletion, insertion, randomised, similarity
from steplab.networks import Affine, Network
from steplab.study import METRICS, Study, compare, explain_once, orderings, pivot, summary

ASK = {"preset": "smoke", "iterations": 3, "ratios": (0.1,)}


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


# ------------------------------------------------------------------------------------------------ the grid


def record(name, known=True):
    numbers = torch.Generator().manual_seed(ord(name[0]))
    pixels = torch.rand(3, 7, 14, 14, generator=numbers)
    mask = torch.zeros(7, 14, 14, dtype=torch.bool)
    mask[2:, 3:9, 3:9] = True
    boxes = [torch.tensor([[3.0, 3, 9, 9]]) if known and t > 1 else torch.zeros(0, 4) for t in range(7)]
    return Record(Clip(pixels, torch.arange(7) / 4, name), 1, boxes, mask if known else None, (2, 7), name)


@pytest.fixture
def grid(network, tmp_path):
    def make(records=None, methods=("ep3d",), metrics=("S-PT",), **more):
        given = [record("a"), record("b")] if records is None else list(records)
        ask = {"ratios": (0.1,), "preset": "smoke", "iterations": 3, "store": tmp_path, **more}
        return Study(given, ask.pop("networks", {"eye": network}), methods, metrics, **ask)

    return make


def test_the_table_has_a_row_for_each_cell_and_metric(grid, network, monkeypatch):
    made, real = [], cells.explain
    monkeypatch.setattr(cells, "explain", lambda *a, **k: made.append(k) or real(*a, **k))
    methods = {"mine": {"method": "step", "core_padding": "none"}, "chance": "random"}
    threads = torch.get_num_threads()
    one = grid(methods=methods, metrics=("probability", "original"), seeds=(0, 5), name="noise")
    empty = one.table()
    assert set(empty.error) == {"not computed yet"} and empty.value.isna().all() and one.failures().empty
    table = one.run(progress=False).table()
    assert torch.get_num_threads() == threads
    columns = ["dataset", "network", "clip", "label", "method", "seed", "metric"]
    assert table[columns].equals(empty[columns]) and [*table] == [*columns, "value", "error"]
    assert [*table["clip"]] == ["a"] * 8 + ["b"] * 8 and [*table["method"][:8]] == ["mine"] * 4 + [
        "chance"
    ] * 4
    assert set(table.label) == {"other"} and set(table.dataset) == {"noise"} and set(table.error) == {""}
    # by hand: the same call gives the same number
    ask = {"ratios": (0.1,), "preset": "smoke", "iterations": 3, "core_padding": "none", "progress": False}
    torch.set_num_threads(1)
    by_hand = explain(network, record("b").clip, 1, "step", seed=zlib.crc32(b"5 b"), **ask)
    torch.set_num_threads(threads)
    assert isinstance(by_hand, Explanation)
    row = table[(table["clip"] == "b") & (table.method == "mine") & (table.seed == 5)]
    assert [*row.value] == [float(by_hand.probability[0]), by_hand.original]
    # nothing is made twice; a new metric is measured on what is there
    assert len(made) == 8
    more = grid(methods=methods, metrics=("probability", "original", "IoU"), seeds=(0, 5), name="noise")
    assert more.run(progress=False).table().error.eq("").all() and len(made) == 8
    found = more.explanation("b", "eye", "mine", 5)
    assert len(made) == 8 and torch.equal(found.masks, by_hand.masks)
    assert torch.equal(found.clip.pixels, record("b").clip.pixels)


def test_what_decides_a_value_is_part_of_its_name(grid, monkeypatch):
    def value(**changes):
        return grid([replace(record("a"), **changes)]).run(progress=False).table().value[0]

    assert value() > 0
    assert math.isnan(value(boxes=[torch.zeros(0, 4)] * 7)), "other boxes, another value"
    assert value() > 0
    monkeypatch.setitem(METRICS, "S-PT", lambda result, record, network: 0.125)
    assert value() == 0.125, "another metric of that name"


def test_a_failing_cell_is_tried_again_and_recorded(grid, monkeypatch):
    tried, real = [], cells.explain

    def moody(network, clip, *args, **kwargs):
        tried.append(clip.source)
        if clip.source == "b" or (clip.source == "c" and tried.count("c") == 1):
            raise RuntimeError("no\nidea")
        return real(network, clip, *args, **kwargs)

    monkeypatch.setattr(cells, "explain", moody)
    monkeypatch.setitem(METRICS, "broken", lambda *_: 1 / 0)
    one = grid([record("a"), record("b"), record("c")], metrics=("broken", "probability"))
    table = one.run(progress=False).table()
    assert [tried.count(c) for c in "abc"] == [1, 2, 2], "explained once, though a metric failed"
    told = ["ZeroDivisionError: division by zero", "", *["RuntimeError: no idea"] * 2]
    assert [*table.error] == [*told, *told[:2]] and [*table.value.isna()] == [
        True,
        False,
        True,
        True,
        True,
        False,
    ]
    assert len(one.failures()) == 4
    with pytest.raises(RuntimeError, match="idea"):
        one.explanation("b")
    monkeypatch.setattr(cells, "explain", real)
    assert [*one.run(progress=False).table().error] == [told[0], ""] * 3, "another run tries again"


def test_ctrl_c_stops_and_keeps_what_is_whole(grid, monkeypatch, tmp_path):
    real = cells.explain

    def stopped(network, clip, *args, **kwargs):
        result = real(network, clip, *args, **kwargs)
        return replace(result, interrupted=clip.source == "b")

    monkeypatch.setattr(cells, "explain", stopped)
    one = grid()
    with pytest.raises(KeyboardInterrupt):
        one.run(progress=False)
    assert [*one.table().error] == ["", "not computed yet"]


def test_workers_need_what_can_be_sent(grid, network):
    bare = Network(network.module, network.classes, preprocess=lambda x: x)
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        grid(networks={"bare": bare}).run(workers=2)
    alone = grid(metrics=("probability",)).run(progress=False).table()
    for path in grid().store.folder.iterdir():
        path.unlink()
    assert grid(metrics=("probability",)).run(workers=2, progress=False).table().equals(alone)


def test_a_worker_that_would_answer_otherwise_is_refused(grid, monkeypatch):
    real = cells.stamp
    one = grid()
    job = one._job(one._grid(["eye"], one.records)[0], ("S-PT",), one.networks["eye"], 1)
    monkeypatch.setattr(cells, "stamp", lambda network: {**real(network), "torch": "1.0"})
    outcome = cells.compute(job)
    assert (
        outcome.explanation is None
        and "worker differs" in outcome.errors["S-PT"]
        and "torch 1.0" in outcome.errors["S-PT"]
    )


@pytest.mark.parametrize(
    "ask, told",
    [
        ({"records": ()}, "records: got none"),
        ({"records": (record("a"), record("a"))}, "records: got 'a' twice"),
        ({"records": (record("a").clip,)}, "records: got Clip"),
        ({"records": (replace(record("a"), label=2),)}, "target"),
        ({"networks": "no-such-network"}, "no network 'no-such-network'"),
        ({"networks": Network(lambda x: x, ("one", "other"))}, "networks: 'network' is a plain callable"),
        ({"methods": ("ep3d", "magic")}, "method: got 'magic', expected one of"),
        ({"methods": {"x": {"core_padding": "none"}}}, "methods: 'x' has settings without a method"),
        ({"methods": {"x": {"method": "step", "iteration": 3}}}, "unknown constant iteration"),
        ({"iteration": 3}, "none of the methods has a constant iteration"),
        ({"preset": "huge"}, "preset: got 'huge', expected one of"),
        ({"metrics": ("S-PT", "beauty")}, "metrics: got 'beauty'"),
        ({"ratios": (2,)}, "ratios must be"),
        ({"seeds": (1, 1)}, "seeds: got 1 twice"),
        ({"seeds": (0.5,)}, "seeds: got 0.5"),
    ],
)
def test_nonsense_is_refused_at_once(grid, ask, told):
    with pytest.raises(ValueError, match=told):
        grid(**ask)


@pytest.mark.parametrize("ask", [{"workers": 0}, {"workers": 1.5}, {"threads": 0}, {"retries": -1}])
def test_nonsense_is_refused_at_once_by_run(grid, ask):
    with pytest.raises(ValueError, match=f"{next(iter(ask))}: got"):
        grid().run(**ask)
    with pytest.raises(ValueError, match="one or the other"):
        grid().run(workers=2, cluster="tcp://127.0.0.1:1")


def test_each_metric_measures_what_it_says(network):
    one = record("a")
    result = explain(network, one.clip, 1, "ep3d", (0.05, 0.1), "smoke", progress=False, iterations=5)
    assert isinstance(result, Explanation)
    peak = torch.zeros(7, 14, 14)
    peak[3, 5, 5] = 1
    result = replace(result, heatmap=peak, masks=torch.stack([one.mask.float(), 0 * peak]))
    got = {name: function(result, one, network) for name, function in METRICS.items()}
    assert got["S-PT"] == metrics.pointing_game(peak, one.boxes)
    assert got["T-PT"] == got["energy pointing"] == 1
    assert got["probability"] == float(result.probability[0]) and got["original"] == result.original
    grown = torch.zeros(7, 14, 14)
    grown[2:, :13, :13] = 1
    assert got["IoU"] == pytest.approx(5 * 36 / float(grown.sum())), "the truth grown by 4 px"
    assert got["flicker"] == metrics.flicker(one.mask.float())
    again = smallest_ratio(network, one.clip, 1, "ep3d", "smoke", progress=False, iterations=5)
    assert got["smallest ratio"] == again.ratio
    assert got["frames"] == pytest.approx(metrics.frames_in_use(one.mask.float()))
    _, strange = next(randomised(network, stops=1))
    theirs = explain(strange, one.clip, 1, "ep3d", (0.05, 0.1), "smoke", progress=False, iterations=5)
    assert isinstance(theirs, Explanation)
    assert got["randomised"] == similarity(peak, theirs.heatmap)
    assert 0 <= got["deletion"] <= 1 and 0 <= got["insertion"] <= 1 and got["deletion"] != got["insertion"]
    for name, way in (("insertion", insertion), ("deletion", deletion)):
        curve = (network, one.clip.pixels, peak, result.target)
        assert got[name] == way(*curve, steps=4).area
        assert METRICS[name](replace(result, preset="lesson"), one, network) == way(*curve).area
    unknown = {name: METRICS[name](result, record("a", False), network) for name in METRICS}
    assert {k for k, v in unknown.items() if math.isnan(v)} == {
        "S-PT",
        "IoU",
        "energy pointing",
    }
    chance = explain(network, one.clip, 1, "random", (0.2,), "smoke", progress=False)
    assert isinstance(chance, Explanation) and math.isnan(METRICS["smallest ratio"](chance, one, network))
    assert METRICS["randomised"](chance, one, network) == pytest.approx(1), "it asks no network"


# -------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def table():
    """a: 0..3 plus .1 and minus .1 under two seeds; b: one less; c: b without clip 0; d: clip 0 only."""
    values = {"a": [0.0, 1, 2, 3], "b": [-1.0, 0, 1, 2], "c": [math.nan, 0, 1, 2], "d": [0.5]}
    rows = [
        ("set", "eye", f"k{i}", "x", method, seed, "m", value + (0.1, -0.1)[seed], "")
        for method, numbers in values.items()
        for i, value in enumerate(numbers)
        for seed in (0, 1)
    ]
    rows += [("set", "other", f"k{i}", "x", "a", 0, "m", float(i), "") for i in range(2)]
    columns = ["dataset", "network", "clip", "label", "method", "seed", "metric", "value", "error"]
    return pd.DataFrame(rows, columns=columns)


def test_a_study_says_what_it_was_made_of(network, clip):
    record = Record(clip, 0, [torch.zeros(0, 4)] * 7, None, None, "noise")
    study = Study(
        [record], {"eye": network}, "random", ratios=(0.1, 0.3), preset="smoke", seeds=(2, 5), name="set"
    )
    (row,) = study.about().to_dict("records")
    assert row["dataset"] == "set" and row["network"] == "eye" and row["sha256"] == fingerprint(network)
    assert (row["clips"], row["preset"], row["ratios"], row["seeds"]) == (1, "smoke", "0.1 0.3", "2 5")
    assert row["torch"] == torch.__version__


def test_ratios_of_a_methods_own_and_a_metric_of_ones_own(network, clip, tmp_path):
    record = Record(clip, 0, [torch.zeros(0, 4)] * 7, None, None, "noise")
    methods = {f"keep {v}": {"method": "random", "ratios": (v,)} for v in (0.1, 0.3)}
    methods |= {"other": "random", "unfit": "eb-r"}
    study = Study([record], {"eye": network}, methods, ratios=(0.5,), preset="smoke", store=tmp_path)

    def size(result, its, eye):
        assert its is record and eye is network
        return float(result.masks[0].mean())

    assert study.measure("size", size).value.isna().all(), "nothing is explained yet"
    table = study.run(progress=False).table()
    found = study.measure("size", size)
    assert found.value.to_list() == pytest.approx([0.1, 0.3, 0.5, math.nan], abs=1e-3, nan_ok=True)
    assert found.error.to_list()[:3] == [""] * 3 and "eb-r is for" in found.error.to_list()[3]
    same = ["dataset", "network", "clip", "label", "method", "seed", "error"]
    pd.testing.assert_frame_equal(found[same], table[same])
    assert set(found.metric) == {"size"} and [*found.columns] == [*table.columns]
    assert set(study.about().ratios) == {"0.1 0.3 0.5"}
    with pytest.raises(ValueError, match="ratios must be"):
        Study([record], {"eye": network}, {"x": {"method": "random", "ratios": (2,)}}, store=tmp_path)


def test_pivot_and_compare_go_by_clip(table):
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    for frame in (table, again):
        found = summary(frame, "m").set_index(["network", "method"])
        assert [*found.index] == [*itertools.product(["eye"], "abcd"), ("other", "a")]
        assert found.loc["eye", "mean"].to_list() == pytest.approx([1.5, 0.5, 1, 0.5])
        assert found.loc["eye", "clips"].to_list() == [4, 4, 3, 1]
        low, high = found.loc[("eye", "a"), ["low", "high"]]
        assert (low, high) == pytest.approx(metrics.interval([0, 1, 2, 3])[1:])
        shown = pivot(frame, "m")
        assert [*shown.index] == ["a", "b", "c", "d"] and [*shown] == [("set", "eye"), ("set", "other")]
        assert shown["set", "eye"]["a"] == f"1.50 ({low:.2f} .. {high:.2f})"
        assert shown["set", "other"]["b"] == "–"
        paired = compare(frame, "m", "a", "b")
        assert [*paired.network] == ["eye", "other"] and [*paired.clips] == [4, 0]
        assert paired.loc[0, ["difference", "low", "high"]].to_list() == pytest.approx([1, 1, 1]), "paired"
        assert compare(frame, "m", "c", "a").clips[0] == 3 and np.isnan(paired.difference[1])


def test_orderings_hold_fail_or_stay_open(table):
    found = orderings(table, "m", [("a", "b"), ("b", "a"), ("a", "d"), ("b", "b")])
    assert [*found[found.network == "eye"].verdict] == ["holds", "fails", "open", "open"]
    assert set(found[found.network == "other"].verdict) == {"open"} and found.ordering[0] == "a > b"
    for wrong in (
        lambda: pivot(table, "n"),
        lambda: compare(table, "m", "a", "z"),
        lambda: orderings(table, "m", []),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
