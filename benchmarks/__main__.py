"""``make bench`` or ``python -m benchmarks [NAME ...]``: print the ratios and write ``results/bench.json``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import steps
from benchmarks.timing import Work, ratio
from mebqat_lite import bits, datasets, models
from mebqat_lite.convert import quantize
from mebqat_lite.evaluate import grid
from mebqat_lite.paths import results
from mebqat_lite.results import write_json

Benchmark = Callable[[], dict[str, Any]]


def step(name: str) -> Benchmark:
    """The benchmark of one network's training step."""
    case = steps.CASES[name]
    return lambda: ratio(steps.mebqat_step(case), steps.plain_step(case), case.runs)


def digits_grid() -> dict[str, Any]:
    """All 75 pairs on the test images under batch statistics, over 75 plain inferences and their accuracy."""
    data = datasets.digits()
    model = models.channels_last(quantize(models.digit_net(), "dorefa", sample=data.train.images[:8]))
    plain = models.channels_last(models.digit_net()).train()  # batch statistics

    @torch.no_grad()
    def inferences() -> None:
        for _ in bits.candidates():
            float((plain(data.test.images).argmax(1) == data.test.labels).sum())

    return ratio(lambda: grid(model, data.test, norm_stats="batch"), inferences, runs=15)


def imports() -> dict[str, Any]:
    """A fresh interpreter that imports the package, over one that imports torch and torchvision."""

    def run(code: str) -> Work:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    return ratio(run("import torch, torchvision, mebqat_lite"), run("import torch, torchvision"), runs=7, warmup=1)


BENCHMARKS: dict[str, Benchmark] = {
    **{f"mebqat_step/{name}": step(name) for name in steps.CASES},
    "grid/digits": digits_grid,
    "import": imports,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks (all by default)."""
    if unknown := set(names) - set(BENCHMARKS):
        print(f"no benchmark {sorted(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, {platform.machine()}")
    measured = {}
    for name in names or BENCHMARKS:
        measured[name] = record = BENCHMARKS[name]()
        low, high = record["spread"]
        ours, plain = (1000 * value for value in record["seconds"])
        print(
            f"{name:28} {record['ratio']:.3f}  [{low:.3f}, {high:.3f}]  {ours:8.1f} ms over {plain:8.1f} ms", flush=True
        )
    print("Written:", write_json(results() / "bench.json", measured).name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
