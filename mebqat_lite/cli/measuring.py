"""The commands that measure: evaluate, benchmark."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mebqat_lite import paths
from mebqat_lite.bits import parse_all
from mebqat_lite.cli.shared import Commands, layer_map, print_written

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from mebqat_lite.datasets import Data

# Options that concern only models that learn new classes.
FOR_NEW_CLASSES = {
    "ways": "classes per episode; default: as in training",
    "shots": "support images per class; default: as in training",
    "queries": "query images per class; default: as in training",
    "episodes": "how many episodes; default: 600",
}
# Options that concern only classifiers of fixed classes, and what others do instead.
FOR_FIXED_CLASSES = {"layers": "give --bits", "seed": "the classes of the parts are those of the training"}


@dataclass(frozen=True)
class Measured:
    """The accuracy of a model at several bitwidth pairs, and what to say about it."""

    frame: pd.DataFrame
    columns: list[str]  # those of the frame that are worth printing
    costs: dict[str, int]
    images: str  # in words, what it was measured on


# ---------------------------------------------------------------- evaluate


def add_evaluate(commands: Commands) -> None:
    """Define ``mebqat-lite evaluate``."""
    command = commands.add_parser("evaluate", help="measure the accuracy of a saved model at many bitwidths")
    command.add_argument("--checkpoint", type=Path, required=True)
    command.add_argument(
        "--data", help="what to measure on; default: what it was trained on, if the file says so, else the digits"
    )
    command.add_argument("--seed", type=int, help="seed of the data's split; default: that of the training, else 0")
    command.add_argument("--part", default="test", choices=("train", "val", "test"))
    pairs = command.add_mutually_exclusive_group()
    pairs.add_argument("--bits", help="bitwidth pairs, as W2A2,W4A4,FP; default: all candidates")
    pairs.add_argument("--layers", metavar="MAP", help="a pair per layer: a file of allocate, or *=W8A8,body.0.0=W2A2")
    command.add_argument("--norm", default="recalibrated", choices=("running", "batch", "recalibrated", "support"))
    for name, what in FOR_NEW_CLASSES.items():
        command.add_argument(f"--{name}", type=int, help=f"for models that learn new classes: {what}")
    command.add_argument("--json", type=Path, help="also write the results here")
    command.add_argument("--save", type=Path, metavar="FILE", help="also write the table, as .csv or .parquet")
    command.set_defaults(run=run_evaluate)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Measure a saved model, print its accuracies, and write them where that is asked for."""
    from mebqat_lite.deploy.packed import load_any, packed_settings
    from mebqat_lite.files import check_output
    from mebqat_lite.measure.results import check_frame_name
    from mebqat_lite.measure.saved import learns_new_classes

    started = time.perf_counter()
    if arguments.save:
        check_frame_name(arguments.save)  # before minutes are spent on what cannot be written
    for out in filter(None, (arguments.save, arguments.json)):
        check_output(out)
    model, extra = load_any(arguments.checkpoint)
    if packed := packed_settings(model):
        arguments.bits = arguments.bits or packed  # a packed file holds these pairs and no others
    measure = _on_new_classes if learns_new_classes(extra) else _on_fixed_classes
    measured = measure(arguments, model, extra)
    _write(arguments, measured, started)
    _print(arguments, measured)
    return 0


def _on_fixed_classes(arguments: argparse.Namespace, model: nn.Module, extra: Mapping[str, Any]) -> Measured:
    """Accuracy on images of the classes that the model was trained on, or PSNR where the labels are values."""
    from mebqat_lite import datasets
    from mebqat_lite.deploy.packed import packed_settings
    from mebqat_lite.experiments.setups import on_images
    from mebqat_lite.measure.costs import stored_bytes
    from mebqat_lite.measure.evaluate import grid

    _refuse_options_for_new_classes(arguments)
    name = arguments.data or extra.get("data", "digits")
    seed = extra.get("seed", 0) if arguments.seed is None else arguments.seed
    data = datasets.load(name, seed)
    _warn_of_known_images(arguments, extra, name, seed)
    if packed_settings(model) and arguments.norm != "recalibrated":
        raise ValueError(f"this packed file has no statistics but recalibrated ones: leave out --norm {arguments.norm}")
    calibration, part = _calibration(arguments, model, data), getattr(data, arguments.part)
    pairs = [layer_map(arguments.layers)] if arguments.layers else arguments.bits
    with on_images(arguments.checkpoint.name, part.images):
        frame = grid(model, part, pairs, norm_stats=arguments.norm, calibration=calibration, progress=True)
    images = f"{len(part.labels)} images of {name}, split of seed {seed}"
    return Measured(frame, ["mean"], {"bytes": stored_bytes(model, statistics=False)}, images)


def _refuse_options_for_new_classes(arguments: argparse.Namespace) -> None:
    """Refuse what only a model that learns new classes can be asked for."""
    if arguments.norm == "support" or _given_for_new_classes(arguments):
        raise ValueError(
            f"{arguments.checkpoint.name} is a classifier of fixed classes: it has no ways, shots, support"
        )


