"""Sliders and buttons moved from Python: the picture that follows is the right one."""

import base64
import io
import threading
import time

import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget_link import Link
from matplotlib.figure import Figure
from matplotlib.image import imread

from steplab.clips import Clip, Record
from steplab.explain import explain
from steplab.losses import ellipsoid_kernel
from steplab.masks import MaskGenerator
from steplab.networks import Network
from steplab.painting import percent
from steplab.perturb import perturb
from steplab.widgets import (
    ExplanationViewer,
    Explorer,
    KernelExplorer,
    LiveOptimisation,
    NetworkComparison,
    PerturbationExplorer,
    SideBySide,
)

RATIOS = (0.1, 0.3)
FRAMES, SIZE = 6, 28


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clip():
    """A square that gets brighter from frame to frame, right of the middle."""
    pixels = torch.full((3, FRAMES, SIZE, SIZE), 0.2)
    pixels[:, :, 8:20, 14:26] = torch.linspace(0.4, 1, FRAMES)[None, :, None, None]
    return Clip(pixels, torch.arange(FRAMES) / 4, "square")


@pytest.fixture(scope="module")
def network():
    """Sees class 1 where the square is bright."""
    where = torch.zeros(3, FRAMES, SIZE, SIZE)
    where[:, :, 8:20, 14:26] = 1 / 300

    def scores(x):
        seen = (x * where[:, : x.shape[2]]).sum((1, 2, 3, 4))
        return torch.stack([0 * seen, seen], 1)

    return Network(scores, ("dark", "<b>bright</b>"))


@pytest.fixture(scope="module")
def result(network, clip):
    return explain(network, clip, "<b>bright</b>", ratios=RATIOS, preset="smoke", progress=False)


@pytest.fixture
def record(clip):
    mask = torch.zeros(FRAMES, SIZE, SIZE, dtype=torch.bool)
    mask[2:5, 8:20, 14:26] = True
    return Record(clip, 1, [torch.zeros(0, 4)] * FRAMES, mask, (2, 5), "square")


def pixels_of(jpeg: bytes) -> np.ndarray:
    return imread(io.BytesIO(jpeg), format="jpeg").astype(float)


def test_frame_slider_shows_that_frame(result):
    viewer = ExplanationViewer(result, scale=3)
    brightness = []
    for t in range(FRAMES):
        viewer.frame.value = t
        square = pixels_of(viewer.picture(-1))[10 * 3 : 18 * 3, 16 * 3 : 24 * 3]  # the clip
        brightness.append(square.mean() / 255)
    assert np.allclose(brightness, np.linspace(0.4, 1, FRAMES), atol=0.02)


def test_playing_and_sliding_frames_never_ask_the_kernel(result):
    viewer = ExplanationViewer(result)
    assert all(type(link).__name__ == "Link" and isinstance(link, Link) for link in viewer.links)
    ends = [(link.source, link.target) for link in viewer.links]
    assert ends == [
        ((viewer.play, "value"), (viewer.frame, "index")),
        *(((viewer.frame, "index"), (stack, "selected_index")) for stack in viewer._stacks),
    ]
    assert viewer.play.max == FRAMES - 1
    assert [len(stack.children) for stack in viewer._stacks] == [FRAMES, FRAMES]
    assert viewer.play.interval == 250  # the clip's own speed: 4 frames a second


def test_ratio_slider_shows_that_mask(result):
    viewer = ExplanationViewer(result, scale=2)
    viewer.view.value = "mask"
    for k in (1, 0):
        viewer.ratio.value = k
        for t in (0, FRAMES - 1):
            viewer.frame.value = t
            right = pixels_of(viewer.picture())[: 2 * SIZE].mean(-1) / 255
            large = result.masks[:, t].repeat_interleave(2, 1).repeat_interleave(2, 2).numpy()
            off = np.abs(right - large).mean((1, 2))
            assert off[k] < 0.05 and off[k] < 0.5 * off[1 - k]
        caption = viewer._captions[1].value
        assert f"step keeps {RATIOS[k]:.0%}".replace("%", " %") in caption
        assert f"<b>{float(result.probability[k]):.2f}</b>" in caption


