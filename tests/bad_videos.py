"""Videos that nobody should have to meet, made with PyAV and by surgery on bytes.

`KINDS` names each: a function that makes it in a folder, and what `read_clip` must do with it. The picture is
one even colour a frame, brighter from frame to frame, so that a frame's brightness tells which one it is.
"""

import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAMES, RATE, SIDE = 40, 20, 64
CONTAINERS = {  # suffix: codec, pixel format, options
    "mp4": ("libx264", "yuv420p", {"g": "10", "bf": "2"}),
    "avi": ("mpeg4", "yuv420p", {"g": "10", "qscale": "3"}),
    "mkv": ("ffv1", "yuv420p", {"g": "10", "slicecrc": "1", "level": "3", "slices": "4"}),
    "webm": ("libvpx", "yuv420p", {"g": "10", "crf": "10", "b": "1M"}),
    "gif": ("gif", "rgb8", {}),
}


def level(k: int, count: int = FRAMES) -> float:
    """Brightness of frame k, .1 to .9."""
    return 0.1 + 0.8 * k / max(count - 1, 1)


def picture(k: int, count: int, height: int, width: int, texture: bool = False) -> np.ndarray:
    frame = np.full((height, width, 3), round(255 * level(k, count)), np.uint8)
    if texture:  # so that a corrupted file has something to get wrong
        noise = np.random.default_rng(7).integers(-20, 21, (height, width, 1))
        frame = np.clip(frame.astype(int) + np.roll(noise, 3 * k, 1), 0, 255).astype(np.uint8)
    return frame


def film(
    path: Path,
    count: int = FRAMES,
    size: tuple[int, int] = (SIDE, SIDE),
    codec: str | None = None,
    fmt: str | None = None,
    options: dict | None = None,
    stamps: list[int] | None = None,
    texture: bool = False,
    draw: Callable = picture,
    prepare: Callable = lambda stream: None,
) -> Path:
    """`count` frames at RATE; `stamps`: presentation times in ms instead."""
    usual = CONTAINERS.get(path.suffix[1:], ("libx264", "yuv420p", {}))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or usual[0], rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt = fmt or usual[1]
        stream.options = usual[2] if options is None else options
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        prepare(stream)
        for k in range(count):
            drawn = draw(k, count, *size, texture)
            frame = av.VideoFrame.from_ndarray(drawn, "rgb24" if drawn.ndim == 3 else "gray")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[k], Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def patched(path: Path, name: bytes, offset: int, value: bytes) -> Path:
    """Overwrite bytes in an mp4 box: `offset` counts from the end of the box's name."""
    data = bytearray(path.read_bytes())
    at = data.find(name)
    assert at > 0, name
    data[at + 4 + offset : at + 4 + offset + len(value)] = value
    path.write_bytes(data)
    return path


def remuxed(path: Path, to: Path, keep: Callable, change: Callable = lambda packet, k: None) -> Path:
    """The same packets without those that `keep(number, packet)` turns down, in a new file."""
    with av.open(str(path)) as source, av.open(str(to), "w") as target:
        stream = source.streams.video[0]
        out = target.add_stream_from_template(stream)
        for k, packet in enumerate(p for p in source.demux(stream) if p.size):
            if keep(k, packet):
                packet.stream = out
                change(packet, k)
                target.mux(packet)
    return to


def text(path: Path, words: str) -> Path:
    path.write_text(words)
    return path


def raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate, frame.pts = 16000, 0
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def vast(path: Path) -> Path:
    """A still picture of a few bytes that claims 60,000 x 60,000 pixels."""
    head = b"BM" + struct.pack("<IHHI", 100, 0, 0, 54)
    return raw(
        path, head + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 1, 1, 0, 0) + bytes(46)
    )


def other(folder: Path) -> Path:
    """A film that a list points to."""
    return film(folder / "other.mp4")


# -------------------------------------------------------------------------------------------------- expected


@dataclass
class Kind:
    """How to make a bad video, and what must come of it.

    One of: `shows` (time in s from the first frame -> brightness), `refused` (words of the ClipError),
    or neither: then it may be a ClipError, or the frames with a warning, or all the right ones.
    """

    make: Callable[[Path], Path]
    shows: Callable[[float], float] | None = None
    refused: str = ""
    within: float = 0.03
    count: int = FRAMES


def by_number(count: int = FRAMES, rate: float = RATE) -> Callable[[float], float]:
    return lambda time: level(min(int(time * rate + 1e-4), count - 1), count)


