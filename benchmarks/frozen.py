"""Measure the first rows of the frozen benchmark: ``python -m benchmarks.frozen [--every | --store]``.

The networks of an experiment of `benchmarks.accuracy` are measured on the test scripts of ``glyphs-20way`` at all 73
pairs; those that are missing are trained first. The experiment is ``glyphs-pn``, which has three seeds and a dedicated
network for each of twelve pairs, or with ``--every`` ``glyphs-pn-dedicated``, which has one seed and all 72 pairs.
``--store`` writes ``frozen.json`` and ``frozen-*.png`` to this folder, and puts the sheet into README.md.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from benchmarks import accuracy
from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite.experiments import frozen as benchmark
from mebqat_lite.files import write_json
from mebqat_lite.paths import results

FOLDER = Path(__file__).parent
SET = "glyphs-20way"
SHOWN = ("bitops", "enrolment-mebqat_pn_in_turn")  # the figures that are stored


def run(experiment: str) -> dict[str, Any]:
    """Train the networks of an experiment that were not trained before, and measure them."""
    accuracy.run(experiment)
    return {"machine": machine(), **benchmark.sheet(networks(experiment, results() / "accuracy" / experiment), SET)}


def networks(experiment: str, folder: Path) -> list[Path]:
    """List the networks of an experiment, without those that an older form of it has left in the folder."""
    names = "|".join(re.escape(name.replace("=", "-")) for name in EXPERIMENTS[experiment].names)
    own = re.compile(rf"({names})(_w\d+a\d+)?(-lr[\d.]+)?-seed\d+\.safetensors")
    return sorted(path for path in folder.glob("*.safetensors") if own.fullmatch(path.name))


def store(found: dict[str, Any]) -> None:
    """Write the sheet and its figures, and put the sheet's text into the README."""
    write_json(FOLDER / "frozen.json", found, indent=None)
    for path in benchmark.write(found, results() / "benchmark"):
        if path.stem in SHOWN:
            (FOLDER / f"frozen-{path.name}").write_bytes(path.read_bytes())
    put(FOLDER, "frozen", f"```text\n{benchmark.text(found)}\n{found['machine']}\n```")


def main() -> None:
    """Measure the networks, print the sheet, and store it with ``--store``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--every", action="store_true", help="with a dedicated network for each of the 72 pairs")
    choice.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    found = run("glyphs-pn-dedicated" if arguments.every else "glyphs-pn")
    print(benchmark.text(found))
    if arguments.store:
        store(found)


if __name__ == "__main__":
    main()
