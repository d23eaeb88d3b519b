"""Lesson 07: stored comparisons, methods beside methods: accuracy with its intervals, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets
from matplotlib.ticker import MaxNLocator

from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.experiments.jobs import Variant
from mebqat_lite.measure.results import is_known
from mebqat_lite.methods import METHODS

METRICS = {
    "recalibrated": "accuracy, recalibrated norms",
    "native": "accuracy, own norms",
    "minus": "minus QAT",
    "backprops": "back-propagations",
}
LABELS = {
    "recalibrated": "accuracy (%)",
    "native": "accuracy (%)",
    "minus": "accuracy minus dedicated QAT (points)",
    "backprops": "back-propagations in all",
}
DIAGONAL = ("W1A1", "W2A2", "W3A3", "W4A4", "W5A5", "W6A6", "W7A7", "W8A8", "FP")
DELIVERED = range(1, 11)  # pairs
MOST_LEFT_OUT = 4
Result = Mapping[str, Any]  # of `compare.compare`


@dataclass(frozen=True)
class Point:
    """A mark: its place among the ticks, the value, and the half-width of its 95 % interval (NaN: none)."""

    place: int
    mean: float
    half: float


@dataclass(frozen=True)
class Comparison:
    """One metric of one experiment: ``rows[method]`` over ``ticks``, pairs or numbers of delivered pairs."""

    metric: str
    ticks: list[str]
    rows: dict[str, list[Point]]
    seeds: int
    budget: str

    @property
    def over_pairs(self) -> bool:
        """Whether the ticks are bitwidth pairs."""
        return self.metric != "backprops"


def compute(
    result: Result,
    metric: str = "recalibrated",
    methods: Sequence[str] | None = None,
    lowest: int = 0,
    highest: int = 0,
) -> Comparison:
    """What an experiment found, in one metric.

    Args:
        result: a stored comparison, in the schema of `mebqat_lite.measure.results`.
        metric: one of `METRICS`. Accuracies are in percent, on test data.
        methods: those to show, in the experiment's order; by default all.
        lowest: so many ticks are left out on the left, but never the last one.
        highest: the same on the right.

    Raises:
        ValueError: there is no such metric, or the comparison did not measure accuracies.
    """
    if metric not in METRICS:
        raise ValueError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    if (measure := result.get("measure", LABELS["recalibrated"])) != LABELS["recalibrated"]:
        raise ValueError(f"this widget shows {LABELS['recalibrated']}, not {measure}: take another comparison")
    cells = _backprops(result) if metric == "backprops" else _accuracies(result, metric)
    known = {tick for row in cells.values() for tick in row}
    ticks = [tick for tick in (*DIAGONAL, *map(str, DELIVERED)) if tick in known]
    first = min(lowest, max(len(ticks) - 1, 0))
    ticks = ticks[first : max(len(ticks) - highest, first + 1)]
    rows = {
        name: [Point(i, row[tick]["mean"], _half(row[tick])) for i, tick in enumerate(ticks) if tick in row]
        for name, row in cells.items()
        if methods is None or name in methods
    }
    seeds = max(int(cell["n"]) for row in result["accuracy"].values() for cell in row.values())
    return Comparison(metric, ticks, rows, seeds, result["budget"])


def _half(cell: Mapping[str, Any]) -> float:
    half = cell.get("ci95")
    return half if half is not None and is_known(half) else math.nan


def _accuracies(result: Result, metric: str) -> dict[str, dict[str, Any]]:
    """Cells by method and pair; without those that were not measured."""
    table = result["native"]["accuracy"] if metric == "native" else result["accuracy"]
    if metric == "minus":
        table = _minus(result)
    return {name: {b: c for b, c in row.items() if is_known(c["mean"])} for name, row in table.items()}


def _minus(result: Result) -> dict[str, dict[str, Any]]:
    """Each method minus the dedicated networks, where there are some; a paired interval where it was stored."""
    ours, other = _rivals(result)
    dedicated, found = result["accuracy"].get(other, {}), {}
    for name, row in result["accuracy"].items():
        if name != other:
            found[name] = {
                b: {"mean": row[b]["mean"] - dedicated[b]["mean"]}
                for b in dedicated
                if b in row and is_known(row[b]["mean"])
            }
    return {**found, ours: result["paired"]["test"]} if ours in found else found


def _rivals(result: Result) -> tuple[str, str]:
    """The one network for all pairs and the dedicated ones whose paired difference was stored."""
    ours, other = result.get("rivals") or ("mebqat", "qat")
    return ours, other


def start_backprops(result: Result) -> int:
    """Back-propagations of the FP network that all methods of a comparison start from."""
    recipe = result["setup"]["recipe"]
    few = next((METHODS[Variant.parse(name).method].base for name in result["accuracy"]), "fp")
    steps = recipe["warm_steps"] or recipe["steps"]
    return int(steps * (recipe["tasks"] if few == "fomaml" else 1))


def _backprops(result: Result) -> dict[str, dict[str, Any]]:
    """What it takes to deliver 1 to 10 pairs: one network serves all, dedicated ones are trained for each."""
    other, start, found = _rivals(result)[1], start_backprops(result), {}
    for name, cost in result["costs"].items():
        fixed, each = cost["backprops"], 0.0
        if name.split("+")[0] == other.split("+")[0]:
            fixed, each = start, (cost["backprops"] - start) / cost["models"]
        found[name] = {str(k): {"mean": fixed + k * each} for k in DELIVERED}
    return found


# --- the picture -----------------------------------------------------------------------------------------------

OFF = ("ptq_naive", "any_precision_hard", "any_precision_soft", "any_precision_recursive")  # until they are asked for
ZERO, AREA = Style(svg.DARK, "5 4", width=1.2), (66.0, 74.0, 704.0, 262.0)
TICKS = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])


def title_of(name: str) -> str:
    """A method's title, with what a variant does differently."""
    method, *options = name.split("+")
    title = METHODS[method].title if method in METHODS else method
    return ", ".join([title, *options])


