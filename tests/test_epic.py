"""epic.py: EPIC-Kitchens-55 in its official layout, rendered; its real annotations and clips."""

import ast
import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image

from steplab.clips import write_video
from steplab.epic import BACKGROUND, Epic

ACTIONS = "uid,participant_id,video_id,start_frame,stop_frame,verb,verb_class,noun,noun_class"
BOXES = "seg_id,video_id,noun,noun_label,verb,start_frame,stop_frame,bounding_boxes"


def layout(root, actions=(), boxes=(), duration=8.0):
    """The official CSVs, of the columns that matter and some that do not."""
    notes = root / "annotations"
    notes.mkdir(parents=True, exist_ok=True)
    verbs = ["verb_id,class_key,verbs", *(f"{k},verb {k},\"['v']\"" for k in range(30))]
    info = ["video,resolution,duration,fps"]
    info += [f"P0{p}_01,1280x720,{duration},59.94" for p in range(1, 4)]
    for name, lines in (
        ("EPIC_video_info.csv", info),
        ("EPIC_verb_classes.csv", verbs),
        ("EPIC_train_action_labels.csv", [ACTIONS, *actions]),
        ("Valid_seg_top20.csv", [BOXES, *boxes]),
    ):
        (notes / name).write_text("\n".join(lines) + "\n")
    return root


def action(uid, start, stop, verb=0, video="P01_01"):
    return f"{uid},{video[:3]},{video},{start},{stop},do,{verb},pan,1"


def many(counts, video="P02_01"):
    """For each verb so many clips of one second, with one second between them."""
    verbs = [verb for verb, count in enumerate(counts) for _ in range(count)]
    return [action(k, 121 * k + 1, 121 * k + 60, verb, video) for k, verb in enumerate(verbs)]


