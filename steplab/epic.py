"""EPIC-Kitchens-55: what hands in a kitchen do ("action") and with what ("object"), seen from the head.

>>> data = Epic("epic55", "object", "test", cache="runs/clips")  # 5 clips of each of 20 objects
>>> action = Epic("epic55", "action", "test", temporal=True)       # each with what came before or after
>>> action[0].segment                                              # where the action is
(9, 16)
"""

import ast
import csv
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .folders import SPLITS, VIDEOS, Fault, Item, Truth, Videos, draw, find
from .names import pick

# The annotations count frames at this rate whatever the camera's, and from 1: start_frame = ⌊60 seconds⌋.
RATE = 60
CLASSES, TEST_CLIPS = 20, 5  # of most clips; of each class (section 4.1)
# Less background on either side of an action than this, seconds, and its clip is never a test clip.
BACKGROUND = 1.0
# Share of a joined clip that the action takes, as in the stage's "moment" task: 4–10 of 16 frames.
SHARE = (0.25, 0.625)

_FILES = ("videos/train/{p}/{v}", "videos/{p}/{v}", "{p}/videos/{v}", "{p}/{v}", "videos/{v}", "{v}")
_FOLDERS = ("frames_rgb_flow/rgb/train/{p}/{v}", "rgb/train/{p}/{v}", "frames/{p}/{v}", "{p}/rgb_frames/{v}")
_FOLDERS += ("{p}/{v}", "frames/{v}", "{v}")


