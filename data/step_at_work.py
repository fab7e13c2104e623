"""Draw the README's moving picture: STEP at work on one clip, from keeping everything to keeping a tenth.

python data/step_at_work.py [FILE]     (default: data/step_at_work.webp)
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import steplab as sl
from steplab.painting import ORANGE, paint

FILE = Path(__file__).resolve().with_name("step_at_work.webp")
NETWORK, INDEX, RATIO = "stage-action-vgg16lstm", 0, 0.1
FRAMES_A_SECOND = 8  # as fast as the clip itself
FIRST, SEARCH, LAST = 8, 48, 24  # pictures of the whole clip, of the search, of its result
SIDE, GAP, EDGE, TOP, BOTTOM = (
    336,
    24,
    12,
    44,
    100,
)  # pixels; a frame is enlarged three times
WIDE = 2 * EDGE + 2 * SIDE + GAP
INK, PALE, SURE = "#222222", "#E4E4E4", "#444444"
FONTS = Path(get_data_path()) / "fonts" / "ttf"


def search(preset: str = "lesson") -> tuple[sl.Record, list[tuple[int, Tensor, float]], sl.Explanation]:
    """The record, (iteration, mask (T, H, W), probability) after each iteration, and what comes of it."""
    record, network, steps = sl.Stage("action", "test")[INDEX], sl.load_network(NETWORK), []
    result = sl.explain(
        network,
        record.clip,
        ratios=(RATIO,),
        preset=preset,
        progress=False,
        callback=lambda state: steps.append((state.iteration, state.masks[0], float(state.probability[0]))),
        callback_every=1,
    )
    assert isinstance(result, sl.Explanation)
    return record, steps, result


def text(draw: ImageDraw.ImageDraw, place: tuple[float, float], words: str, size: int, **look) -> None:
    font = FONTS / ("DejaVuSans-Bold.ttf" if look.pop("bold", False) else "DejaVuSans.ttf")
    draw.text(place, words, font=ImageFont.truetype(str(font), size), **{"fill": INK, **look})


def bar(draw: ImageDraw.ImageDraw, row: int, words: str, value: float, colour: str) -> None:
    """A line below the frames: what, a bar from 0 to 1, the number."""
    y, x0, x1 = TOP + SIDE + 18 + 34 * row, 250, WIDE - EDGE - 64
    text(draw, (x0 - 12, y + 9), words, 16, anchor="rm")
    draw.rounded_rectangle((x0, y, x1, y + 18), 4, PALE)
    draw.rounded_rectangle((x0, y, x0 + max(8, value * (x1 - x0)), y + 18), 4, colour)
    text(draw, (WIDE - EDGE, y + 9), f"{100 * value:.0f} %", 17, anchor="rm", bold=True)


def picture(
    left: np.ndarray, right: np.ndarray, note: str, label: str, kept: float, sure: float
) -> Image.Image:
    """One picture: a frame of the clip, the same frame as it is kept, two bars."""
    page = Image.new("RGB", (WIDE, TOP + SIDE + BOTTOM), "white")
    draw, right_edge = ImageDraw.Draw(page), EDGE + SIDE + GAP
    for x, frame, title in ((EDGE, left, "A clip"), (right_edge, right, "What is kept of it")):
        page.paste(Image.fromarray(frame), (x, TOP))
        text(draw, (x, TOP - 12), title, 18, anchor="ls", bold=True)
    text(draw, (WIDE - EDGE, TOP - 12), note, 15, anchor="rs", fill=SURE)
    bar(draw, 0, "kept of the clip", kept, ORANGE)
    bar(draw, 1, f"sure of “{label}”", sure, SURE)
    return page


def pictures(record: sl.Record, steps: list, result: sl.Explanation) -> list[Image.Image]:
    """The whole film: the clip plays on and on while its mask shrinks."""
    whole = (0, torch.ones_like(result.masks[0]), result.original)
    found = (len(steps), result.masks[0], float(result.probability[0]))
    shown = (
        [whole] * FIRST + [steps[round(k)] for k in np.linspace(0, len(steps) - 1, SEARCH)] + [found] * LAST
    )
    pixels, drawn = record.clip.pixels, []
    for k, (iteration, mask, sure) in enumerate(shown):
        one = slice(t := k % pixels.shape[1], t + 1)
        left, right = paint(pixels[:, one])[0], paint(pixels[:, one], mask[one].cpu())[0]
        note = f"iteration {iteration}" + ", done" * (k >= FIRST + SEARCH)
        drawn.append(picture(left, right, note, result.label, float(mask.mean()), sure))
    return drawn


def main() -> None:
    film = pictures(*search())
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    film[0].save(
        path,
        save_all=True,
        append_images=film[1:],
        duration=1000 // FRAMES_A_SECOND,
        loop=0,
        quality=60,
        method=6,
    )
    print(f"{path.name}: {len(film)} pictures, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
