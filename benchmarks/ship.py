"""Train the checkpoints that are shipped: ``python -m benchmarks.ship [NAME ...]``, all of them by default.

``python -m benchmarks.ship "paint-*" digits-fp`` trains these files only. Each file is seed 0 of a named set-up, in
which every network gets equally many back-propagations, with the norm statistics of the pairs that it is shown at.
``digits-fp`` is the network that PTQ rounds: it is trained in full precision for as long as the others.

Beside the files there are two sheets. ``digits.json`` is the comparison of which the narrow digit nets are seed 0: that
of the demo, over three seeds. ``glyphs.json`` holds the accuracy on the validation scripts, on which the few-shot
set-ups were chosen. The wide digit nets, except for Any-Precision, are seed 0 of ``mebqat-lite compare --recipe
digits-wide --methods ptq_naive,ptq_mse,qat,mebqat``. ``python -m benchmarks.ship --rewrite`` trains nothing: it writes
the shipped checkpoints in the format of today.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from mebqat_lite import datasets, files, paths
from mebqat_lite.bits import candidates
from mebqat_lite.checkpoint import load_model, save_model
from mebqat_lite.experiments.compare import QAT_PAIRS, compare
from mebqat_lite.experiments.frozen import SHOWN, sheet, text
from mebqat_lite.experiments.jobs import PAIRS, Job
from mebqat_lite.experiments.setups import get
from mebqat_lite.files import write_json
from mebqat_lite.measure.evaluate import norm_images
from mebqat_lite.switching.norms import recalibrate

LIMIT = 300_000  # bytes that a shipped file may have
EQUAL = (*(f"W{bits}A{bits}" for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16)), "FP")  # what a slider of one width shows
FEW = ("W2A2", "FP")


@dataclass(frozen=True)
class Group:
    """Files that are trained together: the name of each, and the job of seed 0 that it holds.

    Args:
        setup: the name of the set-up.
        jobs: the job of each file.
        pairs: where the networks for all pairs are measured. Their norm statistics at these pairs are kept.
        seeds: over how many seeds the comparison goes.
    """

    setup: str
    jobs: Mapping[str, Job]
    pairs: Sequence[str] = PAIRS
    seeds: int = 1


DIGITS = {
    **{f"digits-{name}": Job(name, 0) for name in ("ptq_naive", "ptq_mse", "mebqat", "mebqat_in_turn")},
    **{f"digits-qat_{pair.lower()}": Job("qat", 0, pair) for pair in QAT_PAIRS},
}
PAINT = {
    **{f"paint-{name}": Job(name, 0) for name in ("ptq_naive", "ptq_mse", "mebqat", "mebqat_in_turn")},
    **{f"paint-qat_{pair.lower()}": Job(f"qat+bits={pair}", 0) for pair in ("W1A1", "W4A4")},
}
PN = {
    "glyphs-pn": Job("pn", 0),
    "glyphs-pn_qat_w2a2": Job("pn_qat", 0, "W2A2"),
    "glyphs-mebqat_pn": Job("mebqat_pn", 0),
    "glyphs-mebqat_pn_in_turn": Job("mebqat_pn_in_turn", 0),
}
GROUPS = (
    Group("digits", DIGITS, seeds=3),
    Group("digits", {"digits-fp": Job("fp+warm_steps=0", 0)}, ("FP",)),
    Group("digits-wide", {"digits-wide-any_precision": Job("any_precision_recursive", 0)}, FEW),
    Group("paint", PAINT, EQUAL),
    Group("glyphs-pn", PN, FEW),
    Group("glyphs-maml", {f"glyphs-{name}": Job(name, 0) for name in ("fomaml", "mebqat_maml")}, FEW),
)
SHEETS = {"glyphs-pn": ("glyphs-20way", SHOWN), "glyphs-maml": ("glyphs-5way", ("W2A2", "W4A4", "FP"))}


def train(group: Group, out: Path) -> None:
    """Train the files of a group with equal back-propagations, and write them to ``out``.

    A comparison over several seeds is written too.
    """
    methods = list(dict.fromkeys(job.variant for job in group.jobs.values()))
    listed = [job.bits for job in group.jobs.values() if job.bits] or QAT_PAIRS
    with tempfile.TemporaryDirectory() as folder:
        found = compare(
            get(group.setup), methods, pairs=group.pairs, listed=listed, seeds=group.seeds, folder=folder, workers=1
        )
        for name, job in group.jobs.items():
            ship(Path(folder) / f"{job.name}.safetensors", job, out / f"{name}.safetensors")
    if group.seeds > 1:
        write_json(out / f"{group.setup}.json", found)


def ship(source: Path, job: Job, target: Path) -> None:
    """Write one network to ``target``; a prototypical one gets the norm statistics of all pairs that it serves."""
    model, extra = load_model(source)
    if extra["setup"]["method"] == get("glyphs-pn").method:
        served = [job.bits] if job.bits else [str(pair) for pair in candidates(one_bit=False)]
        images = norm_images(datasets.load(extra["data"], job.seed).train)
        recalibrate(model, images, served if job.variant != "pn" else ["W2A2", "W4A4", "W8A8", "FP"])
    save_model(model, target, **extra)
    if (size := target.stat().st_size) > LIMIT:
        raise SystemExit(f"{target.name} has {size:,} bytes, more than {LIMIT:,}")
    print(f"{target.name}: {size:,} bytes", flush=True)


def measure(setup: str, out: Path) -> None:
    """Measure a few-shot set-up's files on the validation scripts, and put the accuracies into ``glyphs.json``."""
    path, (frozen, pairs) = out / "glyphs.json", SHEETS[setup]
    names = [name for group in GROUPS if group.setup == setup for name in group.jobs]
    found = sheet([out / f"{name}.safetensors" for name in names], frozen, part="val", bits=pairs)
    print(text(found), flush=True)
    write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), frozen: found})


def main(patterns: Sequence[str], out: Path) -> None:
    """Train the files whose names match one of the patterns, and write their sheets."""
    known = [name for group in GROUPS for name in group.jobs]
    chosen = {name for name in known if any(fnmatch(name, pattern) for pattern in patterns)}
    if not chosen:
        raise SystemExit(f"none of {', '.join(patterns)} is shipped; there are {', '.join(known)}")
    for group in GROUPS:
        if jobs := {name: job for name, job in group.jobs.items() if name in chosen}:
            train(group if jobs == group.jobs else replace(group, jobs=jobs, seeds=1), out)
            if group.setup in SHEETS:
                measure(group.setup, out)


def rewrite(folder: Path) -> None:
    """Write the checkpoints of a folder anew, with the same tensors and descriptions; each gets its checksum."""
    for path in sorted(folder.glob("*.safetensors")):
        tensors, meta = files.read(path, "model")
        files.write(path, tensors, meta)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="files to train, also as patterns; default: all")
    parser.add_argument("--to", type=Path, default=paths.shipped("checkpoints"), help="default: data/checkpoints")
    parser.add_argument("--rewrite", action="store_true", help="train nothing, and write the files anew")
    arguments = parser.parse_args()
    if arguments.rewrite:
        rewrite(arguments.to)
    else:
        main(arguments.names, arguments.to)
