"""The demo: compare one network for every bitwidth with post-training quantization and dedicated QAT.

It trains the networks of the digits, and lets shipped networks paint a photograph.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mebqat_lite import datasets, models
from mebqat_lite.bits import candidates
from mebqat_lite.checkpoint import load_model
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.jobs import PAIRS
from mebqat_lite.experiments.painting import paint
from mebqat_lite.experiments.setups import get
from mebqat_lite.files import write_json
from mebqat_lite.loop import Loop
from mebqat_lite.measure import plots
from mebqat_lite.measure.costs import saving, stored_bytes
from mebqat_lite.measure.results import differences, table
from mebqat_lite.methods import METHODS
from mebqat_lite.paths import results, shipped
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import Listed
from mebqat_lite.switching.norms import recalibrate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("ptq_mse", "qat", "mebqat", "mebqat_in_turn")
LISTED = ("W1A1", "W2A2")  # QAT trains a network for each of these: from W4A4 on nothing is left to win on the digits
TITLES = {name: METHODS[name].title for name in NAMES}
PAINTERS = {
    "FP, rounded": "paint-ptq_naive",
    "FP + PTQ-MSE": "paint-ptq_mse",
    "QAT for W4A4": "paint-qat_w4a4",
    "MEBQAT in turn": "paint-mebqat_in_turn",
}
PAINTED = ("W1A1", "W2A2", "W4A4", "W8A8", "FP")  # the pairs of the paintings
ORIGIN = "Digits: trained in this demo. Paintings: by shipped networks, one for each row."


def run(seeds: int = 3, workers: int | None = None, folder: Path | None = None, progress: bool = True) -> dict:
    """Train, paint, measure and count, print a table, and write ``demo.json`` and ``demo.png`` to ``folder``."""
    folder = results() if folder is None else folder
    saved = folder / "demo"
    how: dict[str, Any] = {"workers": workers, "progress": progress, "fresh": True}  # each demo trains anew
    outcome = compare(get("digits"), NAMES, seeds=seeds, listed=LISTED, folder=saved, budget="backprops", **how)
    outcome["seeds"] = seeds
    outcome["counted"] = count(saved / "mebqat-seed0.safetensors")
    files = {title: shipped("checkpoints", f"{name}.safetensors") for title, name in PAINTERS.items()}
    pictures, outcome["painted"] = paint(files, PAINTED)
    plots.save(draw(outcome, pictures), folder / "demo.png", dpi=150)
    write_json(folder / "demo.json", outcome)
    print(report(outcome, folder))
    return outcome


def draw(outcome: dict[str, Any], pictures: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the curves of the digits on the left and the paintings on the right, and say where each comes from."""
    seeds = outcome["seeds"]
    left = (outcome["accuracy"], PAIRS, TITLES, f"Digits: {seeds} seed{'s' * (seeds > 1)}, test images")
    right = (pictures, outcome["painted"], PAINTED, "A photograph, painted at five bitwidths, and its PSNR")
    parts = (functools.partial(plots.accuracy_curves, *left), functools.partial(plots.paintings, *right))
    return plots.beside(parts, widths=(5.2, 5.8), height=4.95, note=ORIGIN)


def count(checkpoint: Path) -> dict[str, int]:
    """Count the bytes of MEBQAT's model and of a float model, and the back-propagations of a training step.

    The step is run twice: once with MEBQAT's pairs, and once with all candidate pairs.
    """
    model, _ = load_model(checkpoint)
    data = datasets.digits()
    steps = {}
    for name in ("mebqat", "all"):
        loop = Loop(model, data.train, "mebqat", Recipe())
        if name == "all":
            loop.sampler = Listed(candidates())
        loop.step()
        loop.close()
        steps[name] = loop.run.costs.backprops
    recalibrate(model, data.train.images, candidates())
    everywhere = stored_bytes(model, statistics=True)
    return {
        "model_bytes": stored_bytes(model, statistics=False),
        "float_bytes": stored_bytes(models.digit_net()),
        "statistics_bytes": everywhere - stored_bytes(model, statistics=False),
        "pairs": len(candidates()),
        "step_backprops": steps["mebqat"],
        "all_pairs_step_backprops": steps["all"],
    }


