"""ucf101.py: annotations from a pickle of any origin; tubes as boxes in the frames sampled."""

import os
import pickle

import numpy as np
import pytest
import torch

from steplab.clips import write_video
from steplab.ucf101 import UCF101_24, Ucf101, read_ucf101_annotations


def video(boxes, first=2, label=5):
    tube = {"label": label, "sf": first, "ef": first + len(boxes), "boxes": boxes}
    return {"annotations": [tube], "numf": 20, "label": label}


def write(path, content, protocol=3):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("kind", ["uint8", "uint16", ">u2", "int64", "float32"])
def test_reads_boxes_of_any_number_type(tmp_path, protocol, kind):
    boxes = np.array([[200, 100, 90, 140], [1, 2, 3, 4], [5, 6, 7, 8]], dtype=kind)
    path = write(
        tmp_path / "a.pkl",
        {"Diving/v_1": video(boxes), "Diving/v_2": video(np.asfortranarray(boxes))},
        protocol,
    )
    read = read_ucf101_annotations(path)
    for name in ("Diving/v_1", "Diving/v_2"):
        tube = read[name].tubes[0]
        assert (tube.segment, tube.label, read[name].frames) == ((2, 5), 5, 20)
        # 200 + 90 does not fit into 8 bits
        assert tube.boxes.tolist() == [[200, 100, 290, 240], [1, 2, 4, 6], [5, 6, 12, 14]]


def test_scalars_and_frames(tmp_path):
    facts = video(np.ones((3, 4), np.uint8)) | {"numf": np.int64(20), "label": np.uint8(5)}
    facts["annotations"] *= 2
    read = read_ucf101_annotations(write(tmp_path / "a.pkl", {np.str_("v"): facts}))["v"]
    assert (read.frames, read.label) == (20, 5)
    assert [len(read.boxes(frame)) for frame in (1, 2, 4, 5)] == [0, 2, 2, 0]
    assert torch.equal(read.boxes(3)[0], torch.tensor([1.0, 1, 2, 2]))


@pytest.mark.parametrize("place", ["alone", "as a name", "as boxes", "in an array's state"])
def test_a_planted_payload_does_not_run(tmp_path, place):
    ran = tmp_path / "ran"
    payload = Call(os.mkdir, str(ran))
    content = {
        "alone": payload,
        "as a name": {Call(os.mkdir, str(ran)): video(np.ones((3, 4), np.uint8))},
        "as boxes": {"v": video([payload, 1, 2])},
        "in an array's state": {"v": video(np.array([payload], dtype=object))},
    }[place]
    path = write(tmp_path / "a.pkl", content)
    with pytest.raises(ValueError, match=r"a\.pkl is no file of UCF101-24 annotations"):
        read_ucf101_annotations(path)
    assert not ran.exists()
    if place == "alone":  # the control: the payload is live
        pickle.loads(path.read_bytes())
        assert ran.exists()


@pytest.mark.parametrize("function", [eval, np.load, np.frombuffer, np.ndarray.dumps, getattr])
def test_only_arrays_are_understood(tmp_path, function):
    with pytest.raises(ValueError, match="it asks for"):
        read_ucf101_annotations(write(tmp_path / "a.pkl", {"v": Call(function, "1")}, protocol=4))


@pytest.mark.parametrize(
    "content",
    [
        3,
        {"v": 3},
        {"v": {"label": 1, "numf": 3}},
        {"v": video(np.ones((3, 5), np.uint8))},
        {"v": video(np.ones((3, 4), np.uint8), first=-1)},
        {"v": video(np.array(["a"] * 12).reshape(3, 4))},
        {
            "v": video(np.ones((3, 4), np.uint8))
            | {"annotations": [{"label": 1, "sf": 0, "ef": 9, "boxes": np.ones((3, 4))}]}
        },
    ],
)
def test_other_contents_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match="is no file of UCF101-24 annotations"):
        read_ucf101_annotations(write(tmp_path / "a.pkl", content))


