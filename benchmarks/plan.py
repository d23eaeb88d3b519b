"""Estimate from measured step times what the paper's large runs need: ``python -m benchmarks.plan [--store]``.

``--store`` writes PLAN.md. ``--run NAME --images-per-second X`` plans one run for a throughput that was measured
elsewhere, for example on a GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.steps import CASES, TASKS
from mebqat_lite import bits, models, quantize
from mebqat_lite.measure.costs import bit_operations

FOLDER = Path(__file__).parent
DAY = 86_400
BATCH = 256
IMAGENET = 1_281_167  # training images


def imagenet(name: str) -> nn.Module:
    """Build torchvision's network for 224 x 224 images and 1,000 classes."""
    import torchvision

    network: nn.Module = getattr(torchvision.models, name)()
    return network


@dataclass(frozen=True)
class Planned:
    """A run: its training images, epochs and pairs, and the case of `steps.CASES` that its step time comes from."""

    images: int
    epochs: int
    pairs: int
    case: str
    side: int = 32  # of an image, in pixels
    build: Callable[[], nn.Module] | None = None  # if not the case's network: times are scaled by multiplications
    visits: int = TASKS  # how many pairs an image goes through each time that it is in a batch; 1 in turn


RUNS = {  # the first three are the paper's (ECCV 2022, section 4.1); the fourth is a set-up; the last two are assumed
    "cifar10-preact_resnet20": Planned(50_000, 400, 75, "preact_resnet20_w5"),
    "svhn-cnn8": Planned(73_257, 100, 75, "cnn8", 40),
    "cifar10-mobilenet_v2": Planned(50_000, 600, 73, "mobilenet_v2"),
    "cifar10-resnet20": Planned(50_000, 200, 21, "preact_resnet20_w1", build=models.resnet20, visits=1),
    "imagenet-mobilenet_v2": Planned(
        IMAGENET, 100, 73, "mobilenet_v2", 224, functools.partial(imagenet, "mobilenet_v2")
    ),
    "imagenet-resnet18": Planned(IMAGENET, 100, 75, "preact_resnet20_w5", 224, functools.partial(imagenet, "resnet18")),
}


def multiplications(build: Callable[[], nn.Module], side: int) -> int:
    """Count the multiplications of one image, (3, side, side), in the convolutions and linear layers of a network."""
    model, image = build(), torch.zeros(3, side, side)
    return bit_operations(quantize(model, sample=image[None].repeat(2, 1, 1, 1)), image, bits.FP) // bits.FULL**2


@functools.cache
def images_per_second(name: str) -> float:
    """Compute how many images per second the steps of a run take on the machine of results.json.

    Each image counts once, though in a MEBQAT step it goes through the network at four pairs.
    """
    run, measured = RUNS[name], json.loads((FOLDER / "results.json").read_text())["measured"]
    case = CASES[run.case]
    rate = case.shape[0] / float(measured[f"mebqat_step/{run.case}"]["seconds"][0]) * TASKS / run.visits
    if run.build is None:
        return rate
    return rate * multiplications(case.build, case.shape[-1]) / multiplications(run.build, run.side)


def duration(seconds: float) -> str:
    """Format seconds with two digits: ``13 hours``, ``25 days``, ``11 years``."""
    units = {"years": 365 * DAY, "days": DAY, "hours": 3600}
    unit = next((unit for unit, size in units.items() if seconds >= 1.5 * size), "hours")
    count = seconds / units[unit]
    return f"{round(count, 1 - math.floor(math.log10(count))):,g} {unit}"


def seconds_of(name: str, rate: float) -> tuple[float, float]:
    """Compute the seconds of one MEBQAT run, and of a dedicated network per pair, at ``rate`` images per second."""
    run = RUNS[name]
    once = run.images * run.epochs / rate
    return once, once * run.pairs / run.visits


def table(rates: Mapping[str, float]) -> str:
    """Format a table of what runs need, from their names and their images per second."""
    lines = ["| run | images x epochs | steps | images/s | one MEBQAT run | pairs | a dedicated network for each |"]
    lines.append("|---" + "|---:" * 6 + "|")
    for name, rate in rates.items():
        run, (once, apart) = RUNS[name], map(duration, seconds_of(name, rate))
        steps = run.images // BATCH * run.epochs
        work = f"{run.images * run.epochs / 1e6:,.1f} M"
        lines.append(f"| `{name}` | {work} | {steps:,} | {rate:.3g} | {once} | {run.pairs} | {apart} |")
    return "\n".join(lines)


