"""Is one set of running statistics enough for every width? ``python -m benchmarks.one_set [--store]``.

The networks of ``python -m benchmarks.accuracy glyph-classes``, which must have run before, are measured under
two norm policies: with the running statistics of their training, which all pairs share, and with statistics that are
recalibrated for each pair. ``--store`` writes ``one_set.json`` and the table of README.md in this folder.
"""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy import FOLDER, rounded
from benchmarks.experiments import CORRECTED, EXPERIMENTS, SHOWN
from benchmarks.machine import machine
from benchmarks.page import command, put
from mebqat_lite import datasets
from mebqat_lite.checkpoint import load_model
from mebqat_lite.experiments.jobs import Job
from mebqat_lite.files import write_json
from mebqat_lite.measure.evaluate import grid, norm_images
from mebqat_lite.measure.results import cells, table
from mebqat_lite.paths import results

NAME = "glyph-classes"
NETWORKS = {"mebqat_in_turn+lr=0.05": "dorefa", f"{CORRECTED}+lr=0.05": "dorefa_corrected"}


def run(seeds: int = 5) -> dict[str, Any]:
    """Measure each network under both policies on validation images: ``accuracy["dorefa, running"][bits]``."""
    experiment, accuracy = EXPERIMENTS[NAME], {}
    splits = [datasets.load(experiment.setup.data, seed) for seed in range(seeds)]
    for variant, title in NETWORKS.items():
        paths = [results() / "accuracy" / NAME / f"{Job(variant, seed).name}.safetensors" for seed in range(seeds)]
        nets = [load_model(path)[0] for path in paths]
        for policy in ("recalibrated", "running"):
            images = [norm_images(data.train) for data in splits] if policy == "recalibrated" else None
            frame = grid(nets, [data.val for data in splits], SHOWN, norm_stats=policy, calibration=images)
            accuracy[f"{title}, {policy}"] = cells(frame)
    return {"machine": machine(), "seeds": seeds, "accuracy": accuracy}


def text(found: dict[str, Any]) -> str:
    """Write the table."""
    head = f"Accuracy (%), validation images of the glyph classes, MEBQAT in turn, {found['seeds']} seeds"
    return f"{head}; {found['machine']}\n{table(found['accuracy'], SHOWN)}"


def store(found: dict[str, Any]) -> None:
    """Write the numbers, and put the table into the README."""
    write_json(FOLDER / "one_set.json", rounded(found), indent=None)
    put(FOLDER, "one_set", f"```text\n{text(found)}\n```")


def main() -> None:
    """Measure, print the table, and store it with ``--store``."""
    command(__doc__, 5, run, text, store)


if __name__ == "__main__":
    main()
