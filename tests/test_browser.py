"""Every lesson in JupyterLab in a real browser: it runs, stays at home, and its controls move the picture."""

import json
import re

import pytest
from lab import ROOT, Lab, Reader, wait_for

LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def copy_of(path, lab: Lab) -> int:
    """Put a copy without outputs where the server finds it, at `smoke`; says how many cells it has to run."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    source = "".join(code[0]["source"])
    for name, value in (("preset: str", '"smoke"'), ("seed: int", "1"), ("workers: int", "1")):
        if name.startswith("workers") and name not in source:
            continue
        source = re.sub(rf"{name} = \S+", f"{name} = {value}", source)
        assert f"{name} = {value}" in source
    code[0]["source"] = source
    for cell in code:
        cell.update(outputs=[], execution_count=None)
    (lab.folder / path.name).write_text(json.dumps(notebook))
    return sum(bool("".join(cell["source"]).strip()) for cell in code)


def move_everything(reader: Reader) -> list[float]:
    """Each control, by key and by mouse, there and back: another picture, then the first one again.

    Returns the seconds from each key to its picture.
    """
    waited = []
    for k in range(reader.areas().count()):
        area = reader.areas().nth(k)
        if area.locator("text=/area weight|a film/").count():
            continue  # a search that is over (see test_browser_widgets.py), a place for a file
        area.scroll_into_view_if_needed()
        first = wait_for(lambda area=area: reader.pictures(area), "a picture in the output")

        def there_and_back(what, act, back, area=area, first=first):
            waited.append(reader.change(area, act, what)[1])
            back()
            reader.settle(area, first, f"{what}, and back")

        for handle in each(area.locator(".noUi-handle:visible")):
            low, now, high = (float(handle.get_attribute(f"aria-value{n}")) for n in ("min", "now", "max"))
            slider = handle.locator("xpath=ancestor::*[contains(@class, 'slider')][last()]")
            label = " ".join(slider.inner_text().split())
            if low == high or label.startswith("brush"):  # a brush changes nothing by itself
                continue
            key, keys = "End", ["End"] + ["ArrowLeft"] * round(high - now)
            if now == high:
                key, keys = "Home", ["Home"] + ["ArrowRight"] * round(now - low)
            for what, act in (
                (f"{key} at {label!r}", lambda handle=handle, key=key: handle.press(key)),
                (f"the mouse at {label!r}", lambda handle=handle, key=key: drag(reader, handle, key)),
            ):
                there_and_back(what, act, lambda handle=handle, keys=keys: [handle.press(k) for k in keys])
        for group in each(area.locator(".widget-toggle-buttons:visible")):
            start = group.locator("button.mod-active").inner_text()
            others = [b.inner_text() for b in each(group.locator("button")) if b.inner_text() != start]
            for name in others[:3]:
                if not area.locator(".steplab-sketch").count():  # there they change what the mouse does next
                    press = [group.get_by_role("button", name=n, exact=True).click for n in (name, start)]
                    there_and_back(repr(name), *press)
    return waited


def drag(reader: Reader, handle, key: str) -> None:
    """Take a slider's handle to the end that this key goes to."""
    handle.hover()
    bar = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]").bounding_box()
    y, mouse = bar["y"] + bar["height"] / 2, reader.page.mouse
    mouse.down()
    mouse.move(bar["x"] + (bar["width"] if key == "End" else 0), y, steps=4)
    mouse.up()


def each(locator) -> list:
    return [locator.nth(n) for n in range(locator.count())]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_lesson_in_a_browser(path, lab, browser, tmp_path):
    cells = copy_of(path, lab)
    reader = Reader(lab, browser)
    try:
        reader.open(path.name)
        reader.run_all(cells)
        waited = move_everything(reader)
        assert waited, "no control has been moved"
        print(f"{path.stem}: {len(waited)} controls, picture after {1000 * max(waited):.0f} ms at most")
        reader.narrow()
        assert not reader.overflow(), reader.overflow()
        assert not reader.failures(), reader.failures()
    finally:
        reader.close(tmp_path / f"{path.stem}.png")
        lab.end_kernel(path.name)
