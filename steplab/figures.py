"""Every static picture: filmstrips, overlays, curves. Tensors and arrays in, a `Figure` or pixels out.

>>> record = sl.Stage("action")[3]
>>> filmstrip(record.clip.pixels, record.mask, ratios=[0.04], times=record.clip.times, title="waves")

One style, readable at half size; colours that colour-blind readers can tell apart: orange is what an
explanation says, blue is what is known to be true; lines differ in dashes and markers as well. No figure
joins pyplot's list of open ones: show it as a cell's last expression, or `save` it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from cycler import cycler
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from .painting import (
    BLUE,
    CYCLE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VIEWS,
    as_masks,
    as_pixels,
    in_a_row,
    overlay,
    paint,
    pale,
    percent,
    spread,
)

__all__ = [
    "VIEWS",
    "bars",
    "energy",
    "filmstrip",
    "kept_per_frame",
    "overlay",
    "paint",
    "probability_by_ratio",
]
__all__ += ["save", "style"]

JPEG = {"quality": 75, "optimize": True}
DASHES = ("-", "--", "-.", ":")
_STYLE: dict[Any, Any] = {
    "font.size": 13,
    "font.family": "sans-serif",
    "axes.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=CYCLE),
    "lines.linewidth": 2.4,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.dpi": 85,
    "figure.facecolor": "white",
}


def style() -> None:
    """Use this style for your own figures too, and have notebooks store them as small JPEG pictures."""
    plt.rcParams.update(_STYLE)
    if "ipykernel" in sys.modules:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("jpeg", pil_kwargs=JPEG, bbox_inches=None)


# -------------------------------------------------------------------------------------------------- filmstrip


def filmstrip(
    pixels: Float[Tensor, "3 time height width"],
    masks: Tensor | None = None,
    *,
    ratios: Sequence[float] | None = None,
    probability: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    true_mask: Tensor | None = None,
    boxes: Sequence[Tensor] | None = None,
    times: ArrayLike | None = None,
    view: str = "kept",
    rows: Sequence[str] | None = None,
    columns: int = 8,
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """Frames side by side: the clip, what each mask keeps of it, and what is known to be true.

    Args:
        pixels: values in [0, 1].
        masks: (time, height, width) or (ratio, time, height, width), values in [0, 1], 1 = keep.
        ratios: of each mask, in [0, 1], written beside its row.
        probability: of the target when only this mask's part of the clip is left, written beside its row.
        labels: of the rows of masks, in place of ratio and probability.
        true_mask: (time, height, width); a blue line in every row of masks and a row of its own.
        boxes: used like `true_mask` where there is none, without a row of its own.
        times: of the frames, seconds, written below; otherwise frame numbers.
        view: how masks are shown, see `paint`.
        rows: which, in what order, out of "clip", "masks" and "truth"; by default all there is material for.
        columns: how many frames, evenly spread over the clip.
        title: one line (or two) above.
        path: also save there; the suffix says which kind (.png, .jpg, .webp, .pdf).

    Raises:
        ValueError: shapes or lengths that do not fit, an unknown row.
    """
    pixels = as_pixels(pixels)
    masks = torch.zeros(0, *pixels.shape[1:]) if masks is None else as_masks(masks, pixels, "masks")
    for name, given in (("ratios", ratios), ("probability", probability), ("labels", labels)):
        if given is not None and len(given) != len(masks):
            raise ValueError(f"{name}: got {len(given)}, expected {len(masks)}, one a mask")
    truth = None if true_mask is None else as_masks(true_mask, pixels, "true_mask")[0]
    if rows is None:
        rows = ["clip"] + ["masks"] * (len(masks) > 0) + ["truth"] * (truth is not None)
    known: dict[str, Any] = {"true_mask": truth, "boxes": boxes}
    scale = 2 if min(pixels.shape[2:]) < 200 else 1
    strips: list[tuple[str, np.ndarray]] = []
    for row in rows:
        if row == "clip":
            strips.append(("clip", paint(pixels, scale=scale)))
        elif row == "masks":
            for k, mask in enumerate(masks):
                words = [] if ratios is None else [f"keep {percent(ratios[k])}"]
                words += [] if probability is None else [f"p = {float(probability[k]):.2f}"]
                label = labels[k] if labels is not None else "\n".join(words) or "mask"
                strips.append((label, paint(pixels, mask, view, scale=scale, **known)))
        elif row == "truth" and truth is not None:
            strips.append((f"truth\n{percent(float(truth.mean()))}", _truth_frames(pixels, truth, scale)))
        else:
            raise ValueError(f"rows: got {row!r}, expected 'clip', 'masks' or 'truth' (with a true_mask)")
    shown = spread(pixels.shape[1], columns)
    below = [f"frame {t}" for t in shown] if times is None else _seconds(np.asarray(times, float)[shown])
    key = "masks" in rows and view in ("kept", "clip") and (truth is not None or boxes is not None)
    figure = _grid([(label, frames[shown]) for label, frames in strips], below, title, key)
    if path is not None:
        save(figure, path)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as its suffix says (.png, .jpg, .webp, .pdf, .svg); folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path


def _truth_frames(pixels: Tensor, truth: Tensor, scale: int) -> np.ndarray:
    """What is true, kept as a mask would keep it, with the line in the colour of truth."""
    dim = truth * pixels + (1 - truth) * pale(pixels)
    return paint(dim, scale=scale, true_mask=truth)


def _grid(strips: list[tuple[str, np.ndarray]], below: Sequence[str], title: str, key: bool) -> Figure:
    """Rows of frames with labels on the left and below; ten inches wide, as high as it takes."""
    width, left, gap, line = 10.0, 1.2, 0.035, 0.3
    count, high, wide = strips[0][1].shape[:3]
    cell = (width - left) / count
    tall = (cell - gap) * high / wide + gap
    top = 0.12 + 0.29 * (title.count("\n") + 1) * bool(title or key)
    height = top + tall * len(strips) + line
    with plt.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        space = round(gap / cell * wide)
        for k, (label, frames) in enumerate(strips):
            bottom = height - top - tall * (k + 1)
            axes = figure.add_axes((left / width, bottom / height, 1 - left / width, tall / height))
            axes.imshow(in_a_row(frames, space), aspect="auto", interpolation="antialiased")
            axes.axis("off")
            middle = (bottom + tall / 2) / height
            figure.text((left - 0.12) / width, middle, label, ha="right", va="center", color=INK)
        for k, text in enumerate(below):
            x = (left + cell * (k + 0.5) - gap / 2) / width
            figure.text(x, 0.09 / height, text, ha="center", va="bottom", color=INK, fontsize=11)
        if key:
            for x, text, colour in ((0.995, "— truth", BLUE), (0.905, "— mask", "#B37A00")):
                place: dict[str, Any] = {"ha": "right", "va": "top", "weight": "bold"}
                figure.text(x, 1 - 0.1 / height, text, color=colour, **place)
        if title:
            figure.text(left / width, 1 - 0.08 / height, title, va="top", color=INK, fontsize=14)
    return figure


def _seconds(times: np.ndarray) -> list[str]:
    digits = 1 if np.abs(times - times.round(1)).max() < 0.02 else 2
    return [f"{t:.{digits}f} s" for t in times]


# ----------------------------------------------------------------------------------------------------- curves

TERMS = {
    "energy": "energy",
    "probability": "probability of the target",
    "mean": "share of the clip kept",
    "area": "area term",
    "core": "core term $L_K$",
}


def _look(k: int) -> dict[str, Any]:
    """Of the k-th line: colour, dashes and marker, so that colour alone never has to tell."""
    return {"color": CYCLE[k % 7], "linestyle": DASHES[k % 4], "marker": "osD^"[k % 4]}


def energy(
    history: Mapping[str, ArrayLike],
    ratios: Sequence[float] | None = None,
    terms: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """How an optimisation went: the energy and its terms over the iterations, one line a ratio.

    Args:
        history: by term, (ratio, iteration) or (iteration,); NaN where a mask was final already.
        ratios: names the lines; dotted lines show them where the share kept is drawn.
        terms: which, in what order; by default all that are known (`TERMS`).

    Raises:
        ValueError: a term that is not in the history, or no ratio for each line.
    """
    terms = [t for t in TERMS if t in history] if terms is None else list(terms)
    for term in terms:
        if term not in history:
            raise ValueError(f"terms: got {term!r}, expected some of {', '.join(history)}")
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    with plt.rc_context(_STYLE):
        figure = Figure(figsize=(10, 2.9 * rows + 0.45), layout="constrained")
        for axes, term in zip(figure.subplots(rows, columns, squeeze=False).flat, terms, strict=False):
            values = np.atleast_2d(np.asarray(history[term], float))
            if ratios is not None and len(ratios) != len(values):
                raise ValueError(f"ratios: got {len(ratios)}, expected {len(values)}, one a line of {term!r}")
            for k, line in enumerate(values):
                look = _look(k) | {"marker": None}
                axes.plot(np.arange(1, len(line) + 1), line, **look)
                if term == "mean" and ratios is not None:
                    axes.axhline(ratios[k], color=look["color"], linestyle=":", linewidth=1.2)
            axes.set_title(TERMS.get(term, term))
            axes.set_xlabel("iteration")
            if term in ("probability", "mean"):
                axes.set_ylim(0, 1.03)
        for axes in figure.axes[len(terms) :]:
            axes.remove()
        if ratios is not None:
            lines = [line for line in figure.axes[0].lines if line.get_linewidth() > 2]
            names = [f"keep {percent(r)}" for r in ratios]
            figure.legend(lines, names, loc="outside upper right", ncols=len(names), handlelength=2.6)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=14)
    return figure


def kept_per_frame(
    masks: Tensor,
    *,
    ratios: Sequence[float] | None = None,
    times: ArrayLike | None = None,
    true_mask: Tensor | None = None,
    segment: tuple[int, int] | None = None,
    title: str = "",
) -> Figure:
    """When does the explanation keep something? Share of each frame that is kept, against what is true.

    Args:
        masks: (time, height, width) or (ratio, time, height, width), values in [0, 1].
        ratios: names the lines.
        times: of the frames, seconds.
        true_mask: (time, height, width), drawn as a dashed blue line.
        segment: first frame of the true segment and one past its last, shaded blue.
    """
    masks = torch.as_tensor(masks).detach().float().cpu()
    masks = masks[None] if masks.ndim == 3 else masks
    if masks.ndim != 4:
        raise ValueError(f"masks: got shape {tuple(masks.shape)}, expected (ratio, time, height, width)")
    x = np.arange(masks.shape[1]) if times is None else np.asarray(times, float)
    if len(x) != masks.shape[1]:
        raise ValueError(f"times: got {len(x)}, expected {masks.shape[1]}, one a frame")
    half = np.median(np.diff(x)) / 2 if len(x) > 1 else 0.5
    with plt.rc_context(_STYLE):
        figure = Figure(figsize=(10, 3.1), layout="constrained")
        axes = figure.subplots()
        if segment is not None and segment[1] > segment[0]:
            ends = x[segment[0]] - half, x[segment[1] - 1] + half
            axes.axvspan(*ends, color=SKY, alpha=0.2, linewidth=0, label="true segment")
        if true_mask is not None:
            truth = torch.as_tensor(true_mask).float().mean((1, 2)) * 100
            axes.plot(x, truth, color=BLUE, linestyle="--", label="true mask")
        colours = [ORANGE, *(c for c in CYCLE if c not in (ORANGE, BLUE))]
        for k, mask in enumerate(masks):
            name = "mask" if ratios is None else f"keep {percent(ratios[k])}"
            look: dict[str, Any] = {
                "color": colours[k % 6],
                "linestyle": DASHES[(k % 4)],
                "marker": "osD^"[k % 4],
            }
            axes.plot(x, mask.mean((1, 2)) * 100, label=name, markersize=6, **look)
        axes.set_xlabel("frame" if times is None else "time (s)")
        axes.set_ylabel("share of frame (%)")
        axes.set_ylim(bottom=0)
        axes.set_xlim(x[0] - half, x[-1] + half)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_title(title, loc="left")
    return figure


def probability_by_ratio(
    ratios: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    original: float | None = None,
    smallest: float | None = None,
    title: str = "",
) -> Figure:
    """How sure is the network of the target when only a share of the clip is left?

    Args:
        ratios: in (0, 1], rising.
        curves: probabilities in [0, 1] by name, one a ratio.
        original: probability for the whole clip, a dotted line.
        smallest: the smallest ratio that keeps it, marked.
    """
    with plt.rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for k, (name, values) in enumerate(curves.items()):
            if len(values) != len(ratios):
                raise ValueError(f"curves: {name!r} has {len(values)} values, expected {len(ratios)}")
            look: dict[str, Any] = {
                "linestyle": DASHES[k % 4],
                "marker": "osD^"[k % 4],
                "color": CYCLE[k % 7],
            }
            axes.plot(ratios, [float(v) for v in values], label=name, markersize=8, **look)
        if original is not None:
            axes.axhline(original, color=GREY, linestyle=":", label="whole clip")
        if smallest is not None:
            axes.axvline(smallest, color=INK, linewidth=1.2)
            note = f"smallest ratio\n$a^*$ = {percent(smallest)}"
            box = {"facecolor": "white", "edgecolor": INK, "boxstyle": "round,pad=0.3"}
            axes.text(smallest, 0.5, note, ha="center", va="center", color=INK, fontsize=11, bbox=box)
        axes.set_xscale("log")
        axes.set_xticks(list(ratios), [percent(r) for r in ratios])
        axes.minorticks_off()
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("share of the clip that is kept")
        axes.set_ylabel("probability")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_title(title, loc="left")
    return figure


def bars(
    values: Mapping[str, float], *, label: str = "probability", highlight: str | None = None, title: str = ""
) -> Figure:
    """Numbers between 0 and 1 side by side: names on the left, a bar and its value on the right.

    Args:
        values: by name, from top to bottom.
        label: of the axis.
        highlight: the name whose bar is orange; the others are grey.
    """
    with plt.rc_context(_STYLE):
        figure = Figure(figsize=(8.5, 0.95 + 0.35 * len(values) + 0.35 * bool(title)), layout="constrained")
        axes = figure.subplots()
        numbers = [float(v) for v in values.values()]
        colours = [ORANGE if name == highlight else "#9A9A9A" for name in values]
        axes.barh(range(len(values)), numbers, color=colours, height=0.68)
        axes.set_yticks(range(len(values)), [*values])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12)
        axes.set_xticks(np.linspace(0, 1, 6))
        for k, v in enumerate(numbers):
            axes.text(v + 0.012, k, f"{v:.2f}", va="center", color=INK)
        axes.set_xlabel(label)
        axes.tick_params(left=False)
        axes.grid(False)
        axes.set_title(title, loc="left")
    return figure
