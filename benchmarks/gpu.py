"""Measure speed, memory and accuracy on one GPU: ``python -m benchmarks.gpu [--data folder:PATH] [--out FILE]``.

It is meant for ten minutes: once ``--seconds`` are over, what is left is skipped, and the file of results says so. The
file is written after each section, so that a run that is killed keeps what it has measured. A section that fails is
named in it, and the others go on. ``--miniature`` tries all sections on the CPU, with tiny networks, random images and
one step; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import fewshot_steps, steps
from benchmarks.__main__ import line
from benchmarks.machine import images, machine
from benchmarks.page import put
from benchmarks.timing import Work, ratio
from mebqat_lite import datasets, models
from mebqat_lite.bits import Bits, parse_all
from mebqat_lite.datasets import Data, Split
from mebqat_lite.experiments.setups import Setup, get
from mebqat_lite.files import write_json
from mebqat_lite.measure.evaluate import grid, norm_images
from mebqat_lite.paths import results
from mebqat_lite.scale.speed import Fast
from mebqat_lite.switching.state import pairs_of
from mebqat_lite.train import fit

FOLDER = Path(__file__).parent
METHODS = ("mebqat", "mebqat_in_turn")
PAIRS = parse_all("FP,W1A1,W4A4,W8A8")  # of each step: those that MEBQAT visits in each, and two that it might draw
SHOWN = ("W1A1", "W2A2", "W4A4", "W6A6", "W8A8", "FP")
Section = Callable[[], dict[str, Any]]


class OutOfTime(Exception):
    """The time that the sections may take together is over."""


@dataclass
class Clock:
    """The seconds that all sections may take together."""

    limit: float
    started: float = field(default_factory=time.perf_counter)

    def check(self) -> None:
        """Raise an OutOfTime if the time is over."""
        if time.perf_counter() - self.started >= self.limit:
            raise OutOfTime(f"the limit of {self.limit:g} seconds was reached")


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    clock: Clock
    device: str
    cases: Mapping[str, steps.Case]
    few_shot: fewshot_steps.Case
    tasks: int  # of a few-shot step
    setup: Setup
    data: Callable[[], Data]

    def sections(self) -> dict[str, Section]:
        """Return all sections by name; those that compile come last, because they take longest."""

        def speeds(compiled: bool) -> dict[str, Section]:
            found: dict[str, Section] = {}
            for amp, (name, case) in itertools.product((False, True), self.cases.items()):
                title = f"speed/{name}" + "+amp" * amp + "+compile" * compiled
                found[title] = functools.partial(self.speed, case, amp=amp, compiled=compiled)
            return found

        found = speeds(compiled=False)
        found |= {f"memory/{name}": functools.partial(self.memory, case) for name, case in self.cases.items()}
        return found | {"maml": self.maml, "accuracy": self.accuracy} | speeds(compiled=True)

    def speed(self, case: steps.Case, amp: bool, compiled: bool) -> dict[str, Any]:
        """Compare the rounds of `rounds` by their seconds, and as images per second that go forward and backward."""
        found = {}
        for method in METHODS:
            ours, plain = self.rounds(case, method, amp=amp, compiled=compiled)
            record = ratio(ours, plain, case.runs)
            rates = [round(len(PAIRS) * case.shape[0] / seconds, 1) for seconds in record["seconds"]]
            found[method] = record | {"images_per_second": rates}
        return found

    def memory(self, case: steps.Case) -> dict[str, Any]:
        """Compare the peak memory of the same rounds, beyond what the networks and their optimizers hold."""
        found = {}
        for method in METHODS:
            ours, plain = (self.peak(work) for work in self.rounds(case, method))
            found[method] = {"ratio": round(ours / plain, 3), "bytes": [ours, plain]}
        return found

    def maml(self) -> dict[str, Any]:
        """Compare a MEBQAT-MAML step whose tasks are adapted in one pass with one that adapts one after the other."""
        ways = (Fast(vectorized=True), Fast(vectorized=False))
        ours = [fewshot_steps.our_step(self.few_shot, self.tasks, passes, self.device) for passes in ways]
        together, apart = map(self.waiting, ours)
        record = ratio(together, apart, self.few_shot.runs)
        return {f"vectorized over serial, {self.tasks} tasks": record}

    def accuracy(self) -> dict[str, Any]:
        """Train the set-up's network, and measure it on the test images at the pairs that its quantizer has."""
        data, setup = self.data(), self.setup
        model = setup.build(data)
        how: dict[str, Any] = {"device": self.device, "progress": False, "log": lambda _: self.clock.check()}
        run = fit(model, data, setup.method, setup.recipe, **how)
        pairs = [pair for pair in SHOWN if Bits.parse(pair) in pairs_of(model)]
        frame = grid(model, data.test, pairs, norm_stats=setup.norm_stats, calibration=norm_images(data.train))
        length = f"{setup.recipe.epochs} epochs" if setup.recipe.epochs else f"{run.recipe.steps} steps"
        return {
            "title": f"{setup.model}, {setup.recipe.quantizer}, {setup.method}: {length} on {images(setup.data)}",
            "epochs": setup.recipe.epochs,
            "steps": run.costs.steps,
            "data": setup.data.partition(":")[0],  # without the path on this machine
            "jpeg_copy": setup.data.startswith("folder:"),
            "images": {"train": len(data.train.labels), "test": len(data.test.labels)},
            "norm_stats": setup.norm_stats,
            "training_seconds": round(run.seconds, 1),
            "accuracy": dict(zip(pairs, frame["mean"].round(2), strict=True)),
        }

    def rounds(self, case: steps.Case, method: str, amp: bool = False, compiled: bool = False) -> tuple[Work, Work]:
        """Return two rounds of four forward and backward passes: of the training loop, and of plain FP32 training.

        The loop visits `PAIRS` in each round, in one step of MEBQAT or in four steps in turn; the plain training makes
        four steps. Both take the same batch, mixed precision and compilation.
        """
        loop = steps.loop(case, method, Fast(amp, compiled, vectorized=False), self.device)
        loop.sampler = type(loop.sampler)(PAIRS, len(PAIRS), PAIRS)  # type: ignore[call-arg]
        plain = steps.plain_step(case, tasks=1, device=self.device, amp=amp, compiled=compiled)
        ours = self.waiting(loop.step, 1 if method == "mebqat" else len(PAIRS))
        return ours, self.waiting(plain, len(PAIRS))

    def waiting(self, step: Work, times: int = 1) -> Work:
        """Repeat a step and wait until the GPU has finished; an OutOfTime if the time is over before it begins."""

        def work() -> None:
            self.clock.check()
            for _ in range(times):
                step()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return work

    def peak(self, work: Work) -> int:
        """Measure the most memory that one call of ``work`` holds, beyond what was in use before, in bytes."""
        if self.device != "cuda":
            return steps.peak_bytes(work)
        work()  # in its first step the optimizer makes its state, which should not count
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before


