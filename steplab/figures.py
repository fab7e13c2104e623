"""Every static picture: filmstrips, overlays, curves. Tensors and arrays in, a `Figure` or pixels out.

>>> record = sl.Stage("action")[3]
>>> filmstrip(record.clip.pixels, record.mask, ratios=[0.04], times=record.clip.times, title="waves")

One style, readable at half size; colours that colour-blind readers can tell apart: orange is what an
explanation says, blue is what is known to be true; lines differ in dashes and markers as well. No figure
joins pyplot's list of open ones: show it as a cell's last expression, or `save` it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from .charts import STYLE, bars, curves, energy, intervals, kept_per_frame, kernel, maps, panels, ranking
from .painting import (
    BLUE,
    INK,
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
    "curves",
    "energy",
    "filmstrip",
    "intervals",
    "kept_per_frame",
    "kernel",
    "maps",
    "overlay",
    "paint",
    "panels",
    "ranking",
    "save",
    "style",
]

JPEG = {"quality": 75, "optimize": True}


def style() -> None:
    """Use this style for your own figures too, and have notebooks store them as small JPEG pictures."""
    plt.rcParams.update(STYLE)
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
    longest = max(len(words) for label, _ in strips for words in label.split("\n"))
    width, left, gap, line = 10.0, max(1.2, 0.15 + 0.115 * longest), 0.035, 0.3
    count, high, wide = strips[0][1].shape[:3]
    cell = (width - left) / count
    tall = (cell - gap) * high / wide + gap
    top = 0.12 + 0.29 * (title.count("\n") + 1) * bool(title or key)
    height = top + tall * len(strips) + line
    with plt.rc_context({**STYLE, "text.parse_math": False}):  # a name with two dollars is no formula
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
