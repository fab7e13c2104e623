"""Data sets as records: the stage, your videos with boxes from a CSV, and those of the literature by name.

>>> records("clips/*.mp4", "boxes.csv", "action", count=8)     # yours; with "": the first 8 of the stage
>>> records("ucf101-24:path/to/ucf101")                        # the 120 clips of the paper
>>> open_dataset("ucf101-24", "ucf101", "test", cache="runs/clips")[0]
>>> check("ucf101")                                            # what is missing, short, corrupt, unannotated
"""

import csv
import glob
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .clips import Record, placement, read_clip
from .epic import Epic
from .files import RUNS
from .folders import Fault, Folders, Videos
from .names import pick
from .stage import TASKS, Stage
from .ucf101 import UCF101_24, Tube, Ucf101, Video, read_ucf101_annotations  # noqa: F401

# ------------------------------------------------------------------------------ what lessons ask for


def records(
    clips: str = "",
    boxes: str = "",
    task: str = "action",
    count: int = 8,
    seed: int = 1,
    *,
    frames: int = 16,
    size: int = 112,
    joined: bool = False,
    everything: bool = False,
) -> list[Record]:
    """Your videos if `clips` says which, else the first `count` test clips of the stage.

    Args:
        clips: a pattern, as for `read_records`; or a data set and where it lies, such as
            "ucf101-24:path/to/ucf101": then the paper's test clips, 5 a class, cached in `runs/clips`: all of
            them with `everything`, else `count`, spread over the classes.
        boxes, frames, size: as for `read_records`; of your videos, none of which is left out.
        task, count, seed: of the stage.
        joined: of "epic-action", clips joined with the background beside them (`Epic`, `temporal`).

    Raises:
        ValueError: as `read_records`, `Stage` and `open_dataset`; `boxes` without `clips` or with a data set.

    Warns:
        UserWarning: videos of the data set are missing.
    """
    name, root = _named(clips)
    if name:
        if boxes:
            raise ValueError(f"boxes: got {boxes!r} with {clips!r}, which has its own; expected none")
        how: dict[str, Any] = {"temporal": True} if joined and name == "epic-action" else {}
        data = open_dataset(name, root, frames=frames, size=size, cache=RUNS / "clips", **how)
        there = data.there()
        there = there.paper_subset() if isinstance(there, Ucf101) else there
        order = sorted(range(len(there)), key=lambda k: there.items[k].label)
        many = len(order) if everything else min(count, len(order))
        return [there[order[round(k * (len(order) - 1) / max(many - 1, 1))]] for k in range(many)]
    if clips:
        return read_records(clips, boxes or None, frames, size)
    if boxes:
        raise ValueError(
            f"boxes: got {boxes!r} without clips, expected clips to say which videos they are in"
        )
    stage = Stage(task, "test", seed, length=count)
    return [stage[k] for k in range(count)]


def tasks_of(clips: str) -> list[str]:
    """What `clips` (as for `records`) shows: "action", "object" or "moment" for a data set of the paper.

    Your own videos are just ["clips"]; none, when `clips` is empty: the lesson's own.
    """
    name, _ = _named(clips)
    return [_TASKS.get(name, "clips")] if clips else []


def ratios_of(clips: str) -> tuple[float, ...] | str:
    """For `Study`: the paper's four for its data sets (`clips` as for `records`), else a tenth."""
    return "paper" if tasks_of(clips) not in ([], ["clips"]) else (0.1,)


def _named(clips: str) -> tuple[str, str]:
    """Name and folder, if `clips` names a data set."""
    name, _, root = clips.partition(":")
    return (name, root) if name in DATASETS and root else ("", "")


def networks_of(text: str, task: str) -> list[str]:
    """Names for `load_network`, set apart by spaces or commas; none: the stage's two families for `task`.

    Raises:
        ValueError: no name, and no such task.
    """
    if names := text.replace(",", " ").split():
        return names
    pick("task", task, TASKS)
    return [f"stage-{task}-{family}" for family in ("r2plus1d", "vgg16lstm")]


# ------------------------------------------------------------------------------------ data sets by name


DATASETS: dict[str, Callable[..., Videos]] = {
    "ucf101-24": Ucf101,
    "epic-object": partial(Epic, task="object"),
    "epic-action": partial(Epic, task="action"),
    "folders": Folders,
}
_TASKS = {"ucf101-24": "action", "epic-object": "object", "epic-action": "moment"}  # the stage's likenesses


def open_dataset(name: str, root: str | Path, split: str = "test", **options: Any) -> Videos:
    """A data set by name, as on the command line.

    Args:
        name: "ucf101-24", "epic-object", "epic-action" or "folders".
        root, split, options: as for `Ucf101`, `Epic` and `Folders`, and all of `Videos`.

    Raises:
        ValueError: no such name; as these.
    """
    return pick("name", name, DATASETS)(root, split=split, **options)


def check(root: str | Path, name: str = "", jobs: int = 0) -> tuple[int, list[Fault]]:
    """How many clips of all splits were looked at, and what is wrong with them and with what lies beside.

    Args:
        root: folder of a data set.
        name: as for `open_dataset`; by default told by the annotations that are there.
        jobs: how many processes read beside this one.

    Raises:
        ValueError: as `open_dataset`.
    """
    signs = {"ucf101-24": "pyannot.pkl", "epic-object": "Valid_seg_top*.csv"}
    signs |= {"epic-action": "EPIC_train_action_labels.csv"}
    places = (Path(root), Path(root) / "annotations")
    told = [n for n, sign in signs.items() if any([*place.glob(sign)] for place in places)]
    datasets = [open_dataset(n, root, "all") for n in ([name] if name else told or ["folders"])]
    found = [data.check(jobs) for data in datasets]
    return sum(map(len, datasets)), [fault for faults in found for fault in faults]


