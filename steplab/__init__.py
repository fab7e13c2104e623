"""steplab: explain video networks by extremal perturbation in space and time, on clips whose answer is known.

>>> import steplab as sl
>>> record = sl.Stage("action", split="test")[3]
>>> network = sl.load_network("stage-action-r2plus1d")
>>> result = sl.explain(network, record.clip)
>>> result.filmstrip()

Names are imported when first used, so `import steplab` itself is quick.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .clips import Clip, Record, read_clip
    from .explain import Explanation, StepConfig, explain, smallest_ratio
    from .metrics import pointing_game, temporal_pointing_game
    from .networks import Network, load_network
    from .stage import Stage

__version__ = "0.1.0"

_HOME = {
    "Clip": "clips",
    "Record": "clips",
    "read_clip": "clips",
    "Stage": "stage",
    "Network": "networks",
    "load_network": "networks",
    "explain": "explain",
    "smallest_ratio": "explain",
    "Explanation": "explain",
    "StepConfig": "explain",
    "pointing_game": "metrics",
    "temporal_pointing_game": "metrics",
}
# Not "explain": at the top that name is the function.
_SUBMODULES = {p.stem for p in Path(__file__).parent.glob("[a-z]*.py")} - {"explain"}

__all__ = [
    "Clip",
    "Explanation",
    "Network",
    "Record",
    "Stage",
    "StepConfig",
    "explain",
    "load_network",
    "pointing_game",
    "read_clip",
    "smallest_ratio",
    "temporal_pointing_game",
]


class _Package(ModuleType):
    """`steplab.explain` is the function, though a module of that name exists too.

    The import system binds a submodule to its package after loading it, which would hide the function; this
    keeps the function there, in whatever order things are imported.
    """

    def __setattr__(self, name, value):
        if name == "explain" and isinstance(value, ModuleType):
            value = value.explain
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    """Import a public name or a submodule on first use (PEP 562)."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
