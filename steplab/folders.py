"""Real videos as data sets: read when asked for, kept small on disk, checked before hours are spent on them.

>>> data = Folders("kinetics/val", cache="runs/clips")     # kinetics/val/<label>/*.mp4, or folders of frames
>>> data[3].clip.pixels.shape, data.classes[data[3].label]
(torch.Size([3, 16, 112, 112]), 'abseiling')
>>> data.check()                                           # what is missing, short, corrupt, unannotated
"""

import copy
import hashlib
import json
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import av
import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import clips
from .clips import Clip, ClipError, Placement, Record, placement, read_clip
from .files import write_whole
from .names import pick

VIDEOS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".gif")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SPLITS = ("train", "test", "all")


@dataclass(frozen=True, eq=False)
class Item:
    """One clip of a data set, not yet read.

    Attributes:
        name, label: as in a `Record`.
        path: a video, or a folder of frames, numbered at the end of their names.
        start, stop: the part to read, seconds; None for all of it.
        rate, first: of a folder: frames a second, and the time of the frame of number 1 (or 0).
        length: frames that the annotations speak of; 0 where they do not.
        known: what the data set's `truth` makes boxes and segment of.
    """

    name: str
    label: int
    path: Path
    start: float | None = None
    stop: float | None = None
    rate: float = 25.0
    first: float = 0.0
    length: int = 0
    known: Any = None


class Truth(NamedTuple):
    """What is known of the frames sampled."""

    boxes: Sequence[Tensor] = ()  # x0, y0, x1, y1 of each frame; () for none at all
    drawn_at: tuple[int, int] | None = None  # width and height they are meant at; None: the video's own
    segment: tuple[int, int] | None = None


class Fault(NamedTuple):
    """What `check` found."""

    kind: str  # "missing", "short", "corrupt" or "unannotated"
    path: str
    why: str
    clips: int = 1  # how many clips of this video suffer from it