def test_damaged_and_missing_files_are_refused(tmp_path):
    whole = write(tmp_path / "a.pkl", {"v": video(np.ones((3, 4), np.uint8))}).read_bytes()
    cut = tmp_path / "cut.pkl"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is no file"):
            read_ucf101_annotations(cut)
    with pytest.raises(ValueError, match="cannot read"):
        read_ucf101_annotations(tmp_path / "none.pkl")


def test_the_real_annotations(shared):
    videos = read_ucf101_annotations(shared / "ucf101/annotations/pyannot.pkl")
    tubes = [tube for video in videos.values() for tube in video.tubes]
    assert (len(videos), len(tubes), sum(len(tube.boxes) for tube in tubes)) == (3194, 4458, 573_862)
    assert sum(len(video.tubes) == 1 for video in videos.values()) == 2479
    assert max(len(video.tubes) for video in videos.values()) == 10
    assert all(name.startswith(f"{UCF101_24[video.label]}/v_") for name, video in videos.items())
    every = torch.cat([tube.boxes for tube in tubes])
    assert (every[:, 2:] >= every[:, :2]).all() and every.min() >= 0
    assert every[:, 2].max() <= 321 and every[:, 3].max() <= 241
    test = (shared / "ucf101/annotations/testlist01.txt").read_text().split()
    assert len(test) == 910 and {name.removesuffix(".avi") for name in test} <= set(videos)


# ----------------------------------------------------------------------------------------- the data set


def tube(boxes, first=0):
    return {"label": 5, "sf": first, "ef": first + len(boxes), "boxes": np.array(boxes)}


