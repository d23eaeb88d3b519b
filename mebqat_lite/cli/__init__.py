"""The command line: demo, train, evaluate, export, compare, benchmark, assignments, grade, doctor, test."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import nn

    from mebqat_lite.datasets import Data
    from mebqat_lite.experiments.setups import Setup


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; an expected error is one line on standard error and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["test"]:  # the rest is pytest's
        from mebqat_lite.cli import selftest

        return selftest.main(words[1:])
    arguments = _parser().parse_args(words, argparse.Namespace(words=words))
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if arguments.traceback:
            raise
        print("mebqat-lite:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resumes = words[0] in ("train", "compare")
        print("mebqat-lite: stopped" + "; the same command goes on" * resumes, file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mebqat-lite", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("demo", help="the main job: table, costs and figure in under two minutes")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--jobs", type=int, help="processes of one thread; default: one a core")
    command.add_argument("--out", type=Path, help="folder for demo.json and demo.png; default: results")
    command.add_argument("--ship", type=Path, metavar="FOLDER", help="also copy results and seed 0's models to FOLDER")
    command.set_defaults(run=_demo)

    command = commands.add_parser("train", help="train one model with one method and save it")
    _add_training(command)
    command.add_argument("--method", default="mebqat")
    command.add_argument("--bits", help="the pair of qat, as W2A2")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, help="file of the model; default: results/<method>.safetensors")
    command.add_argument("--save-every", type=int, default=50, metavar="STEPS", help="between checkpoints")
    command.add_argument("--amp", action="store_true", help="mixed precision (bfloat16); not measured on a GPU yet")
    command.add_argument("--compile", action="store_true", help="torch.compile; not measured on a GPU yet")
    command.add_argument(
        "--vectorized",
        action=argparse.BooleanOptionalAction,
        help="MAML's tasks in one pass; default: on CUDA if measured to be faster, on the CPU not",
    )
    command.add_argument("--devices", type=int, default=1, help="to share each batch: GPUs if there are any, else CPU")
    command.add_argument("--nodes", type=int, default=1, help="machines of so many devices: start the command on each")
    command.add_argument(
        "--tensorboard",
        action=argparse.BooleanOptionalAction,
        help='TensorBoard curves in the run\'s folder; default: if installed (pip install "mebqat_lite[logs]")',
    )
    command.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="accuracy of a saved model at many bitwidths")
    command.add_argument("--checkpoint", type=Path, required=True)
    command.add_argument("--data", help="default: what it was trained on, if the file says so, else the digits")
    command.add_argument("--seed", type=int, help="of the split; default: that of the training, else 0")
    command.add_argument("--part", default="test", choices=("train", "val", "test"))
    pairs = command.add_mutually_exclusive_group()
    pairs.add_argument("--bits", help="as W2A2,W4A4,FP; default: all candidates")
    pairs.add_argument("--layers", metavar="MAP", help="a pair per layer, as *=W8A8,body.0.0=W2A2")
    command.add_argument("--norm", default="recalibrated", choices=("running", "batch", "recalibrated", "support"))
    for name, what in (("ways", "classes"), ("shots", "support images a class"), ("queries", "query images a class")):
        command.add_argument(f"--{name}", type=int, help=f"new classes: {what} of an episode; default: as in training")
    command.add_argument("--episodes", type=int, help="new classes: how many; default: 600")
    command.add_argument("--json", type=Path, help="also write the results here")
    command.add_argument("--save", type=Path, metavar="FILE", help="also write the table, as .csv or .parquet")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("export", help="a checkpoint as a file of integers, or for ONNX Runtime")
    command.add_argument("--checkpoint", type=Path, required=True)
    command.add_argument("--to", required=True, help="packed, nested or onnx")
    command.add_argument("--bits", help="as W4A4, or several; nested: by default all trained pairs up to W8")
    command.add_argument("--untrained", action="store_true", help="also pairs that it was never trained for")
    command.add_argument("--out", type=Path, help="file; default: in results, named after checkpoint and pair")
    command.set_defaults(run=_export)

    command = commands.add_parser("compare", help="several methods on several seeds under equal conditions")
    _add_training(command)
    command.add_argument(
        "--methods", default="ptq_naive,ptq_mse,qat,mebqat", help="each may change the recipe: mebqat+teacher=next"
    )
    command.add_argument("--bits", help="the pairs that qat is trained for; default: W1A1,W2A2,W4A4")
    command.add_argument("--budget", default="steps", help="equal between methods: steps, backprops or total")
    command.add_argument("--pairs", help="the pairs to measure, or all; default: W1A1,W2A2,W3A3,W4A4,W8A8,FP")
    command.add_argument("--qat-lrs", default="", help="learning rates for qat to choose from on validation data")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--jobs", type=int, help="processes of one thread; default: one a core")
    command.add_argument("--engine", default="loky", help="what runs the jobs: serial, loky or dask")
    command.add_argument("--address", default="", help="of a cluster of dask; default: start one here")
    command.add_argument("--retries", type=int, default=1, help="of a job that failed, after the others; default: 1")
    command.add_argument("--fresh", action="store_true", help="run all jobs; default: only those without a result")
    command.add_argument("--out", type=Path, help="folder, shared by all machines; default: results/compare")
    command.set_defaults(run=_compare)

    command = commands.add_parser("benchmark", help="few-shot networks on the frozen episodes, at every bitwidth")
    command.add_argument("checkpoints", nargs="*", type=Path, help="files or folders; default: the shipped ones")
    command.add_argument("--set", default="glyphs-20way", help="glyphs-20way, glyphs-5way, omniglot-20way or -5way")
    command.add_argument("--part", default="test", choices=("val", "test"))
    command.add_argument("--bits", help="as W2A2,W4A4,FP; default: all 73")
    command.add_argument("--episodes", type=int, help="default: 600")
    command.add_argument("--out", type=Path, help="folder; default: results/benchmark")
    command.set_defaults(run=_benchmark)

    command = commands.add_parser("assignments", help="write the student versions of the assignments, and zips of them")
    command.add_argument("--source", type=Path, help="folder of NAME/NAME.ipynb; default: the checkout's masters")
    command.add_argument("--out", type=Path, help="folder; default: results/assignments")
    command.set_defaults(run=_assignments)

    command = commands.add_parser("grade", help="grade a folder of submissions: grades.csv and feedback as HTML")
    command.add_argument("submissions", type=Path, help="folder with STUDENT/NAME.ipynb or STUDENT_NAME.ipynb")
    command.add_argument("--graders", type=Path, help="folder of NN_topic.py; default: the checkout's")
    command.add_argument("--variant", type=int, default=0, help="another number, other random inputs")
    command.add_argument("--jobs", type=int, help="parts at a time; default: one a core")
    command.add_argument("--out", type=Path, help="folder; default: results/grades")
    command.set_defaults(run=_grade)

    command = commands.add_parser("doctor", help="check this installation, with a cure for what fails")
    command.set_defaults(run=_doctor)
    commands.add_parser("test", help="all that CI runs (from a checkout); stages and pytest options may follow")
    return parser


def _add_training(command: argparse.ArgumentParser) -> None:
    """Options of everything that trains; those that are not given keep the recipe's value."""
    command.add_argument("--recipe", default="digits", help="a named set-up; what follows overrides it")
    command.add_argument("--data", help="digits, cifar10, svhn, glyphs, or omniglot:, miniimagenet:, folder:PATH")
    command.add_argument("--model")
    command.add_argument("--quantizer")
    command.add_argument("--steps", type=int, help="of the method")
    command.add_argument("--warm-steps", type=int, help="full-precision steps before; 0: none")
    command.add_argument("--batch-size", type=int)
    command.add_argument("--lr", type=float)
    command.add_argument("--m", type=int, help="pairs a step of a method that samples them")
    command.add_argument("--teacher", help="of quantized pairs: labels, fp, next or start")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any other value of the recipe"
    )


