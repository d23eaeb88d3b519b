"""The commands that prepare a model for use elsewhere: allocate, export."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mebqat_lite.bits import Bits, parse_all
from mebqat_lite.cli.shared import Commands, layer_map, print_written

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from mebqat_lite.datasets import Data

TRIED = "W1A1,W2A2,W3A3,W4A4,W8A8"  # the pairs that allocate chooses from, as far as the network was trained for them
REST = Bits(2, 2)  # where the other layers are while one is looked at


# ---------------------------------------------------------------- allocate


def add_allocate(commands: Commands) -> None:
    """Define ``mebqat-lite allocate``."""
    command = commands.add_parser("allocate", help="choose bits for each layer within a budget, and write the map")
    command.add_argument("--checkpoint", type=Path, required=True)
    budget = command.add_mutually_exclusive_group(required=True)
    budget.add_argument("--bytes", type=int, help="the most that the weights of all layers may take")
    budget.add_argument("--bitops", type=int, help="the most bit operations that one image may take")
    command.add_argument("--bits", help=f"pairs to choose from; default: the trained ones of {TRIED}")
    command.add_argument("--out", type=Path, help="JSON file to write; default: in results, named after the checkpoint")
    command.set_defaults(run=run_allocate)


def run_allocate(arguments: argparse.Namespace) -> int:
    """Choose bits for each layer, write the map, and compare it with the uniform pairs that fit the budget."""
    from mebqat_lite import datasets
    from mebqat_lite.checkpoint import load_model
    from mebqat_lite.files import check_output, write_json
    from mebqat_lite.measure.allocate import front, prices, solve
    from mebqat_lite.measure.costs import by_layer
    from mebqat_lite.measure.evaluate import norm_images
    from mebqat_lite.paths import results

    name, unit = arguments.checkpoint.name.removesuffix(".safetensors"), "bytes" if arguments.bytes else "bitops"
    out, budget = arguments.out or results() / f"{name}-layers.json", getattr(arguments, unit)
    check_output(out)
    if out.suffix != ".json":
        raise ValueError(f"--out {out}: the map is JSON, so give a name that ends with .json")
    model, extra = load_model(arguments.checkpoint)
    pairs = _to_choose_from(arguments, model, extra)
    data = datasets.load(extra["data"], extra.get("seed", 0))
    image = data.train.images[0]
    table, whole = prices(model, image, pairs, unit), by_layer(model, image, min(pairs))
    fixed, least = int(whole[unit][whole.edge].sum()), int(table.min(axis=1).sum())
    if budget < fixed + least:
        raise ValueError(f"--{unit} {budget}: layers of fixed bits take {fixed}, and the others at least {least}")
    losses = _losses(model, data, pairs)
    chosen = solve(losses, table, budget - fixed)
    layers = {"*": str(min(pairs)), **{layer: str(pair) for layer, pair in chosen.items()}}
    uniform = {str(pair): pair for pair in pairs if by_layer(model, image, pair)[unit].sum() <= budget}
    frame = front(model, data.val, uniform | {"layers": layers}, losses, calibration=norm_images(data.train))
    print(frame.round(3).to_string())
    print("Summed losses are only a proxy; what is measured counts. Choose on these validation images, test once.")
    if (best := str(frame.iloc[:, -1].idxmax())) != "layers":
        print(f"{best} for all layers is at least as good here, and simpler.")
    print(f"Layers: {','.join(f'{layer}={pair}' for layer, pair in layers.items())}")
    print_written([write_json(out, layers)])
    print(f"Next: mebqat-lite evaluate --checkpoint {arguments.checkpoint} --layers {out}")
    return 0


def _to_choose_from(arguments: argparse.Namespace, model: nn.Module, extra: Mapping[str, Any]) -> list[Bits]:
    """Return the pairs that a layer may have; a ValueError if the network is not one whose layers can be chosen so."""
    from mebqat_lite.measure.saved import learns_new_classes, trained_for

    name = arguments.checkpoint.name
    if not {"method", "setup", "data"} <= set(extra):
        raise ValueError(f"{name} does not say how it was trained; from Python: mebqat_lite.allocate")
    if learns_new_classes(extra):
        raise ValueError(f"{name} learns new classes: allocate is for classifiers of fixed classes, and for values")
    known = trained_for(model, extra)
    return parse_all(arguments.bits or [pair for pair in parse_all(TRIED) if pair in known] or known)


def _losses(model: nn.Module, data: Data, pairs: list[Bits]) -> pd.DataFrame:
    """Measure on training images what each layer loses at each pair, while all others are low."""
    from mebqat_lite.datasets.base import Split
    from mebqat_lite.measure.allocate import sensitivity
    from mebqat_lite.measure.evaluate import norm_images

    images = norm_images(data.train)
    known, metric = Split(images, data.train.labels[: len(images)]), "score" if data.train.has_values else "KL"
    rest = REST if REST in pairs else min(pairs)
    return sensitivity(model, known, pairs, rest=rest, metric=metric, calibration=images).loss.unstack()


# ---------------------------------------------------------------- export


def add_export(commands: Commands) -> None:
    """Define ``mebqat-lite export``."""
    command = commands.add_parser("export", help="write a checkpoint as a file of integers, or for ONNX Runtime")
    command.add_argument("--checkpoint", type=Path, required=True)
    command.add_argument("--to", required=True, help="packed, nested or onnx")
    pairs = command.add_mutually_exclusive_group()
    pairs.add_argument(
        "--bits",
        help="bitwidth pair, as W4A4, or several; default for nested: all trained pairs up to W8; switch, for onnx: "
        "one file for all trained pairs, whose inputs weight_bits and activation_bits choose one (32: full precision)",
    )
    pairs.add_argument("--layers", metavar="MAP", help="a pair per layer: a file of allocate, or *=W8A8,body.0.0=W2A2")
    command.add_argument("--untrained", action="store_true", help="allow pairs that the model was never trained for")
    command.add_argument(
        "--out", type=Path, help="file to write; default: in results, named after the checkpoint and the pair"
    )
    command.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> int:
    """Write a checkpoint in another form, and say how large it is."""
    from mebqat_lite.deploy.export import export

    bits = layer_map(arguments.layers) if arguments.layers else arguments.bits
    paths, notes = export(arguments.checkpoint, arguments.to, bits, arguments.out, arguments.untrained)
    for note in notes:
        print(note)
    written = ", ".join(f"{path} ({path.stat().st_size:,} bytes)" for path in paths)
    print(f"Written: {written}. {arguments.checkpoint.name} has {arguments.checkpoint.stat().st_size:,} bytes.")
    if arguments.to != "onnx":
        print(f"Next: mebqat-lite evaluate --checkpoint {paths[0]}")
    return 0