class Videos(Dataset):
    """Items as a torch data set of records; the common part of `Ucf101`, `Epic` and `Folders`.

    Each is read when asked for, so that the workers of a `DataLoader` share the work (collate with `list`, or
    without batches). The same item and seed give the same record, with a cache and without: pixels
    are multiples of 1/255.

    Args:
        items, classes: the clips, and the names of their labels.
        frames, size, fit: as for `read_clip`: one frame from each of `frames` equal stretches of time.
        random: of each stretch any of `choices` frames instead of the middle one, as for training.
        seed: of these. Set the attribute anew before each epoch.
        choices: how many frames of a stretch are read, evenly spread, and kept in the cache.
        cache: folder for what was read, 0.6 MB for 16 frames of 112 px, `choices` times that if random.
            A file is named by the video's path, size and time of change and by all that decides its pixels;
            a torn one is made anew. Delete the folder whenever you like.

    Raises:
        ValueError: no items, or a number that is too small. Reading one: `ClipError` as `read_clip`.

    Warns:
        UserWarning: as `read_clip`; frames missing in a folder; a cache that cannot be written to.
    """

    def __init__(
        self,
        items: Sequence[Item],
        classes: Sequence[str],
        *,
        frames: int = 16,
        size: int = 112,
        fit: str = "crop",
        random: bool = False,
        seed: int = 0,
        choices: int = 5,
        cache: str | Path | None = None,
    ):
        if not items:
            raise ValueError("items: got none, expected at least one clip")
        if min(frames, size, choices) < 1:
            got = f"{frames}, {size} and {choices}"
            raise ValueError(f"frames, size, choices: got {got}, expected whole numbers of at least 1")
        self.items, self.classes = list(items), tuple(classes)
        self.frames, self.size, self.fit, self.random, self.seed = frames, size, fit, random, seed
        self.choices = choices if random else 1
        self.cache = None if cache is None else Path(cache)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        return self._record(self.items[index], self._read(self.items[index]))

    def subset(self, names: Collection[str] | None = None) -> "Videos":
        """The same with fewer clips: those of these names; without names those whose video is there.

        Raises:
            ValueError: none is left.
        """
        kept = [i for i in self.items if (i.path.exists() if names is None else i.name in names)]
        if not kept:
            first = self.items[0].path
            what = f"root: none of {len(self)} clips is there, such as {first}"
            what = what if names is None else f"names: none of {len(self)} clips is so named"
            raise ValueError(f"{what}; expected at least one")
        other = copy.copy(self)
        other.items = kept
        return other

    def there(self) -> "Videos":
        """The same without the clips whose video is missing, of which it warns."""
        found = self.subset()
        if missing := len(self) - len(found):
            warnings.warn(f"{missing} of {len(self)} clips are missing; `steplab data check` lists them")
        return found

    def truth(self, item: Item, numbers: list[int], times: list[float]) -> Truth:
        """What is known of frames sampled: their numbers in the video from 0, their times in seconds."""
        return Truth()

    def strays(self) -> list[Fault]:
        """Videos without annotations."""
        return []

    def check(self, jobs: int = 0) -> list[Fault]:
        """Read every clip, in `jobs` processes beside this one; what is wrong, not stopping at the first."""
        items, look = cast(Any, self.items), cast(Any, self.faults)  # a list is data set enough
        loader = DataLoader(items, None, num_workers=jobs, collate_fn=look)
        found = Counter(fault for faults in loader for fault in faults)
        return self.strays() + [fault._replace(clips=number) for fault, number in sorted(found.items())]

    def faults(self, item: Item) -> list[Fault]:
        """What is wrong with one clip."""
        path = str(item.path)
        if not item.path.exists():
            return [Fault("missing", path, "is not there")]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                seen = self._read(item)
                self._record(item, seen)
            except ClipError as error:
                short = re.search(r"cut short|start, stop|holds no", str(error))
                return [Fault("short" if short else "corrupt", path, str(error))]
            except ValueError as error:
                return [Fault("unannotated", path, str(error))]
        said = [str(w.message) for w in said if w.category is UserWarning]
        for what in (words for words in said if not words.startswith("cache: ")):
            return [Fault("short" if "are missing" in what else "corrupt", path, what)]
        length, distinct = int(seen["frame"][6]), len(seen["numbers"].unique())
        if 0 < length < item.length:
            return [Fault("short", path, f"holds {length} frames, annotated are {item.length}")]
        if distinct < self.frames:
            return [Fault("short", path, f"{distinct} frames where {self.frames} are wanted")]
        return []

    def _record(self, item: Item, seen: dict[str, Tensor]) -> Record:
        picks = torch.arange(self.frames) * self.choices
        if self.choices > 1:  # by name, so that a clip is sampled alike in every subset
            rng = np.random.default_rng([self.seed % 2**32, zlib.crc32(item.name.encode())])
            picks = picks + torch.from_numpy(rng.integers(self.choices, size=self.frames))
        times, numbers = seen["times"][picks], seen["numbers"][picks].tolist()
        clip = Clip(seen["pixels"][:, picks].float() / 255, times, item.path.name)
        known = self.truth(item, numbers, times.tolist())
        across, down, left, top, width, height, _ = seen["frame"].tolist()
        if known.drawn_at:
            across, down = across * width / known.drawn_at[0], down * height / known.drawn_at[1]
        placed = Placement(numbers, (across, down), (left, top))
        boxes = [placed.boxes(b, self.size) for b in known.boxes or [torch.zeros(0, 4)] * self.frames]
        return Record(clip, item.label, boxes, None, known.segment, item.name)

    def _read(self, item: Item) -> dict[str, Tensor]:
        """All frames that may be sampled, from the cache if they are there."""
        count = self.frames * self.choices
        if not item.path.exists():
            raise ClipError(f"path: {str(item.path)!r} is not there, expected a video or a folder of frames")
        files, times = _files(item, count)
        if self.cache is None:
            return _sample(item, files, times, count, self.size, self.fit)
        stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        how = [count, self.size, self.fit, item.start, item.stop, item.rate, item.first, _code()]
        name = hashlib.sha256(json.dumps([stats, how]).encode()).hexdigest()
        path = self.cache / name[:2] / f"{name}.safetensors"
        with suppress(OSError, SafetensorError):
            seen = safetensors.torch.load(path.read_bytes())
            if seen.keys() == {"pixels", "times", "numbers", "frame"}:
                return seen
        seen = _sample(item, files, times, count, self.size, self.fit)
        try:
            write_whole(path, safetensors.torch.save(seen))
        except OSError as error:
            warnings.warn(f"cache: {self.cache} cannot be written to ({error})")
        return seen


@cache
def _code() -> str:
    """Names the code that decides a clip's pixels: another decoder, another entry."""
    text = Path(clips.__file__).read_bytes() + Path(__file__).read_bytes()
    return f"{av.__version__} {hashlib.sha256(text).hexdigest()}"


def _files(item: Item, count: int) -> tuple[list[Path], np.ndarray]:
    """The files to read, and of a folder their times: those on show in the middle of each stretch."""
    if not item.path.is_dir():
        return [item.path], np.zeros(0)
    paths, numbers = _pictures(item.path, item.path.stat().st_mtime_ns)
    if not paths:
        raise ClipError(f"{item.path.name}: holds no frames ({', '.join(PICTURES)})")
    times = item.first + (numbers - min(1, numbers[0])) / item.rate
    begin = times[0] if item.start is None else item.start
    end = last = times[-1] + 1 / item.rate
    end = end if item.stop is None else item.stop
    if not begin < end <= last + 0.5 / item.rate:
        raise ClipError(
            f"start, stop: got {item.start} and {item.stop}, expected start < stop <= {last:.3f} s, "
            f"where {item.path.name} ends"
        )
    middles = begin + (np.arange(count) + 0.5) * (end - begin) / count
    on_show = (np.searchsorted(times, middles + 1e-6, "right") - 1).clip(0)
    gaps = np.sum(np.abs(middles - times[on_show]) > 1.5 / item.rate)
    if gaps:
        warnings.warn(f"{item.path.name}: {gaps} frames are missing; their neighbours stand in")
    return [paths[k] for k in on_show], times[on_show]


