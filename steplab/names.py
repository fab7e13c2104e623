"""Names that were meant, where another was written."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def nearest(word: object, known: Iterable[str]) -> str:
    """The end of a refusal: those of `known` that look like `word`, in any case; or nothing."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), names, n=5, cutoff=0.5)
    return f"; did you mean {', '.join(repr(names[c]) for c in close)}?" if close else ""


def pick(argument: str, given: object, known: Iterable[Any]) -> Any:
    """`given` if it is among `known`; from a mapping, what stands there under that name.

    >>> pick("preset", "lesson", {"smoke": 1, "lesson": 3})
    3

    Raises:
        ValueError: it is not; says which `argument`, what came, what was expected, and what looks like it.
    """
    names = list(known)
    if given not in names:
        listed = ", ".join(map(str, names))
        raise ValueError(
            f"{argument}: got {given!r}, expected one of {listed}{nearest(given, map(str, names))}"
        )
    return known[given] if isinstance(known, Mapping) else given
