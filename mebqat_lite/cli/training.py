"""The commands that train: demo, train, compare."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mebqat_lite import paths
from mebqat_lite.bits import Bits, candidates, parse_all
from mebqat_lite.cli.shared import Commands

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from mebqat_lite.datasets import Data
    from mebqat_lite.experiments.setups import Setup

OF_RECIPE = ("steps", "warm_steps", "batch_size", "lr", "m", "teacher", "quantizer")  # also options of these commands


# ---------------------------------------------------------------- demo


def add_demo(commands: Commands) -> None:
    """Define ``mebqat-lite demo``."""
    command = commands.add_parser("demo", help="the main job: table, costs and figure in about two minutes")
    _add_seeds_and_jobs(command)
    command.add_argument(
        "--out", dest="folder", metavar="OUT", type=Path, help="folder for demo.json and demo.png; default: results"
    )
    command.add_argument("--ship", type=Path, metavar="FOLDER", help="also copy demo.json and demo.png to FOLDER")
    command.set_defaults(run=run_demo)


def run_demo(arguments: argparse.Namespace) -> int:
    """Train and measure the methods on the digits, then print a table and draw a figure."""
    from mebqat_lite.experiments import demo

    folder = arguments.folder or paths.results()
    demo.run(arguments.seeds, arguments.jobs, folder)
    if arguments.ship:
        print("Shipped:", ", ".join(demo.ship(folder, arguments.ship)))
    return 0


# ---------------------------------------------------------------- train


def add_train(commands: Commands) -> None:
    """Define ``mebqat-lite train``."""
    command = commands.add_parser("train", help="train one model with one method and save it")
    _add_recipe(command)
    command.add_argument("--method", help="by default that of the recipe")
    command.add_argument("--bits", help="the bitwidth pair that qat trains, as W2A2")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, help="file of the model; default: results/<method>.safetensors")
    command.add_argument("--save-every", type=int, default=50, metavar="STEPS", help="steps between two checkpoints")
    _add_speed(command)
    command.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help="write TensorBoard curves into the run's folder; default: if TensorBoard is installed "
        '(pip install "mebqat_lite[logs]")',
    )
    command.set_defaults(run=run_train)


def _add_speed(command: argparse.ArgumentParser) -> None:
    """Options for faster passes and for several devices."""
    command.add_argument("--amp", action="store_true", help="mixed precision (bfloat16)")
    command.add_argument("--compile", action="store_true", help="torch.compile, once for each pair")
    command.add_argument(
        "--vectorized",
        action=argparse.BooleanOptionalAction,
        help="adapt all tasks of a MAML step in one pass; default: on CUDA where that is measured to be faster, "
        "never on the CPU",
    )
    command.add_argument(
        "--devices",
        type=int,
        default=1,
        help="how many devices share each batch: GPUs if there are any, else processes on the CPU",
    )
    command.add_argument(
        "--nodes",
        type=int,
        default=1,
        help="how many machines take part, each with that many devices: start the command on each of them",
    )


def run_train(arguments: argparse.Namespace) -> int:
    """Load the data, start a process for each device, and train in all of them."""
    from mebqat_lite import datasets
    from mebqat_lite.experiments import setups
    from mebqat_lite.scale.launch import as_one, fabric_for

    setup, given = setup_of(arguments, (*OF_RECIPE, "bits"))
    setup = setup.with_options(seed=arguments.seed)
    arguments.method = arguments.method or setup.method
    fabric = fabric_for(arguments.devices, arguments.nodes, arguments.words)
    data = datasets.load(setup.data, setup.recipe.seed)  # before more processes start, so that only one downloads
    setups.check_classes(arguments.method, data)
    if fabric is not None:
        fabric.launch()
    return as_one(fabric, lambda: _train(arguments, setup, given, data, fabric))


def _train(
    arguments: argparse.Namespace, setup: Setup, given: Mapping[str, Any], data: Data, fabric: Fabric | None
) -> int:
    """Train in this process, which may be one of several: only the first writes and prints.

    ``fit`` gets the options that were ``given`` by name too, and refuses those that the method does not use.
    """
    from mebqat_lite.experiments.run_folder import RunFolder
    from mebqat_lite.files import check_output
    from mebqat_lite.scale.speed import Fast
    from mebqat_lite.train import fit

    out = arguments.out or paths.results() / f"{arguments.method}.safetensors"
    check_output(out, "model")
    model = _new_model(setup, data)
    passes = Fast(**_speed(arguments), fabric=fabric)
    beside = out.with_name(out.name.removesuffix(".safetensors"))  # a.v1 and a.v2 keep their own files
    with closing(RunFolder(Path(f"{beside}.run"), _description(arguments, setup), arguments.tensorboard)) as folder:
        how = {"path": f"{beside}.training", "save_every": arguments.save_every, **given}
        run = fit(model, data, arguments.method, setup.recipe, log=folder.log, passes=passes, **how)
        passes.first(lambda: _save(model, out, arguments, setup))
        passes.first(lambda: folder.finish(run))
    if passes.rank == 0:
        print(f"{run.costs.steps:,} steps, {run.costs.backprops:,} back-propagations, {run.seconds:.0f} s")
        print(f"Each step's loss, the recipe and the machine: {folder.folder}")
        print(f"Written: {out}. Next: mebqat-lite evaluate --checkpoint {out}")
    return 0


def _new_model(setup: Setup, data: Data) -> nn.Module:
    """The network before training, whose weights the recipe's seed determines."""
    import torch

    torch.manual_seed(setup.recipe.seed)
    return setup.build(data)


