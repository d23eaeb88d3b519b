"""Lesson 04: the accuracy at all pairs as a map, and one pair of it run for real."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from torch import nn

from mebqat_lite.bits import FULL, WIDTHS, Bits, BitsLike
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.explorer import ExplorerResult, image_panel
from mebqat_lite.course.widgets.explorer import compute as run
from mebqat_lite.course.widgets.explorer import describe as describe_run
from mebqat_lite.course.widgets.svg import Style
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.measure import looks

if TYPE_CHECKING:
    import pandas as pd

CIVIDIS = colormaps["cividis"]
LEFT, TOP, WIDE, HIGH = 58, 52, 38, 26  # pixels: corner of the map, size of a cell
RIM, CORE = Style(svg.BLACK, width=4), Style(looks.WHITE, width=1.4)
Range = tuple[float, float]


@dataclass(frozen=True)
class PairMapResult:
    """One network: its accuracy in percent at every measured pair, and one pair run on all test images."""

    method: str
    cells: dict[Bits, float]
    here: ExplorerResult

    @property
    def mean(self) -> float:
        """Mean accuracy over the measured pairs, in percent."""
        known = [value for value in self.cells.values() if math.isfinite(value)]
        return sum(known) / len(known)

    @property
    def lowest(self) -> tuple[Bits, float]:
        """The pair of lowest accuracy; of two, the one with fewer bits."""
        known = {bits: value for bits, value in self.cells.items() if math.isfinite(value)}
        return min(sorted(known.items()), key=lambda item: item[1])


def compute(method: str, model: nn.Module, frame: pd.DataFrame, data: Data, bits: BitsLike) -> PairMapResult:
    """The map of a frame that `evaluate.grid` made, and the model at one pair, run now.

    Raises:
        ValueError: a frame of another norm policy than ``recalibrated``, under which the pair is run.
    """
    policy = frame.attrs.get("norm_stats")
    if policy != "recalibrated":
        raise ValueError(f"the grid of {method} must be one of recalibrated norm statistics, not {policy}")
    rows = zip(frame["w"], frame["a"], frame["mean"], strict=True)
    cells = {Bits(int(w), int(a)): float(mean) for w, a, mean in rows}
    return PairMapResult(method, cells, run(model, data, bits))


def picture(result: PairMapResult, limits: Range, test: Split) -> str:
    """The map on a scale of colours between ``limits``, in percent, and ten images with the answers, as SVG."""
    here, (worst, value) = result.here, result.lowest
    wrong = sum(a != b for a, b in zip(here.predictions, here.labels, strict=True))
    state = (
        f"{result.method} at {here.bits}: accuracy {here.accuracy:.1f} %; mean over {len(result.cells)} pairs "
        f"{result.mean:.1f} %, lowest {value:.1f} % at {worst}; {wrong} of the {len(here.labels)} images wrong"
    )
    parts = [_map(result, limits), _scale(limits), _frame(here.bits), image_panel(here, test)]
    return svg.figure(800, 372, state, *parts)


def _corner(bits: Bits) -> tuple[float, float]:
    """The upper left corner of a pair's cell: activations to the right, weights upwards."""
    column, row = WIDTHS.index(bits.a), len(WIDTHS) - 1 - WIDTHS.index(bits.w)
    return LEFT + WIDE * column, TOP + HIGH * row


