"""Sliders over what the other files compute: nothing here thinks, and each widget has a `.static()` twin.

>>> ExplanationViewer(result, record)          # play the clip, slide through frames and ratios
>>> live = LiveOptimisation(network, clip).start()
>>> result = live.wait()

Where no widgets can be (a saved page, a code host) the twin shows instead: both travel in one output.
"""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
from ipywidgets import jslink
from matplotlib.figure import Figure

from . import figures, painting
from .clips import Record
from .explanation import Explanation
from .live import LiveOptimisation, SideBySide, WithTwin, jpeg

__all__ = ["ExplanationViewer", "Explorer", "LiveOptimisation", "SideBySide"]

WIDE = "680px"


class ExplanationViewer(WithTwin):
    """A clip beside what its masks keep: play it, or slide through frames and ratios.

    The frames of a ratio and view are encoded at once and lie in the browser, so playing and the frame slider
    need no kernel; another ratio or view sends new frames.

    Args:
        explanations: one, or several by name (say, by method), of which one is on show.
        record: the clip's record; shows the true mask (or boxes) and segment.
        scale: how many times frames are enlarged; by default to about 336 px.

    Attributes:
        frame, ratio, view, which: the controls; set their `value` from Python as well.

    Raises:
        ValueError: no explanation, or a record of another shape than the clip.
    """

    def __init__(
        self,
        explanations: Explanation | Mapping[str, Explanation],
        record: Record | None = None,
        scale: int | None = None,
    ):
        named = {"": explanations} if isinstance(explanations, Explanation) else dict(explanations)
        if not named:
            raise ValueError("explanations: got none, expected at least one")
        for one in named.values():
            if record is not None and record.clip.pixels.shape != one.clip.pixels.shape:
                shapes = f"{tuple(record.clip.pixels.shape)}, expected {tuple(one.clip.pixels.shape)}"
                raise ValueError(f"record: got a clip of shape {shapes} as in the explanation")
        first = next(iter(named.values()))
        self._scale = scale or max(1, 336 // min(first.clip.pixels.shape[2:]))
        self._named, self._record, self._cache = named, record, {}
        times = first.clip.times.tolist()
        count = len(times)
        step = (times[-1] - times[0]) / max(count - 1, 1)
        options = [(f"{t + 1} of {count}, {s:.2f} s", t) for t, s in enumerate(times)]
        self.play = ipywidgets.Play(max=count - 1, interval=int(min(max(1000 * step, 60), 500)), repeat=True)
        look = {"style": {"description_width": "60px"}, "layout": ipywidgets.Layout(width=WIDE)}
        self.frame = ipywidgets.SelectionSlider(options=options, description="frame", **look)
        self.ratio = ipywidgets.SelectionSlider(options=self._ratios(first), description="keep", **look)
        self.view = ipywidgets.ToggleButtons(
            options=[("what is kept", "kept"), ("heat", "heat"), ("mask", "mask"), ("outline", "clip")],
            description="show",
            style=look["style"] | {"button_width": "110px"},
        )
        self.which = ipywidgets.Dropdown(options=list(named), description="method", **look)
        shape = ipywidgets.Layout(width=WIDE, max_width="100%")
        self._images = [ipywidgets.Image(format="jpeg", layout=shape) for _ in times]
        self.stack = ipywidgets.Stack(self._images, selected_index=0)
        self.note = ipywidgets.HTML()
        # In the browser alone: not a word to the kernel while it plays.
        self.links = [
            jslink((self.play, "value"), (self.frame, "index")),
            jslink((self.frame, "index"), (self.stack, "selected_index")),
        ]
        self.ratio.observe(self._show, "value")
        self.view.observe(self._show, "value")
        self.which.observe(self._choose, "value")
        choosers = [self.which] if len(named) > 1 else []
        controls = [ipywidgets.HBox([self.play, self.frame]), self.ratio, self.view, *choosers]
        self._show()
        super().__init__([self.note, self.stack, *controls])

    @property
    def explanation(self) -> Explanation:
        """The one on show."""
        return self._named[str(self.which.value)]

    def picture(self) -> bytes:
        """The JPEG on show, from the controls as they stand."""
        return bytes(self._images[self.frame.index].value)

    def static(self):
        """What the controls show, as a figure: the ratio chosen, in the view chosen, frame beside frame."""
        one, k, record = self.explanation, self.ratio.index, self._record
        return figures.filmstrip(
            one.clip.pixels,
            one.masks[k],
            ratios=[one.ratios[k]],
            probability=[float(one.probability[k])],
            times=one.clip.times,
            view=str(self.view.value),
            title=f"“{one.label}”, p = {one.original:.2f} for the whole clip",
            **self._known(record),
        )

    @staticmethod
    def _known(record: Record | None) -> dict:
        return {} if record is None else {"true_mask": record.mask, "boxes": record.boxes}

    @staticmethod
    def _ratios(one: Explanation) -> list[tuple[str, int]]:
        return [(painting.percent(v), k) for k, v in enumerate(one.ratios)]

    def _choose(self, _=None):
        """Another explanation: its ratios, at the place nearest to the one chosen before."""
        k = min(self.ratio.index, len(self.explanation.ratios) - 1)
        self.ratio.unobserve(self._show, "value")
        self.ratio.options = self._ratios(self.explanation)
        self.ratio.index = k
        self.ratio.observe(self._show, "value")
        self._show()

    def _show(self, _=None):
        one, k = self.explanation, self.ratio.index
        key = (self.which.value, k, self.view.value)
        if key not in self._cache:
            frames = painting.viewer_frames(
                one.clip.pixels,
                one.masks[k],
                str(self.view.value),
                segment=None if self._record is None else self._record.segment,
                scale=self._scale,
                **self._known(self._record),
            )
            self._cache[key] = [painting.encode(frame, "jpeg") for frame in frames]
        for image, encoded in zip(self._images, self._cache[key], strict=True):
            image.value = encoded
        share, p = painting.percent(one.ratios[k]), float(one.probability[k])
        self.note.value = (
            f"<b>{html.escape(one.label)}</b>: p = {one.original:.2f} for the whole clip, "
            f"<b>{p:.2f}</b> for the {share} that {html.escape(one.method)} keeps. "
            "Bars: how much of each frame is kept" + "; blue: the truth." * (self._record is not None)
        )


class Explorer(WithTwin):
    """Sliders over a figure that a function draws; what was drawn once is shown again at once.

    >>> Explorer(lambda time, size: figures.kernel(...), {"time": (3, 5, 7), "size": (7, 11)}, ready=True)

    Args:
        draw: called with one keyword argument for each slider; returns a figure.
        options: what each slider offers, by name: numbers get a slider, words get buttons.
        start: where the sliders stand at first, by name; by default in the middle, words at the first.
        ready: draw every combination beforehand, so that sliders answer within a few milliseconds; leave it
            out where there are too many and `draw` is quick.

    Attributes:
        controls: the sliders by name; set their `value` from Python as well.
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
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
            look = {"style": {"description_width": "110px"}, "layout": ipywidgets.Layout(width=WIDE)}
            self.controls[name] = kind(
                options=values, value=value, description=name.replace("_", " "), **look
            )
        self.picture = ipywidgets.Image(format="jpeg", layout=ipywidgets.Layout(max_width="100%"))
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
            self._cache[chosen] = jpeg(self._draw(**dict(zip(self.controls, chosen, strict=True))))
        return self._cache[chosen]

    def _show(self, _=None):
        self.picture.value = self._encoded(tuple(control.value for control in self.controls.values()))