def test_views_differ_and_truth_is_drawn_only_if_known(result, record):
    pictures = {}
    for known in (None, record):
        viewer = ExplanationViewer(result, known, scale=3)
        for view in ("kept", "heat", "mask", "clip"):
            viewer.view.value = view
            viewer.frame.value = 3
            pictures[known is None, view] = viewer.picture()
    assert len(set(pictures.values())) == 8
    for view in ("kept", "heat", "mask", "clip"):
        with_truth, without = (pixels_of(pictures[k, view]) for k in (False, True))
        changed = np.abs(with_truth - without).max(-1) > 60
        assert changed[: 3 * SIZE].any(), "the true mask's outline"
        assert changed[3 * SIZE :].any(), "the true segment under the bars"


def test_bar_of_the_frame_on_show_is_orange(result):
    viewer = ExplanationViewer(result, scale=3)
    wide = 3 * SIZE
    for t in (0, 4):
        viewer.frame.value = t
        bars = pixels_of(viewer.picture())[3 * SIZE :]
        orange = (bars[..., 0] - bars[..., 2] > 120).any(0)
        columns = np.flatnonzero(orange)
        assert t * wide / FRAMES - 2 <= columns.min() and columns.max() <= (t + 1) * wide / FRAMES + 2


def test_labels_are_escaped(result):
    viewer = ExplanationViewer(result)
    assert "&lt;b&gt;bright&lt;/b&gt;" in viewer.note.value and "<b>bright" not in viewer.note.value


def test_static_twin_follows_the_controls(result, record):
    viewer = ExplanationViewer(result, record)
    viewer.ratio.value = 1
    texts = [t.get_text() for t in viewer.static().texts]
    assert f"keep 30 %\np = {float(result.probability[1]):.2f}" in texts
    assert not any("keep 10 %" in t for t in texts) and any("truth" in t for t in texts)
    assert not any("truth" in t.get_text() for t in ExplanationViewer(result).static().texts)
    assert viewer.frame.options[3][0] == "4 of 6, 0.75 s"

    def rows():
        return [axes.images[0].get_array() for axes in viewer.static().axes]

    kept = rows()
    viewer.view.value = "heat"
    heat = rows()
    assert np.array_equal(kept[0], heat[0]) and not np.array_equal(kept[1], heat[1])


def test_output_carries_widget_and_picture(result):
    bundle = ExplanationViewer(result)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    picture = pixels_of(base64.b64decode(bundle["image/jpeg"]))
    assert picture.shape[1] > 800 and "0x" not in bundle["text/plain"]


def test_several_methods_by_name(result, network, clip):
    other = explain(network, clip, 1, method="ep3d", ratios=(0.2,), preset="smoke", progress=False)
    viewer = ExplanationViewer({"STEP": result, "EP-3D": other}, scale=3)
    viewer.view.value = "mask"
    viewer.ratio.value = 1
    viewer.which.value = "EP-3D"
    assert viewer.explanation is other
    assert [label for label, _ in viewer.ratio.options] == ["20 %"] and viewer.ratio.index == 0
    right = pixels_of(viewer.picture())[: 3 * SIZE].mean() / 255
    assert abs(right - float(other.masks[0, 0].mean())) < 0.03
    viewer.which.value = "STEP"
    assert len(viewer.ratio.options) == 2


def test_truth_can_be_left_out(result, record):
    with_truth, without = ExplanationViewer(result, record, scale=3), ExplanationViewer(result, scale=3)
    shown = with_truth.picture()
    with_truth.truth.value = False
    assert with_truth.picture() == without.picture() != shown
    assert "truth" not in with_truth.note.value
    assert not any("truth" in t.get_text() for t in with_truth.static().texts)
    with_truth.truth.value = True
    assert with_truth.picture() == shown and "truth" in with_truth.note.value


@pytest.mark.parametrize("view", ["heat", "mask"])
def test_opacity_blends_what_is_shown_with_the_clip(result, view):
    viewer = ExplanationViewer(result, scale=3)
    viewer.view.value = view
    clip = pixels_of(viewer.picture(-1))
    whole = np.abs(pixels_of(viewer.picture())[: 3 * SIZE] - clip).mean()
    for opacity in (0.25, 0.5, 0.75):
        viewer.opacity.value = opacity
        part = np.abs(pixels_of(viewer.picture())[: 3 * SIZE] - clip).mean()
        assert part == pytest.approx(opacity * whole, rel=0.2)


