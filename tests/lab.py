"""JupyterLab on loopback in a real browser, for the tests: a server, and what a reader does to its pages."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
PATIENCE = 900  # seconds for a whole notebook on a busy machine

# What the browser shows, byte for byte, not what the widget believes it shows: files, drawings, notes.
PICTURES = """async area => {
    const shown = [...area.querySelectorAll('img, canvas')].filter(e => e.offsetParent && (e.src || e.width));
    const words = [...area.querySelectorAll('.widget-html-content')].map(e => e.innerText);
    return (await Promise.all(shown.map(async e => {
        const bytes = e.src ? await (await fetch(e.src)).arrayBuffer()
            : new TextEncoder().encode(e.toDataURL());
        return new Uint8Array(await crypto.subtle.digest('SHA-1', bytes)).join(' ');
    }))).concat(words);
}"""


def wait_for(condition, what, seconds=60.0, pause=0.05):
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
        self.folder = folder / "work"
        self.folder.mkdir()
        command = [sys.executable, "-m", "steplab", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}"]
        command += [f"--ServerApp.root_dir={self.folder}", "--LabApp.extension_manager=readonly"]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_for(lambda: self.ask("status"), "the server answers", 120)

    def ask(self, path: str, method: str = "GET"):
        request = urllib.request.Request(f"{self.base}/api/{path}?token={self.token}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.loads(answer.read() or "null")
        except OSError:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            return None

    def kernel_is_idle(self, name: str) -> bool:
        """Whether the kernel of this notebook is connected and idle; another notebook's may run beside it."""
        # The server is asked: the page says idle before its kernel is even connected.
        kernels = [session["kernel"] for session in self.sessions(name)]
        return bool(kernels) and all(k["execution_state"] == "idle" and k["connections"] for k in kernels)

    def end_kernel(self, name: str) -> None:
        for session in self.sessions(name):
            self.ask(f"sessions/{session['id']}", "DELETE")

    def sessions(self, name: str) -> list[dict]:
        return [session for session in self.ask("sessions") or [] if session["path"] == name]

    def close(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, number)
                self.process.wait(15)


class Reader:
    """Somebody with a browser, who opens a notebook and does things to it."""

    def __init__(self, lab: Lab, browser, width: int = 1400):
        self.lab, self.page = lab, browser.new_page(viewport={"width": width, "height": 1000})
        self.outside: list[str] = []
        self.errors: list[str] = []
        home = re.compile(rf"(http|ws)://{re.escape(lab.base[7:])}/|data:|blob:")
        self.page.on("request", lambda r: home.match(r.url) or self.outside.append(r.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, name: str) -> None:
        self.page.goto(f"{self.lab.base}/lab/tree/{name}?token={self.lab.token}&reset")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        self.name = name
        wait_for(self.is_idle, "the kernel is ready", 120)

    def is_idle(self) -> bool:
        return self.lab.kernel_is_idle(self.name)

    def menu(self, *names: str) -> None:
        for name in names:
            self.page.get_by_role("menuitem", name=name, exact=True).click()

    def run_all(self, cells: int) -> None:
        """Run All, until so many cells have a number; fails with the first error in the output."""
        self.menu("Run", "Run All Cells")
        self.wait_until_run(cells)

    def wait_until_run(self, cells: int) -> None:
        def done():
            return sum(bool(re.search(r"\[\d+\]", p)) for p in self.prompts()) == cells

        wait_for(lambda: done() or self.failures(), "every cell has run", PATIENCE, 0.5)
        assert not self.failures(), self.failures()
        wait_for(self.is_idle, "the kernel is idle again", 120)

    def prompts(self) -> list[str]:
        """What stands beside each cell: [ ]: not run, [*]: to be run, or its number."""
        return self.page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()

    def failures(self) -> list[str]:
        """Texts of errors in the notebook's output."""
        kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
        found = self.page.locator(
            ", ".join(f'.jp-OutputArea-output[data-mime-type="{kind}"]' for kind in kinds)
        )
        broken = self.page.locator("text=/model not found|show javascript error|Loading widget/")
        texts = [text for text in found.all_inner_texts() if "Error" in text or "Traceback" in text]
        return texts + broken.all_inner_texts()

    def areas(self):
        """Outputs with widgets in them."""
        return self.page.locator(".jp-OutputArea-output", has=self.page.locator(".jupyter-widgets"))

    def pictures(self, area) -> list[str]:
        return self.page.evaluate(PICTURES, area.element_handle())

    def change(self, area, act, what: str, seconds: float = 60) -> tuple[list[str], float]:
        """Do something; the pictures that follow once they differ, and after how many seconds they did."""
        before = self.pictures(area)
        start = time.monotonic()
        act()
        after = wait_for(
            lambda: (new := self.pictures(area)) != before and new,
            f"{what} changes the picture",
            seconds,
            0.01,
        )
        return after, time.monotonic() - start

    def settle(self, area, wanted: list[str], what: str, seconds: float = 60) -> None:
        """Wait until just these pictures are shown."""
        wait_for(lambda: self.pictures(area) == wanted, what, seconds)

    def narrow(self) -> None:
        """A small screen, whose reader has closed the list of files."""
        self.page.set_viewport_size({"width": 1024, "height": 768})
        if self.page.locator("#jp-left-stack:visible").count():
            self.page.locator(".jp-SideBar.jp-mod-left .lm-mod-current").click()
        wait_for(lambda: not self.page.locator("#jp-left-stack:visible").count(), "the sidebar closes")
        time.sleep(0.5)

    def overflow(self) -> list[str]:
        """What sticks out sideways, so that a reader has to scroll; tables do that by themselves."""
        return self.page.evaluate("""() => [...document.querySelectorAll(
                '.jp-Notebook, .jp-WindowedPanel-outer, .jp-RenderedImage, .jupyter-widgets')]
            .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 2
                && !['hidden', 'visible'].includes(getComputedStyle(e).overflowX))
            .map(e => `${e.className}: ${e.scrollWidth} of ${e.clientWidth} px`)""")

    def close(self, picture: Path) -> None:
        self.page.screenshot(path=str(picture))
        self.page.close()
        assert not self.outside, self.outside
        assert not self.errors, self.errors


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    server = Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, headless=True)
        yield chromium
        chromium.close()
