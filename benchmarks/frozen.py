"""The frozen benchmark's first rows: ``python -m benchmarks.frozen [--store] [--all]``, some ten minutes.

MEBQAT-PN, PN with rounding, and networks dedicated to one pair each, all from one start and at equal back-propagations
a model, one seed, measured on the test scripts of ``glyphs-20way``. There is a dedicated network for each pair of
the widths 2, 4 and 8; with ``--all`` for each of the 72 quantized pairs (an hour). ``--store`` writes
``frozen.json`` and ``frozen-*.png`` beside this file, and the README's sheet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from mebqat_lite import benchmark
from mebqat_lite.bits import FP, candidates
from mebqat_lite.compare import compare
from mebqat_lite.paths import results
from mebqat_lite.recipes import get

FOLDER = Path(__file__).parent
NAME = "glyphs-20way"
WIDTHS = {2, 4, 8}
METHODS = ("mebqat_pn", "mebqat_pn+exclude=(3,5,7)", "pn_ptq_mse", "pn_qat")


def run(workers: int | None = None, everything: bool = False) -> dict[str, Any]:
    """Train what the sheet compares, and measure it."""
    folder = results() / "frozen"
    known = [pair for pair in candidates(one_bit=False) if pair != FP]
    pairs = [str(pair) for pair in known if everything or {pair.w, pair.a} <= WIDTHS]
    setup, how = get("glyphs-pn"), {"budget": "backprops", "workers": workers}
    compare(setup, METHODS, pairs=["W2A2"], listed=pairs, seeds=1, folder=folder, **how)
    trained = sorted(path for path in folder.glob("*.safetensors") if not path.stem.startswith("pn-"))
    return {"machine": machine(), **benchmark.sheet(trained, NAME)}


def store(found: dict[str, Any]) -> None:
    """Write the sheet and its figures, and the sheet's text into the README."""
    (FOLDER / "frozen.json").write_text(json.dumps(found) + "\n")
    for path in benchmark.write(found, results() / "benchmark"):
        if path.suffix == ".png" and path.stem in ("bitops", "enrolment-mebqat_pn"):
            (FOLDER / f"frozen-{path.name}").write_bytes(path.read_bytes())
    readme = FOLDER / "README.md"
    before, rest = readme.read_text().split("<!-- frozen -->\n")
    after = rest.split("<!-- /frozen -->")[1]
    block = f"```text\n{benchmark.text(found)}\n{found['machine']}\n```\n"
    readme.write_text(f"{before}<!-- frozen -->\n{block}<!-- /frozen -->{after}")


def main() -> None:
    """Measure, print and perhaps store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.jobs, arguments.all)
    print(benchmark.text(found))
    if arguments.store:
        store(found)


if __name__ == "__main__":
    main()
