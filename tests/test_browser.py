"""The first lesson in JupyterLab in a real browser: it runs, stays at home, its slider moves the picture."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

LESSON = Path(__file__).resolve().parents[1] / "notebooks" / "00_start_here.ipynb"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# Without these the page shows news from outside, and leaves cells out of the page until they are scrolled to.
SETTINGS = {
    "labconfig/page_config.json": {
        "disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}
    },
    "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
}
PATIENCE = 900  # seconds for the whole notebook on a busy machine


def wait_for(condition, what, seconds=60.0, pause=0.1):
    """The first true value that `condition()` returns."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(pause)
    raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")


class Lab:
    """A JupyterLab server on loopback with a folder, settings and a token of its own."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.base, self.token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        for name, content in SETTINGS.items():
            path = folder / "config" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        own = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTERLAB_SETTINGS_DIR": "config/settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
        environment |= {key: str(folder / name) for key, name in own.items()}
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}"]
        command += [f"--ServerApp.root_dir={folder / 'work'}", "--LabApp.extension_manager=readonly"]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def ask(self, path: str):
        try:
            with urllib.request.urlopen(f"{self.base}/api/{path}?token={self.token}", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return None

    def kernel_is_idle(self) -> bool:
        # The server is asked: the page says idle before its kernel is even connected.
        kernels = [session["kernel"] for session in self.ask("sessions") or []]
        return bool(kernels) and all(k["execution_state"] == "idle" and k["connections"] for k in kernels)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def lab(tmp_path):
    (tmp_path / "work").mkdir()
    server = Lab(tmp_path)
    try:
        wait_for(lambda: server.ask("status"), "the server answers", 120)
        yield server
    finally:
        server.close()


@pytest.fixture
def page():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield browser.new_page(viewport={"width": 1400, "height": 1100})
        browser.close()


# What the browser shows, byte for byte, not what the widget believes it shows.
PICTURES = """async area => {
    const shown = [...area.querySelectorAll('img')].filter(image => image.offsetParent && image.src);
    return Promise.all(shown.map(async image => {
        const bytes = await (await fetch(image.src)).arrayBuffer();
        return new Uint8Array(await crypto.subtle.digest('SHA-1', bytes)).join(' ');
    }));
}"""


@pytest.mark.skipif(not LESSON.exists(), reason="no notebooks/00_start_here.ipynb")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_first_lesson_in_a_browser(lab, page, tmp_path):
    notebook = json.loads(LESSON.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    parameters = "".join(code[0]["source"])
    code[0]["source"] = re.sub(r'(preset: str = )"\w+"', r'\1"smoke"', parameters)
    assert code[0]["source"] != parameters or '"smoke"' in parameters
    for cell in code:
        cell.update(outputs=[], execution_count=None)
    lesson = tmp_path / "work" / LESSON.name
    lesson.write_text(json.dumps(notebook))

    outside, errors = [], []
    home = re.compile(rf"(http|ws)://{re.escape(lab.base[7:])}/|data:|blob:")
    page.on("request", lambda request: home.match(request.url) or outside.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))

    page.goto(f"{lab.base}/lab/tree/{LESSON.name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    wait_for(lab.kernel_is_idle, "the kernel is ready", 120)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def prompts():
        return page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()

    try:
        filled = [cell for cell in code if "".join(cell["source"]).strip()]
        wait_for(
            lambda: sum(bool(re.search(r"\[\d+\]", p)) for p in prompts()) == len(filled) or failed(page),
            "every cell has run",
            PATIENCE,
            0.5,
        )
        assert not failed(page), failed(page)
        wait_for(lab.kernel_is_idle, "the kernel is idle again", 120)
        slider = page.locator(".jp-OutputArea .noUi-handle").first
        slider.wait_for(timeout=30_000)
        area = page.locator(".jp-OutputArea", has=page.locator(".noUi-handle")).first.element_handle()

        def pictures():
            return page.evaluate(PICTURES, area)

        slider.scroll_into_view_if_needed()
        before = wait_for(pictures, "a picture beside the slider")
        for key in ("ArrowRight", "ArrowRight", "Home"):
            slider.press(key)
            before = wait_for(
                lambda old=before: (new := pictures()) != old and new, f"{key} changes the picture", 30
            )
    except Exception:
        page.screenshot(path=str(tmp_path / "page.png"))
        print(f"screenshot: {tmp_path / 'page.png'}; server: {lab.log.read_text()[-2000:]}")
        raise
    assert not outside, outside
    assert not errors, errors


def failed(page) -> list[str]:
    """Texts of errors in the notebook's output."""
    kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    found = page.locator(", ".join(f'.jp-OutputArea-output[data-mime-type="{kind}"]' for kind in kinds))
    return [text for text in found.all_inner_texts() if "Error" in text or "Traceback" in text]
