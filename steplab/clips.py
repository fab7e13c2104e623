"""Clips: what every network here sees and every explanation explains.

>>> clip = read_clip("diving.avi", frames=16, size=112)
>>> clip.pixels.shape, clip.times[:2]
(torch.Size([3, 16, 112, 112]), tensor([0.12, 0.36]))
"""

import os.path
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
from av.sidedata.sidedata import Type as SideData
from jaxtyping import Bool, Float
from torch import Tensor

# A frame is first shrunk to this many times the wanted size by the decoder's own scaler, then resized with
# antialiasing: an 8K frame never becomes a float tensor.
_HEADROOM = 4
# A file may lack this fraction of what its header declares before it counts as broken.
_TOLERANCE = 0.1
# So many frames are decoded rather than leapt over: a leap costs about as much.
_LEAP = 48
# Pixels of the largest frame that is decoded, twice an 8K one: a file of 60 bytes may claim 4 billion.
_LARGEST = 2**26
# Codecs with packets that are never shown.
_HIDING = ("libvpx", "libvpx-vp9", "vp8", "vp9", "av1", "libdav1d", "libaom-av1")


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
    if not os.path.isfile(path):  # which says no where Path.is_file raises: to a name that is too long
        found = "a pipe or device" if os.path.exists(path) else "not there"
        raise ClipError(
            f"path: {str(path)!r} is {'a folder' if os.path.isdir(path) else found}, expected a video"
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
        task = path, table, middles, lambda f: _to_pixels(f, table.aspect, size, fit)
        try:
            pictures, times, damaged = _decode(*task)
        except _Astray:
            pictures, times, damaged = _decode(*task, leap=False)
        damaged = max(damaged, table.missing if start is None and stop is None else 0)
    except (av.error.FFmpegError, OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipError(f"{path.name}: not a video that can be read ({reason})") from error
    if damaged:
        warnings.warn(
            f"{path.name}: {damaged} frames are missing or could not be decoded; their neighbours stand in",
            stacklevel=2,
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
    missing: int  # frames that the header or gaps between time stamps tell of, and no packet holds
    declared: int  # frames the header claims; 0 if it makes no claim
    duration: float  # seconds the header claims for the picture; 0 if it makes no claim
    codec: str
    aspect: float  # width of a pixel over its height
    closed: bool  # whether the file ends as its format demands
    times: np.ndarray  # presentation time of every frame, rising
    keys: np.ndarray  # ... of those that can be decoded without any before

    def leap(self, now: float, moment: float) -> float | None:
        """Time of the key frame from which what is on show at a moment is had sooner than by going on."""
        shown = self.times[max(np.searchsorted(self.times, moment + 1e-6, "right") - 1, 0)]
        keys = self.keys[(self.keys > now) & (self.keys <= shown + 1e-6)]
        return float(keys[-1]) if len(keys) and self.between(now, keys[-1]) >= _LEAP else None

    def between(self, first: float, last: float) -> int:
        """How many frames there are from one time to another, both included."""
        return int(np.sum((self.times >= first - 1e-6) & (self.times <= last + 1e-6)))

    def check_complete(self, name: str):
        """Raise where both the packets and the time they cover fall short of what the header declares.

        Both, because an edited file may rightly show fewer frames than it stores, or its last one for long.
        """
        if not self.closed:
            raise ClipError(f"{name}: cut short: its end is missing, {self._rest()}")
        few = self.declared and self.packets < (1 - _TOLERANCE) * self.declared
        more = self.declared and self.packets > self.declared  # of a recorder that never closed its file
        far = self.end > (1 + _TOLERANCE) * self.duration + min(2 * self.step, self.duration)
        if self.duration and far and not more:
            declared = f"declares {self.duration:.2f} s, its time stamps reach {self.end:.2f} s"
            raise ClipError(f"{name}: damaged: {declared} (stop={self.duration:.2f} reads the declared part)")
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
    # The decoder would draw any text as a terminal shows it, and read the other files that a list names.
    if container.format.name in ("tty", "concat", "hls"):
        raise ClipError(f"{path.name}: text, expected a video")
    stream = streams[0]
    if stream.codec_context is None:
        raise ClipError(f"{path.name}: no decoder for its codec; convert it to H.264 first")
    if stream.width * stream.height > _LARGEST:
        size = f"{stream.width} × {stream.height} pixels a frame"
        raise ClipError(f"{path.name}: {size}, expected at most {_LARGEST}; make it smaller first")
    stream.codec_context.options = {"max_pixels": str(_LARGEST)}  # frames may be larger than the header says
    stream.thread_type = "NONE"  # a forked process that frees a decoder waits for its threads for ever
    return stream


def _index(path: Path) -> _Index:
    """Read the packets' times, decoding nothing."""
    with _open(path) as container:
        stream = _video_stream(container, path)
        base = float(stream.time_base or Fraction(1, 25))
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        times, keys, last, empty = [], [], 0.0, 0
        for packet in container.demux(stream):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size == 0 or packet.is_discard:
                empty += packet.dts is not None  # the frame before stays on show; no time: the file's end
                continue
            times.append(len(times) / rate if stamp is None else stamp * base)
            if packet.is_keyframe:
                keys.append(times[-1])
            if times[-1] == max(times[-2:]):
                last = float((packet.duration or 0) * base)
        if not times:
            raise ClipError(f"{path.name}: declares {stream.frames} frames, holds none")
        times.sort()
        steps = np.diff(times)
        step = float(np.median(steps[steps > 0])) if (steps > 0).any() else 1 / rate
        duration = float((stream.duration or 0) * base)
        if not duration and len(container.streams) == 1:
            duration = (container.duration or 0) / av.time_base
            if "matroska" in container.format.name:  # counts from 0, not from the first frame
                duration -= times[0]
        pixel = stream.codec_context.sample_aspect_ratio
        end = times[-1] - times[0] + (last or step)
        missing = [stream.frames - len(times) - empty, (duration - end) / step if duration else 0, 0]
        regular = np.abs(steps / step - 1) < 0.1
        if len(steps) > 8 and regular.mean() > 0.9 and not empty:  # a gap is no pause of a slide show
            missing[2] = float(np.sum(np.round(steps / step) - 1, where=steps > 1.5 * step))
        return _Index(
            origin=times[0],
            end=end,
            step=step,
            packets=len(times),
            missing=max(0, round(max(missing))),
            declared=stream.frames or 0,
            duration=duration,
            codec=stream.codec_context.name,
            aspect=float(pixel) if pixel and 0.2 < pixel < 5 else 1.0,
            closed=container.format.name != "gif" or _last_bytes(path).endswith(b";"),
            times=np.array(times) - times[0],
            keys=np.sort(np.array(keys)) - times[0],
        )


class _Astray(Exception):
    """A leap ended elsewhere than at the key frame it was meant for, or among damaged frames."""


def _decode(path: Path, table: _Index, middles: np.ndarray, convert: Callable, leap: bool = True):
    """The pictures on show at given moments (rising), their times, and how many frames failed to decode.

    Leaps to the key frame before a moment where that is far ahead. What is then on show is what decoding
    everything gives: a frame shown after a key frame needs none from before it.
    """
    pictures, times = [], []
    previous = None  # (frame, time): the last frame decoded, on show until the next begins
    seen = failed = expected = 0  # frames; packets that fail; frames there are
    spoilt = 0 if len(table.keys) else table.packets  # frames without what they build on
    landing = first = time = -1.0  # the key frame leapt to; first and last frame decoded since

    def take(frame, time):
        picture = pictures[-1] if times and times[-1] == time else convert(frame)
        pictures.append(picture)
        times.append(time)

    with _open(path) as container:
        stream = _video_stream(container, path)
        rate = 1 / table.step
        while len(times) < len(middles) and time < np.inf:
            key = table.leap(time, middles[len(times)]) if leap else None
            if key is not None:
                container.seek(round((key + table.origin) / float(stream.time_base or 1)), stream=stream)
                expected += table.between(first, time) if first >= 0 else 0
                landing, first, previous = key, -1.0, None
            for frame, failure in _frames(container, stream):
                failed += failure
                if frame is None:
                    continue
                if frame.time is None and landing >= 0:
                    raise _Astray
                now = (seen / rate) if frame.time is None else frame.time - table.origin
                if now < landing - 1e-6:  # shown before the key frame: needs what was leapt over
                    continue
                if first < 0:
                    if landing >= 0 and now > landing + 1e-6:
                        raise _Astray
                    first = now if landing >= 0 else 0.0
                time = now
                seen += 1
                spoilt += frame.is_corrupt
                while len(times) < len(middles) and previous and middles[len(times)] < time - 1e-6:
                    take(*previous)
                previous = (frame, time)
                if len(times) == len(middles) or leap and table.leap(time, middles[len(times)]) is not None:
                    break
            else:
                time = np.inf
    if landing >= 0 and (failed or spoilt or table.between(first, time) + expected > seen):
        raise _Astray  # damaged: count it where nothing is left out
    if seen == 0:
        raise ClipError(f"{path.name}: holds {table.packets} frames, none of which can be decoded")
    expected += table.between(max(first, 0.0), time)
    if table.declared or table.codec not in _HIDING:
        failed = max(failed, min(expected, table.declared or expected) - seen)
    if failed + spoilt > _TOLERANCE * expected + 1:
        raise ClipError(f"{path.name}: damaged: of {expected} frames {max(seen - spoilt, 0)} can be decoded")
    while len(times) < len(middles):
        if previous is None:
            raise _Astray
        take(*previous)
    return pictures, times, failed + spoilt


def _frames(container, stream):
    """(frame, 0), or (None, 1) for a packet that cannot be decoded."""
    for packet in container.demux(stream):
        try:
            yield from ((frame, 0) for frame in packet.decode())
        except av.error.InvalidDataError:
            yield None, 1


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


def _mirrored(frame) -> bool:
    """Whether the display matrix turns the picture over, as in a selfie."""
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)
    if not matrix:
        return False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    return bool(a * d < b * c)


def _to_pixels(frame, aspect: float, size: int, fit: str) -> Float[Tensor, "3 size size"]:
    """One decoded frame as an upright square of RGB in [0, 1]."""
    to = _Layout.of(frame, aspect, size, fit)
    picture = frame.to_ndarray(
        format="rgb24", width=to.width, height=to.height, interpolation="AREA", threads=1
    )
    if _mirrored(frame):  # which also counts as a half turn
        picture = picture[::-1]
    picture = np.rot90(picture, to.turns).copy()
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    pixels = F.interpolate(pixels, to.shape, mode="bilinear", antialias=True, align_corners=False)[0]
    return pixels[:, to.top : to.top + size, to.left : to.left + size].clamp(0, 1)


class Placement(NamedTuple):
    """Where a video's own frames and pixels went in the clip that was read from it."""

    frames: list[int]  # number in the video, from 0, of each frame of the clip
    scale: tuple[float, float]  # pixels of the clip to a pixel of the upright video, across and down
    corner: tuple[float, float]  # left and top of the clip in the resized video
    stored: tuple[int, int, int] = (0, 0, 0)  # the video's width and height, pixels, and declared frames

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
    scale, stored = (to.shape[1] / width, to.shape[0] / height), (frame.width, frame.height, table.declared)
    return Placement(frames, scale, (to.left, to.top), stored)


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