def _speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """How fast passes are asked for, by the names of `scale.speed.Fast`."""
    return {"amp": arguments.amp, "compiled": arguments.compile, "vectorized": arguments.vectorized}


def _description(arguments: argparse.Namespace, setup: Setup) -> dict[str, Any]:
    """What the run's folder keeps about how the command was called."""
    called = {"method": arguments.method, "setup": asdict(setup), "save_every": arguments.save_every}
    return {**called, **_speed(arguments), "devices": arguments.devices, "nodes": arguments.nodes}


def _save(model: nn.Module, out: Path, arguments: argparse.Namespace, setup: Setup) -> None:
    """Save the model with what `evaluate` and `export` need to know about its training."""
    from mebqat_lite import checkpoint

    extra = {"data": setup.data, "seed": arguments.seed, "method": arguments.method, "setup": asdict(setup)}
    checkpoint.save_model(model, out, **extra)


# ---------------------------------------------------------------- compare


def add_compare(commands: Commands) -> None:
    """Define ``mebqat-lite compare``."""
    command = commands.add_parser("compare", help="train several methods on several seeds under equal conditions")
    _add_recipe(command)
    command.add_argument(
        "--methods",
        default="ptq_naive,ptq_mse,qat,mebqat",
        help="the methods, each of which may change the recipe, as in mebqat+teacher=next",
    )
    command.add_argument("--bits", help="the pairs that qat is trained for; default: W1A1,W2A2,W4A4")
    command.add_argument(
        "--budget", default="backprops", help="what is equal between the methods: backprops, steps or total"
    )
    command.add_argument("--pairs", help="the pairs to measure, or all; default: W1A1,W2A2,W3A3,W4A4,W8A8,FP")
    command.add_argument("--qat-lrs", help="learning rates for qat to choose from on validation data")
    _add_seeds_and_jobs(command)
    _add_engine(command)
    command.add_argument(
        "--out",
        dest="folder",
        metavar="OUT",
        type=Path,
        help="folder that all machines share; default: results/compare",
    )
    command.set_defaults(run=run_compare)


def _add_engine(command: argparse.ArgumentParser) -> None:
    """Options for where and when jobs run."""
    command.add_argument("--engine", default="loky", help="what runs the jobs: serial, loky or dask")
    command.add_argument("--address", help="address of a cluster of dask; default: start one here")
    command.add_argument(
        "--retries",
        type=int,
        default=1,
        help="how often a job that failed is tried again, after all the others; default: 1",
    )
    command.add_argument("--fresh", action="store_true", help="run all jobs; default: only those without a result")


def run_compare(arguments: argparse.Namespace) -> int:
    """Train and measure the methods, print the report, and write it as JSON."""
    from mebqat_lite.experiments.compare import QAT_PAIRS, compare
    from mebqat_lite.experiments.jobs import PAIRS
    from mebqat_lite.files import check_output, write_json
    from mebqat_lite.measure.results import report
    from mebqat_lite.methods import METHODS

    setup, given = setup_of(arguments)
    folder = arguments.folder or paths.results() / "compare"
    check_output(folder / "compare.json")
    shown = _pairs(None if arguments.pairs == "all" else arguments.pairs, PAIRS, setup)
    names = _names(arguments.methods)
    _refuse_unread(arguments, setup, names, given)
    outcome = compare(
        setup,
        names,
        pairs=[str(pair) for pair in _defined_pairs(setup)] if arguments.pairs == "all" else shown,
        listed=_pairs(arguments.bits, QAT_PAIRS, setup),
        seeds=arguments.seeds,
        folder=folder,
        budget=arguments.budget,
        qat_lrs=[] if arguments.qat_lrs is None else _numbers(arguments.qat_lrs),
        workers=arguments.jobs,
        engine=arguments.engine,
        address=arguments.address or "",
        retries=arguments.retries,
        fresh=arguments.fresh,
    )
    write_json(folder / "compare.json", outcome)
    print(report(outcome, shown, titles={name: METHODS[name].title for name in METHODS}))
    print(f"Written: {folder / 'compare.json'}")
    return 0