# ----------------------------------------------------------------------------------- your own videos


@dataclass
class _Notes:
    """What a CSV says of one video."""

    boxes: dict[int, list[list[float]]] = field(default_factory=dict)  # by frame number
    label: int | str | None = None
    segment: tuple[int, int] | None = None


def read_records(
    pattern: str, boxes: str | Path | None = None, frames: int = 16, size: int = 112, fit: str = "crop"
) -> list[Record]:
    """Your own videos as records, in the order of their paths.

    Args:
        pattern: which videos: a path with `*`, `?` and `**` as usual, such as "clips/*.mp4".
        boxes: CSV of what is known of them, UTF-8, with a header and the columns `video, frame, x0, y0, x1,
            y1` and, if you like, `label, start, stop`; others are passed over. `video` is a file name, with
            or without its ending or folders. `frame` counts from 0. Corners are in pixels of the video as
            stored and turned upright, right and bottom edge exclusive. A line without frame and corners tells
            label or segment only. `label` is a class name or (a whole number) its index; `start` and `stop`
            are the first frame of the labelled part and one past its last; both are told once or more, always
            the same.
        frames, size, fit: as for `read_clip`, whose sampling, scaling and cutting the boxes follow. Those of
            frames that were not sampled are left out, and those outside of the square.

    Returns:
        records without true mask. `label` and `segment` are None where nothing is told of them (or the
        segment falls between two sampled frames); `name` is the file's, without its ending.

    Raises:
        ValueError: no video found; a CSV that cannot be used, with the line and column.
        ClipError: a video that cannot be read.

    Warns:
        UserWarning: a video has boxes, but none in a frame that was sampled.
    """
    paths = [Path(p) for p in sorted(glob.glob(str(pattern), recursive=True)) if Path(p).is_file()]
    if not paths:
        raise ValueError(f"pattern: got {str(pattern)!r}, expected at least one video there")
    notes = {path: _Notes() for path in paths}
    if boxes is not None:
        _read_notes(Path(boxes), notes)
    stems = [path.stem for path in paths]
    return [
        _record(
            path,
            notes[path],
            frames,
            size,
            fit,
            path.stem if stems.count(path.stem) == 1 else path.as_posix(),
        )
        for path in paths
    ]


def _record(path: Path, notes: _Notes, frames: int, size: int, fit: str, name: str) -> Record:
    clip = read_clip(path, frames, size, fit=fit)
    placed = placement(path, clip, fit)
    listed = [notes.boxes.get(number, []) for number in placed.frames]
    found = [torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 4) for rows in listed]
    if notes.boxes and not any(listed):
        warnings.warn(
            f"{path.name}: has boxes, but not in the frames sampled: {sorted(set(placed.frames))}",
            stacklevel=3,
        )
    segment = None
    if notes.segment:
        inside = [t for t, n in enumerate(placed.frames) if notes.segment[0] <= n < notes.segment[1]]
        segment = (inside[0], inside[-1] + 1) if inside else None
    return Record(clip, notes.label, [placed.boxes(rows, size) for rows in found], None, segment, name)


_CORNERS = ("x0", "y0", "x1", "y1")


def _read_notes(path: Path, notes: dict[Path, _Notes]) -> None:
    """Fill `notes` from a CSV."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            for name in ("video", "frame", *_CORNERS):
                if name not in columns:
                    raise _bad(path, 1, name, columns, "a column of that name")
            for row in reader:
                cells = {k: (v or "").strip() for k, v in row.items() if k and not isinstance(v, list)}
                if any(cells.values()):
                    _read_note(path, reader.line_num, cells, notes)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"boxes: cannot read {str(path)!r} as CSV ({error})") from error


def _bad(path: Path, line: int, column: str, got: Any, expected: str) -> ValueError:
    return ValueError(f"boxes: {path.name}, line {line}, column {column}: got {got!r}, expected {expected}")


def _read_note(path: Path, line: int, cells: dict[str, str], notes: dict[Path, _Notes]) -> None:
    def number(column: str, whole: bool) -> float:
        try:
            value = float(cells.get(column, ""))
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (whole and (value < 0 or value % 1)):
            kind = "a whole number of at least 0" if whole else "a number"
            raise _bad(path, line, column, cells.get(column, ""), kind)
        return value

    def tell(column: str, before: Any, value: Any) -> Any:
        if before not in (None, value):
            raise _bad(path, line, column, value, f"{before!r}, as told before of this video")
        return value

    wanted = Path(cells["video"])
    fits = [p for p in notes if wanted.parts and p.parts[-len(wanted.parts) :] == wanted.parts]
    fits = fits or [p for p in notes if p.stem == cells["video"]]
    if len(fits) != 1:
        known = ", ".join(p.name for p in notes)
        raise _bad(path, line, "video", cells["video"], f"{'only ' if fits else ''}one of {known}")
    note = notes[fits[0]]
    if label := cells.get("label"):
        note.label = tell("label", note.label, int(label) if label.isdecimal() else label)
    if cells.get("start") or cells.get("stop"):
        span = int(number("start", True)), int(number("stop", True))
        if span[0] >= span[1]:
            raise _bad(path, line, "stop", span[1], f"more than start = {span[0]}")
        note.segment = tell("start", note.segment, span)
    if not any(cells[name] for name in ("frame", *_CORNERS)):
        return
    frame, box = int(number("frame", True)), [number(name, False) for name in _CORNERS]
    for low, high in ((0, 2), (1, 3)):
        if box[high] <= box[low]:
            raise _bad(path, line, _CORNERS[high], box[high], f"more than {_CORNERS[low]} = {box[low]:g}")
    note.boxes.setdefault(frame, []).append(box)
