"""Lesson 05: the embeddings of an episode in a plane, before and after training, and which prototype is nearest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from mebqat_lite.course.widgets.base import card, slider
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import BLACK, PAGE, PALE, SPARE_COLORS, SPARE_MARKERS, WHITE

WAYS, QUERIES, SEED = 5, 5, 1
FLAT = 0.8  # the height of a panel as a share of its width
# How the five classes of an episode look, here and on their way through the inner loop.
CLASSES: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "linestyle": "none"}
    for color, marker in zip(SPARE_COLORS, SPARE_MARKERS, strict=True)
][:WAYS]
SUPPORT: dict[str, Any] = {"markersize": 4, "markerfacecolor": WHITE}
QUERY: dict[str, Any] = {"markersize": 5}
PROTOTYPE: dict[str, Any] = {"markersize": 12, "markerfacecolor": WHITE, "markeredgewidth": 2.4}
Logits = Callable[[Tensor, Tensor], Tensor]  # of a support (N, K, features) and queries (M, features): (M, N)


@dataclass(frozen=True)
class Plane:
    """The embeddings of an episode in the plane in which they vary most.

    All places are scaled by one number, so that they lie between -1 and 1 across, and between -0.8 and 0.8 upwards.
    """

    support: Tensor  # (N, K, 2)
    prototypes: Tensor  # (N, 2)
    queries: Tensor  # (N, Q, 2)
    answers: Tensor  # (N, Q): the prototype that is nearest, in all dimensions
    share: float  # of the variance, in percent, that lies in the plane

    @property
    def right(self) -> int:
        """How many queries are nearest to the prototype of their class."""
        return int((self.answers == torch.arange(len(self.answers))[:, None]).sum())


def compute(embeddings: Tensor, index: Tensor, shots: int, prototype_logits: Logits) -> Plane:
    """Place an episode in a plane, and answer its queries by ``prototype_logits``.

    Args:
        embeddings: those of all images, (images, features).
        index: the images of the episode, (N, K + Q), as `Episodes.index` draws them.
        shots: how many of each row are the support, K.
        prototype_logits: see `Logits`; the highest logit is the answer.
    """
    both = embeddings[index]  # (N, K + Q, features)
    support, queries = both[:, :shots], both[:, shots:]
    answers = prototype_logits(support, queries.flatten(0, 1)).argmax(1).view(queries.shape[:2])
    points, share = plane(torch.cat([both, support.mean(1, keepdim=True)], 1).flatten(0, 1))
    scale = (points.abs().amax(0) / points.new_tensor([1, FLAT])).max()
    points = points.unflatten(0, (len(index), -1)) / scale  # (N, K + Q + 1, 2)
    return Plane(points[:, :shots], points[:, -1], points[:, shots:-1], answers, share)


def plane(points: Tensor) -> tuple[Tensor, float]:
    """The points, (M, 2), in the plane in which they vary most, and its share of their variance in percent."""
    middle = points - points.mean(0)
    places = middle @ main_axes(middle).T
    return places, 100 * float(places.square().sum() / middle.square().sum())


def main_axes(middle: Tensor) -> Tensor:
    """The two directions, (2, features), along which points around 0, (M, features), vary most."""
    axes = torch.linalg.svd(middle, full_matrices=False)[2][:2]
    return axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # else the signs would be arbitrary


def side_by_side(titles: Collection[str], tall: float, beneath: float) -> tuple[Figure, dict[str, Axes]]:
    """Make a panel for each title, with axes of equal units; its height, and the room beneath all, are in inches."""
    with plots.style(), plt.rc_context({"axes.grid": False}):
        high = tall + 0.35 + beneath
        figure, axes = plt.subplots(1, len(titles), figsize=(PAGE, high), squeeze=False, layout="none")
        figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.3 / high, bottom=beneath / high, wspace=0.03)
        for title, cell in zip(titles, axes[0], strict=True):
            cell.set(xticks=[], yticks=[], aspect="equal")
            cell.set_title(title, fontweight="bold")
    return figure, dict(zip(titles, axes[0], strict=True))


def picture(titles: Collection[str]) -> Drawing:
    """Draw a panel for each title: prototypes large and hollow, the support small and hollow, queries full.

    A line leads from each query to the prototype that is nearest: a pale one if that is right, else a black one.
    """
    figure, axes = side_by_side(titles, FLAT * PAGE / len(titles), beneath=0.6)
    parts = [_panel(axes[title], title) for title in titles]
    with plots.style():
        _explain(figure)
    return Drawing(figure, say, *parts)


def _panel(axes: Axes, title: str) -> Part:
    """Draw one plane."""
    axes.set(xlim=(-1.08, 1.08), ylim=(-1.08 * FLAT, 1.08 * FLAT))
    axes.spines[:].set(visible=True, color=PALE)
    lines = LineCollection([])
    axes.add_collection(lines)
    marks = {
        name: [axes.plot([], [], **class_ | look)[0] for class_ in CLASSES]
        for name, look in (("support", SUPPORT | {"alpha": 0.6}), ("queries", QUERY), ("prototypes", PROTOTYPE))
    }
    words = axes.text(0.5, -0.03, "", transform=axes.transAxes, ha="center", va="top")

    def update(found: Mapping[str, Plane]) -> None:
        mine = found[title]
        for name, row in marks.items():
            for line, points in zip(row, getattr(mine, name), strict=True):
                line.set_data(*points.view(-1, 2).T)
        ends = mine.prototypes[mine.answers]  # (N, Q, 2)
        wrong = (mine.answers != torch.arange(len(mine.answers))[:, None]).flatten()
        lines.set_segments(list(torch.stack([mine.queries, ends], 2).flatten(0, 1).numpy()))
        lines.set(color=[BLACK if bad else PALE for bad in wrong], linewidth=[1.6 if bad else 0.9 for bad in wrong])
        share = f"plane: {mine.share:.0f} % of the variance"
        words.set_text(f"{mine.right} of {mine.answers.numel()} queries right ({share})")

    return Part(update, [lines, *(line for row in marks.values() for line in row), words])


def _explain(figure: Figure) -> None:
    """Say beneath the panels what the marks are."""
    look: dict[str, Any] = {"color": BLACK, "marker": "o", "linestyle": "none"}
    looks = {
        "prototype": look | PROTOTYPE | {"markersize": 10},
        "support": look | SUPPORT,
        "query": look | QUERY,
        "to the nearest prototype: right": {"color": PALE},
        "wrong": {"color": BLACK},
    }
    handles = [Line2D([], [], label=words, **one) for words, one in looks.items()]
    figure.legend(handles=handles, loc="lower center", ncols=5)


def say(found: Mapping[str, Plane]) -> str:
    """The picture in words."""
    return "; ".join(f"{title}: {one.right} of {one.answers.numel()} queries right" for title, one in found.items())


def describe(found: Mapping[str, Plane]) -> str:
    """The numbers of a result, as HTML."""
    parts = [f"<b>{title}</b>: {one.right} of {one.answers.numel()} right" for title, one in found.items()]
    return card(
        "; ".join(parts) + f". Chance is {QUERIES}. What is nearest is measured in all dimensions, not in the plane."
    )


def embedding_plane(embeddings: Mapping[str, Tensor], split: Split, prototype_logits: Logits) -> LiveFigure:
    """The widget: sliders for the episode and for the number of support images.

    Args:
        embeddings: by title, those of all images of the split, (images, features).
        split: the images and labels that episodes are drawn from.
        prototype_logits: what answers, see `Logits`.
    """

    def planes(shots: int, number: int) -> dict[str, Plane]:
        index = Episodes(split, WAYS, shots, QUERIES, SEED).index(number)
        return {title: compute(one, index, shots, prototype_logits) for title, one in embeddings.items()}

    controls = {"shots": slider("support images a class", 3, 1, 5), "number": slider("episode", 0, 0, 19)}
    return LiveFigure(controls, planes, picture(embeddings), words=describe)
