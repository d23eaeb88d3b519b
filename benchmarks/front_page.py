"""Measure how fast the front page of the site computes, in a real Chromium: ``python -m benchmarks.front_page FOLDER``.

FOLDER is a built site, by default ``build/site`` (``make site-assets site``). A local server sends it. Measured are the
times from the opening of the page to the stored pictures and to the first ones that networks painted, and from a move
of a slider to what follows it. With ``--store`` they are written to ``front_page.json`` and README.md in this folder.
Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import lab
from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite.files import write_json

FOLDER = Path(__file__).parent
BUILT = FOLDER.parent / "build" / "site"
TARGETS = {
    "stored pictures": 2000,
    "first computed pictures": 2000,
    "slider, first look": 100,
    "slider, all pixels": 100,
    "slider, painted before": 100,
    "slider, answers": 100,
}
FIRST = "performance.getEntriesByName('painted').length > 0"  # networks have painted the first stop
READY = "document.documentElement.dataset.play === 'ready'"
# Move a slider to a stop, and wait until the page shows what follows: milliseconds.
MOVE = """async ([name, stop, shown]) => {
  const slider = document.querySelector(`input[aria-label='${name}']`), started = performance.now();
  slider.value = stop;
  slider.dispatchEvent(new Event('input'));
  const is = new Function('return ' + shown);
  while (!is()) await new Promise(requestAnimationFrame);
  return performance.now() - started;
}"""
PAINTED = "[...document.querySelectorAll('.play-painting canvas')].every(one => one.dataset.{kind} === '{pair}')"
ANSWERED = "document.querySelector('.play-answers th.play-chosen')?.textContent === '{words}'"
PAINT = "Bits of weights and activations"
STOPS = ["W1A1", "W2A2", "W3A3", "W4A4", "W5A5", "W6A6", "W7A7", "W8A8", "FP"]


def opened(browser: Any, address: str, state: str) -> Any:
    """Open the front page in a new profile, and wait for a state of it."""
    page = browser.new_context().new_page()
    page.goto(f"{address}/index.html?seed=1")
    page.wait_for_function(state, timeout=60 * lab.SECONDS)
    return page


def measure(browser: Any, address: str, visits: int) -> dict[str, list[float]]:
    """Visit the page several times; the milliseconds of each kind."""
    found: dict[str, list[float]] = {name: [] for name in TARGETS}
    for _ in range(visits):
        page = opened(browser, address, READY)
        for name, mark in (("stored pictures", "stored"), ("first computed pictures", "painted")):
            found[name].append(page.evaluate(f"performance.getEntriesByName('{mark}')[0].startTime"))
        page.wait_for_timeout(3 * lab.SECONDS)  # all stops are painted
        for stop, pair in enumerate(STOPS[:-1]):
            move = [PAINT, stop, PAINTED.format(kind="pair", pair=pair)]
            found["slider, painted before"].append(page.evaluate(MOVE, move))
        for stop, words in ((1, "3"), (2, "4"), (3, "6"), (4, "8"), (0, "2")):
            move = ["Bits of weights", stop, ANSWERED.format(words=words)]
            found["slider, answers"].append(page.evaluate(MOVE, move))
        page.context.close()
        for name, kind in (("slider, first look", "drawn"), ("slider, all pixels", "pair")):
            page = opened(browser, address, FIRST)
            found[name].append(page.evaluate(MOVE, [PAINT, 7, PAINTED.format(kind=kind, pair=STOPS[7])]))
            page.context.close()
    return found


def line(name: str, row: Mapping[str, float]) -> str:
    """Say what was measured of one kind."""
    verdict = "within" if row["p95_ms"] <= TARGETS[name] else "over"
    times = f"median {row['median_ms']:.0f} ms, p95 {row['p95_ms']:.0f} ms"
    return f"{name:<24} {times}, {verdict} the target of {TARGETS[name]} ms ({row['moves']:.0f} times)"


def block(found: Mapping[str, Any]) -> str:
    """Format all that was measured as the page shows it."""
    return "\n".join([found["machine"], *(line(name, row) for name, row in found["measured"].items())])


def main(words: list[str] | None = None) -> None:
    """Measure, print a line for each kind, and store the times with ``--store``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_page", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=BUILT, help="the built site (default: build/site)")
    parser.add_argument("--visits", type=int, default=8, help="how often the page is opened (default: 8)")
    parser.add_argument("--store", action="store_true", help="write front_page.json")
    arguments = parser.parse_args(words)
    if not (arguments.folder / "_static" / "ort.wasm.bundle.min.mjs").is_file():
        parser.error(f"{arguments.folder} has no site, or one without the runtime: make site-assets site")
    port = lab.free_port()
    address = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(arguments.folder)]
    with (
        tempfile.TemporaryDirectory() as log,
        lab.chromium() as browser,
        lab.serving(server, Path(log), f"{address}/index.html"),
    ):
        times = measure(browser, address, arguments.visits)
    found = {"machine": machine(), "measured": {name: lab.summarize(values) for name, values in times.items()}}
    print(block(found))
    if arguments.store:
        write_json(FOLDER / "front_page.json", found)
        put(FOLDER, "front-page", f"```text\n{block(found)}\n```")


if __name__ == "__main__":
    main()
