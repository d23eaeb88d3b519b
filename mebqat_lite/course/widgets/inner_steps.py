"""Lesson 05: how the answers to an episode's queries move while a network adapts to its support, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from mebqat_lite.course.widgets.base import card, slider
from mebqat_lite.course.widgets.embedding_plane import CLASSES, WAYS, side_by_side
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.measure.looks import LIGHT, PAGE, WHITE

Paths = Mapping[str, Tensor]  # by title, the class probabilities (steps + 1, N Q, N), the queries class by class
REACH = 1.22  # of the axes; the corners lie at a distance of 1


@dataclass(frozen=True)
class Moved:
    """Where the queries are after some inner steps, and how they came there.

    ``places`` is (steps + 1, N Q, 2): each query stands nearer to the corner of a class, the surer it is of it.
    """

    places: Tensor
    right: int  # queries whose most probable class is theirs, after the last of these steps

    @property
    def steps(self) -> int:
        """How many inner steps were taken."""
        return len(self.places) - 1


def compute(probabilities: Tensor, steps: int) -> Moved:
    """Place the queries of an episode among the corners of a polygon, one corner for each class.

    Args:
        probabilities: of the classes after each step, (steps + 1, N Q, N); the queries come class by class.
        steps: how many of the steps are taken.

    Raises:
        ValueError: there are not as many steps.
    """
    if not 0 <= steps < len(probabilities):
        raise ValueError(f"{steps} steps were asked for, and there are 0 to {len(probabilities) - 1}")
    queries, ways = probabilities.shape[1:]
    labels = torch.arange(ways).repeat_interleave(queries // ways)
    now = probabilities[: steps + 1]
    return Moved(now @ corners(ways).to(now), int((now[-1].argmax(1) == labels).sum()))


def corners(ways: int) -> Tensor:
    """The corners of a regular polygon, (N, 2), the first at the top and the others clockwise."""
    angle = 2 * torch.pi * torch.arange(ways) / ways
    return torch.stack([angle.sin(), angle.cos()], 1)


def picture(titles: Mapping[str, Any], queries: int) -> Drawing:
    """Draw a panel for each title: a corner for each class, and the path of each query with its end as a mark."""
    figure, axes = side_by_side(titles, 0.95 * PAGE / len(titles), beneath=0.2)
    return Drawing(
        figure, lambda found: say(found, queries), *(_panel(axes[title], title, queries) for title in titles)
    )


def _panel(axes: Axes, title: str, queries: int) -> Part:
    """Draw one start."""
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), frame_on=False)
    axes.fill(*corners(WAYS).T, fill=False, edgecolor=LIGHT, linewidth=1.5)
    for number, (look, place) in enumerate(zip(CLASSES, corners(WAYS), strict=True)):
        axes.plot(*place, markersize=13, markeredgewidth=2.4, **look | {"markerfacecolor": WHITE})
        axes.text(1.16 * place[0], 1.16 * place[1], str(number + 1), ha="center", va="center")
    each = [look["color"] for look in CLASSES for _ in range(queries // WAYS)]
    paths = LineCollection([], colors=each, linewidths=1, alpha=0.7)
    axes.add_collection(paths)
    end: dict[str, Any] = {"markersize": 5.5, "markeredgecolor": WHITE, "markeredgewidth": 0.5}
    ends = [axes.plot([], [], **end, **look)[0] for look in CLASSES]
    words = axes.text(0.5, 0.01, "", transform=axes.transAxes, ha="center", va="top")

    def update(found: Mapping[str, Moved]) -> None:
        mine = found[title]
        paths.set_segments(list(mine.places.transpose(0, 1).numpy()))
        for line, points in zip(ends, mine.places[-1].view(WAYS, -1, 2), strict=True):
            line.set_data(*points.T)
        words.set_text(f"after {_count(mine.steps)}: {mine.right} of {queries} queries right")

    return Part(update, [paths, *ends, words])


def _count(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def say(found: Mapping[str, Moved], queries: int) -> str:
    """The picture in words."""
    parts = [f"{title} {one.right} of {queries} queries right" for title, one in found.items()]
    return f"after {_count(next(iter(found.values())).steps)}: " + ", ".join(parts)


def inner_steps(paths: Paths) -> LiveFigure:
    """The widget: a slider for the inner steps, for starts by their titles (see `Paths`).

    Raises:
        ValueError: the starts differ in their steps or queries.
    """
    sizes = {(len(path) - 1, path.shape[1]) for path in paths.values()}
    if len(sizes) != 1:
        raise ValueError(f"the starts differ in their steps or queries, {sorted(sizes)}: give the same episode")
    [(most, queries)] = sizes

    def moved(steps: int) -> dict[str, Moved]:
        return {title: compute(path, steps) for title, path in paths.items()}

    words = card("A corner is a class. A query stands in it if the network is sure, and in the middle if not at all.")
    controls = {"steps": slider("inner steps", most, 0, most)}
    return LiveFigure(controls, moved, picture(paths, queries), words=lambda found: words)