def _setup(arguments: argparse.Namespace) -> Setup:
    """The named set-up with what the command line overrides."""
    from mebqat_lite.experiments import setups as recipes
    from mebqat_lite.experiments.jobs import assignment

    setup = recipes.get(arguments.recipe)
    if arguments.model and arguments.model != setup.model:
        setup = replace(setup, model=arguments.model, options={})
    if arguments.data:
        setup = replace(setup, data=arguments.data)
    names = ("steps", "warm_steps", "batch_size", "lr", "m", "teacher", "quantizer")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if "steps" in given:
        given["epochs"] = 0
    return setup.with_options(**given, **dict(assignment(text) for text in arguments.set))


def _demo(arguments: argparse.Namespace) -> int:
    from mebqat_lite.experiments import demo
    from mebqat_lite.paths import results

    folder = arguments.out or results()
    demo.run(_at_least_one(arguments.seeds), arguments.jobs, folder)
    if arguments.ship:
        print("Shipped:", ", ".join(demo.ship(folder, arguments.ship)))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from mebqat_lite import datasets
    from mebqat_lite.scale.launch import as_one, fabric_for

    setup, fabric = _setup(arguments), fabric_for(arguments.devices, arguments.nodes, arguments.words)
    data = datasets.load(setup.data, arguments.seed)  # before more processes start: one downloads
    if fabric is not None:
        fabric.launch()
    return as_one(fabric, lambda: _train_on(arguments, setup, data, fabric))


