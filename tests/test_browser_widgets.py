"""Widgets in a real browser, on material whose pixels are known: what is shown is what should be."""

import hashlib
import json
import re
import statistics
import time
from pathlib import Path

import nbformat
import numpy as np
import probe
import pytest
import torch
from lab import ROOT, Reader, wait_for
from test_browser import copy_of

from steplab import painting
from steplab.sketch import Contest

CELLS = {
    "start": "import time\nfrom probe import *\nfrom steplab.widgets import *",
    "viewer": "ExplanationViewer(result, scale=3)",
    "comparison": "NetworkComparison({'one': result, 'other': other}, scale=3)",
    "live": "LiveOptimisation(slow, clip, 1, ratios=(0.2,), preset='paper', every=5)",
    "hand": "PerturbationExplorer(network, clip, rival=other)",
    "busy": "time.sleep(6)",
}
# Mean brightness, 0 to 1, of a part of the picture on show: left, top, width, height as shares of it.
BRIGHTNESS = """([image, x, y, wide, high]) => {
    const paper = document.createElement('canvas');
    [paper.width, paper.height] = [image.naturalWidth, image.naturalHeight];
    const pen = paper.getContext('2d');
    pen.drawImage(image, 0, 0);
    const box = [x * paper.width, y * paper.height, wide * paper.width, high * paper.height].map(Math.round);
    const data = pen.getImageData(...box).data;
    return data.reduce((sum, value, k) => sum + (k % 4 === 3 ? 0 : value), 0) / (data.length * 0.75 * 255);
}"""


