"""Measure the first rows of the frozen benchmark: ``python -m benchmarks.frozen [regret] [--store]``.

The networks of an experiment of `benchmarks.accuracy` are measured on the test scripts of ``glyphs-20way`` at all 73
pairs; those that are missing are trained first. The default, ``frozen``, takes the experiment ``glyphs-pn`` with three
seeds. ``regret`` takes ``glyphs-pn-dedicated``, which has one seed and a network of its own for each pair. ``--store``
writes ``NAME.json`` and ``NAME-*.png`` to this folder, and puts the sheet into README.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import accuracy
from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite.experiments import frozen as benchmark
from mebqat_lite.files import write_json
from mebqat_lite.paths import results

FOLDER = Path(__file__).parent
SET = "glyphs-20way"
EXPERIMENTS = {"frozen": "glyphs-pn", "regret": "glyphs-pn-dedicated"}
SHOWN = {"frozen": ("bitops", "enrolment-mebqat_pn"), "regret": ()}  # the figures that are stored


def run(name: str) -> dict[str, Any]:
    """Measure the networks of a sheet's experiment, and train those that were not trained before."""
    accuracy.run(EXPERIMENTS[name])
    return measure(results() / "accuracy" / EXPERIMENTS[name])


def measure(folder: Path) -> dict[str, Any]:
    """Measure all networks of a folder, except for the FP networks that the others start from."""
    networks = sorted(path for path in folder.glob("*.safetensors") if not path.stem.startswith("start-"))
    return {"machine": machine(), **benchmark.sheet(networks, SET)}


def store(name: str, found: dict[str, Any]) -> None:
    """Write the sheet and its figures, and put the sheet's text into the README."""
    write_json(FOLDER / f"{name}.json", found, indent=None)
    for path in benchmark.write(found, results() / "benchmark"):
        if path.stem in SHOWN[name]:
            (FOLDER / f"{name}-{path.name}").write_bytes(path.read_bytes())
    put(FOLDER, name, f"```text\n{benchmark.text(found)}\n{found['machine']}\n```")


def main() -> None:
    """Measure and print the sheet that the command line names, and store it with ``--store``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="frozen", choices=EXPERIMENTS)
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.name)
    print(benchmark.text(found))
    if arguments.store:
        store(arguments.name, found)


if __name__ == "__main__":
    main()
