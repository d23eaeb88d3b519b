"""One JupyterLab server and one Chromium for the browser tests. Nothing is downloaded."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request

import pytest
from filelock import FileLock

from benchmarks.lab import SECONDS, chromium, free_port, jupyterlab, serving, summarize
from mebqat_lite import paths

ROOT = paths.checkout()


def missing(reason: str) -> None:
    """Skip, or fail where a browser is required."""
    if os.environ.get("MEBQAT_REQUIRE_BROWSER", "0") not in ("", "0"):
        pytest.fail(f"MEBQAT_REQUIRE_BROWSER is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by playwright."""
    with contextlib.ExitStack() as stack:
        try:
            driven = stack.enter_context(chromium())
        except RuntimeError as error:
            missing(str(error))
        yield driven


@pytest.fixture(scope="session")
def server(browser, tmp_path_factory):
    """A JupyterLab over copies of the lessons: its folder, its address, its token."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "root")
    with jupyterlab(folder) as (address, token):
        yield folder / "root", address, token


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
    with serving(
        [sys.executable, "-m", "voila", str(lesson), *options],
        tmp_path,
        f"http://127.0.0.1:{port}/voila/static/voila.js",
    ):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site; building it, with warnings as errors, is itself a test. All workers of a run share one."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built"
    with FileLock(f"{folder}.lock"):
        if not (folder / "site").is_dir():
            words = [sys.executable, "site", str(folder)]
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                shutil.rmtree(folder / "site", ignore_errors=True)
            assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="session")
def site_address(site, tmp_path_factory):
    """Where `python -m http.server` serves the site."""
    port = free_port()
    words = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(site)]
    with serving(words, tmp_path_factory.mktemp("log"), f"http://127.0.0.1:{port}/index.html"):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(browser, request):
    """A fresh profile's page; it must not have logged an error when the test ends."""
    errors = []
    context = browser.new_context(viewport={"width": 1250, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(30 * SECONDS)
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    known = getattr(request.module, "NOISE", ())  # what the server itself writes as errors, whatever the notebook holds
    unknown = [error for error in errors if not any(re.search(pattern, error) for pattern in known)]
    assert not unknown, f"the browser's console: {unknown}"


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
