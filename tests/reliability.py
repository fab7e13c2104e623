"""Writes docs/reliability.md from the figures that long campaigns put on record: `make soak`.

python tests/reliability.py FOLDER     files *.jsonl of lines [promise, figure], and coverage.json

Of a campaign that has not been run here, the rows that the report already has stay.
"""

import json
import platform
import re
import sys
from pathlib import Path

import av
import torch

TARGET = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
HEAD = """# What is promised, and the figure behind it

Written by `make soak` from what the tests themselves counted. A promise without a figure is not made here.

| promise | figure |
|---|---|
"""
NOTES = """
*Right*: every frame within .02 of the range, every time within .05 s of the undamaged clip. *Told*: a clip
with a warning that frames are missing or damaged. *Silently wrong*: neither. No container here protects its
pictures by checksums that its decoder insists on; a damaged mp4 or avi tells most of it.

What is the same to the bit is so on one machine with as many threads. Other arithmetic (threads, another
processor or version) changes the last digits, and a search that follows them ends in another mask. The faults
that no test notices are in [mutants.md](mutants.md).
"""


def main() -> None:
    folder, found = Path(sys.argv[1]), {}
    soaked = (folder / "soak.jsonl").is_file()
    if TARGET.is_file() and not soaked:
        found = dict(
            re.findall(r"^\| (?!promise)(.+?) \| (.+?) \|$", TARGET.read_text(encoding="utf-8"), re.M)
        )
    for path in sorted(folder.glob("*.jsonl")):
        found |= dict(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    if (folder / "coverage.json").is_file():
        told = json.loads((folder / "coverage.json").read_text())["totals"]
        lines, branches = (told[f"percent_{kind}_covered"] for kind in ("statements", "branches"))
        what = "Lines and branches of steplab/ that the tests run, without the lessons and the browser"
        found[what] = (
            f"{lines:.1f} % of {told['num_statements']:,}, {branches:.1f} % of {told['num_branches']:,}"
        )
    table = "".join(f"| {what} | {figure} |\n" for what, figure in sorted(found.items()))
    where = f"Python {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}"
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(f"{HEAD}{table}{NOTES}\n{where}, {platform.machine()}.\n", encoding="utf-8")
    print(TARGET.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