def report(outcome: dict[str, Any], folder: Path) -> str:
    """Write the text of the demo: what was found, in which files it is, and what to open next."""
    return "\n".join(
        [
            "",
            findings(outcome),
            "",
            f"{outcome['seconds']:.0f} s. Written: {_short(folder / 'demo.json')}, {_short(folder / 'demo.png')}",
            "Next: `make lab` opens notebooks/00_start_here.ipynb, where you move the bits yourself.",
        ]
    )


def findings(outcome: dict[str, Any]) -> str:
    """Write the findings as text: the table, the paired differences and the counted costs."""
    counted, costs, seeds = outcome["counted"], outcome["costs"], outcome["seeds"]
    dedicated = counted["pairs"] * counted["float_bytes"]
    storage = saving(counted["model_bytes"], dedicated)
    steps = saving(counted["step_backprops"], counted["all_pairs_step_backprops"])
    kept = counted["model_bytes"] + counted["statistics_bytes"]
    return "\n".join(
        [
            "Digits, test accuracy in percent: "
            + (f"mean ± 95 % interval over {seeds} seeds, each with its own split." if seeds > 1 else "one seed."),
            f"Each network had {costs['mebqat_in_turn']['backprops']:,} back-propagations; QAT trains one for each "
            f"pair. Norm statistics: {outcome['norm_stats']} on training images.",
            "",
            table(outcome["accuracy"], PAIRS, TITLES),
            "",
            f"MEBQAT in turn - QAT, paired: {differences(outcome['paired']['test'])}",
            f"Storage: one model {counted['model_bytes']:,} bytes, {counted['pairs']} FP32 models {dedicated:,}: "
            f"{storage:.1f} % less ({saving(kept, dedicated):.1f} % with",
            f"  norm statistics for all {counted['pairs']} pairs). Back-propagations a step: "
            f"{counted['step_backprops']}, visiting all {counted['all_pairs_step_backprops']}: {steps:.1f} % fewer.",
            f"QAT for {len(LISTED)} pairs took {costs['qat']['backprops']:,} back-propagations with its FP start, "
            f"MEBQAT in turn {costs['mebqat_in_turn']['backprops']:,} for all pairs.",
            "",
            f"{ORIGIN} PSNR in dB:",
            _painted(outcome["painted"]),
        ]
    )


def _painted(measured: Mapping[str, Mapping[str, float]]) -> str:
    """Format the PSNR of the paintings as a table; there is one network in each row, so no interval."""
    rows = {
        title: {pair: {"mean": psnr, "ci95": math.nan} for pair, psnr in row.items()} for title, row in measured.items()
    }
    return table(rows, PAINTED)


def _short(path: Path) -> str:
    """Shorten a path to one relative to the current folder, if it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def ship(folder: Path, target: Path) -> list[str]:
    """Copy a demo's results to ``target``, which is this repository's ``data``, and its findings into the README.

    Returns the names of the copies. The networks that are shipped are made by `benchmarks/ship.py`.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = ["demo.json", "demo.png"]
    for name in names:
        shutil.copyfile(folder / name, target / name)
    _into_readme(target.parent / "README.md", json.loads((target / "demo.json").read_text()))
    return names


def _into_readme(readme: Path, outcome: dict[str, Any]) -> None:
    """Put the findings between the README's two demo marks."""
    start, end = "<!-- demo -->", "<!-- /demo -->"
    if readme.exists() and start in readme.read_text():
        before, rest = readme.read_text().split(start)
        after = rest.split(end)[1]
        readme.write_text(f"{before}{start}\n```text\n{findings(outcome)}\n```\n{end}{after}")
