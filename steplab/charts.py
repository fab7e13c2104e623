"""Curves, bars, intervals and maps: what numbers look like. `figures.py` offers all of them by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from cycler import cycler
from jaxtyping import Float
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from .losses import area_loss
from .painting import BLUE, CYCLE, GREY, INK, ORANGE, SKY, cubes, percent, spread

DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
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
    names: Sequence[str] | None = None,
) -> Figure:
    """How an optimisation went: the energy and its terms over the iterations, one line a ratio.

    Args:
        history: by term, (ratio, iteration) or (iteration,); NaN where a mask was final already.
        ratios: names the lines; dotted lines show them where the share kept is drawn.
        terms: which, in what order; by default all that are known (`TERMS`).
        names: of the lines, in place of their ratios: say, of methods.

    Raises:
        ValueError: a term that is not in the history, or no ratio or name for each line.
    """
    terms = [t for t in TERMS if t in history] if terms is None else list(terms)
    for term in terms:
        if term not in history:
            raise ValueError(f"terms: got {term!r}, expected some of {', '.join(history)}")
    columns = min(3, len(terms))
    rows = -(-len(terms) // columns)
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.9 * rows + 0.45), layout="constrained")
        for axes, term in zip(figure.subplots(rows, columns, squeeze=False).flat, terms, strict=False):
            values = np.atleast_2d(np.asarray(history[term], float))
            if ratios is not None and len(ratios) != len(values):
                raise ValueError(f"ratios: got {len(ratios)}, expected {len(values)}, one a line of {term!r}")
            if names is not None and len(names) != len(values):
                raise ValueError(f"names: got {len(names)}, expected {len(values)}, one a line of {term!r}")
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
        if names is None and ratios is not None:
            names = [f"keep {percent(r)}" for r in ratios]
        if names is not None:
            lines = [line for line in figure.axes[0].lines if line.get_linewidth() > 2]
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
    with plt.rc_context(STYLE):
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


def curves(
    x: Sequence[float],
    lines: Mapping[str, ArrayLike],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    level: Mapping[str, float] | None = None,
    mark: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Several quantities over one: a line each, told apart by colour, dashes and marker.

    Args:
        x: where, rising.
        lines: by name, one value for each of x; NaN leaves a gap.
        log: a logarithmic x axis.
        level, mark: heights and places, by name, of dotted horizontal and thin vertical lines.

    Raises:
        ValueError: not one value for each of x.
    """
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for k, (name, values) in enumerate(lines.items()):
            values = np.asarray(values, float)
            if len(values) != len(x):
                raise ValueError(f"lines: {name!r} has {len(values)} values, expected {len(x)}")
            look = _look(k)
            look["marker"] = look["marker"] if len(x) <= 24 else ""
            axes.plot(x, values, label=name, markersize=7, **look)
        for name, height in (level or {}).items():
            axes.axhline(height, color=GREY, linestyle=":", label=name)
        for name, place in (mark or {}).items():
            axes.axvline(place, color=INK, linewidth=1.2)
            axes.annotate(
                name, (place, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                va="top", fontsize=11,
            )  # fmt: skip
        if log:
            axes.set_xscale("log")
        if len(x) <= 8 and (log or all(v == round(v) for v in x)):
            axes.set_xticks(x, [f"{v:g}" for v in x])
            axes.minorticks_off()
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes.set_title(title, loc="left")
    return figure


def ranking(mask: Tensor, ratio: float, title: str = "") -> Figure:
    """The area loss made visible: a mask's values in order against the template, and the gradient by rank.

    Args:
        mask: any shape, values in [0, 1].
        ratio: share of the values that should be 1.
    """
    values = torch.as_tensor(mask).detach().float().flatten().clone()[None, None, None].requires_grad_()
    (slope,) = torch.autograd.grad(area_loss(values, ratio).sum(), values)
    order = values.detach().flatten().argsort(descending=True, stable=True)
    rank = np.arange(len(order)) / len(order) * 100
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(
            [0, 100 * ratio, 100 * ratio, 100], [1, 1, 0, 0], color=BLUE, linestyle="--", label="template"
        )
        left.plot(rank, values.detach().flatten()[order], color=ORANGE, label="mask, in order")
        left.set_ylabel("value")
        left.set_ylim(-0.03, 1.06)
        left.legend(loc="center right")
        right.plot(rank, slope.flatten()[order], color=CYCLE[0])
        right.axhline(0, color=GREY, linewidth=1)
        right.set_ylim(-2.1, 2.1)
        right.set_ylabel("gradient of the loss")
        for axes in (left, right):
            axes.set_xlabel("rank (% of all values)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=14)
    return figure


def maps(
    volumes: Mapping[str, Float[Tensor, "time height width"]],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    columns: int = 8,
    title: str = "",
) -> Figure:
    """Numbers in space and time: a row of frames for each volume, one colour scale for all.

    Args:
        volumes: by name; of one length in time.
        label: what the numbers are, at the colour scale.
        limits: its ends; by default 0 (or what lies below) and the largest value.
        columns: how many frames, evenly spread.
    """
    arrays = {name: torch.as_tensor(v).detach().float().numpy() for name, v in volumes.items()}
    low = min(0.0, *(float(v.min()) for v in arrays.values()))
    low, high = limits or (low, max(float(v.max()) for v in arrays.values()))
    shown = spread(len(next(iter(arrays.values()))), columns)
    with plt.rc_context(STYLE):
        size = (10, 0.62 + 0.3 * bool(title) + 1.02 * len(arrays))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(arrays), len(shown), squeeze=False)
        for k, (name, volume) in enumerate(arrays.items()):
            row = grid[k]
            for axes, t in zip(row, shown, strict=True):
                picture = axes.imshow(volume[t], vmin=low, vmax=high, cmap="inferno")
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                if k == len(arrays) - 1:
                    axes.set_xlabel(f"frame {t}", fontsize=11)
            row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12)
        figure.colorbar(picture, ax=grid, label=label, fraction=0.03, pad=0.01)
        figure.suptitle(title, x=0.01, ha="left", fontsize=14)
    return figure


