"""Measure exported networks: ``python -m benchmarks.deploy [SECTION ...] [--store]``.

Each section measures something and prints it as text. All of them take about ten minutes on a quiet machine.
``--store`` writes ``deploy.json`` and puts the results into README.md in this folder.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite import datasets, paths
from mebqat_lite.bits import parse_all
from mebqat_lite.checkpoint import load_model
from mebqat_lite.deploy.onnx_export import Exported, export_few_shot, export_onnx
from mebqat_lite.deploy.onnx_graph import OPSET, OPSET_INT2
from mebqat_lite.deploy.onnx_run import agreement, latency, session
from mebqat_lite.deploy.sizes import file_sizes, savings
from mebqat_lite.files import write_json
from mebqat_lite.learners import ProtoNet
from mebqat_lite.measure.saved import episodes_for, give_statistics, trained_for
from mebqat_lite.models import build
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import recalibrate

FOLDER = Path(__file__).parent
FEW_SHOT = "W2A2,W3A3,W4A4,W8A8,W16A16,FP"
EPISODES = 100
BATCHES = (1, 64)
FORMS = {  # (pair, opset, compact); compact only matters for a half-integer zero, which dorefa has and lsq has not
    "digits-wide-mebqat": [
        ("W1A1", OPSET, False),
        ("W2A2", OPSET, False),
        ("W2A2", OPSET_INT2, True),
        ("W4A4", OPSET, False),
        ("W4A4", OPSET, True),
        ("W8A8", OPSET, False),
        ("W8A8", OPSET, True),
    ],
    "resnet18": [
        ("W2A2", OPSET, False),
        ("W2A2", OPSET_INT2, False),
        ("W4A4", OPSET, False),
        ("W8A8", OPSET, False),
    ],
}


# --- ONNX ----------------------------------------------------------------------------------------------------------


def onnx_files() -> dict[str, Any]:
    """Measure whether the files of the shipped networks answer as PyTorch does, their size and their speed."""
    import onnx
    import onnxruntime

    names = sorted(file.stem for file in paths.shipped("checkpoints").glob("digits-wide-*.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        return {
            "versions": f"onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}",
            "agreement": {name: agreements(name, Path(folder)) for name in names},
            "few_shot": few_shot_answers("glyphs-mebqat_pn", Path(folder)),
            "files": [row for name in FORMS for row in files(name, Path(folder))],
        }


def shipped(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Load a shipped network, and give it norm statistics for all pairs that it was trained for."""
    model, extra = load_model(paths.shipped("checkpoints", f"{name}.safetensors"))
    give_statistics(model, extra, trained_for(model, extra))
    return model, extra


def agreements(name: str, folder: Path) -> dict[str, Any]:
    """Measure the percentage of test images that get PyTorch's class, at each pair of a network.

    Each file runs in two sessions, with and without `onnx_run.OPTIONS`, and the lower percentage counts.
    """
    model, extra = shipped(name)
    images = datasets.load(extra["data"], extra["seed"]).test.images
    shares, apart = {}, {}
    for pair in trained_for(model, extra):
        path = export_onnx(model, folder / "net.onnx", pair, images.shape[1:]).path
        found = [agreement(path, model, images, pair, plain=plain) for plain in (False, True)]
        shares[str(pair)] = min(one.share for one in found)
        apart[str(pair)] = sorted({image for one in found for image in one.disagreements})
    disputed = {pair: listed for pair, listed in apart.items() if listed}
    return {"pairs": len(shares), "images": len(images), "lowest": min(shares.values()), "disagreements": disputed}


def few_shot_answers(name: str, folder: Path) -> dict[str, Any]:
    """Measure the percentage of queries that get PyTorch's class, by pair, in the first test episodes.

    ONNX Runtime also makes the prototypes.
    """
    model, extra = shipped(name)
    learner, episodes, _ = episodes_for(model, extra)
    assert isinstance(learner, ProtoNet)
    shares = {}
    for pair in parse_all(FEW_SHOT):
        written = export_few_shot(model, folder, pair, episodes[0].support.shape[2:])
        enroll, classify = (session(done.path) for done in written)
        same = []
        for number in range(EPISODES):
            support, query = episodes[number].support, episodes[number].query.flatten(0, 1)
            [prototypes] = enroll.run(None, {"support": support.numpy()})
            classes = classify.run(None, {"images": query.numpy(), "prototypes": prototypes})[0]
            theirs = learner.adapt(model, support, pair, "recalibrated")(query).argmax(1)
            same.append((torch.from_numpy(classes) == theirs).double())
        shares[str(pair)] = 100 * float(torch.cat(same).mean())
    return {"network": name, "episodes": EPISODES, "queries": sum(map(len, same)), "share": shares}


def files(name: str, folder: Path) -> list[dict[str, Any]]:
    """Measure the bytes of a network's ONNX files, and their times relative to its FP32 file."""
    model, images = network(name)
    shape = images.shape[1:]
    recalibrate(model, images, ["FP", *{pair for pair, _, _ in FORMS[name]}])
    whole = export_onnx(model, folder / "fp.onnx", "FP", shape)
    rows = []
    for pair, opset, compact in FORMS[name]:
        done = export_onnx(model, folder / "net.onnx", pair, shape, opset=opset, compact=compact)
        times = {
            f"{batch}{' plain' * plain}": timed(done, whole, images[:batch], plain)
            for plain in (False, True)
            for batch in BATCHES
        }
        body = max(done.layers, key=lambda stored: model.get_submodule(stored.layer).weight.numel())  # type: ignore
        row = {"network": name, "pair": pair, "opset": opset, "compact": compact, "weights": body.weights}
        rows.append({**row, "note": body.note, "bytes": [done.bytes, whole.bytes], "times": times})
    return rows


