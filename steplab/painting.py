"""Clips and masks as pixels: overlays, lines, and the ready-made frames that sliders and videos show.

>>> paint(record.clip.pixels, mask, "kept", true_mask=record.mask).shape  # enlarged three times
(16, 336, 336, 3)

Orange is what an explanation says, blue is what is known to be true (colour-blind readers tell them apart).
Tensors in, pixels out; `figures.py` sets them in figures.
"""

import html
import io
from collections.abc import Mapping, Sequence
from functools import cached_property

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .names import pick

ORANGE, BLUE, SKY, GREY, INK = "#E69F00", "#0072B2", "#3FA9F5", "#8A8A8A", "#222222"
CYCLE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")  # Okabe and Ito, 2008
VIEWS = ("kept", "heat", "mask", "clip")
_HEAT = mpl.colormaps["inferno"]


def overlay(
    pixels: Float[Tensor, "3 time height width"],
    heat: Float[Tensor, "time height width"],
    opacity: float = 0.9,
) -> Float[Tensor, "3 time height width"]:
    """Lay a heat map over a clip: the clip in dim grey, heat in colour, clearer the more there is of it.

    Args:
        pixels: values in [0, 1].
        heat: values from 0 (nothing); divided by their maximum over the clip where that exceeds 1.
        opacity: of the hottest place, 0 to 1.

    Returns:
        Values in [0, 1].

    Raises:
        ValueError: shapes that do not fit, or negative heat.
    """
    pixels, heat = as_pixels(pixels), as_masks(heat, pixels, "heat")[0]
    if heat.min() < 0:
        raise ValueError(f"heat: got values down to {heat.min():.3g}, expected none below 0")
    heat = heat / max(1.0, float(heat.max()))
    colour = torch.from_numpy(_HEAT(0.95 * heat.numpy())[..., :3]).float().movedim(-1, 0)
    alpha = opacity * heat.clamp(min=0) ** 0.7
    grey = _grey(pixels)
    return 0.75 * (1 - alpha) * grey + alpha * colour * (0.45 + 0.55 * grey)  # what is hot stays recognisable


def paint(
    pixels: Float[Tensor, "3 time height width"],
    mask: Float[Tensor, "time height width"] | None = None,
    view: str = "kept",
    *,
    true_mask: Tensor | None = None,
    boxes: Sequence[Tensor] | None = None,
    scale: int = 3,
) -> UInt8[np.ndarray, "time high wide 3"]:
    """Frames ready to be shown, `scale` times enlarged, with what is kept and what is true drawn in.

    Args:
        pixels: values in [0, 1].
        mask: values in [0, 1], 1 = keep; None shows the clip alone.
        view: "kept" (the rest grey and pale, an orange line at one half), "heat" (`overlay`), "mask" (black
            and white) or "clip" (untouched, only the line).
        true_mask: pixels known to carry the label, (time, height, width), drawn as a blue line.
        boxes: per frame (n, 4) of x0, y0, x1, y1 in pixels, drawn as blue lines if there is no true mask.
        scale: whole number, 1 or more.

    Raises:
        ValueError: an unknown view, or shapes that do not fit.
    """
    return Canvas(pixels, scale, true_mask=true_mask, boxes=boxes).frames(mask, view)


