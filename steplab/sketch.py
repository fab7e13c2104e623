"""Masks drawn by hand, judged like those that a method finds. `widgets.py` offers the explorer by name."""

import html
from dataclasses import dataclass
from pathlib import Path

import anywidget
import ipywidgets
import torch
import traitlets
from ipywidgets import jslink
from jaxtyping import Float
from torch import Tensor

from . import figures, painting
from .clips import Clip
from .config import StepConfig
from .engine import untouched
from .explain import Explanation, as_targets
from .live import WithTwin
from .masks import MaskGenerator
from .networks import Network
from .perturb import Perturbation

TOLERANCE = 0.02  # a mask may be larger than its ratio by this share of it


@dataclass
class Judgement:
    """What a network makes of a mask.

    Attributes:
        mask: (T, H, W) in [0, 1].
        ratio: its mean. probability: Phi_c of what it keeps.
        score: that probability in per cent of the rival's (of 1 without one); 0 for a mask that is too large.
        seen: (3, T, H, W) in [0, 1], the clip as the network sees it through the mask.
    """

    mask: Float[Tensor, "time height width"]
    ratio: float
    probability: float
    score: float
    seen: Float[Tensor, "3 time height width"]


class Contest:
    """One clip, one budget: who keeps more of the answer?

    Args:
        network, clip, target: as for `explain`; with a rival, its target.
        ratio: the most that a mask may keep, in (0, 1); with a rival, that of its first mask.
        rival: an explanation of the same clip whose first mask is to be beaten.

    Raises:
        ValueError: a ratio outside of (0, 1), an unknown target, or a rival that explains another clip.
    """

    def __init__(
        self,
        network: Network,
        clip: Clip,
        target: str | int | None = None,
        ratio: float = 0.1,
        rival: Explanation | None = None,
    ):
        if rival is not None:
            if not torch.equal(rival.clip.pixels, clip.pixels):
                raise ValueError("rival: explains another clip, expected the clip that is drawn on")
            target, ratio = rival.target, rival.ratios[0]
        if not 0 < ratio < 1:
            raise ValueError(f"ratio: got {ratio}, expected a number between 0 and 1")
        self.network, self.clip, self.ratio, self.rival = network, clip, ratio, rival
        look = StepConfig() if rival is None else rival.config
        self._perturb = Perturbation(clip.pixels[None], look.perturbation, look.blur_sigma)
        grid = look if isinstance(look, StepConfig) else StepConfig()  # a baseline has no seeds of its own
        _, time, height, width = clip.pixels.shape
        self._generator = MaskGenerator((time, height, width), grid.step, grid.sigma, grid.boundary)
        self.seed_shape = self._generator.seed_shape
        with torch.no_grad(), untouched(network, torch.device("cpu")):
            whole = network.log_probabilities(clip.pixels[None]).float().exp()
        (self.target,) = as_targets(network, target, whole)
        self.label, self.original = network.classes[self.target], float(whole[0, self.target])

    def judge(self, seeds: Float[Tensor, "time h w"]) -> Judgement:
        """What a mask from these seeds, (T, h, w) in [0, 1], keeps; see `MaskGenerator`."""
        with torch.no_grad(), untouched(self.network, torch.device("cpu")):
            mask = self._generator(seeds[None])
            seen = self._perturb(mask)
            p = float(self.network.log_probabilities(seen.clone())[0, self.target].float().exp())
        ratio = float(mask.mean())
        par = 1.0 if self.rival is None else max(float(self.rival.probability[0]), 1e-6)
        score = 100 * p / par if ratio <= (1 + TOLERANCE) * self.ratio else 0.0
        return Judgement(mask[0], ratio, p, score, seen[0].clamp(0, 1))


class Sketch(anywidget.AnyWidget):
    """A clip's frames to draw on, cell by cell; by mouse, finger or keys."""

    _esm = Path(__file__).with_name("sketch.js")
    _css = Path(__file__).with_name("sketch.css")
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)  # JPEG files
    grid = traitlets.Tuple(traitlets.Int(), traitlets.Int()).tag(sync=True)  # rows and columns of cells
    cells = traitlets.Unicode().tag(sync=True)  # frame by frame, row by row: 00 (not kept) to ff
    frame = traitlets.Int(0).tag(sync=True)
    brush = traitlets.Int(1).tag(sync=True)  # cells from the middle of the brush to its edge
    reach = traitlets.Int(0).tag(sync=True)  # frames before and after the one on show that are drawn on too
    erase = traitlets.Bool(False).tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)