def square(path, boxes, scale=1):
    """White squares on black, one to a frame: x, y, w, h in 320 x 240, drawn `scale` times as large."""
    pixels = torch.zeros(3, len(boxes), 240 * scale // 2, 320 * scale // 2)
    for t, box in enumerate(boxes):
        x, y, w, h = (int(v) * scale // 2 for v in box)
        pixels[:, t, y : y + h, x : x + w] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, pixels, 25)


def layout(root, videos, test=()):
    """The official structure: videos by name, each a list of tubes."""
    facts = {n: {"annotations": tubes, "numf": 24, "label": 5} for n, tubes in videos.items()}
    write(root / "pyannot.pkl", facts)
    (root / "testlist01.txt").write_text("".join(f"{name}.avi\n" for name in test))
    return root


BOXES = np.array([[40 + 8 * t, 30 + 2 * t, 90, 60] for t in range(24)], np.uint8)  # ends at 224 + 90 > 255


@pytest.mark.parametrize("scale", [1, 2, 3])  # the video at half the size of the annotations, the same, more
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_boxes_sit_on_what_they_were_drawn_around(tmp_path, fit, scale):
    name = "Diving/v_Diving_g01_c01"
    square(tmp_path / f"{name}.avi", BOXES, scale)
    layout(tmp_path, {name: [tube(BOXES)]}, [name])
    (record,) = Ucf101(tmp_path, "test", frames=8, size=60, fit=fit)
    assert (record.label, record.segment, record.name) == (5, (0, 8), "v_Diving_g01_c01")
    for t, boxes in enumerate(record.boxes):
        x0, y0, x1, y1 = boxes[0].tolist()
        frame = record.clip.pixels[:, t].mean(0)
        rows, columns = (frame > 0.5).nonzero().unbind(1)
        bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert [x0, y0, x1, y1] == pytest.approx([float(b) for b in bright], abs=1.1)
    assert x1 > 255 * 60 / 320 or fit == "crop"  # what would have wrapped in 8 bits did not


def test_actors_and_the_part_in_which_they_act(tmp_path):
    """Of 24 frames, 8 are sampled: 1 4 7 10 13 16 19 22."""
    name = "Diving/v_Diving_g01_c01"
    square(tmp_path / "videos" / f"{name}.avi", BOXES)
    still = [[100, 100, 40, 40]]
    tubes = [tube(still * 4, 4), tube(still * 3, 7), tube(still * 2, 16), tube(still, 20)]
    layout(tmp_path, {name: tubes, "Diving/v_b": [tube(still, 20)]}, [name])
    (record,) = Ucf101(tmp_path, frames=8, size=60)
    assert [len(b) for b in record.boxes] == [0, 1, 2, 0, 0, 1, 0, 0]
    assert record.segment == (1, 6)
    train = Ucf101(tmp_path, "train")
    assert [item.name for item in train.items] == ["v_b"] and train.random
    with pytest.raises(ValueError, match="split: got 'train', expected 'test'"):
        train.paper_subset()
    with pytest.raises(ValueError, match="split: got 'val'"):
        Ucf101(tmp_path, "val")


def test_all_that_is_wrong_is_listed(tmp_path):
    names = [f"Diving/v_Diving_g01_c0{k}" for k in range(1, 5)]
    for name in [*names[:3], "Diving/v_Diving_g02_c01"]:
        square(tmp_path / f"{name}.avi", BOXES)
    square(tmp_path / f"{names[1]}.avi", BOXES[:18])
    (tmp_path / f"{names[2]}.avi").write_bytes(b"not a video" * 100)
    layout(
        tmp_path, {n: [tube(BOXES)] for n in names}, [*names[:2], "Biking/v_Biking_g01_c01", "Archery/v_a"]
    )
    data = Ucf101(tmp_path, "all", frames=8, size=32)
    found = [(f.kind, f.path.rpartition("/")[2]) for f in data.check()]
    assert found == [
        ("unannotated", "v_Biking_g01_c01.avi"),
        ("unannotated", "v_Diving_g02_c01.avi"),
        ("corrupt", "v_Diving_g01_c03.avi"),
        ("missing", "v_Diving_g01_c04.avi"),
        ("short", "v_Diving_g01_c02.avi"),
    ]
    assert "holds 18 frames, annotated are 24" in data.check()[-1].why


def test_what_is_no_ucf101_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected pyannot.pkl there or in annotations/"):
        Ucf101(tmp_path)
    layout(tmp_path, {"Diving/v_a": [tube(BOXES)]}, ["Diving/v_b"])
    with pytest.raises(ValueError, match="testlist01.txt names none of pyannot.pkl"):
        Ucf101(tmp_path)


def test_the_real_splits_and_the_papers_subset(shared):
    test, train = (Ucf101(shared / "ucf101", split) for split in ("test", "train"))
    assert (len(test), len(train)) == (910, 2284)
    assert not {i.name for i in test.items} & {i.name for i in train.items}
    subset = test.paper_subset(seed=3)
    labels = [item.label for item in subset.items]
    assert len(labels) == 120 and all(labels.count(k) == 5 for k in range(24))
    names = [[i.name for i in test.paper_subset(seed).items] for seed in (3, 3, 4)]
    assert names[0] == names[1] != names[2] and len(test) == 910


def redness(record, shift):
    """How much redder the middle of the boxes is than their rows, with the boxes moved to the side."""
    found = []
    for pixels, boxes in zip(record.clip.pixels.unbind(1), record.boxes, strict=True):
        for x0, y0, x1, y1 in boxes.tolist():
            rows = (pixels[0] - pixels[2])[int(y0) : int(y1)]
            middle, half = (x0 + x1) / 2 + shift, (x1 - x0) / 4
            part = rows[:, max(int(middle - half), 0) : int(middle + half)]
            found.append(part.mean() - rows.mean())
    return float(torch.stack(found).mean())


def test_real_videos_have_their_boxes_on_the_actor(shared):
    """Skin is redder than a pool: the boxes are where they are the reddest."""
    for record in Ucf101(shared / "ucf101", "all").subset():
        first, stop = record.segment
        assert 0 <= first < stop <= 16 and all(len(record.boxes[t]) == 1 for t in range(first, stop))
        if record.name in ("v_Diving_g01_c01", "v_Diving_g01_c02"):
            assert redness(record, 0) > 0.02 + max(redness(record, shift) for shift in (-18, 18))
