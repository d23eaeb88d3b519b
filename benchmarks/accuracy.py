"""Run accuracy experiments: ``python -m benchmarks.accuracy NAME ... [--data DATA] [--seeds N] [--store]``.

Each experiment is one call of `compare`, so its methods share data, split, start, seeds and budget. Without a name
the experiments are listed. ``--store`` writes ``accuracy/NAME.json`` and the tables of README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite.bits import candidates
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.jobs import PAIRS
from mebqat_lite.experiments.setups import Setup, get
from mebqat_lite.files import write_json
from mebqat_lite.measure.results import report
from mebqat_lite.paths import results
from mebqat_lite.recipe import Recipe

FOLDER = Path(__file__).parent
ALL = tuple(str(pair) for pair in candidates())
ALL_FROM_2 = tuple(str(pair) for pair in candidates(one_bit=False))
SOME = ("W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "FP")
JOINT = ("mebqat", "adabits", "any_precision_hard", "any_precision_soft", "any_precision_recursive")
SHOWN = (*SOME[:-1], "W2A8", "W8A2", "FP")  # eight pairs, from low to high and mixed
RATES = (0.01, 0.02, 0.03, 0.05)
CHANGES = ("warm_steps=0", "warm_steps=150", "teacher=fp", "weight_decay=0.0", "m=8")
COLD = "+warm_steps=0+steps={}"  # no warm start; its back-propagations are spent on more steps instead


@dataclass(frozen=True)
class Experiment:
    """An experiment: its title ``why``, and the arguments of `compare`."""

    why: str
    setup: Setup
    names: Sequence[str]
    pairs: Sequence[str] = ALL
    listed: Sequence[str] = ("W1A1", "W2A2", "W4A4", "W8A8")
    seeds: int | Sequence[int] = 5
    budget: str = "steps"
    qat_lrs: Sequence[float] = ()
    parts: Sequence[str] = ("test",)  # the parts that the page shows: ``val`` if the experiment makes a choice
    options: str = ""  # options that the command on the page needs besides the name


DIGITS = Experiment(
    "All methods, digits 16-32-32-32, equal steps",
    get("digits-wide"),
    (*JOINT, "qat", "ptq_mse", "ptq_naive"),
    listed=("W1A1", "W2A2", "W3A3", "W4A4", "W8A8"),
    qat_lrs=(0.003, 0.01, 0.03),
)
NARROW = Setup(options={"widths": (8, 16, 16, 16)})
CIFAR = Setup(
    "cifar10,count=5000,val=500,test=2000",
    "conv4",
    {"channels": 16},
    Recipe(warm_steps=1000, steps=600, batch_size=64, lr=1e-2, pad=4, flip=True),
)


def _ablation(setup: Setup, quantizer: str, where: str, changes: Sequence[str], pairs: Sequence[str]) -> Experiment:
    """Compare MEBQAT in the paper's form, ``base``, with variants in which one thing is changed."""
    recipe, base = setup.recipe, "mebqat" if quantizer == "dorefa" else "mebqat+sandwich=False"
    cold = base + COLD.format(recipe.steps + recipe.warm_steps // recipe.m)
    names = (base, cold, *(change if change.startswith("mebqat") else f"{base}+{change}" for change in changes))
    why, listed = f"Ablations, {quantizer}, {where}; validation images", [p for p in SOME[:-1] if p in pairs]
    return Experiment(why, setup.with_options(quantizer=quantizer), names, pairs, listed, parts=("val",))


_CHANGES = {"dorefa": ("teacher='next'", "teacher='labels'", "exclude=(3,5,7)")}
_CHANGES["sat"] = _CHANGES["lsq"] = ("mebqat", "teacher='next'")

EXPERIMENTS: dict[str, Experiment] = {
    "digits-steps": DIGITS,
    "digits-backprops": replace(DIGITS, why="The same at equal back-propagations per model", budget="backprops"),
    "digits-total": replace(
        DIGITS,
        why="The same at equal total back-propagations for five delivered pairs",
        budget="total",
        names=("mebqat", "qat"),
    ),
    "cifar": Experiment(
        "All methods, 5,000 images of CIFAR-10, Conv4-16, equal back-propagations per model",
        CIFAR,
        ("mebqat", "adabits", "any_precision_recursive", "qat", "ptq_mse"),
        listed=("W1A1", "W2A2", "W4A4"),
        budget="backprops",
        qat_lrs=(0.003, 0.01),
    ),
}
EXPERIMENTS["cifar-preact_resnet20"] = replace(
    EXPERIMENTS["cifar"],
    why="The same with the paper's PreActResNet-20, of width 0.25",
    setup=replace(CIFAR, model="preact_resnet20", options={"width": 0.25}),
    listed=("W1A1", "W2A2", "W4A4", "W8A8"),
    seeds=2,
    qat_lrs=(),
)
FEW = ("W2A2", "W3A3", "W4A4", "W8A8", "W2A8", "W8A2", "W5A5", "FP")
PN_IN_TURN, MAML = (get(name) for name in ("glyphs-pn", "glyphs-maml"))
PN = replace(PN_IN_TURN.with_options(steps=400), method="mebqat_pn")
PAPER_PN = "mebqat_pn+sandwich=False+teacher='labels'"
_total = PN.recipe.steps + PN.recipe.warm_steps // PN.recipe.m
EXPERIMENTS |= {
    "glyphs-pn": Experiment(
        "New classes: PN, 20-way 1-shot on glyphs, equal back-propagations per model",
        PN,
        ("mebqat_pn", "pn_qat", "pn", "pn_ptq_mse"),
        FEW,
        ("W2A2", "W4A4"),
        seeds=3,
        budget="backprops",
        parts=("val", "test"),
    ),
    "glyphs-pn-dedicated": Experiment(
        "New classes: a network of its own for each pair, beside one for all",
        PN,
        ("mebqat_pn", "pn_qat", "pn_ptq_mse"),
        FEW,
        [pair for pair in ALL_FROM_2 if pair != "FP"],
        seeds=1,
        budget="backprops",
    ),
    "glyphs-pn-ablations": Experiment(
        "New classes: what helps MEBQAT-PN; validation scripts",
        replace(PN, episodes=300),
        (
            PAPER_PN,
            f"{PAPER_PN}{COLD.format(_total)}",
            "mebqat_pn+teacher='labels'",
            "mebqat_pn",
            "mebqat_pn+teacher='labels'+exclude=(3,5,7)",
        ),
        FEW,
        ("W2A2", "W4A4"),
        seeds=3,
        parts=("val",),
    ),
    "glyphs-maml": Experiment(
        "New classes: MAML, 5-way 1-shot on glyphs, equal back-propagations per model",
        replace(MAML, episodes=600),
        (
            "mebqat_maml",
            "mebqat_maml+teacher='fp'",
            "fomaml_qat",
            "fomaml",
            "fomaml_ptq_lsq",
            "fomaml_ptq_mse",
        ),
        ("W2A2", "FP"),
        ("W2A2",),
        seeds=3,
        budget="backprops",
        parts=("val", "test"),
    ),
    "omniglot-pn": Experiment(
        "New classes: PN, 20-way 1-shot, six alphabets of Omniglot, Korean and Sanskrit held out",
        replace(PN, data="omniglot"),
        ("mebqat_pn", "pn_qat"),
        FEW,
        ("W2A2", "W4A4"),
        seeds=3,
        budget="backprops",
        options=" --data 'omniglot:FOLDER,test=Korean+Sanskrit,val=()'",
    ),
}
CLASSES = get("glyph-classes")
CORRECTED = "mebqat_in_turn+quantizer=dorefa_corrected"
LOW = ("W1A1", "W2A2", "W4A4")
EXPERIMENTS |= {
    "glyph-classes-rates": Experiment(
        "Glyph classes: which learning rate for which method; validation images, seeds that serve only for this",
        CLASSES,
        [
            *(f"{name}+lr={rate}" for name in ("mebqat_in_turn", CORRECTED, "mebqat") for rate in RATES),
            *(f"{name}+lr={rate}" for rate in RATES for name in ("qat", "ptq_mse")),
        ],
        SHOWN,
        LOW,
        seeds=(10, 11, 12),
        budget="backprops",
        parts=("val",),
    ),
    "glyph-classes": Experiment(
        "Glyph classes: one network for all pairs beside one for each and beside rounding; equal back-propagations",
        CLASSES,
        [
            *(f"{name}+lr=0.05" for name in ("mebqat_in_turn", CORRECTED, "mebqat", "qat")),
            *("ptq_mse", "ptq_naive"),
            *(f"mebqat_in_turn+lr=0.05+steps={steps}" for steps in (2700, 5700)),  # twice and four times in all
        ],
        listed=LOW,
        budget="backprops",
        parts=("val", "test"),
    ),
    "glyph-classes-trials": Experiment(
        "Glyph classes: what helps MEBQAT in turn; validation images",
        CLASSES,
        [
            "mebqat_in_turn+lr=0.05",
            f"{CORRECTED}+lr=0.05",
            *(f"mebqat_in_turn+lr=0.05+{change}" for change in CHANGES),
        ],
        SHOWN,
        LOW,
        budget="backprops",
        parts=("val",),
    ),
    "glyph-classes-quantizers": Experiment(
        "Glyph classes: MEBQAT in turn with other quantizers, from 2 bits on; validation images",
        CLASSES,
        [
            "mebqat_in_turn+lr=0.05",
            *(f"mebqat_in_turn+lr=0.05+quantizer={name}" for name in ("lsq", "double_rounding")),
        ],
        SHOWN[1:],
        LOW[1:],
        budget="backprops",
        parts=("val",),
    ),
    "cifar-in-turn": Experiment(
        "MEBQAT in turn, 5,000 images of CIFAR-10, Conv4-16, equal back-propagations",
        replace(CIFAR.with_options(steps=2400), method="mebqat_in_turn"),
        ("mebqat_in_turn", CORRECTED, f"{CORRECTED}+lr=0.02", "mebqat", "mebqat+lr=0.02", "qat", "ptq_mse"),
        listed=LOW,
        seeds=3,
        budget="backprops",
        parts=("val", "test"),
    ),
    "glyphs-pn-in-turn": Experiment(
        "New classes: MEBQAT-PN in turn, 20-way 1-shot on glyphs, equal back-propagations",
        PN_IN_TURN,
        ("mebqat_pn_in_turn", "mebqat_pn_in_turn+quantizer=lsq_corrected", "mebqat_pn", "pn_qat", "pn_ptq_mse"),
        FEW,
        ("W2A2", "W3A3", "W4A4", "W8A8", "W2A8"),
        seeds=3,
        budget="backprops",
        parts=("val", "test"),
    ),
    "cifar-quantizers": Experiment(
        "MEBQAT in turn with other quantizers, 5,000 images of CIFAR-10, Conv4-16, from 2 bits on; validation images",
        replace(CIFAR.with_options(steps=2400), method="mebqat_in_turn"),
        ["mebqat_in_turn", *(f"mebqat_in_turn+quantizer={name}" for name in ("lsq", "double_rounding"))],
        SHOWN[1:],
        LOW[1:],
        seeds=3,
        budget="backprops",
        parts=("val",),
    ),
    "glyphs-pn-quantizers": Experiment(
        "New classes: MEBQAT-PN in turn with other quantizers, 20-way 1-shot on glyphs; validation scripts",
        PN_IN_TURN,
        ["mebqat_pn_in_turn", *(f"mebqat_pn_in_turn+quantizer={name}" for name in ("dorefa", "double_rounding"))],
        FEW,
        LOW[1:],
        seeds=3,
        budget="backprops",
        parts=("val",),
    ),
    "glyphs-maml-in-turn": Experiment(
        "New classes: MEBQAT-MAML in turn, 5-way 1-shot on glyphs, equal back-propagations",
        replace(MAML, episodes=600),
        ("mebqat_maml", "mebqat_maml_in_turn"),
        ("W2A2", "W4A4", "FP"),
        ("W2A2",),
        seeds=3,
        budget="backprops",
        parts=("val",),
    ),
}
for _quantizer, _changes in _CHANGES.items():
    _pairs = ALL if _quantizer == "dorefa" else ALL_FROM_2
    EXPERIMENTS[f"digits-{_quantizer}"] = _ablation(NARROW, _quantizer, "digits 8-16-16-16", _changes, _pairs)
    _some = [pair for pair in SOME if pair in _pairs]
    EXPERIMENTS[f"cifar-{_quantizer}"] = _ablation(
        CIFAR, _quantizer, "5,000 images of CIFAR-10, Conv4-16", _changes, _some
    )


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
    return {"experiment": name, "machine": machine(), "seeds": count, **outcome}


def block(name: str, found: dict[str, Any]) -> str:
    """Format an experiment as the README shows it."""
    pairs = [pair for pair in PAIRS if any(pair in row for row in found["accuracy"].values())]
    text = "\n\n".join(report(found, pairs, part) for part in EXPERIMENTS[name].parts)
    command = f"python -m benchmarks.accuracy {name}{EXPERIMENTS[name].options}"
    head = f"### {EXPERIMENTS[name].why}\n\n`{command}`, {found['seeds']} seeds, each with"
    when = f"{found['seconds'] / 60:.0f} min; {found['machine']}"
    return f"{head} its own split; {when}\n\n```text\n{text}\n```\n"


def store(name: str, found: dict[str, Any]) -> None:
    """Write ``accuracy/NAME.json``, and write the README's tables from all such files."""
    write_json(FOLDER / "accuracy" / f"{name}.json", rounded(found), indent=None)
    stored = {n: FOLDER / "accuracy" / f"{n}.json" for n in EXPERIMENTS}
    blocks = [block(n, json.loads(path.read_text())) for n, path in stored.items() if path.exists()]
    put(FOLDER, "accuracy", "\n".join(blocks))


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
