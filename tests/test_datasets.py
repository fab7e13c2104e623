"""datasets.py: your own videos with boxes from a CSV; data sets by name."""

import pytest
import torch

from steplab.clips import write_video
from steplab.datasets import networks_of, open_dataset, read_records, records
from steplab.stage import Stage

HEADER = "video,frame,x0,y0,x1,y1,label,start,stop"


def patch(path, width, height, count=24, fps=8.0, side=24):
    """A white square on black, moving right and down; its box in each frame."""
    pixels = torch.zeros(3, count, height, width)
    found = []
    for t in range(count):
        x, y = 8 + t * (width - side - 16) // count, 4 + t * (height - side - 8) // count
        pixels[:, t, y : y + side, x : x + side] = 1
        found.append((x, y, x + side, y + side))
    write_video(path, pixels, fps)
    return found


def write_csv(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def seen(frame):
    """x0, y0, x1, y1 of what is white in a frame, to parts of a pixel: at its edges it is half bright."""
    box = []
    for profile in (frame.amax((0, 1)), frame.amax((0, 2))):
        profile = torch.cat([torch.zeros(1), profile, torch.zeros(1)])
        inside = (profile > 0.5).nonzero()[:, 0]
        low, high = int(inside[0]), int(inside[-1])
        before = (profile[low] - 0.5) / (profile[low] - profile[low - 1])
        after = (profile[high] - 0.5) / (profile[high] - profile[high + 1])
        box.append((low - 0.5 - float(before), high - 0.5 + float(after)))
    return [box[0][0], box[1][0], box[0][1], box[1][1]]


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("width, height", [(160, 96), (96, 160), (64, 64), (322, 178)])
def test_boxes_follow_what_they_were_drawn_around(tmp_path, width, height, fit):
    """The box mapped from the video's pixels lies where the square is seen in the clip, in every frame."""
    drawn = patch(tmp_path / "a.mp4", width, height)
    lines = [f"a.mp4,{t},{','.join(map(str, box))},," for t, box in enumerate(drawn)]
    path = write_csv(tmp_path / "b.csv", *lines, header=HEADER.removesuffix(",start,stop") + ",more")
    (record,) = read_records(str(tmp_path / "*.mp4"), path, frames=8, size=48, fit=fit)
    assert record.clip.pixels.shape == (3, 8, 48, 48) and record.name == "a"
    assert (record.label, record.segment, record.mask) == (None, None, None)
    whole = 0
    for t, boxes in enumerate(record.boxes):
        frame = record.clip.pixels[:, t]
        if not len(boxes):
            assert frame.max() < 0.6  # moved out of the square that was cut out
            continue
        (box,) = boxes.tolist()
        assert 0 <= min(box) < max(box) <= 48
        if min(box) > 1 and max(box) < 47:
            assert box == pytest.approx(seen(frame), abs=0.35)
            whole += 1
    assert whole >= 3


def test_frames_without_boxes_and_boxes_out_of_sight(tmp_path):
    """16 frames of 24: 0 2 3 5 6 8 9 … are sampled. Of 160 columns, 32 are cut off on either side."""
    patch(tmp_path / "a.mp4", 160, 96)
    path = write_csv(
        tmp_path / "b.csv",
        "a,0,40,0,60,96,kicks,4,10",
        "a,0,130,10,150,20,kicks,4,10",  # beyond the right edge of the square
        "a,0,0,0,160,96,,,",  # all of the frame: cut at the edges
        "a,1,40,0,60,96,,,",  # never sampled
        "a,3,100,40,150,90,,,",
    )
    (record,) = read_records(str(tmp_path / "a.mp4"), path, frames=16, size=96)
    assert [len(b) for b in record.boxes] == [2, 0, 1] + [0] * 13
    assert record.boxes[0].tolist() == [[8, 0, 28, 96], [0, 0, 96, 96]]
    assert record.boxes[2].tolist() == [[68, 40, 96, 90]]
    assert record.label == "kicks"
    assert record.segment == (3, 7)  # frames 5, 6, 8 and 9


def test_a_short_video_repeats_frames_and_their_boxes(tmp_path):
    drawn = patch(tmp_path / "a.mp4", 64, 64, count=4)
    lines = [f"a.mp4,{t},{','.join(map(str, box))},3,1,2" for t, box in enumerate(drawn)]
    (record,) = read_records(
        str(tmp_path / "a.mp4"), write_csv(tmp_path / "b.csv", *lines), frames=8, size=64
    )
    assert [tuple(b[0].int().tolist()) for b in record.boxes] == [drawn[t] for t in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert (record.label, record.segment) == (3, (2, 4))


def test_what_lies_between_the_frames_sampled(tmp_path):
    patch(tmp_path / "a.mp4", 64, 64)
    path = write_csv(tmp_path / "b.csv", "a.mp4,0,1,1,9,9,,0,1")
    with pytest.warns(UserWarning, match=r"a.mp4: has boxes, but not in the frames sampled: \[6, 18\]"):
        (record,) = read_records(str(tmp_path / "a.mp4"), path, frames=2, size=32)
    assert record.segment is None and not any(map(len, record.boxes))


def test_a_turned_video_with_oblong_pixels_keeps_its_boxes():
    """Numbers only: 96 x 160 stored, a quarter turn, pixels 1.5 times as wide: seen 160 wide and 144 high."""
    from types import SimpleNamespace

    from steplab.clips import Placement, _Layout

    to = _Layout.of(SimpleNamespace(width=96, height=160, rotation=90), 1.5, 72, "crop")
    assert (to.turns, to.shape, to.left, to.top) == (1, (72, 80), 4, 0)
    placed = Placement([0], (to.shape[1] / 160, to.shape[0] / 96), (to.left, to.top))
    boxes = placed.boxes(torch.tensor([[80.0, 48, 100, 60], [0, 0, 8, 9]]), 72)
    assert boxes.tolist() == [[36, 36, 46, 45]]


def test_videos_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        patch(tmp_path / folder / "a.mp4", 64, 64, count=4)
    patch(tmp_path / "x/b.avi", 64, 64, count=4)
    path = write_csv(
        tmp_path / "b.csv", "", "x/a.mp4,,,,,,one,,", "y/a.mp4,,,,,,2,0,4", "b,0,1,1,9,9,four words,,"
    )
    found = read_records(str(tmp_path / "*/*.*"), path, frames=4, size=32)
    assert [(r.label, r.segment) for r in found] == [("one", None), ("four words", None), (2, (0, 4))]
    assert len({r.name for r in found}) == 3 and found[1].name == "b" and len(found[1].boxes[0]) == 1
    with pytest.raises(
        ValueError, match="line 2, column video: got 'a.mp4', expected only one of a.mp4, b.avi"
    ):
        read_records(str(tmp_path / "*/*.*"), write_csv(tmp_path / "c.csv", "a.mp4,,,,,,one,,"))


@pytest.mark.parametrize(
    "line, words",
    [
        ("b.mp4,0,1,1,9,9,,,", "line 3, column video: got 'b.mp4', expected one of a.mp4"),
        (",0,1,1,9,9,,,", "line 3, column video: got ''"),
        ("a.mp4,zero,1,1,9,9,,,", "column frame: got 'zero', expected a whole number"),
        ("a.mp4,-1,1,1,9,9,,,", "column frame: got '-1'"),
        ("a.mp4,1.5,1,1,9,9,,,", "column frame: got '1.5'"),
        ("a.mp4,1,left,1,9,9,,,", "column x0: got 'left', expected a number"),
        ("a.mp4,1,nan,1,9,9,,,", "column x0: got 'nan'"),
        ("a.mp4,1,1,1,,9,,,", "column x1: got ''"),
        ("a.mp4,1,1,1", "column x1: got ''"),
        ("a.mp4,1,9,1,9,5,,,", "column x1: got 9.0, expected more than x0 = 9"),
        ("a.mp4,1,1,7,9,5,,,", "column y1: got 5.0, expected more than y0 = 7"),
        ("a.mp4,1,1,1,9,9,kicks,,", "column label: got 'kicks', expected 'waves', as told before"),
        ("a.mp4,1,1,1,9,9,,3,", "column stop: got ''"),
        ("a.mp4,1,1,1,9,9,,5,5", "column stop: got 5, expected more than start = 5"),
        ("a.mp4,1,1,1,9,9,,0,5", r"column start: got \(0, 5\), expected \(0, 4\)"),
    ],
)
def test_a_bad_line_is_named_with_its_column(tmp_path, line, words):
    (tmp_path / "a.mp4").write_bytes(b"is not opened: the CSV is read first")
    path = write_csv(tmp_path / "b.csv", "a.mp4,0,1,1,9,9,waves,0,4", line)
    with pytest.raises(ValueError, match=f"boxes: b.csv, .*{words}"):
        read_records(str(tmp_path / "a.mp4"), path)


def test_a_bad_csv_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    for text, words in (
        ("", "column video"),
        ("video,frame,x0,y0,x1\n", r"line 1, column y1: got \['video'"),
    ):
        (tmp_path / "b.csv").write_text(text)
        with pytest.raises(ValueError, match=f"{words}.*expected a column of that name"):
            read_records(str(tmp_path / "a.mp4"), tmp_path / "b.csv")
    for content in (b"\xff\xfe\x00", HEADER.encode() + b'\n"a'):
        (tmp_path / "b.csv").write_bytes(content)
        with pytest.raises(ValueError, match="boxes: cannot read"):
            read_records(str(tmp_path / "a.mp4"), tmp_path / "b.csv")
    with pytest.raises(ValueError, match="boxes: cannot read"):
        read_records(str(tmp_path / "a.mp4"), tmp_path / "none.csv")
    with pytest.raises(ValueError, match="pattern: got .*, expected at least one video"):
        read_records(str(tmp_path / "*.webm"))


def test_a_spreadsheets_csv_is_read(tmp_path):
    """A byte order mark, spaces, Windows line ends."""
    patch(tmp_path / "a.mp4", 64, 64, count=4)
    path = tmp_path / "b.csv"
    path.write_bytes(b"\xef\xbb\xbfvideo, frame, x0, y0, x1, y1\r\na.mp4 , 0 , 1.5, 2, 9, 10\r\n\r\n")
    (record,) = read_records(str(tmp_path / "a.mp4"), path, frames=4, size=64)
    assert record.boxes[0].tolist() == [[1.5, 2, 9, 10]]


def test_records_are_yours_or_the_stages(tmp_path):
    patch(tmp_path / "a.mp4", 64, 64, count=4)
    (own,) = records(str(tmp_path / "*.mp4"), "", "object", 3, frames=4, size=32)
    assert own.clip.pixels.shape == (3, 4, 32, 32) and own.name == "a"
    stage = records("", "", "object", 2, seed=5)
    assert [r.name for r in stage] == ["object-test-5-0", "object-test-5-1"]
    assert torch.equal(stage[1].clip.pixels, Stage("object", "test", 5)[1].clip.pixels)
    assert records(count=1)[0].name == "action-test-1-0"
    with pytest.raises(ValueError, match="boxes: got 'b.csv' without clips"):
        records("", "b.csv")


def test_networks_by_text_or_the_two_families():
    assert networks_of("", "moment") == ["stage-moment-r2plus1d", "stage-moment-vgg16lstm"]
    assert networks_of(" a, my_module:make  c.safetensors", "moment") == [
        "a",
        "my_module:make",
        "c.safetensors",
    ]
    with pytest.raises(ValueError, match="task: got 'film'"):
        networks_of(" ", "film")


def test_a_data_set_by_name(tmp_path):
    (tmp_path / "waves").mkdir()
    patch(tmp_path / "waves/a.mp4", 64, 64, count=4)
    data = open_dataset("folders", tmp_path, "train", frames=4, size=32)
    assert data.random and data[0].clip.pixels.shape == (3, 4, 32, 32)
    assert not open_dataset("folders", tmp_path).random
    with pytest.raises(ValueError, match="name: got 'ucf', expected one of ucf101-24, epic-object"):
        open_dataset("ucf", tmp_path)