def test_several_clips(network, result, record):
    other = Clip(record.clip.pixels[:, :4].flip(1).clone(), torch.arange(4) / 2, "films/backwards.mp4")
    second = explain(network, other, 1, ratios=RATIOS, preset="smoke", progress=False)
    viewer = ExplanationViewer({"STEP": [result, second]}, scale=3)
    assert [label for label, _ in viewer.clip.options] == ["1: square", "2: backwards.mp4"]
    viewer.frame.value = FRAMES - 1
    viewer.clip.value = 1
    assert viewer.explanation is second and viewer.play.max == 3 and viewer.frame.index == 3
    assert [len(stack.children) for stack in viewer._stacks] == [4, 4]
    assert viewer._stacks[0].selected_index == 3 and viewer.play.interval == 500
    viewer.frame.index = 0
    bright = pixels_of(viewer.picture(-1))[30:54, 48:72].mean() / 255
    assert bright == pytest.approx(float(other.pixels[0, 0, 10, 16]), abs=0.02)
    viewer.clip.value = 0
    assert viewer.explanation is result and viewer.play.max == FRAMES - 1
    records = [record, Record(other, 1, [torch.zeros(0, 4)] * 4, None, None, "second")]
    both = ExplanationViewer({"STEP": [result, second]}, records)
    assert [label for label, _ in both.clip.options] == ["1: square", "2: second"]


def test_comparison_shows_all_at_once(result, network, clip):
    other = explain(network, clip, 1, method="ep3d", ratios=RATIOS, preset="smoke", progress=False)
    both = NetworkComparison({"one": result, "<i>other": other}, scale=2)
    both.view.value = "mask"
    for k in (1, 0):
        both.ratio.value = k
        for panel, one in enumerate((result, other)):
            shown = pixels_of(both.picture(panel))[: 2 * SIZE].mean(-1) / 255
            large = one.masks[k, 0].repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
            assert np.abs(shown - large).mean() < 0.05
    captions = [caption.value for caption in both._captions]
    assert "one keeps" in captions[1] and "&lt;i&gt;other keeps" in captions[2] and "<i>" not in captions[2]
    assert captions[0] == f"the clip: p = {result.original:.2f}, {other.original:.2f}"
    assert len(both.links) == 4  # play → frame → the clip and both masks
    assert len(both.static().axes) == 3
    short = explain(network, clip, 1, ratios=(0.2,), preset="smoke", progress=False)
    with pytest.raises(ValueError, match="'b' has other ratios than 'a'"):
        NetworkComparison({"a": result, "b": short})


def test_what_cannot_be_shown_is_refused(result, record):
    with pytest.raises(ValueError, match="explanations: got none"):
        ExplanationViewer({})
    with pytest.raises(ValueError, match="explanations: got none"):
        ExplanationViewer({"STEP": []})
    with pytest.raises(ValueError, match="record: got 2, expected 1, one a clip"):
        ExplanationViewer(result, [record, record])
    with pytest.raises(ValueError, match="'EP-3D' explains other clips than 'STEP'"):
        ExplanationViewer({"STEP": [result], "EP-3D": [result, result]})
    small = Clip(record.clip.pixels[:, :4].clone(), torch.arange(4) / 4, "short")
    with pytest.raises(ValueError, match="record: got a clip of shape"):
        ExplanationViewer(result, Record(small, 1, record.boxes[:4], None, (0, 4), "short"))


# ---------- explorer


def shade(level, name="a"):
    shade.calls += 1
    figure = Figure(figsize=(2, 2), facecolor=(level, level, 0 if name == "a" else level))
    return figure


@pytest.mark.parametrize("ready", [False, True])
def test_explorer_shows_what_the_sliders_say(ready):
    shade.calls = 0
    explorer = Explorer(shade, {"level": (0.0, 0.5, 1.0), "name": ["a", "b"]}, ready=ready)
    assert shade.calls == (6 if ready else 1)
    assert pixels_of(explorer.picture.value).mean() / 255 == pytest.approx(0.33, abs=0.02), "(.5, .5, 0)"
    explorer.controls["level"].value = 1.0
    explorer.controls["name"].value = "b"
    assert pixels_of(explorer.picture.value).min() > 250
    calls = shade.calls
    explorer.controls["level"].value = 0.5
    explorer.controls["level"].value = 1.0
    assert shade.calls == (6 if ready else calls + 1), "what was drawn once is not drawn again"
    assert explorer.static().get_facecolor()[:3] == (1, 1, 1)
    bundle = explorer._repr_mimebundle_()
    assert pixels_of(base64.b64decode(bundle["image/jpeg"])).min() > 250


def test_explorer_starts_where_it_is_told_and_needs_a_choice():
    explorer = Explorer(shade, {"level": range(2)}, start={"level": 0})
    assert explorer.controls["level"].value == 0 and pixels_of(explorer.picture.value).max() < 5
    with pytest.raises(ValueError, match="options: got nothing to choose for 'level'"):
        Explorer(shade, {"level": []})