@lru_cache(maxsize=256)
def _pictures(folder: Path, changed: int) -> tuple[list[Path], np.ndarray]:
    """Frames in a folder and their numbers, rising; `changed` is when it did, or it would be listed once."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name.lower().endswith(PICTURES))
    digits = [re.search(r"(\d+)\.\w+$", name) for name in names]
    numbers = [int(d[1]) if d else -1 for d in digits]
    if len(set(numbers)) < len(names) or -1 in numbers:
        numbers = range(len(names))
    order = np.argsort(numbers, kind="stable")
    return [folder / names[k] for k in order], np.asarray(numbers)[order]


def _sample(
    item: Item, files: list[Path], times: np.ndarray, count: int, size: int, fit: str
) -> dict[str, Tensor]:
    """Frames as bytes, their times and numbers, and how they lie: scale, corner, width, height, length."""
    if item.path.is_dir():
        read = {file: read_clip(file, 1, size, fit=fit) for file in dict.fromkeys(files)}
        pixels = torch.cat([read[file].pixels for file in files], 1)
        every, _ = _pictures(item.path, item.path.stat().st_mtime_ns)
        numbers, length = [every.index(file) for file in files], len(every)
        clip = Clip(pixels, torch.from_numpy(times).float(), item.path.name)
    else:
        clip = read_clip(item.path, count, size, start=item.start, stop=item.stop, fit=fit)
        length = 0
    placed = placement(files[0], clip, fit)
    width, height, declared = placed.stored
    return {
        "pixels": (clip.pixels * 255).round().byte().contiguous(),
        "times": clip.times,
        "numbers": torch.tensor(numbers if item.path.is_dir() else placed.frames),
        "frame": torch.tensor(
            [*placed.scale, *placed.corner, width, height, length or declared], dtype=torch.float64
        ),
    }


def find(root: Path, *names: str) -> Path:
    """The first of these files that is in `root` or its folder `annotations`.

    Raises:
        ValueError: none is.
    """
    paths = [folder / name for name in names for folder in (root, root / "annotations")]
    if there := [path for path in paths if path.is_file()]:
        return there[0]
    raise ValueError(f"root: got {str(root)!r}, expected {' or '.join(names)} there or in annotations/")


def draw(names: Iterable[str], count: int, seed: int, group: str) -> list[str]:
    """`count` of the names, or all if there are fewer; another `group`, another draw."""
    rng = np.random.default_rng([seed % 2**32, zlib.crc32(group.encode())])
    return rng.permutation(sorted(names)).tolist()[:count]


# --------------------------------------------------------------------------------------- Kinetics style


class Folders(Videos):
    """Videos in one folder a label, as Kinetics comes: `<label>/*.mp4` or `<label>/<clip>/*.png`.

    Folders of frames may also lie beside the labels, named `<label>-<id>_<start>_<length>`.

    Args:
        root: the folder, such as `kinetics/val`; or one above it, which holds train/ and test/ or val/.
        split: "train", "test" or "all", where there are train/ and the like; without them always all.
        classes: names of labels in the order of a network's outputs; by default those found in all splits,
            sorted.
        rate: frames a second in folders of frames.
        sampling: as for `Videos`; `random` by default for "train" only.

    Raises:
        ValueError: another split, nothing there, or a label that is not one of `classes`.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "all",
        classes: Sequence[str] | None = None,
        *,
        rate: float = 25.0,
        **sampling: Any,
    ):
        pick("split", split, SPLITS)
        parts = [p for p in (Path(root) / name for name in ("train", "test", "val")) if p.is_dir()]
        bases = parts or [Path(root)]
        wanted = [p for p in parts if split in ("all", "train" if p.name == "train" else "test")] or bases
        found: list[tuple[str, Path]] = []
        for folder in sorted(p for base in bases for p in base.glob("[!.]*") if p.is_dir()):
            inside = [p for p in sorted(folder.iterdir()) if p.is_dir() or p.suffix.lower() in VIDEOS]
            found += [(folder.name, p) for p in inside]
            if not inside and _pictures(folder, folder.stat().st_mtime_ns)[0]:
                named = re.fullmatch(r"(.+)-.{11}_\d+_\d+", folder.name)
                found.append((named[1] if named else folder.name.rpartition("-")[0] or folder.name, folder))
        if not found:
            raise ValueError(f"root: got {str(root)!r}, expected folders of videos there, one a label")
        order = sorted({label for label, _ in found}) if classes is None else list(classes)
        if unknown := sorted({label for label, _ in found} - {*order}):
            raise ValueError(f"classes: got {len(order)} without {unknown[0]!r}, expected all of {root}")
        items = [
            Item(path.relative_to(root).as_posix(), order.index(label), path, rate=rate)
            for label, path in found
            if any(base in path.parents for base in wanted)
        ]
        sampling = dict(random=split == "train") | sampling
        super().__init__(items, order, **sampling)
