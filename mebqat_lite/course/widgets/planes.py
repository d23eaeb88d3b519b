"""Lesson 08: the bit planes of a file are dropped one by one; its bytes, and what networks then read."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from mebqat_lite.bits import FULL, Bits
from mebqat_lite.course.widgets.base import card, slider
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.datasets.base import Data
from mebqat_lite.deploy import codes, sizes
from mebqat_lite.deploy.packed import save_packed
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import BLACK, DARK, GREY, ORANGE, PAGE, PALE, SKY, SMALLEST, WHITE, color_of
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.switching.state import at, quantized_layers

PLANES = 8


@dataclass(frozen=True)
class Reading:
    """What a network reads of the test images with some bit planes of its weights."""

    answers: Tensor  # (images,): the classes that it names
    accuracy: float  # percent


class Stripped:
    """A network whose weights are kept as eight bit planes, of which it may read fewer.

    The codes are those of W8A8. With ``kept`` planes the activations have as many bits, and the norm statistics are
    measured anew on the training images. Readings are remembered.

    Raises:
        DataError: the labels of the data are no classes.
    """

    def __init__(self, model: nn.Module, data: Data) -> None:
        data.test.of_classes("the widget of bit planes")
        self.original, self.model, self.data = model, copy.deepcopy(model).eval(), data
        layers = quantized_layers(self.model)
        self.layers = {name: layer for name, layer in layers.items() if layer.site.role == "body"}
        self.codes = {name: codes.weight_codes(layer, PLANES) for name, layer in self.layers.items()}
        self._readings: dict[int, Reading] = {}

    def planes(self, name: str) -> Tensor:
        """The eight bits of each weight of a layer, (8, weights), the most significant plane first."""
        flat = self.codes[name][0].flatten()
        return torch.stack([flat >> shift & 1 for shift in reversed(range(PLANES))])

    def weights(self, name: str, kept: int) -> Tensor:
        """The weights of a layer when the lower planes are not known: each is the middle of what they could say."""
        whole, step, zero = self.codes[name]
        unit = 2 ** (PLANES - kept)
        return codes.dequantize(whole // unit, step * unit, (zero + 0.5) / unit - 0.5)

    def read(self, kept: int) -> Reading:
        """Classify the test images with the first ``kept`` planes, 1 to 8."""
        if kept not in self._readings:
            with torch.no_grad():
                for name, layer in self.layers.items():
                    layer.weight.copy_(self.weights(name, kept))
            pair = Bits(FULL, kept)  # these weights are rounded already
            recalibrate(self.model, self.data.train.images, pair)
            with torch.no_grad(), at(self.model, pair, "recalibrated"):
                answers = self.model(self.data.test.images).argmax(1)
            right = (answers == self.data.test.labels).double().mean()
            self._readings[kept] = Reading(answers, 100 * float(right))
        return self._readings[kept]

    def file(self) -> dict[str, int]:
        """Bytes of the packed file with all planes, by what they are for, as `sizes.parts` has them."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file.safetensors"
            save_packed(self.original, path, Bits(PLANES, PLANES), calibration=self.data.train.images)
            return sizes.parts(path)


@dataclass(frozen=True)
class PlanesResult:
    """What is left of a file with the first ``kept`` planes, and what networks read with it."""

    kept: int
    bytes: dict[str, int]  # by what they are for
    accuracy: dict[str, float]  # percent, by the title of a network
    answers: dict[str, list[int]]  # to the images that are shown
    labels: list[int]  # of these images

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(self.bytes.values())


def shown(data: Data) -> list[int]:
    """The places of the test images that are shown: the first of each class."""
    labels = data.test.labels
    return [int((labels == label).nonzero()[0, 0]) for label in labels.unique()]