# ---------- live


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def slow(network):
    """The same network, each answer taking a moment, so that there is time to press buttons."""

    def fn(x):
        time.sleep(0.01)
        return network(x)

    return Network(fn, network.classes)


def test_live_gives_what_explain_gives(network, clip):
    live = LiveOptimisation(network, clip, 1, ratios=(0.2,), preset="smoke", iterations=12, every=3)
    assert live.static() is None and "image/jpeg" not in live._repr_mimebundle_()
    result = live.start().wait()
    direct = explain(network, clip, 1, ratios=(0.2,), preset="smoke", iterations=12, progress=False)
    assert torch.equal(result.masks, direct.masks) and not result.interrupted
    assert [s.iteration for s in live.snapshots] == [3, 6, 9, 12]
    assert len(live.static().axes) == 5  # the clip and four masks
    assert live.curve.value.count("<polyline") == 6
    for name in ("probability", "share kept", "energy", "area term", "core term", "reward term"):
        assert f">{name} " in live.curve.value
    assert "&lt;b&gt;bright" in live.note.value and "done" in live.note.value
    assert not live.start_button.disabled and live.pause_button.disabled and live.stop_button.disabled


def test_live_picture_shows_the_latest_mask(network, clip):
    from steplab.painting import encode, live_frames

    live = LiveOptimisation(network, clip, 1, ratios=(0.2,), preset="smoke", every=4)
    live.start().wait()
    assert bytes(live.picture.value) == encode(live_frames(clip.pixels, live.snapshots[-1].masks[0]), "jpeg")
    assert bytes(live.picture.value) != encode(live_frames(clip.pixels, live.snapshots[0].masks[0]), "jpeg")


def test_live_goes_on_with_what_the_sliders_say(network, clip):
    """A learning rate of nothing stops the mask; what was in force is on record."""
    ask = {"ratios": (0.2,), "preset": "paper", "iterations": 12, "every": 3}
    live = LiveOptimisation(network, clip, 1, method="ep3d", **ask)
    assert live.factors["core_weight"].disabled and not live.factors["area_weight"].disabled
    live.factors["learning_rate"].value = 0
    live.factors["area_weight"].value = 2
    result = live.start().wait()
    assert torch.equal(live.snapshots[1].masks, live.snapshots[3].masks)
    assert not torch.equal(live.snapshots[0].masks, live.snapshots[1].masks)
    weights = result.history["area_weight"][0]
    assert np.isnan(weights[:3]).all() and (weights[3:] == 2 * result.config.area_weight).all()
    assert (result.history["learning_rate"][0, 3:] == 0).all()


def test_live_finds_one_mask_after_another(network, clip):
    live = LiveOptimisation(network, clip, 1, ratios=(0.3, 0.1), preset="smoke", iterations=12, every=6)
    result = live.start().wait()
    assert result.ratios == (0.3, 0.1)
    assert [s.ratios[0] for s in live.snapshots] == [0.3, 0.3, 0.1, 0.1]
    assert "keep 10 %: iteration 12" not in live.note.value  # it is done
    assert len(live.static().axes) == 3  # the clip and two of the first mask
    points = live.curve.value.split('points="')[1].split('"')[0].split()
    assert len(points) == 2, "the curve begins anew with each mask"


def test_live_pauses_goes_on_and_stops(slow, clip):
    live = LiveOptimisation(slow, clip, 1, ratios=(0.2,), preset="paper", every=1)
    live.start_button.click()
    assert live.start_button.disabled and not live.stop_button.disabled
    until(lambda: len(live.snapshots) >= 3)
    live.pause_button.click()
    assert live.pause_button.description == "go on"
    until(lambda: live._thread.is_alive())
    time.sleep(0.3)
    paused = len(live.snapshots)
    time.sleep(0.3)
    assert len(live.snapshots) == paused
    live.pause_button.click()
    until(lambda: len(live.snapshots) > paused)
    live.stop_button.click()
    result = live.wait()
    assert result.interrupted and "stopped" in live.note.value
    assert result.history["energy"].shape[1] < 2000
    assert not live.start_button.disabled
    again = live.start()  # anew, from the start
    until(lambda: len(again.snapshots) >= 1)
    assert again.snapshots[0].iteration == 1
    live.stop()
    live.wait()