def _warn_of_known_images(arguments: argparse.Namespace, extra: Mapping[str, Any], name: str, seed: int) -> None:
    """Warn if another seed's split puts images of the training among those to measure on."""
    if arguments.part != "train" and name == extra.get("data") and seed != extra.get("seed", seed):
        known = f"it was trained on the split of seed {extra['seed']} and knows some of these images"
        print(f"mebqat-lite: {arguments.checkpoint.name}: {known}", file=sys.stderr)


def _calibration(arguments: argparse.Namespace, model: nn.Module, data: Data) -> Tensor | None:
    """Training images to measure norm statistics on; a packed file has its statistics already."""
    from mebqat_lite.deploy.packed import packed_settings
    from mebqat_lite.measure.evaluate import norm_images

    if arguments.norm != "recalibrated" or packed_settings(model):
        return None
    return norm_images(data.train)


def _on_new_classes(arguments: argparse.Namespace, model: nn.Module, extra: Mapping[str, Any]) -> Measured:
    """Accuracy on episodes of classes that the model was not trained on."""
    from mebqat_lite.experiments.setups import on_images
    from mebqat_lite.measure.fewshot import episode_grid
    from mebqat_lite.measure.saved import episodes_for, give_statistics

    for name, instead in FOR_FIXED_CLASSES.items():
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name} is for classifiers of fixed classes; {instead}")
    asked = _given_for_new_classes(arguments)
    count = {"count": asked.pop("episodes")} if "episodes" in asked else {}
    learner, episodes, name = episodes_for(model, extra, arguments.data, arguments.part, **asked)
    if arguments.norm == "recalibrated":
        give_statistics(model, extra, arguments.bits)
    with on_images(arguments.checkpoint.name, episodes.split.images):
        frame = episode_grid(
            model, learner, episodes, arguments.bits, norm_stats=arguments.norm, progress=True, **count
        )
    kind = f"{episodes.ways}-way {episodes.shots}-shot, {episodes.queries} queries a class"
    images = f"{int(frame['n'].iloc[0])} episodes of {name}, {kind}; ± over episodes"
    return Measured(frame, ["mean", "ci95"], {}, images)


def _given_for_new_classes(arguments: argparse.Namespace) -> dict[str, int]:
    """The options that concern only models that learn new classes, as far as they are given."""
    return {name: getattr(arguments, name) for name in FOR_NEW_CLASSES if getattr(arguments, name) is not None}


def _write(arguments: argparse.Namespace, measured: Measured, started: float) -> None:
    """Write the table and the JSON file that were asked for."""
    from mebqat_lite.files import write_json
    from mebqat_lite.measure.results import cells, write_frame

    if arguments.save:
        write_frame(arguments.save, measured.frame)
    if arguments.json:
        accuracy = {arguments.checkpoint.name.removesuffix(".safetensors"): cells(measured.frame)}
        record = {"accuracy": accuracy, "measure": measured.frame.attrs["measure"], "norm_stats": arguments.norm}
        write_json(
            arguments.json, {**record, "costs": measured.costs, "seconds": round(time.perf_counter() - started, 1)}
        )


def _print(arguments: argparse.Namespace, measured: Measured) -> None:
    """Print the table, and below it what it was measured on."""
    titles = {"mean": f"{measured.frame.attrs['measure']}, {arguments.part}", "ci95": "±"}
    for words in measured.frame.attrs.get("unreached", []):
        print(f"Bits do not reach {words}")
    print(measured.frame[measured.columns].round(1).rename(columns=titles).to_string())
    print(f"norm statistics: {arguments.norm}; {measured.images}")


# ---------------------------------------------------------------- benchmark


def add_benchmark(commands: Commands) -> None:
    """Define ``mebqat-lite benchmark``."""
    command = commands.add_parser(
        "benchmark", help="measure few-shot networks on the frozen episodes, at every bitwidth"
    )
    command.add_argument("checkpoints", nargs="*", type=Path, help="files or folders; default: the shipped ones")
    command.add_argument(
        "--set", default="glyphs-20way", help="glyphs-20way, glyphs-5way, omniglot-20way or omniglot-5way"
    )
    command.add_argument("--part", default="test", choices=("val", "test"))
    command.add_argument("--bits", help="bitwidth pairs, as W2A2,W4A4,FP; default: all 73")
    command.add_argument("--episodes", type=int, help="how many episodes; default: 600")
    command.add_argument("--out", dest="folder", metavar="OUT", type=Path, help="folder; default: results/benchmark")
    command.set_defaults(run=run_benchmark)


def run_benchmark(arguments: argparse.Namespace) -> int:
    """Measure few-shot checkpoints on a frozen set of episodes, print the sheet and write it."""
    from mebqat_lite.experiments import frozen

    checkpoints = arguments.checkpoints or [paths.shipped("checkpoints")]
    pairs = [str(pair) for pair in parse_all(arguments.bits)] if arguments.bits else None
    count = {} if arguments.episodes is None else {"count": arguments.episodes}
    sheet = frozen.sheet(checkpoints, arguments.set, part=arguments.part, bits=pairs, **count)
    print(frozen.text(sheet))
    print_written(frozen.write(sheet, arguments.folder or paths.results() / "benchmark"))
    return 0
