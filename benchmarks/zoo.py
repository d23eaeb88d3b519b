"""Try torchvision's classification networks: ``python -m benchmarks.zoo [NAME ...] [--store]``.

Each network has random weights, is quantized with lsq in evaluation mode, and runs on small random images in a process
of its own. ``--store`` writes ``zoo.json`` and puts the table into README.md in this folder. All networks of the table
take half an hour on two cores.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.machine import machine
from benchmarks.page import put
from mebqat_lite.deploy.agree import recorded
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import agreement
from mebqat_lite.deploy.packed import load_packed, save_packed
from mebqat_lite.files import write_json
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.switching.state import at, plan_of, quantized_layers

FOLDER = Path(__file__).parent
IMAGES, SIDE = 8, 64  # how many images, and their side in pixels
OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    **{name: {"image_size": SIDE} for name in ("vit_b_16", "vit_b_32")},
}
SIDES = {"inception_v3": 96, "maxvit_t": 224}  # networks that do not take smaller images
NETWORKS = (  # each architecture, and where it has many sizes, a small and a larger one
    "squeezenet1_1 mnasnet0_5 shufflenet_v2_x0_5 mobilenet_v3_small mobilenet_v2 efficientnet_b0 googlenet resnet18 "
    "regnet_x_400mf regnet_y_400mf densenet121 inception_v3 alexnet vgg11_bn convnext_tiny swin_t swin_v2_t vit_b_32 "
    "vit_b_16 maxvit_t mobilenet_v3_large mnasnet1_3 shufflenet_v2_x2_0 efficientnet_b3 efficientnet_v2_s resnet50 "
    "resnext50_32x4d regnet_y_3_2gf wide_resnet50_2 resnet101"
)
FEW, ONNX = "W2A2", "W4A4"  # the pairs of the levels and packed files, and of the ONNX files


def build(name: str) -> nn.Module:
    """Build a network of torchvision with random weights, in evaluation mode; weights that start at zero, too."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **OPTIONS.get(name, {})).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def measure(name: str) -> dict[str, Any]:
    """Try one network, and return what was found; a part that failed has its error as text."""
    warnings.simplefilter("ignore")
    side = SIDES.get(name, SIDE)
    images = torch.rand(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = build(name)
    with torch.no_grad():
        wanted = model(images)
        quantize(model, "lsq", sample=images)
        found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "side": side}
        found |= {"fp": torch.equal(model(images), wanted), "layers": layers(model)}
    recalibrate(model, images, [FEW, ONNX])
    parts: dict[str, Callable[[], Any]] = {
        "levels": lambda: levels(model, images),
        "packed": lambda: packed(model, name, images),
        "onnx": lambda: onnx(model, images),
    }
    return found | {part: attempt(work) for part, work in parts.items()}


