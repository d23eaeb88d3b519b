"""Train the few-shot checkpoints that are shipped: ``python -m benchmarks.ship [FOLDER]`` (default: ``data``).

This takes some minutes. Each checkpoint is seed 0 of a named set-up, with the norm statistics of every pair that it
serves. ``checkpoints/glyphs.json`` holds their accuracy on the validation scripts, on which the set-ups were chosen.
Those for the digits are not trained here, except for Any-Precision: ``mebqat-lite demo --ship data`` makes those of
the narrow net, and those of the wide one are seed 0 of ``mebqat-lite compare --recipe digits-wide --methods
ptq_naive,ptq_mse,qat,mebqat``. ``python -m benchmarks.ship --rewrite`` trains nothing: it writes the shipped
checkpoints in the format of today.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from mebqat_lite import datasets, files, paths
from mebqat_lite.bits import candidates
from mebqat_lite.checkpoint import load_model, save_model
from mebqat_lite.experiments.frozen import SHOWN, sheet, text
from mebqat_lite.experiments.jobs import Job, run_job, train_start
from mebqat_lite.experiments.setups import Setup, get
from mebqat_lite.files import write_json
from mebqat_lite.measure.evaluate import norm_images
from mebqat_lite.switching.norms import recalibrate

FEW_SHOT = {  # set-up -> name of the file -> job
    "glyphs-pn": {"pn": Job("pn", 0), "pn_qat_w2a2": Job("pn_qat", 0, "W2A2"), "mebqat_pn": Job("mebqat_pn", 0)},
    "glyphs-maml": {"fomaml": Job("fomaml", 0), "mebqat_maml": Job("mebqat_maml", 0)},
}
LIMIT = 300_000  # bytes that a shipped file may have


def train(name: str, setup: Setup, job: Job, folder: Path, out: Path) -> None:
    """Train one job with the back-propagations of its recipe, and write it to ``out`` with statistics for its pairs."""
    pairs = [job.bits] if job.bits else ["W2A2", "FP"]
    run_job(setup, job, pairs, folder, budget="backprops")
    model, extra = load_model(folder / f"{job.name}.safetensors")
    if job in FEW_SHOT["glyphs-pn"].values():
        images = norm_images(datasets.load(setup.data, job.seed).train)
        served = [job.bits] if job.bits else [str(pair) for pair in candidates(one_bit=False)]
        recalibrate(model, images, served if job.variant != "pn" else ["W2A2", "W4A4", "W8A8", "FP"])
    save_model(model, out, **extra)
    if (size := out.stat().st_size) > LIMIT:
        raise SystemExit(f"{out.name} has {size:,} bytes, more than {LIMIT:,}")
    print(f"{name}: {size:,} bytes", flush=True)


def main(data: Path) -> None:
    """Train all checkpoints, and write their accuracies."""
    out = data / "checkpoints"
    sheets = {}
    for recipe, jobs in FEW_SHOT.items():
        with tempfile.TemporaryDirectory() as folder:
            setup, done = get(recipe), []
            train_start(setup, 0, Path(folder), "pn" if recipe == "glyphs-pn" else "fomaml")
            for name, job in jobs.items():
                done.append(out / f"glyphs-{name}.safetensors")
                train(name, setup, job, Path(folder), done[-1])
        frozen = "glyphs-20way" if recipe == "glyphs-pn" else "glyphs-5way"
        shown = SHOWN if recipe == "glyphs-pn" else ("W2A2", "W4A4", "FP")
        sheets[frozen] = sheet(done, frozen, part="val", bits=shown)
        print(text(sheets[frozen]), flush=True)
    write_json(out / "glyphs.json", sheets)
    with tempfile.TemporaryDirectory() as folder:
        setup = get("digits-wide")
        train_start(setup, 0, Path(folder))
        train(
            "any_precision_recursive",
            setup,
            Job("any_precision_recursive", 0),
            Path(folder),
            out / "digits-wide-any_precision.safetensors",
        )


def rewrite(folder: Path) -> None:
    """Write the checkpoints of a folder anew, with the same tensors and descriptions; each gets its checksum."""
    for path in sorted(folder.glob("*.safetensors")):
        tensors, meta = files.read(path, "model")
        files.write(path, tensors, meta)


if __name__ == "__main__":
    if sys.argv[1:] == ["--rewrite"]:
        rewrite(paths.shipped("checkpoints"))
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
