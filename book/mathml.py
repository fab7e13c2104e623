"""Formulas as MathML: browsers draw it by themselves, so that no page has to fetch a script."""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

# What the converter leaves as it is, or sets badly, in words that it knows. Brackets grow by themselves.
WORDS = {
    r"\\[Bb]ig(?=[(\[]|\\l)": r"\\left",
    r"\\[Bb]ig(?=[)\]]|\\r)": r"\\right",
    r"\\[lr]Vert|\\\|": "‖",
    r"\\lceil": "⌈",
    r"\\rceil": "⌉",
    r"\\arg\\max": r"\\mathrm{arg\\,max}",
    r"\\operatorname": r"\\mathrm",
}
LOG = logging.getLogger(__name__)


def mathml(latex: str, display: str) -> str:
    r"""A formula, `display` "inline" or "block".

    Raises:
        ValueError: a command that would be shown as \command.
    """
    for old, new in WORDS.items():
        latex = re.sub(old, new, latex)
    page = convert(latex, display=display)
    if unknown := re.findall(r"\\\w+", page):
        raise ValueError(f"no MathML for {', '.join(unknown)} in {latex!r}")
    return page


def visit(writer, node: nodes.Element, display: str) -> None:
    """Write a formula in place of a node; one that fails is a warning, and so ends the build."""
    latex, number = node.astext(), ""
    if tag := re.search(r"\\tag\{(\w+)\}", latex):
        latex, number = latex.replace(tag[0], ""), f'<span class="number">({tag[1]})</span>'
    try:
        formula = mathml(latex, display)
    except Exception as error:  # the converter has many kinds
        LOG.warning("formula: %s", error, location=node)
        formula = ""
    writer.body.append(formula if display == "inline" else f'<div class="math">{formula}{number}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    inline = (lambda writer, node: visit(writer, node, "inline"), None)
    block = (lambda writer, node: visit(writer, node, "block"), None)
    app.add_html_math_renderer("mathml", inline_renderers=inline, block_renderers=block)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