def save(cells, path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture(scope="module")
def reader(lab, browser, tmp_path_factory):
    (lab.folder / "probe.py").write_text((ROOT / "tests" / "probe.py").read_text())
    save(CELLS.values(), lab.folder / "widgets.ipynb")
    reader = Reader(lab, browser)
    reader.open("widgets.ipynb")
    reader.run_all(len(CELLS))
    yield reader
    assert not reader.failures(), reader.failures()
    assert reader.page.evaluate("window.harmed") is None, "a label ran as a program"
    reader.close(tmp_path_factory.mktemp("pictures") / "widgets.png")
    lab.end_kernel("widgets.ipynb")


@pytest.fixture
def area(reader, request):
    """The output of the cell that a test is named after: test_viewer_..., test_live_..."""
    names = [name for name in CELLS if name not in ("start", "busy")]
    area = reader.areas().nth(names.index(request.node.name.split("_")[1]))
    area.scroll_into_view_if_needed()
    return area


def image(area, panel: int):
    """The picture on show in a panel."""
    return area.locator("img:visible").nth(panel)


def shown(reader, area, panel: int = 1) -> str:
    return reader.page.evaluate(
        """async image => { const file = await fetch(image.src).catch(() => null); // gone: another has come
        const bytes = file ? await file.arrayBuffer() : new ArrayBuffer(0);
        return [...new Uint8Array(await crypto.subtle.digest('SHA-1', bytes))]
            .map(b => b.toString(16).padStart(2, '0')).join(''); }""",
        image(area, panel).element_handle(),
    )


def handle(area, label: str):
    return area.locator(".widget-hslider", has_text=re.compile(f"^\\s*{label}")).locator(".noUi-handle")


def expected(k: int, frame: int, view: str = "kept", opacity: float = 1.0) -> str:
    """The hash of the panel as it is drawn here, in another process."""
    panel = painting.Canvas(probe.pixels, 3).panel(probe.result.masks[k], view, True, opacity)
    return hashlib.sha1(painting.encode(panel[frame], "jpeg")).hexdigest()


def test_viewer_shows_the_frame_of_the_slider(reader, area):
    slider, found = handle(area, "frame"), []
    slider.press("Home")
    for t in range(probe.FRAMES):
        wait_for(lambda t=t: f"{t + 1} of {probe.FRAMES}" in area.inner_text(), f"frame {t + 1}")
        time.sleep(0.1)
        picture = image(area, 0).element_handle()
        found.append(reader.page.evaluate(BRIGHTNESS, [picture, 16 / 28, 10 / 28, 8 / 28, 8 / 28]))
        slider.press("ArrowRight")
    assert np.allclose(found, np.linspace(0.4, 1, probe.FRAMES), atol=0.02)


def test_viewer_shows_the_mask_of_the_ratio_by_key_and_by_mouse(reader, area):
    frame, ratio = handle(area, "frame"), handle(area, "keep")
    frame.press("Home")
    ratio.press("Home")
    for k in range(4):
        wait_for(lambda k=k: shown(reader, area) == expected(k, 0), f"mask {k}")
        ratio.press("ArrowRight")
    bar = area.locator(".widget-hslider", has_text="keep").locator(".noUi-target").bounding_box()
    box = ratio.bounding_box()
    y, mouse = box["y"] + box["height"] / 2, reader.page.mouse
    mouse.move(box["x"] + box["width"] / 2, y)
    mouse.down()
    for share in (0.9, 0.1, 0.7, 0.34):  # to and fro; where it is let go counts
        mouse.move(bar["x"] + share * bar["width"], y, steps=6)
    mouse.up()
    wait_for(lambda: shown(reader, area) == expected(1, 0), "the mask where the mouse was let go")
    time.sleep(0.5)
    assert shown(reader, area) == expected(1, 0), "a later picture came"


def test_viewer_changes_view_and_opacity(reader, area):
    handle(area, "frame").press("Home")
    handle(area, "keep").press("End")
    for name, view in (("heat", "heat"), ("mask", "mask"), ("outline", "clip"), ("what is kept", "kept")):
        area.get_by_role("button", name=name, exact=True).click()
        wait_for(lambda view=view: shown(reader, area) == expected(3, 0, view), name)
    handle(area, "overlay").press("Home")
    wait_for(lambda: shown(reader, area) == expected(3, 0, "kept", 0.25), "a quarter of the overlay")
    handle(area, "overlay").press("End")


def test_viewer_answers_quickly(reader, area):
    """How long from a key to the picture is printed, not asserted."""
    ratio, waited = handle(area, "keep"), []
    ratio.press("Home")
    for key in ["ArrowRight"] * 3 + ["ArrowLeft"] * 3:
        before, start = shown(reader, area), time.monotonic()
        ratio.press(key)
        wait_for(lambda before=before: shown(reader, area) != before, key, pause=0.002)
        waited.append(1000 * (time.monotonic() - start))
    print(f"slider to picture: median {statistics.median(waited):.0f} ms, at most {max(waited):.0f} ms")


def test_viewer_plays_while_the_kernel_is_busy(reader, area):
    handle(area, "frame").press("Home")
    busy = reader.page.locator(".jp-CodeCell").nth(len(CELLS) - 1)
    busy.locator(".cm-content").click()
    reader.page.keyboard.press("Control+Enter")
    prompt = busy.locator(".jp-InputPrompt")
    wait_for(lambda: "*" in prompt.inner_text(), "the kernel is busy")
    area.scroll_into_view_if_needed()
    seen = set()
    play = area.locator(".widget-play button").first
    play.click()
    end = time.monotonic() + 4
    while time.monotonic() < end and len(seen) < 4:
        seen.add(shown(reader, area, 0))
        time.sleep(0.05)
    still_busy = "*" in prompt.inner_text()
    play.click()
    assert len(seen) >= 4, "frames that were shown"
    assert still_busy, "nothing is proven: the kernel had time"
    wait_for(reader.is_idle, "the kernel is idle")


def test_comparison_moves_both_masks(reader, area):
    for panel in (1, 2):
        before = shown(reader, area, panel)
        handle(area, "keep").press("End" if panel == 1 else "Home")
        wait_for(lambda p=panel, b=before: shown(reader, area, p) != b, f"panel {panel}")
    assert "one keeps" in area.inner_text() and "other keeps" in area.inner_text()


def test_live_starts_pauses_goes_on_and_stops(reader, area):
    def press(name):
        area.locator("button", has_text=name).click()

    def iteration():
        found = re.search(r"iteration (\d+)", area.inner_text())
        return int(found[1]) if found else 0

    press("start")
    wait_for(lambda: iteration() >= 10, "ten iterations")
    assert reader.is_idle(), "the notebook cannot be used meanwhile"
    picture = area.locator("img:visible").first
    before = picture.get_attribute("src")
    wait_for(lambda: picture.get_attribute("src") != before, "another picture of the mask")
    press("pause")
    wait_for(lambda: area.locator("button", has_text="go on").count(), "it says how to go on")
    time.sleep(0.5)
    paused = iteration()
    time.sleep(0.7)
    assert iteration() == paused
    handle(area, "learning rate").press("Home")  # × 0: the mask stands still from now on
    wait_for(reader.is_idle, "the slider has reached the kernel")
    press("go on")
    wait_for(lambda: iteration() >= paused + 10, "it goes on")
    still = reader.pictures(area)[0]
    now = iteration()
    wait_for(lambda: iteration() >= now + 15, "it still goes on")
    assert reader.pictures(area)[0] == still, "the mask moved without a learning rate"
    press("stop")
    wait_for(lambda: "stopped" in area.inner_text(), "it stops")
    assert area.locator("button", has_text="start").is_enabled()


def test_hand_drawn_mask_gets_its_probability(reader, area):
    """A click on a known cell of a known frame: the number beside it is the network's answer to that mask."""
    contest = Contest(probe.network, probe.clip, rival=probe.other)
    area.get_by_role("button", name="this frame", exact=True).click()
    handle(area, "brush").press("Home")
    handle(area, "frame").press("End")
    wait_for(lambda: f"6 of {probe.FRAMES}" in area.inner_text(), "the last frame")
    canvas = area.locator("canvas.steplab-sketch")
    seeds = torch.zeros(contest.seed_shape)
    for row, column in ((1, 2), (2, 3)):  # of four each
        seeds[5, row, column] = 1
        size = canvas.bounding_box()
        canvas.click(
            position={"x": (column + 0.5) * size["width"] / 4, "y": (row + 0.5) * size["height"] / 4}
        )
        one = contest.judge(seeds)
        share = painting.percent(round(one.ratio, 3))
        words = f"you keep {share} of at most 10 %, p = {one.probability:.2f}"
        wait_for(lambda words=words: words in area.inner_text(), words)
    area.get_by_role("button", name="rub out", exact=True).click()
    stroke(reader, canvas, (0.7, 0.3), (0.8, 0.7))  # quickly over both
    wait_for(lambda: "you keep 0 %" in area.inner_text(), "all of it is rubbed out")
    area.get_by_role("button", name="draw", exact=True).click()
    stroke(reader, canvas, (0.1, 0.1), (0.9, 0.1))
    seeds = torch.zeros(contest.seed_shape)
    seeds[5, 0] = 1
    words = f"you keep {painting.percent(round(contest.judge(seeds).ratio, 3))} "
    wait_for(lambda: words in area.inner_text(), f"a row is drawn: {words}")
    area.locator("button", has_text="clear").click()
    wait_for(lambda: "you keep 0 %" in area.inner_text(), "clear")
    canvas.focus()
    for key in ("ArrowUp", " "):  # from the middle, row 2, column 2, one up
        canvas.press(key)
    seeds = torch.zeros(contest.seed_shape)
    seeds[5, 1, 2] = 1
    once_more = f"p = {contest.judge(seeds).probability:.2f}"
    wait_for(lambda: once_more in area.inner_text(), once_more)


def stroke(reader, canvas, start, end) -> None:
    """Draw from one place to another, in shares of width and height; hovering waits until nothing moves."""
    size = canvas.bounding_box()
    canvas.hover(position={"x": start[0] * size["width"], "y": start[1] * size["height"]})
    box, mouse = canvas.bounding_box(), reader.page.mouse
    mouse.down()
    mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=3)
    mouse.up()


