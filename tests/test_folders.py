"""folders.py: what is read, kept and found wrong, on rendered videos in folders by label."""

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from steplab import folders
from steplab.__main__ import main
from steplab.clips import ClipError, read_clip, write_video
from steplab.folders import Folders, Item, Videos


def shades(count, height=24, width=32):
    """Frame t of a clip: its grey level is its place in time; the left half is darker."""
    pixels = torch.linspace(0.1, 1, count)[None, :, None, None].repeat(3, 1, height, width)
    pixels[..., : width // 2] *= 0.5
    return pixels


def film(path, count=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, shades(count), 25)


def pictures(folder, count=16, name="{:09d}.png", skip=()):
    folder.mkdir(parents=True, exist_ok=True)
    for k, frame in enumerate(shades(count).unbind(1), 1):
        if k not in skip:
            picture = (frame.permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(picture).save(folder / name.format(k))


@pytest.fixture
def root(tmp_path):
    film(tmp_path / "data/ironing/b.mp4")
    film(tmp_path / "data/abseiling/a.webm", 40)
    pictures(tmp_path / "data/abseiling/frames", 32, "img{}.jpg")  # not padded: 10 before 2 by name
    pictures(tmp_path / "data/playing guitar-2enXX9-rIp0_7_10")
    (tmp_path / "data/abseiling/notes.txt").write_text("no video")
    (tmp_path / "data/abseiling/cover.jpg").write_text("no frame")
    (tmp_path / "data/.hidden").mkdir()
    return tmp_path / "data"


def level(record):
    return record.clip.pixels[..., -4:].mean((0, 2, 3))


def test_labels_are_folders_and_clips_are_those_of_read_clip(root):
    data = Folders(root, frames=8, size=24)
    assert data.classes == ("abseiling", "ironing", "playing guitar")
    told = [(r.name, r.label, r.segment, r.mask) for r in data]
    names = ["abseiling/a.webm", "abseiling/frames", "ironing/b.mp4", "playing guitar-2enXX9-rIp0_7_10"]
    assert told == [(n, k, None, None) for n, k in zip(names, (0, 0, 1, 2), strict=True)]
    clip = read_clip(root / names[0], 8, 20)
    small = Folders(root, frames=8, size=20)[0].clip.pixels
    assert 0 < (small - clip.pixels).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(data[0].clip.times, clip.times) and data[0].clip.source == "a.webm"
    assert [tuple(b.shape) for b in data[0].boxes] == [(0, 4)] * 8
    with pytest.raises(ValueError, match="classes: got 2 without 'playing guitar'"):
        Folders(root, classes=["ironing", "abseiling"])
    assert Folders(root, classes=["x", "playing guitar", "ironing", "abseiling"])[3].label == 1


def test_frames_in_folders_are_taken_by_their_numbers(root):
    data = Folders(root, frames=8, size=24, rate=10)
    for index, count in ((1, 32), (3, 16)):
        middles = (np.arange(8) * count // 8) + count // 16  # counted from 0
        np.testing.assert_allclose(level(data[index]), shades(count)[0, middles, 0, -1], atol=0.02)
        np.testing.assert_allclose(data[index].clip.times, middles / 10, atol=1e-6)


def test_training_takes_any_frame_of_each_stretch_and_the_seed_says_which(root, tmp_path):
    data = Folders(root, frames=8, size=24, random=True, seed=1, cache=tmp_path)
    first, again = data[2], data[2]
    assert torch.equal(first.clip.pixels, again.clip.pixels)
    assert torch.equal(data.subset(["ironing/b.mp4"])[0].clip.times, first.clip.times)
    film(root / "ironing/c.mp4")
    other = Folders(root, frames=8, size=24, random=True, seed=1)[3]
    assert other.name == "ironing/c.mp4" and not torch.equal(other.clip.times, first.clip.times)
    seen = []
    for data.seed in range(30):
        record = data[2]
        numbers = (record.clip.times * 25).round().int()
        np.testing.assert_allclose(level(record), shades(80)[0, numbers, 0, -1], atol=0.03)
        assert (numbers // 10).tolist() == list(range(8))
        seen.append(numbers % 10)
    assert torch.stack(seen).unique().tolist() == [1, 3, 5, 7, 9]
    assert len(torch.stack(seen).unique(dim=0)) > 25


def test_the_cache_changes_nothing_and_decodes_once(root, tmp_path, monkeypatch):
    plain, kept = (Folders(root, frames=8, size=24, cache=c) for c in (None, tmp_path / "cache"))
    want, first = list(plain), list(kept)
    files = sorted((tmp_path / "cache").rglob("*"))
    monkeypatch.setattr(folders, "read_clip", None)  # nothing may be decoded any more
    second = list(Folders(root, frames=8, size=24, cache=tmp_path / "cache"))
    for a, b, c in zip(want, first, second, strict=True):
        assert torch.equal(a.clip.pixels, b.clip.pixels) and torch.equal(b.clip.pixels, c.clip.pixels)
        assert torch.equal(a.clip.times, c.clip.times)
    assert len([p for p in files if p.is_file()]) == 4
    for other in ({"size": 16}, {"frames": 4}, {"fit": "stretch"}, {"random": True}):
        with pytest.raises(TypeError):  # another question, another entry
            Folders(root, **({"frames": 8, "size": 24, "cache": tmp_path / "cache"} | other))[0]


def test_a_torn_entry_and_a_changed_video_are_read_anew(root, tmp_path):
    data = Folders(root, frames=8, size=24, cache=tmp_path / "cache").subset(["ironing/b.mp4"])
    want = data[0].clip.pixels
    (entry,) = (tmp_path / "cache").rglob("*.safetensors")
    whole = entry.read_bytes()
    for torn in (whole[:-100], whole[:5], b"", b"{}" * 500):
        entry.write_bytes(torn)
        assert torch.equal(data[0].clip.pixels, want) and entry.read_bytes() == whole
    film(root / "ironing/b.mp4", 20)
    assert data[0].clip.times.max() < 0.8 and len([*(tmp_path / "cache").rglob("*.safetensors")]) == 2


def test_a_cache_that_cannot_be_written_is_done_without(root, tmp_path):
    (tmp_path / "file").write_text("")
    data = Folders(root, frames=8, size=24, cache=tmp_path / "file")
    with pytest.warns(UserWarning, match="cache: .*file cannot be written to"):
        assert not data.check()
        assert torch.equal(data[0].clip.pixels, Folders(root, frames=8, size=24)[0].clip.pixels)


def test_workers_read_what_one_process_reads(root, tmp_path):
    data = Folders(root, frames=8, size=24, random=True, cache=tmp_path / "cache")
    batches = DataLoader(data, 3, num_workers=2, collate_fn=list)
    for got, want in zip([r for batch in batches for r in batch], data, strict=True):
        assert got.name == want.name and torch.equal(got.clip.pixels, want.clip.pixels)


def spoil(root):
    """One video of each kind of fault."""
    noise = torch.rand(3, 60, 48, 64, generator=torch.Generator().manual_seed(0))
    whole = write_video(root / "ironing/cut.avi", noise, 25).read_bytes()
    (root / "ironing/cut.avi").write_bytes(whole[: len(whole) // 2])
    (root / "ironing/text.mp4").write_text("This is no video.")
    (root / "ironing/none").mkdir()
    (root / "ironing/gone.mp4").symlink_to(root / "nowhere")
    film(root / "ironing/few.mp4", 5)
    pictures(root / "ironing/gaps", 32, skip=range(8, 20))
    pictures(root / "ironing/damaged")
    (root / "ironing/damaged/000000008.png").write_bytes(b"\x89PNG")
    return ["damaged", "text.mp4", "gaps", "gone.mp4", "cut.avi", "few.mp4", "none"]


def test_all_faults_are_listed(root, capsys):
    assert main(["data", "check", str(root), "--dataset", "folders"]) == 0
    assert "4 clips" in capsys.readouterr().out
    names = spoil(root)
    assert main(["data", "check", str(root), "--jobs", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    kinds = {n: line.split()[0] for line in lines for n in names if f"/{n}:" in line}
    want = {"damaged": "corrupt", "text.mp4": "corrupt", "gaps": "short", "gone.mp4": "missing"}
    assert kinds == want | {"cut.avi": "short", "few.mp4": "short", "none": "short"}
    assert len(lines) == 9 and lines[-1] == f"11 clips looked for in {root}, 7 faults"
    data = Folders(root)
    assert len(data) == 11 and len(data.subset()) == 10
    with pytest.warns(UserWarning, match="gaps: 5 frames are missing; their neighbours stand in"):
        data.subset(["ironing/gaps"])[0]
    with pytest.raises(ClipError, match="gone.mp4' is not there"):
        data.subset(["ironing/gone.mp4"])[0]
    assert main(["data", "check", str(root / "none")]) == 2
    assert "expected folders of videos there" in capsys.readouterr().err


def test_many_clips_of_one_video_are_one_line(tmp_path):
    path = film(tmp_path / "a.mp4", 50)  # two seconds
    items = [Item(str(k), 0, path, start=k, stop=k + 1.0) for k in range(4)]
    items += [Item(f"gone {k}", 0, tmp_path / "b.mp4") for k in range(3)]
    data = Videos(items, ["x"], frames=8, size=16)
    assert [(f.kind, f.clips) for f in data.check()] == [("missing", 3), ("short", 1), ("short", 1)]
    assert data[1].clip.times.min() >= 1


def test_splits_are_folders_above_the_labels(root):
    """Labels keep their numbers in every split; without such folders every split is all."""
    os.makedirs(root.parent / "whole/val")
    (root.parent / "data/ironing").rename(root.parent / "whole/val/ironing")
    root.rename(root.parent / "whole/train")
    data = {s: Folders(root.parent / "whole", s) for s in ("train", "test", "all")}
    assert [[i.name for i in d.items] for d in data.values()] == [
        ["train/abseiling/a.webm", "train/abseiling/frames", "train/playing guitar-2enXX9-rIp0_7_10"],
        ["val/ironing/b.mp4"],
        [*(i.name for i in data["train"].items), "val/ironing/b.mp4"],
    ]
    assert all(d.classes == ("abseiling", "ironing", "playing guitar") for d in data.values())
    assert data["test"].items[0].label == 1 and data["train"].random and not data["test"].random
    assert len(Folders(root.parent / "whole/train", "test")) == 3
    with pytest.raises(ValueError, match="split: got 'dev', expected one of"):
        Folders(root.parent / "whole", "dev")


def test_what_makes_no_data_set_is_refused(root):
    with pytest.raises(ValueError, match="items: got none"):
        Videos([], ["x"])
    with pytest.raises(ValueError, match="frames, size, choices: got 16, 0 and 5"):
        Folders(root, size=0)
    with pytest.raises(ValueError, match="names: none of 4 clips is so named"):
        Folders(root).subset(["x"])


def test_real_folders_of_frames(shared):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = Folders(shared / "kinetics/clips", size=64)
        records = list(data)
    assert data.classes == ("abseiling", "ironing", "playing bass guitar", "playing guitar")
    assert [r.label for r in records] == [0, 1, 2, 3]
    for record in records:
        path = shared / "kinetics/clips" / record.name / "000000005.png"
        picture = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255
        picture = torch.nn.functional.interpolate(picture, (64, 86), mode="bilinear", antialias=True)[0]
        assert (record.clip.pixels[:, 4] - picture[..., 11:75]).abs().max() < 0.01