class Epic(Videos):
    """The paper's EPIC-Object and EPIC-Action: the 20 classes of most clips, 5 clips of each to test with.

    Objects are those of `Valid_seg_top20.csv`, with boxes twice a second, each on the sampled frame nearest
    to it in time. Actions are the verbs of `EPIC_train_action_labels.csv`; test clips are drawn among those
    with a second of background (no action at all) right before or after.

    Args:
        root: there or in `annotations/` the CSVs; and one of the videos (`videos/train/P01/P01_01.MP4`),
            folders of their frames at 60 a second (`frames_rgb_flow/rgb/train/P01/P01_01/*.jpg`) and folders
            of the frames of single clips, evenly spread (`clips/<noun>-<verb>-<video>_<uid>/*.png`).
        task: "object" or "action".
        split: "train", "test" or "all".
        temporal: of each action clip a part that is chosen at random, beginning where it begins or ending
            where it ends, joined with the background next to it. The paper does not say which part; here
            the footage is continuous, or the cut would give the place away. Clips without background are
            left out. `segment` then says which frames show the action.
        seed: draws test clips and parts; and, as for `Videos`, the frames if random.
        sampling: as for `Videos`; `random` by default for "train" only.

    Raises:
        ValueError: another task or split, `temporal` for objects, a CSV that is missing or lacks a column.
    """

    def __init__(
        self,
        root: str | Path,
        task: str = "object",
        split: str = "test",
        *,
        temporal: bool = False,
        seed: int = 0,
        **sampling: Any,
    ):
        pick("task", task, ("action",) if temporal else ("action", "object"))
        pick("split", split, SPLITS)
        self.root, self.task, self.temporal = Path(root), task, temporal
        info = _rows(self.root, ("EPIC_video_info.csv",), "video resolution duration")
        videos = {row["video"]: row for row in info}
        rows, key, names = self._labels()
        if unknown := {row["video_id"] for row in rows} - videos.keys():
            raise ValueError(f"root: EPIC_video_info.csv lacks {min(unknown)}, expected all labelled videos")
        counts = Counter(row[key] for row in rows)
        order = sorted(counts, key=lambda c: (-counts[c], len(c), c))[:CLASSES]
        rows = [row for row in rows if row[key] in order]
        gaps = {} if task == "object" else self._background(videos)
        test = set()
        for name in order:
            fit = [r["uid"] for r in rows if r[key] == name and max(gaps.get(r["uid"], [1e9])) >= BACKGROUND]
            test |= {*draw(fit, TEST_CLIPS, seed, name)}
        self.clips = {p.name.rpartition("_")[2]: p for p in sorted(self.root.glob("clips/*_*")) if p.is_dir()}
        where = cache(self._where)
        items = []
        for row in rows:
            uid, video = row["uid"], row["video_id"]
            if split != "all" and (uid in test) != (split == "test"):
                continue
            begin, end = (int(row["start_frame"]) - 1) / RATE, int(row["stop_frame"]) / RATE
            part, path = (begin, end), where(video)
            how: dict[str, Any] = dict(rate=float(RATE))
            if temporal:
                if max(gaps[uid]) < BACKGROUND:
                    continue
                part = _join(begin, end, gaps[uid], np.random.default_rng([seed % 2**32, int(uid)]))
            elif uid in self.clips:
                path, part = self.clips[uid], (None, None)
                count = max(2, sum(1 for _ in path.iterdir()))
                how = dict(rate=(count - 1) / (end - begin - 1 / RATE), first=begin)
            size = tuple(int(n) for n in videos[video]["resolution"].split("x"))
            known = (begin, end, row.get("bounding_boxes", ""), size)
            items.append(Item(f"{video}_{uid}", order.index(row[key]), path, *part, known=known, **how))
        sampling = dict(random=split == "train", seed=seed) | sampling
        super().__init__(items, [names.get(c, c) for c in order], **sampling)

    def _labels(self) -> tuple[list[dict[str, str]], str, dict[str, str]]:
        """Rows of the labels, the column of the class, and names of classes where these are numbers."""
        columns = "video_id start_frame stop_frame"
        if self.task == "object":
            files = ("Valid_seg_top20.csv", "Valid_seg_top50.csv")
            rows = _rows(self.root, files, f"seg_id noun bounding_boxes {columns}")
            return [row | {"uid": row["seg_id"]} for row in rows], "noun", {}
        rows = _rows(self.root, ("EPIC_train_action_labels.csv",), f"uid verb_class {columns}")
        verbs = _rows(self.root, ("EPIC_verb_classes.csv",), "verb_id class_key")
        return rows, "verb_class", {v["verb_id"]: v["class_key"] for v in verbs}

    def _background(self, info: dict[str, dict[str, str]]) -> dict[str, tuple[float, float]]:
        """Seconds without any action right before and after each, by its number."""
        videos = defaultdict(list)
        for row in self._labels()[0]:
            videos[row["video_id"]].append((int(row["start_frame"]), int(row["stop_frame"]), row["uid"]))
        found = {}
        for video, spans in videos.items():
            starts, stops, _ = (np.array(column) for column in zip(*spans, strict=True))
            last = float(info[video]["duration"]) * RATE
            for start, stop, uid in spans:
                before = start - max(stops[starts < start], default=1)
                after = min(starts[stops > stop], default=last) - stop
                found[uid] = (before / RATE, after / RATE)
        return found

    def _where(self, video: str) -> Path:
        """The video, or the folder of its frames; where it should be if there is neither."""
        fill = {"p": video.partition("_")[0], "v": video}
        files = [self.root / f"{f.format(**fill)}{end}" for f in _FILES for end in (".MP4", *VIDEOS)]
        folders = [self.root / f.format(**fill) for f in _FOLDERS]
        there = [p for p in files if p.is_file()] + [p for p in folders if p.is_dir()]
        return [*there, files[0]][0]

    def truth(self, item: Item, numbers: list[int], times: list[float]) -> Truth:
        begin, end, text, size = item.known
        if self.task == "action":
            inside = [t for t, time in enumerate(times) if begin - 1e-3 <= time < end - 1e-3]
            return Truth((), None, (inside[0], inside[-1] + 1) if inside else None)
        nearest: dict[int, tuple[float, list]] = {}
        try:
            for frame, boxes in ast.literal_eval(text).items():
                away = np.abs(np.array(times) - (frame - 1) / RATE)
                t = int(away.argmin())
                if begin - 1e-6 <= (frame - 1) / RATE < end - 1e-6 and away[t] < nearest.get(t, (np.inf,))[0]:
                    nearest[t] = away[t], [(x, y, x + w, y + h) for y, x, h, w in boxes]
        except (ValueError, SyntaxError, TypeError, AttributeError) as error:
            raise ValueError(f"bounding_boxes: got {text[:60]!r} of {item.name}: {error}") from error
        rows = [nearest.get(t, (0, []))[1] for t in range(len(times))]
        return Truth([torch.tensor(r, dtype=torch.float32).reshape(len(r), 4) for r in rows], size)

    def strays(self) -> list[Fault]:
        """Clips in folders of their own that no label speaks of; objects without boxes."""
        known = {row["uid"] for row in self._labels()[0]}
        why = "has no boxes" if self.task == "object" else "has no label"
        return [Fault("unannotated", str(p), why) for uid, p in self.clips.items() if uid not in known]


def _join(begin: float, end: float, gaps: tuple[float, float], rng) -> tuple[float, float]:
    """Begin and end, seconds, of a part of an action with what comes before it, or after it."""
    after = bool(rng.choice([k for k, gap in enumerate(gaps) if gap >= BACKGROUND]))
    share, part = rng.uniform(*SHARE), rng.uniform(0.5, 1) * (end - begin)
    gap = min(part * (1 - share) / share, gaps[after])
    part = min(part, gap * share / (1 - share))
    return (end - part, end + gap) if after else (begin - gap, begin + part)


def _rows(root: Path, names: tuple[str, ...], columns: str) -> list[dict[str, str]]:
    """Lines of an official CSV."""
    path = find(root, *names)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := {*columns.split()} - {*(reader.fieldnames or ())}:
                raise ValueError(f"root: {path.name} lacks the column {min(missing)!r}")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"root: cannot read {str(path)!r} as CSV ({error})") from error
