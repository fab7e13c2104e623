"""Writes docs/reliability.md from the figures that the tests put on record: `make soak`.

python tests/reliability.py FIGURES     a file of lines [promise, figure]
"""

import json
import platform
import sys
from pathlib import Path

import av
import torch

HEAD = """# What is promised, and the figure behind it

Written by `make soak` from what the tests themselves counted. A promise without a figure is not made here.

| promise | figure |
|---|---|
"""
NOTES = """
*Right*: every frame within .02 of the range, every time within .05 s of the undamaged clip. *Told*: a clip
with a warning that frames are missing or damaged. *Silently wrong*: neither. No container here protects its
pictures by checksums that its decoder insists on; a damaged mp4 or avi tells most of it.
"""


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    rows = sorted(dict(map(json.loads, lines)).items())
    table = "".join(f"| {what} | {figure} |\n" for what, figure in rows)
    where = f"Python {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}"
    target = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text(f"{HEAD}{table}{NOTES}\n{where}, {platform.machine()}.\n", encoding="utf-8")
    print(target.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