def network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a shipped network and its training images, or ``resnet18`` of torchvision and random 64 x 64 images.

    The latter stands for a user's own network. It has random weights and is quantized with lsq.
    """
    if name != "resnet18":
        model, extra = shipped(name)
        return model, datasets.load(extra["data"], extra["seed"]).train.images
    from torchvision.models import resnet18

    images = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return quantize(resnet18(num_classes=10), "lsq", sample=images).eval(), images


def timed(done: Exported, whole: Exported, images: Tensor, plain: bool) -> dict[str, Any]:
    """Measure the time of a file relative to the FP32 file, in 15 to 300 runs that take about a second of FP32."""
    once = latency(whole.path, whole.path, images, runs=5, plain=plain).milliseconds[0]
    found = latency(done.path, whole.path, images, runs=max(15, min(300, int(1000 / once))), plain=plain)
    return {
        "ratio": round(found.ratio, 3),
        "spread": [round(end, 3) for end in found.quartiles],
        "milliseconds": [round(value, 4) for value in found.milliseconds],
        "runs": found.runs,
    }


def onnx_text(found: dict[str, Any]) -> str:
    """Format the three tables of `onnx_files`."""
    lines = [f"Same class as PyTorch on all test images, lower of two sessions; {found['versions']}", ""]
    lines += [f"{'network':26}{'pairs':>6}{'images':>8}{'lowest':>10}  disagreements"]
    for name, row in found["agreement"].items():
        listed = ", ".join(f"{pair} {len(apart)}" for pair, apart in row["disagreements"].items()) or "none"
        lines.append(f"{name:26}{row['pairs']:6}{row['images']:8}{row['lowest']:8.2f} %  {listed}")
    few = found["few_shot"]
    lines += [
        "",
        f"{few['network']}, {few['episodes']} test episodes, {few['queries']:,} queries, enrolled in the runtime",
    ]
    lines += ["   ".join(f"{pair} {share:.2f} %" for pair, share in few["share"].items()), ""]
    lines += ["Size, and time over FP32 at batch 1 and 64, one thread: weights unpacked at load; plain session"]
    lines += [f"{'network':20}{'pair':6}{'opset':>6}  {'weights':15}{'bytes':>11}{'over FP32':>11}  1, 64; 1, 64 plain"]
    for row in found["files"]:
        ours, whole = row["bytes"]
        kind = row["weights"] + " + 1/2" * row["compact"]
        times = [f"{row['times'][key]['ratio']:.2f}" for key in ("1", "64", "1 plain", "64 plain")]
        text = f"{times[0]}, {times[1]}; {times[2]}, {times[3]}"
        lines.append(
            f"{row['network']:20}{row['pair']:6}{row['opset']:6}  {kind:15}{ours:11,}{ours / whole:11.2f}  {text}"
        )
    return "\n".join(lines)


# --- packed files ---------------------------------------------------------------------------------------------------


def packed_files() -> dict[str, Any]:
    """Measure the bytes of packed files of two shipped networks, and of the digit net with sat, whose codes nest.

    The one with sat is not trained, because training does not change the sizes.
    """
    digits = datasets.digits().train.images
    torch.manual_seed(0)
    nesting = quantize(build("digit_net_wide"), "sat", sample=digits)
    tables = {name: file_sizes(shipped(name)[0]) for name in ("digits-wide-mebqat", "glyphs-mebqat_pn")}
    tables["digits, sat"] = file_sizes(nesting, digits)
    return {name: {"bytes": sizes.bytes.to_dict(), "saves": savings(sizes)} for name, sizes in tables.items()}


def packed_text(found: dict[str, Any]) -> str:
    """Format a table with a column for each network, and what one FP32 file saves."""
    rows = list(dict.fromkeys(row for table in found.values() for row in table["bytes"]))
    lines = [f"{'bytes of files':22}" + "".join(f"{name:>18}" for name in found)]
    for row in rows:
        cells = [table["bytes"].get(row) for table in found.values()]
        lines.append(f"{row:22}" + "".join(f"{'-' if cell is None else f'{cell:,}':>18}" for cell in cells))
    lines.append("One FP32 file against")
    for baseline in next(iter(found.values()))["saves"]:
        saved = [f"{table['saves'][baseline]:.1f} % less" for table in found.values()]
        lines.append(f"  {baseline:20}" + "".join(f"{text:>18}" for text in saved))
    return "\n".join(lines)


# --- the sections --------------------------------------------------------------------------------------------------

SECTIONS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "packed": (packed_files, packed_text),
    "onnx": (onnx_files, onnx_text),
}


def block(stored: dict[str, Any]) -> str:
    """Format the results as the README shows them."""
    shown = [
        SECTIONS[name][1](stored[name]["found"]) + f"\n{stored[name]['machine']}" for name in SECTIONS if name in stored
    ]
    return "\n".join(f"```text\n{text}\n```" for text in shown)


def store(found: dict[str, Any]) -> None:
    """Update the measured sections in ``deploy.json``, and put all stored results into the README."""
    path = FOLDER / "deploy.json"
    stored = (json.loads(path.read_text()) if path.exists() else {}) | found
    write_json(path, stored)
    put(FOLDER, "deploy", block(stored))


def main(names: list[str]) -> int:
    """Measure and print the named sections (by default all); ``--store`` also stores them."""
    keep = "--store" in names
    names = [name for name in names if name != "--store"]
    if unknown := set(names) - set(SECTIONS):
        print(f"no section {sorted(unknown)}; there are {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    found = {}
    for name in names or SECTIONS:
        measure, show = SECTIONS[name]
        found[name] = {"machine": machine(), "found": measure()}
        print(show(found[name]["found"]), flush=True)
    if keep:
        store(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
