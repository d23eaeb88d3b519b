"""Lesson 05: the embeddings of an episode in a plane, before and after training, and which prototype is nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from mebqat_lite.course.widgets.live import Drawing, LiveFigure
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import BLACK, PAGE, PALE, SPARE_COLORS, SPARE_MARKERS, WHITE

WAYS, QUERIES, MOST_SHOTS, SEED = 5, 5, 5, 1
FLAT = 0.8  # the height of a panel as a share of its width
# How the five classes of an episode look, here and on their way through the inner loop.
CLASSES: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "linestyle": "none"}
    for color, marker in zip(SPARE_COLORS, SPARE_MARKERS, strict=True)
][:WAYS]
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
    _, spread, axes = torch.linalg.svd(middle, full_matrices=False)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()  # else the signs would be arbitrary
    return middle @ axes[:2].T, 100 * float(spread[:2].square().sum() / spread.square().sum())


# --- the picture -----------------------------------------------------------------------------------------------


def picture(titles: Mapping[str, Any]) -> Drawing:
    """Draw a panel for each title: prototypes large and hollow, the support small and hollow, queries full.

    A line leads from each query to the prototype that is nearest: a pale one if that is right, else a black one.
    """
    with plots.style(), plt.rc_context({"axes.grid": False}):
        size = (PAGE, 0.95 + FLAT * PAGE / len(titles))
        figure, axes = plt.subplots(1, len(titles), figsize=size, squeeze=False, layout="none")
        figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.3 / size[1], bottom=0.6 / size[1], wspace=0.03)
        panels = {title: _Panel(cell, title) for title, cell in zip(titles, axes[0], strict=True)}
        _explain(figure)

    def update(found: Mapping[str, Plane]) -> str:
        for title, panel in panels.items():
            panel.update(found[title])
        return spoken(found)

    return Drawing(figure, update, [artist for panel in panels.values() for artist in panel.moving])


class _Panel:
    """One plane."""

    def __init__(self, axes: Axes, title: str) -> None:
        axes.set(xticks=[], yticks=[], xlim=(-1.08, 1.08), ylim=(-1.08 * FLAT, 1.08 * FLAT), aspect="equal")
        axes.set_title(title, fontweight="bold")
        axes.spines[:].set(visible=True, color=PALE)
        self.lines = LineCollection([])
        axes.add_collection(self.lines)
        hollow = {"markerfacecolor": WHITE}
        self.parts = {
            "support": [axes.plot([], [], markersize=4, alpha=0.6, **look | hollow)[0] for look in CLASSES],
            "queries": [axes.plot([], [], markersize=5, **look)[0] for look in CLASSES],
            "prototypes": [
                axes.plot([], [], markersize=12, markeredgewidth=2.4, **look | hollow)[0] for look in CLASSES
            ],
        }
        self.words = axes.text(0.5, -0.03, "", transform=axes.transAxes, ha="center", va="top")
        self.moving: list[Artist] = [self.lines, *(line for part in self.parts.values() for line in part), self.words]

    def update(self, found: Plane) -> None:
        for name, lines in self.parts.items():
            for line, points in zip(lines, getattr(found, name), strict=True):
                line.set_data(*points.view(-1, 2).T)
        ends = found.prototypes[found.answers]  # (N, Q, 2)
        wrong = found.answers != torch.arange(len(found.answers))[:, None]
        self.lines.set_segments(list(torch.stack([found.queries, ends], 2).flatten(0, 1).numpy()))
        self.lines.set(
            color=[BLACK if bad else PALE for bad in wrong.flatten()],
            linewidth=[1.6 if bad else 0.9 for bad in wrong.flatten()],
        )
        share = f"plane: {found.share:.0f} % of the variance"
        self.words.set_text(f"{found.right} of {found.answers.numel()} queries right ({share})")


def _explain(figure: Figure) -> None:
    """Say beneath the panels what the marks are."""
    look: dict[str, Any] = {"color": BLACK, "marker": "o", "linestyle": "none"}
    axes, hollow = figure.axes[0], {"markerfacecolor": WHITE}
    handles = [
        axes.plot([], [], label="prototype", markersize=10, markeredgewidth=2.4, **look | hollow)[0],
        axes.plot([], [], label="support", markersize=4, **look | hollow)[0],
        axes.plot([], [], label="query", markersize=5, **look)[0],
        axes.plot([], [], color=PALE, label="to the nearest prototype: right")[0],
        axes.plot([], [], color=BLACK, label="wrong")[0],
    ]
    figure.legend(handles=handles, loc="lower center", ncols=5)


def spoken(found: Mapping[str, Plane]) -> str:
    """The picture in words."""
    return "; ".join(f"{title}: {one.right} of {one.answers.numel()} queries right" for title, one in found.items())


# --- the widget ------------------------------------------------------------------------------------------------


class EmbeddingPlane(LiveFigure):
    """The widget: sliders for the episode and for the number of support images.

    Args:
        embeddings: by title, those of all images of the split, (images, features).
        split: the images and labels that episodes are drawn from.
        prototype_logits: what answers, see `Logits`.
    """

    def __init__(self, embeddings: Mapping[str, Tensor], split: Split, prototype_logits: Logits) -> None:
        self.embeddings, self.logits = dict(embeddings), prototype_logits
        self.episodes = {k: Episodes(split, WAYS, k, QUERIES, SEED) for k in range(1, MOST_SHOTS + 1)}
        controls = {
            "shots": labelled("support images a class", ipywidgets.IntSlider(3, 1, MOST_SHOTS)),
            "number": labelled("episode", ipywidgets.IntSlider(0, 0, 19)),
        }
        super().__init__(controls, self._planes, picture(self.embeddings), words=describe)

    def _planes(self, shots: int, number: int) -> dict[str, Plane]:
        index = self.episodes[shots].index(number)
        return {title: compute(one, index, shots, self.logits) for title, one in self.embeddings.items()}

    def still(self) -> Figure:
        """Draw what the widget shows now, for a page without a kernel."""
        drawing = picture(self.embeddings)
        drawing.update(self.result)
        return drawing.figure


def describe(found: Mapping[str, Plane]) -> str:
    """The numbers of a result, as HTML."""
    parts = [f"<b>{title}</b>: {one.right} of {one.answers.numel()} right" for title, one in found.items()]
    return card(
        "; ".join(parts) + f". Chance is {QUERIES}. What is nearest is measured in all dimensions, not in the plane."
    )


def embedding_plane(embeddings: Mapping[str, Tensor], split: Split, prototype_logits: Logits) -> EmbeddingPlane:
    """The widget `EmbeddingPlane`."""
    return EmbeddingPlane(embeddings, split, prototype_logits)
