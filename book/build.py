"""Make the book: static pages of the lessons as they are stored, for reading without Python or a network.

python book/build.py [FOLDER]     (default: runs/book; a warning is an error)
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parents[1]
# What the pages of this folder show or link to, at the same places as here.
SHOWN = (
    *("notebooks/*.ipynb", "notebooks/solutions/*.ipynb"),
    *("notebooks/assignments/README.md", "notebooks/assignments/release/*/*.ipynb"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"),
    *("benchmarks/*.md", "benchmarks/*.png", "data/README.md", "data/*.jpg", "data/*.webp"),
)


def gather(folder: Path) -> None:
    """Copy the pages of `book/` and what they show into one folder, where Sphinx wants them."""
    shutil.copytree(ROOT / "book", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for pattern in SHOWN for path in ROOT.glob(pattern)):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "runs" / "book")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as sources, tempfile.TemporaryDirectory() as parsed:
        gather(Path(sources))
        return build_main(["-q", "-W", "--keep-going", "-b", "html", "-d", parsed, sources, str(folder)])


if __name__ == "__main__":
    sys.exit(main())