def compute(networks: Mapping[str, Stripped], file: Mapping[str, int], kept: int) -> PlanesResult:
    """Keep the first planes of a file and of some networks, and read the test images with them.

    Args:
        networks: by title; all have the same data.
        file: the bytes of the file with all eight planes, as `Stripped.file` returns them.
        kept: how many planes are kept, 1 to 8.

    Raises:
        ValueError: any other number of planes.
    """
    if kept not in range(1, PLANES + 1):
        raise ValueError(f"a file has {PLANES} bit planes, of which 1 to {PLANES} can be kept, not {kept}")
    readings = {title: network.read(kept) for title, network in networks.items()}
    data = next(iter(networks.values())).data
    places = shown(data)
    return PlanesResult(
        kept,
        {**file, "codes": file["codes"] * kept // PLANES},
        {title: reading.accuracy for title, reading in readings.items()},
        {title: reading.answers[places].tolist() for title, reading in readings.items()},
        data.test.labels[places].tolist(),
    )


HEIGHTS = (1.15, 0.95, 1.2)  # of the three rows, as shares
COLORS = {"codes": SKY, "norm statistics": ORANGE, "other floats": GREY, "header": PALE}
SIDE = 36  # of the picture of a plane, in weights
IMAGE: dict[str, Any] = {"cmap": "gray_r", "aspect": "auto", "interpolation": "nearest"}
GAP = 0.08  # between two planes, as a share of one


def picture(bits: Tensor, images: Tensor, titles: Sequence[str], whole: int) -> Drawing:
    """Draw the planes of a layer, the bytes of the file, and the answers of networks to some images.

    The drawing takes results of `compute`. Its first axes are those of the planes, each of which is one unit wide.

    Args:
        bits: (8, weights), zeros and ones, the most significant plane first.
        images: (count, 1, height, width), what the networks answer to.
        titles: of the networks.
        whole: bytes of the file with all planes.
    """
    with plots.style():
        figure = plt.figure(figsize=(PAGE, 4.0))
        places: Any = figure.subfigures(3, 1, height_ratios=HEIGHTS)
        top, middle, bottom = (place.subplots() for place in places)
        parts = _stack(top, bits), _bar(middle, whole), _rows(bottom, images, titles)
    return Drawing(figure, say, *parts)


def _stack(axes: Axes, bits: Tensor) -> Part:
    """Draw the planes side by side, a weight a pixel; those that are dropped are veiled."""
    whole = torch.nn.functional.pad(bits, (0, -bits.shape[1] % SIDE)).reshape(PLANES, -1, SIDE)
    for index, plane in enumerate(whole):
        place = (index + GAP, index + 1 - GAP, 0, 1)
        axes.imshow(plane.T.numpy(), vmin=0, vmax=1.6, extent=place, **IMAGE)
    veil = axes.add_patch(Rectangle((PLANES, -0.02), 0, 1.04, facecolor=WHITE, alpha=0.85))
    axes.set(
        xlim=(0, PLANES),
        ylim=(0, 1),
        yticks=[],
        frame_on=False,
        title="eight bit planes of one layer, a weight a pixel",
    )
    axes.set_xticks([i + 0.5 for i in range(PLANES)], [f"worth {2 ** (PLANES - 1 - i)}" for i in range(PLANES)])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    return Part(lambda result: veil.set(x=result.kept, width=PLANES - result.kept), [veil])


def _bar(axes: Axes, whole: int) -> Part:
    """Draw the bytes of the file, by what they are for."""
    parts = {name: axes.barh(0, 0, height=0.9, color=color, label=name)[0] for name, color in COLORS.items()}
    words = axes.text(0, 0, "", va="center", fontsize=SMALLEST)
    axes.set(xlim=(0, 1.3 * whole), ylim=(-0.5, 0.5), yticks=[], xlabel="bytes of the file")
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.figure.legend(loc="outside upper left", ncols=4)

    def update(result: PlanesResult) -> None:
        left = 0
        for name, rectangle in parts.items():
            rectangle.set(x=left, width=result.bytes[name])
            left += result.bytes[name]
        words.set(x=1.02 * left, text=f"{left:,} bytes")

    return Part(update, [*parts.values(), words])


def _rows(axes: Axes, images: Tensor, titles: Sequence[str]) -> Part:
    """Draw images side by side, and beneath them a row of answers for each network; a wrong one has a cross."""
    count = len(images)
    for index, image in enumerate(images):
        axes.imshow(image[0].numpy(), extent=(index + 0.1, index + 0.9, 0.05, 0.65), **IMAGE)
    names, cells = {}, {}
    look: dict[str, Any] = {"va": "center", "fontsize": 10}
    for row, title in enumerate(titles):
        y = -0.2 - 0.38 * row
        names[title] = axes.text(-0.1, y, "", ha="right", color=color_of(title), fontweight="bold", **look)
        cells[title] = [axes.text(i + 0.5, y, "", ha="center", **look) for i in range(count)]
    axes.set(xlim=(-4.2, count), ylim=(y - 0.22, 0.7), xticks=[], yticks=[], frame_on=False)
    axes.text(-0.1, 0.35, "test images", ha="right", **look)

    def update(result: PlanesResult) -> None:
        for title, name in names.items():
            name.set_text(f"{title}: {result.accuracy[title]:.1f} %")
            for cell, answer, label in zip(cells[title], result.answers[title], result.labels, strict=True):
                is_right = answer == label
                cell.set(text=str(answer) if is_right else f"✗ {answer}", color=DARK if is_right else BLACK)
                cell.set(fontweight="normal" if is_right else "bold")

    return Part(update, [*names.values(), *(cell for row in cells.values() for cell in row)])


def say(result: PlanesResult) -> str:
    """The picture in one sentence."""
    found = ", ".join(f"{title} {value:.1f} %" for title, value in result.accuracy.items())
    return f"{result.kept} of {PLANES} planes, {result.size:,} bytes: {found}"


def describe(result: PlanesResult) -> str:
    """The numbers of a result, as HTML."""
    bits = f"{result.kept} of {PLANES} planes" if result.kept > 1 else f"one plane of {PLANES}"
    found = "; ".join(f"{title} reads {value:.1f} %" for title, value in result.accuracy.items())
    integers = 100 * result.bytes["codes"] / result.size
    return card(
        f"<b>{bits}</b>: {result.size:,} bytes, of which {integers:.0f} % are codes of weights; {found}",
        f"activations have {result.kept} bit{'s' * (result.kept > 1)} too, and the norm statistics are measured anew",
    )


def drawn(networks: Mapping[str, Stripped], file: Mapping[str, int]) -> Drawing:
    """Draw the picture for these networks; the planes are those of the last layer of the first one."""
    first = next(iter(networks.values()))
    bits = first.planes(list(first.layers)[-1])
    images = first.data.test.images[shown(first.data)]
    return picture(bits, images, list(networks), sum(file.values()))


def still(networks: Mapping[str, Stripped], file: Mapping[str, int], kept: int) -> Figure:
    """Draw what is left with some planes once, as a figure that is labelled with what it shows."""
    return drawn(networks, file).still(compute(networks, file, kept))


def bit_planes(networks: Mapping[str, Stripped], file: Mapping[str, int]) -> LiveFigure:
    """The widget: choose how many planes are kept, by the slider or by a click on the last of them.

    Args:
        networks: by title, all of them with the same data.
        file: the bytes of the file with all planes, as `Stripped.file` returns them.
    """
    kept, drawing = slider("planes that are kept", PLANES // 2, 1, PLANES), drawn(networks, file)
    live = LiveFigure({"kept": kept}, lambda kept: compute(networks, file, kept), drawing, words=describe)

    def keep(count: float) -> None:
        kept.value = int(np.clip(count, 1, PLANES))

    label = "the planes that are kept: click the last of them, or move it with the arrow keys"
    live.touch(drawing.figure.axes[0], label, lambda x, _y: keep(x + 1), lambda right, up: keep(kept.value + right))
    return live