def kernel(
    ones: Float[Tensor, "time height width"], title: str = "", *, turn: float = 30, tilt: float = 30
) -> Figure:
    """A kernel as a body of `cubes`, and at most nine of its slices, each with its number of ones."""
    ones = torch.as_tensor(ones).detach().cpu() > 0
    shown = spread(len(ones), 9)
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(10, 2.6 + 0.3 * bool(title)), layout="constrained")
        widths = [2.2] + [9 / max(len(shown), 5)] * len(shown)
        body, *slices = figure.subplots(1, 1 + len(shown), width_ratios=widths)
        body.imshow(cubes(ones, turn, tilt))
        body.axis("off")
        body.set_title(f"Z = {int(ones.sum())}", fontsize=13)
        for axes, t in zip(slices, shown, strict=True):
            axes.imshow(ones[t], vmin=0, vmax=1, cmap="inferno")
            axes.set(xticks=[], yticks=[], title=f"t = {t}")
            axes.title.set_size(11)
            axes.set_xlabel(str(int(ones[t].sum())), fontsize=11)
            axes.grid(False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=14)
    return figure


def intervals(
    values: Mapping[str, tuple[float, float, float]],
    label: str,
    *,
    zero: float | None = 0.0,
    title: str = "",
) -> Figure:
    """Means with their intervals, one below the other; grey where `zero` lies inside, else vermilion.

    Args:
        values: by name, (mean, low, high), as `metrics.interval` and `metrics.compare` give them.
        zero: what would be no difference, a thin line; None: none.
    """
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(8.5, 0.95 + 0.4 * len(values) + 0.35 * bool(title)), layout="constrained")
        axes = figure.subplots()
        for k, (mean, low, high) in enumerate(values.values()):
            colour = GREY if zero is None or low <= zero <= high else CYCLE[0]
            axes.plot([low, high], [k, k], color=colour, linewidth=3)
            axes.plot(mean, k, "o", color=colour, markersize=9)
            text = f"{mean:+.2f}" if zero == 0 else f"{mean:.2f}"
            axes.annotate(text, (high, k), (8, 0), textcoords="offset points", va="center", color=INK)
        if zero is not None:
            axes.axvline(zero, color=INK, linewidth=1.2)
        axes.set_yticks(range(len(values)), [*values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.set_xlabel(label)
        axes.tick_params(left=False)
        axes.set_title(title, loc="left")
    return figure


def panels(
    table: pd.DataFrame,
    label: str,
    *,
    controls: Sequence[str] = ("random", "middle"),
    lower: bool = False,
    note: str = "the paper's number",
    title: str = "",
) -> Figure:
    """Means with their intervals: a panel for each data set and network, the same rows in all of them.

    Args:
        table: columns dataset, network, method, mean, low, high, as `study.pivot` gives them, and, if there
            is something to compare with, `paper`: an empty diamond each.
        label: of the horizontal axes, which have one scale.
        controls: methods drawn grey; the best of them is a thin line through the panel.
        lower: the best is the lowest, as of deletion or leakage.
        note: what the diamonds are.
    """
    rows = list(dict.fromkeys(table["method"]))
    parts = [part for _, part in table.groupby(["dataset", "network"], sort=False)]
    with plt.rc_context(STYLE):
        size = (min(12.0, 2.2 + 2.6 * len(parts)), 1.6 + 0.36 * len(rows) + 0.35 * bool(title))
        figure = Figure(figsize=size, layout="constrained")
        plots = figure.subplots(1, len(parts), sharex=True, sharey=True, squeeze=False)[0]
        for axes, part in zip(plots, parts, strict=True):
            for row, mean, low, high in part[["method", "mean", "low", "high"]].itertuples(index=False):
                k, colour = rows.index(row), "#8A8A8A" if row in controls else CYCLE[0]
                axes.plot([low, high], [k, k], color=colour, linewidth=3)
                axes.plot(mean, k, "o", color=colour, markersize=8)
            known = part.dropna(subset="paper") if "paper" in part else part[:0].assign(paper=0.0)
            heights = [rows.index(row) for row in known["method"]]
            axes.plot(known["paper"], heights, "D", color=BLUE, fillstyle="none")
            means = part[part["method"].isin(controls)]["mean"]
            beaten = means.min() if lower else means.max()
            if np.isfinite(beaten):
                axes.axvline(beaten, color="#8A8A8A", linewidth=1.2, linestyle=":")
            axes.set_title("\n".join(part[["dataset", "network"]].iloc[0]), loc="left", fontsize=13)
            axes.set_yticks(range(len(rows)), rows)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.tick_params(left=False)
        figure.supxlabel(label + (f"   (diamonds: {note})" if "paper" in table else ""), fontsize=13)
        figure.suptitle(title, x=0.01, ha="left", fontsize=14)
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
    with plt.rc_context(STYLE):
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
