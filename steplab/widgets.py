"""Sliders over what the other files compute: nothing here thinks, and each widget has a `.static()` twin.

>>> ExplanationViewer(result, record)          # play the clip, slide through frames and ratios
>>> live = LiveOptimisation(network, clip).start()
>>> result = live.wait()

Where no widgets can be (a saved page, a code host) the twin shows instead: both travel in one output.
"""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

import ipywidgets
import numpy as np
import torch
from ipywidgets import jslink
from matplotlib.figure import Figure

from . import figures, painting
from .clips import Record
from .explanation import Explanation
from .live import LiveOptimisation, SideBySide, WithTwin, jpeg
from .losses import KERNEL, ellipsoid_kernel, window_count, window_means
from .sketch import PerturbationExplorer

__all__ = [
    "ExplanationViewer",
    "Explorer",
    "KernelExplorer",
    "LiveOptimisation",
    "NetworkComparison",
    "PerturbationExplorer",
    "SideBySide",
]

WIDE = "680px"


class ExplanationViewer(WithTwin):
    """A clip beside what its masks keep: play it, or slide through frames and ratios.

    The frames of a ratio and view are encoded at once and lie in the browser, so playing and the frame slider
    need no kernel; another ratio or view sends new frames.

    Args:
        explanations: one, or several by name (say, by method), of which one is on show. In place of each, a
            list: of several clips, the same for all names.
        record: the clip's record, or one for each clip; shows the true mask (or boxes) and segment.
        scale: how many times frames are enlarged; by default to about 336 px.

    Attributes:
        frame, ratio, view, opacity, truth, which, clip: the controls; set their `value` from Python as well.

    Raises:
        ValueError: no explanation, names with different clips, or a record of another shape than its clip.
    """

    _together = False  # all names on show at once

    def __init__(
        self,
        explanations: Explanation | Mapping[str, Explanation | Sequence[Explanation]],
        record: Record | Sequence[Record] | None = None,
        scale: int | None = None,
    ):
        given = {"": explanations} if isinstance(explanations, Explanation) else dict(explanations)
        self._named = {
            name: [one] if isinstance(one, Explanation) else list(one) for name, one in given.items()
        }
        self._records = [record] if isinstance(record, Record) else list(record or ())
        self._check()
        first = next(iter(self._named.values()))
        self._scale, self._cache, self._canvases = scale, {}, {}
        names = [r.name for r in self._records] or [PurePath(e.clip.source).name for e in first]
        look = {
            "style": {"description_width": "60px"},
            "layout": ipywidgets.Layout(width="340px", max_width="100%"),
        }
        self.play = ipywidgets.Play(repeat=True)
        self.frame = ipywidgets.SelectionSlider(options=[("", 0)], description="frame", **look)
        self.ratio = ipywidgets.SelectionSlider(options=self._ratios(first[0]), description="keep", **look)
        self.view = ipywidgets.ToggleButtons(
            options=[("what is kept", "kept"), ("heat", "heat"), ("mask", "mask"), ("outline", "clip")],
            style={"button_width": "110px"},
        )
        self.opacity = ipywidgets.SelectionSlider(
            options=[(painting.percent(v), v) for v in (0.25, 0.5, 0.75, 1.0)],
            value=1.0,
            description="overlay",
            **look,
        )
        self.truth = ipywidgets.Checkbox(
            value=True, description="show the truth", indent=False, layout={"width": "150px"}
        )
        self.which = ipywidgets.Dropdown(options=list(self._named), description="method", **look)
        self.clip = ipywidgets.Dropdown(
            options=[(f"{k + 1}: {name}", k) for k, name in enumerate(names)], description="clip", **look
        )
        shown = len(self._named) if self._together else 1
        part = {"width": f"{100 / (shown + 1):.1f}%", "margin": "0"}
        self._stacks = [ipywidgets.Stack([]) for _ in range(shown + 1)]
        self._captions = [ipywidgets.HTML() for _ in self._stacks]
        panels = [
            ipywidgets.VBox(pair, layout=part) for pair in zip(self._captions, self._stacks, strict=True)
        ]
        self.note = ipywidgets.HTML()
        # In the browser alone: not a word to the kernel while it plays.
        self.links = [jslink((self.play, "value"), (self.frame, "index"))]
        self.links += [jslink((self.frame, "index"), (stack, "selected_index")) for stack in self._stacks]
        for control in (self.ratio, self.view, self.opacity, self.truth):
            control.observe(self._show, "value")
        self.which.observe(self._choose, "value")
        self.clip.observe(self._choose_clip, "value")
        self._choose_clip()
        wide = {
            "width": f"{min(340 * (shown + 1), 1020)}px",
            "max_width": "100%",
            "align_items": "flex-start",
        }
        rows = [[self.play, self.frame], [self.ratio, self.opacity], [self.view]]
        choosers = [self.which] * (len(self._named) > 1 and not self._together)
        choosers += [self.clip] * (len(first) > 1) + [self.truth] * bool(self._records)
        wrap = {"flex_flow": "row wrap", "max_width": "100%"}
        controls = [ipywidgets.HBox(row, layout=wrap) for row in [*rows, choosers] if row]
        super().__init__([self.note, ipywidgets.HBox(panels, layout=wide), *controls])

    @property
    def explanation(self) -> Explanation:
        """The one on show; of several at once, the first."""
        return self._on_show()[0][1]

    def picture(self, panel: int = 0) -> bytes:
        """The JPEG on show, from the controls as they stand."""
        return bytes(self._stacks[panel + 1].children[self.frame.index].value)

    def static(self):
        """What the controls show, as a figure: the ratio chosen, in the view chosen, frame beside frame."""
        shown, record = self._on_show(), self._record() if self.truth.value else None
        k, one = self.ratio.index, shown[0][1]
        tags = [f"{name}\n" * self._together + e.caption(k) for name, e in shown]
        return figures.filmstrip(
            one.clip.pixels,
            torch.stack([e.masks[k] for _, e in shown]),
            labels=tags,
            times=one.clip.times,
            view=str(self.view.value),
            title=f"“{one.label}”, p = {', '.join(f'{e.original:.2f}' for _, e in shown)} for the whole clip",
            **self._known(record),
        )

    @staticmethod
    def _known(record: Record | None) -> dict:
        return {} if record is None else {"true_mask": record.mask, "boxes": record.boxes}

    @staticmethod
    def _ratios(one: Explanation) -> list[tuple[str, int]]:
        return [(painting.percent(v), k) for k, v in enumerate(one.ratios)]

    def _check(self) -> None:
        if not self._named or not all(self._named.values()):
            raise ValueError("explanations: got none, expected at least one")
        (first, mine), *others = self._named.items()
        for name, theirs in others:
            same = [torch.equal(a.clip.pixels, b.clip.pixels) for a, b in zip(mine, theirs, strict=False)]
            if len(mine) != len(theirs) or not all(same):
                raise ValueError(f"explanations: {name!r} explains other clips than {first!r}")
            if self._together and any(a.ratios != b.ratios for a, b in zip(mine, theirs, strict=True)):
                raise ValueError(f"explanations: {name!r} has other ratios than {first!r}")
        if self._records and len(self._records) != len(mine):
            raise ValueError(f"record: got {len(self._records)}, expected {len(mine)}, one a clip")
        for record, one in zip(self._records, mine, strict=False):
            if record.clip.pixels.shape != one.clip.pixels.shape:
                shapes = f"{tuple(record.clip.pixels.shape)}, expected {tuple(one.clip.pixels.shape)}"
                raise ValueError(f"record: got a clip of shape {shapes} as in the explanation")

    def _record(self) -> Record | None:
        return self._records[int(self.clip.index or 0)] if self._records else None

    def _on_show(self) -> list[tuple[str, Explanation]]:
        names = list(self._named) if self._together else [str(self.which.value)]
        return [(name, self._named[name][int(self.clip.index or 0)]) for name in names]

    def _canvas(self) -> painting.Canvas:
        """The clip on show, enlarged when it is first seen."""
        index = self.clip.index
        if index not in self._canvases:
            pixels, record = self.explanation.clip.pixels, self._record()
            scale = self._scale or max(1, 336 // min(pixels.shape[2:]))
            segment = None if record is None else record.segment
            self._canvases[index] = painting.Canvas(pixels, scale, segment=segment, **self._known(record))
        return self._canvases[index]

    def _choose_clip(self, _=None) -> None:
        """Another clip: its frames, its times."""
        times = self.explanation.clip.times.tolist()
        count = len(times)
        step = (times[-1] - times[0]) / max(count - 1, 1)
        self.play.max, self.play.interval = count - 1, int(min(max(1000 * step, 60), 500))
        at = min(self.frame.index, count - 1)
        self.frame.options = [(f"{t + 1} of {count}, {s:.2f} s", t) for t, s in enumerate(times)]
        self.frame.index = at
        clip = self._encoded("", lambda: self._canvas().frames(truth=False))
        for stack in self._stacks:
            if len(stack.children) != count:
                stack.selected_index = None
                look = {"layout": {"width": "100%", "margin": "0"}, "format": "jpeg"}
                stack.children = [ipywidgets.Image(**look) for _ in range(count)]
                stack.selected_index = at
        for image, encoded in zip(self._stacks[0].children, clip, strict=True):
            image.value = encoded
        self._choose()

    def _choose(self, _=None) -> None:
        """Another explanation: its ratios, at the place nearest to the one chosen before."""
        k = min(self.ratio.index, len(self.explanation.ratios) - 1)
        self.ratio.unobserve(self._show, "value")
        self.ratio.options = self._ratios(self.explanation)
        self.ratio.index = k
        self.ratio.observe(self._show, "value")
        self._show()

    def _encoded(self, name: str, draw: Callable[[], np.ndarray], *key) -> list[bytes]:
        """The frames of a panel as files; what was drawn once is not drawn again."""
        key = (self.clip.index, name, *key)
        if key not in self._cache:
            self._cache[key] = [painting.encode(frame, "jpeg") for frame in draw()]
        return self._cache[key]

    def _show(self, _=None) -> None:
        k, look = self.ratio.index, (str(self.view.value), self.truth.value, self.opacity.value)
        panels = zip(self._on_show(), self._stacks[1:], self._captions[1:], strict=True)
        for (name, one), stack, caption in panels:
            mask = one.masks[k]
            encoded = self._encoded(name, lambda mask=mask: self._canvas().panel(mask, *look), k, *look)
            for image, value in zip(stack.children, encoded, strict=True):
                image.value = value
            words = f"keeps {painting.percent(one.ratios[k])}: p = <b>{float(one.probability[k]):.2f}</b>"
            words += "" if one.enough[k] else ", not enough"
            caption.value = f"{html.escape(name if self._together else one.method)} {words}"
        first = self.explanation
        whole = ", ".join(f"{one.original:.2f}" for _, one in self._on_show())
        self._captions[0].value = f"the clip: p = {whole}"
        blue = "; blue: the truth" if self._records and self.truth.value else ""
        label = html.escape(f"“{first.label}”")
        self.note.value = f"<b>{label}</b>. Bars: how much of each frame is kept{blue}."


class NetworkComparison(ExplanationViewer):
    """Several explanations of one clip side by side, say of two networks, played together.

    >>> NetworkComparison({"R(2+1)D": one, "VGG-LSTM": other}, record)

    As :class:`ExplanationViewer`; all have the same ratios, and the slider moves all of them.
    """

    _together = True


class Explorer(WithTwin):
    """Sliders over a figure that a function draws; what was drawn once is shown again at once.

    >>> Explorer(lambda time, size: figures.kernel(...), {"time": (3, 5, 7), "size": (7, 11)}, ready=True)

    Args:
        draw: called with one keyword argument for each slider; returns a figure, or pixels (quicker).
        options: what each slider offers, by name: numbers get a slider, words get buttons.
        start: where the sliders stand at first, by name; by default in the middle, words at the first.
        ready: draw every combination beforehand, so that sliders answer within a few milliseconds; leave it
            out where there are too many and `draw` is quick.

    Attributes:
        controls: the sliders by name; set their `value` from Python as well.
    """

    def __init__(
        self,
        draw: Callable[..., Figure | np.ndarray],
        options: Mapping[str, Sequence],
        start: Mapping[str, object] | None = None,
        ready: bool = False,
    ):
        self._draw, self._cache, self.controls = draw, {}, {}
        for name, given in options.items():
            values = list(given)
            if not values:
                raise ValueError(f"options: got nothing to choose for {name!r}, expected at least one value")
            words = isinstance(values[0], str)
            kind = ipywidgets.ToggleButtons if words else ipywidgets.SelectionSlider
            value = (start or {}).get(name, values[0 if words else len(values) // 2])
            look = {
                "style": {"description_width": "110px"},
                "layout": ipywidgets.Layout(width=WIDE, max_width="100%"),
            }
            self.controls[name] = kind(
                options=values, value=value, description=name.replace("_", " "), **look
            )
        self.picture = ipywidgets.Image(format="jpeg", layout={"max_width": "100%", "margin": "0"})
        if ready:
            for chosen in itertools.product(*(c.options for c in self.controls.values())):
                self._encoded(chosen)
        for control in self.controls.values():
            control.observe(self._show, "value")
        self._show()
        super().__init__([*self.controls.values(), self.picture])

    def static(self):
        """The figure on show."""
        return self._draw(**{name: control.value for name, control in self.controls.items()})

    def _encoded(self, chosen: tuple) -> bytes:
        if chosen not in self._cache:
            drawn = self._draw(**dict(zip(self.controls, chosen, strict=True)))
            self._cache[chosen] = (
                jpeg(drawn) if isinstance(drawn, Figure) else painting.encode(drawn, "jpeg", 90)
            )
        return self._cache[chosen]

    def _show(self, _=None):
        self.picture.value = self._encoded(tuple(control.value for control in self.controls.values()))


class KernelExplorer(Explorer):
    """The ellipsoid of eq. 8 and 9 in three dimensions: change its sides, turn it, count ones and windows.

    >>> KernelExplorer((16, 112, 112), ratios=(0.05, 0.1))

    Args:
        size: (T, H, W) of the clips in which windows are counted.
        ratios: preservation ratios, in (0, 1), for which full windows are counted.
        sides: what the sliders offer for T_K, and for H_K and W_K.
    """

    def __init__(
        self,
        size: tuple[int, int, int] = (16, 112, 112),
        ratios: Sequence[float] = (0.02, 0.05, 0.1, 0.2, 0.3),
        sides: tuple[Sequence[int], Sequence[int]] = ((1, 3, 5, 7, 9, 11), (3, 5, 7, 9, 11, 13, 15)),
    ):
        self._size, self._ratios, self.note = size, ratios, ipywidgets.HTML()
        start = dict(zip(("T_K", "H_K", "W_K"), KERNEL, strict=True))
        start |= {"stride": KERNEL[1], "turn": 30, "tilt": 30}
        options = {"T_K": sides[0], "H_K": sides[1], "W_K": sides[1], "stride": (7, KERNEL[1])}
        options |= {"turn": range(-90, 91, 15), "tilt": range(-90, 91, 15)}
        super().__init__(
            lambda turn, tilt, **chosen: painting.body(self._ones(**chosen), turn, tilt), options, start
        )
        self.children = [*self.children, self.note]

    def static(self):
        """The body as it is turned, its slices, and the count of windows."""
        chosen = {name: int(control.value) for name, control in self.controls.items()}
        turn, tilt = chosen.pop("turn"), chosen.pop("tilt")
        return figures.kernel(self._ones(**chosen), title=self._count(**chosen), turn=turn, tilt=tilt)

    @staticmethod
    def _ones(T_K: int, H_K: int, W_K: int, stride: int = 1):
        return ellipsoid_kernel((T_K, H_K, W_K), normalised=False)

    def _count(self, T_K: int, H_K: int, W_K: int, stride: int) -> str:
        kernel = (T_K, H_K, W_K)
        places = window_means(torch.zeros(1, *self._size), kernel, (1, stride, stride)).numel()
        counts = ", ".join(str(window_count(v, self._size, kernel)) for v in self._ratios)
        shares = ", ".join(painting.percent(v) for v in self._ratios)
        return f"k = {counts} of {places:,} windows, to keep {shares}"

    def _show(self, _=None):
        super()._show()
        chosen = {name: int(c.value) for name, c in self.controls.items() if name not in ("turn", "tilt")}
        ones = self._ones(**chosen)
        frames = ", ".join(str(int(n)) for n in ones.sum((1, 2)))
        self.note.value = (
            f"Z = <b>{int(ones.sum())}</b> ones ({frames} in its frames). {self._count(**chosen)}"
        )
