"""Lesson 08: one network as a packed file and as an ONNX file: real bytes, accuracy, and measured time."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets
import torch
from torch import Tensor, nn

from mebqat_lite import files
from mebqat_lite.bits import FP, Bits
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.datasets.base import Data
from mebqat_lite.deploy import onnx_export, onnx_run, packed
from mebqat_lite.deploy.onnx_run import Latency
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.tensors import as_float

PAIRS = [FP, *(Bits(b, b) for b in range(1, 9))]  # in the order of measuring: FP is what the others are compared with
FORMS = {"packed": "packed file, in PyTorch", "onnx": "ONNX file, in ONNX Runtime"}
BATCHES = (1, 64)
RUNS = 20


@dataclass(frozen=True)
class Row:
    """What was measured at one pair; ``bytes``, ``accuracy`` (percent) and ``latency[batch]`` have a key per form."""

    bits: Bits
    bytes: dict[str, int]
    codes: int  # bytes of the packed file that are codes
    kind: str  # the ONNX type of the weights
    accuracy: dict[str, float]
    latency: dict[int, dict[str, Latency]]  # over full precision in the same form


def measure(model: nn.Module, data: Data) -> Iterator[Row]:
    """Write both files at each of `PAIRS`, FP first, and run them on the test images; the files are then gone.

    Norm statistics that the model lacks are measured on the training images and stay with it.
    """
    data.test.of_classes("the widget of files")
    recalibrate(model, data.train.images, PAIRS)
    test = as_float(data.test.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for pair in PAIRS:
            packed.save_packed(model, folder / f"{pair}.safetensors", pair)
            stored = onnx_export.export_onnx(model, folder / f"{pair}.onnx", pair, test.shape[1:])
            yield _row(folder, pair, test, data.test.labels, stored)


def _row(folder: Path, pair: Bits, test: Tensor, labels: Tensor, stored: onnx_export.Exported) -> Row:
    """The files of one pair, beside those of FP."""
    path, graph = folder / f"{pair}.safetensors", folder / f"{pair}.onnx"
    ours, other = (_runner(folder / f"{bits}.safetensors") for bits in (pair, FP))
    tensors, _ = files.read(path, packed.KIND)
    codes = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("codes/"))  # a byte each
    logits = {"packed": ours(test), "onnx": onnx_run.answers(graph, test)}
    return Row(
        pair,
        {"packed": path.stat().st_size, "onnx": graph.stat().st_size},
        codes,
        stored.layers[0].weights,
        {form: 100 * float((out.argmax(1) == labels).double().mean()) for form, out in logits.items()},
        {
            batch: {
                "packed": interleaved(ours, other, test[:batch]),
                "onnx": onnx_run.latency(graph, folder / f"{FP}.onnx", test[:batch], runs=RUNS),
            }
            for batch in BATCHES
        },
    )


def _runner(path: Path) -> Callable[[Tensor], Tensor]:
    """A packed network as a function from images to logits."""
    return torch.no_grad()(packed.load_packed(path)[0])


def interleaved(
    ours: Callable[[Tensor], Any], other: Callable[[Tensor], Any], images: Tensor, runs: int = RUNS
) -> Latency:
    """The time of ``ours`` over that of ``other`` on one batch of images, measured in turns after six of each.

    Who goes first changes from turn to turn: on a busy machine the first of two runs may wait for the processor.
    """
    times = []
    for turn in range(runs + 6):
        first, second = (ours, other) if turn % 2 == 0 else (other, ours)
        pair = _milliseconds(first, images), _milliseconds(second, images)
        times.append(pair if turn % 2 == 0 else pair[::-1])
    low, middle, high = statistics.quantiles([a / b for a, b in times[6:]], n=4, method="inclusive")
    a, b = (statistics.median(column) for column in zip(*times[6:], strict=True))
    return Latency(middle, (low, high), (a, b), batch=len(images), runs=runs)


def _milliseconds(run: Callable[[Tensor], Any], images: Tensor) -> float:
    started = time.perf_counter()
    run(images)
    return 1000 * (time.perf_counter() - started)


@dataclass(frozen=True)
class DeployResult:
    """One pair among all that are measured so far; ``here`` is None if it is not yet among them."""

    bits: Bits
    batch: int
    rows: tuple[Row, ...]
    here: Row | None

    @property
    def full(self) -> Row | None:
        """Full precision, if it is measured."""
        return next((row for row in self.rows if row.bits == FP), None)

    def saved(self, form: str) -> float:
        """What a file saves against the same form at full precision, in percent."""
        if self.here is None or self.full is None:
            raise ValueError(f"{self.bits} is not measured yet")
        return 100 * (1 - self.here.bytes[form] / self.full.bytes[form])


def compute(rows: Mapping[Bits, Row], bits: Bits, batch: int = BATCHES[-1]) -> DeployResult:
    """What is shown at a pair and a batch size: nothing is measured here."""
    if bits not in PAIRS or batch not in BATCHES:
        raise ValueError(f"choose one of {', '.join(map(str, PAIRS))} and a batch of {BATCHES}, not {bits}, {batch}")
    return DeployResult(bits, batch, tuple(rows[pair] for pair in _shown() if pair in rows), rows.get(bits))


def _shown() -> list[Bits]:
    """The pairs as they are drawn: FP last."""
    return [*PAIRS[1:], FP]


# --- the picture -----------------------------------------------------------------------------------------------

STYLES = {"packed": Style(svg.BLUE, "", "circle"), "onnx": Style(svg.VERMILION, "6 3", "diamond", size=5)}
ONE, HERE = Style(svg.BLACK, "2 3", width=1.3), Style(svg.DARK, "5 4", width=1.2)
REST = svg.SKY
TICKS = [(place, "FP" if pair == FP else str(pair.w)) for place, pair in enumerate(_shown())]


def picture(result: DeployResult) -> str:
    """Bytes at the pair on the left; accuracy and time over all pairs on the right; as SVG."""
    parts = [_sizes(result), _accuracies(result), _times(result)]
    entries = [(words, STYLES[form]) for form, words in FORMS.items()]
    return svg.figure(800, 400, _words(result), *parts, svg.legend(424, 12, entries, 180, 2))


def _words(result: DeployResult) -> str:
    row = result.here
    if row is None:
        return f"{result.bits}, batch {result.batch}: not measured yet ({len(result.rows)} of {len(PAIRS)} pairs are)"
    each = [
        f"{form} {row.bytes[form]:,} bytes, accuracy {row.accuracy[form]:.1f} %, "
        f"time {row.latency[result.batch][form].ratio:.2f} of FP"
        for form in FORMS
    ]
    return f"{result.bits}, batch {result.batch}: {'; '.join(each)}"


def _sizes(result: DeployResult) -> str:
    """Bars of both files at the pair, and of the same at FP."""
    parts = [svg.text(12, 22, f"Bytes of the file at {result.bits}", size=14)]
    if result.here is None or result.full is None:
        return "".join([*parts, svg.text(12, 60, "not measured yet", size=13)])
    longest = max(result.full.bytes.values())
    y = 48.0
    for form, words in FORMS.items():
        for row, name in ((result.here, str(result.bits)), (result.full, "FP")):
            size, colour = row.bytes[form], STYLES[form].colour
            wide = 340 * size / longest
            parts.append(svg.text(12, y + 8, f"{words}, {name}: {size:,} bytes", size=12))
            parts.append(svg.tag("rect", x=12, y=y + 14, width=max(wide, 1), height=16, fill=colour))
            if form == "packed":
                rest = wide * (1 - row.codes / size)
                parts.append(svg.tag("rect", x=12 + wide - rest, y=y + 14, width=rest, height=16, fill=REST))
            y += 50
        y += 12
    parts.append(svg.tag("rect", x=12, y=y, width=14, height=12, fill=STYLES["packed"].colour))
    parts.append(svg.text(32, y + 10, "integers of the weights", size=11.5))
    parts.append(svg.tag("rect", x=172, y=y, width=14, height=12, fill=REST))
    parts.append(svg.text(192, y + 10, "all that stays float, and header", size=11.5))
    saved = ", ".join(f"{form} {result.saved(form):.1f} %" for form in FORMS)
    return "".join([*parts, svg.text(12, y + 36, f"saved against FP: {saved}", size=12.5)])


def _accuracies(result: DeployResult) -> str:
    found = [value for row in result.rows for value in row.accuracy.values()]
    low = 5 * (int(min([95, *found])) // 5)
    plot = Plot((470, 42, 310, 118), (-0.4, len(PAIRS) - 0.6), (low, 100))
    plot.axes("", "accuracy (%)", TICKS, [(y, str(y)) for y in range(low, 101, 5 if low > 79 else 20)])
    for form, style in STYLES.items():
        _series(plot, result, [row.accuracy[form] for row in result.rows], style, hollow=form == "onnx")
    return _mark(plot, result)


def _times(result: DeployResult) -> str:
    cells = [row.latency[result.batch] for row in result.rows]
    high = max([2.0, *(cell[form].quartiles[1] for cell in cells for form in FORMS)])
    top = min(-(-high // 1), 6)  # a busy machine has outliers: they are cut at the border
    plot = Plot((470, 208, 310, 136), (-0.4, len(PAIRS) - 0.6), (0, top))
    ticks = [(y, f"{y:g}") for y in range(0, int(top) + 1, 1 if top < 8 else 4)]
    plot.axes("weight bits = activation bits", "time over FP", TICKS, ticks)
    plot.line(plot.x_range, [1, 1], ONE)
    for form, style in STYLES.items():
        for place, cell in zip(_places(result), cells, strict=True):
            low, up = cell[form].quartiles
            plot.parts.append(svg.segment(*plot.at(place, low), *plot.at(place, up), Style(style.colour, width=4)))
        _series(plot, result, [cell[form].ratio for cell in cells], style, hollow=form == "onnx")
    words = f"batch {result.batch}; bars: the middle half of {RUNS} interleaved runs"
    return _mark(plot, result) + svg.text(470, 199, words, size=11.5)


def _places(result: DeployResult) -> list[int]:
    return [_shown().index(row.bits) for row in result.rows]


def _series(plot: Plot, result: DeployResult, values: list[float], style: Style, hollow: bool) -> None:
    """A line and its markers; hollow ones let the others be seen under them."""
    places = _places(result)
    plot.line(places, values, Style(style.colour, style.dash))
    plot.parts += [svg.marker(*plot.at(*dot), style, hollow) for dot in zip(places, values, strict=True)]


def _mark(plot: Plot, result: DeployResult) -> str:
    place = _shown().index(result.bits)
    plot.line([place, place], plot.y_range, HERE)
    return "".join(plot.parts)


def describe(result: DeployResult) -> str:
    """The numbers of a result, as HTML."""
    row = result.here
    if row is None:
        return card(f"<b>{result.bits}</b>: not measured yet")
    times = [f"{FORMS[form]}: {row.latency[result.batch][form]}" for form in FORMS]
    return card(
        f"<b>{result.bits}</b>: weights in ONNX are {row.kind}; codes are {row.codes:,} of the packed file's "
        f"{row.bytes['packed']:,} bytes",
        f"time over FP in the same program, with its middle half, one thread: {'; '.join(times)}",
    )


# --- the widget ------------------------------------------------------------------------------------------------


class Deployment(Live):
    """The widget. It measures in the background, pair by pair; a move only draws what is measured."""

    def __init__(self, model: nn.Module, data: Data) -> None:
        self.rows: dict[Bits, Row] = {}
        self.progress = ipywidgets.IntProgress(0, 0, len(PAIRS), description="measuring")
        widths = [("FP" if pair == FP else str(pair.w), pair) for pair in _shown()]
        controls = {
            "bits": labelled("bits", ipywidgets.SelectionSlider(options=widths, value=Bits(2, 2))),
            "batch": buttons("images at once", list(BATCHES), BATCHES[-1]),
        }
        super().__init__(controls, functools.partial(_render, self.rows))
        self.children = [*self.parts, self.progress]
        self.work = self._measure(model, data)
        self.in_turns(self.work)

    def _measure(self, model: nn.Module, data: Data) -> Iterator[None]:
        for row in measure(model, data):
            self.rows[row.bits] = row
            self.progress.value += 1
            self.update()
            yield
        self.progress.layout.display = "none"

    def finish(self) -> dict[Bits, Row]:
        """Measure at once what is left, and return all rows by pair."""
        for _ in self.work:
            pass
        return self.rows


def _render(rows: Mapping[Bits, Row], bits: Bits, batch: int) -> str:
    result = compute(rows, bits, batch)
    return picture(result) + describe(result)


def deployment(model: nn.Module, data: Data) -> Deployment:
    """The widget for a quantized network and the data that it is tested on."""
    return Deployment(model, data)