def for_rate(name: str, rate: float) -> str:
    """Format the plan of one run at a given throughput, and the times on several devices at best."""
    lines = [table({name: rate}), ""]
    for count in (2, 4, 8):
        once, apart = (duration(seconds / count) for seconds in seconds_of(name, rate))
        lines.append(f"{count} devices, at best: {once}, {apart}")
    return "\n".join(lines)


def page() -> str:
    """Write the text of PLAN.md."""
    machine = json.loads((FOLDER / "results.json").read_text())["machine"]
    rates, gigabytes = {name: images_per_second(name) for name in RUNS}, IMAGENET * 3 * 224**2 / 1e9
    numbers = {"tasks": TASKS, "batch": BATCH, "images": IMAGENET, "gigabytes": gigabytes}
    return TEXT.format(machine=machine, table=table(rates), **numbers)


TEXT = """# What the paper's large runs need

`python -m benchmarks.plan --store` writes this page from the step times in `results.json`
({machine}).

{table}

- **images/s** is measured: batch over the time of a MEBQAT step (`mebqat_step/...` in README.md). An image counts once,
  though it goes through at {tasks} pairs. A step of {batch} costs an image as much as the smaller
  one that was measured, it is assumed.
- **one MEBQAT run** = images x epochs / images/s.
- **a dedicated network for each pair** = that x pairs / {tasks}: equal steps, one pair a step instead of {tasks},
  each taken to cost the same, and no learning rate chosen. Whoever delivers {tasks} pairs or fewer saves nothing.
- The first three runs are the paper's: epochs, batches of {batch}, all training images (this package keeps 5,000 of
  CIFAR-10's to choose on).
- `cifar10-resnet20` has the network and the widths of Double Rounding (Huang et al., 2025), and trains in turn. There
  an image goes through at one pair, so its images/s are {tasks} times those of a MEBQAT step (of PreActResNet-20,
  width 1, with dorefa, over the ratio of multiplications), and a dedicated network for each pair takes that x pairs.
- **The ImageNet runs are assumed**: `setups.SETUPS`, the paper's settings, has none. {images:,} images of 224 x 224,
  100 epochs, torchvision's networks. Their images/s are the measured ones (of MobileNetV2; of PreActResNet-20, width 5,
  for ResNet-18) over the ratio of multiplications an image: good for the order of magnitude.

## Which engine runs what

| job | command | time |
|---|---|---|
| one network, one device | `mebqat-lite train --recipe NAME` | as above |
| one network, M machines of N devices | the same with `--devices N --nodes M` (Fabric or torchrun) | at best over N M |
| many networks: pairs, seeds, methods | `mebqat-lite compare --engine dask --address ...` | over the workers |

Dedicated networks are jobs that know nothing of one another: `--engine` spreads them, one job a worker. One MEBQAT run
is one job: only `--devices` makes it shorter. There each batch norm adds two messages a pair, and each step one with
all gradients; so N M is a limit, not a promise.

## What is missing

- **No GPU has been measured**: images/s of one device, with `--amp` and without, are to be filled in. Train for 200
  steps (`--steps 200`); X is the batch times 150 over the `seconds` between steps 50 and 200 in `metrics.jsonl`. Then
  `python -m benchmarks.plan --run NAME --images-per-second X` prints that run's line, and what several devices leave.
  `python -m benchmarks.gpu` measures two small networks, with mixed precision and compiled too, in ten minutes.
- **ImageNet does not fit**: images are kept in memory as bytes, {gigabytes:.0f} GB at 224 x 224, and each process
  puts its own copy on its device. Without a source that reads from disk no throughput makes these runs possible.
"""


def main(words: list[str] | None = None) -> None:
    """Print or store the page, or print one run's plan for another throughput."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument("--run", choices=RUNS, default="imagenet-mobilenet_v2")
    parser.add_argument("--images-per-second", type=float, metavar="X", help="through a MEBQAT step of that run")
    parser.add_argument("--store", action="store_true", help="write PLAN.md")
    arguments = parser.parse_args(words)
    if arguments.images_per_second is not None and not 0 < arguments.images_per_second < math.inf:
        parser.error(f"--images-per-second must be above 0, not {arguments.images_per_second:g}")
    if arguments.images_per_second is not None:
        print(for_rate(arguments.run, arguments.images_per_second))
        return
    if arguments.store:
        (FOLDER / "PLAN.md").write_text(page())
    print(page().rstrip())


if __name__ == "__main__":
    main()
