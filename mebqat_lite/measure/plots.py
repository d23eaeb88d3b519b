"""Draw results as figures that are as wide as a page, in the look that `looks` gives to every method."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from mebqat_lite.files import replace

# All figures are found in this module, also those of numbers on coloured cells.
from mebqat_lite.measure.boards import ACCURACY as ACCURACY
from mebqat_lite.measure.boards import Board as Board
from mebqat_lite.measure.boards import board as board
from mebqat_lite.measure.boards import heat_map as heat_map
from mebqat_lite.measure.boards import tables as tables
from mebqat_lite.measure.looks import (
    BLACK,
    BLUE,
    DARK,
    GREY,
    LOOKS,
    ORANGE,
    PAGE,
    PALE,
    PIXELS,
    SKY,
    VERMILION,
    WHITE,
    Look,
    looks,
    method_of,
    pale,
)
from mebqat_lite.measure.looks import style as style
from mebqat_lite.measure.results import Table, is_known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from torch import Tensor

APART = {"qat", "pn_qat", "fomaml_qat"}  # the methods that train another network for each pair


def accuracy_curves(
    accuracy: Table,
    pairs: Sequence[str],
    titles: Mapping[str, str],
    title: str = "",
    measure: str = ACCURACY,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Plot accuracy or another ``measure`` over bitwidth pairs, with a line or points and intervals for each method.

    A method that trains another network for each pair has points without a line, and the legend says so. All is drawn
    into ``figure``, which may be a part of another one; by default into a new one.
    """
    with style():
        drawn: Any = figure or plt.figure(figsize=(PAGE, 4.2))
        axes = drawn.subplots()
        for index, (method, look) in enumerate(looks(accuracy).items()):
            shift = 0.06 * (index - (len(accuracy) - 1) / 2)  # so that intervals do not cover each other
            label = titles.get(method, method)
            if method_of(method) in APART:
                look, label = look | {"linestyle": "none"}, f"{label}: a network for each pair"
            _draw(axes, accuracy[method], pairs, shift, label, look)
        axes.set_xticks(range(len(pairs)), pairs)
        axes.set(xlabel="bitwidths of weights and activations", ylabel=measure, title=title)
        if measure == ACCURACY:
            axes.set_ylim(top=101)
        axes.legend(loc="lower right")
    return drawn


def _draw(
    axes: Axes, row: Mapping[str, dict[str, float]], pairs: Sequence[str], shift: float, label: str, look: dict
) -> None:
    """Draw one method: its means and intervals at the pairs where it was measured."""
    places = [i for i, pair in enumerate(pairs) if pair in row and is_known(row[pair]["mean"])]
    cells = [row[pairs[i]] for i in places]
    halves = [cell["ci95"] if is_known(cell["ci95"]) else 0.0 for cell in cells]
    means, xs = [cell["mean"] for cell in cells], [i + shift for i in places]
    axes.errorbar(xs, means, halves if any(halves) else None, label=label, capsize=3, **look)


def beside(parts: Sequence[Callable[..., Any]], widths: Sequence[float], height: float, note: str) -> Figure:
    """Call each of ``parts`` with its place in one ``figure``, beside each other, and write a note underneath.

    The widths of the places and the height are in inches.
    """
    with style():
        figure = plt.figure(figsize=(sum(widths), height))
        places: Any = figure.subfigures(1, len(parts), width_ratios=widths)
        for draw, place in zip(parts, places, strict=True):
            draw(figure=place)
        figure.supxlabel(note, fontsize=10)
    return figure


def save(figure: Figure, path: str | Path, dpi: float | str = "figure") -> None:
    """Write a figure to a file, as PNG or in the format that the ending of its name says, and close it."""
    buffer, path = io.BytesIO(), Path(path)
    figure.savefig(buffer, format=path.suffix[1:] or "png", dpi=dpi, facecolor=WHITE, transparent=False)
    plt.close(figure)
    replace(path, buffer.getvalue())


def show(figure: Figure, alt: str = "") -> None:
    """Display a figure in a notebook on white, and close it.

    Args:
        figure: at most as wide as the page, `looks.PAGE` inches; a wider one is displayed smaller.
        alt: what the figure shows, in words for a reader who does not see it; by default the figure's label, in which
            the functions of `diagrams` leave such words.

    Raises:
        ValueError: there are no such words.
    """
    from IPython.display import Image, display

    words = alt or str(figure.get_label())
    if not words:
        raise ValueError("a figure needs alternative text: show(figure, alt=...) with what it shows")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS / PAGE, facecolor=WHITE, transparent=False)
    plt.close(figure)
    display(Image(buffer.getvalue(), format="png", alt=words, width=pixels(figure)))


