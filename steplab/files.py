"""Files that are there whole or not at all."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

RUNS = Path(__file__).resolve().parents[1] / "runs"  # where results go that nobody else has named a place for


def write_whole(path: Path, data: bytes) -> None:
    """Write under another name (`.*.part`), flush, rename: readers find all of it, or what was before.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(".part", ".", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
