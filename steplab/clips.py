"""Clips: what every network here sees and every explanation explains.

>>> clip = read_clip("diving.avi", frames=16, size=112)
>>> clip.pixels.shape, clip.times[:2]
(torch.Size([3, 16, 112, 112]), tensor([0.12, 0.36]))
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# A frame is first shrunk to this many times the wanted size by the decoder's own scaler, then resized with
# antialiasing: an 8K frame never becomes a float tensor.
_HEADROOM = 4
# A file may lack this fraction of what its header declares before it counts as broken.
_TOLERANCE = 0.1


class ClipError(ValueError):
    """A video that cannot be read or written, or numbers that are not a clip; the message says why."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A short video as numbers.

    Attributes:
        pixels: RGB, float32 in [0, 1], in the order colour, time, height, width.
        times: presentation time of each frame, seconds from the start of the video.
        source: where it came from (a file name, or a description of how it was drawn).

    Raises:
        ClipError: for another shape or type, values outside [0, 1], or as many times as there are no frames.
    """

    pixels: Float[Tensor, "3 time height width"]
    times: Float[Tensor, "time"]
    source: str

    def __post_init__(self):
        p, shape = self.pixels, tuple(self.pixels.shape)
        if p.ndim != 4 or shape[0] != 3 or 0 in shape:
            raise ClipError(
                f"pixels: got shape {shape}, expected (3, time, height, width) with no empty axis"
            )
        if p.dtype != torch.float32:
            raise ClipError(f"pixels: got {p.dtype}, expected torch.float32 in [0, 1]")
        low, high = p.min().item(), p.max().item()
        if not (low >= -1e-4 and high <= 1 + 1e-4):  # so written that NaN is refused as well
            raise ClipError(f"pixels: got values from {low:.4g} to {high:.4g}, expected [0, 1]")
        if tuple(self.times.shape) != (shape[1],):
            raise ClipError(
                f"times: got shape {tuple(self.times.shape)}, expected ({shape[1]},), one a frame"
            )


@dataclass(frozen=True, eq=False)
class Record:
    """A clip with what is known about it; every data set yields these.

    Attributes:
        clip: the clip.
        label: index of its class in the data set's `classes`, or its name; None where nobody knows.
        boxes: one tensor per frame with a row x0, y0, x1, y1 per box, in pixels, right and bottom edge
            exclusive; no rows where the frame carries no box.
        mask: True on the pixels that carry the label, or None where nobody knows.
        segment: first frame of the labelled part, and one past its last; None where nobody knows.
        name: short and unique within its data set.
    """

    clip: Clip
    label: int | str | None
    boxes: list[Float[Tensor, "_ 4"]]
    mask: Bool[Tensor, "time height width"] | None
    segment: tuple[int, int] | None
    name: str


def read_clip(
    path: str | Path,
    frames: int = 16,
    size: int = 112,
    *,
    start: float | None = None,
    stop: float | None = None,
    fit: str = "crop",
) -> Clip:
    """Read a video file as a clip: of each of `frames` equal stretches of time, the frame in its middle.

    Sampling goes by presentation time, so a variable frame rate does not bend time; a video with fewer
    frames than asked for repeats some. Pixels are turned as the file's display matrix says and made square,
    then resized with antialiasing. However long the video and large its frames, only `frames` small ones are
    held.

    Args:
        path: a file that PyAV can decode (mp4, avi, webm, mkv, gif ...).
        frames: how many frames the clip gets.
        size: height and width of the clip, pixels.
        start, stop: the part to read, seconds from the first frame; by default all of it.
        fit: "crop": the shorter side becomes `size` and the centre is cut out; "stretch": the whole frame is
            squeezed to a square.

    Raises:
        ClipError: no such file, not a video, sound only, nothing decodes, an empty part, or a file that
            holds much less than it declares (damaged, or cut short: `stop` then reads what is left).

    Warns:
        UserWarning: a few frames are missing or damaged, so that other frames stand in for them.
    """
    path = Path(path)
    if frames < 1 or size < 1:
        raise ClipError(f"frames, size: got {frames} and {size}, expected whole numbers of at least 1")
    if fit not in ("crop", "stretch"):
        raise ClipError(f"fit: got {fit!r}, expected 'crop' or 'stretch'")
    if not path.is_file():
        raise ClipError(
            f"path: {str(path)!r} is {'a folder' if path.is_dir() else 'not there'}, expected a video"
        )
    try:
        table = _index(path)
        begin = 0.0 if start is None else float(start)
        end = table.end if stop is None else float(stop)
        if not 0 <= begin < end or begin >= table.end or end > table.end + 0.5 * table.step + 1e-6:
            raise ClipError(
                f"start, stop: got {start} and {stop}, expected 0 <= start < stop <= {table.end:.3f} s, "
                f"where {path.name} ends"
            )
        if stop is None:
            table.check_complete(path.name)
        middles = begin + (np.arange(frames) + 0.5) * (end - begin) / frames
        pictures, times, damaged = _decode(
            path, table, middles, lambda f: _to_pixels(f, table.aspect, size, fit)
        )
    except (av.error.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipError(f"{path.name}: not a video that can be read ({reason})") from error
    if damaged:
        warnings.warn(
            f"{path.name}: {damaged} frames could not be decoded; their neighbours stand in", stacklevel=2
        )
    return Clip(torch.stack(pictures, 1), torch.tensor(times, dtype=torch.float32), path.name)


def _last_bytes(path: Path) -> bytes:
    """The end of a file without zeros. A GIF does not tell its number of frames, but ends in a semicolon."""
    with path.open("rb") as file:
        file.seek(-min(64, path.stat().st_size), 2)
        return file.read().rstrip(b"\0")


@dataclass(frozen=True)
class _Index:
    """What a file says about itself and what its packets show, in seconds from its first frame."""

    origin: float  # presentation time of the first frame
    end: float  # where the last frame stops being shown
    step: float  # usual time between frames
    packets: int
    declared: int  # frames the header claims; 0 if it makes no claim
    duration: float  # seconds the header claims for the picture; 0 if it makes no claim
    aspect: float  # width of a pixel over its height
    closed: bool  # whether the file ends as its format demands
    times: np.ndarray  # presentation time of every frame, rising

    def check_complete(self, name: str):
        """Raise where both the packets and the time they cover fall short of what the header declares.

        Both, because an edited file may rightly show fewer frames than it stores, or its last one for long.
        """
        if not self.closed:
            raise ClipError(f"{name}: cut short: its end is missing, {self._rest()}")
        few = self.declared and self.packets < (1 - _TOLERANCE) * self.declared
        short = self.duration and self.end < (1 - _TOLERANCE) * self.duration - 2 * self.step
        if short and (few or not self.declared):
            declared = f"{self.declared} frames, " if self.declared else ""
            raise ClipError(f"{name}: cut short: declares {declared}{self.duration:.2f} s, {self._rest()}")

    def _rest(self) -> str:
        return f"holds {self.packets} frames, {self.end:.2f} s (stop={self.end:.2f} reads what is there)"


def _open(path: Path):
    # A playlist posing as a video must not make the decoder fetch anything else.
    return av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")


def _video_stream(container, path: Path):
    # Still pictures (an album cover in a sound file) are video streams to the container, but no video.
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not streams:
        raise ClipError(f"{path.name}: no video stream (it holds {len(container.streams.audio)} of sound)")
    if container.format.name == "tty":  # the decoder would draw any text as a terminal shows it
        raise ClipError(f"{path.name}: text, expected a video")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _index(path: Path) -> _Index:
    """Read the packets' times, decoding nothing."""
    with _open(path) as container:
        stream = _video_stream(container, path)
        base = float(stream.time_base or Fraction(1, 25))
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        times, last = [], 0.0
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size == 0 or packet.is_discard:
                continue
            times.append(len(times) / rate if stamp is None else stamp * base)
            if times[-1] == max(times[-2:]):
                last = float((packet.duration or 0) * base)
        if not times:
            raise ClipError(f"{path.name}: declares {stream.frames} frames, holds none")
        times.sort()
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
        duration = float((stream.duration or 0) * base)
        if not duration and len(container.streams) == 1:
            duration = (container.duration or 0) / av.time_base
        pixel = stream.codec_context.sample_aspect_ratio
        return _Index(
            origin=times[0],
            end=times[-1] - times[0] + (last or step),
            step=step,
            packets=len(times),
            declared=stream.frames or 0,
            duration=duration,
            aspect=float(pixel) if pixel and 0.2 < pixel < 5 else 1.0,
            closed=container.format.name != "gif" or _last_bytes(path).endswith(b";"),
            times=np.array(times) - times[0],
        )


