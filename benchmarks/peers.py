"""Compare a QAT step at W4A4 with that of brevitas: ``python -m benchmarks.peers [--store]``.

Each is divided by a plain FP32 step of the same network: forward, backward and AdamW, on the same batch and one thread.
Both quantize the weights and the inputs of all layers but the first and the last. brevitas is no dependency of this
package; where it is not installed, its rows are left out. ``--store`` writes ``peers.json`` and a section of README.md
in this folder.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import steps
from benchmarks.__main__ import block, line
from benchmarks.machine import machine
from benchmarks.page import put
from benchmarks.timing import ratio
from mebqat_lite.bits import Bits
from mebqat_lite.files import write_json
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.state import plan_of, set_bits

FOLDER = Path(__file__).parent
PAIR = Bits(4, 4)
CASES = {name: steps.CASES[name] for name in ("digits", "cnn8")}
OURS = ("dorefa", "lsq")
MISSING = (
    "brevitas is not installed, so its rows are left out. To keep its pins away from your environment: pip install "
    "--no-deps --target FOLDER brevitas dependencies unfoldNd, and put FOLDER on PYTHONPATH"
)


def ours(case: steps.Case, quantizer: str) -> nn.Module:
    """Build the network of a case, quantized by this package at W4A4."""
    model = quantize(case.build(), quantizer, sample=steps.batch(case).images[:8])
    set_bits(model, PAIR)
    return model


def theirs(case: steps.Case) -> nn.Module:
    """Build the network of a case with brevitas' convolutions in place of the layers that `ours` quantizes.

    Raises:
        ImportError: brevitas is not installed.
    """
    model = case.build()
    for site in plan_of(ours(case, "lsq")).sites:
        if site.role == "body":
            model.set_submodule(site.name, _convolution(model.get_submodule(site.name)))
    return model


def _convolution(conv: nn.Module) -> nn.Module:
    """Make brevitas' form of a convolution.

    Its input comes from a ReLU. By default brevitas takes the scale of the input from statistics in the first 300
    steps, which is slower than to learn it; here this is done in the first step only.
    """
    assert isinstance(conv, nn.Conv2d)  # in these networks only convolutions are quantized
    shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    made: nn.Module = importlib.import_module("brevitas.nn").QuantConv2d(
        *shape,
        bias=conv.bias is not None,
        weight_bit_width=PAIR.w,
        input_quant=importlib.import_module("brevitas.quant").Uint8ActPerTensorFloat,
        input_bit_width=PAIR.a,
        input_collect_stats_steps=1,
    )
    return made


def run() -> dict[str, Any]:
    """Measure all rows that can be measured here."""
    torch.set_num_threads(1)
    version = installed()
    sides: dict[str, Callable[[steps.Case], nn.Module]]
    sides = {name: functools.partial(ours, quantizer=name) for name in OURS}
    if version:
        sides["brevitas"] = theirs
    measured = {}
    for name, case in CASES.items():
        for side, build in sides.items():
            works = (steps.plain_step(case, 1, build(case)), steps.plain_step(case, 1))
            measured[f"{name}/{side}"] = ratio(*works, case.runs)
            print(line(f"{name}/{side}", measured[f"{name}/{side}"]), flush=True)
    return {"machine": machine() + version, "pair": str(PAIR), "measured": measured}


def installed() -> str:
    """Return which brevitas is installed, as ``, brevitas 0.13.4``, or an empty text if there is none."""
    try:
        importlib.import_module("brevitas.nn")
        return f", brevitas {importlib.metadata.version('brevitas')}"
    except ImportError:
        return ""


def store(found: dict[str, Any]) -> None:
    """Write ``peers.json``, and put the results into the README."""
    write_json(FOLDER / "peers.json", found)
    put(FOLDER, "peers", block(found))


def main(words: list[str] | None = None) -> None:
    """Measure, print the lines, and store them with ``--store``."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", action="store_true")
    arguments = parser.parse_args(words)
    found = run()
    if not installed():
        print(MISSING)
    if arguments.store:
        store(found)


if __name__ == "__main__":
    main()
