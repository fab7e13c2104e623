"""Clips with a known answer: short rendered scenes whose label is carried by known pixels in known frames.

A saliency map can only be graded where the true explanation is known. Here it is: the renderer knows which
pixels carry the label (`Record.mask`), where they are (`Record.boxes`) and when (`Record.segment`).

    record = Stage("action", split="test")[3]

Tasks: `action` (how an actor's limbs move), `object` (what one object among many is), `moment` (an action in
4–10 of 16 frames) and `confounded` (`action` with a corner mark that betrays the label in training only).
"""

import zlib

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch.utils.data import Dataset

from . import drawing
from .clips import Clip, Record
from .names import pick

FRAMES, SIZE, FPS = 16, 112, 8.0
ACTIONS = ("waves", "kicks", "sits down", "stands up", "jumps", "bows", "raises arms", "lowers arms")
REVERSED_PAIRS = (("sits down", "stands up"), ("raises arms", "lowers arms"))
TASKS = {
    "action": ACTIONS,
    "moment": ACTIONS,
    "confounded": ACTIONS,
    "object": tuple(drawing.OBJECTS),
}
MARKS = (
    np.array(
        [[9, 1, 1], [1, 7, 1], [1, 2, 9], [9, 8, 1], [8, 1, 8], [1, 8, 8], [9, 9, 9], [0, 0, 0]], np.float32
    )
    / 9.5
)
TIME = np.arange(FRAMES)


class Stage(Dataset):
    """Rendered clips with a known answer; (task, split, seed, index) always gives the same record.

    Args:
        task: "action", "object", "moment" or "confounded".
        split: "train" or "test"; the two never share a random stream.
        seed: another seed, another set of clips.
        length: number of clips.
        nothing: render clips in which *no* class is shown (label `len(classes)`, empty mask, empty segment):
            what a network must have seen to answer "nothing" where the evidence is taken away.

    Each item is a `Record`: `clip.pixels` (3, 16, 112, 112) in [0, 1], `label`, `boxes` (one (n, 4) tensor of
    x0, y0, x1, y1 a frame), `mask` (16, 112, 112) of the visible pixels that carry the label, `segment`
    (first frame, one past the last), `name`.

    Raises:
        ValueError: unknown task or split, or a length below 1.
    """

    def __init__(
        self, task: str, split: str = "test", seed: int = 0, length: int = 1000, nothing: bool = False
    ):
        pick("task", task, TASKS)
        pick("split", split, ("train", "test"))
        if length < 1:
            raise ValueError(f"length: got {length}, expected at least 1")
        self.task, self.split, self.seed, self.length, self.nothing = (
            task,
            split,
            int(seed),
            int(length),
            nothing,
        )
        self.classes = TASKS[task]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        return self.play(index)[0]

    def play(self, index: int) -> tuple[Record, Float[np.ndarray, "time joint"]]:
        """The record and how the acting figure holds its limbs, for training.

        Limbs are angles / 90° in the picture's plane, in the order of `drawing.NEUTRAL`, last five times the
        lift in body heights; zeros where nobody acts.
        """
        if not -self.length <= index < self.length:
            raise IndexError(f"index: got {index}, expected 0 … {self.length - 1}")
        index = int(index) % self.length
        stream = [zlib.crc32(f"{self.task}/{self.split}/{self.nothing}".encode()), self.seed % 2**32, index]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream)))
        label = len(self.classes) if self.nothing else int(rng.integers(len(self.classes)))
        render = _render_object if self.task == "object" else _render_action
        frames, cover, segment, pose = render(rng, self.task, None if self.nothing else self.classes[label])
        if self.task == "confounded":
            shown = label if self.split == "train" and not self.nothing else int(rng.integers(len(MARKS)))
            frames[:, 3:13, 3:13] = MARKS[shown]
            cover[:, 3:13, 3:13] = 0
        pixels = torch.from_numpy(np.ascontiguousarray(_film(rng, frames).transpose(3, 0, 1, 2)))
        mask = torch.from_numpy(cover > 0.5)
        name = f"{self.task}-{self.split}-{self.seed}-{index}"
        record = Record(
            clip=Clip(
                pixels=pixels, times=torch.from_numpy((TIME / FPS).astype(np.float32)), source=f"stage:{name}"
            ),
            label=label,
            boxes=[_box(m) for m in mask],
            mask=mask,
            segment=segment,
            name=name,
        )
        return record, pose


