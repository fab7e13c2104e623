"""Watch masks being found: one, or several methods side by side. `widgets.py` offers both by name.

The search runs in a thread of its own, so the notebook stays usable; what is shown carries its static twin.
"""

import base64
import copy
import html
import io
import threading
import time
from collections.abc import Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure

from . import figures, painting
from .clips import Clip
from .config import make_config
from .engine import CHANGEABLE
from .explain import Explanation, State, explain
from .networks import Network


def jpeg(figure: Figure) -> bytes:
    """A figure as the bytes of a JPEG file."""
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", pil_kwargs=figures.JPEG)
    return file.getvalue()


class WithTwin(ipywidgets.VBox):
    """A column of widgets that carries its static twin along when it is displayed."""

    def static(self):
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs) or {}
        bundle["text/plain"] = f"{type(self).__name__}: run this notebook to use its controls"
        if (figure := self.static()) is not None:
            bundle["image/jpeg"] = base64.b64encode(jpeg(figure)).decode()
        return bundle


class LiveOptimisation(WithTwin):
    """Watch a mask being found: heat, kept clip, energy and probability while `explain` runs.

    It runs in a thread of its own, so the buttons and the rest of the notebook stay usable; `start()` does
    what the button does and returns the widget, `wait()` gives the result. The sliders multiply the area
    weight (lambda), the weight of L_K and the learning rate from the next picture on; the result's history
    holds what was in force.

    Args:
        network, clip, target, method, preset, seed, overrides: as for `explain`.
        ratios: preservation ratios, each in (0, 1); their masks are found one after another.
        every: iterations from one picture to the next.
    """

    def __init__(
        self,
        network: Network,
        clip: Clip,
        target: str | int | None = None,
        *,
        method: str = "step",
        ratios: Sequence[float] = (0.1,),
        preset: str = "lesson",
        seed: int = 0,
        every: int = 5,
        **overrides,
    ):
        self._ask = {"target": target, "method": method, "ratios": tuple(ratios), "preset": preset}
        self._ask |= {"seed": seed, "progress": False, "callback_every": every, **overrides}
        self._network, self._clip = network, clip
        self._thread: threading.Thread | None = None
        self._go, self._end = threading.Event(), threading.Event()
        self.result: Explanation | None = None
        self.error: BaseException | None = None
        self.snapshots: list[State] = []
        self.start_button = ipywidgets.Button(description="start", icon="play", button_style="success")
        self.pause_button = ipywidgets.Button(description="pause", icon="pause", disabled=True)
        self.stop_button = ipywidgets.Button(description="stop", icon="stop", disabled=True)
        self.picture = ipywidgets.Image(
            format="jpeg", layout={"width": "100%", "max_width": "920px", "margin": "0"}
        )
        self.curve, self.note = ipywidgets.HTML(), ipywidgets.HTML("ready")
        self._config = make_config(method, preset, clip.pixels.shape[1:], overrides)
        look = {"style": {"description_width": "110px"}, "layout": {"width": "300px"}}
        factors = [(f"× {f:g}", f) for f in (0, 0.25, 0.5, 1, 2, 4)]
        words = ("area weight λ", "core weight", "learning rate")
        self.factors = {
            name: ipywidgets.SelectionSlider(options=factors, value=1, description=word, **look)
            for name, word in zip(CHANGEABLE, words, strict=True)
        }
        self.factors["core_weight"].disabled = not getattr(self._config, "core_weight", 0)
        for button, act in (
            (self.start_button, self.start),
            (self.pause_button, self.pause),
            (self.stop_button, self.stop),
        ):
            button.on_click(lambda _, act=act: act())
        buttons = ipywidgets.HBox([self.start_button, self.pause_button, self.stop_button, self.note])
        wrap = {"flex_flow": "row wrap", "max_width": "100%"}
        knobs = ipywidgets.HBox([*self.factors.values()], layout=wrap)
        super().__init__([buttons, knobs, self.picture, self.curve])

    def start(self) -> "LiveOptimisation":
        """Begin, or begin anew; does nothing while one is running."""
        if self._thread is not None and self._thread.is_alive():
            return self
        self.result = self.error = None
        self.snapshots.clear()
        self._end.clear()
        self._go.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._buttons(running=True)
        self._thread.start()
        return self

    def pause(self) -> None:
        """Pause, or go on if it is paused."""
        if self._go.is_set():
            self._go.clear()
        else:
            self._go.set()
        self.pause_button.description = "pause" if self._go.is_set() else "go on"

    def stop(self) -> None:
        """End the search early; the result is what there is, marked `interrupted`."""
        self._end.set()
        self._go.set()

    def wait(self) -> Explanation:
        """The result, once it is there; goes on if paused. Ctrl-C stops the search.

        Raises:
            RuntimeError: it was never started.
            Whatever `explain` raised.
        """
        if self._thread is None:
            raise RuntimeError("nothing to wait for: call start() first")
        if not self._go.is_set():
            self.pause()
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.stop()
            self._thread.join()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def static(self):
        """How the first mask came about: the clip, and the mask after more and more iterations."""
        done = [s for s in self.snapshots if s.ratios == self.snapshots[0].ratios]
        if not done:
            return None
        some = [done[k] for k in sorted({round(k * (len(done) - 1) / 3) for k in range(4)})]
        label = "" if self.result is None else f"“{self.result.label}”: "
        return figures.filmstrip(
            self._clip.pixels,
            torch.stack([s.masks[0] for s in some]).cpu(),
            labels=[f"after {s.iteration}\np = {float(s.probability[0]):.2f}" for s in some],
            times=self._clip.times,
            view="heat",
            columns=6,
            title=f"{label}the mask after more and more iterations",
        )

    def _run(self) -> None:
        try:
            result = explain(self._network, self._clip, callback=self._show, **self._ask)
            assert isinstance(result, Explanation)
            self.result = result
            words = "stopped" if result.interrupted else "done"
            p = ", ".join(f"{float(v):.2f}" for v in result.probability)
            self.note.value = f"{words}: <b>{html.escape(result.label)}</b>, p = {p} of what is kept. "
            self.note.value += html.escape(" ".join(result.remarks()))
        except Exception as error:  # shown here, raised where somebody waits
            self.error = error
            self.note.value = f"failed: {html.escape(str(error))}"
        self._buttons(running=False)

    def _show(self, state: State) -> dict[str, float]:
        self.snapshots.append(state)
        mask = state.masks[0].cpu()
        self.picture.value = painting.encode(painting.live_frames(self._clip.pixels, mask), "jpeg")
        same = [s for s in self.snapshots if s.ratios == state.ratios]
        series = {
            "probability": [float(s.probability[0]) for s in same],
            "share kept": [float(s.masks[0].mean()) for s in same],
            "energy": [float(s.energy[0]) for s in same],
        }
        for name in state.terms:
            series[f"{name} term"] = [float(s.terms[name][0]) for s in same if name in s.terms]
        self.curve.value = painting.live_curve(series, state.iterations // self._ask["callback_every"])
        goal = painting.percent(state.ratios[0])
        self.note.value = f"keep {goal}: iteration {state.iteration} of at most {state.iterations}"
        self._go.wait()
        if self._end.is_set():
            raise KeyboardInterrupt  # how `explain` is asked to end with what it has
        return {name: getattr(self._config, name) * slider.value for name, slider in self.factors.items()}

    def _buttons(self, running: bool) -> None:
        self.start_button.disabled = running
        self.pause_button.disabled = self.stop_button.disabled = not running
        self.pause_button.description = "pause"


class _Column(LiveOptimisation):
    """One of several that take turns, from picture to picture, so as never to fight over the processor."""

    def __init__(self, turn: threading.Lock, network: Network, clip: Clip, **ask):
        super().__init__(copy.deepcopy(network), clip, **ask)  # `explain` sets flags of its network meanwhile
        self._turn = turn

    def _run(self) -> None:
        with self._turn:
            super()._run()

    def _show(self, state: State) -> dict[str, float]:
        constants = super()._show(state)
        self._turn.release()
        time.sleep(0.002)  # whoever waits comes first
        self._turn.acquire()
        return constants


class SideBySide(WithTwin):
    """Several methods at work on one clip, a few iterations each in turn, under common buttons.

    >>> both = SideBySide(network, clip, methods=("ep3d", "step")).start()
    >>> results = both.wait()                       # {"ep3d": Explanation, "step": Explanation}

    Args:
        methods: names of methods, from left to right.
        others: as for :class:`LiveOptimisation`. Each method gets a copy of the network.

    Attributes:
        columns: a :class:`LiveOptimisation` for each method, by name; their own buttons are not shown.
    """

    def __init__(
        self,
        network: Network,
        clip: Clip,
        target: str | int | None = None,
        *,
        methods: Sequence[str] = ("ep3d", "step"),
        **ask,
    ):
        if not methods:
            raise ValueError("methods: got none, expected at least one")
        turn = threading.Lock()
        self._clip = clip
        self.columns = {m: _Column(turn, network, clip, target=target, method=m, **ask) for m in methods}
        self.buttons = []
        for word, act in (("start", self.start), ("pause", self.pause), ("stop", self.stop)):
            self.buttons.append(ipywidgets.Button(description=word, icon="play" if word == "start" else word))
            self.buttons[-1].on_click(lambda _, act=act: act())
        shown = []
        for name, one in self.columns.items():
            title = ipywidgets.HTML(f"<b>{html.escape(name)}</b>")
            one.picture.layout.width = "100%"
            shown.append(ipywidgets.VBox([title, one.note, one.picture, one.curve]))
            shown[-1].layout.width = f"{100 / len(self.columns):.0f}%"
        super().__init__([ipywidgets.HBox(self.buttons), ipywidgets.HBox(shown)])

    def start(self) -> "SideBySide":
        """Begin all, or begin anew; those that are running go on."""
        for one in self.columns.values():
            one.start()
        self._say()
        return self

    def pause(self) -> None:
        """Pause all, or go on if they are paused."""
        for one in self.columns.values():
            one.pause()
        self._say()

    def _say(self) -> None:
        goes = next(iter(self.columns.values()))._go.is_set()
        self.buttons[1].description = "pause" if goes else "go on"

    def stop(self) -> None:
        """End all early; the results are what there is, marked `interrupted`."""
        for one in self.columns.values():
            one.stop()

    def wait(self) -> dict[str, Explanation]:
        """The results by method, once all are there; as :meth:`LiveOptimisation.wait`."""
        try:
            return {name: one.wait() for name, one in self.columns.items()}
        except KeyboardInterrupt:
            self.stop()
            raise

    def static(self, view: str = "heat"):
        """The clip, and below it the latest first mask of each method, in a view of `figures.VIEWS`."""
        states = {}
        for name, one in self.columns.items():
            first = [s for s in one.snapshots if s.ratios == one.snapshots[0].ratios]
            if not first:
                return None
            states[name] = first[-1]
        return figures.filmstrip(
            self._clip.pixels,
            torch.stack([s.masks[0] for s in states.values()]).cpu(),
            labels=[f"{name}\np = {float(s.probability[0]):.2f}" for name, s in states.items()],
            times=self._clip.times,
            view=view,
            title=f"iteration {', '.join(str(s.iteration) for s in states.values())}",
        )
