"""The evidence at a glance: MEBQAT in turn beside its rivals, task by task, from the stored experiments.

``python -m benchmarks.summary`` prints the table and puts it into README.md in this folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.accuracy import FOLDER
from benchmarks.page import put
from mebqat_lite.measure.results import Cell, is_known

TASKS = {
    "digits-backprops": "digits",
    "digits-wide": "digits, wide net",
    "glyph-classes": "glyph classes",
    "cifar": "CIFAR-10, Conv4-16",
    "cifar-preact_resnet20": "CIFAR-10, PreActResNet-20",
    "glyphs-pn": "new glyphs, PN",
    "omniglot-pn": "Omniglot, PN",
}
PAPER, ROUNDED = ("mebqat", "mebqat_pn"), ("ptq_mse", "pn_ptq_mse")
PAIRS = ("W1A1", "W2A2", "W4A4")
TITLES = {"all": "in turn", "paper": "- MEBQAT", "rounded": "- PTQ-MSE"} | {pair: f"- QAT {pair}" for pair in PAIRS}
TOLD = "A difference is in turn minus the other, paired; one in (brackets) is not told apart from zero."


def rows(folder: Path = FOLDER / "accuracy") -> dict[str, dict[str, str]]:
    """Make the row of each task that is stored: the mean over all pairs and paired differences, on test data."""
    paths = {title: folder / f"{name}.json" for name, title in TASKS.items()}
    return {title: row(json.loads(path.read_text())) for title, path in paths.items() if path.exists()}


def row(found: Mapping[str, Any]) -> dict[str, str]:
    """Make one row; where a rival was trained in several ways, the one that is best on validation data counts."""
    means, ours = found["means"]["test"], found["rivals"][0]
    choice = found["means"]["val"].get("all") or means["all"]
    texts = {"all": cell(means["all"][ours], signed=False)}
    for title, names in {"paper": PAPER, "rounded": ROUNDED}.items():
        best = max((n for n in choice if n.partition("+")[0] in names), key=lambda n: choice[n]["mean"])
        texts[title] = cell(difference(means, ours, best))
    return texts | {pair: cell(gap) for pair, gap in found["paired"]["test"].items() if pair in PAIRS}


def difference(means: Mapping[str, Any], ours: str, other: str) -> Cell:
    """Return the paired difference ``ours - other`` over all pairs, which a comparison stores against its first row."""
    minus = means["minus_first"]["all"]
    if ours in minus:
        raise ValueError(f"{ours} must be the first method of the experiment")
    return {**minus[other], "mean": -minus[other]["mean"]}


def cell(value: Cell, signed: bool = True) -> str:
    """Format ``mean ±half-width``; a difference whose interval holds zero stands in brackets."""
    half = f" ±{value['ci95']:.1f}" if is_known(value["ci95"]) else ""
    text = f"{value['mean']:{'+' if signed else ''}.1f}{half}"
    return f"({text})" if signed and abs(value["mean"]) <= value["ci95"] else text


def text() -> str:
    """Write the table; a dash stands where the quantizer has no such pair or QAT was not trained."""
    lines = {task: {key: cells.get(key, "-") for key in TITLES} for task, cells in rows().items()}
    table = [["", *TITLES.values()], *([task, *cells.values()] for task, cells in lines.items())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    head = "Test data; the mean over all pairs, and QAT with a network of its own at one pair. " + TOLD
    body = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([head, "", *body])


if __name__ == "__main__":
    print(text())
    put(FOLDER, "summary", f"```text\n{text()}\n```")
