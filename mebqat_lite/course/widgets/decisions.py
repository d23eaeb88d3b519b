"""Lesson 07: what each method reads at the pairs that a reader delivers, and what that costs to train and to store."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mebqat_lite.bits import FULL, WIDTHS, Bits, candidates
from mebqat_lite.course.widgets.base import buttons, card
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part, to_data
from mebqat_lite.measure import plots
from mebqat_lite.measure.costs import by_layer
from mebqat_lite.measure.looks import LOOKS, PAGE, PALE, SMALLEST
from mebqat_lite.methods import METHODS

Result = Mapping[str, Any]  # of `experiments.compare.compare`
TITLES = {name: METHODS[name].title for name in ("ptq_mse", "qat", "mebqat", "mebqat_in_turn")}
TITLES["qat"] += ", one for\neach pair"
DELIVERED = {
    "W1A1": ("W1A1",),
    "1 and 2 bits": ("W1A1", "W2A2"),
    "five pairs": ("W1A1", "W2A2", "W3A3", "W4A4", "W8A8"),
    "3 to 8 bits": tuple(f"W{w}A{a}" for w in range(3, 9) for a in range(3, 9)),
    "all 75": tuple(map(str, candidates())),
}
MEASURE = "accuracy (%)"


@dataclass(frozen=True)
class Weights:
    """The bytes of the weights of one network at each weight width: ``body[width]``, and those of the ``edge`` layers.

    The first and the last layer have the same bytes at all widths.
    """

    edge: int
    body: Mapping[int, int]

    def total(self, width: int) -> int:
        """Add up the bytes of a network at a width."""
        return self.edge + self.body[width]


def weights(model: nn.Module, image: Tensor) -> Weights:
    """Count the weights of a quantized model in bytes, packed at each of `bits.WIDTHS`, as `costs.by_layer` does.

    Args:
        model: the model; biases, norms and learned steps are not counted.
        image: (channels, height, width).
    """
    frames = {width: by_layer(model, image, "FP" if width == FULL else Bits(width, width)) for width in WIDTHS}
    body = {width: int(frame.bytes[~frame.edge].sum()) for width, frame in frames.items()}
    return Weights(int(frames[FULL].bytes[frames[FULL].edge].sum()), body)


@dataclass(frozen=True)
class Offer:
    """What one method delivers, and what it costs.

    Attributes:
        accuracy: in percent, on test images; NaN if it was not measured at all of the pairs.
        half: the half-width of its 95 % interval, or a number that it does not exceed if ``is_bound``.
        worst: the pair whose accuracy this is; empty for a mean over several pairs.
        measured: at how many of the pairs the method was measured.
        backprops: in all, with those of the FP network that it starts from.
        bytes: of the weights of all its networks.
    """

    accuracy: float
    half: float
    is_bound: bool
    worst: str
    measured: int
    backprops: int
    bytes: int


@dataclass(frozen=True)
class Decision:
    """The offers of the methods, by name, for some delivered pairs."""

    pairs: Sequence[str]
    budget: str
    packed: bool
    at_worst: bool
    offers: Mapping[str, Offer]


def compute(
    results: Mapping[str, Result], sizes: Weights, pairs: Sequence[str], budget: str, packed: bool, at_worst: bool
) -> Decision:
    """Put stored accuracies beside counted costs.

    Args:
        results: stored comparisons of the same networks and data by their budget, in the schema of `measure.results`.
        sizes: the bytes of one of the networks.
        pairs: those that are delivered.
        budget: a key of ``results``.
        packed: whether weights are delivered with as many bits as they need; otherwise as floats.
        at_worst: whether the worst pair counts; otherwise it is the mean over the pairs.

    Raises:
        ValueError: a comparison measured something else than accuracies.
    """
    for each in results.values():
        if (measure := each.get("measure", MEASURE)) != MEASURE:
            raise ValueError(f"the decision calculator shows {MEASURE}, not {measure}: take another comparison")
    offers = {}
    for name in TITLES:
        if (result := _trained(results, budget, name)) is not None:
            measured = len(result["accuracy"][name].keys() & set(pairs))
            size = _bytes(sizes, pairs, packed, is_apart=result["costs"][name]["models"] > 1)
            read = _accuracy(result, name, pairs, at_worst)
            offers[name] = Offer(*read, measured, backprops(result, name, len(pairs)), size)
    return Decision(pairs, budget, packed, at_worst, offers)


def _trained(results: Mapping[str, Result], budget: str, name: str) -> Result | None:
    """Find the result that has a method under a budget.

    If the result of this budget lacks it, another one may have it: the same network, if one network was trained in the
    same set-up with as many back-propagations as this budget gives to the one network for all pairs.
    """
    own = results[budget]
    if name in own["accuracy"]:
        return own
    each = own["costs"][next(iter(own["accuracy"]))]["each"]
    for other in results.values():
        cost = other["costs"].get(name, {})
        if (cost.get("models"), cost.get("each"), other["setup"]) == (1, each, own["setup"]):
            return other
    return None


def _accuracy(result: Result, name: str, pairs: Sequence[str], at_worst: bool) -> tuple[float, float, bool, str]:
    """Read the first four numbers of an `Offer`.

    The interval of a mean is stored for a single pair and for all pairs. For others there is a bound: a standard
    deviation over seeds of a mean over pairs is at most the mean of the pairs' standard deviations (the triangle
    inequality), and so for half-widths, which are multiples of them.
    """
    row = result["accuracy"][name]
    if not row.keys() >= set(pairs):
        return math.nan, math.nan, False, ""
    if at_worst or len(pairs) == 1:
        worst = min(pairs, key=lambda pair: row[pair]["mean"])
        return row[worst]["mean"], row[worst]["ci95"], False, worst
    if set(pairs) == set(row) and (cell := result["means"]["test"]["all"].get(name)):
        return cell["mean"], cell["ci95"], False, ""
    mean, half = (sum(row[pair][key] for pair in pairs) / len(pairs) for key in ("mean", "ci95"))
    return mean, half, True, ""


def backprops(result: Result, name: str, count: int) -> int:
    """Count the back-propagations that deliver ``count`` pairs: a network for all is trained once, others for each.

    The FP network that all of them start from is counted once.
    """
    cost = result["costs"][name]
    if cost["models"] == 1:
        return int(cost["each"])
    start = result["setup"]["recipe"]["warm_steps"]
    return int(start + count * (cost["each"] - start))


def _bytes(sizes: Weights, pairs: Sequence[str], packed: bool, is_apart: bool) -> int:
    """The bytes of all weights. A packed network for several pairs has codes of each weight width, or floats if fewer.

    Networks that are trained for a pair each are files of their own.
    """
    widths = [Bits.parse(pair).w for pair in pairs]
    if is_apart:
        return sum(sizes.total(width if packed else FULL) for width in widths)
    codes = sizes.edge + sum(sizes.body[width] for width in set(widths))
    return min(codes, sizes.total(FULL)) if packed else sizes.total(FULL)


def picture(results: Mapping[str, Result], sizes: Weights) -> Drawing:
    """Draw a row for each method: accuracy, back-propagations and bytes. The drawing takes results of `compute`."""
    choices = itertools.product(DELIVERED.values(), results, (True, False), (True, False))
    every = [offer for choice in choices for offer in compute(results, sizes, *choice).offers.values()]
    ends = [value for offer in every for value in (offer.accuracy - offer.half, offer.accuracy + offer.half)]
    with plots.style():
        figure, axes = plt.subplots(1, 3, figsize=(PAGE, 3.3), sharey=True, width_ratios=(1.75, 1, 1))
        dots = [
            _dots(axes[0], _read, missing="not trained with this budget"),
            _dots(axes[1], lambda offer, _: (offer.backprops, 0, f"{offer.backprops:,}")),
            _dots(axes[2], lambda offer, _: (offer.bytes, 0, f"{offer.bytes:,}")),
        ]
    _stretch(axes[0], np.nanmin(ends), np.nanmax(ends))
    _by_ratios(axes[1], [offer.backprops for offer in every], "back-propagations")
    _by_ratios(axes[2], [offer.bytes for offer in every], "bytes of the weights")
    axes[0].set_title(" ")  # room for the headline
    headline = axes[0].text(0, 1.03, "", transform=axes[0].transAxes, fontweight="bold", in_layout=False)
    above = Part(lambda found: headline.set_text(_headline(found)), [headline])
    return Drawing(figure, say, above, *dots)


def _read(offer: Offer, count: int) -> tuple[float, float, str]:
    """The accuracy of an offer, its half-width and the words at its mark."""
    if math.isnan(offer.accuracy):
        return math.nan, 0.0, f"measured at {offer.measured} of {count} pairs only"
    where = f" at {offer.worst}" if offer.worst and count > 1 else ""
    return offer.accuracy, offer.half, f"{offer.accuracy:.1f} ±{offer.half:.1f}{where}"


def _stretch(axes: Axes, low: float, high: float) -> None:
    """Give the axis of accuracies equal steps for equal ratios of wrong answers, so that few of them are told apart."""

    def forward(value: Any) -> Any:
        return -np.log(np.maximum(100 - np.asarray(value, dtype=float), 1e-3))

    def back(place: Any) -> Any:
        return 100 - np.exp(-np.asarray(place, dtype=float))

    room = 0.16 * (forward(high) - forward(low))  # for words above the marks
    axes.set_xscale("function", functions=(forward, back))
    axes.set_xlim(float(back(forward(low) - room)), float(back(forward(high) + room)))
    ticks = [tick for tick in (10, 30, 60, 80, 90, 95, 98, 99, 99.5) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("test accuracy (%), stretched towards 100")


def _by_ratios(axes: Axes, values: Sequence[int], words: str) -> None:
    axes.set(xscale="log", xlim=(min(values) / 3.5, max(values) * 3.5), xlabel=words)


def _dots(axes: Axes, read: Callable[[Offer, int], tuple[float, float, str]], missing: str = "") -> Part:
    """Draw a mark in the row of each method, with an interval and words above it.

    ``read`` takes the value, the half-width and the words from an offer and the number of pairs; without an offer the
    words are ``missing``. Without a value only the words are shown, in the middle.
    """
    bars, dots, words = [], [], []
    for row, name in enumerate(TITLES):
        look = {"color": LOOKS[name]["color"]}
        axes.axhline(row, color=PALE, linewidth=0.8)
        bars += axes.plot([], [], linewidth=1.8, marker="|", markersize=13, **look)
        dots += axes.plot([], [], marker=LOOKS[name]["marker"], markersize=6.5, **look)
        words.append(axes.text(0, row - 0.24, "", ha="center", fontsize=SMALLEST, in_layout=False, **look))
    axes.set(ylim=(len(TITLES) - 0.6, -0.75))
    for label, name in zip(axes.set_yticks(range(len(TITLES)), TITLES.values()), TITLES, strict=True):
        label.label1.set_color(LOOKS[name]["color"])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)

    def update(found: Decision) -> None:
        middle = to_data(axes, 0.5, 0.5)[0]
        for row, name in enumerate(TITLES):
            offer = found.offers.get(name)
            value, half, text = read(offer, len(found.pairs)) if offer else (math.nan, 0.0, missing)
            bars[row].set_data([value - half, value + half] if half else [], [row, row] if half else [])
            dots[row].set_data([value], [row])
            words[row].set(x=middle if math.isnan(value) else value, text=text)

    return Part(update, [*bars, *dots, *words])


def _headline(found: Decision) -> str:
    count, is_bound = len(found.pairs), any(offer.is_bound for offer in found.offers.values())
    which = f" pair: {found.pairs[0]}" if count == 1 else " pairs"
    what = f"{'worst' if found.at_worst else 'mean'} of K = {count}{which}"
    return what + "; true intervals may be narrower" * is_bound


def say(found: Decision) -> str:
    """The picture in one sentence."""
    parts = []
    for name, offer in found.offers.items():
        words = _read(offer, len(found.pairs))[2]
        parts.append(f"{METHODS[name].title} {words}, {offer.backprops:,} back-propagations, {offer.bytes:,} bytes")
    how = "packed" if found.packed else "as floats"
    return f"{_headline(found)}, what is equal: {found.budget}, {how}. {'; '.join(parts)}"


def describe(found: Decision) -> str:
    """What the numbers are, as HTML."""
    notes = [
        f"<b>{_headline(found)}</b>; what is equal: {found.budget}. Accuracies were measured. Back-propagations and "
        "bytes are counted for all delivered pairs together.",
        "QAT trains and stores a network for each pair. The FP network that all start from is counted once.",
        "Packed: QAT has its bits for each weight. A network for several pairs has a code for each weight width, or "
        "floats if these are fewer bytes." if found.packed else "As floats: 4 bytes for each weight.",
    ]  # fmt: skip
    if any(offer.is_bound for offer in found.offers.values()):
        notes.append("The half-width is the mean of those of the pairs: the interval of the mean is at most so wide.")
    return card(*notes)


def still(
    results: Mapping[str, Result],
    sizes: Weights,
    deliver: str,
    budget: str,
    packed: bool = True,
    at_worst: bool = False,
) -> Figure:
    """Draw one decision as a figure that is labelled with what it shows; ``deliver`` is a key of `DELIVERED`."""
    return picture(results, sizes).still(compute(results, sizes, DELIVERED[deliver], budget, packed, at_worst))


def decision_calculator(results: Mapping[str, Result], sizes: Weights) -> LiveFigure:
    """The widget: choose the pairs, the budget, how bytes are counted, and whether the mean or the worst pair counts.

    Args:
        results: stored comparisons by what is equal in their budget, as `compute` takes them.
        sizes: the bytes of one of the networks, which `weights` counts.
    """
    controls = {
        "deliver": buttons("delivered pairs", list(DELIVERED), "1 and 2 bits"),
        "budget": buttons("what is equal", list(results), next(iter(results))),
        "packed": buttons("files", [("packed", True), ("as floats", False)], True),
        "at_worst": buttons("what counts", [("the mean", False), ("the worst pair", True)], False),
    }

    def chosen(deliver: str, **others: Any) -> Decision:
        return compute(results, sizes, DELIVERED[deliver], **others)

    return LiveFigure(controls, chosen, picture(results, sizes), words=describe)