def _refuse_unread(arguments: argparse.Namespace, setup: Setup, names: Sequence[str], given: Iterable[str]) -> None:
    """Refuse options that none of the methods reads."""
    from mebqat_lite.experiments.compare import ONE_PAIR, refuse_unread
    from mebqat_lite.experiments.jobs import Variant

    refuse_unread(setup, names, given, arguments.budget)
    if not any(Variant.parse(name).method in ONE_PAIR for name in names):
        for option in ("bits", "qat_lrs"):
            if getattr(arguments, option) is not None:
                raise ValueError(
                    f"--{option.replace('_', '-')} is for {', '.join(ONE_PAIR)}: name one, or leave it out"
                )


def _pairs(asked: str | None, defaults: Iterable[str], setup: Setup) -> list[str]:
    """The pairs that are asked for; if none are, those of the defaults that the quantizer defines."""
    if asked is not None:
        return [str(pair) for pair in parse_all(asked)]
    defined = _defined_pairs(setup)
    return [str(pair) for pair in parse_all(defaults) if pair in defined]


def _defined_pairs(setup: Setup) -> list[Bits]:
    """The candidates that the quantizer defines. One that is unknown is for `compare` to refuse."""
    from mebqat_lite.quantizers import QUANTIZERS

    quantizer = QUANTIZERS.get(setup.recipe.quantizer)
    return candidates() if quantizer is None else quantizer.pairs()


def _names(text: str) -> list[str]:
    """``mebqat,mebqat+exclude=(3,5)`` as two names: a comma within parentheses separates nothing."""
    return re.split(r",(?![^()]*\))", text)


def _numbers(text: str) -> list[float]:
    """``0.003,0.01`` as two numbers."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"--qat-lrs takes numbers above 0, each once, as 0.003,0.01, not {text!r}")
    return numbers


# ---------------------------------------------------------------- what these commands share


def _add_seeds_and_jobs(command: argparse.ArgumentParser) -> None:
    """Options of what trains on several seeds, side by side."""
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--jobs", type=int, help="how many processes, of one thread each; default: one per core")


def _add_recipe(command: argparse.ArgumentParser) -> None:
    """Options for what is trained and how; those that are not given keep the recipe's value."""
    command.add_argument("--recipe", default="digits", help="a named set-up, which the options below override")
    command.add_argument(
        "--data",
        help="digits, cifar10, svhn, glyphs, glyph_classes, paint, omniglot:PATH, miniimagenet:PATH or folder:PATH",
    )
    command.add_argument("--model")
    command.add_argument("--quantizer")
    command.add_argument("--steps", type=int, help="training steps of the method")
    command.add_argument("--warm-steps", type=int, help="full-precision training steps before those; 0 for none")
    command.add_argument("--batch-size", type=int)
    command.add_argument("--lr", type=float)
    command.add_argument("--m", type=int, help="pairs visited in each step, for methods that sample them")
    command.add_argument("--teacher", help="what quantized pairs learn from: labels, fp, next or start")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other value of the recipe"
    )


def setup_of(arguments: argparse.Namespace, options: Sequence[str] = OF_RECIPE) -> tuple[Setup, dict[str, Any]]:
    """The named set-up with what the command line overrides, and those values of the recipe that are given there.

    ``options`` are the options of the command that are values of the recipe; ``--set`` gives the others.
    """
    from mebqat_lite.experiments import setups

    setup = setups.get(arguments.recipe)
    if arguments.model is not None and arguments.model != setup.model:
        setup = replace(setup, model=arguments.model, options={})  # the options are those of the set-up's own model
    if arguments.data is not None:
        setup = replace(setup, data=arguments.data)
    given = _given(arguments, options)
    return setup.with_options(**given), given


def _given(arguments: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """The values of the recipe that the command line gives, each of them once, by their names there."""
    from mebqat_lite.experiments.jobs import assignments

    own = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    given = assignments(arguments.set, own)
    if "seed" in given:
        raise ValueError(f"--set seed={given['seed']}: give {'--seeds' if 'seeds' in arguments else '--seed'} instead")
    return given
