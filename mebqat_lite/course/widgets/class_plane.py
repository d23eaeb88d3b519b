"""Lesson 06: some new classes in the plane of their embeddings, at any bitwidth, and how far they lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mebqat_lite.bits import Bits, BitsLike
from mebqat_lite.course.widgets.base import slider
from mebqat_lite.course.widgets.embedding_plane import main_axes
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.course.widgets.new_classes import CHALLENGES, Embedded, bits_slider
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import PAGE, PALE, SMALLEST, SPARE_COLORS, SPARE_MARKERS, WHITE, color_of

SHOWN, REACH = 6, 1.6  # classes; how far the axes reach, in units of the spread at full precision
NOTE = f"{SHOWN} classes are shown: small marks are their drawings, large ones the means"
SIX = list(zip(SPARE_COLORS, SPARE_MARKERS, strict=True))[:SHOWN]


@dataclass(frozen=True)
class Plane:
    """Some classes in the plane of each network, and how far its classes lie apart, at one pair."""

    bits: Bits
    points: dict[str, Tensor]  # (classes, images, 2), in units of the spread at full precision
    ratios: dict[str, float]  # of the variance between all classes of the split to that within them


def ratio(out: Tensor, labels: Tensor) -> float:
    """Divide the variance of the class means by the mean variance within a class, both summed over the features.

    Args:
        out: embeddings, (images, features).
        labels: (images,).
    """
    groups = [out[labels == label] for label in labels.unique()]
    means = torch.stack([group.mean(0) for group in groups])
    within = torch.stack([group.var(0, correction=0).sum() for group in groups]).mean()
    return float(means.var(0, correction=0).sum() / within)


def compute(embedded: Embedded, bits: BitsLike, number: int, titles: Sequence[str]) -> Plane:
    """Project all images of the first classes of a challenge onto a plane, for each of the networks in ``titles``.

    A network's plane is the one in which these images vary most at full precision. It is the same at all bits.
    """
    labels = embedded.split.labels
    classes = labels[embedded.challenges.index(number)[:SHOWN, 0]]
    chosen = torch.stack([(labels == label).nonzero()[:, 0] for label in classes])  # (classes, images)
    points, ratios = {}, {}
    for title in titles:
        start = embedded.at(title, "FP")[chosen].flatten(0, 1)
        centre, scale = start.mean(0), start.var(0, correction=0).sum().sqrt()
        out = embedded.at(title, bits)
        points[title] = (out[chosen] - centre) @ main_axes(start - centre).T / scale
        ratios[title] = ratio(out, labels)
    return Plane(Bits.parse(bits), points, ratios)


def picture(titles: Sequence[str]) -> Drawing:
    """Draw the classes in the plane of each network, side by side: small marks are images, large ones class means."""
    with plots.style():
        wide = 1 / len(titles)
        tall = (wide - 0.02) * PAGE  # inches of an axes, which is square
        height = tall + 0.7
        figure = plt.figure(figsize=(PAGE, height), layout="none")
        axes = [
            figure.add_axes((wide * i + 0.01, 0.42 / height, wide - 0.02, tall / height)) for i in range(len(titles))
        ]
    figure.text(0.5, 0.02, NOTE, ha="center", fontsize=SMALLEST)
    return Drawing(figure, say, *(_panel(cell, title) for cell, title in zip(axes, titles, strict=True)))


def _panel(axes: Axes, title: str) -> Part:
    """Draw the plane of one network."""
    looks: list[dict[str, Any]] = [{"color": color, "marker": marker, "linestyle": "none"} for color, marker in SIX]
    clouds = [axes.plot([], [], markersize=3.5, alpha=0.7, **look)[0] for look in looks]
    hollow: dict[str, Any] = {"markersize": 8, "markerfacecolor": WHITE, "markeredgewidth": 1.8}
    centres = [axes.plot([], [], **look | hollow)[0] for look in looks]
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=PALE)
    axes.set_title(title, color=color_of(title), fontweight="bold")
    words = axes.text(0.5, -0.02, "", transform=axes.transAxes, ha="center", va="top", fontsize=SMALLEST)

    def update(result: Plane) -> None:
        for cloud, centre, points in zip(clouds, centres, result.points[title], strict=True):
            cloud.set_data(*points.T)
            centre.set_data(*points.mean(0)[:, None])
        words.set_text(f"{result.bits}, all classes: variance between / within {result.ratios[title]:.2f}")

    return Part(update, [*clouds, *centres, words])


def say(result: Plane) -> str:
    """The picture in words."""
    told = ", ".join(f"{title} {ratio:.2f}" for title, ratio in result.ratios.items())
    return f"{SHOWN} classes in the plane at {result.bits}; variance between / within all classes: {told}"


def still(result: Plane) -> Figure:
    """Draw a plane once, as a figure that is labelled with what it shows."""
    return picture(list(result.points)).still(result)


def class_plane(embedded: Embedded, titles: Sequence[str]) -> LiveFigure:
    """The widget: a slider of the bits, and beneath it two networks side by side."""
    controls = {"bits": bits_slider(), "number": slider("classes of challenge", 0, 0, CHALLENGES - 1)}
    return LiveFigure(controls, lambda bits, number: compute(embedded, bits, number, titles), picture(titles))
