"""Print the ratios and write ``results/bench.json``: ``make bench`` or ``python -m benchmarks [NAME ...]``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import fewshot_steps, steps
from benchmarks.machine import machine
from benchmarks.page import put
from benchmarks.timing import Work, ratio
from mebqat_lite import bits, datasets, models
from mebqat_lite.experiments.jobs import one_thread
from mebqat_lite.files import write_json
from mebqat_lite.measure.evaluate import grid
from mebqat_lite.paths import results
from mebqat_lite.switching.convert import quantize

FOLDER = Path(__file__).parent
Benchmark = Callable[[], dict[str, Any]]


def step(name: str) -> Benchmark:
    """Make the benchmark of one network's training step; ``name`` is a key of `steps.CASES`."""
    case = steps.CASES[name]
    return lambda: ratio(steps.mebqat_step(case), steps.plain_step(case), case.runs)


def in_turn(name: str) -> Benchmark:
    """Make the benchmark of four steps of MEBQAT in turn, over four plain training steps of the float network."""
    case = steps.CASES[name]
    return lambda: ratio(steps.in_turn_steps(case), steps.repeated(steps.plain_step(case, 1)), case.runs)


def few_shot(name: str) -> Benchmark:
    """Make the benchmark of a few-shot training step; ``name`` is a key of `fewshot_steps.CASES`."""
    case = fewshot_steps.CASES[name]
    return lambda: ratio(fewshot_steps.our_step(case), fewshot_steps.plain_step(case), case.runs)


def memory(ours: Callable[[], Work], plain: Callable[[], Work]) -> Benchmark:
    """Make the benchmark of the memory that a training step takes at its peak."""

    def compare() -> dict[str, Any]:
        peaks = [steps.peak_bytes(work()) for work in (ours, plain)]
        return {"ratio": round(peaks[0] / peaks[1], 3), "bytes": peaks}

    return compare


def memory_of(case: steps.Case) -> Benchmark:
    """Make the benchmark of the memory of a MEBQAT step over that of one plain training step."""
    return memory(lambda: steps.mebqat_step(case), lambda: steps.plain_step(case, 1))


def memory_of_pn() -> Benchmark:
    """Make the same for a MEBQAT-PN step; the plain side of steps in turn is plain training steps."""
    ours, plain = (fewshot_steps.CASES[name] for name in ("mebqat_pn_step/conv4_32", "in_turn_step/pn_conv4_32"))
    return memory(lambda: fewshot_steps.our_step(ours), lambda: fewshot_steps.plain_step(plain))


def digits_grid() -> dict[str, Any]:
    """Compare `grid` at all 75 pairs of the digits (batch statistics) with 75 plain inferences and their accuracy."""
    data = datasets.digits()
    model = models.channels_last(quantize(models.digit_net_wide(), "dorefa", sample=data.train.images[:8]))
    plain = models.channels_last(models.digit_net_wide()).train()  # batch statistics

    @torch.no_grad()
    def inferences() -> None:
        for _ in bits.candidates():
            float((plain(data.test.images).argmax(1) == data.test.labels).sum())

    return ratio(lambda: grid(model, data.test, norm_stats="batch"), inferences, runs=15)


def imports() -> dict[str, Any]:
    """Compare a fresh interpreter that imports the package with one that imports torch and torchvision only."""

    def run(code: str) -> Work:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    return ratio(run("import torch, torchvision, mebqat_lite"), run("import torch, torchvision"), runs=7, warmup=1)


BENCHMARKS: dict[str, Benchmark] = {
    **{f"mebqat_step/{name}": step(name) for name in steps.CASES},
    **{f"in_turn_step/{name}": in_turn(name) for name in ("digits", "digits_narrow", "cnn8")},
    **{name: few_shot(name) for name in fewshot_steps.CASES},
    **{f"memory/{name}": memory_of(case) for name, case in steps.CASES.items() if case.quantizer != "identity"},
    "memory/pn_conv4_32": memory_of_pn(),
    "grid/digits": digits_grid,
    "import": imports,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks (by default all); ``--store`` also puts the results into README.md in this folder."""
    keep = "--store" in names
    names = [name for name in names if name != "--store"]
    if unknown := set(names) - set(BENCHMARKS):
        print(f"no benchmark {sorted(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    print(machine())
    measured = {}
    for name in names or BENCHMARKS:
        measured[name] = measure(name)
        print(line(name, measured[name]), flush=True)
    print("Written:", write_json(results() / "bench.json", measured).name)
    if keep:
        store({"machine": machine(), "measured": measured})
    return 0


def measure(name: str) -> dict[str, Any]:
    """Run a benchmark with the threads that PyTorch takes, and time it with one thread too."""
    record = BENCHMARKS[name]()
    if "spread" in record and torch.get_num_threads() > 1 and name != "import":
        with one_thread():
            alone = BENCHMARKS[name]()
        record["one_thread"] = {key: alone[key] for key in ("ratio", "spread")}
    return record


def line(name: str, record: dict[str, Any]) -> str:
    """Format a benchmark as a line: the median ratio, its quartiles, and the milliseconds (or megabytes) of both.

    At its end stand the ratio and the quartiles with one thread, if they were measured.
    """
    if "bytes" in record:
        ours, plain = (value / 2**20 for value in record["bytes"])
        return f"{name:30} {record['ratio']:.2f}                {ours:7.1f} MiB over {plain:7.1f} MiB"
    low, high = record["spread"]
    ours, plain = (1000 * value for value in record["seconds"])
    text = f"{name:30} {record['ratio']:.2f}  [{low:.2f}, {high:.2f}]  {ours:7.1f} ms over {plain:7.1f} ms"
    if alone := record.get("one_thread"):
        text += "   {:.2f}  [{:.2f}, {:.2f}]".format(alone["ratio"], *alone["spread"])
    return text


def block(stored: dict[str, Any]) -> str:
    """Format the results as the README shows them."""
    lines = [stored["machine"], *(line(name, record) for name, record in stored["measured"].items())]
    return "\n".join(["```text", *lines, "```"])


def store(found: dict[str, Any]) -> None:
    """Write ``results.json``, and put the results into the README."""
    write_json(FOLDER / "results.json", found)
    put(FOLDER, "measured", block(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