def film(path, count=8 * 30, lit=(), fps=30):
    """Black, white in the frames `lit` (numbered at 60 a second from 1); a grey square moves to the right."""
    pixels = torch.zeros(3, count, 36, 64)
    for t in range(count):
        if any(start <= 1 + t * 60 / fps <= stop for start, stop in lit):
            pixels[:, t] = 1
        pixels[:, t, 9:27, t % 40 : t % 40 + 18] = 0.5
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        write_video(path, pixels, fps)
        return
    path.mkdir()
    for t, frame in enumerate(pixels.unbind(1), 1):
        picture = (frame.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(picture).save(path / f"frame_{t:010d}.jpg", quality=95)


def test_the_largest_classes_and_the_split(tmp_path):
    """22 verbs with 4 to 25 clips: the two smallest are left out; 5 clips a class are for testing."""
    root = layout(tmp_path, many(range(25, 3, -1)), duration=1e5)
    data = {split: Epic(root, "action", split, seed=1) for split in ("train", "test", "all")}
    assert data["all"].classes == tuple(f"verb {k}" for k in range(20))
    labels = [[i.label for i in data[split].items] for split in ("train", "test", "all")]
    assert [labels[1].count(k) for k in range(20)] == [5] * 20
    assert [labels[2].count(k) for k in range(20)] == [*range(25, 5, -1)]
    names = {split: {i.name for i in d.items} for split, d in data.items()}
    assert names["train"] | names["test"] == names["all"] and not names["train"] & names["test"]
    assert data["train"].random and not data["test"].random
    drawn = [{i.name for i in Epic(root, "action", seed=seed).items} for seed in (1, 1, 2)]
    assert drawn[0] == names["test"] == drawn[1] != drawn[2]


def test_test_clips_of_actions_have_background_beside_them(tmp_path):
    """Clips 0 to 9 follow each other without a gap, but for the gap of a second between 3 and 4."""
    spans = [(1 + 60 * k + 61 * (k > 3), 60 + 60 * k + 61 * (k > 3)) for k in range(10)]
    root = layout(tmp_path, [action(k, *span) for k, span in enumerate(spans)], duration=661 / 60)
    assert [i.name for i in Epic(root, "action").items] == ["P01_01_3", "P01_01_4"]
    assert len(Epic(root, "action", "train")) == 8


@pytest.mark.parametrize("where", ["videos/train/P01/P01_01.MP4", "frames_rgb_flow/rgb/train/P01/P01_01"])
def test_the_part_joined_with_background_is_continuous_and_its_segment_true(tmp_path, where):
    """The action is lit. Before the first there is no background, after the last there is."""
    spans = [(1, 100), (201, 260), (381, 430)]
    root = layout(tmp_path, [action(k, *span) for k, span in enumerate(spans)])
    film(tmp_path / where, 480 if "frames" in where else 240, spans, 60 if "frames" in where else 30)
    first, last, lengths = 0, 0, set()
    for seed in range(6):
        records = list(Epic(root, "action", temporal=True, seed=seed, size=36))
        assert [r.name for r in records] == ["P01_01_0", "P01_01_1", "P01_01_2"]
        for record, (start, stop) in zip(records, spans, strict=True):
            lit = record.clip.pixels[:, :, :6].mean((0, 2, 3)) > 0.5
            begin, end = record.segment
            assert lit.nonzero()[:, 0].tolist() == list(range(begin, end))
            assert 3 <= end - begin <= 11 and (begin == 0) != (end == 16)
            gaps = record.clip.times.diff()
            assert gaps.max() - gaps.min() < 1.5 / 30
            shown = record.clip.times[begin:end]
            assert (start - 2) / 60 <= shown[0] and shown[-1] <= stop / 60
            first, last = first + (begin == 0), last + (end == 16)
            lengths.add(end - begin)
        assert records[0].segment[0] == 0
    assert first > 7 and last > 2 and len(lengths) > 2
    assert BACKGROUND == 1.0
    whole = Epic(root, "action", size=36)
    assert [r.segment for r in whole] == [(0, 16)] * 3
    assert all(r.clip.pixels[:, :, :6].mean((0, 2, 3)).min() > 0.5 for r in whole)


def boxed(root, where, start, stop, fps=30):
    """A video with a square that moves, and its boxes every 30 frames, in pixels of 1280 x 720."""
    film(root / where, 8 * fps, fps=fps)
    left = {f: (f - 1) * fps // 60 % 40 * 20 for f in range(1, 481, 30)}
    text = {f: [(180, x, 360, 360)] for f, x in left.items()}
    layout(root, boxes=[f'7,P01_01,pan,0,do,{start},{stop},"{text}"'])
    return left


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("where, fps", [("P01/P01_01.mp4", 30), ("P01/P01_01", 60)])
def test_boxes_sit_on_the_object(tmp_path, where, fps, fit):
    """The middles of twelve stretches of 30 frames are frames with a box."""
    boxed(tmp_path, where, 76, 435, fps)
    (record,) = Epic(tmp_path, frames=12, size=36, fit=fit)
    assert (record.name, record.label, record.segment) == ("P01_01_7", 0, None)
    for pixels, boxes in zip(record.clip.pixels.unbind(1), record.boxes, strict=True):
        rows, columns = (pixels.mean(0) > 0.25).nonzero().unbind(1)
        bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes.tolist() == [pytest.approx([float(v) for v in bright], abs=1.1)]


@pytest.mark.parametrize("frames, count", [(4, 4), (40, 13)])
def test_boxes_go_to_the_nearest_of_the_frames_sampled(tmp_path, frames, count):
    """13 frames with boxes in the clip: of several that are nearest to one frame the nearest is taken."""
    left = boxed(tmp_path, "P01_01.mp4", 61, 450)
    (record,) = Epic(tmp_path, frames=frames, size=40, fit="stretch")
    assert sum(map(len, record.boxes)) == count and max(map(len, record.boxes)) == 1
    times = record.clip.times.tolist()
    for f in range(61, 451, 30):
        nearest = min(range(frames), key=lambda t: abs(times[t] - (f - 1) / 60))
        rivals = [g for g in left if abs(times[nearest] - (g - 1) / 60) < abs(times[nearest] - (f - 1) / 60)]
        if not rivals:
            assert record.boxes[nearest][0, 0] == pytest.approx(left[f] * 40 / 1280)


def test_all_that_is_wrong_is_listed(tmp_path):
    boxes = ["{1: [(0, 0, 9, 9)]}", "{1: [(0, 0, 9, 9)]}", "{1: [(0, 0", "{1: [(0, 0, 9, 9)]}"]
    rows = [f'{k},P01_01,pan,0,do,{1 + 60 * k},{60 + 60 * k},"{text}"' for k, text in enumerate(boxes)]
    rows += [f'{k},P02_01,pan,0,do,1,60,"{boxes[0]}"' for k in (4, 5)]
    film(tmp_path / "P01_01.mp4", 95)
    film(tmp_path / "clips/pan-do-P03_01_99", 16)
    film(tmp_path / "clips/pan-do-P02_01_5", 16)
    data = Epic(layout(tmp_path, boxes=rows), "object", "all", size=16)
    found = [(f.kind, os.path.basename(f.path), f.clips) for f in data.check()]
    assert found == [
        ("unannotated", "pan-do-P03_01_99", 1),
        ("missing", "P02_01.MP4", 1),
        ("short", "P01_01.mp4", 1),
        ("unannotated", "P01_01.mp4", 1),
    ]
    with pytest.raises(ValueError, match="bounding_boxes: got .* of P01_01_2"):
        data[2]


def test_what_is_no_epic_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected EPIC_video_info.csv there or in annotations/"):
        Epic(tmp_path)
    layout(tmp_path, [action(0, 1, 60, video="P09_01")])
    with pytest.raises(ValueError, match="EPIC_video_info.csv lacks P09_01"):
        Epic(tmp_path, "action")
    with pytest.raises(ValueError, match="items: got none"):
        Epic(tmp_path)
    with pytest.raises(ValueError, match="task: got 'verb', expected one of action, object"):
        Epic(tmp_path, "verb")
    with pytest.raises(ValueError, match="task: got 'object', expected one of action"):
        Epic(tmp_path, temporal=True)
    with pytest.raises(ValueError, match="split: got 'val'"):
        Epic(tmp_path, split="val")
    (tmp_path / "annotations/Valid_seg_top20.csv").write_text("seg_id,noun\n")
    with pytest.raises(ValueError, match="Valid_seg_top20.csv lacks the column 'bounding_boxes'"):
        Epic(tmp_path)


def test_the_real_labels(shared):
    objects = {s: Epic(shared / "epic55", "object", s) for s in ("train", "test", "all")}
    assert [len(objects[s]) for s in ("test", "all")] == [100, 8797] and len(objects["train"]) == 8697
    ranks = (shared / "epic55/annotations/Valid_seg_top20_noun_labels.csv").read_text().splitlines()[1:]
    counts = [[i.label for i in objects["all"].items].count(k) for k in range(20)]
    found = [f"{c},{k},{n}" for k, (c, n) in enumerate(zip(objects["all"].classes, counts, strict=True))]
    assert found == ranks
    test = Epic(shared / "epic55", "action")
    joined = Epic(shared / "epic55", "action", temporal=True)
    assert [i.name for i in test.items] == [i.name for i in joined.items] and len(test) == 100
    assert [[i.label for i in test.items].count(k) for k in range(20)] == [5] * 20
    assert test.classes[:4] == ("put", "take", "wash", "open")
    for one, more in zip(test.items, joined.items, strict=True):
        assert (more.start < one.start - 0.1) != (more.stop > one.stop + 0.1)
        assert more.start < one.stop and more.stop > one.start
        shown = min(one.stop, more.stop) - max(one.start, more.start)
        assert 0.2 < shown / (more.stop - more.start) < 0.7


def test_real_clips_have_their_boxes_on_the_object(shared, tmp_path):
    """The frames that README names, in folders of single clips; `food` is no class of the twenty largest."""
    names = {"spoon": [6], "cupboard": [2, 11], "food": range(16)}
    uids = {"spoon": "37608", "cupboard": "37623", "food": "6751"}
    os.symlink(shared / "epic55/clips", tmp_path / "clips")
    for name in ("EPIC_video_info.csv", "Valid_seg_top50.csv"):
        lines = (shared / "epic55/annotations" / name).read_text().splitlines()
        kept = [n for n in lines[1:] if name.startswith("EPIC") or n.partition(",")[0] in uids.values()]
        (tmp_path / name).write_text("\n".join([lines[0], *kept]))
    data = Epic(tmp_path, "object", "all", size=128)
    for record in data:
        noun = data.classes[record.label]
        boxes = {t: b.tolist() for t, b in enumerate(record.boxes) if len(b)}
        if noun == "food":
            assert len(boxes) == 15
            continue
        assert list(boxes) == list(names[noun])
        with (tmp_path / "Valid_seg_top50.csv").open() as file:
            text = next(r["bounding_boxes"] for r in csv.DictReader(file) if r["seg_id"] == uids[noun])
        (y, x, h, w), *_ = next(iter(ast.literal_eval(text).values()))
        want = np.array([x, y, x + w, y + h]) * ([172 / 1920, 128 / 1080] * 2) - [22, 0, 22, 0]
        want = np.clip(want, 0, 128)
        assert next(iter(boxes.values()))[0] == pytest.approx(want.tolist(), abs=0.2)