class Canvas:
    """A clip enlarged once, on which masks are painted again and again; arguments as for `paint`.

    >>> canvas = Canvas(record.clip.pixels, true_mask=record.mask, segment=record.segment)
    >>> canvas.panel(mask, "heat", opacity=0.5).shape  # frames over bars that say how much each keeps
    (16, 390, 336, 3)
    """

    def __init__(
        self,
        pixels: Float[Tensor, "3 time height width"],
        scale: int = 3,
        *,
        true_mask: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        segment: tuple[int, int] | None = None,
    ):
        if scale < 1 or scale != int(scale):
            raise ValueError(f"scale: got {scale}, expected a whole number of at least 1")
        self.pixels, self.scale, self.segment = as_pixels(pixels), scale, segment
        if true_mask is None and boxes is not None:
            true_mask = _fill_boxes(boxes, self.pixels)
        self._large = _enlarge(self.pixels, scale, "bicubic")
        self._thick = scale * max(1.0, self.pixels.shape[2] / 112)  # as wide on show whatever the size
        self._truth = None
        if true_mask is not None:
            truth = as_masks(true_mask, self.pixels, "true_mask")
            truth = F.avg_pool2d(truth, 3, 1, 1, count_include_pad=False)  # rounds the steps of a pixel mask
            self._truth = _line(_enlarge(truth, scale, "bilinear")[0], 0.42 * self._thick)

    @cached_property
    def _pale(self) -> Tensor:
        return pale(self._large)

    def frames(
        self, mask: Tensor | None = None, view: str = "kept", truth: bool = True, opacity: float = 1.0
    ) -> UInt8[np.ndarray, "time high wide 3"]:
        """As `paint`, with the truth or without; `opacity` in [0, 1] of what is laid over the clip.

        Raises:
            ValueError: an unknown view, or a mask of another shape than the clip.
        """
        pick("view", view, VIEWS)
        canvas = self._large
        if mask is not None:
            large = _enlarge(as_masks(mask, self.pixels, "mask"), self.scale, "bilinear")[0]
            if view == "heat":
                canvas = overlay(canvas, large)
            elif view == "mask":
                canvas = large.clamp(0, 1).expand(3, -1, -1, -1)
            elif view == "kept":
                canvas = torch.lerp(self._pale, canvas, large.clamp(0, 1).expand(3, -1, -1, -1))
            if opacity < 1:
                canvas = torch.lerp(self._large, canvas, opacity)
            if view in ("kept", "clip"):
                canvas = _ink(canvas, _line(large, 0.55 * self._thick), ORANGE)
        if truth and self._truth is not None:
            canvas = _ink(canvas, self._truth, SKY)
        return _to_bytes(canvas)

    def panel(
        self, mask: Tensor, view: str = "kept", truth: bool = True, opacity: float = 1.0
    ) -> UInt8[np.ndarray, "time high wide 3"]:
        """`frames`, and below each how much every frame keeps.

        The bar of the frame on show is orange, the others grey; a blue line underlines the true segment. All
        of it is in the picture: a player needs nothing else.
        """
        shown = self.frames(mask, view, truth, opacity)
        share = as_masks(mask, self.pixels, "mask")[0].mean((1, 2)).numpy()
        segment, size = self.segment if truth else None, (shown.shape[2], 18 * self.scale)
        bars = np.stack([_bars(share, t, segment, *size) for t in range(len(share))])
        return np.concatenate([shown, bars], 1)


def _to_bytes(canvas: Tensor) -> np.ndarray:
    # in place on a copy: these are the largest tensors here, and `round` would cost as much as the rest
    return canvas.mul(255).add_(0.5).clamp_(0, 255.5).byte().permute(1, 2, 3, 0).contiguous().numpy()


def encode(picture: UInt8[np.ndarray, "height width 3"], kind: str = "webp", quality: int = 80) -> bytes:
    """A picture as the bytes of a WebP or JPEG file."""
    file = io.BytesIO()
    imsave(file, picture, format=kind, pil_kwargs={"quality": quality})
    return file.getvalue()


def as_pixels(pixels: Tensor) -> Tensor:
    """A clip on the CPU as float32. Raises ValueError for another shape than (3, time, height, width)."""
    pixels = torch.as_tensor(pixels).detach().float().cpu()
    if pixels.ndim != 4 or pixels.shape[0] != 3:
        raise ValueError(f"pixels: got shape {tuple(pixels.shape)}, expected (3, time, height, width)")
    return pixels


def as_masks(masks: Tensor, pixels: Tensor, name: str) -> Tensor:
    """As (masks, time, height, width), from that or from a single mask. Raises ValueError otherwise."""
    masks = torch.as_tensor(masks).detach().float().cpu()
    masks = masks[None] if masks.ndim == 3 else masks
    if masks.ndim != 4 or masks.shape[1:] != pixels.shape[1:]:
        wanted = tuple(pixels.shape[1:])
        raise ValueError(f"{name}: got shape {tuple(masks.shape)}, expected {wanted} as the clip, or several")
    return masks


def _grey(pixels: Tensor) -> Tensor:
    return torch.einsum("c...,c->...", pixels, torch.tensor([0.299, 0.587, 0.114])).expand(3, -1, -1, -1)


def pale(pixels: Tensor) -> Tensor:
    """What is not kept: pale and grey, so that the eye goes to the rest and a printer needs little ink."""
    return 0.45 * _grey(pixels) + 0.5


def _enlarge(x: Tensor, scale: int, mode: str) -> Tensor:
    if scale == 1:
        return x
    return F.interpolate(x, scale_factor=scale, mode=mode, align_corners=False).clamp(0, 1)


def _line(values: Tensor, width: float) -> tuple[Tensor, Tensor, float]:
    """Where `values` cross one half: pixels near it, how far each is from it, and how wide the line is."""
    down, right = torch.gradient(values, dim=(1, 2))
    away = (values - 0.5).abs() / (torch.hypot(down, right) + 1e-3)  # about the distance, px
    near = away < width + 1.3
    return near, away[near], width