def _train_on(arguments: argparse.Namespace, setup: Setup, data: Data, fabric: Fabric | None) -> int:
    """Train in this process, which may be one of several: only the first writes and prints."""
    import torch

    from mebqat_lite import checkpoint
    from mebqat_lite.experiments.run_folder import RunFolder
    from mebqat_lite.paths import results
    from mebqat_lite.scale.speed import Fast
    from mebqat_lite.train import fit

    recipe = setup.recipe
    if arguments.bits:
        recipe = recipe.with_options(bits=arguments.bits)
    out = arguments.out or results() / f"{arguments.method}.safetensors"
    torch.manual_seed(arguments.seed)
    model = setup.build(data)
    recipe = recipe.with_options(seed=arguments.seed)
    ways = {"amp": arguments.amp, "compiled": arguments.compile, "vectorized": arguments.vectorized}
    passes, every = Fast(**ways, fabric=fabric), {"save_every": arguments.save_every}
    described = {"method": arguments.method, "setup": asdict(replace(setup, recipe=recipe)), **every, **ways}
    described |= {"devices": arguments.devices, "nodes": arguments.nodes}
    with closing(RunFolder(out.with_suffix(".run"), described, arguments.tensorboard)) as folder:
        state = out.with_suffix(".training")
        run = fit(model, data, arguments.method, recipe, path=state, log=folder.log, passes=passes, **every)

        def write() -> None:
            extra = {"data": setup.data, "seed": arguments.seed, "method": arguments.method}
            checkpoint.save_model(model, out, **extra, setup=described["setup"])
            folder.finish(run)

        passes.first(write)
    if passes.rank == 0:
        print(f"{run.costs.steps:,} steps, {run.costs.backprops:,} back-propagations, {run.seconds:.0f} s")
        print(f"Each step's loss, the recipe and the machine: {folder.folder}")
        print(f"Written: {out}. Next: mebqat-lite evaluate --checkpoint {out}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from mebqat_lite import datasets
    from mebqat_lite.deploy.packed import load_any, packed_settings
    from mebqat_lite.files import write_json
    from mebqat_lite.measure.costs import stored_bytes
    from mebqat_lite.measure.evaluate import CALIBRATION_NORMS, grid
    from mebqat_lite.measure.results import cells, check_frame_name, write_frame
    from mebqat_lite.measure.saved import learns_new_classes

    started = time.perf_counter()
    if arguments.save:
        check_frame_name(arguments.save)
    model, extra = load_any(arguments.checkpoint)
    if packed := packed_settings(model):
        arguments.bits = arguments.bits or packed
    if learns_new_classes(extra):
        return _evaluate_new_classes(arguments, model, extra)
    if arguments.norm == "support" or any(
        number is not None for number in (arguments.ways, arguments.shots, arguments.queries, arguments.episodes)
    ):
        raise ValueError(
            f"{arguments.checkpoint.name} is a classifier of fixed classes: it has no ways, shots, support"
        )
    seed = extra.get("seed", 0) if arguments.seed is None else arguments.seed
    name = arguments.data or extra.get("data", "digits")
    data = datasets.load(name, seed)
    if arguments.part != "train" and name == extra.get("data") and seed != extra.get("seed", seed):
        known = f"it was trained on the split of seed {extra['seed']} and knows some of these images"
        print(f"mebqat-lite: {arguments.checkpoint.name}: {known}", file=sys.stderr)
    measured = arguments.norm == "recalibrated" and not packed  # whose statistics are in the file
    calibration = data.train.images[:CALIBRATION_NORMS] if measured else None
    part = getattr(data, arguments.part)
    pairs = [_map(arguments.layers)] if arguments.layers else arguments.bits
    frame = grid(model, part, pairs, norm_stats=arguments.norm, calibration=calibration, progress=True)
    if arguments.save:
        write_frame(arguments.save, frame)
    if arguments.json:
        accuracy = {arguments.checkpoint.stem: cells(frame)}
        record = {"accuracy": accuracy, "norm_stats": arguments.norm, "costs": {"bytes": stored_bytes(model, False)}}
        write_json(arguments.json, {**record, "seconds": round(time.perf_counter() - started, 1)})
    print(frame[["mean"]].round(1).rename(columns={"mean": f"accuracy (%), {arguments.part}"}).to_string())
    print(f"norm statistics: {arguments.norm}; {len(part.labels)} images of {name}, split of seed {seed}")
    return 0


def _evaluate_new_classes(arguments: argparse.Namespace, model: nn.Module, extra: Mapping[str, Any]) -> int:
    """Accuracy on episodes of classes that the model was not trained on."""
    from mebqat_lite.bits import parse_all
    from mebqat_lite.files import write_json
    from mebqat_lite.measure.fewshot import episode_grid
    from mebqat_lite.measure.results import cells, write_frame
    from mebqat_lite.measure.saved import episodes_for, give_statistics

    started = time.perf_counter()
    if arguments.layers:
        raise ValueError("--layers is for classifiers of fixed classes; give --bits")
    given = {name: getattr(arguments, name) for name in ("ways", "shots", "queries", "episodes")}
    asked = {name: number for name, number in given.items() if number is not None}
    count = {"count": asked.pop("episodes")} if "episodes" in asked else {}
    learner, episodes, name = episodes_for(model, extra, arguments.data, arguments.part, **asked)
    pairs = arguments.bits and parse_all(arguments.bits)
    if arguments.norm == "recalibrated":
        give_statistics(model, extra, pairs)
    frame = episode_grid(model, learner, episodes, pairs, norm_stats=arguments.norm, progress=True, **count)
    if arguments.save:
        write_frame(arguments.save, frame)
    if arguments.json:
        record = {"accuracy": {arguments.checkpoint.stem: cells(frame)}, "norm_stats": arguments.norm, "costs": {}}
        write_json(arguments.json, {**record, "seconds": round(time.perf_counter() - started, 1)})
    shown = frame[["mean", "ci95"]].round(1).rename(columns={"mean": f"accuracy (%), {arguments.part}", "ci95": "±"})
    print(shown.to_string())
    kind = f"{episodes.ways}-way {episodes.shots}-shot, {episodes.queries} queries a class"
    print(f"norm statistics: {arguments.norm}; {int(frame['n'].iloc[0])} episodes of {name}, {kind}; ± over episodes")
    return 0


def _map(text: str) -> dict[str, str]:
    """``*=W8A8,body.0.0=W2A2`` as a map of layers to pairs."""
    parts = [part.split("=") for part in text.split(",")]
    if not all(len(part) == 2 for part in parts):
        raise ValueError(f"--layers takes LAYER=PAIR,LAYER=PAIR (* for the rest), not {text!r}")
    return {part[0]: part[1] for part in parts}


def _export(arguments: argparse.Namespace) -> int:
    from mebqat_lite.deploy.export import export

    paths, notes = export(arguments.checkpoint, arguments.to, arguments.bits, arguments.out, arguments.untrained)
    for note in notes:
        print(note)
    written = ", ".join(f"{path} ({path.stat().st_size:,} bytes)" for path in paths)
    print(f"Written: {written}. {arguments.checkpoint.name} has {arguments.checkpoint.stat().st_size:,} bytes.")
    if arguments.to != "onnx":
        print(f"Next: mebqat-lite evaluate --checkpoint {paths[0]}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from mebqat_lite.bits import candidates, parse_all
    from mebqat_lite.experiments.compare import QAT_PAIRS, compare
    from mebqat_lite.experiments.jobs import PAIRS
    from mebqat_lite.files import write_json
    from mebqat_lite.measure.results import report
    from mebqat_lite.methods import METHODS
    from mebqat_lite.paths import results
    from mebqat_lite.quantizers import QUANTIZERS

    folder, setup = arguments.out or results() / "compare", _setup(arguments)
    # what nobody asked for leaves out the one bit that a quantizer may lack
    known = set(candidates(setup.recipe.quantizer not in QUANTIZERS or QUANTIZERS[setup.recipe.quantizer].one_bit))
    shown = [str(b) for b in parse_all(PAIRS) if b in known]
    if arguments.pairs not in (None, "all"):
        shown = [str(b) for b in parse_all(arguments.pairs)]
    outcome = compare(
        setup,
        re.split(r",(?![^()]*\))", arguments.methods),  # not at the commas of exclude=(3,5,7)
        pairs=[str(b) for b in sorted(known)] if arguments.pairs == "all" else shown,
        listed=[str(b) for b in parse_all(arguments.bits or [b for b in parse_all(QAT_PAIRS) if b in known])],
        seeds=_at_least_one(arguments.seeds),
        folder=folder,
        budget=arguments.budget,
        qat_lrs=_numbers(arguments.qat_lrs),
        workers=arguments.jobs,
        engine=arguments.engine,
        address=arguments.address,
        retries=arguments.retries,
        fresh=arguments.fresh,
    )
    write_json(folder / "compare.json", outcome)
    print(report(outcome, shown, titles={name: METHODS[name].title for name in METHODS}))
    print(f"Written: {folder / 'compare.json'}")
    return 0


def _benchmark(arguments: argparse.Namespace) -> int:
    from mebqat_lite.bits import parse_all
    from mebqat_lite.experiments import frozen as benchmark
    from mebqat_lite.paths import results, shipped

    pairs = [str(pair) for pair in parse_all(arguments.bits)] if arguments.bits else None
    how = {} if arguments.episodes is None else {"count": arguments.episodes}
    found = benchmark.sheet(
        arguments.checkpoints or [shipped("checkpoints")], arguments.set, part=arguments.part, bits=pairs, **how
    )
    print(benchmark.text(found))
    written = benchmark.write(found, arguments.out or results() / "benchmark")
    print("Written:", ", ".join(str(path) for path in written))
    return 0


def _course(given: Path | None, name: str) -> Path:
    """A folder of the assignments, which only a checkout has."""
    from mebqat_lite.paths import checkout

    if given is None and checkout() is None:
        raise FileNotFoundError(
            f"the assignments' {name} are in a checkout of the repository, not in a wheel: name them"
        )
    return given or checkout() / "notebooks" / "assignments" / name  # type: ignore[operator]


def _assignments(arguments: argparse.Namespace) -> int:
    from mebqat_lite.course.classroom.release import release
    from mebqat_lite.paths import results

    written = release(_course(arguments.source, "source"), arguments.out or results() / "assignments")
    print("Written:", ", ".join(str(path) for path in written))
    return 0


def _grade(arguments: argparse.Namespace) -> int:
    from mebqat_lite.course.classroom.course import grade_folder, notice, summary
    from mebqat_lite.paths import results

    out = arguments.out or results() / "grades"
    print(notice())
    graders = _course(arguments.graders, "graders")
    graded = grade_folder(arguments.submissions, graders, out, arguments.variant, arguments.jobs)
    print(summary(graded))
    print(f"Written: {out / 'grades.csv'}, {out / 'feedback'}")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part]
    except ValueError:
        raise ValueError(f"--qat-lrs takes numbers, as 0.003,0.01, not {text!r}") from None


def _at_least_one(seeds: int) -> int:
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {seeds}")
    return seeds


def _doctor(arguments: argparse.Namespace) -> int:
    from mebqat_lite.cli import doctor

    return doctor.main()


if __name__ == "__main__":
    sys.exit(main())