def full(limit: float, epochs: int, data: str) -> Bench:
    """Make the benchmark for one GPU."""
    shape = (256, 3, 32, 32)
    cases = {
        "preact_resnet20_w1": replace(steps.CASES["preact_resnet20_w1"], shape=shape, runs=20),
        "resnet20": steps.Case(models.resnet20, shape, 20),
    }
    setup = replace(get("cifar10-resnet20").with_options(epochs=epochs), data=data)
    few_shot = fewshot_steps.CASES["mebqat_maml_step/conv4_64"]
    return Bench(Clock(limit), "cuda", cases, few_shot, 16, setup, functools.partial(datasets.load, data))


def miniature(limit: float) -> Bench:
    """Make the benchmark for the CPU, as small as it can be."""
    case = steps.Case(functools.partial(models.digit_net, widths=(2, 2, 2, 2)), (4, 1, 8, 8), 2)
    setup = replace(get("cifar10-resnet20").with_options(steps=1, batch_size=4), data="random images")
    few_shot = fewshot_steps.Case("mebqat_maml", 2, 2, 1, runs=2)
    return Bench(Clock(limit), "cpu", {"digit_net": case}, few_shot, 2, setup, random_data)


def random_data() -> Data:
    """Make 20 random images of two classes, (3, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.rand(20, 3, 8, 8, generator=generator), torch.arange(20) % 2)
    return Data("random", split, split, split, ("a", "b"))


def environment(device: str) -> dict[str, Any]:
    """Describe what the numbers belong to."""
    found: dict[str, Any] = {"machine": machine(), "device": device, "torch": torch.__version__}
    if device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": driver()}
        found["tf32_convolutions"] = torch.backends.cudnn.allow_tf32
    return found


def driver() -> str:
    """Return the version of the GPU's driver."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.partition("\n")[0]
    return "unknown"


