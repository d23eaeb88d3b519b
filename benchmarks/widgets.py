"""Measure how long a widget takes from a key press to the decoded picture, in a real Chromium.

``python -m benchmarks.widgets [NAME ...] [--store]``

Each slider of the widget, and each area of a picture that can be touched, gets the same number of arrow keys. With
``--store`` the times are written to ``widgets.json`` and README.md in this folder. Run it on a quiet machine. It needs
Chromium and playwright, as the browser tests do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import lab
from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite.files import write_json

FOLDER = Path(__file__).parent
DRAWN, INFERRED = 80, 200  # targets in ms: of a picture that is drawn, and of one for which a network runs
WARM_UP = 6  # moves that do not count
IS_AT_END = "handle => handle.ariaValueNow !== null && Number(handle.ariaValueNow) >= Number(handle.ariaValueMax)"


@dataclass(frozen=True)
class Case:
    """A widget: the code of a cell that makes it, and the milliseconds in which 95 % of its pictures should come."""

    code: str
    target: int = DRAWN


DIGITS = """import torch
import mebqat_lite as mq
from mebqat_lite.course import widgets
from mebqat_lite.paths import shipped

data = mq.datasets.digits()
names = {"FP + PTQ-MSE": "ptq_mse", "MEBQAT in turn": "mebqat_in_turn"}
files = {title: shipped("checkpoints", f"digits-{name}.safetensors") for title, name in names.items()}
nets = {title: mq.load_model(path)[0] for title, path in files.items()}
"""
CASES = {  # the one of lesson 02 is not here: it trains while it moves
    "playground": Case("""import torch
from mebqat_lite.course.widgets import playground

generator = torch.Generator().manual_seed(0)
weights = 0.1 * torch.randn(9216, generator=generator)
activations = torch.randn(9216, generator=generator).relu()
playground(weights, activations)"""),
    "paintings": Case("""from mebqat_lite.course.widgets import paintings
from mebqat_lite.experiments.demo import PAINTERS
from mebqat_lite.experiments.painting import paint
from mebqat_lite.paths import shipped

files = {title: shipped("checkpoints", f"{name}.safetensors") for title, name in PAINTERS.items()}
paintings(*paint(files, [*(f"W{bits}A{bits}" for bits in range(1, 9)), "FP"]))"""),
    "pair_board": Case(
        DIGITS
        + """
for net in nets.values():
    mq.recalibrate(net, data.train.images, mq.candidates())
read = {title: dict(mq.grid(net, data.test, norm_stats="recalibrated")["mean"]) for title, net in nets.items()}
widgets.pair_board(nets, read, data, "W2A2")""",
        INFERRED,
    ),
    "norm_policies": Case("from mebqat_lite.course.widgets import norm_policies\n\nnorm_policies()", INFERRED),
}


def measure(page: Any, moves: int) -> list[float]:
    """Press arrow keys on each control of the page's widget; return the milliseconds of each press."""
    widget, times = page.locator(".mq-widget"), []
    for control in widget.locator(".noUi-handle, .mq-touch-area:not([hidden])").all():
        control.focus()
        there_and_back = ("ArrowLeft", "ArrowRight") if control.evaluate(IS_AT_END) else ("ArrowRight", "ArrowLeft")
        for move in range(WARM_UP + moves):
            key = there_and_back[move % 2]
            times.append(lab.waited(page, widget, lambda key=key: page.keyboard.press(key)))
        del times[-(WARM_UP + moves) : -moves]
    return times


def run(browser: Any, names: list[str], moves: int) -> dict[str, Any]:
    """Measure the named widgets, each in a page of its own, and print a line for each."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        root.mkdir()
        with lab.jupyterlab(Path(temporary)) as (address, token):
            for name in names:
                (root / f"{name}.ipynb").write_text(json.dumps(lab.notebook(CASES[name].code)), encoding="utf-8")
                page = browser.new_page(viewport={"width": 1250, "height": 1000})
                page.goto(f"{address}/lab/tree/{name}.ipynb?token={token}&reset")
                lab.run_all(page)
                page.locator(".mq-touch img[src]").first.wait_for()
                found[name] = {**lab.summarize(measure(page, moves)), "target_ms": CASES[name].target}
                print(line(name, found[name]), flush=True)
                page.close()
    return {"machine": machine(), "measured": found}


def line(name: str, row: dict[str, float]) -> str:
    """Say what was measured for one widget."""
    verdict = "within" if row["p95_ms"] <= row["target_ms"] else "over"
    times = f"median {row['median_ms']:.0f} ms, p95 {row['p95_ms']:.0f} ms"
    return f"{name:<16} {times}, {verdict} the target of {row['target_ms']} ms ({row['moves']} moves)"


def block(found: Mapping[str, Any]) -> str:
    """Format all that was measured as the page shows it."""
    return "\n".join([found["machine"], *(line(name, row) for name, row in found["measured"].items())])


def main(words: list[str] | None = None) -> None:
    """Measure, print a line for each widget, and store the times with ``--store``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.widgets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(CASES)}")
    parser.add_argument("--moves", type=int, default=60, help="key presses for each control (default: 60)")
    parser.add_argument("--store", action="store_true", help="write widgets.json")
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.names if name not in CASES]:
        parser.error(f"there is no widget {unknown[0]}; choose from {', '.join(CASES)}")
    with lab.chromium() as browser:
        found = run(browser, arguments.names or list(CASES), arguments.moves)
    if arguments.store:
        write_json(FOLDER / "widgets.json", found)
        put(FOLDER, "widgets", f"```text\n{block(found)}\n```")


if __name__ == "__main__":
    main()