def test_saved_lesson_opens_again_with_pictures_and_runs_again(lab, browser, tmp_path):
    """Saved, its kernel ended, opened anew: pictures in place of dead widgets. Then restart and run all."""
    path = ROOT / "notebooks" / "00_start_here.ipynb"
    cells = copy_of(path, lab)
    reader = Reader(lab, browser)
    try:
        reader.open(path.name)
        reader.run_all(cells)
        count = reader.areas().count()
        reader.page.keyboard.press("Escape")
        reader.page.keyboard.press("Control+s")
        stored = lab.folder / path.name
        wait_for(lambda: "image/jpeg" in stored.read_text(), "it is saved")
        notebook = json.loads(stored.read_text())
        assert "widget-view" not in stored.read_text() and "widgets" not in notebook["metadata"]
        assert count == reader.areas().count() >= 2, "in the open page widgets live on"
        lab.end_kernel(path.name)
        reader.open(path.name)
        assert not reader.failures(), reader.failures()
        pictures = reader.page.locator(".jp-RenderedImage img:visible")
        wait_for(lambda: pictures.count() >= count, "static twins")
        assert all(p.evaluate("p => p.naturalWidth") > 300 for p in pictures.all())
        reader.menu("Kernel", "Restart Kernel and Run All Cells…")
        reader.page.locator(".jp-Dialog .jp-mod-warn").click()
        wait_for(lambda: "[*]:" in reader.prompts(), "the stored numbers give way", 120)
        reader.wait_until_run(cells)
        assert reader.areas().count() == count
    finally:
        reader.close(tmp_path / "again.png")
        lab.end_kernel(path.name)
