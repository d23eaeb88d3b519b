"""Draw results in one style: its colours suit colour-blind readers, and its markers differ in grey print too."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np

from mebqat_lite.bits import FULL
from mebqat_lite.files import replace
from mebqat_lite.learners import Classes
from mebqat_lite.measure.results import Table, is_known

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from torch import Tensor

# Okabe and Ito's palette
BLACK, ORANGE, SKY, GREEN, BLUE, RED = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00"
PURPLE, WINE = "#CC79A7", "#882255"  # wine is Tol's
LOOKS: dict[str, dict[str, Any]] = {
    "ptq_naive": {"color": ORANGE, "marker": "v", "linestyle": ":"},
    "ptq_mse": {"color": RED, "marker": "s", "linestyle": "--"},
    "qat": {"color": BLACK, "marker": "D", "linestyle": "none"},
    "qat_w1a1": {"color": GREEN, "marker": "^", "linestyle": "-."},
    "qat_w2a2": {"color": PURPLE, "marker": "P", "linestyle": (0, (6, 2))},
    "qat_w4a4": {"color": SKY, "marker": "D", "linestyle": (0, (3, 1, 1, 1))},
    "mebqat": {"color": BLUE, "marker": "o", "linestyle": "-", "linewidth": 2.4},
    "mebqat_in_turn": {"color": WINE, "marker": "X", "linestyle": "-", "linewidth": 2.4},
}
ACCURACY = Classes.measure
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


def style() -> Any:
    """The package's look, as a context: ``with plots.style(): ...``."""
    return plt.rc_context(STYLE)


def accuracy_curves(
    accuracy: Table,
    pairs: Sequence[str],
    titles: Mapping[str, str],
    title: str = "",
    measure: str = ACCURACY,
    figure: Figure | SubFigure | None = None,
) -> Figure:
    """Plot accuracy or another ``measure`` over bitwidth pairs, with a line or points and intervals for each method.

    It is drawn into ``figure``, which may be a part of another one; by default into a new one.
    """
    with style():
        drawn: Any = figure or plt.figure(figsize=(7.5, 4.2))
        axes = drawn.subplots()
        for index, (method, row) in enumerate(accuracy.items()):
            shift = 0.06 * (index - (len(accuracy) - 1) / 2)  # so that intervals do not cover each other
            _draw(axes, row, pairs, shift, titles.get(method, method), LOOKS.get(method, {}))
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
    axes.errorbar(xs, means, halves if any(halves) else None, label=label, capsize=3, markersize=6, **look)


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
    figure.savefig(buffer, format=path.suffix[1:] or "png", dpi=dpi)
    plt.close(figure)
    replace(path, buffer.getvalue())


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook with alternative text, and close it."""
    from IPython.display import Image, display

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    width, _ = figure.get_size_inches()
    display(Image(buffer.getvalue(), format="png", alt=alt, width=int(96 * width)))


def images_row(images: Tensor, titles: Sequence[str], wrong: Sequence[bool] | None = None) -> Figure:
    """Show grey images, (count, 1, height, width), each with a title; ``wrong`` ones get a red frame and a cross."""
    with style():
        figure, axes = plt.subplots(1, len(titles), figsize=(0.85 * len(titles), 1.25), squeeze=False)
        for i, cell in enumerate(axes[0]):
            bad = wrong is not None and wrong[i]
            cell.imshow(images[i, 0], cmap="gray_r", vmin=0, vmax=1)
            cell.set_title(("✗ " if bad else "") + titles[i], fontsize=10, color=RED if bad else BLACK)
            cell.set(xticks=[], yticks=[])
            for side in cell.spines.values():
                side.set(visible=True, color=RED if bad else "#BBBBBB", linewidth=2 if bad else 0.8)
    return figure


def staircases(x: Tensor, curves: Mapping[str, Tensor]) -> Figure:
    """Plot quantizers, one panel each: the output over the input ``x``, and the input itself as a dashed line."""
    with style():
        figure, axes = plt.subplots(1, len(curves), figsize=(2.7 * len(curves), 2.7), squeeze=False, sharey=True)
        for cell, (name, y) in zip(axes[0], curves.items(), strict=True):
            cell.plot(x, x, color=ORANGE, linewidth=1, linestyle="--", label="input")
            cell.plot(x, y, color=BLUE, linewidth=2, drawstyle="steps-mid", label="output")
            cell.set(title=name, xlabel="input")
        axes[0][0].set_ylabel("output")
        axes[0][0].legend(loc="upper left")
    return figure


def lines(
    x: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    log: bool = False,
    mark: float | None = None,
) -> Figure:
    """Plot curves over a common axis, each with its own colour, dash and marker, and a vertical line at ``mark``."""
    looks = _looks((BLUE, RED, GREEN, ORANGE), ("-", "--", ":", "-."), ("o", "s", "^", "D"))
    with style():
        figure, axes = plt.subplots(figsize=(6.5, 3.4))
        for (name, y), (color, dash, marker) in zip(curves.items(), looks, strict=False):
            every = max(1, len(x) // 12)
            axes.plot(x, y, color=color, linestyle=dash, marker=marker, markevery=every, label=name)
        if mark is not None:
            axes.axvline(mark, color=BLACK, linewidth=1)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title, yscale="log" if log else "linear")
        if len(curves) > 1:
            axes.legend()
    return figure


def _looks(*parts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield looks without end, such as a colour and a dash, and repeat a combination as late as possible.

    After each round every part but the first moves on by one more place, so that 6 colours and 6 markers give 36 looks.
    """
    size = len(parts[0])
    for number in itertools.count():
        shift, place = divmod(number, size)
        yield tuple(part[(place + shift * index) % size] for index, part in enumerate(parts))