def _map(result: PairMapResult, limits: Range) -> str:
    parts = [svg.text(LEFT, 18, f"{result.method}: accuracy (%) at every pair", size=14)]
    for bits, value in result.cells.items():
        (x, y), fill = _corner(bits), _colour(value, limits)
        if math.isfinite(value):
            parts.append(svg.tag("rect", x=x, y=y, width=WIDE, height=HIGH, fill=fill, stroke="#fff"))
            ink = looks.ink(to_rgb(fill))
            parts.append(svg.text(x + WIDE / 2, y + HIGH / 2 + 4, f"{value:.1f}", "middle", 11, ink))
    middle = TOP + HIGH * len(WIDTHS) / 2
    for i, width in enumerate(WIDTHS):
        name = "FP" if width == FULL else str(width)
        parts.append(svg.text(LEFT + WIDE * (i + 0.5), TOP + HIGH * len(WIDTHS) + 16, name, "middle", 11.5))
        parts.append(svg.text(LEFT - 8, TOP + HIGH * (len(WIDTHS) - i - 0.5) + 4, name, "end", 11.5))
    parts.append(svg.text(LEFT + WIDE * len(WIDTHS) / 2, TOP + HIGH * len(WIDTHS) + 38, "activation bits", "middle"))
    turn = f"translate(22 {svg.num(middle)}) rotate(-90)"
    return "".join(parts) + svg.tag("g", svg.text(0, 0, "weight bits", "middle"), transform=turn)


def _scale(limits: Range, steps: int = 24) -> str:
    """The colours with the accuracies at their two ends."""
    low, high = limits
    width, parts = 110 / steps, [svg.text(LEFT + 36, 40, f"{low:.0f} %", "end", 11.5)]
    for i in range(steps):
        fill = _colour(low + (high - low) * i / (steps - 1), limits)
        parts.append(svg.tag("rect", x=LEFT + 42 + width * i, y=30, width=width + 0.3, height=12, fill=fill))
    return "".join([*parts, svg.text(LEFT + 158, 40, f"{high:.0f} % (one scale for all methods)", size=11.5)])


def _frame(bits: Bits) -> str:
    """A frame that is seen on dark and on light cells; dashed around a pair that is no candidate."""
    (x, y), dash = _corner(bits), "" if bits.is_candidate else "4 3"
    box: dict[str, Any] = {"x": x, "y": y, "width": WIDE, "height": HIGH}
    core = svg.tag("rect", **box, **CORE.paint) if bits.is_candidate else ""
    return svg.tag("rect", **box, **Style(RIM.colour, dash, width=RIM.width).paint) + core


def _share(value: float, limits: Range) -> float:
    """Where a value lies between the limits, 0 to 1."""
    low, high = limits
    return min(max((value - low) / (high - low), 0.0), 1.0) if math.isfinite(value) else 0.0


def _colour(value: float, limits: Range) -> str:
    """The colour of a value on the scale of `boards.board`."""
    return to_hex(CIVIDIS(_share(value, limits)))


def describe(result: PairMapResult) -> str:
    """The numbers of a result, as HTML."""
    worst, value = result.lowest
    line = (
        f"<b>{escape(result.method)}</b> over {len(result.cells)} pairs: mean {result.mean:.1f} %, "
        f"lowest {value:.1f} % at {worst}"
    )
    return card(line) + describe_run(result.here, result.method)


def pair_map(models: Mapping[str, nn.Module], frames: Mapping[str, pd.DataFrame], data: Data) -> Live:
    """The widget for models by title, the grids measured from them (recalibrated), and the data.

    Raises:
        ValueError: models and frames with different titles.
    """
    if set(models) != set(frames):
        raise ValueError(f"models {sorted(models)} and frames {sorted(frames)} must have the same titles")
    lowest = min(float(frame["mean"].min()) for frame in frames.values())
    limits = (min(10 * math.floor(lowest / 10), 90), 100)

    def render(method: str, w: int, a: int) -> str:
        result = compute(method, models[method], frames[method], data, Bits(w, a))
        return picture(result, limits, data.test) + describe(result)

    return Live(_controls(list(models)), render)


def _controls(titles: list[str]) -> dict[str, ipywidgets.Widget]:
    widths = [("FP" if width == FULL else str(width), width) for width in WIDTHS]
    return {
        "method": buttons("method", titles, titles[-1]),
        "w": labelled("weights (bits)", ipywidgets.SelectionSlider(options=widths, value=2)),
        "a": labelled("activations (bits)", ipywidgets.SelectionSlider(options=widths, value=2)),
    }
