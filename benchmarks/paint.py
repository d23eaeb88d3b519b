"""Paint a photograph at every bitwidth: ``python -m benchmarks.paint [--seeds N] [--store]``.

One network of coordinates for each row, all of them trained with equally many back-propagations, is measured at all 75
pairs. ``--store`` writes paint.json, paint.png, and a section of README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.accuracy import rounded
from benchmarks.experiments import ALL, SOME
from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite.bits import FULL, Bits
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.jobs import Job
from mebqat_lite.experiments.painting import paint
from mebqat_lite.experiments.setups import Setup, get
from mebqat_lite.files import write_json
from mebqat_lite.measure import plots
from mebqat_lite.measure.results import Cell, table
from mebqat_lite.paths import results

FOLDER = Path(__file__).parent
TITLES = {
    "ptq_naive": "FP, rounded",
    "ptq_mse": "FP + PTQ-MSE",
    "qat+bits=W1A1": "QAT for W1A1",
    "qat+bits=W4A4": "QAT for W4A4",
    "mebqat": "MEBQAT",
    "mebqat_in_turn": "MEBQAT in turn",
}
ALL_PAIRS, QUANTIZED = "all pairs", "weights of 16 bits or fewer"


def run(seeds: int = 5, workers: int | None = None, setup: Setup | None = None) -> dict[str, Any]:
    """Train and measure all rows, and return the comparison with the worst pair of each row."""
    outcome = compare(
        setup or get("paint"),
        list(TITLES),
        pairs=ALL,
        seeds=seeds,
        folder=results() / "paint",
        budget="backprops",
        workers=workers,
    )
    rows = outcome["accuracy"]
    return {"machine": machine(), "seeds": seeds, **outcome, "worst": {name: worst(row) for name, row in rows.items()}}


def worst(row: Mapping[str, Cell]) -> dict[str, dict[str, Any]]:
    """Find the pair of the lowest mean, among all pairs and among those with quantized weights."""
    groups = {ALL_PAIRS: list(row), QUANTIZED: [pair for pair in row if Bits.parse(pair).w < FULL]}
    lowest = {group: min(pairs, key=lambda pair: row[pair]["mean"]) for group, pairs in groups.items()}
    return {group: {"bits": pair, **row[pair]} for group, pair in lowest.items()}


def block(found: Mapping[str, Any]) -> str:
    """Format what was found as the README shows it."""
    means = {name: cell["mean"] for name, cell in found["means"]["test"]["all"].items()}
    lines = ["Mean of all pairs: " + ", ".join(f"{TITLES[name]} {mean:.1f}" for name, mean in means.items()) + "."]
    for group in (ALL_PAIRS, QUANTIZED):
        cells = {name: row[group] for name, row in found["worst"].items()}
        words = ", ".join(f"{TITLES[name]} {cell['mean']:.1f} at {cell['bits']}" for name, cell in cells.items())
        lines.append(f"Worst of {group}: {words}.")
    total = next(iter(found["costs"].values()))["backprops"]
    head = (
        f"`python -m benchmarks.paint`, {found['seeds']} seeds; {found['seconds'] / 60:.0f} min; {found['machine']}. "
        f"PSNR (dB) of one network a row, each with {total:,} back-propagations; norm statistics are recalibrated on "
        "the training pixels for every pair."
    )
    text = table(found["accuracy"], SOME, TITLES)
    return (
        f"{head}\n\n```text\n{text}\n```\n\n"
        + "\n\n".join(lines)
        + "\n\n![What the networks of the first seed paint](paint.png)\n"
    )


def store(found: Mapping[str, Any]) -> None:
    """Write ``paint.json``, ``paint.png`` and the README's section."""
    write_json(FOLDER / "paint.json", rounded(found), indent=None)
    files = {title: results() / "paint" / f"{Job(name, 0).name}.safetensors" for name, title in TITLES.items()}
    plots.save(plots.paintings(*paint(files, SOME), SOME), FOLDER / "paint.png")
    put(FOLDER, "paint", block(found))


def main() -> None:
    """Run the experiment, print it, and store it if that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.seeds, arguments.jobs)
    print(block(json.loads(json.dumps(found))))
    if arguments.store:
        store(found)


if __name__ == "__main__":
    main()
