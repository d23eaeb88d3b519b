"""Adapt one network to a pair in k steps: ``python -m benchmarks.adapt [--seeds N] [--store]``.

Meta-learning claims that a network which was trained for many tasks learns one of them quickly. Here the tasks are
bitwidths: networks of the glyph classes are fine-tuned at one pair for k steps, from three starts that all had the same
back-propagations. ``--store`` writes ``adapt.json``, ``adapt.png`` and the table of README.md in this folder.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.accuracy import FOLDER, rounded
from benchmarks.machine import machine
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.setups import get
from mebqat_lite.files import write_json
from mebqat_lite.measure import plots
from mebqat_lite.measure.results import Table, table
from mebqat_lite.paths import results

PAIRS = ("W1A1", "W2A2", "W4A4")
STEPS = (10, 30, 100, 300)
STARTS = {"mebqat_in_turn": "MEBQAT in turn", "fp": "full precision", "ptq_mse": "FP + PTQ-MSE"}
DEDICATED = "qat+lr=0.05"


def variant(start: str, steps: int) -> str:
    """Return the name of the job that adapts the network of ``start``; after 0 steps it is that network itself."""
    return f"qat+start={start}+steps={steps}" if steps else start


def run(seeds: int = 5) -> dict[str, Any]:
    """Train the starts, adapt each of them to each pair, and train a dedicated network for each pair."""
    names = [variant(start, steps) for start in STARTS for steps in (0, *STEPS)]
    how: dict[str, Any] = {"pairs": PAIRS, "listed": PAIRS, "seeds": seeds, "budget": "backprops"}
    found = compare(get("glyph-classes"), [*names, DEDICATED], folder=results() / "accuracy" / "adapt", **how)
    return {"machine": machine(), "seeds": seeds, **found}


def curves(accuracy: Table, pair: str) -> dict[str, list[dict[str, float]]]:
    """Return for each start its accuracies at ``pair`` after 0, 10, 30, ... steps."""
    return {title: [accuracy[variant(start, k)][pair] for k in (0, *STEPS)] for start, title in STARTS.items()}


def rows(accuracy: Table) -> dict[str, Any]:
    """Give the rows of the table their titles."""
    titles = {variant(start, k): f"{title}, {k} steps" for start, title in STARTS.items() for k in (0, *STEPS)}
    return {titles.get(name, "QAT of its own"): row for name, row in accuracy.items()}


def store(found: dict[str, Any]) -> None:
    """Write the numbers and the figure, and put the table into the README."""
    write_json(FOLDER / "adapt.json", rounded(found), indent=None)
    panels = {pair: curves(found["validation"], pair) for pair in PAIRS}
    levels = {pair: found["validation"][DEDICATED][pair] for pair in PAIRS}
    plots.save(plots.adaptation((0, *STEPS), panels, levels), FOLDER / "adapt.png", dpi=120)
    readme = FOLDER / "README.md"
    before, rest = readme.read_text().split("<!-- adapt -->\n")
    after = rest.split("<!-- /adapt -->")[1]
    readme.write_text(f"{before}<!-- adapt -->\n```text\n{text(found)}\n```\n<!-- /adapt -->{after}")


def text(found: dict[str, Any]) -> str:
    """Write the table of both parts."""
    when = f"{found['seconds'] / 60:.0f} min; {found['machine']}"
    head = f"{found['seeds']} seeds, norm statistics {found['norm_stats']}; {when}"
    parts = {"Validation": "validation", "Test": "accuracy"}
    return "\n\n".join(f"{part} images, {head}\n{table(rows(found[key]), PAIRS)}" for part, key in parts.items())


def main() -> None:
    """Run the experiment, print its table, and store it with ``--store``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.seeds)
    print(text(found))
    if arguments.store:
        store(found)


if __name__ == "__main__":
    main()