def picture(found: Comparison, title: str = "", left_out: tuple[int, int] = (0, 0)) -> str:
    """A comparison as SVG: means with their intervals, a line per method."""
    state = f"{title}: {METRICS[found.metric]} of {', '.join(map(title_of, found.rows)) or 'no method'}"
    state += f"; left out {left_out[0]} on the left, {left_out[1]} on the right"
    if not any(found.rows.values()):
        words = "dedicated QAT was not trained here" if found.rows else "choose at least one method"
        return svg.figure(800, 120, state, svg.text(400, 60, words, "middle", 15))
    low, high = _range(found)
    plot = Plot(AREA, (-0.4, len(found.ticks) - 0.6), (low, high))
    ticks = [(y, f"{y + 0.0:,.6g}") for y in TICKS.tick_values(low, high) if low <= y <= high]
    under = "bitwidths of weights and activations" if found.over_pairs else "delivered pairs"
    plot.axes(under, "", list(enumerate(found.ticks)), ticks)
    if low < 0 < high:
        plot.line(plot.x_range, [0, 0], ZERO)
    styles = svg.styles(found.rows)
    for index, (name, points) in enumerate(found.rows.items()):
        _draw(plot, points, styles[name], 0.07 * (index - (len(found.rows) - 1) / 2) * found.over_pairs)
    entries = [(title_of(name), styles[name]) for name in found.rows]
    name = svg.text(AREA[0] - 56, AREA[1] - 8, LABELS[found.metric], size=12)
    return svg.figure(800, 384, state, *plot.parts, name, svg.legend(66, 14, entries, 240, 3))


def _range(found: Comparison) -> tuple[float, float]:
    """From the lowest to the highest end of an interval, with some room; costs start at 0."""
    marks = [p for points in found.rows.values() for p in points]
    halves = [0.0 if math.isnan(p.half) else p.half for p in marks]
    low = min(p.mean - half for p, half in zip(marks, halves, strict=True))
    high = max(p.mean + half for p, half in zip(marks, halves, strict=True))
    room = 0.05 * (high - low) or 1.0
    if not found.over_pairs:
        return 0.0, high + 0.05 * high
    high = high + room if found.metric == "minus" else min(high + room, 100.5)
    return max(low, -30.0 if found.metric == "minus" else 0.0) - room, high


