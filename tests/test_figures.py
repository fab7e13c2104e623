"""Pictures are checked by their pixels and their words: what is drawn is what was given."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from steplab import charts, figures, painting

T, H, W = 6, 24, 32


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def pixels():
    """Green everywhere, a little brighter from frame to frame."""
    clip = torch.zeros(3, T, H, W)
    clip[1] = torch.linspace(0.5, 1, T)[:, None, None]
    return clip


@pytest.fixture
def mask():
    m = torch.zeros(T, H, W)
    m[:, 6:18, 4:16] = 1
    return m


# ---------- pixels


def test_overlay_keeps_shape_and_range_and_shows_heat(pixels, mask):
    heat = mask.clone()
    heat[0] = 0
    out = painting.overlay(pixels, heat * 3)  # divided by its maximum
    assert out.shape == pixels.shape and out.min() >= 0 and out.max() <= 1
    cold, hot = out[:, 2, 2, 2], out[:, 2, 12, 8]
    assert torch.allclose(cold, cold[:1].expand(3)), "nothing: grey"
    assert hot[0] > hot[2] + 0.2, "heat: yellow"
    assert torch.allclose(out[:, 0, 12, 8], 0.75 * 0.587 * pixels[1, 0, 0, 0].expand(3), atol=1e-3)
    assert torch.equal(out, painting.overlay(pixels, heat)), "only heat above 1 is rescaled"
    assert not torch.allclose(painting.overlay(pixels, heat * 0.5), out)


def test_hotter_is_lighter(pixels):
    """Lightness alone must rank heat, for colour-blind readers and black-and-white print."""
    heat = torch.linspace(0, 1, W).expand(T, H, W).contiguous()
    rows = painting.overlay(torch.full_like(pixels, 0.5), heat)[:, 0, 0]
    light = (torch.tensor([0.299, 0.587, 0.114])[:, None] * rows).sum(0)
    assert (light[9:].diff() > 0).all() and light[-1] > light[0] + 0.15


@pytest.mark.parametrize(
    "heat, words",
    [(torch.zeros(T, H), "heat: got shape"), (torch.full((T, H, W), -0.1), "heat: got values down to -0.1")],
)
def test_overlay_refuses(pixels, heat, words):
    with pytest.raises(ValueError, match=words):
        painting.overlay(pixels, heat)


def test_kept_stays_and_the_rest_turns_grey(pixels, mask):
    frames = painting.paint(pixels, mask, "kept", scale=3)
    assert frames.shape == (T, 3 * H, 3 * W, 3) and frames.dtype == np.uint8
    inside, outside = frames[2, 12 * 3, 10 * 3], frames[2, 2 * 3, 25 * 3]
    green = 255 * float(pixels[1, 2, 0, 0])
    assert np.allclose(inside, [0, green, 0], atol=2)
    assert np.ptp(outside.astype(int)) <= 1 and outside[0] > 120
    edge = frames[2, 12 * 3, : 10 * 3].astype(int)
    assert (np.abs(edge - 255 * np.array(to_rgb(painting.ORANGE))).max(-1) < 30).any(), "an orange line"


def test_views(pixels, mask):
    shown = {view: painting.paint(pixels, mask, view, scale=2) for view in painting.VIEWS}
    assert set(shown["mask"][0].reshape(-1, 3).sum(1)) >= {0, 765}
    assert np.array_equal(shown["clip"][0, 0, -1], painting.paint(pixels, scale=2)[0, 0, -1])
    assert len({frames.tobytes() for frames in shown.values()}) == len(painting.VIEWS)


def test_truth_is_blue_and_boxes_stand_in_for_it(pixels, mask):
    plain = painting.paint(pixels, scale=3).astype(int)
    truth = painting.paint(pixels, true_mask=mask, scale=3).astype(int)
    box = [torch.tensor([[4.0, 6, 16, 18]])] * T
    assert np.array_equal(truth, painting.paint(pixels, boxes=box, scale=3))
    assert np.array_equal(truth, painting.paint(pixels, true_mask=mask.bool(), scale=3))
    none = painting.paint(pixels, boxes=[torch.zeros(0, 4)] * T, scale=3)
    assert np.array_equal(none, plain)
    changed = np.abs(truth - plain).max(-1)[0] > 40
    rows, columns = np.nonzero(changed)
    assert abs(rows.min() / 3 - 6) < 1.5 and abs(rows.max() / 3 - 18) < 1.5
    assert abs(columns.min() / 3 - 4) < 1.5 and abs(columns.max() / 3 - 16) < 1.5
    blue = truth[0][changed]
    assert (blue[:, 2] > blue[:, 0] + 100).any()
    assert not changed[10 * 3 : 14 * 3, 8 * 3 : 12 * 3].any(), "a line, not a patch"


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(view="jet"), "view: got 'jet'"),
        (dict(scale=0), "scale: got 0"),
        (dict(true_mask=torch.zeros(T, H, W + 1)), "true_mask: got shape"),
        (dict(boxes=[torch.zeros(0, 4)]), "boxes: got 1 entries, expected 6"),
    ],
)
def test_paint_refuses(pixels, mask, given, words):
    with pytest.raises(ValueError, match=words):
        painting.paint(pixels, mask, **given)
    with pytest.raises(ValueError, match="pixels: got shape"):
        painting.paint(pixels[:2])


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_encoded_pictures_are_small_and_faithful(kind):
    rows = np.linspace(0, 255, 90)[:, None, None]
    picture = np.broadcast_to(rows, (90, 120, 3)).astype(np.uint8)
    data = painting.encode(picture, kind)
    assert len(data) < picture.size / 10
    back = imread(io.BytesIO(data), format=kind)[..., :3].astype(float)
    assert np.abs(back - picture).mean() < 4


# ---------- frames for sliders


def test_bars_tell_how_much_each_frame_keeps(pixels):
    mask = torch.zeros(T, H, W)
    for t in range(T):
        mask[t, : 4 * t] = 1  # more and more
    frames = painting.Canvas(pixels, 2, segment=(1, 3)).panel(mask)
    assert frames.shape == (T, 2 * H + 36, 2 * W, 3)
    bars = frames[5][2 * H :].astype(int)
    wide = bars.shape[1] / T
    grey = np.abs(bars - 0xBD).max(-1) < 8
    heights = [grey[:, int((t + 0.5) * wide)].sum() for t in range(T - 1)]
    assert heights[0] == 0 and all(np.diff(heights) > 0)
    blue = [np.abs(bars[:, int((t + 0.5) * wide)] - [0, 0x72, 0xB2]).max(-1).min() < 8 for t in range(T)]
    assert blue == [False, True, True, False, False, False]


def test_live_picture_has_both_rows(pixels, mask):
    picture = painting.live_frames(pixels, mask, columns=3)
    assert picture.shape == (2 * (H + 3), 3 * (W + 3), 3)
    shown = painting.spread(T, 3)
    heat = painting.paint(pixels, mask, "heat", scale=1)
    assert np.array_equal(picture[:H, :W], heat[shown[0]])
    assert np.array_equal(picture[:H, W + 3 : 2 * W + 3], heat[shown[1]])


def test_curve_is_escaped_and_moves(mask):
    drawn = painting.live_curve({"<script>": [0.0, 0.5, 1.0], "energy": [30.0, 5.0]}, length=5)
    assert "<script>" not in drawn and "&lt;script&gt; 1.00" in drawn and "energy 5.00" in drawn
    points = drawn.split('points="')[1].split('"')[0].split()
    x, y = zip(*(map(float, p.split(",")) for p in points), strict=True)
    assert x == (0, 90, 180) and y[0] > y[1] > y[2]
    assert painting.live_curve({"p": []}, 5).count("polyline") == 1


def test_spread_takes_evenly_spread_frames():
    assert painting.spread(16, 8).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert painting.spread(16, 4).tolist() == [1, 5, 9, 13]
    assert painting.spread(3, 8).tolist() == [0, 1, 2]


# ---------- figures


def words(figure):
    return [text.get_text() for text in figure.texts]


def test_filmstrip_rows_labels_and_times(pixels, mask, tmp_path):
    masks = torch.stack([mask, 1 - mask])
    path = tmp_path / "new" / "strip.png"
    given = dict(ratios=[0.05, 0.5], probability=[0.876, 0.5], true_mask=mask, times=torch.arange(T) / 8)
    figure = figures.filmstrip(pixels, masks, columns=3, title="waves", path=path, **given)
    assert words(figure)[:4] == ["clip", "keep 5 %\np = 0.88", "keep 50 %\np = 0.50", "truth\n18.8 %"]
    assert words(figure)[4:7] == ["0.00 s", "0.25 s", "0.50 s"] and words(figure)[-1] == "waves"
    assert "— truth" in words(figure)
    assert len(figure.axes) == 4 and imread(path).shape[1] > 1000
    clip = figure.axes[0].images[0].get_array()
    shown = painting.spread(T, 3)
    for k, t in enumerate(shown):  # each frame where it belongs
        x = int((k + 0.4) * clip.shape[1] / 3)
        assert abs(int(clip[10, x, 1]) - 255 * float(pixels[1, t, 0, 0])) < 3
    assert not np.array_equal(figure.axes[1].images[0].get_array(), figure.axes[2].images[0].get_array())


def test_names_with_dollars_are_no_formulas(pixels, mask, tmp_path):
    name = r"between $\frac{$ and <b>"
    figure = figures.filmstrip(pixels, mask[None], labels=[name], title=f"“{name}”")
    figure.savefig(tmp_path / "strip.png")
    assert {name, f"“{name}”"} <= {text.get_text() for text in figure.texts}


def test_filmstrip_shows_what_there_is(pixels, mask):
    assert len(figures.filmstrip(pixels).axes) == 1
    assert words(figures.filmstrip(pixels))[1:] == [f"frame {t}" for t in range(T)]
    assert len(figures.filmstrip(pixels, mask).axes) == 2
    assert "— truth" not in words(figures.filmstrip(pixels, mask))
    assert "— truth" in words(figures.filmstrip(pixels, mask, boxes=[torch.tensor([[1, 1, 9, 9]])] * T))
    only = figures.filmstrip(pixels, mask, labels=["after 5"], rows=["masks"])
    assert len(only.axes) == 1 and words(only)[0] == "after 5"


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(ratios=[0.1, 0.2]), "ratios: got 2, expected 1"),
        (dict(probability=[]), "probability: got 0, expected 1"),
        (dict(rows=["truth"]), "rows: got 'truth'"),
        (dict(view="x"), "view: got 'x'"),
        (dict(masks=torch.zeros(2, H, W)), "masks: got shape"),
    ],
)
def test_filmstrip_refuses(pixels, mask, given, said):
    with pytest.raises(ValueError, match=said):
        figures.filmstrip(pixels, **{"masks": mask, **given})


def test_energy_draws_each_term_and_ratio():
    history = {name: np.ones((2, 9)) * k for k, name in enumerate(("energy", "probability", "mean", "area"))}
    history["energy"][1, 5:] = np.nan
    figure = figures.energy(history, [0.02, 0.1], title="how")
    assert [axes.get_title() for axes in figure.axes] == [charts.TERMS[name] for name in history]
    assert all(axes.get_xlabel() == "iteration" for axes in figure.axes)
    first = figure.axes[0].lines
    assert len(first) == 2 and list(first[0].get_xdata())[:2] == [1, 2]
    assert len({line.get_linestyle() for line in first}) == 2, "told apart without colour"
    goals = [line.get_ydata()[0] for line in figure.axes[2].lines[1::2]]
    assert goals == [0.02, 0.1]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["keep 2 %", "keep 10 %"]
    assert len(figures.energy(history, terms=["mean"]).axes) == 1
    with pytest.raises(ValueError, match="terms: got 'core'"):
        figures.energy(history, terms=["core"])
    with pytest.raises(ValueError, match="ratios: got 1, expected 2"):
        figures.energy(history, [0.1])
    named = figures.energy(history, [0.1, 0.1], names=["EP-3D", "STEP"])
    assert [text.get_text() for text in named.legends[0].texts] == ["EP-3D", "STEP"]
    with pytest.raises(ValueError, match="names: got 1, expected 2"):
        figures.energy(history, names=["EP-3D"])


def test_kept_per_frame(mask):
    masks = torch.stack([mask, mask * 0.5])
    times = np.arange(T) / 4
    figure = figures.kept_per_frame(masks, ratios=[0.1, 0.2], times=times, true_mask=mask, segment=(1, 4))
    (axes,) = figure.axes
    truth, first, second = axes.lines
    assert np.allclose(first.get_ydata(), 18.75) and np.allclose(second.get_ydata(), 9.375)
    assert np.allclose(truth.get_ydata(), 18.75) and truth.get_color() == painting.BLUE
    box = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    assert np.allclose([box.x0, box.x1], [0.125, 0.875])
    assert axes.get_xlabel() == "time (s)" and axes.get_ylabel() == "share of frame (%)"
    assert figures.kept_per_frame(mask).axes[0].get_xlabel() == "frame"
    with pytest.raises(ValueError, match="times: got 2, expected 6"):
        figures.kept_per_frame(mask, times=[0, 1])
    with pytest.raises(ValueError, match="masks: got shape"):
        figures.kept_per_frame(mask[0])


def test_curves():
    x, lines = [0.05, 0.1, 0.2], {"STEP": [0.5, np.nan, 0.9], "random": [0.1, 0.2, 0.3]}
    figure = figures.curves(
        x, lines, xlabel="ratio", ylabel="p", log=True, level={"whole clip": 0.95}, mark={"a*": 0.12}
    )
    (axes,) = figure.axes
    assert np.array_equal(axes.lines[0].get_ydata(), lines["STEP"], equal_nan=True)
    assert list(axes.lines[1].get_xdata()) == x and axes.get_xscale() == "log"
    assert axes.lines[2].get_ydata()[0] == 0.95 and axes.lines[3].get_xdata()[0] == 0.12
    assert [t.get_text() for t in axes.texts] == ["a*"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["STEP", "random", "whole clip"]
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    with pytest.raises(ValueError, match="lines: 'STEP' has 1 values, expected 2"):
        figures.curves([0.05, 0.2], {"STEP": [0.5]}, xlabel="", ylabel="")


def test_ranking_shows_order_template_and_gradient():
    values = torch.tensor([0.2, 1.0, 0.6, 0.0])
    left, right = figures.ranking(values, 0.5).axes
    assert np.allclose(left.lines[1].get_ydata(), [1, 0.6, 0.2, 0])
    assert list(left.lines[0].get_xdata()) == [0, 50, 50, 100]
    assert np.allclose(right.lines[0].get_ydata(), [0, -0.8, 0.4, 0]), (
        "2 (m - 1) of the half on top, 2 m below"
    )


def test_maps_share_one_scale():
    volumes = {"a": torch.rand(16, 8, 9), "b": 3 * torch.ones(16, 8, 9)}
    *frames, bar = figures.maps(volumes, label="times seen", columns=4).axes
    assert len(frames) == 8 and bar.get_ylabel() == "times seen"
    assert all(axes.images[0].get_clim() == (0, 3) for axes in frames)
    assert np.allclose(frames[1].images[0].get_array(), volumes["a"][5]), "the middle of the second quarter"
    assert [axes.get_xlabel() for axes in frames[4:]] == [f"frame {t}" for t in (1, 5, 9, 13)]
    assert [axes.get_ylabel() for axes in frames[::4]] == ["a", "b"]


def test_kernel_shows_slices_and_counts():
    ones = torch.zeros(3, 5, 7)
    ones[1] = 1
    ones[0, 2, 3] = 1
    body, *slices = figures.kernel(ones).axes
    assert body.get_title() == "Z = 36" and [axes.get_xlabel() for axes in slices] == ["1", "35", "0"]
    assert np.array_equal(slices[1].images[0].get_array(), ones[1])


@pytest.mark.parametrize(
    "turn, tilt, high, wide", [(0, 0, 2, 3), (90, 0, 2, 4), (0, 90, 4, 3), (-90, 90, 3, 4)]
)
def test_cubes_are_seen_from_where_one_stands(turn, tilt, high, wide):
    """Four frames, two rows, three columns: which two sides show depends on where one stands."""
    picture = painting.cubes(torch.ones(4, 2, 3, dtype=torch.bool), turn, tilt, side=10)
    drawn = picture.astype(int).min(-1) < 200
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    assert abs(rows[-1] - rows[0] + 1 - 10 * high) <= 2 and abs(columns[-1] - columns[0] + 1 - 10 * wide) <= 2


def test_cubes_hide_what_is_behind():
    behind = torch.ones(2, 3, 3, dtype=torch.bool)
    solid = painting.cubes(behind, 0, 0)
    behind[1, 1, 1] = False  # in the back layer, covered by the front one
    assert np.array_equal(painting.cubes(behind, 0, 0), solid)
    behind[0, 1, 1] = False
    assert not np.array_equal(painting.cubes(behind, 0, 0), solid)
    front, back = torch.zeros(2, 3, 5, 5, dtype=torch.bool)
    front[0, 2, 1], back[2, 2, 1] = True, True
    shown = [painting.cubes(one, 45, 0).astype(int).min(-1) < 200 for one in (front, back)]
    left, right = (np.flatnonzero(one.any(0)).mean() for one in shown)
    assert left < right, "from the right, what is later lies further right"
    shown = [painting.cubes(one, 0, 45).astype(int).min(-1) < 200 for one in (front, back)]
    low, high = (np.flatnonzero(one.any(1)).mean() for one in shown)
    assert high < low, "from above, what is later lies higher"


def test_kernel_as_one_picture_has_a_slice_for_each_frame():
    ones = torch.zeros(3, 5, 7)
    ones[1] = 1
    picture = painting.body(ones, 0, 0).astype(int)
    orange = np.abs(picture - [0xE6, 0x9F, 0x00]).max(-1) < 3
    dark = np.abs(picture - 0x3B).max(-1) < 3
    assert orange[:, 400:].sum() == 35 * 49 and dark[:, 400:].sum() >= 2 * 35 * 49


def test_panels_share_rows_and_scale_and_keep_the_other_number():
    rows = [("object", "A", "STEP", 0.5, 0.4, 0.6, 0.09), ("object", "A", "random", 0.1, 0.0, 0.2, np.nan)]
    rows += [("action", "A", "STEP", 0.7, 0.6, 0.8, np.nan), ("object", "A", "middle", 0.3, 0.2, 0.4, np.nan)]
    table = pd.DataFrame(rows, columns=["dataset", "network", "method", "mean", "low", "high", "paper"])
    figure = figures.panels(table, "S-PT")
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["STEP", "random", "middle"]
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    diamonds = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "D"]
    assert diamonds == [[[0.09, 0]]]  # what nobody measured has none
    assert [line.get_xdata()[0] for line in left.lines if line.get_linestyle() == ":"] == [0.3]
    less = figures.panels(table, "deletion", lower=True).axes[0]
    assert [line.get_xdata()[0] for line in less.lines if line.get_linestyle() == ":"] == [0.1]
    assert not [line for line in right.lines if line.get_linestyle() == ":"]  # no control there
    assert "diamonds" not in figures.panels(table.drop(columns="paper"), "S-PT").get_supxlabel()


def test_intervals_are_grey_where_nothing_is_shown():
    (axes,) = figures.intervals({"IoU": (0.2, 0.1, 0.3), "p": (-0.1, -0.3, 0.1)}, "STEP - EP-3D").axes
    assert list(axes.lines[0].get_xdata()) == [0.1, 0.3] and list(axes.lines[1].get_xdata()) == [0.2]
    assert axes.lines[0].get_color() != painting.GREY and axes.lines[2].get_color() == painting.GREY
    assert [text.get_text() for text in axes.texts] == ["+0.20", "-0.10"]


def test_bars():
    figure = figures.bars({"own": 0.97, "other": 0.031}, highlight="own", label="p")
    (axes,) = figure.axes
    assert [round(bar.get_width(), 3) for bar in axes.patches] == [0.97, 0.031]
    assert [text.get_text() for text in axes.texts] == ["0.97", "0.03"]
    assert np.allclose(axes.patches[0].get_facecolor()[:3], to_rgb(painting.ORANGE))
    assert not np.allclose(axes.patches[1].get_facecolor()[:3], to_rgb(painting.ORANGE))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["own", "other"]


def test_no_figure_stays_open(pixels, mask):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figures.filmstrip(pixels, mask)
    figures.bars({"a": 0.5})
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("x", "log", "words"), [((0.02, 0.1, 0.5), True, "0.02 0.1 0.5"), ((1, 2, 5), False, "1 2 5")]
)
def test_few_places_are_written_below_a_curve(x, log, words):
    axes = figures.curves(x, {"line": np.array(x)}, xlabel="x", ylabel="y", log=log).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == words.split()