def test_stop_works_while_paused_and_wait_goes_on(slow, clip):
    live = LiveOptimisation(slow, clip, 1, ratios=(0.2,), preset="paper", every=1).start()
    until(lambda: live.snapshots)
    live.pause()
    live.stop()
    assert live.wait().interrupted
    live = LiveOptimisation(slow, clip, 1, ratios=(0.2,), preset="smoke", every=1).start()
    live.pause()
    rescue = threading.Timer(600, live.stop)  # were it to hang, the test would fail, not hang
    rescue.start()
    assert not live.wait().interrupted
    rescue.cancel()  # else the interpreter waits for it at its end


def test_failures_are_shown_and_raised(clip, network):
    live = LiveOptimisation(network, clip, "<i>brigth</i>").start()
    with pytest.raises(ValueError, match="brigth"):
        live.wait()
    assert "failed" in live.note.value and "<i>" not in live.note.value
    assert not live.start_button.disabled
    with pytest.raises(RuntimeError, match="start"):
        LiveOptimisation(network, clip).wait()


# ---------- side by side


def test_side_by_side_gives_what_explain_gives_and_leaves_the_network_alone():
    clip = Clip(torch.rand(3, FRAMES, SIZE, SIZE), torch.arange(FRAMES) / 4, "noise")
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(2), torch.nn.Flatten(), torch.nn.Linear(24, 2))
    module.train()
    network = Network(module, ("one", "other"))
    ask = {"ratios": (0.2,), "preset": "smoke", "iterations": 12}
    both = SideBySide(network, clip, 1, methods=("ep3d", "step"), every=3, **ask)
    assert both.static() is None
    results = both.start().wait()
    for method, result in results.items():
        assert torch.equal(result.masks, explain(network, clip, 1, method, progress=False, **ask).masks)
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert len(both.static().axes) == len(both.static("kept").axes) == 3  # the clip and a row for each method
    assert "image/jpeg" in both._repr_mimebundle_()


def test_side_by_side_takes_turns_pauses_and_stops(slow, clip):
    both = SideBySide(slow, clip, 1, methods=("ep3d", "step"), preset="paper", ratios=(0.2,), every=1)
    columns = both.columns.values()
    both.buttons[0].click()
    until(lambda: all(len(one.snapshots) >= 3 for one in columns))
    both.buttons[1].click()
    assert both.buttons[1].description == "go on"
    time.sleep(0.3)
    paused = [len(one.snapshots) for one in columns]
    assert max(paused) - min(paused) <= 2  # in turn
    time.sleep(0.3)
    assert [len(one.snapshots) for one in columns] == paused
    both.buttons[1].click()
    until(lambda: all(len(one.snapshots) > n for one, n in zip(columns, paused, strict=True)))
    both.buttons[2].click()
    assert all(result.interrupted for result in both.wait().values())


def test_side_by_side_needs_a_method_and_passes_failures_on(network, clip):
    with pytest.raises(ValueError, match="methods"):
        SideBySide(network, clip, methods=())
    with pytest.raises(ValueError, match="brigth"):
        SideBySide(network, clip, "brigth").start().wait()


# ---------- the kernel


def test_kernel_explorer_counts_and_turns():
    explorer = KernelExplorer()
    assert "Z = <b>311</b> ones (1, 45, 69, 81, 69, 45, 1 in its frames)" in explorer.note.value
    assert "k = 13, 33, 65, 130, 194 of 1,000 windows" in explorer.note.value
    pictures = [bytes(explorer.picture.value)]
    for name, value in (("turn", -60), ("tilt", 90), ("T_K", 1), ("H_K", 3), ("W_K", 15)):
        explorer.controls[name].value = value
        pictures.append(bytes(explorer.picture.value))
    assert len(set(pictures)) == 6
    assert f"of {16 * 10 * 9:,} windows" in explorer.note.value  # (112 - 3) // 11 + 1, (112 - 15) // 11 + 1
    kernel = ellipsoid_kernel((1, 3, 15), normalised=False)
    assert f"Z = <b>{int(kernel.sum())}</b>" in explorer.note.value
    texts = [t.get_text() for t in explorer.static().axes[0].get_children() if hasattr(t, "get_text")]
    assert f"Z = {int(kernel.sum())}" in texts


# ---------- masks drawn by hand


@pytest.fixture
def by_hand(network, clip):
    rival = explain(network, clip, 1, "middle", ratios=(0.1,), progress=False)
    return PerturbationExplorer(network, clip, rival=rival)


