"""Lesson 05: how the answers to an episode's queries move while a network adapts to its support, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from mebqat_lite.course.widgets.base import card, labelled
from mebqat_lite.course.widgets.embedding_plane import CLASSES, WAYS
from mebqat_lite.course.widgets.live import Drawing, LiveFigure
from mebqat_lite.measure import plots
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


# --- the picture -----------------------------------------------------------------------------------------------


def picture(titles: Mapping[str, Any], queries: int) -> Drawing:
    """Draw a panel for each title: a corner for each class, and the path of each query with its end as a mark."""
    with plots.style(), plt.rc_context({"axes.grid": False}):
        size = (PAGE, 0.55 + 0.95 * PAGE / len(titles))
        figure, axes = plt.subplots(1, len(titles), figsize=size, squeeze=False, layout="none")
        figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.3 / size[1], bottom=0.2 / size[1], wspace=0.03)
        panels = {title: _Panel(cell, title, queries) for title, cell in zip(titles, axes[0], strict=True)}

    def update(found: Mapping[str, Moved]) -> str:
        for title, panel in panels.items():
            panel.update(found[title])
        return spoken(found, queries)

    return Drawing(figure, update, [artist for panel in panels.values() for artist in panel.moving])


class _Panel:
    """One start."""

    def __init__(self, axes: Axes, title: str, queries: int) -> None:
        axes.set(xticks=[], yticks=[], xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", frame_on=False)
        axes.set_title(title, fontweight="bold")
        places, self.queries = corners(WAYS), queries
        axes.fill(*places.T, fill=False, edgecolor=LIGHT, linewidth=1.5)
        for number, (look, place) in enumerate(zip(CLASSES, places, strict=True)):
            axes.plot(*place, markersize=13, markeredgewidth=2.4, **look | {"markerfacecolor": WHITE})
            axes.text(1.16 * place[0], 1.16 * place[1], str(number + 1), ha="center", va="center")
        each = [look["color"] for look in CLASSES for _ in range(queries // WAYS)]
        self.paths = LineCollection([], colors=each, linewidths=1, alpha=0.7)
        axes.add_collection(self.paths)
        self.ends = [
            axes.plot([], [], markersize=5.5, markeredgecolor=WHITE, markeredgewidth=0.5, **look)[0] for look in CLASSES
        ]
        self.words = axes.text(0.5, 0.01, "", transform=axes.transAxes, ha="center", va="top")
        self.moving: list[Artist] = [self.paths, *self.ends, self.words]

    def update(self, found: Moved) -> None:
        self.paths.set_segments(list(found.places.transpose(0, 1).numpy()))
        for line, points in zip(self.ends, found.places[-1].view(WAYS, -1, 2), strict=True):
            line.set_data(*points.T)
        self.words.set_text(f"after {_count(found.steps)}: {found.right} of {self.queries} queries right")


def _count(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def spoken(found: Mapping[str, Moved], queries: int) -> str:
    """The picture in words."""
    parts = [f"{title} {one.right} of {queries} queries right" for title, one in found.items()]
    return f"after {_count(next(iter(found.values())).steps)}: " + ", ".join(parts)


# --- the widget ------------------------------------------------------------------------------------------------


class InnerSteps(LiveFigure):
    """The widget: a slider for the inner steps, for starts by their titles (see `Paths`)."""

    def __init__(self, paths: Paths) -> None:
        self.paths = dict(paths)
        sizes = {(len(path) - 1, path.shape[1]) for path in self.paths.values()}
        if len(sizes) != 1:
            raise ValueError(f"the starts differ in their steps or queries, {sorted(sizes)}: give the same episode")
        [(most, self.queries)] = sizes
        controls = {"steps": labelled("inner steps", ipywidgets.IntSlider(most, 0, most))}
        super().__init__(controls, self._moved, picture(self.paths, self.queries), words=self._describe)

    def _moved(self, steps: int) -> dict[str, Moved]:
        return {title: compute(path, steps) for title, path in self.paths.items()}

    def _describe(self, found: Mapping[str, Moved]) -> str:
        return card(
            "A corner is a class. A query stands in it if the network is sure, and in the middle if not at all."
        )

    def still(self) -> Figure:
        """Draw what the widget shows now, for a page without a kernel."""
        drawing = picture(self.paths, self.queries)
        drawing.update(self.result)
        return drawing.figure


def inner_steps(paths: Paths) -> InnerSteps:
    """The widget `InnerSteps`."""
    return InnerSteps(paths)
