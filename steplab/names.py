"""Names that were meant, where another was written."""

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[str]) -> str:
    """The end of a refusal: those of `known` that look like `word`, in any case; or nothing."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), names, n=5, cutoff=0.5)
    return f"; did you mean {', '.join(repr(names[c]) for c in close)}?" if close else ""