def attempt(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns, or the first line of its error."""
    try:
        return work()
    except Exception as error:  # whatever it is, also the end of a process for lack of memory, stands in the table
        return f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"


def layers(model: nn.Module) -> dict[str, Any]:
    """Count the layers that are quantized, kept and skipped, and the inputs that stay float under two quantizers.

    These are the inputs that can be negative, if the quantizer has no negative values.
    """
    plan = plan_of(model)
    roles = Counter("quantized" if site.role == "body" else "kept" for site in plan.sites)
    body = [site for site in plan.sites if site.role == "body"]
    stay = {
        name: sum(site.signed for site in body) * (not QUANTIZERS[name].signed_inputs) for name in ("dorefa", "lsq")
    }
    return {**roles, "skipped": dict(Counter(plan.skipped.values())), "float_inputs": stay}


def levels(model: nn.Module, images: Tensor) -> list[int]:
    """Count the different values of weights and of inputs in the quantized layer that has the most of them."""
    with at(model, FEW, "recalibrated"), recorded(model) as inputs:
        model(images)
        found = [layer for name, layer in quantized_layers(model).items() if name in inputs]
        weights = max(len(layer.quantized_weight(layer.bits.w).unique()) for layer in found)
    return [weights, max(len(x.unique()) for values in inputs.values() for x in values if x is not None)]


def packed(model: nn.Module, name: str, images: Tensor) -> dict[str, Any]:
    """Write a packed file, read it into another instance, and compare all logits."""
    with tempfile.TemporaryDirectory() as folder:
        save_packed(model, Path(folder) / "packed", FEW, calibration=images)
        size = (Path(folder) / "packed").stat().st_size
        again, _ = load_packed(Path(folder) / "packed", build(name))
    with torch.no_grad(), at(model, FEW, "recalibrated"):
        return {"bytes": size, "equal": torch.equal(again(images), model(images))}


def onnx(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Write an ONNX file and compare its logits with PyTorch's, in relation to the largest one.

    ``float64`` is what PyTorch's logits differ by from its own in float64.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = export_onnx(model, Path(folder) / "net.onnx", ONNX, images.shape[1:])
        found = agreement(done.path, model, images, ONNX)
    exact, largest = in_float64(model, images)
    difference = found.largest_difference / largest
    return {"bytes": done.bytes, "same_class": found.share, "difference": difference, "float64": exact / largest}


@torch.no_grad()
def in_float64(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Compute the largest difference of a logit from the one in float64, and the largest logit."""
    with at(model, ONNX, "recalibrated"):
        logits, exact = model(images), copy.deepcopy(model).double()(images.double())
    return float((logits - exact).abs().max()), float(logits.abs().max())


def apart(name: str) -> dict[str, Any] | str:
    """Try a network in a process of its own, so that its memory is free afterwards; an error becomes text."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return attempt(lambda: pool.submit(measure, name).result())


COLUMNS = {  # the heading of each column, and its width
    "network": -19,
    "weights": 9,
    "quantized": 11,
    "kept": 6,
    "not": 5,
    "float inputs": 14,
    "FP": 7,
    f"{FEW}: levels": 14,
    "packed": 13,
    f"{ONNX}: ONNX": 14,
    "same class": 12,
    "difference": 12,
    "float64": 9,
}


def line(name: str, row: Mapping[str, Any] | str) -> str:
    """Format what was found for one network; what failed has its error."""
    if isinstance(row, str):
        return f"{name:19}  {row}"
    layers, (levels, packed, onnx) = row["layers"], (row[part] for part in ("levels", "packed", "onnx"))
    cells = [name, f"{row['parameters'] / 1e6:.1f} M", layers["quantized"], layers["kept"]]
    cells += [sum(layers["skipped"].values()), layers["float_inputs"]["dorefa"], "equal" if row["fp"] else "other"]
    errors = [part for part in (levels, packed, onnx) if isinstance(part, str)]
    if not errors:
        cells += [" and ".join(map(str, levels)), f"{packed['bytes'] / 1e6:.1f} MB" * packed["equal"] or "other"]
        cells += [f"{onnx['bytes'] / 1e6:.1f} MB", f"{onnx['same_class']:.0f} %", f"{onnx['difference']:.0e}"]
        cells += [f"{onnx['float64']:.0e}"]
    return _row(cells) + "".join(f"  {error}" for error in errors)


def _row(cells: Iterable[object]) -> str:
    widths = COLUMNS.values()
    return "".join(f"{cell!s:<{-w}}" if w < 0 else f"{cell!s:>{w}}" for cell, w in zip(cells, widths, strict=False))


def block(stored: Mapping[str, Any]) -> str:
    """Format the results as the README shows them."""
    lines = [_row(COLUMNS), *(line(name, row) for name, row in stored["found"].items()), stored["machine"]]
    return "\n".join(["```text", *lines, "```"])


def store(found: dict[str, Any]) -> None:
    """Update the networks in ``zoo.json``, and put all stored results into the README."""
    path = FOLDER / "zoo.json"
    before = json.loads(path.read_text())["found"] if path.exists() else {}
    stored = {"machine": f"torchvision {torchvision.__version__}, {machine()}", "found": {**before, **found}}
    write_json(path, stored)
    put(FOLDER, "zoo", block(stored))


def main(names: list[str]) -> int:
    """Try the named networks (by default `NETWORKS`) and print the table; ``--store`` also stores it."""
    keep = "--store" in names
    names = [name for name in names if name != "--store"] or NETWORKS.split()
    if unknown := set(names) - set(torchvision.models.list_models(module=torchvision.models)):
        print(f"torchvision has no network {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    print(_row(COLUMNS))
    for name in (bar := tqdm(names, disable=None)):
        bar.set_description(name)
        found = apart(name)
        tqdm.write(line(name, found))
        if keep:
            store({name: found})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
