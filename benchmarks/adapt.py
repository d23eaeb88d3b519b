"""Adapt one network to a pair in k steps: ``python -m benchmarks.adapt [--seeds N] [--store]``.

Meta-learning claims that a network which was trained for many tasks learns one of them quickly. Here the tasks are
bitwidths: networks of the glyph classes are fine-tuned at one pair for k steps, from three starts that all had the same
back-propagations. ``--store`` writes ``adapt.json``, ``adapt.png`` and the table of README.md in this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.accuracy import FOLDER, rounded
from benchmarks.machine import machine
from benchmarks.page import command, put
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.setups import get
from mebqat_lite.files import write_json
from mebqat_lite.measure import plots
from mebqat_lite.measure.results import table
from mebqat_lite.paths import results

PAIRS = ("W1A1", "W2A2", "W4A4")
STEPS = (10, 30, 100, 300)
RATES = (0.003, 0.01, 0.03)  # the learning rates to choose from
TRIED = (30, 100)  # the steps at which the rates are tried
CHOOSING = (10, 11)  # seeds on which the rate of each start is chosen; it is measured on others
STARTS = {"mebqat_in_turn": "MEBQAT in turn", "fp": "full precision", "ptq_mse": "FP + PTQ-MSE"}
DEDICATED = "qat+lr=0.05"


def variant(start: str, steps: int, rate: float) -> str:
    """Return the name of the job that adapts the network of ``start``; after 0 steps it is that network itself."""
    return f"qat+start={start}+steps={steps}+lr={rate}" if steps else start


def compared(names: Sequence[str], seeds: int | Sequence[int], folder: str) -> dict[str, Any]:
    """Compare adapted networks of the glyph classes at three pairs."""
    how: dict[str, Any] = {"pairs": PAIRS, "listed": PAIRS, "seeds": seeds, "budget": "backprops"}
    return compare(get("glyph-classes"), names, folder=results() / "accuracy" / folder, **how)


def choose() -> dict[str, float]:
    """Choose the learning rate of each start: that of the best mean over the pairs and the steps that are tried."""
    tried = {(start, rate): [variant(start, k, rate) for k in TRIED] for start in STARTS for rate in RATES}
    found = compared([*STARTS, *(name for names in tried.values() for name in names)], CHOOSING, "adapt-rates")
    table = found["validation"]
    sums = {case: sum(table[name][pair]["mean"] for name in names for pair in PAIRS) for case, names in tried.items()}
    return {start: max(RATES, key=lambda rate: sums[start, rate]) for start in STARTS}


def run(seeds: int = 5) -> dict[str, Any]:
    """Train the starts, adapt each of them to each pair, and train a dedicated network for each pair."""
    rates = choose()
    names = [variant(start, steps, rates[start]) for start in STARTS for steps in (0, *STEPS)]
    return {"machine": machine(), "seeds": seeds, "rates": rates, **compared([*names, DEDICATED], seeds, "adapt")}


def curves(found: dict[str, Any], pair: str) -> dict[str, list[dict[str, float]]]:
    """Return for each start its accuracies at ``pair`` after 0, 10, 30, ... steps, on validation images."""
    rows, rates = found["validation"], found["rates"]
    return {
        title: [rows[variant(start, k, rates[start])][pair] for k in (0, *STEPS)] for start, title in STARTS.items()
    }


def rows(found: dict[str, Any], part: str) -> dict[str, Any]:
    """Give the rows of the table their titles."""
    cases = [(start, k) for start in STARTS for k in (0, *STEPS)]
    titles = {variant(start, k, found["rates"][start]): f"{STARTS[start]}, {k} steps" for start, k in cases}
    return {titles.get(name, "QAT of its own"): row for name, row in found[part].items()}


def store(found: dict[str, Any]) -> None:
    """Write the numbers and the figure, and put the table into the README."""
    write_json(FOLDER / "adapt.json", rounded(found), indent=None)
    panels = {pair: curves(found, pair) for pair in PAIRS}
    levels = {pair: found["validation"][DEDICATED][pair] for pair in PAIRS}
    plots.save(plots.adaptation((0, *STEPS), panels, levels), FOLDER / "adapt.png", dpi=120)
    put(FOLDER, "adapt", f"```text\n{text(found)}\n```")


def text(found: dict[str, Any]) -> str:
    """Write the table of both parts."""
    when = f"{found['seconds'] / 60:.0f} min; {found['machine']}"
    chosen = ", ".join(f"{title} {found['rates'][start]:g}" for start, title in STARTS.items())
    blocks = [f"Learning rates, chosen on other seeds: {chosen}"]
    for name, part in {"Validation": "validation", "Test": "accuracy"}.items():
        head = f"{name} images, {found['seeds']} seeds, norm statistics {found['norm_stats']}; {when}"
        blocks.append(f"{head}\n{table(rows(found, part), PAIRS)}")
    return "\n\n".join(blocks)


def main() -> None:
    """Run the experiment, print its table, and store it with ``--store``."""
    command(__doc__, 5, run, text, store)


if __name__ == "__main__":
    main()