def _draw(plot: Plot, points: Sequence[Point], style: Style, shift: float) -> None:
    """A line through the means, with a capped bar for each interval."""
    bar = Style(style.colour, width=1.3)
    for p in points:
        if not math.isnan(p.half):
            x, top = plot.at(p.place + shift, p.mean + p.half)
            bottom = plot.at(0, p.mean - p.half)[1]
            plot.parts.append(svg.segment(x, top, x, bottom, bar))
            plot.parts += [svg.segment(x - 4, y, x + 4, y, bar) for y in (top, bottom)]
    plot.line([p.place + shift for p in points], [p.mean for p in points], style)


def describe(found: Comparison, result: Result, title: str = "") -> str:
    """What the picture shows, and what the methods cost, as HTML."""
    notes = {
        "recalibrated": f"norm statistics {result['norm_stats']}; bars: 95 % t-intervals over {found.seeds} seeds",
        "native": "each method's own norm policy; a method with norm sets has no value off its list",
        "minus": f"paired interval over {found.seeds} seeds where one is stored; the others are differences of means",
        "backprops": "with the FP network that all start from, counted once; QAT is trained anew for each pair",
    }
    lines = [f"<b>{escape(title)}</b>, budget: equal {escape(found.budget)}. {notes[found.metric]}"]
    costs = [f"{escape(title_of(name))} {result['costs'][name]['backprops']:,}" for name in found.rows]
    return card(*lines, f"back-propagations of the first seed: {', '.join(costs)}" if costs else "no method is chosen")


# --- the widget ------------------------------------------------------------------------------------------------


class MethodComparison(Live):
    """The widget for stored comparisons by title. A button per method; those without a part in one are hidden."""

    def __init__(self, results: Mapping[str, Result]) -> None:
        if not results:
            raise ValueError("no comparison: give at least one result by its title")
        self.results = dict(results)
        names = list(dict.fromkeys(name for result in results.values() for name in result["accuracy"]))
        rivals = {name for result in results.values() for name in _rivals(result)}
        off = {name for name in names if name in OFF or ("+" in name and name not in rivals)}
        self.shown = {name: _check(title_of(name), name not in off) for name in names}
        controls = _controls(list(results))
        super().__init__({**controls, **self.shown}, self._render)
        rows = [list(controls.values()), [ipywidgets.Label("methods"), *self.shown.values()]]
        boxes = [ipywidgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        self.children = [*boxes, *self.parts[1:]]

    def _render(self, experiment: str, metric: str, lowest: int, highest: int, **shown: bool) -> str:
        result = self.results[experiment]
        for name, check in self.shown.items():
            check.layout.display = None if name in result["accuracy"] else "none"
        chosen = [name for name in result["accuracy"] if shown[name]]
        found = compute(result, metric, chosen, lowest, highest)
        return picture(found, experiment, (lowest, highest)) + describe(found, result, experiment)


def _check(title: str, on: bool) -> ipywidgets.ToggleButton:
    return ipywidgets.ToggleButton(on, description=title, layout={"width": "auto"}, tooltip=f"show or hide {title}")


def _controls(titles: list[str]) -> dict[str, ipywidgets.Widget]:
    slider = ipywidgets.IntSlider
    return {
        "experiment": buttons("experiment", titles, titles[0]),
        "metric": buttons("show", [(words, name) for name, words in METRICS.items()], "recalibrated"),
        "lowest": labelled("leave out on the left (ticks)", slider(0, 0, MOST_LEFT_OUT)),
        "highest": labelled("leave out on the right (ticks)", slider(0, 0, MOST_LEFT_OUT)),
    }


def method_comparison(results: Mapping[str, Result]) -> MethodComparison:
    """The widget: ``{title: what compare returned, or a JSON file of it}``."""
    return MethodComparison(results)
