"""One JupyterLab server and one Chromium for the browser tests. Nothing is downloaded."""

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median, quantiles

import pytest

from mebqat_lite import paths

ROOT = paths.checkout()

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
QUIET = {"fetchNews": "false", "checkForUpdates": False}  # JupyterLab asks nobody and shows no question
FOLDERS = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")  # of Jupyter, so that the user's own are left alone


def missing(reason: str) -> None:
    """Skip, or fail where a browser is required."""
    if os.environ.get("MEBQAT_REQUIRE_BROWSER", "0") not in ("", "0"):
        pytest.fail(f"MEBQAT_REQUIRE_BROWSER is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by playwright."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
    if not Path(path).exists():
        missing("there is no Chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        missing('there is no playwright: pip install -e ".[test]"')
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def server(browser, tmp_path_factory):
    """A JupyterLab over copies of the lessons: its folder, its address, its token."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "root")
    settings = folder / "config_dir" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET), encoding="utf-8")
    token = secrets.token_hex(16)
    port = free_port()
    with running(command(port, token, folder), folder, f"http://127.0.0.1:{port}/api?token={token}"):
        yield folder / "root", f"http://127.0.0.1:{port}", token


@pytest.fixture
def lab(server):
    """The address of a page of the JupyterLab, as ``lab(notebook)``; the kernels end with the test."""
    _, address, token = server
    yield lambda notebook: f"{address}/lab/tree/{notebook}?token={token}&reset"
    sessions = f"{address}/api/sessions"
    with urllib.request.urlopen(f"{sessions}?token={token}") as answer:
        names = [session["id"] for session in json.load(answer)]
    for name in names:
        urllib.request.urlopen(urllib.request.Request(f"{sessions}/{name}?token={token}", method="DELETE")).close()


@pytest.fixture
def voila(tmp_path):
    """The address of lesson 01 as a page of its own, served by Voila."""
    if importlib.util.find_spec("voila") is None:
        missing('there is no Voila: pip install -e ".[test]"')
    port, lesson = free_port(), ROOT / "notebooks" / "01_quantization.ipynb"
    options = [f"--port={port}", "--no-browser", "--Voila.ip=127.0.0.1"]
    with running(
        [sys.executable, "-m", "voila", str(lesson), *options],
        tmp_path,
        f"http://127.0.0.1:{port}/voila/static/voila.js",
    ):
        yield f"http://127.0.0.1:{port}/"


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running(words: list[str], folder: Path, url: str):
    """A server, up when ``url`` answers."""
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(words, env=environment(folder), stdout=log, stderr=log)
        try:
            wait_for_server(url, server, folder / "server.log")
            yield
        finally:
            server.terminate()
            server.wait(20)


def command(port: int, token: str, folder: Path) -> list[str]:
    """JupyterLab over ``folder/root``, with the application object within the page's reach."""
    options = [f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'root'}"]
    flags = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--LabApp.expose_app_in_browser=True"]
    return [sys.executable, "-m", "jupyterlab", *flags, *options]


def environment(folder: Path) -> dict[str, str]:
    """The present variables, one thread, and Jupyter's and IPython's folders below ``folder``."""
    own = {f"JUPYTER_{name}": str(folder / name.lower()) for name in FOLDERS}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    fixed = {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": path}
    return os.environ | own | fixed


def wait_for_server(url: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def latencies():
    """Milliseconds from key press to changed picture by notebook; afterwards in results/browser.json."""
    measured: dict[str, list[float]] = {}
    yield measured
    if measured:
        file = ROOT / "results" / "browser.json"
        file.parent.mkdir(exist_ok=True)
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}  # another worker's, or older
        known |= {name: summarize(values) for name, values in measured.items() if values}
        file.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def summarize(values: list[float]) -> dict[str, float]:
    p95 = quantiles(values, n=20)[-1] if len(values) > 1 else values[0]
    return {"moves": len(values), "median_ms": round(median(values), 1), "p95_ms": round(p95, 1)}