def test_hand_drawn_mask_is_judged_as_a_methods_mask_is(by_hand, network, clip):
    seeds = torch.zeros(by_hand.contest.seed_shape)
    seeds[:, 1, 2] = 1
    by_hand.draw(seeds)
    assert torch.equal(by_hand.seeds, seeds)
    mask = MaskGenerator((FRAMES, SIZE, SIZE))(seeds[None])
    kept = perturb(clip.pixels[None], mask)
    p = float(network.probabilities(kept)[0, 1])
    one = by_hand.judgement
    assert one.probability == pytest.approx(p, abs=1e-6) and torch.equal(one.mask, mask[0])
    assert one.ratio == pytest.approx(float(mask.mean())) and torch.allclose(one.seen, kept[0], atol=1e-6)
    assert f"<b>{p:.2f}</b>" in by_hand.note.value and "&lt;b&gt;bright" in by_hand.note.value
    seen = pixels_of(by_hand.seen.children[3].value)[..., 0].mean() / 255
    assert seen == pytest.approx(float(kept[0, 0, 3].mean()), abs=0.02)
    assert [t.get_text().split("\n")[0] for t in by_hand.static().texts][:2] == ["clip", "you"]


def test_score_is_the_share_of_the_rivals_probability_and_nothing_for_too_much(by_hand):
    rival = float(by_hand.contest.rival.probability[0])
    assert by_hand.judgement.ratio == 0 and by_hand.judgement.score == pytest.approx(
        100 * by_hand.judgement.probability / rival
    )
    by_hand.draw(torch.ones(by_hand.contest.seed_shape))
    much = by_hand.judgement
    assert much.probability > rival and much.ratio > 0.5 and much.score == 0
    assert f"rub out {percent(round(much.ratio - 0.1, 3))}" in by_hand.note.value
    assert by_hand.best > 0, "of the empty mask before"


def test_hand_drawn_controls_reach_the_canvas(by_hand):
    canvas = by_hand.canvas
    assert (canvas.erase, canvas.brush, canvas.reach) == (False, 2, FRAMES)
    by_hand.tool.value, by_hand.brush.value, by_hand.reach.value = True, 4, 2
    assert (canvas.erase, canvas.brush, canvas.reach) == (True, 4, 2)
    assert len(canvas.frames) == FRAMES and tuple(canvas.grid) == (4, 4)
    assert all(isinstance(link, Link) for link in by_hand.links)
    canvas.cells = "ff" * (FRAMES * 16)  # as the browser sends it
    assert by_hand.judgement.ratio > 0.5


def test_a_contest_needs_the_same_clip_and_a_ratio(network, clip):
    other = Clip(clip.pixels.flip(1).clone(), clip.times, "other")
    rival = explain(network, other, 1, "middle", ratios=(0.1,), progress=False)
    with pytest.raises(ValueError, match="rival: explains another clip"):
        PerturbationExplorer(network, clip, rival=rival)
    with pytest.raises(ValueError, match="ratio: got 1.5"):
        PerturbationExplorer(network, clip, ratio=1.5)
    with pytest.raises(ValueError, match="brigth"):
        PerturbationExplorer(network, clip, "brigth")


# ---------- saved


def test_saving_keeps_pictures_and_words_but_no_widgets(result):
    from nbformat import v4

    from steplab.saving import VIEW, keep_pictures

    shown = ExplanationViewer(result)._repr_mimebundle_()
    bar = {VIEW: {"model_id": "1"}, "text/plain": "0%"}
    alone, plain = {VIEW: {"model_id": "2"}}, {"text/plain": "1"}
    outputs = [v4.new_output("display_data", data=dict(d)) for d in (shown, bar, alone, plain)]
    outputs.append(v4.new_output("stream", text="said"))
    cells = [v4.new_markdown_cell("words"), v4.new_code_cell("viewer", outputs=outputs)]
    notebook = v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}, "author": "me"})
    model = {"type": "notebook", "content": notebook}
    keep_pictures(model, path="a.ipynb", contents_manager=None)
    kept = [o.get("data") for o in notebook.cells[1].outputs]
    assert VIEW not in kept[0] and kept[0]["image/jpeg"] == shown["image/jpeg"]
    assert kept[1:4] == [{"text/plain": "0%"}, alone, plain] and notebook.cells[1].outputs[4].text == "said"
    assert notebook.metadata == {"author": "me"}
    for other in ({"type": "file", "content": "text"}, {"type": "notebook", "content": None}):
        before = dict(other)
        keep_pictures(other)
        assert other == before
