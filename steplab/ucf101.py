"""UCF101-24: sports videos with a box around every actor in every frame.

>>> data = Ucf101("ucf101", "test", cache="runs/clips").paper_subset(seed=0)
>>> record = data[0]
>>> read_ucf101_annotations("pyannot.pkl")["Diving/v_Diving_g01_c01"].tubes[0].boxes.shape     # (frame, 4)
"""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .folders import SPLITS, VIDEOS, Fault, Item, Truth, Videos, draw, find
from .names import pick

# The 24 classes of UCF101-24 in the order of their numbers.
UCF101_24 = (
    "Basketball", "BasketballDunk", "Biking", "CliffDiving", "CricketBowling", "Diving", "Fencing",
    "FloorGymnastics", "GolfSwing", "HorseRiding", "IceDancing", "LongJump", "PoleVault", "RopeClimbing",
    "SalsaSpin", "SkateBoarding", "Skiing", "Skijet", "SoccerJuggling", "Surfing", "TennisSwing",
    "TrampolineJumping", "VolleyballSpiking", "WalkingWithDog",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tube:
    """One actor followed through a video.

    Attributes:
        label: number of the class in `UCF101_24`.
        segment: first frame, and one past the last, counted from 0.
        boxes: x0, y0, x1, y1 in pixels of the 320 x 240 video for each frame of the segment.
    """

    label: int
    segment: tuple[int, int]
    boxes: Float[Tensor, "frame 4"]


@dataclass(frozen=True, eq=False)
class Video:
    """What is annotated in a video: number of its class, number of its frames, its tubes."""

    label: int
    frames: int
    tubes: tuple[Tube, ...]

    def boxes(self, frame: int) -> Float[Tensor, "box 4"]:
        """All boxes of one frame; no rows where there are none."""
        found = [
            tube.boxes[frame - tube.segment[0]]
            for tube in self.tubes
            if tube.segment[0] <= frame < tube.segment[1]
        ]
        return torch.stack(found) if found else torch.zeros(0, 4)


def read_ucf101_annotations(path: str | Path) -> dict[str, Video]:
    """The corrected UCF101-24 boxes (Singh et al. 2017; `pyannot.pkl`), 3,194 videos by name.

    The file is a pickle, and a pickle may name any function to be called. Here it cannot: of all names only
    the four by which arrays are stored are understood, and these stand for plain code of this module.

    Args:
        path: the pickle; may come from anywhere.

    Raises:
        ValueError: no such file, a damaged one, one that asks for anything else than arrays, or other
            contents.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            stored = _ArraysOnly(file, encoding="latin1").load()
        return {str(name): _video(facts) for name, facts in stored.items()}
    except OSError as error:
        raise ValueError(f"path: cannot read {str(path)!r} ({error.strerror})") from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise ValueError(f"path: {path.name} is no file of UCF101-24 annotations: {error}") from error


def _video(facts: dict[str, Any]) -> Video:
    return Video(int(facts["label"]), int(facts["numf"]), tuple(_tube(tube) for tube in facts["annotations"]))


def _tube(facts: dict[str, Any]) -> Tube:
    first, stop = int(facts["sf"]), int(facts["ef"])
    boxes = torch.from_numpy(_values(facts["boxes"]).astype(np.float32))  # stored in 8 bits: x + w would wrap
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not 0 <= first < stop or stop - first != len(boxes):
        raise ValueError(f"a tube of frames {first}..{stop} has boxes of shape {tuple(boxes.shape)}")
    return Tube(int(facts["label"]), (first, stop), torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))


class Ucf101(Videos):
    """UCF101-24 with the corrected boxes of Singh et al.: 2,284 videos to train with, 910 to test with.

    Boxes are those of all actors; `segment` reaches from the first sampled frame with one to the last.

    Args:
        root: holds `<Class>/v_*.avi` (or mp4 and the like; or `videos/<Class>/...`), and there or in
            `annotations/` the files `pyannot.pkl` and `testlist01.txt` (that of all 101 classes will do).
        split: "train", "test" or "all".
        sampling: as for `Videos`; `random` by default for "train" only.

    Raises:
        ValueError: another split, a file that is missing or is not what it should be.
    """

    def __init__(self, root: str | Path, split: str = "test", **sampling: Any):
        pick("split", split, SPLITS)
        self.root, self.split = Path(root), split
        self.known = read_ucf101_annotations(find(self.root, "pyannot.pkl"))
        lines = find(self.root, "testlist01.txt").read_text().splitlines()
        self.listed = {line.split()[0].removesuffix(".avi") for line in lines if line.strip()}
        if not self.listed & self.known.keys():
            raise ValueError("root: testlist01.txt names none of pyannot.pkl, expected Class/v_Class_g01_c01")
        self.videos = self.root / "videos" if (self.root / "videos").is_dir() else self.root
        items = [
            Item(name.rpartition("/")[2], v.label, self._where(name), length=v.frames, known=v)
            for name, v in sorted(self.known.items())
            if split == "all" or (name in self.listed) == (split == "test")
        ]
        sampling = dict(random=split == "train") | sampling
        super().__init__(items, UCF101_24, **sampling)

    def _where(self, name: str) -> Path:
        """The video: an avi, as it comes, or one of another kind if that is there."""
        paths = [self.videos / f"{name}{ending}" for ending in (".avi", *VIDEOS)]
        return next((path for path in paths if path.is_file()), paths[0])

    def paper_subset(self, seed: int = 0) -> Videos:
        """5 test videos a class, drawn at random: 120 in all, as in the paper (section 4.1).

        Raises:
            ValueError: this is not the test split.
        """
        if self.split != "test":
            raise ValueError(f"split: got {self.split!r}, expected 'test': the subset is one of test videos")
        names: dict[int, list[str]] = {}
        for item in self.items:
            names.setdefault(item.label, []).append(item.name)
        return self.subset({n for label, all in names.items() for n in draw(all, 5, seed, UCF101_24[label])})

    def truth(self, item: Item, numbers: list[int], times: list[float]) -> Truth:
        boxes = [item.known.boxes(number) for number in numbers]
        acts = [t for t, found in enumerate(boxes) if len(found)]
        return Truth(boxes, (320, 240), (acts[0], acts[-1] + 1) if acts else None)

    def strays(self) -> list[Fault]:
        """Videos of the 24 classes that are there, or on the list, and not in `pyannot.pkl`."""
        there = {p for c in UCF101_24 for p in (self.videos / c).glob("*") if p.suffix.lower() in VIDEOS}
        there |= {self._where(n) for n in self.listed if n.partition("/")[0] in UCF101_24}
        known = {self._where(name) for name in self.known}
        return [Fault("unannotated", str(p), "is not in pyannot.pkl") for p in sorted(there - known)]


# ---------------------------------------------------------------------------------------------- unpickling


class _Type:
    """Stands for `numpy.dtype`: numbers or text. Its state gives the byte order, nothing else."""

    def __init__(self, code: str, *_: object):
        self.type = np.dtype(str(code))
        if self.type.kind not in "biufSU":
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not understood")

    def __setstate__(self, state: tuple):
        if state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stands for `numpy.ndarray`: keeps shape, type and bytes until `_values` asks for them."""

    values: np.ndarray

    def __setstate__(self, state: tuple):
        _, shape, kind, fortran, data = state
        values = np.frombuffer(_bytes(data), kind.type)
        self.values = values.reshape(shape, order="F" if fortran else "C")


def _values(stored: Any) -> np.ndarray:
    return stored.values if isinstance(stored, _Array) else np.asarray(stored)


def _bytes(data: bytes | str) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else bytes(data)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _Type, data: bytes | str) -> Any:
    return np.frombuffer(_bytes(data), kind.type)[0]


class _ArraysOnly(pickle.Unpickler):
    _KNOWN = {"_reconstruct": _reconstruct, "scalar": _scalar, "ndarray": _Array, "dtype": _Type}

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in self._KNOWN:
            return self._KNOWN[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not an array")
