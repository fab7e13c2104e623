"""datasets.py: annotations from a pickle that may come from anywhere."""

import os
import pickle

import numpy as np
import pytest
import torch

from steplab.datasets import UCF101_24, read_ucf101_annotations


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