class PerturbationExplorer(WithTwin):
    """Draw a mask with the mouse and watch the probability: beat STEP by hand, at the same ratio.

    >>> PerturbationExplorer(network, clip, rival=sl.explain(network, clip, ratios=(0.1,)))

    Left the clip, pale where nothing is kept; right what the network sees. The cells that are drawn are the
    seeds of the mask, so a hand can draw whatever the rival could find. After each stroke the network is
    asked.

    Args: as for :class:`Contest`.

    Attributes:
        canvas: the :class:`Sketch`. frame, tool, brush, reach: the controls. judgement: of the present mask.
        best: the highest score so far.
    """

    def __init__(
        self,
        network: Network,
        clip: Clip,
        target: str | int | None = None,
        *,
        ratio: float = 0.1,
        rival: Explanation | None = None,
    ):
        self.contest = Contest(network, clip, target, ratio, rival)
        count, *grid = self.contest.seed_shape
        self._scale = max(1, 336 // min(clip.pixels.shape[2:]))
        shown = painting.paint(clip.pixels, scale=self._scale)
        label = f"mask over {clip.source}"
        self.canvas = Sketch(
            frames=[painting.encode(f, "jpeg") for f in shown],
            grid=tuple(grid),
            cells="00" * (count * grid[0] * grid[1]),
            label=label,
        )
        look = {"style": {"description_width": "60px"}, "layout": {"width": "340px", "max_width": "100%"}}
        options = [(f"{t + 1} of {count}, {s:.2f} s", t) for t, s in enumerate(clip.times.tolist())]
        self.frame = ipywidgets.SelectionSlider(options=options, description="frame", **look)
        self.tool = ipywidgets.ToggleButtons(
            options=[("draw", False), ("rub out", True)], style={"button_width": "90px"}
        )
        self.brush = ipywidgets.SelectionSlider(options=range(1, 5), value=2, description="brush", **look)
        self.reach = ipywidgets.ToggleButtons(
            options=[("this frame", 0), ("5 frames", 2), ("all frames", count)],
            value=count,
            style={"button_width": "90px"},
        )
        clear = ipywidgets.Button(description="clear", icon="trash", layout={"width": "90px"})
        self.note, self.best = ipywidgets.HTML(), 0.0
        part = {"width": "336px", "max_width": "100%", "margin": "0"}
        seen = [ipywidgets.Image(format="jpeg", layout=part) for _ in range(count)]
        self.seen = ipywidgets.Stack(seen, selected_index=0)
        self.links = [
            jslink((self.frame, "index"), (self.canvas, "frame")),
            jslink((self.frame, "index"), (self.seen, "selected_index")),
        ]
        clear.on_click(lambda _: self.draw(torch.zeros(self.contest.seed_shape)))
        for name, control in (("erase", self.tool), ("brush", self.brush), ("reach", self.reach)):
            control.observe(lambda change, name=name: setattr(self.canvas, name, change["new"]), "value")
            setattr(self.canvas, name, control.value)
        self.canvas.observe(self._judge, "cells")
        self._judge()
        wrap = {"flex_flow": "row wrap", "max_width": "100%"}
        rows = [[self.canvas, self.seen], [self.frame, self.brush], [self.tool, self.reach, clear]]
        super().__init__([self.note, *(ipywidgets.HBox(row, layout=wrap) for row in rows)])

    @property
    def seeds(self) -> Float[Tensor, "time h w"]:
        """What is drawn, (T, h, w) in [0, 1]."""
        cells = torch.frombuffer(bytearray.fromhex(self.canvas.cells), dtype=torch.uint8)
        return cells.view(self.contest.seed_shape) / 255

    def draw(self, seeds: Float[Tensor, "time h w"]) -> None:
        """Put these seeds, (T, h, w) in [0, 1], in place of what is drawn."""
        self.canvas.cells = (255 * seeds).round().byte().numpy().tobytes().hex()

    def static(self):
        """The mask that is drawn, and below it the rival's."""
        masks, rival = {"you": (self.judgement.mask, self.judgement.probability)}, self.contest.rival
        if rival is not None:
            masks[rival.method] = rival.masks[0], float(rival.probability[0])
        return figures.filmstrip(
            self.contest.clip.pixels,
            torch.stack([mask for mask, _ in masks.values()]),
            labels=[f"{name}\n{float(mask.mean()):.1%}\np = {p:.2f}" for name, (mask, p) in masks.items()],
            times=self.contest.clip.times,
            title=f"“{self.contest.label}”, p = {self.contest.original:.2f} for the whole clip",
        )

    def _judge(self, _=None) -> None:
        one, contest = self.contest.judge(self.seeds), self.contest
        self.judgement = one
        self.best = max(self.best, one.score)
        for image, frame in zip(self.seen.children, painting.paint(one.seen, scale=self._scale), strict=True):
            image.value = painting.encode(frame, "jpeg")
        over = one.ratio - contest.ratio
        words = f"<b>{html.escape(contest.label)}</b>: you keep {painting.percent(round(one.ratio, 3))} "
        words += f"of at most {painting.percent(contest.ratio)}, p = <b>{one.probability:.2f}</b>"
        if (rival := contest.rival) is not None:
            words += f" ({html.escape(rival.method)}: {float(rival.probability[0]):.2f})"
        score = f"score <b>{one.score:.0f}</b>, best so far {self.best:.0f}"
        if over > TOLERANCE * contest.ratio:
            score = (
                f"<b>too much</b>: rub out {painting.percent(round(over, 3))}; best so far {self.best:.0f}"
            )
        self.note.value = f"{words}; {score}"