def by_stamp(stamps: list[int]) -> Callable[[float], float]:
    starts = (np.array(stamps) - stamps[0]) / 1000
    return lambda time: level(int(np.searchsorted(starts, time + 1e-4, "right")) - 1, len(stamps))


VARIABLE = [0, *np.cumsum([20, 40, 130] * 13).tolist()]
SPLIT = "ffconcat version 1.0\nfile other.mp4\n"
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.mp4\n#EXT-X-ENDLIST\n"
HTML = "<!DOCTYPE html><html><body><h1>404</h1></body></html>" * 20


def list_of(words: str, name: str) -> Callable[[Path], Path]:
    return lambda d: (other(d), text(d / name, words))[1]


def named(name: str) -> Callable[[Path], Path]:
    return lambda d: film(d / "a.mp4").rename(d / name)


def colours(matrix: int) -> Callable[[Path], Path]:
    def tell(stream):
        stream.codec_context.colorspace = matrix

    return lambda d: film(d / "c.mp4", prepare=tell)


KINDS: dict[str, Kind] = {
    # no video
    "empty": Kind(lambda d: raw(d / "a.mp4", b""), refused="not a video"),
    "text": Kind(lambda d: text(d / "a.mp4", "a shopping list\n" * 50), refused="not a video|text"),
    "text with a text suffix": Kind(lambda d: text(d / "a.txt", "milk\n" * 500), refused="not a video|text"),
    "html": Kind(lambda d: text(d / "a.mp4", HTML), refused="not a video|text"),
    "zeros": Kind(lambda d: raw(d / "a.avi", bytes(100_000)), refused="not a video"),
    "noise": Kind(lambda d: raw(d / "a.webm", random.Random(0).randbytes(50_000)), refused="not a video"),
    "sound only": Kind(lambda d: sound(d / "a.mp4"), refused="no video stream"),
    "a list that names another file": Kind(list_of(SPLIT, "a.mp4"), refused="text|not a video"),
    "a playlist that names another file": Kind(list_of(HLS, "a.mp4"), refused="text|not a video"),
    "folder": Kind(lambda d: folder(d / "a.mp4"), refused="is a folder"),
    "fifo": Kind(lambda d: fifo(d / "a.mp4"), refused="a pipe or device"),
    "not there": Kind(lambda d: d / "a.mp4", refused="not there"),
    "a name that is too long": Kind(lambda d: d / ("a" * 5000 + ".mp4"), refused="not there"),
    "a name with a zero byte": Kind(lambda d: d / "a\0.mp4", refused="not there"),
    "broken link": Kind(
        lambda d: ((d / "a.mp4").symlink_to(d / "gone"), d / "a.mp4")[1], refused="not there"
    ),
    # names
    "a name with a newline": Kind(named("a\nb.mp4"), shows=by_number()),
    "a name with quotes": Kind(named("a'b\"c`.mp4"), shows=by_number()),
    "a name like a protocol": Kind(named("concat:a.mp4"), shows=by_number()),
    "a way through ..": Kind(
        lambda d: film(d / "a.mp4") and (folder(d / "sub") / ".." / "a.mp4"), shows=by_number()
    ),
    "a suffix of something else": Kind(
        lambda d: film(d / "a.mkv", codec="libx264").rename(d / "a.gif"), shows=by_number()
    ),
    "a name in letters of many scripts": Kind(named("видео 動画 🎬.mp4"), shows=by_number()),
    # few and many frames
    "one frame": Kind(lambda d: film(d / "a.mp4", 1), shows=lambda time: level(0, 1), count=1),
    "two frames": Kind(lambda d: film(d / "a.mp4", 2), shows=by_number(2), count=2),
    "three thousand frames": Kind(
        lambda d: film(d / "a.mp4", 3000, (16, 16)), shows=by_number(3000), count=3000
    ),
    "no key frame": Kind(
        lambda d: remuxed(film(d / "b.avi"), d / "a.avi", lambda k, p: not p.is_keyframe),
        refused="0 can be decoded",
    ),
    "the first key frame is missing": Kind(
        lambda d: remuxed(film(d / "b.mkv", codec="libx264"), d / "a.mkv", lambda k, p: k > 0)
    ),
    # sizes and formats
    "1 x 1": Kind(lambda d: film(d / "a.gif", size=(1, 1)), shows=by_number(), within=0.08),
    "odd sizes": Kind(
        lambda d: film(d / "a.avi", size=(33, 47), codec="ffv1", fmt="yuv444p"), shows=by_number()
    ),
    "a strip": Kind(lambda d: film(d / "a.mp4", size=(16, 640)), shows=by_number()),
    "8K": Kind(
        lambda d: film(d / "a.mp4", 4, (4320, 7680), options={"preset": "ultrafast"}), by_number(4), count=4
    ),
    "more pixels than anybody has": Kind(
        lambda d: vast(d / "a.bmp"), refused="pixels a frame|none of which can be decoded"
    ),
    "grey": Kind(lambda d: film(d / "a.mkv", codec="ffv1", fmt="gray"), shows=by_number()),
    "10 bits": Kind(lambda d: film(d / "a.mkv", codec="ffv1", fmt="yuv420p10le"), shows=by_number()),
    "alpha": Kind(lambda d: film(d / "a.mkv", codec="ffv1", fmt="yuva420p"), shows=by_number()),
    "full range": Kind(
        lambda d: film(d / "a.avi", codec="mjpeg", fmt="yuvj420p", options={}), shows=by_number()
    ),
    "BT.601": Kind(colours(5), shows=by_number()),
    "BT.709": Kind(colours(1), shows=by_number()),
    "interlaced": Kind(
        lambda d: film(d / "a.mkv", codec="mpeg2video", options={"flags": "+ildct+ilme", "g": "10"}),
        shows=by_number(),
    ),
    "open groups": Kind(
        lambda d: film(d / "a.mp4", options={"x264-params": "keyint=8:open-gop=1:bframes=3"}),
        shows=by_number(),
    ),
    "refreshed bit by bit, without key frames": Kind(
        lambda d: film(d / "a.mp4", options={"x264-params": "intra-refresh=1:keyint=20"}), shows=by_number()
    ),
    # time
    "variable frame rate": Kind(
        lambda d: film(d / "a.mkv", codec="libx264", stamps=VARIABLE), shows=by_stamp(VARIABLE)
    ),
    "variable frame rate, mp4": Kind(lambda d: film(d / "a.mp4", stamps=VARIABLE), shows=by_stamp(VARIABLE)),
    "times begin at one hour": Kind(
        lambda d: film(d / "a.mkv", codec="libx264", stamps=[3_600_000 + 50 * k for k in range(FRAMES)]),
        shows=by_number(),
    ),
    "times begin below zero": Kind(
        lambda d: film(d / "a.mkv", codec="libx264", stamps=[50 * k - 1000 for k in range(FRAMES)]),
        shows=by_number(),
    ),
    "no time stamps": Kind(
        lambda d: raw(d / "a.h264", film(d / "b.h264", options={"bf": "0"}).read_bytes()),
        shows=by_number(rate=25),
    ),
    "time scale of zero": Kind(
        lambda d: patched(film(d / "a.mp4"), b"mdhd", 12, bytes(4)), refused="declares"
    ),
    "time scale of a second": Kind(
        lambda d: patched(film(d / "a.mp4"), b"mdhd", 12, struct.pack(">I", 1)), refused="declares"
    ),
    # declared otherwise
    "a header that declares no duration": Kind(
        lambda d: patched(film(d / "a.mp4"), b"mdhd", 16, bytes(4)), shows=by_number()
    ),
    "a header that declares ten times the duration": Kind(
        lambda d: patched(film(d / "a.mp4"), b"mdhd", 16, struct.pack(">I", 20 * 10240)),
        shows=by_number(),
    ),
    "half of the packets are missing": Kind(
        lambda d: remuxed(
            film(d / "b.mkv", codec="mjpeg", fmt="yuvj420p", options={}), d / "a.mkv", lambda k, p: k < 20
        ),
        shows=by_number(),
    ),
}
for suffix in CONTAINERS:
    for percent in (1, 10, 50, 90, 99):
        KINDS[f"{suffix} cut at {percent} %"] = Kind(
            lambda d, s=suffix, p=percent: cut(film(d / f"a.{s}", texture=True), p / 100)
        )


# ---------------------------------------------------------------------------------------------- corruptions


def corrupted(data: bytes, seed: int) -> bytes:
    """A few bits turned, a stretch zeroed, doubled or taken out, or the end missing."""
    numbers, found = random.Random(seed), bytearray(data)
    at, length = numbers.randrange(len(data)), numbers.randrange(1, 65)
    match numbers.randrange(6):
        case 0 | 1:
            for _ in range(numbers.randrange(1, 9)):
                found[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        case 2:
            found[at : at + length] = bytes(len(found[at : at + length]))
        case 3:
            del found[at : at + length]
        case 4:
            found[at:at] = found[at : at + length]
        case 5:
            del found[at:]
    return bytes(found)