def pixels(figure: Figure) -> int:
    """Compute the width in pixels that a figure has in a notebook, at most that of the page."""
    return round(PIXELS * min(figure.get_size_inches()[0] / PAGE, 1))


def images_row(images: Tensor, titles: Sequence[str], wrong: Sequence[bool] | None = None) -> Figure:
    """Show grey images, (count, 1, height, width), ten in a row, each with a title.

    The ``wrong`` ones get a red frame and a cross.
    """
    wide = min(len(titles), 10)
    tall = -(-len(titles) // wide)
    with style():
        each = min(0.85, PAGE / wide)
        figure, axes = plt.subplots(tall, wide, figsize=(each * wide, (each + 0.35) * tall), squeeze=False)
        for i, cell in enumerate(axes.flat):
            if i >= len(titles):
                cell.remove()
                continue
            bad = wrong is not None and wrong[i]
            cell.imshow(images[i, 0], cmap="gray_r", vmin=0, vmax=1)
            cell.set_title(("✗ " if bad else "") + titles[i], fontsize=10, color=VERMILION if bad else BLACK)
            _frame(cell, VERMILION if bad else PALE, bad)
    return figure


def _frame(cell: Axes, color: str, thick: bool) -> None:
    """Draw a frame around an image, and no ticks."""
    cell.set(xticks=[], yticks=[])
    for side in cell.spines.values():
        side.set(visible=True, color=color, linewidth=2 if thick else 0.8)


def staircases(x: Tensor, curves: Mapping[str, Tensor]) -> Figure:
    """Plot quantizers, one panel each: the output over the input ``x``, and the input itself as a dashed line."""
    with style():
        figure, axes = plt.subplots(1, len(curves), figsize=(PAGE, 2.8), squeeze=False, sharey=True)
        for cell, (name, y) in zip(axes[0], curves.items(), strict=True):
            cell.plot(x, x, color=GREY, linewidth=1, linestyle="--", label="input")
            cell.plot(x, y, color=BLUE, linewidth=2, drawstyle="steps-mid", label="output")
            cell.set(title=name, xlabel="input")
        axes[0][0].set_ylabel("output")
        _legend_beneath(figure, axes[0][0])  # in a panel it would cover a step
    return figure


def lines(
    x: Sequence[float | str],
    curves: Mapping[str, Sequence[float | None]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: bool = False,
    doubling: bool = False,
    mark: float | None = None,
) -> Figure:
    """Plot curves over a common axis, each in the look that `looks` gives to it, and a vertical line at ``mark``.

    With ``log`` the axis of the curves is logarithmic, and with ``doubling`` that of ``x``, in powers of 2.
    A value may be None or NaN where nothing is known. A curve without any value is left out.
    """
    curves = {name: y for name, y in curves.items() if any(map(is_known, y))}
    with style():
        figure, axes = plt.subplots(figsize=(PAGE, 3.6))
        for name, look in looks(curves).items():
            axes.plot(x, np.asarray(curves[name], dtype=float), markevery=max(1, len(x) // 12), label=name, **look)
        if mark is not None:
            axes.axvline(mark, color=BLACK, linewidth=1)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log else "linear")
        if doubling:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        if len(curves) > 1:
            axes.legend()
    return figure


def swings(path: Sequence[float], rounded: Sequence[float], threshold: float, target: float, title: str = "") -> Figure:
    """Show how a weight that is trained through a rounding swings around a threshold.

    Args:
        path: the weight before each step.
        rounded: what the quantizer makes of it, one value for each step, drawn as dots on its levels.
        threshold: where the rounded value jumps, as a dashed line.
        target: the value that training asks of the rounded weight, as a dotted line.
        title: what stands above the figure.
    """
    steps = range(len(path))
    with style():
        figure, axes = plt.subplots(figsize=(PAGE, 3.4))
        for level in sorted(set(rounded)):
            axes.axhline(level, color=PALE, linewidth=1)
        axes.axhline(threshold, color=DARK, linewidth=1, linestyle="--", label="threshold")
        if target != threshold:
            axes.axhline(target, color=DARK, linewidth=1.2, linestyle=":", label="target")
        axes.scatter(steps, rounded, s=22, color=VERMILION, marker="s", label="rounded, Q(w)", zorder=3)
        axes.plot(steps, path, color=BLUE, linewidth=1.6, label="weight, w", zorder=4)
        axes.set(xlabel="training step", ylabel="value", title=title)
        axes.grid(visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
    return figure


def histogram_with_levels(values: Tensor, levels: Mapping[str, Tensor]) -> Figure:
    """Show how values are distributed and, in one panel per name, the levels that replace them.

    The panels stand above each other on the same axes, so that equal values look equal.
    """
    with style():
        size = (PAGE, 0.6 + 1.15 * len(levels))
        figure, axes = plt.subplots(len(levels), 1, figsize=size, squeeze=False, sharex=True, sharey=True)
        for cell, (name, places) in zip(axes[:, 0], levels.items(), strict=True):
            cell.hist(values.flatten().numpy(), bins=60, color=SKY)
            for place in places.unique():
                cell.axvline(float(place), color=VERMILION, linewidth=1.5, linestyle="--")
            cell.set_title(name, loc="left", fontsize=10)
        axes[-1, 0].set_xlabel("weight; dashed: the levels")
        figure.supylabel("count", fontsize=10)
    return figure


def accuracy_over_cost(
    accuracy: Table, bitops: Mapping[str, int], titles: Mapping[str, str], measure: str = ACCURACY
) -> Figure:
    """Plot accuracy or another ``measure`` over the bit operations for one image, a point for each pair of a method."""
    with style():
        figure, axes = plt.subplots(figsize=(PAGE, 4.2))
        for name, look in looks(accuracy).items():
            row = accuracy[name]
            known = [pair for pair in row if pair in bitops and is_known(row[pair]["mean"])]
            x, y = [bitops[pair] for pair in known], [row[pair]["mean"] for pair in known]
            dots = {"markersize": 5, **look, "linestyle": "none", "alpha": 0.8}
            axes.plot(x, y, label=titles.get(name, name), **dots)
        axes.set(xscale="log", xlabel="bit operations of an image", ylabel=measure)
        axes.legend(loc="lower right")
    return figure


def intervals(groups: Mapping[str, Mapping[str, Mapping[str, float]]], xlabel: str, title: str = "") -> Figure:
    """Plot differences with their 95 % intervals, one row each, in named groups.

    A marker is filled if its interval does not contain zero; a legend beneath says so. One number without an interval
    is a cross.
    """
    rows = sum(len(group) + 1 for group in groups.values())
    with style():
        figure, axes = plt.subplots(figsize=(PAGE, 1.15 + 0.23 * rows))
        axes.axvline(0, color=BLACK, linewidth=1, linestyle="--")
        places, names, place = [], [], 0.0
        for name, cells in groups.items():
            for row, label in enumerate((name, *cells)):
                if row:
                    _draw_interval(axes, cells[label], place)
                places.append(place)
                names.append(label)
                place += 1
            place += 0.3
        heads = {name for name in groups if name in names}
        for tick in axes.set_yticks(places, names, fontsize=9):
            tick.label1.set_fontweight("bold" if tick.label1.get_text() in heads else "normal")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel=xlabel, title=title, ylim=(place - 0.5, -0.8))
        _legend_beneath(figure, axes, list(TOLD))
    return figure


TOLD: dict[str, Look] = {  # what an interval says, and how it is drawn
    "told apart: interval without zero": {"fmt": "o", "color": BLUE},
    "not told apart: interval with zero": {"fmt": "D", "color": GREY, "markerfacecolor": WHITE},
    "no interval": {"fmt": "x", "color": DARK, "markeredgewidth": 1.8},
}


def _draw_interval(axes: Axes, cell: Mapping[str, float], place: float) -> None:
    """Draw one row: the mean with its interval, in the look of what the interval says."""
    half = cell["ci95"] if is_known(cell["ci95"]) else None
    words = list(TOLD)[2 if half is None else int(abs(cell["mean"]) <= half)]
    label = "" if words in axes.get_legend_handles_labels()[1] else words
    axes.errorbar(cell["mean"], place, xerr=half, capsize=3, label=label, **TOLD[words])


def stacked(x: Tensor, columns: Mapping[str, Mapping[str, Mapping[str, Tensor]]], xlabel: str = "input x") -> Figure:
    """Plot curves in columns of panels that share the axis ``x``: a column per title, a panel per label.

    ``columns[title][y label][name]`` holds the values of one curve, of the shape of ``x``. If the curves have the same
    names in all panels that have several, one legend stands beneath the panels, where it covers no curve.
    """
    rows = max(len(panels) for panels in columns.values())
    legends: dict[tuple[str, ...], list[Axes]] = {}  # names of curves -> the panels that have them
    with style():
        size = (PAGE, 0.9 + 1.6 * rows)
        figure, axes = plt.subplots(rows, len(columns), figsize=size, squeeze=False, sharex=True)
        for column, (title, panels) in zip(axes.T, columns.items(), strict=True):
            for cell, (label, curves) in zip(column, panels.items(), strict=True):
                for name, look in looks(curves).items():
                    cell.plot(x, curves[name], label=name, **look | {"marker": ""})
                cell.set(ylabel=label)
                if len(curves) > 1:
                    legends.setdefault(tuple(curves), []).append(cell)
            column[0].set_title(title)
            column[-1].set_xlabel(xlabel)
        if len(legends) == 1:
            figure.set_figheight(size[1] + 0.3)
            _legend_beneath(figure, next(iter(legends.values()))[0])
        else:
            for cell in itertools.chain(*legends.values()):
                cell.legend()
    return figure


def channel(values: Mapping[str, Tensor], used: Mapping[str, tuple[float, float]], title: str = "") -> Figure:
    """Show what one channel of a norm reads and what it makes of it, a row of two panels for each name.

    On the left is the histogram of what arrives, with the mean and the deviation that the norm uses. On the right is
    what leaves the norm: the values minus that mean, divided by that deviation. It should lie around 0 and spread by 1.
    The axes leave out the outermost 0.1 % of the values at each end.

    Args:
        values: what arrives in the channel, of any shape, by name, such as that of a pair.
        used: the mean and the standard deviation that the norm uses, by the same names.
        title: what stands above all.
    """
    with style():
        size = (PAGE, 0.9 + 1.2 * len(values))
        figure, axes = plt.subplots(len(values), 2, figsize=size, squeeze=False, sharex="col", sharey="col")
        arrives = {name: part.flatten().double().numpy() for name, part in values.items()}
        leaves = {name: (part - used[name][0]) / used[name][1] for name, part in arrives.items()}
        for cells, parts in zip(axes.T, (arrives, leaves), strict=True):
            low, high = np.quantile(np.concatenate([*parts.values()]), [0.001, 0.999])
            for cell, (name, part) in zip(cells, parts.items(), strict=True):
                _spread(cell, part, np.linspace(low, high, 51), *(used[name] if parts is arrives else (0.0, 1.0)))
        for cell, name in zip(axes[:, 0], values, strict=True):
            cell.set_ylabel(name)
        axes[0, 0].set_title("what arrives, and the norm's mean ± deviation")
        axes[0, 1].set_title("what leaves, and 0 ± 1")
        axes[-1, 0].set_xlabel("value")
        axes[-1, 1].set_xlabel("value in deviations")
        if title:
            figure.suptitle(title, fontsize=11)
    return figure


def _spread(cell: Axes, values: np.ndarray, edges: np.ndarray, mean: float, deviation: float) -> None:
    """Draw the shares of values in the bins between ``edges``, and a mean with its deviation as a line in a band."""
    cell.hist(values, bins=edges.tolist(), color=SKY, weights=np.full(len(values), 100 / len(values)))
    cell.axvspan(mean - deviation, mean + deviation, color=pale(ORANGE, 0.8), linewidth=0, zorder=0.5)
    cell.axvline(mean, color=VERMILION, linewidth=2)
    cell.yaxis.set_major_formatter("{x:g} %")


def code_histograms(counts: Mapping[str, Tensor], lowest: int) -> Figure:
    """Show how many weights have each integer code, one panel per name.

    ``counts`` are (codes,) each; their first entry counts the code ``lowest``.
    """
    used = [c.nonzero()[:, 0] + lowest for c in counts.values()]
    low, high = min(int(u.min()) for u in used), max(int(u.max()) for u in used)
    with style():
        figure, axes = plt.subplots(1, len(counts), figsize=(PAGE, 2.8), squeeze=False, sharex=True)
        for cell, (name, count) in zip(axes[0], counts.items(), strict=True):
            cell.bar(range(lowest, lowest + len(count)), count, width=1.0, color=BLUE, edgecolor=WHITE, linewidth=0.3)
            cell.set(title=name, xlabel="code", xlim=(low - 2, high + 2))
        axes[0][0].set_ylabel("weights")
    return figure


def episode(support: Tensor, query: Tensor, answers: Tensor | None = None) -> Figure:
    """Show an episode with a row for each class: support images on the left, queries on the right.

    Args:
        support: (N, K, 1, height, width).
        query: (N, Q, 1, height, width).
        answers: the predicted classes, (N, Q), from 0 to N - 1. They are written under the queries, counted from 1;
            wrong ones get a red frame and a cross.
    """
    (ways, shots), count = support.shape[:2], query.shape[1]
    both = np.concatenate([support, query], 1)  # (N, K + Q, 1, height, width)
    with style():
        each = min(0.72, (PAGE - 1.2) / (shots + count))
        size = (each * (shots + count) + 1.2, (each + (0.06 if answers is None else 0.23)) * ways + 0.3)
        figure, axes = plt.subplots(ways, shots + count, figsize=size, squeeze=False)
        for (n, k), cell in np.ndenumerate(axes):
            answer = None if answers is None or k < shots else int(answers[n, k - shots])
            bad = answer not in (None, n)
            cell.imshow(both[n, k, 0], cmap="gray_r", vmin=0, vmax=1)
            _frame(cell, VERMILION if bad else BLUE if k < shots else PALE, bad or k < shots)
            if answer is not None:
                words = f"{'✗ ' if bad else ''}{answer + 1}"
                cell.set_xlabel(words, fontsize=9, color=VERMILION if bad else BLACK, labelpad=1)
            if k == 0:
                cell.set_ylabel(f"class {n + 1}", rotation=0, ha="right", va="center", fontsize=9)
        axes[0][0].set_title("support", fontsize=10)
        axes[0][shots].set_title("query", fontsize=10)
    return figure


def paintings(
    pictures: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, float]],
    pairs: Sequence[str],
    title: str = "",
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Show pictures in a row for each method and a column for each pair, with the PSNR in dB underneath each.

    Args:
        pictures: ``pictures[method][pair]``, (height, width, 3) each, with values in [0, 1]. The names of the methods
            stand at the left; a pair that a method lacks leaves its place empty.
        measured: ``measured[method][pair]``, the PSNR in dB.
        pairs: the columns.
        title: what stands above all of them.
        figure: what to draw into, which may be a part of another figure; by default a new one.
    """
    with style():
        each = min(1.25, (PAGE - 1.3) / len(pairs))
        size = (1.3 + each * len(pairs), 0.3 + (each + 0.2) * len(pictures))
        drawn: Any = figure or plt.figure(figsize=size)
        axes = drawn.subplots(len(pictures), len(pairs), squeeze=False)
        for row, (method, painted) in zip(axes, pictures.items(), strict=True):
            for cell, pair in zip(row, pairs, strict=True):
                cell.set(xticks=[], yticks=[], frame_on=False)
                if pair in painted:
                    cell.imshow(painted[pair], interpolation="nearest")
                    cell.set_xlabel(f"{measured[method][pair]:.1f} dB", fontsize=9, labelpad=2)
            row[0].set_ylabel(method, rotation=0, ha="right", va="center", fontsize=10)
        for cell, pair in zip(axes[0], pairs, strict=True):
            cell.set_title(pair, fontsize=10)
        if title:
            drawn.suptitle(title, fontsize=11)
    return drawn


def adaptation(
    steps: Sequence[int],
    curves: Mapping[str, Mapping[str, Sequence[Mapping[str, float]]]],
    dedicated: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Plot accuracy over the steps of fine-tuning at one pair: a panel for each pair, a curve for each start.

    Args:
        steps: the numbers of steps, from 0 on.
        curves: ``curves[pair][start]``, a cell ``{"mean", "ci95"}`` in percent for each number of steps.
        dedicated: ``dedicated[pair]``, the cell of a network that was trained for this pair alone: a dashed line.
    """
    with style():
        figure, axes = plt.subplots(1, len(curves), figsize=(PAGE, 3.6), squeeze=False, sharey=True)
        places = range(len(steps))
        for cell, (pair, rows) in zip(axes[0], curves.items(), strict=True):
            for start, look in looks(rows).items():
                means, halves = ([each[key] for each in rows[start]] for key in ("mean", "ci95"))
                known = halves if all(map(is_known, halves)) else None
                cell.errorbar(places, means, known, label=start, capsize=3, **look)
            look = LOOKS["qat"] | {"marker": ""}
            cell.axhline(dedicated[pair]["mean"], label="QAT of its own", **look)
            cell.set_xticks(places, map(str, steps))
            cell.set(title=pair, xlabel="steps at this pair")
        axes[0][0].set_ylabel(ACCURACY)
        axes[0][-1].legend(loc="lower right")
    return figure


def spreads(
    samples: Mapping[str, Sequence[float]], marks: Mapping[str, float | None], xlabel: str, title: str = ""
) -> Figure:
    """Show how samples are distributed: a histogram for each name, one above the other on the same axis.

    Args:
        samples: values by name.
        marks: places by name, each a vertical line through all histograms, such as the truth and a reader's guess. One
            that is None is left out.
        xlabel: what the values are.
        title: what stands above the figure.
    """
    edges = _bins(np.concatenate([np.asarray(values, dtype=float) for values in samples.values()]))
    with style():
        size = (PAGE, 0.8 + 1.1 * len(samples))
        figure, axes = plt.subplots(len(samples), 1, figsize=size, squeeze=False, sharex=True, sharey=True)
        for cell, (name, values) in zip(axes[:, 0], samples.items(), strict=True):
            cell.hist(values, bins=edges, color=SKY, edgecolor=WHITE, linewidth=0.5)
            for (label, place), dash in zip(marks.items(), itertools.cycle(("-", "--", ":")), strict=False):
                if place is not None:
                    cell.axvline(place, color=BLACK, linestyle=dash, linewidth=1.8, label=label)
            cell.set_title(name, loc="left", fontsize=10)
            cell.set_yticks([])
        axes[-1, 0].set_xlabel(xlabel)
        _legend_beneath(figure, axes[0, 0])
        figure.suptitle(title, fontsize=11)
    return figure


def _bins(values: np.ndarray, most: int = 40) -> list[float]:
    """Choose the edges of at most about ``most`` bins, of which each holds equally many of the values that can occur.

    Accuracies come in steps, such as 5 points where 20 queries are asked. If the width of a bin were no multiple of
    them, some bins would hold two steps and others one, or a bar would not stand over its number.
    """
    known = np.unique(values.round(4))  # equal numbers that were computed in different ways
    if len(known) == 1:
        return [known[0] - 0.5, known[0] + 0.5]
    low, span = values.min(), np.ptp(values)
    steps = round(span / np.diff(known).min())  # from the lowest to the highest
    step, each = span / steps, -(-steps // most)
    return list(low - step / 2 + step * each * np.arange(steps // each + 2))


def regrets(
    groups: Mapping[str, Mapping[str, Sequence[float]]], chosen: Mapping[str, str | None], xlabel: str
) -> Figure:
    """Show mean and worst regret of several choices: a panel for each group, which has an axis of its own.

    Args:
        groups: ``groups[group][choice]``, the mean and the worst regret in points.
        chosen: the choice of a reader in each group, which is shown on a band; None if there is none.
        xlabel: what the values are.
    """
    heights = [len(rows) + 1.2 for rows in groups.values()]
    with style():
        size = (PAGE, 0.7 + 0.3 * sum(heights))
        figure, axes = plt.subplots(len(groups), 1, figsize=size, squeeze=False, height_ratios=heights)
        for cell, (name, rows) in zip(axes[:, 0], groups.items(), strict=True):
            for place, (label, (mean, worst)) in enumerate(rows.items()):
                if label == chosen.get(name):
                    cell.axhspan(place - 0.45, place + 0.45, color=ORANGE, alpha=0.3)
                cell.plot([mean, worst], [place, place], color=BLUE, linewidth=1.5)
                cell.plot(mean, place, "o", color=BLUE, label="mean" if place == 0 else None)
                cell.plot(worst, place, "D", color=BLACK, fillstyle="none", label="worst pair" if place == 0 else None)
            cell.axvline(0, color=BLACK, linewidth=1, linestyle="--")
            names = [f"your choice: {label}" if label == chosen.get(name) else label for label in rows]
            cell.set_yticks(range(len(rows)), names)
            cell.set_ylim(len(rows) - 0.5, -0.5)
            cell.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axes[-1, 0].set_xlabel(xlabel)
        _legend_beneath(figure, axes[-1, 0])
    return figure


def _legend_beneath(figure: Figure, axes: Axes, order: Sequence[str] = ()) -> None:
    """Explain what one panel shows beneath all of them, where it covers nothing, by default in the order of drawing."""
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    shown = {name: found[name] for name in order or labels if name in found}
    figure.legend([*shown.values()], [*shown], loc="outside lower center", ncols=3, fontsize=9)
