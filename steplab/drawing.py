"""What the stage is painted with: places, jointed actors and objects. Only numpy and torch arrays in and out.

Everything is drawn procedurally from a `numpy.random.Generator`: the same generator state paints the same
picture on every machine. Colours lie in [0, 1]; coordinates are pixels, x to the right, y down.
"""

import colorsys
from functools import cache

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image, ImageDraw

Rng = np.random.Generator

# -------------------------------------------------------------------------------------------- textures


@cache
def _noise_bank() -> ndarray:
    """(8, 256, 256) tileable textures, zero mean, unit variance, from fine grain (0) to broad clouds (7)."""
    rng = np.random.default_rng(7)
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1 / 256)
    bank = []
    for exponent in np.linspace(0, 2.1, 8):
        spectrum = np.fft.rfft2(rng.standard_normal((256, 256))) * frequency**-exponent
        texture = np.fft.irfft2(spectrum)
        bank.append((texture - texture.mean()) / texture.std())
    return np.stack(bank).astype(np.float32)


def noise(rng: Rng, shape: tuple[int, int], coarse: int) -> Float[ndarray, "height width"]:
    """A random crop of texture number `coarse` (0 grain … 7 clouds), unit variance; at most 256×256."""
    tile = _noise_bank()[coarse]
    tile = np.roll(tile, tuple(rng.integers(0, 256, 2)), (0, 1))
    return tile[: shape[0], : shape[1]]


def colour(rng: Rng, hue=(0, 1), saturation=(0.3, 0.8), value=(0.3, 0.9)) -> ndarray:
    """One random RGB colour out of a range of hue, saturation and value."""
    return np.array(
        colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value)), np.float32
    )


def _rectangle(image: ndarray, x0, y0, x1, y1, paint: ndarray) -> None:
    image[max(int(y0), 0) : max(int(y1), 0), max(int(x0), 0) : max(int(x1), 0)] = paint


# ---------------------------------------------------------------------------------------------- places


def place(rng: Rng, size: int) -> Float[ndarray, "size size 3"]:
    """Background that looks like somewhere: a room, a street, a park or a beach."""
    image = (_room, _street, _park, _beach)[rng.integers(4)](rng, size)
    light = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + rng.uniform(-0.12, 0.12) * light[:, None] + rng.uniform(-0.12, 0.12) * light[None]
    image = image * light[..., None] + 0.012 * noise(rng, (size, size), 1)[..., None]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    return np.clip(image, 0, 1).astype(np.float32)


def _floor(rng: Rng, size: int, horizon: int, base: ndarray, planks: int) -> ndarray:
    """Ground below `horizon` in perspective: `planks` lines run to a vanishing point."""
    rows = np.arange(size - horizon, dtype=np.float32)[:, None]
    depth = 1 / (rows + 6)
    x = (np.arange(size, dtype=np.float32)[None] - size * rng.uniform(0.2, 0.8)) * depth
    seams = np.abs((x * planks / 3 + rng.random()) % 1 - 0.5) * 2
    cross = np.abs((depth * 60 + rng.random()) % 1 - 0.5) * 2
    tone = 0.85 + 0.15 * np.minimum(seams * 6, 1) * np.minimum(cross * 6, 1)
    tone = tone + 0.05 * noise(rng, tone.shape, 4) + 0.15 * (rows / size - 0.3)
    return base * tone[..., None]


