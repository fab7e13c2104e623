"""The book: built once from the stored lessons, read as files, then read in a browser."""

import base64
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest

import steplab
from steplab.painting import live_curve

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [*sorted(ROOT.glob("notebooks/*.ipynb")), *sorted(ROOT.glob("notebooks/solutions/*.ipynb"))]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
LABEL = '<img src="nowhere.png" onerror="window.broken = 1"><script>window.broken = 1</script>'


def notebook(*cells: dict) -> str:
    about = {"language_info": {"name": "python", "pygments_lexer": "python"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5})


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "id": "text", "metadata": {}, "source": text}


def shown_labels() -> str:
    """A page that shows a hostile class label in each way in which lessons show labels."""
    html = pd.DataFrame({LABEL: [0.5]}, index=[LABEL]).to_html() + live_curve({LABEL: [0.1, 0.2]}, 2)
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": LABEL},
        {"output_type": "display_data", "metadata": {}, "data": {"text/plain": LABEL}},
        {"output_type": "display_data", "metadata": {}, "data": {"text/html": html, "text/plain": "a table"}},
    ]
    code = {"cell_type": "code", "id": "code", "metadata": {}, "execution_count": 1, "outputs": outputs}
    return notebook(markdown("# Labels"), code | {"source": f"print({LABEL!r})"})


