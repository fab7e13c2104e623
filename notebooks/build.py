"""Run the lessons in place and store what they print and draw, without widgets: those die with the kernel.

python notebooks/build.py [00_start_here ...] [--strip]     (--strip: run nothing, clean what is stored)
"""

import argparse
import base64
import copy
import io
import re
import sys
import time
from pathlib import Path

import nbformat
from PIL import Image

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
LIMIT = 300_000  # bytes
BAR = re.compile(r"\d+%\|")  # what is left of a progress bar when its widget is gone


THRIFT = ((760, 62), (720, 52), (680, 46), (640, 40))  # width and quality of pictures: the first that fits


def jpeg(encoded: str, width: int, quality: int) -> str:
    """The same picture as a JPEG at most `width` px wide, base64 to base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    page.thumbnail((width, 10 * width))
    file = io.BytesIO()
    page.save(file, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def strip(notebook, width: int, quality: int) -> None:
    """Leave of each output what a reader without a kernel can see: a widget's picture, not the widget."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop(WIDGET, None)
            pictures = [data.pop(kind) for kind in ("image/png", "image/jpeg") if kind in data]
            if pictures:
                data["image/jpeg"] = jpeg(pictures[0], width, quality)
            if any(kind.startswith("image/") for kind in data) and "text/plain" in data:
                data["text/plain"] = "a picture"  # not the address of an object
        if cell.cell_type == "code":
            noise = [o for o in cell.outputs if o.get("name") == "stderr"]  # progress bars and the like
            noise += [o for o in cell.outputs if BAR.search(o.get("data", {}).get("text/plain", ""))]
            cell.outputs = [o for o in cell.outputs if o not in noise]


def build(path: Path, run: bool) -> str:
    """Run and clean one notebook; returns a line that says how long it took and how large it is."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    if run:
        from nbclient import NotebookClient

        resources = {"metadata": {"path": str(HERE)}}
        NotebookClient(notebook, timeout=3600, kernel_name="python3", resources=resources).execute()
    seconds = time.perf_counter() - start
    text = ""
    for width, quality in THRIFT:
        small = copy.deepcopy(notebook)
        strip(small, width, quality)
        text = nbformat.writes(small) + "\n"
        if len(text.encode()) <= LIMIT:
            break
    for word in (str(HERE.parent), str(Path.home())):
        if word in text:
            raise ValueError(f"{path.name}: an output holds the absolute path {word!r}")
    if len(text.encode()) > LIMIT:
        raise ValueError(f"{path.name}: {len(text.encode()):,} bytes, expected at most {LIMIT:,}")
    path.write_text(text, encoding="utf-8")
    return f"{path.name}: {seconds:.0f} s, {len(text.encode()) / 1000:.0f} kB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--strip", action="store_true")
    options = parser.parse_args()
    paths = [HERE / f"{name}.ipynb" for name in options.names] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        print(build(path, run=not options.strip), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