def _ink(canvas: Tensor, line: tuple[Tensor, Tensor, float], colour: str) -> Tensor:
    """Draw a line of `_line`, with a dark rim so that it shows on any ground."""
    near, away, width = line
    canvas = canvas.clone()
    colours = canvas[:, near]
    rgb = torch.tensor(to_rgb(colour))[:, None]
    for ink, reach, strength in ((0.0, width + 0.8, 0.5), (rgb, width, 1.0)):
        alpha = strength * (0.5 + reach - away).clamp(0, 1)
        colours = (1 - alpha) * colours + alpha * ink
    canvas[:, near] = colours
    return canvas


def _fill_boxes(boxes: Sequence[Tensor], pixels: Tensor) -> Tensor:
    if len(boxes) != pixels.shape[1]:
        raise ValueError(f"boxes: got {len(boxes)} entries, expected {pixels.shape[1]}, one a frame")
    filled = torch.zeros(pixels.shape[1:])
    for frame, rows in zip(filled, boxes, strict=True):
        for x0, y0, x1, y1 in torch.as_tensor(rows).round().int().tolist():
            frame[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    return filled


def _bars(share: np.ndarray, now: int, segment: tuple[int, int] | None, wide: int, high: int) -> np.ndarray:
    """(high, wide, 3) bytes: one bar a frame, full height for the frame that keeps most."""
    picture = np.full((high, wide, 3), 255, np.uint8)
    edges = np.linspace(0, wide, len(share) + 1).round().astype(int)
    floor, room = high - 7, high - 12
    tall = np.ceil(room * share / max(share.max(), 1e-9)).astype(int)
    for t, (x0, x1) in enumerate(zip(edges, edges[1:], strict=False)):
        picture[floor - tall[t] : floor, x0 + 2 : x1 - 2] = _bytes(ORANGE if t == now else "#BDBDBD")
        picture[floor : floor + 1, x0:x1] = _bytes(GREY)
        if t == now:  # seen even where nothing is kept
            picture[floor - 3 : floor + 1, x0 + 2 : x1 - 2] = _bytes(ORANGE)
        if segment is not None and segment[0] <= t < segment[1]:
            picture[floor + 2 : floor + 6, x0:x1] = _bytes(BLUE)
    return picture


def _bytes(colour: str, light: float = 1.0) -> tuple[int, ...]:
    return tuple(round(255 * c * light) for c in to_rgb(colour))


def live_frames(
    pixels: Float[Tensor, "3 time height width"], mask: Float[Tensor, "time height width"], columns: int = 8
) -> UInt8[np.ndarray, "high wide 3"]:
    """One picture, quick to make, of a mask in work: a row of heat above a row of what is kept."""
    pixels = as_pixels(pixels)
    shown = torch.from_numpy(spread(pixels.shape[1], columns))
    pixels, mask = pixels[:, shown], as_masks(mask, pixels, "mask")[0][shown]
    rows = [in_a_row(paint(pixels, mask, view, scale=1), 3) for view in ("heat", "kept")]
    return np.concatenate(rows, 0)


def spread(frames: int, columns: int) -> np.ndarray:
    """Which `columns` of `frames` to show: the middle of each of as many equal stretches, rounded down."""
    columns = max(1, min(columns, frames))
    return ((np.arange(columns) + 0.5) * frames / columns - 1e-9).astype(int)


def percent(share: float) -> str:
    """0.05 as "5 %"."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def in_a_row(frames: np.ndarray, space: int) -> np.ndarray:
    """(time, high, wide, 3) as one picture, white right of and below each frame."""
    framed = np.pad(frames, ((0, 0), (0, space), (0, space), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), 1)


def cubes(
    body: Bool[Tensor, "time height width"], turn: float = 30, tilt: float = 30, side: int = 14
) -> UInt8[np.ndarray, "high wide 3"]:
    """A body of voxels from where one likes, without perspective: width to the right, height down, time back.

    Args:
        body: True where there is a cube.
        turn, tilt: degrees by which one walks round it to the right, and looks down on it.
        side: of a cube, pixels. Of whatever is turned, the picture has the same size.
    """
    turn, tilt = np.deg2rad(turn), np.deg2rad(tilt)
    # rows: where one step in time, height and width leads to, in the picture's right, down and back
    across = np.array([[np.sin(turn), 0, np.cos(turn)], [0, 1, 0], [np.cos(turn), 0, -np.sin(turn)]])
    over = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    axes = across @ over
    padded = F.pad(body.bool(), (1,) * 6)
    length, fine = int(np.ceil(np.linalg.norm(body.shape) * side)), 2  # drawn larger, then smoothed
    image = Image.new("RGB", (fine * length, fine * length), "white")
    draw, middle = ImageDraw.Draw(image), np.array(body.shape) / 2
    faces = []
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    for axis in range(3):
        toward = -1 if axes[axis, 2] > 0 else 1  # the side that one sees
        if abs(axes[axis, 2]) < 1e-9:
            continue
        others = [a for a in range(3) if a != axis]
        bare = body.bool() & ~padded.roll(-toward, axis)[1:-1, 1:-1, 1:-1]  # nothing before it
        at = bare.nonzero().numpy()[:, None].repeat(4, 1).astype(float)
        at[..., others] += corners
        at[..., axis] += toward > 0
        seen = (at - middle) @ axes
        light = (0.86, 1.0, 0.72)[axis] * (0.75 + 0.25 * abs(axes[axis, 2]))
        faces += [
            (quad[:, 2].mean(), quad[:, :2], light * _fade(t, len(body)))
            for quad, t in zip(seen, at[:, 0, 0], strict=True)
        ]
    for _, quad, light in sorted(faces, key=lambda face: -face[0]):  # from the back to the front
        points = [tuple(fine * (side * point + length / 2)) for point in quad]
        draw.polygon(points, fill=_bytes(ORANGE, light), outline=(60, 50, 40))
    return np.asarray(image.resize((length, length), Image.Resampling.LANCZOS))


def body(
    ones: Float[Tensor, "time height width"], turn: float = 30, tilt: float = 30
) -> UInt8[np.ndarray, "high wide 3"]:
    """A kernel as `cubes`, beside its slices with the number of ones in each; quick enough to be turned live.

    Args:
        ones: not zero where there is a cube; up to 11 x 15 x 15 have room.
        turn, tilt: as of `cubes`.
    """
    high, cell, columns = 390, 7, 4
    image = Image.new("RGB", (high + 10 + columns * (15 * cell + 25), high), "white")
    solid = Image.fromarray(cubes(ones > 0, turn, tilt, side=16))
    image.paste(solid, ((high - solid.width) // 2, (high - solid.height) // 2))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    for t, piece in enumerate(ones > 0):
        x, y = high + 10 + t % columns * (15 * cell + 25), t // columns * (15 * cell + 25)
        colours = np.where(piece.numpy()[..., None], _bytes(ORANGE), _bytes("#3B3B3B")).astype(np.uint8)
        size = (cell * piece.shape[1], cell * piece.shape[0])
        image.paste(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST), (x, y + 22))
        draw.text((x, y + 2), f"t = {t}: {int(piece.sum())}", fill=_bytes(INK), font=font)
    return np.asarray(image)


def _fade(frame: float, count: int) -> float:
    """Later frames are darker, so that time shows however the body is turned."""
    return 1 - 0.35 * frame / max(count, 1)


def live_curve(series: Mapping[str, Sequence[float]], length: int) -> str:
    """An SVG drawing of growing curves, each scaled to its own largest and smallest value; names are escaped.

    Args:
        series: values so far by name, one curve each (at most seven); the last value is written out.
        length: how many values there may be at most: where the drawing ends.
    """
    wide, tall = 360, max(110, 22 * len(series) + 8)
    parts = [f'<rect width="{wide}" height="{tall}" fill="#F6F6F6"/>']
    for k, (name, values) in enumerate(series.items()):
        low, high = (0.0, 1.0) if all(0 <= v <= 1 for v in values) else (min(values), max(values))
        steps = wide / max(length - 1, 1)
        y = [tall - 5 - (tall - 10) * (v - low) / max(high - low, 1e-9) for v in values]
        points = " ".join(f"{steps * i:.1f},{v:.1f}" for i, v in enumerate(y))
        look = f'stroke="{CYCLE[k]}" stroke-width="2.5"' + f' stroke-dasharray="{9 - k} 3"' * (k > 0)
        parts.append(f'<polyline points="{points}" fill="none" {look}/>')
        label = html.escape(f"{name} {values[-1]:.2f}" if len(values) else name)
        place = f'x="{wide + 8}" y="{20 + 22 * k}" font-size="15"'
        parts.append(f'<text {place} fill="{CYCLE[k]}">{label}</text>')
    whole = f'viewBox="0 0 {wide + 240} {tall}" style="width: 98%; max-width: {wide + 240}px"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {whole}>{"".join(parts)}</svg>'