def histogram_with_levels(values: Tensor, levels: Mapping[str, Tensor]) -> Figure:
    """Show how values are distributed and, in one panel per name, the levels that replace them."""
    with style():
        size = (2.9 * len(levels), 2.7)
        figure, axes = plt.subplots(1, len(levels), figsize=size, squeeze=False, sharey=True)
        for cell, (name, places) in zip(axes[0], levels.items(), strict=True):
            cell.hist(values.flatten().numpy(), bins=60, color=SKY)
            for place in places.unique():
                cell.axvline(float(place), color=RED, linewidth=1, linestyle="--")
            cell.set(title=name, xlabel="weight")
        axes[0][0].set_ylabel("count")
    return figure


def heat_map(frame: pd.DataFrame, title: str = "") -> Figure:
    """Show what a grid measured at all pairs: weight bits increase upwards, activation bits to the right."""
    table = frame["mean"].groupby([frame["w"], frame["a"]]).first().unstack("a").sort_index(ascending=False)
    named = table.rename(index=_width, columns=_width)
    return matrix(named, "activation bits", "weight bits", title, frame.attrs.get("measure", ACCURACY))


def matrix(table: pd.DataFrame, xlabel: str, ylabel: str, title: str = "", measure: str = ACCURACY) -> Figure:
    """Show a table of accuracies in percent, or of another ``measure``, as numbers on coloured cells."""
    with style(), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(figsize=(6.4, 4.8))
        image = axes.imshow(table, cmap="cividis", aspect="auto")
        axes.set_xticks(range(len(table.columns)), table.columns)
        axes.set_yticks(range(len(table.index)), table.index)
        middle, decimals = (np.nanmax(table) + np.nanmin(table)) / 2, int(table.size <= 36)
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            if np.isfinite(value):
                ink = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=8, color=ink)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        figure.colorbar(image, label=measure)
    return figure


def accuracy_over_cost(
    accuracy: Table, bitops: Mapping[str, int], titles: Mapping[str, str], measure: str = ACCURACY
) -> Figure:
    """Plot accuracy or another ``measure`` over the bit operations for one image, a point for each pair of a method."""
    looks = _looks((BLUE, RED, GREEN, ORANGE, SKY, PURPLE), "osD^vP")
    with style():
        figure, axes = plt.subplots(figsize=(7.0, 4.2))
        for (name, row), (color, marker) in zip(accuracy.items(), looks, strict=False):
            known = [pair for pair in row if pair in bitops and is_known(row[pair]["mean"])]
            x, y = [bitops[pair] for pair in known], [row[pair]["mean"] for pair in known]
            axes.scatter(x, y, s=22, color=color, marker=marker, label=titles.get(name, name), alpha=0.8)
        axes.set(xscale="log", xlabel="bit operations of an image", ylabel=measure)
        axes.legend(loc="lower right")
    return figure


def _width(bits: int) -> str:
    return "FP" if bits == FULL else str(bits)


