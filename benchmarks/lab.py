"""Drive a JupyterLab in a real Chromium, for the browser tests and for the time that a widget takes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from mebqat_lite import paths

SECONDS = 1000  # playwright counts milliseconds
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
QUIET = {"fetchNews": "false", "checkForUpdates": False}  # JupyterLab asks nobody and shows no question
FOLDERS = ("CONFIG_DIR", "RUNTIME_DIR", "DATA_DIR")  # of Jupyter, so that the user's own are left alone
KERNEL = """async () => {
  const context = jupyterapp.shell.currentWidget.sessionContext;
  await context.ready;
  await context.session.kernel.info;
}"""
RUN_ALL = """() => {
  window.ran = null;
  jupyterapp.commands.execute('notebook:run-all-cells').then(
    () => { window.ran = 'yes'; }, error => { window.ran = String(error); });
}"""
READY = """widget => widget.querySelector('.mq-touch img[src]')
  && !widget.querySelector('.widget-hprogress')?.checkVisibility()"""
CHANGES = "{subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ['src']}"
# Note the time of the next press or move, and that at which the last picture that follows it is decoded.
WATCH = f"""widget => {{
  const images = () => [...widget.querySelectorAll('.mq-touch img')];
  const seen = () => images().map(image => image.src).join();
  let before = seen();
  window.pressed = window.changed = null;
  window.watching?.disconnect();
  for (const kind of ['keydown', 'pointerdown', 'pointermove']) {{
    document.addEventListener(kind, () => {{ window.pressed ??= performance.now(); }}, {{capture: true}});
  }}
  window.watching = new MutationObserver(async () => {{
    if (window.pressed === null || seen() === before || seen() === '') return;
    before = seen();
    await Promise.all(images().filter(image => image.src).map(image => image.decode().catch(() => {{}})));
    window.changed = performance.now();
  }});
  window.watching.observe(widget, {CHANGES});
}}"""
# One press may bring several pictures. Nothing changes any more for 150 ms, or for two seconds it was never at rest.
REST = f"""widget => new Promise(done => {{
  const end = () => {{ observer.disconnect(); done(); }};
  let timer = setTimeout(end, 150);
  const observer = new MutationObserver(() => {{ clearTimeout(timer); timer = setTimeout(end, 150); }});
  observer.observe(widget, {CHANGES});
  setTimeout(end, 2000);
}})"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Run Chromium inside the block; yield the browser of playwright.

    Raises:
        RuntimeError: this machine has no Chromium or no playwright.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise RuntimeError("there is no Chromium: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise RuntimeError('there is no playwright: pip install -e ".[test]"') from None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def notebook(code: str) -> dict[str, Any]:
    """Make a notebook of one cell."""
    cell = {"id": "cell", "cell_type": "code", "metadata": {}, "source": code, "outputs": [], "execution_count": None}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


# ---------------------------------------------------------------- servers


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a JupyterLab over ``folder/root`` inside the block; yield its address and its token.

    The rest of ``folder`` takes its settings and its log.
    """
    settings = folder / "config_dir" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(QUIET), encoding="utf-8")
    port, token = free_port(), secrets.token_hex(16)
    options = [f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'root'}"]
    flags = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--LabApp.expose_app_in_browser=True"]
    words = [sys.executable, "-m", "jupyterlab", *flags, *options]
    with serving(words, folder, f"http://127.0.0.1:{port}/api?token={token}"):
        yield f"http://127.0.0.1:{port}", token


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(words: list[str], folder: Path, url: str) -> Iterator[None]:
    """Run a server inside the block, which begins when ``url`` answers."""
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(words, env=_environment(folder), stdout=log, stderr=log)
        try:
            _wait_for(url, server, folder / "server.log")
            yield
        finally:
            server.terminate()
            server.wait(20)


def _environment(folder: Path) -> dict[str, str]:
    """Make the present variables, with one thread, and Jupyter's and IPython's folders below ``folder``."""
    own = {f"JUPYTER_{name}": str(folder / name.lower()) for name in FOLDERS}
    path = os.pathsep.join(filter(None, (str(paths.checkout()), os.environ.get("PYTHONPATH"))))
    fixed = {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": path}
    return os.environ | own | fixed


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")


# ---------------------------------------------------------------- pages (of playwright)


def run_all(page: Any) -> None:
    """Run all cells of the page's notebook, once the kernel is there: before, the command would be lost."""
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")
    page.evaluate(KERNEL)
    page.evaluate(RUN_ALL)
    page.wait_for_function("() => window.ran !== null", timeout=240 * SECONDS)
    if (ran := page.evaluate("() => window.ran")) != "yes":
        raise RuntimeError(f"the cells did not run: {ran}")


def waited(page: Any, widget: Any, act: Callable[[], None]) -> float:
    """Return the milliseconds from what ``act`` presses or moves to the last decoded picture that follows it.

    It waits for earlier pictures first, so that none of them is taken for the answer.

    Raises:
        playwright.sync_api.TimeoutError: no new picture came within thirty seconds.
    """
    widget.evaluate(REST)
    widget.evaluate(WATCH)
    act()
    page.wait_for_function("() => window.changed !== null", timeout=30 * SECONDS)
    widget.evaluate(REST)
    return float(page.evaluate("() => window.changed - window.pressed"))


def summarize(times: list[float]) -> dict[str, float]:
    """Return how many times were taken, their median and their 95th percentile, in milliseconds."""
    p95 = quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
    return {"moves": len(times), "median_ms": round(median(times), 1), "p95_ms": round(p95, 1)}
