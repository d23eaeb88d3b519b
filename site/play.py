"""Write what the front page runs: networks as ONNX files whose bits are inputs, glyphs, and numbers about them.

``python site/play.py FOLDER`` does it. The scripts in ``static/play`` run them in the browser, and ``play.json`` tells
these what there is. All networks are shipped ones; nothing is trained here.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mebqat_lite import datasets, paths
from mebqat_lite.bits import FULL, Bits
from mebqat_lite.checkpoint import load_model
from mebqat_lite.course.widgets.new_classes import CALIBRATION, shipped_networks
from mebqat_lite.course.widgets.paintings import spoken
from mebqat_lite.datasets.paint import SIDE
from mebqat_lite.deploy.codes import weight_codes
from mebqat_lite.deploy.onnx_switch import export_switch
from mebqat_lite.deploy.packed import save_packed
from mebqat_lite.experiments.demo import PAINTERS
from mebqat_lite.files import write_json
from mebqat_lite.measure.looks import color_of
from mebqat_lite.switching.state import at, quantized_layers

PAINTED = ("W1A1", "W2A2", "W3A3", "W4A4", "W5A5", "W6A6", "W7A7", "W8A8", "FP")  # the stops of the slider
START, STILL = "FP", "W2A2"  # the stop where the slider begins, and the one that is shown where no network runs
WIDTHS = (2, 3, 4, 6, 8)  # of the weights, and of the inputs, of the networks that learn new classes
LEARNERS = ("PN + PTQ-MSE", "MEBQAT-PN in turn")
LAYER = "body.1.0"  # the kernels of this layer are shown, from its first input to all its outputs
IMAGES = 4  # of each class


def write(folder: Path) -> None:
    """Write all files into ``folder``, unless they are there and nothing of which they are made has changed since."""
    stamp = folder / "stamp"
    if stamp.is_file() and stamp.read_text() == _made_of():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = {"paint": paintings(folder), "glyphs": glyphs(folder), "learn": learners(folder)}
    write_json(folder / "play.json", content, indent=None)
    stamp.write_text(_made_of())


def _made_of() -> str:
    """Compute a checksum of the package, of the shipped files and of this script."""
    package = Path(__file__).parent.parent / "mebqat_lite"
    files = [
        Path(__file__),
        *package.rglob("*.py"),
        *paths.shipped("checkpoints").iterdir(),
        paths.shipped("glyphs.npz"),
    ]
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in sorted(files))).hexdigest()


def paintings(folder: Path) -> dict[str, Any]:
    """Write the networks that paint, their pictures at `START` and `STILL`, and the photograph as float32 numbers."""
    networks, columns = {}, []
    for title, name in PAINTERS.items():
        model, extra = load_model(paths.shipped("checkpoints", f"{name}.safetensors"))
        data = datasets.load(extra["data"], extra["seed"])
        export_switch(model, folder / f"{name}.onnx", PAINTED, (2,), calibration=data.train.images, output="colours")
        networks[title] = {"file": f"{name}.onnx", "color": color_of(title)}
        rows = []
        for pair in (START, STILL):
            with torch.no_grad(), at(model, pair, "recalibrated"):
                rows.append(datasets.picture(model(data.test.images)))
        columns.append(torch.cat(rows))  # (2 side, side, 3)
    _save(torch.cat(columns, 1), folder / "paint.png")
    (folder / "photo.bin").write_bytes(data.test.labels.numpy().astype("<f4").tobytes())
    stops = [{"pair": pair, "words": spoken(pair)} for pair in PAINTED]
    return {"networks": networks, "stops": stops, "start": START, "still": STILL, "side": SIDE}


def glyphs(folder: Path) -> dict[str, Any]:
    """Write images of the classes for testing, which no network saw in training, as one sheet: a row for each class."""
    split = datasets.load("glyphs").test
    classes = split.labels.unique()
    rows = torch.stack([split.images[split.labels == label][:IMAGES, 0] for label in classes])  # (N, K, 28, 28)
    sheet = rows.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (28 N, 28 K)
    _save(sheet.float() / 255, folder / "glyphs.png")
    return {"classes": len(classes), "images": IMAGES, "side": rows.shape[-1]}


def learners(folder: Path) -> dict[str, Any]:
    """Write the networks that learn new classes, and by weight bits the bytes of their packed files and the steps."""
    data = datasets.load("glyphs")
    known, calibration = shipped_networks(data), data.train.images[:CALIBRATION]
    pairs = [Bits(w, a) for w in WIDTHS for a in (*WIDTHS, FULL)] + [Bits(FULL, FULL)]
    found = {}
    for title in LEARNERS:
        name = f"{title.lower().replace(' + ', '-').replace(' ', '-')}.onnx"
        shape = data.train.images.shape[1:]
        export_switch(known[title], folder / name, pairs, shape, calibration=calibration, output="embeddings")
        found[title] = {"file": name, "color": color_of(title), "bytes": packed_bytes(known[title], calibration)}
    return {"networks": found, "widths": WIDTHS, "kernels": kernels(known[LEARNERS[-1]])}


def packed_bytes(model: nn.Module, calibration: Tensor) -> dict[str, int]:
    """Measure the bytes of the packed file of equal bits for weights and inputs, by these bits."""
    with tempfile.TemporaryDirectory() as temporary:
        path, found = Path(temporary) / "file.safetensors", {}
        for bits in (*WIDTHS, FULL):
            save_packed(model, path, Bits(bits, bits), calibration=calibration)
            found[str(bits)] = path.stat().st_size
    return found


def kernels(model: nn.Module) -> dict[str, Any]:
    """Return 3 x 3 kernels of a layer, and at each of `WIDTHS` the step and the zero of the layer's weights."""
    layer = quantized_layers(model)[LAYER]
    grids = {str(bits): [float(part) for part in weight_codes(layer, bits)[1:]] for bits in WIDTHS}
    return {"weights": layer.weight[:, 0].flatten(1).tolist(), "grids": grids}


def _save(picture: Tensor, path: Path) -> None:
    """Save a picture with values in [0, 1], (height, width) or (height, width, 3), as a PNG file of whole numbers."""
    Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).save(path, optimize=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