def intervals(groups: Mapping[str, Mapping[str, Mapping[str, float]]], xlabel: str, title: str = "") -> Figure:
    """Plot differences with their 95 % intervals, one row each, in named groups.

    A marker is filled if its interval does not contain zero.
    """
    rows = sum(len(group) + 1 for group in groups.values())
    with style():
        figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.23 * rows))
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
    return figure


def _draw_interval(axes: Axes, cell: Mapping[str, float], place: float) -> None:
    """Draw one row: the mean with its interval, blue and filled if the interval does not contain zero."""
    half = cell["ci95"] if is_known(cell["ci95"]) else 0.0
    clear = abs(cell["mean"]) > half > 0
    color, fill, fmt = (BLUE, BLUE, "o") if clear else ("#777777", "white", "D")
    axes.errorbar(cell["mean"], place, xerr=half, fmt=fmt, color=color, markerfacecolor=fill, capsize=3)


def stacked(x: Tensor, columns: Mapping[str, Mapping[str, Mapping[str, Tensor]]], xlabel: str = "input x") -> Figure:
    """Plot curves in columns of panels that share the axis ``x``: a column per title, a panel per label.

    ``columns[title][y label][name]`` holds the values of one curve, of the shape of ``x``.
    """
    rows = max(len(panels) for panels in columns.values())
    with style():
        size = (0.6 + 3.2 * len(columns), 0.9 + 1.6 * rows)
        figure, axes = plt.subplots(rows, len(columns), figsize=size, squeeze=False, sharex=True)
        for column, (title, panels) in zip(axes.T, columns.items(), strict=True):
            for cell, (label, curves) in zip(column, panels.items(), strict=True):
                looks = _looks((BLUE, RED, GREEN), ("-", "--", ":"))
                for (name, y), (color, dash) in zip(curves.items(), looks, strict=False):
                    cell.plot(x, y, color=color, linestyle=dash, label=name)
                cell.set(ylabel=label)
                if len(curves) > 1:
                    cell.legend(fontsize=9)
            column[0].set_title(title)
            column[-1].set_xlabel(xlabel)
    return figure


def tables(
    panels: Mapping[str, Any],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    xlabel: str = "",
    ylabel: str = "",
    limits: tuple[float, float] | None = None,
    decimals: int = 0,
    colours: str = "cividis",
) -> Figure:
    """Show tables of numbers, (rows, columns) each, two side by side, on one scale of colours; NaN is an empty cell."""
    values = {title: np.asarray(panel, dtype=float) for title, panel in panels.items()}
    low, high = limits or (min(map(np.nanmin, values.values())), max(map(np.nanmax, values.values())))
    wide, tall = min(len(values), 2), -(-len(values) // 2)
    each = max(0.36, 0.12 + 0.1 * max(map(len, columns)))  # inches
    size = (1.3 + wide * (0.6 + each * len(columns)), tall * (0.9 + 0.28 * len(rows)))
    with style(), plt.rc_context({"axes.grid": False}):
        figure, axes = plt.subplots(tall, wide, figsize=size, squeeze=False)
        for cell, (title, panel) in zip(axes.flat, values.items(), strict=False):
            image = cell.imshow(panel, cmap=colours, vmin=low, vmax=high, aspect="auto")
            _numbers(cell, panel, image, decimals)
            cell.set_xticks(range(len(columns)), columns)
            cell.set_yticks(range(len(rows)), rows)
            cell.set_title(title, fontsize=11)
        for cell in axes.flat[len(values) :]:
            cell.remove()
        for cell in axes[:, 0]:
            cell.set_ylabel(ylabel)
        for cell in axes.flat[max(len(values) - wide, 0) : len(values)]:
            cell.set_xlabel(xlabel)
        figure.colorbar(image, ax=figure.axes, label=label)
    return figure


def _numbers(axes: Axes, panel: np.ndarray, image: Any, decimals: int) -> None:
    """Write the numbers of a table into its cells, white on dark cells and black on light ones."""
    for (row, column), value in np.ndenumerate(panel):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
            axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=8, color=ink)