def build(root: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "book" / "build.py"), str(out)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    """The pages of this repository, and one more lesson: `99_labels`."""
    for name in ("sphinx", "myst_nb", "furo", "latex2mathml"):
        pytest.importorskip(name)
    root = tmp_path_factory.mktemp("copy")
    for name in ("book", "notebooks", "benchmarks", "data"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("networks", "reference"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"):
        shutil.copyfile(ROOT / name, root / name)
    (root / "notebooks" / "99_labels.ipynb").write_text(shown_labels())
    done = build(root, root / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "out"


class Page(HTMLParser):
    """What a page links to, what it loads, and what can be linked to in it."""

    LOADED = {("link", "href"), ("form", "action"), ("a", "ping"), ("use", "href"), ("image", "href")}

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads, self.scripts, self.tags = set(), [], [], 0, Counter()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in ((name, value or "") for name, value in attrs):
            if name == "id":
                self.ids.add(value)
            elif (tag, name) == ("a", "href"):
                self.links.append(value)
            elif name in ("src", "data", "poster", "xlink:href") or (tag, name) in self.LOADED:
                self.loads.append(value)
            elif name == "srcset":
                self.loads += [part.split()[0] for part in value.split(",")]
            elif name == "style":
                self.loads += addresses(value)


def addresses(css: str) -> list[str]:
    """What a style sheet loads."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", css)
    return [one or other for one, other in found]


@pytest.fixture(scope="module")
def pages(book) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(book.rglob("*.html")) if "_static" not in path.parts}


def page_of(book: Path, path: Path) -> Path:
    return (book / path.relative_to(ROOT)).with_suffix(".html")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_lesson_is_there_with_its_figures(book, path):
    """As stored, byte for byte and in order; under its number, and with a link to the answers it names."""
    page = page_of(book, path).read_text(encoding="utf-8")
    assert re.search(rf"<h1>{path.name[:2]} · ", page)
    link = rf'href="solutions/{path.stem}\.html"><span[^>]*><code'
    assert bool(re.search(link, page)) == (f"`solutions/{path.name}`" in path.read_text(encoding="utf-8"))
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    stored = [
        base64.b64decode("".join(output["data"]["image/jpeg"]))
        for cell in cells
        for output in cell["outputs"]
        if "image/jpeg" in output.get("data", {})
    ]
    shown = re.findall(r'<img [^>]*src="([^"]+_images/[^"]+)"', page)
    assert [(page_of(book, path).parent / src).read_bytes() for src in shown] == stored
    assert page.count('"cell_input docutils container"') == sum(bool("".join(c["source"])) for c in cells)


def test_links_and_anchors_lead_somewhere(book, pages):
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file() and target.is_relative_to(book), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path.name}: {link}"
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_nothing_is_loaded_from_elsewhere(book, pages):
    loads = {path: page.loads for path, page in pages.items()}
    loads |= {path: addresses(path.read_text(encoding="utf-8")) for path in book.rglob("*.css")}
    assert any(loads[path] for path in loads if path.suffix == ".html")
    for path, found in loads.items():
        outside = [one for one in found if re.match(r"\s*(\w+:)?//", one)]
        assert not outside, f"{path.relative_to(book)} loads {outside}"


def test_every_piece_of_the_paper_has_a_section(pages, book):
    text = (book / "paper.html").read_text(encoding="utf-8")
    for title, numbers in (("equations", range(1, 13)), ("tables", range(1, 6)), ("figures", range(1, 4))):
        section = re.search(rf'<section id="{title}">.*?</section>', text, re.DOTALL)[0]
        rows = re.findall(r"<tr\b.*?</tr>", section, re.DOTALL)[1:]
        first = [re.sub(r"<.*?>", "", re.search(r"<td>.*?</td>", row, re.DOTALL)[0]) for row in rows]
        assert [int(n) for cell in first for n in re.findall(r"\d+", cell)] == list(numbers)
        for row in rows:
            assert re.search(r'href="notebooks/\d\d_\w+\.html#', row), row


def test_every_public_name_is_explained(pages, book):
    assert {f"steplab.{name}" for name in steplab.__all__} <= pages[book / "api.html"].ids


def test_what_is_wrong_ends_the_build(tmp_path):
    """A dead link, and a formula that would be shown as it was typed."""
    for name in ("sphinx", "myst_nb", "furo", "latex2mathml"):
        pytest.importorskip(name)
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("*.md"))
    (tmp_path / "book" / "index.md").write_text("# A\n\n```{toctree}\n:glob:\n\nnotebooks/*\n```\n")
    lesson = tmp_path / "notebooks" / "00_a.ipynb"
    lesson.write_text(notebook(markdown("# A\n\n## B\n\n[to B](#b), $a\\otimes b$")))
    done = build(tmp_path, tmp_path / "good")
    assert done.returncode == 0, done.stderr
    lesson.write_text(notebook(markdown("# A\n\n## B\n\n[to C](#c), $\\nonsense$")))
    done = build(tmp_path, tmp_path / "bad")
    assert done.returncode != 0
    assert "'c'" in done.stderr and "no MathML for \\nonsense" in done.stderr


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(book):
    handler = functools.partial(Quiet, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def page():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield browser.new_page(viewport={"width": 1024, "height": 900})
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_book_in_a_browser(book, pages, address, page):
    """Search finds lesson 02, which shows pictures and formulas; no page is too wide or asks others."""
    outside, errors = [], []
    page.on("request", lambda r: r.url.startswith((address, "data:")) or outside.append(r.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("response", lambda r: r.status < 400 or r.url.endswith("favicon.ico") or errors.append(r.url))

    page.goto(f"{address}/index.html")
    page.locator("input[name=q]:visible").fill("ellipsoid")
    page.keyboard.press("Enter")
    hit = page.locator('#search-results a[href*="notebooks/02_ellipsoid_kernel.html"]').first
    hit.wait_for(timeout=60_000)
    hit.click()
    page.wait_for_url("**/notebooks/02_ellipsoid_kernel.html*")

    pictures = page.locator("div.cell_output img")
    assert pictures.count() >= 5
    for k in range(pictures.count()):
        assert pictures.nth(k).evaluate("async i => { await i.decode(); return i.naturalWidth }") > 100
    formulas = page.evaluate(
        "() => [...document.querySelectorAll('article math')].map(m => m.getBoundingClientRect().height)"
    )
    assert len(formulas) >= 10 and min(formulas) > 5
    shown = page.locator("article p").all_inner_texts()
    assert not [text for text in shown if re.search(r"\\[a-z]+|\$", text)]

    for path in pages:
        page.goto(f"{address}/{path.relative_to(book).as_posix()}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 1024, path.name
    page.goto(f"{address}/notebooks/99_labels.html")
    page.wait_for_load_state("networkidle")
    assert page.evaluate("window.broken") is None
    text = page.locator("article").inner_text()
    assert text.count(LABEL) >= 5  # printed, plain, twice in the table, beside its curve
    assert not outside and not errors