def _decode(path: Path, table: _Index, middles: np.ndarray, convert: Callable):
    """The pictures on show at given moments (rising), their times, and how many frames failed to decode."""
    pictures, times = [], []
    previous = None  # (frame, time): the last frame decoded, on show until the next begins
    seen = damaged = 0

    def take(frame, time):
        picture = pictures[-1] if times and times[-1] == time else convert(frame)
        pictures.append(picture)
        times.append(time)

    with _open(path) as container:
        stream = _video_stream(container, path)
        if middles[0] > 5:  # far into the file: begin at the key frame before, not at the start
            container.seek(int((middles[0] - 1 + table.origin) / stream.time_base), stream=stream)
        rate = 1 / table.step
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                damaged += 1
                continue
            for frame in decoded:
                time = (seen / rate) if frame.time is None else frame.time - table.origin
                seen += 1
                while len(times) < len(middles) and previous and middles[len(times)] < time - 1e-6:
                    take(*previous)
                previous = (frame, time)
            if len(times) == len(middles):
                break
        else:
            expected = min(table.declared or table.packets, table.packets)
            if table.declared and middles[0] <= 5 and seen + damaged < expected:
                damaged = expected - seen
            if damaged > _TOLERANCE * expected + 1:
                raise ClipError(f"{path.name}: damaged: of {expected} frames {seen} can be decoded")
    if previous is None:
        raise ClipError(f"{path.name}: holds {table.packets} frames, none of which can be decoded")
    while len(times) < len(middles):
        take(*previous)
    return pictures, times, damaged