def run(bench: Bench, out: Path) -> dict[str, Any]:
    """Measure one section after the other, and write the file after each."""
    found: dict[str, Any] = {"environment": environment(bench.device), "miniature": bench.device == "cpu"}
    found |= {"limit": bench.clock.limit, "sections": {}}
    for name, section in bench.sections().items():
        started = time.perf_counter()
        try:
            bench.clock.check()
            record = section()
        except OutOfTime as over:
            record = {"skipped": str(over)}
        except Exception as error:  # whatever it is, the other sections go on
            record = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        found["sections"][name] = record | {"seconds": round(time.perf_counter() - started, 1)}
        write_json(out, found)
        print(text(name, record), flush=True)
    return found


def text(name: str, record: Mapping[str, Any]) -> str:
    """Format a section: why it has no numbers, its accuracies, or a line for each comparison."""
    for word in ("skipped", "error"):
        if word in record:
            return f"{name}: {word}: {record[word]}"
    if "accuracy" in record:
        return f"{record['title']}\n" + "  ".join(f"{pair} {mean}" for pair, mean in record["accuracy"].items())
    lines = []
    for title, row in ((title, row) for title, row in record.items() if title != "seconds"):
        rates = " over ".join(f"{rate:,.0f}" for rate in row.get("images_per_second", ()))
        lines.append(f"{line(f'{name}, {title}', row)}  {rates} images/s" if rates else line(f"{name}, {title}", row))
    return "\n".join(lines)


def block(found: Mapping[str, Any]) -> str:
    """Format all sections of a file as the README shows them."""
    where = found["environment"]
    head = f"{where['device']}, driver {where['driver']}; {where['machine']}"
    return "\n".join([head, *(text(name, record) for name, record in found["sections"].items())])


def store(found: Mapping[str, Any]) -> None:
    """Write ``gpu.json``, and put its sections into the README."""
    write_json(FOLDER / "gpu.json", found)
    put(FOLDER, "gpu", f"```text\n{block(found)}\n```")


def main(words: list[str] | None = None) -> int:
    """Measure and write the file; without a GPU only in miniature."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=540, metavar="LIMIT", help="all sections together; %(default)s"
    )
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="of the network whose accuracy is measured")
    parser.add_argument("--data", default="cifar10", help="folder:PATH, a JPEG copy, instead of the binary CIFAR-10")
    parser.add_argument("--out", type=Path, default=results() / "gpu.json", metavar="FILE", help="%(default)s")
    parser.add_argument("--miniature", action="store_true", help="try all sections on the CPU")
    parser.add_argument("--store", type=Path, metavar="FILE", help="only put what a run wrote to FILE on the page")
    arguments = parser.parse_args(words)
    if arguments.store:
        store(json.loads(arguments.store.read_text()))
        return 0
    if arguments.miniature:
        with torch.compiler.set_stance("force_eager"):  # compiling takes minutes
            run(miniature(arguments.seconds), arguments.out)
    elif torch.cuda.is_available():
        run(full(arguments.seconds, arguments.epochs, arguments.data), arguments.out)
    else:
        print("there is no GPU here: run this on a machine with one, or try it with --miniature", file=sys.stderr)
        return 2
    print("Written:", arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