def _room(rng: Rng, size: int) -> ndarray:
    horizon = int(size * rng.uniform(0.5, 0.68))
    image = np.empty((size, size, 3), np.float32)
    wall = colour(rng, saturation=(0.08, 0.4), value=(0.5, 0.85))
    image[:] = wall * (1 + 0.03 * noise(rng, (size, size), 5)[..., None])
    if rng.random() < 0.5:  # wallpaper
        period = rng.integers(6, 16)
        stripes = (np.arange(size) // period % 2).astype(np.float32)[None, :, None]
        image *= 1 - rng.uniform(0.04, 0.12) * stripes
    for _ in range(rng.integers(1, 4)):  # windows, pictures, shelves
        w, h = rng.integers(size // 9, size // 4, 2).tolist()
        x, y = rng.integers(0, size - w), rng.integers(2, max(horizon - h - 4, 3))
        _rectangle(
            image, x - 2, y - 2, x + w + 2, y + h + 2, colour(rng, saturation=(0.1, 0.5), value=(0.2, 0.9))
        )
        inner = np.linspace(1.15, 0.8, h, dtype=np.float32)[:, None, None] * colour(
            rng, saturation=(0.1, 0.6)
        )
        image[y : y + h, x : x + w] = np.clip(inner, 0, 1) + 0.06 * noise(rng, (h, w), 6)[..., None]
        if rng.random() < 0.5:
            _rectangle(image, x + w // 2 - 1, y, x + w // 2 + 1, y + h, wall * 0.5)
    base = colour(rng, hue=(0.04, 0.12), saturation=(0.25, 0.6), value=(0.3, 0.65))
    image[horizon:] = _floor(rng, size, horizon, base, int(rng.integers(8, 26)))
    _rectangle(image, 0, horizon - 3, size, horizon, wall * 0.6)
    if rng.random() < 0.6:  # a cupboard or sofa against the wall
        w, h = rng.integers(size // 6, size // 3), rng.integers(size // 10, size // 4)
        x = rng.integers(0, size - w)
        body = colour(rng, saturation=(0.2, 0.6), value=(0.25, 0.7))
        _rectangle(image, x, horizon - h, x + w, horizon + 5, body)
        _rectangle(image, x + 2, horizon - h + 3, x + w // 2 - 1, horizon + 2, body * 1.15)
        _rectangle(image, x + w // 2 + 1, horizon - h + 3, x + w - 2, horizon + 2, body * 1.15)
        _rectangle(image, x, horizon + 5, x + w, horizon + 7, base * 0.5)
    return image


def _sky(rng: Rng, size: int) -> ndarray:
    top, low = (
        colour(rng, (0.53, 0.62), (0.25, 0.65), (0.6, 0.9)),
        colour(rng, (0.05, 0.6), (0.05, 0.25), (0.8, 0.95)),
    )
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    clouds = np.clip(noise(rng, (size, size), 6) - rng.uniform(0, 1), 0, 1)[..., None] * 0.35
    return (top * (1 - ramp) + low * ramp) * (1 - clouds) + 0.95 * clouds


def _street(rng: Rng, size: int) -> ndarray:
    image, horizon, x = _sky(rng, size), int(size * rng.uniform(0.55, 0.68)), -int(rng.integers(0, 12))
    while x < size:
        w, roof = int(rng.integers(size // 6, size // 3)), int(rng.integers(2, horizon // 2))
        facade = colour(rng, (0.0, 0.15), (0.1, 0.5), (0.35, 0.8))
        _rectangle(image, x, roof, x + w, horizon, facade)
        step_x, step_y = int(rng.integers(8, 13)), int(rng.integers(9, 14))
        lit = colour(rng, (0.1, 0.6), (0.1, 0.4), (0.25, 0.9))
        for wy in range(roof + 4, horizon - 8, step_y):
            for wx in range(x + 3, x + w - 5, step_x):
                _rectangle(image, wx, wy, wx + step_x - 4, wy + step_y - 5, lit * rng.uniform(0.6, 1.1))
        _rectangle(image, x + w - 1, roof, x + w, horizon, facade * 0.6)
        x += w
    image[:horizon] *= (1 + 0.05 * noise(rng, (horizon, size), 3))[..., None]
    base = colour(rng, (0.05, 0.65), (0.02, 0.15), (0.4, 0.65))
    image[horizon:] = _floor(rng, size, horizon, base, int(rng.integers(4, 12)))
    _rectangle(image, 0, horizon, size, horizon + 2, base * 0.6)
    return image


def _park(rng: Rng, size: int) -> ndarray:
    image, horizon = _sky(rng, size), int(size * rng.uniform(0.45, 0.62))
    green = colour(rng, (0.2, 0.36), (0.35, 0.65), (0.35, 0.6))
    hills = horizon - 4 - np.abs(np.cumsum(noise(rng, (1, size), 6)[0]) * 0.35) % (size * 0.25)
    far = np.arange(size)[:, None] > hills[None]
    image[far] = green * 0.55 + np.array([0.18, 0.22, 0.28], np.float32)
    grass = 1 + 0.14 * noise(rng, (size - horizon, size), 2) + 0.1 * noise(rng, (size - horizon, size), 6)
    image[horizon:] = green * grass[..., None]
    yy, xx = np.mgrid[:size, :size].astype(np.float32)
    leaves = noise(rng, (size, size), 3)
    for _ in range(rng.integers(1, 5)):
        x, r = rng.uniform(0, size), rng.uniform(0.08, 0.17) * size
        foot = horizon + rng.uniform(0, 8)
        crown_y = foot - r * rng.uniform(1.3, 1.9)
        _rectangle(image, x - r / 8, crown_y, x + r / 8 + 1, foot, np.array([0.3, 0.22, 0.15], np.float32))
        crown = np.hypot(xx - x, (yy - crown_y) * 1.1) + leaves * r * 0.14 < r
        shade = (0.8 + 0.16 * leaves - 0.25 * (yy - crown_y) / r)[..., None]
        image = np.where(crown[..., None], colour(rng, (0.2, 0.38), (0.4, 0.7), (0.3, 0.5)) * shade, image)
    if rng.random() < 0.6:
        middle = size * rng.uniform(0.2, 0.8) + (yy - horizon) * rng.uniform(-0.5, 0.5)
        path = (np.abs(xx - middle) < 2 + (yy - horizon) * 0.25) & (yy > horizon)
        image = np.where(
            path[..., None], np.array([0.66, 0.58, 0.46], np.float32) * (1 + 0.06 * leaves[..., None]), image
        )
    return image


def _beach(rng: Rng, size: int) -> ndarray:
    image, horizon = _sky(rng, size), int(size * rng.uniform(0.3, 0.45))
    shore = horizon + int(size * rng.uniform(0.1, 0.25))
    sea = colour(rng, (0.48, 0.58), (0.4, 0.8), (0.4, 0.7))
    waves = np.repeat(noise(rng, (size, size // 4 + 1), 3), 4, axis=1)[: shore - horizon, :size]
    image[horizon:shore] = sea * (1 + 0.12 * waves[..., None])
    sand = colour(rng, (0.09, 0.13), (0.25, 0.45), (0.7, 0.88))
    grain = 1 + 0.05 * noise(rng, (size - shore, size), 1) + 0.05 * noise(rng, (size - shore, size), 6)
    image[shore:] = sand * grain[..., None]
    image[shore : shore + 2] = 0.92
    return image


# ---------------------------------------------------------------------------------------------- actors

# A pose is a dict of joint angles in degrees (0 hangs down, positive swings to where the actor faces) and
# of `lift`, the height of the feet above ground in body heights.
NEUTRAL = dict(lean=0.0, thigh_l=-5.0, thigh_r=5.0, knee_l=3.0, knee_r=3.0, arm_l=-12.0, arm_r=12.0,
               elbow_l=-8.0, elbow_r=8.0, lift=0.0)  # fmt: skip


def skeleton(pose: dict[str, ndarray], height: float) -> dict[str, Float[ndarray, "time 2"]]:
    """Joint positions (x, y) relative to the point on the ground between the feet, by forward kinematics."""

    def along(angle, length):
        a = np.deg2rad(angle)
        return np.stack([np.sin(a), np.cos(a)], -1) * length * height

    joints = {}
    hip = np.zeros((len(pose["lean"]), 2))
    for side in "lr":
        joints["knee_" + side] = hip + along(pose["thigh_" + side], 0.23)
        joints["foot_" + side] = joints["knee_" + side] + along(
            pose["thigh_" + side] - pose["knee_" + side], 0.22
        )
    joints["hip"] = hip
    joints["neck"] = hip - along(-pose["lean"], 0.28)
    joints["head"] = joints["neck"] - along(-pose["lean"] * 1.15, 0.13)
    for side in "lr":
        shoulder = joints["neck"] + along(-pose["lean"], 0.03)
        joints["shoulder_" + side] = shoulder
        joints["elbow_" + side] = shoulder + along(pose["arm_" + side], 0.17)
        joints["hand_" + side] = joints["elbow_" + side] + along(
            pose["arm_" + side] + pose["elbow_" + side], 0.16
        )
    # Stand on the lower foot; keep the feet's middle in place, whatever the hips do.
    feet = np.stack([joints["foot_l"], joints["foot_r"]])
    planted = feet[..., 1] >= feet[..., 1].max(0) - 0.06 * height
    x = (feet[..., 0] * planted).sum(0) / planted.sum(0)
    shift = np.stack([x, feet[..., 1].max(0) + pose["lift"] * height], -1)
    return {name: point - shift for name, point in joints.items()}


def actor_look(rng: Rng, height: float) -> list[tuple[str, str, float, ndarray]]:
    """Parts from back to front: (joint, joint, radius in px, colour); clothes, skin and build are random."""
    skin = colour(rng, (0.04, 0.09), (0.25, 0.6), (0.35, 0.95))
    shirt, trousers, shoe, hair = (
        colour(rng, value=v) for v in ((0.25, 1), (0.15, 0.8), (0.05, 0.5), (0.05, 0.7))
    )
    sleeve = shirt if rng.random() < 0.6 else skin
    fat = rng.uniform(1.05, 1.35) * height
    limb = [
        ("hip", "knee_", 0.05, trousers),
        ("knee_", "foot_", 0.042, trousers if rng.random() < 0.7 else skin),
    ]
    arm = [("shoulder_", "elbow_", 0.038, shirt), ("elbow_", "hand_", 0.034, sleeve)]

    def side(parts, s, shade):
        return [(a + s * a.endswith("_"), b + s, r * fat, c * shade) for a, b, r, c in parts]

    look = side(arm, "l", 0.82) + [("hand_l", "hand_l", 0.036 * fat, skin * 0.85)]
    look += side(limb, "l", 0.82) + [("foot_l", "foot_l", 0.05 * fat, shoe)]
    look += side(limb, "r", 1.0) + [("foot_r", "foot_r", 0.05 * fat, shoe)]
    look += [("hip", "neck", 0.085 * fat, shirt), ("head", "head", 0.098 * height, hair)]
    look += [("face", "face", 0.084 * height, skin)]
    return look + side(arm, "r", 1.0) + [("hand_r", "hand_r", 0.036 * fat, skin)]


def paint_actor(
    frames: Float[ndarray, "time height width 3"],
    pose: dict[str, ndarray],
    look: list[tuple[str, str, float, ndarray]],
    root: Float[ndarray, "time 2"],
    height: float,
    facing: int,
    light: float,
) -> Float[ndarray, "time height width"]:
    """Paint a jointed actor into `frames` (in place); returns its coverage in [0, 1].

    Each part is a capsule: coverage is the signed distance to its edge, shading follows its normal. `root` is
    the ground point per frame, `facing` mirrors, `light` is the direction of light in radians.
    """
    joints = skeleton(pose, height)
    joints["face"] = joints["head"] + np.array([0.025, 0.022]) * height
    steps, rows, columns = frames.shape[:3]
    coverage = np.zeros(frames.shape[:3], np.float32)
    _shadow(frames, root, height)
    lx, ly = np.float32(np.cos(light)), np.float32(np.sin(light))
    for first, second, radius, paint in look:
        a = joints[first] * [facing, 1] + root
        b = joints[second] * [facing, 1] + root
        corners = np.concatenate([a, b]).reshape(2, steps, 2)
        low = np.floor(corners.min(0) - radius - 1).astype(int)
        span = int(np.ceil((corners.max(0) - corners.min(0)).max() + 2 * radius)) + 3
        grid = np.arange(span, dtype=np.float32)
        px = grid[None, None] + (low[:, 0] - a[:, 0])[:, None, None].astype(np.float32)
        py = grid[None, :, None] + (low[:, 1] - a[:, 1])[:, None, None].astype(np.float32)
        bx, by = ((b - a)[:, i, None, None].astype(np.float32) for i in (0, 1))
        along = np.clip((px * bx + py * by) / np.maximum(bx * bx + by * by, 1e-6), 0, 1)
        dx, dy = px - along * bx, py - along * by
        distance = np.sqrt(dx * dx + dy * dy)
        cover = np.clip(radius + 0.5 - distance, 0, 1)
        shade = 0.86 - (0.3 / radius) * (dx * lx + dy * ly) - 0.16 * (distance / radius) ** 4
        for t in range(steps):
            x0, y0 = low[t]
            u0, v0 = max(-x0, 0), max(-y0, 0)
            u1, v1 = min(span, columns - x0), min(span, rows - y0)
            if u1 <= u0 or v1 <= v0:
                continue
            alpha = cover[t, v0:v1, u0:u1]
            tone = shade[t, v0:v1, u0:u1, None] * paint
            view = frames[t, y0 + v0 : y0 + v1, x0 + u0 : x0 + u1]
            view += alpha[..., None] * (tone - view)
            part = coverage[t, y0 + v0 : y0 + v1, x0 + u0 : x0 + u1]
            np.maximum(part, alpha, out=part)
    return coverage


def _shadow(frames: ndarray, root: ndarray, height: float) -> None:
    """Darken an ellipse under the feet."""
    rx, ry = 0.24 * height, 0.055 * height
    for t, (x, y) in enumerate(root):
        x0, y0 = max(int(x - rx) - 1, 0), max(int(y - ry) - 1, 0)
        view = frames[t, y0 : max(int(y + ry) + 2, 0), x0 : max(int(x + rx) + 2, 0)]
        if view.size:
            yy, xx = np.mgrid[y0 : y0 + view.shape[0], x0 : x0 + view.shape[1]]
            depth = np.clip(1.2 - ((xx - x) / rx) ** 2 - ((yy - y) / ry) ** 2, 0, 1)
            view *= (1 - 0.4 * depth[..., None]).astype(np.float32)


# --------------------------------------------------------------------------------------------- objects


def _draw_mug(d, c, dark, light):
    d.ellipse((62, 36, 92, 68), outline=dark, width=7)
    d.rounded_rectangle((20, 24, 72, 86), 10, fill=c)
    d.ellipse((20, 16, 72, 34), fill=dark)
    d.rectangle((28, 44, 64, 52), fill=light)


def _draw_fish(d, c, dark, light):
    d.polygon([(66, 50), (94, 24), (94, 76)], fill=dark)
    d.polygon([(36, 32), (52, 10), (62, 34)], fill=dark)
    d.ellipse((6, 26, 76, 74), fill=c)
    d.ellipse((18, 40, 28, 50), fill=light)
    d.arc((22, 28, 50, 72), -70, 70, fill=dark, width=4)


def _draw_key(d, c, dark, light):
    d.ellipse((3, 24, 53, 74), outline=c, width=15)
    d.rectangle((48, 40, 97, 57), fill=c)
    d.rectangle((66, 56, 77, 76), fill=c)
    d.rectangle((85, 56, 96, 82), fill=dark)


def _draw_house(d, c, dark, light):
    d.rectangle((18, 44, 82, 90), fill=c)
    d.polygon([(8, 48), (50, 8), (92, 48)], fill=dark)
    d.rectangle((42, 62, 58, 90), fill=dark)
    d.rectangle((24, 54, 37, 67), fill=light)
    d.rectangle((64, 54, 77, 67), fill=light)


def _draw_car(d, c, dark, light):
    d.polygon([(24, 46), (36, 24), (68, 24), (82, 46)], fill=c)
    d.polygon([(32, 44), (40, 30), (50, 30), (50, 44)], fill=light)
    d.polygon([(55, 44), (55, 30), (65, 30), (73, 44)], fill=light)
    d.rounded_rectangle((4, 44, 96, 70), 8, fill=c)
    for x in (16, 64):
        d.ellipse((x, 58, x + 22, 80), fill=(25, 25, 28, 255))
        d.ellipse((x + 7, 65, x + 15, 73), fill=light)


def _draw_umbrella(d, c, dark, light):
    d.pieslice((6, 12, 94, 100), 180, 360, fill=c)
    d.pieslice((34, 12, 66, 100), 180, 360, fill=light)
    d.line((50, 14, 50, 84), fill=dark, width=6)
    d.arc((36, 72, 54, 94), 0, 180, fill=dark, width=6)


def _draw_clock(d, c, dark, light):
    d.ellipse((8, 8, 92, 92), fill=dark)
    d.ellipse((17, 17, 83, 83), fill=light)
    d.line((50, 50, 50, 26), fill=dark, width=7)
    d.line((50, 50, 70, 60), fill=c, width=7)


def _draw_apple(d, c, dark, light):
    d.ellipse((12, 30, 58, 90), fill=c)
    d.ellipse((42, 30, 88, 90), fill=c)
    d.line((50, 36, 54, 12), fill=(70, 45, 25, 255), width=7)
    d.ellipse((54, 10, 82, 26), fill=(60, 140, 60, 255))
    d.ellipse((24, 42, 36, 58), fill=light)


OBJECTS = dict(mug=_draw_mug, fish=_draw_fish, key=_draw_key, house=_draw_house, car=_draw_car,
               umbrella=_draw_umbrella, clock=_draw_clock, apple=_draw_apple)  # fmt: skip


def _draw_anything(d, rng: Rng, c, dark, light):
    """A thing without a name: one to three random convex shapes with random trim."""
    for paint in (dark, c, light)[: rng.integers(2, 4)]:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        radius = rng.uniform(18, 44)
        x, y = rng.uniform(40, 60, 2)
        if rng.random() < 0.35:
            d.ellipse((x - radius, y - radius * 0.7, x + radius, y + radius * 0.7), fill=paint)
        else:
            d.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=paint)


def sprite(rng: Rng, name: str | None) -> Float[ndarray, "4 100 100"]:
    """RGBA picture of an object (`None`: a thing without a name), random colours, premultiplied."""
    image = Image.new("RGBA", (100, 100))
    main = colour(rng, saturation=(0.35, 0.9), value=(0.35, 0.95))
    paints = [
        tuple(int(255 * v) for v in np.clip(p, 0, 1)) + (255,)
        for p in (main, main * rng.uniform(0.35, 0.6), main * 0.35 + rng.uniform(0.5, 0.65))
    ]
    draw = ImageDraw.Draw(image)
    if name is None:
        _draw_anything(draw, rng, *paints)
    else:
        OBJECTS[name](draw, *paints)
    picture = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    shade = np.linspace(1.12, 0.82, 100, dtype=np.float32)
    picture[:3] = np.clip(picture[:3] * shade[:, None] * (0.5 + 0.5 * shade[None]), 0, 1) * picture[3:]
    return picture
