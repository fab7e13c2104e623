"""How Sphinx makes the book, in the folder into which `build.py` has copied its pages and what they show."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

import steplab

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for mathml.py

project = "steplab"
release = steplab.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]

nb_execution_mode = "off"  # what is shown is what the notebooks hold
nb_ipywidgets_js = {}  # stored notebooks hold no widgets, so no player for them is fetched
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # sections of the lessons can be linked to
highlight_language = "none"  # blocks that do not say are commands

autodoc_member_order = "bysource"
napoleon_use_ivar = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = "steplab"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"


def prepare(app: Sphinx, page: str, source: list[str]) -> None:
    """Put a lesson's number, by which others name it, before its title; link to the answers it names."""
    if lesson := re.fullmatch(r"notebooks/(?:solutions/)?(\d\d)_\w+", page):
        text = source[0].replace('"# ', f'"# {lesson[1]} · ', 1)
        source[0] = re.sub(r"`(solutions/\w+\.ipynb)`", r"[`\1`](\1)", text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", prepare)
