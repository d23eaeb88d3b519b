"""Run accuracy experiments: ``python -m benchmarks.accuracy NAME ... [--data DATA] [--seeds N] [--store]``.

Without a name the experiments of `benchmarks.experiments` are listed. A run that was stopped goes on where it was.
``--store`` writes ``accuracy/NAME.json`` and, from all files there, the tables of TABLES.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.experiments import EXPERIMENTS
from benchmarks.machine import images, machine
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.jobs import PAIRS
from mebqat_lite.files import write_json
from mebqat_lite.measure.results import report
from mebqat_lite.paths import results

FOLDER = Path(__file__).parent
HEAD = """# Accuracy, every stored table

Written by `python -m benchmarks.accuracy NAME --store`; what they say in short stands in [README.md](README.md). Every
seed has its own split. An interval is a 95 % t-interval over the seeds; a paired difference whose interval holds zero
is not told apart. A pair that a method with norm sets does not list takes gain and shift of the nearest listed pair,
and its statistics are measured like everyone's; a dash means not trained there, no norm set, or not measured.
"""


def run(
    name: str, data: str = "", seeds: int = 0, workers: int | None = None, engine: str = "loky", address: str = ""
) -> dict[str, Any]:
    """Run an experiment; ``data``, such as ``folder:PATH``, replaces ``cifar10`` or ``omniglot`` in its set-up."""
    experiment = EXPERIMENTS[name]
    setup = experiment.setup
    if data:
        setup = replace(setup, data=re.sub("^(cifar10|omniglot)", lambda _: data, setup.data))
    outcome = compare(
        setup,
        experiment.names,
        pairs=experiment.pairs,
        listed=experiment.listed,
        seeds=seeds or experiment.seeds,
        folder=results() / "accuracy" / name,
        budget=experiment.budget,
        qat_lrs=experiment.qat_lrs,
        workers=workers,
        engine=engine,
        address=address,
    )
    outcome["setup"]["data"] = experiment.setup.data  # not the path on this machine
    count = seeds or (experiment.seeds if isinstance(experiment.seeds, int) else len(experiment.seeds))
    given = {"images": images(data)} if data.startswith("folder:") else {}
    return {"experiment": name, "machine": machine(), "seeds": count, **given, **outcome}


def block(name: str, found: dict[str, Any]) -> str:
    """Format an experiment as TABLES.md shows it."""
    pairs = [pair for pair in PAIRS if any(pair in row for row in found["accuracy"].values())]
    text = "\n\n".join(report(found, pairs, part) for part in EXPERIMENTS[name].parts)
    command = f"python -m benchmarks.accuracy {name}{EXPERIMENTS[name].options}"
    head = f"## {EXPERIMENTS[name].why}\n\n`{command}`, {found['seeds']} seeds, each with its own split"
    copied = f"; images: {found['images']}" if "images" in found else ""
    return f"{head}; {found['machine']}{copied}\n\n```text\n{text}\n```\n"


def store(name: str, found: dict[str, Any]) -> None:
    """Write ``accuracy/NAME.json``, and write TABLES.md from all such files."""
    write_json(FOLDER / "accuracy" / f"{name}.json", rounded(found), indent=None)
    (FOLDER / "TABLES.md").write_text(tables())


def tables() -> str:
    """Format all stored experiments, in the order of `EXPERIMENTS`, as TABLES.md shows them."""
    stored = {name: FOLDER / "accuracy" / f"{name}.json" for name in EXPERIMENTS}
    blocks = [block(name, json.loads(path.read_text())) for name, path in stored.items() if path.exists()]
    return "\n".join([HEAD, *blocks])


def rounded(value: Any) -> Any:
    """Round floats to four decimals, which is much finer than one of 10,000 images, 0.01 %."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Run the experiments that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--data", default="", help="instead of cifar10: folder:PATH; of omniglot: omniglot:PATH,test=Korean+Sanskrit"
    )
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--engine", default="loky", help="serial, loky or dask")
    parser.add_argument("--address", default="", help="of a cluster of dask")
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--out", type=Path, help="also write what was found to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(EXPERIMENTS):
        parser.error(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    for name in arguments.names:
        found = run(name, arguments.data, arguments.seeds, arguments.jobs, arguments.engine, arguments.address)
        print(block(name, json.loads(json.dumps(found))), flush=True)
        if arguments.out:
            write_json(arguments.out, found)
        if arguments.store:
            store(name, found)
    if not arguments.names:
        print("\n".join(f"{name:18} {experiment.why}" for name, experiment in EXPERIMENTS.items()))


if __name__ == "__main__":
    main()