@dataclass(frozen=True)
class _Layout:
    """How a frame becomes a square: shrunk, turned, resized, cut out."""

    width: int  # after shrinking, before turning
    height: int
    turns: int  # quarter turns, against the clock
    shape: tuple[int, int]  # height and width after resizing
    top: int
    left: int

    @classmethod
    def of(cls, frame, aspect: float, size: int, fit: str) -> "_Layout":
        shrink = max(1.0, min(frame.width, frame.height) / (_HEADROOM * size))
        stored = max(1, round(frame.width / shrink)), max(1, round(frame.height / shrink))
        # the decoder reports the display matrix but does not apply it
        turns = round(frame.rotation / 90) % 4
        width, height = stored[0] * aspect, stored[1]
        if turns % 2:
            width, height = height, width
        scale = size / min(width, height)
        shape = (size, size) if fit == "stretch" else (round(height * scale), round(width * scale))
        return cls(*stored, turns, shape, (shape[0] - size) // 2, (shape[1] - size) // 2)


def _to_pixels(frame, aspect: float, size: int, fit: str) -> Float[Tensor, "3 size size"]:
    """One decoded frame as an upright square of RGB in [0, 1]."""
    to = _Layout.of(frame, aspect, size, fit)
    picture = frame.to_ndarray(format="rgb24", width=to.width, height=to.height, interpolation="AREA")
    if to.turns:
        picture = np.rot90(picture, to.turns).copy()
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    pixels = F.interpolate(pixels, to.shape, mode="bilinear", antialias=True, align_corners=False)[0]
    return pixels[:, to.top : to.top + size, to.left : to.left + size].clamp(0, 1)


class Placement(NamedTuple):
    """Where a video's own frames and pixels went in the clip that was read from it."""

    frames: list[int]  # number in the video, from 0, of each frame of the clip
    scale: tuple[float, float]  # pixels of the clip to a pixel of the upright video, across and down
    corner: tuple[float, float]  # left and top of the clip in the resized video

    def boxes(self, boxes: Float[Tensor, "box 4"], size: int) -> Float[Tensor, "left 4"]:
        """x0, y0, x1, y1 in the clip, cut at its edges; without those of which nothing is left."""
        moved = boxes * boxes.new_tensor(self.scale * 2) - boxes.new_tensor(self.corner * 2)
        moved = moved.clamp(0, size)
        return moved[(moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])]


def placement(path: str | Path, clip: Clip, fit: str = "crop") -> Placement:
    """Where frames and pixels of the video at `path` are in `clip`, which `read_clip` made of it with `fit`.

    Raises:
        ClipError: the video cannot be read.
    """
    path = Path(path)
    try:
        table = _index(path)
        with _open(path) as container:
            frame = next(container.decode(_video_stream(container, path)))
    except (av.error.FFmpegError, OSError, EOFError, StopIteration) as error:
        raise ClipError(f"{path.name}: not a video that can be read ({error})") from error
    to = _Layout.of(frame, table.aspect, clip.pixels.shape[2], fit)
    width, height = (frame.height, frame.width) if to.turns % 2 else (frame.width, frame.height)
    frames = [int(np.abs(table.times - time).argmin()) for time in clip.times.tolist()]
    return Placement(frames, (to.shape[1] / width, to.shape[0] / height), (to.left, to.top))


_CODECS = {".mp4": ("libx264", "yuv420p"), ".avi": ("mpeg4", "yuv420p"), ".webm": ("libvpx-vp9", "yuv420p")}
_CODECS |= {".gif": ("gif", "rgb8")}


def write_video(path: str | Path, pixels: Float[Tensor, "3 time height width"], fps: float = 8) -> Path:
    """Write pixels in [0, 1] as a video; the suffix (.mp4, .avi, .webm, .gif) says which kind.

    An odd height or width grows by one repeated row or column, which the usual encoders demand.

    Raises:
        ClipError: another suffix, shape or range, or a folder that cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in _CODECS:
        raise ClipError(f"path: got {path.name!r}, expected a name that ends in one of {', '.join(_CODECS)}")
    clip = Clip(pixels.detach().float().cpu(), torch.zeros(pixels.shape[1:2]), str(path))
    height, width = clip.pixels.shape[2:]
    even = F.pad(clip.pixels, (0, width % 2, 0, height % 2), mode="replicate")
    pictures = (even.permute(1, 2, 3, 0) * 255).round().clamp(0, 255).byte().contiguous().numpy()
    codec, pixel_format = _CODECS[path.suffix.lower()]
    try:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], pixel_format
            if codec == "libx264":
                stream.options = {"crf": "16", "preset": "medium"}
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    except (av.error.FFmpegError, OSError) as error:
        raise ClipError(f"path: cannot write {str(path)!r} ({error})") from error
    return path