def channel_statistics(stats: Mapping[str, Tensor], title: str = "") -> Figure:
    """Plot mean ± standard deviation of each channel; ``stats`` holds means and variances, (2, channels), by name."""
    with style():
        figure, axes = plt.subplots(figsize=(8.0, 3.6))
        for i, (name, both) in enumerate(stats.items()):
            (mean, deviation), shift = (both[0], both[1].sqrt()), 0.22 * (i - (len(stats) - 1) / 2)
            places = [channel + shift for channel in range(both.shape[1])]
            look: dict[str, Any] = {"color": (BLUE, RED, GREEN, ORANGE)[i % 4], "marker": "os^D"[i % 4]}
            axes.errorbar(places, mean, deviation, linestyle="none", markersize=4, label=name, **look)
        axes.set(xlabel="channel", ylabel="mean ± standard deviation", title=title)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def code_histograms(counts: Mapping[str, Tensor], lowest: int) -> Figure:
    """Show how many weights have each integer code, one panel per name.

    ``counts`` are (codes,) each; their first entry counts the code ``lowest``.
    """
    used = [c.nonzero()[:, 0] + lowest for c in counts.values()]
    low, high = min(int(u.min()) for u in used), max(int(u.max()) for u in used)
    with style():
        size = (3.9 * len(counts), 2.8)
        figure, axes = plt.subplots(1, len(counts), figsize=size, squeeze=False, sharex=True)
        for cell, (name, count) in zip(axes[0], counts.items(), strict=True):
            cell.bar(range(lowest, lowest + len(count)), count, width=1.0, color=BLUE, edgecolor="white", linewidth=0.3)
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
        size = (0.72 * (shots + count) + 1.2, (0.78 if answers is None else 0.95) * ways + 0.3)
        figure, axes = plt.subplots(ways, shots + count, figsize=size, squeeze=False)
        for (n, k), cell in np.ndenumerate(axes):
            answer = None if answers is None or k < shots else int(answers[n, k - shots])
            bad = answer not in (None, n)
            cell.imshow(both[n, k, 0], cmap="gray_r", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
            frame = RED if bad else ORANGE if k < shots else "#BBBBBB"
            for side in cell.spines.values():
                side.set(visible=True, color=frame, linewidth=2 if bad or k < shots else 0.8)
            if answer is not None:
                words = f"{'✗ ' if bad else ''}{answer + 1}"
                cell.set_xlabel(words, fontsize=9, color=RED if bad else BLACK, labelpad=1)
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
        size = (1.6 + 1.25 * len(pairs), 0.3 + 1.45 * len(pictures))
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
            drawn.suptitle(title, fontsize="large")
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
        figure, axes = plt.subplots(1, len(curves), figsize=(3.4 * len(curves), 3.4), squeeze=False, sharey=True)
        places = range(len(steps))
        for cell, (pair, rows) in zip(axes[0], curves.items(), strict=True):
            looks = _looks((WINE, RED, ORANGE, BLUE), ("-", "--", ":", "-."), ("X", "s", "v", "o"))
            for (start, found), (color, dash, marker) in zip(rows.items(), looks, strict=False):
                means, halves = ([each[key] for each in found] for key in ("mean", "ci95"))
                look = {"color": color, "linestyle": dash, "marker": marker, "capsize": 3}
                cell.errorbar(places, means, halves if all(map(is_known, halves)) else None, label=start, **look)
            cell.axhline(dedicated[pair]["mean"], color=BLACK, linestyle=(0, (5, 3)), label="QAT of its own")
            cell.set_xticks(places, map(str, steps))
            cell.set(title=pair, xlabel="steps at this pair")
        axes[0][0].set_ylabel(ACCURACY)
        axes[0][-1].legend(loc="lower right", fontsize=9)
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
    low, high = min(map(min, samples.values())), max(map(max, samples.values()))
    with style():
        size = (7.5, 0.8 + 1.1 * len(samples))
        figure, axes = plt.subplots(len(samples), 1, figsize=size, squeeze=False, sharex=True, sharey=True)
        for cell, (name, values) in zip(axes[:, 0], samples.items(), strict=True):
            cell.hist(values, bins=40, range=(low, high), color=SKY)
            for (label, place), dash in zip(marks.items(), itertools.cycle(("-", "--", ":"))):
                if place is not None:
                    cell.axvline(place, color=BLACK, linestyle=dash, linewidth=1.8, label=label)
            cell.set_title(name, loc="left", fontsize=10)
            cell.set_yticks([])
        axes[-1, 0].set_xlabel(xlabel)
        _legend_beneath(figure, axes[0, 0])
        figure.suptitle(title, fontsize=11)
    return figure


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
        size = (7.5, 0.7 + 0.3 * sum(heights))
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


def _legend_beneath(figure: Figure, axes: Axes) -> None:
    """Explain what one panel shows beneath all of them, where it covers nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
