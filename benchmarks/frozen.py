"""The frozen benchmark's first rows: ``python -m benchmarks.frozen [--store]``.

The networks of the experiment ``glyphs-pn`` (`benchmarks.accuracy`: three seeds, equal back-propagations a model),
which is run first if it has left none, measured on the test scripts of ``glyphs-20way`` at all 73 pairs. ``--store``
writes ``frozen.json`` and ``frozen-*.png`` beside this file, and the README's sheet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import accuracy
from benchmarks.machine import machine
from mebqat_lite import benchmark
from mebqat_lite.paths import results
from mebqat_lite.results import write_json

FOLDER = Path(__file__).parent
EXPERIMENT, SET = "glyphs-pn", "glyphs-20way"
SHOWN = ("bitops", "enrolment-mebqat_pn")  # figures


def run() -> dict[str, Any]:
    """Measure the networks of the experiment."""
    folder = results() / "accuracy" / EXPERIMENT
    if not any(folder.glob("mebqat_pn-*.safetensors")):
        accuracy.run(EXPERIMENT)
    networks = sorted(path for path in folder.glob("*.safetensors") if not path.stem.startswith("pn-seed"))
    return {"machine": machine(), **benchmark.sheet(networks, SET)}


def store(found: dict[str, Any]) -> None:
    """Write the sheet and its figures, and the sheet's text into the README."""
    write_json(FOLDER / "frozen.json", found, indent=None)
    for path in benchmark.write(found, results() / "benchmark"):
        if path.stem in SHOWN:
            (FOLDER / f"frozen-{path.name}").write_bytes(path.read_bytes())
    readme = FOLDER / "README.md"
    before, rest = readme.read_text().split("<!-- frozen -->\n")
    after = rest.split("<!-- /frozen -->")[1]
    block = f"```text\n{benchmark.text(found)}\n{found['machine']}\n```\n"
    readme.write_text(f"{before}<!-- frozen -->\n{block}<!-- /frozen -->{after}")


def main() -> None:
    """Measure, print and perhaps store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    found = run()
    print(benchmark.text(found))
    if arguments.store:
        store(found)


if __name__ == "__main__":
    main()