def _box(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.zeros(0, 4)
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()[None]


# ---------------------------------------------------------------------------------------------- camera


def _wander(rng, scale: float, cycles: float = 1.0, steps: int = FRAMES) -> np.ndarray:
    """(time,) smooth random path around zero: a drift and two slow waves, peaks near `scale`."""
    t = np.linspace(-0.5, 0.5, steps)
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves = (
        np.sin(2 * np.pi * cycles * t + phase[0]) * 0.4 + np.sin(3.3 * np.pi * cycles * t + phase[1]) * 0.25
    )
    return scale * (rng.uniform(-1, 1) * t + rng.uniform(0, 1) * waves)


def _backdrop(rng, shift: np.ndarray, zoom: np.ndarray) -> np.ndarray:
    """(time, height, width, 3): a place, everything in it moved by `shift` px and scaled by `zoom`."""
    size = 176
    image = torch.from_numpy(drawing.place(rng, size).transpose(2, 0, 1).copy())[None]
    theta = torch.zeros(FRAMES, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.from_numpy(SIZE / size / zoom).float()
    theta[:, :, 2] = torch.from_numpy(-2 * shift / size / zoom[:, None]).float()
    grid = F.affine_grid(theta, [FRAMES, 3, SIZE, SIZE], align_corners=False)
    out = F.grid_sample(
        image.expand(FRAMES, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )
    return out.permute(0, 2, 3, 1).contiguous().numpy()


def _film(rng, frames: np.ndarray) -> np.ndarray:
    """The look of a recording: exposure, contrast, a touch of softness and grain."""
    if rng.random() < 0.5:
        soft = rng.uniform(0.05, 0.18)
        inner = frames[:, 1:-1, 1:-1]
        cross = frames[:, :-2, 1:-1] + frames[:, 2:, 1:-1] + frames[:, 1:-1, :-2] + frames[:, 1:-1, 2:]
        frames[:, 1:-1, 1:-1] = inner * (1 - 4 * soft) + soft * cross
    frames = (frames - 0.5) * np.float32(rng.uniform(0.85, 1.15)) + np.float32(rng.uniform(0.44, 0.56))
    strength = np.float32(rng.uniform(0.003, 0.014))
    for t in range(FRAMES):
        frames[t] += strength * drawing.noise(rng, (SIZE, SIZE), 0)[..., None]
    return np.clip(frames, 0, 1, out=frames)


def _off_centre(rng, draw):
    """Where to put the answer: mostly drawn again where it covers the frame's centre."""
    for _ in range(6):
        x, y, half_w, half_h = draw()
        if abs(x - SIZE / 2) > half_w or abs(y - SIZE / 2) > half_h or rng.random() < 0.12:
            break
    return x, y


# --------------------------------------------------------------------------------------------- actions


def _ramp(u, start, stop):
    """0 before `start`, 1 after `stop`, smooth in between."""
    v = np.clip((u - start) / (stop - start), 0, 1)
    return v * v * (3 - 2 * v)


def _bump(u, rise, fall):
    """0 → 1 → 0: up during `rise`, down during `fall`, both (start, stop)."""
    return _ramp(u, *rise) - _ramp(u, *fall)


def perform(action: str, u: np.ndarray, reach: float = 1.0) -> dict[str, np.ndarray]:
    """Joint angles (degrees) of `action` at progress `u` in [0, 1]; `reach` scales how far the limbs go.

    `stands up` is `sits down` played backwards, `lowers arms` is `raises arms` played backwards.
    """
    if action in ("stands up", "lowers arms"):
        return perform({later: first for first, later in REVERSED_PAIRS}[action], 1 - u, reach)
    if action == "waves":
        up = _bump(u, (0, 0.2), (0.85, 1))
        return dict(arm_r=92 * up, elbow_r=up * (58 + 44 * reach * np.sin(2 * np.pi * 1.75 * u)))
    if action == "kicks":
        back, out = _bump(u, (0.05, 0.3), (0.3, 0.55)), _bump(u, (0.35, 0.6), (0.68, 0.95))
        return dict(
            thigh_r=-30 * back + 82 * reach * out, knee_r=50 * back + 4 * out, lean=-10 * out, arm_l=-25 * out
        )
    if action == "sits down":
        down = _ramp(u, 0.05, 0.95)
        legs = {f"{joint}_{side}": 82 * reach * down for joint in ("thigh", "knee") for side in "lr"}
        return legs | dict(lean=22 * np.sin(np.pi * down), arm_r=26 * down, arm_l=30 * down)
    if action == "jumps":
        crouch = _bump(u, (0, 0.25), (0.27, 0.4)) + _bump(u, (0.62, 0.75), (0.75, 1))
        air = np.clip(1 - ((u - 0.51) / 0.2) ** 2, 0, 1)
        legs = {f"thigh_{s}": 48 * crouch for s in "lr"} | {f"knee_{s}": 88 * crouch for s in "lr"}
        arms = dict(arm_l=-40 * crouch - 35 * air, arm_r=-30 * crouch + 45 * air)
        return legs | arms | dict(lean=16 * crouch, lift=0.17 * reach * air)
    if action == "bows":
        down = _bump(u, (0.02, 0.45), (0.55, 0.98))
        return dict(lean=78 * reach * down, arm_l=24 * down, arm_r=12 * down)
    up = _ramp(u, 0.05, 0.95)  # raises arms
    return dict(arm_r=148 * reach * up, arm_l=-148 * reach * up, elbow_r=8 * up, elbow_l=-8 * up)


def _pose(rng, action: str | None, progress: np.ndarray, still: bool = False) -> dict[str, np.ndarray]:
    """Neutral stance + idle sway in every joint + the action, or for `None` a motion that means nothing."""
    sway = 3.0 if still else 4.5
    pose = {
        k: v + (np.zeros(FRAMES) if k == "lift" else _wander(rng, sway, rng.uniform(0.5, 1.3)))
        for k, v in drawing.NEUTRAL.items()
    }
    if action is None:
        kind = rng.integers(4)
        if kind == 0:  # frozen at any moment of any action
            moment = np.full(FRAMES, rng.uniform(0.1, 1))
            extra = perform(ACTIONS[rng.integers(len(ACTIONS))], moment) | {"lift": 0.0}
        elif kind == 1:  # walks
            phase = 2 * np.pi * (rng.uniform(1, 2.2) * TIME / FRAMES + rng.random())
            swing = rng.uniform(12, 26) * np.sin(phase)
            knees = {f"knee_{s}": 14 * (1 + k * np.cos(phase)) for s, k in (("l", 1), ("r", -1))}
            extra = dict(thigh_l=swing, thigh_r=-swing, arm_l=-0.7 * swing, arm_r=0.7 * swing) | knees
        else:  # sways and fidgets
            extra = {
                k: _wander(rng, rng.uniform(6, 22), rng.uniform(0.6, 1.6)) for k in ("arm_l", "arm_r", "lean")
            }
    else:
        extra = perform(action, progress, rng.uniform(0.88, 1.1))
    return {k: pose[k] + extra.get(k, 0) for k in pose}


def _spots(rng, count: int, heights: np.ndarray) -> list[tuple[float, float]]:
    """Ground points for actors, the first off centre, apart from one another where that is possible."""
    spots: list[tuple[float, float]] = []
    for height in heights[:count]:

        def draw(h=height):
            return (
                rng.uniform(0.22 * h, SIZE - 0.22 * h),
                rng.uniform(0.52 * h, SIZE - 0.46 * h),
                0.34 * h,
                0.54 * h,
            )

        best, room = (0.0, 0.0), -1.0
        for _ in range(8):
            x, y = _off_centre(rng, draw) if not spots else draw()[:2]
            y += 0.48 * height
            near = min((max(abs(x - a) / 30, abs(y - b) / 48) for a, b in spots), default=9.0)
            if near > room:
                best, room = (x, y), near
            if room > 1:
                break
        spots.append(best)
    return spots


def _render_action(rng, task: str, action: str | None):
    """Frames, coverage of the acting figure, segment, its limbs. Only the first actor acts."""
    if task == "moment":
        length = int(rng.integers(4, 11))
        first = int(rng.integers(0, FRAMES - length + 1))
        segment = (first, first + length)
        progress = np.clip((TIME - first + 1) / (length + 1), 0, 1)
    else:
        segment = (0, FRAMES)
        start, span = rng.uniform(-0.05, 0.2), rng.uniform(0.7, 0.9)
        progress = np.clip((TIME / (FRAMES - 1) - start) / span, 0, 1)

    hand_held = np.stack([_wander(rng, 7), _wander(rng, 5)], -1)
    frames = _backdrop(rng, hand_held, rng.uniform(0.85, 1.25) + _wander(rng, 0.05))
    light = rng.uniform(0.15, 0.85) * np.pi
    count = 2 + int(rng.random() < 0.3)
    heights = np.concatenate([rng.uniform(44, 55, 1), rng.uniform(36, 54, count - 1)])
    spots = _spots(rng, count, heights)
    cover = np.zeros((FRAMES, SIZE, SIZE), np.float32)
    limbs = np.zeros((FRAMES, len(drawing.NEUTRAL)))
    thing_at = rng.integers(count)
    for k in sorted(range(count), key=lambda k: spots[k][1]):
        acts = k == 0 and action is not None
        pose = _pose(rng, action if acts else None, progress, still=task == "moment")
        drift = np.stack([_wander(rng, 16), _wander(rng, 6)], -1)
        root = np.array(spots[k]) + drift + hand_held
        facing = int(rng.choice([-1, 1]))
        part = drawing.paint_actor(
            frames, pose, drawing.actor_look(rng, heights[k]), root, heights[k], facing, light
        )
        cover = part if acts else cover * (1 - part)
        if acts:
            limbs = np.stack([facing * v / 90 if j != "lift" else 5 * v for j, v in pose.items()], -1)
        if k == thing_at:
            _fly(rng, frames, cover)
    if rng.random() < 0.6:
        _fly(rng, frames, cover)
    outside = (segment[0] > TIME) | (segment[1] <= TIME)
    cover[outside] = 0
    return frames, cover, segment if action is not None else (0, 0), limbs.astype(np.float32)


# --------------------------------------------------------------------------------------------- objects


def _paint_sprite(frames, picture, centre, extent, angle) -> np.ndarray:
    """Paint an RGBA sprite; a frame: `centre` (time, 2), `extent` (time,) px, `angle` (time,) radians."""
    cover = np.zeros(frames.shape[:3], np.float32)
    box = int(np.ceil(extent.max() * 1.2)) + 2
    low = np.round(centre - box / 2).astype(int)
    rest = centre - low - box / 2
    cos, sin = np.cos(angle) * box / extent, np.sin(angle) * box / extent
    move = -2 * rest / box
    theta = np.stack([np.stack([cos, sin, cos * move[:, 0] + sin * move[:, 1]], -1),
                      np.stack([-sin, cos, -sin * move[:, 0] + cos * move[:, 1]], -1)], 1)  # fmt: skip
    # Averaging the sprite down to about its drawn size first keeps its edges smooth.
    small = F.interpolate(torch.from_numpy(picture)[None], size=max(int(extent.mean()), 8), mode="area")
    grid = F.affine_grid(torch.from_numpy(theta).float(), [len(frames), 4, box, box], align_corners=False)
    patch = F.grid_sample(small.expand(len(frames), -1, -1, -1), grid, align_corners=False)
    patch = patch.permute(0, 2, 3, 1).numpy()
    for t, (x, y) in enumerate(low):
        u, v = slice(max(-x, 0), max(min(box, SIZE - x), 0)), slice(max(-y, 0), max(min(box, SIZE - y), 0))
        part = patch[t, v, u]
        if part.size:
            view = frames[t, max(y, 0) : max(y, 0) + part.shape[0], max(x, 0) : max(x, 0) + part.shape[1]]
            view *= 1 - part[..., 3:]
            view += part[..., :3]
            cover[t, max(y, 0) : max(y, 0) + part.shape[0], max(x, 0) : max(x, 0) + part.shape[1]] = part[
                ..., 3
            ]
    return cover


def _fly(rng, frames, cover) -> None:
    """A thing without a name crosses the scene, fast, in front of what was painted so far."""
    across = np.linspace(-1, 1, FRAMES)[:, None] * rng.uniform(-70, 70, 2)
    centre = (
        rng.uniform(10, SIZE - 10, 2) + across + np.stack([_wander(rng, 25, 1.5), _wander(rng, 25, 1.5)], -1)
    )
    extent = np.full(FRAMES, rng.uniform(9, 20))
    part = _paint_sprite(
        frames, drawing.sprite(rng, None), centre, extent, _wander(rng, 6) + rng.uniform(0, 6)
    )
    cover *= 1 - part


def _render_object(rng, task: str, name: str | None):
    """As `_render_action`, without limbs: a camera pans over things, one of which has a name."""
    zoom = 1.05 + _wander(rng, 0.35)
    shift = np.stack([_wander(rng, 34), _wander(rng, 26)], -1)
    size = rng.uniform(29, 40)
    x, y = _off_centre(
        rng, lambda: (*rng.uniform(0.35 * size, SIZE - 0.35 * size, 2), 0.75 * size, 0.75 * size)
    )
    place = np.array([x, y]) - SIZE / 2
    if rng.random() < 0.25:  # the camera loses sight of it for a few frames
        gone = np.exp(-0.5 * ((TIME - rng.uniform(2, 13)) / rng.uniform(1.2, 2.2)) ** 4)[:, None]
        axis = int(np.abs(place).argmax())
        push = np.zeros(2)
        push[axis] = np.copysign(SIZE / 2 + size - abs(place[axis]), place[axis])
        shift = shift + gone * push
    frames = _backdrop(rng, shift, zoom)
    cover = np.zeros((FRAMES, SIZE, SIZE), np.float32)
    count = int(rng.integers(3, 6))
    order = rng.permutation(count)
    for k in order:
        is_it = k == 0 and name is not None
        here = place if k == 0 else rng.uniform(-75, 75, 2)
        own = 0 if k < 2 else np.stack([_wander(rng, 50), _wander(rng, 50)], -1)
        centre = SIZE / 2 + zoom[:, None] * here + shift + own
        extent = (size if k == 0 else rng.uniform(18, 40)) * zoom
        turn = rng.uniform(-0.5, 0.5) + _wander(rng, 0.8)
        part = _paint_sprite(frames, drawing.sprite(rng, name if is_it else None), centre, extent, turn)
        cover = part if is_it else cover * (1 - part)
    if rng.random() < 0.35:  # a post in the foreground
        width, left = rng.uniform(6, 14), rng.uniform(0, SIZE) + 1.8 * shift[:, 0]
        paint = drawing.colour(rng, value=(0.15, 0.6))
        for t in range(FRAMES):
            u0, u1 = (int(np.clip(v, 0, SIZE)) for v in (left[t], left[t] + width))
            frames[t, :, u0:u1] = paint * np.linspace(1.2, 0.7, u1 - u0, dtype=np.float32)[None, :, None]
            cover[t, :, u0:u1] = 0
    _fly(rng, frames, cover)
    limbs = np.zeros((FRAMES, len(drawing.NEUTRAL)), np.float32)
    return frames, cover, (0, FRAMES) if name is not None else (0, 0), limbs
