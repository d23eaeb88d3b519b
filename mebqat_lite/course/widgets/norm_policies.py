"""Lesson 03: one channel of a batch norm, whose mean and variance it uses, and what the network then answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mebqat_lite import datasets, methods, paths
from mebqat_lite.bits import FP, FULL, Bits, BitsLike
from mebqat_lite.checkpoint import load_model
from mebqat_lite.course.widgets.base import buttons, card, labelled, slider
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.course.widgets.playground import inputs_of
from mebqat_lite.datasets.base import Data
from mebqat_lite.measure import plots
from mebqat_lite.measure.evaluate import accuracy
from mebqat_lite.measure.looks import BLACK, BLUE, GREY, PAGE, SKY, SMALLEST, VERMILION, pale
from mebqat_lite.switching.batchnorm import SwitchableNorm
from mebqat_lite.switching.convert import requantize
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import norm_layers, setting_of

POLICIES = {  # in the order of the bars
    "running": "kept from training",
    "recalibrated": "measured anew",
    "corrected": "kept, weights corrected",
    "batch": "of the batch at hand",
    "one_class": "of a batch of one class",
}
PRICES = {
    "running": "one set of statistics; it fits the pair at which it was kept, and those of the same scale",
    "recalibrated": "two numbers a channel for each pair, and some dozens of training images, once",
    "corrected": "one set of statistics, which must be those of full precision; two numbers an output channel for "
    "each weight bitwidth",
    "batch": "nothing is stored, but each answer depends on the other images of its batch, and an image alone fails",
    "one_class": "as above, and the batch misses what tells the classes apart",
}
LAYERS = ("body.0.1", "body.1.1", "body.2.1")  # the norms of the digit net behind layers whose bits are switched
CHANNELS = 12
SHIPPED = {  # the statistics that they keep are those of the pair in brackets
    "QAT for W1A1": "digits-qat_w1a1",
    "QAT for W4A4": "digits-qat_w4a4",
    "MEBQAT (kept at FP)": "digits-mebqat",
}
Two = tuple[float, float]  # mean and standard deviation


@dataclass(frozen=True)
class ChannelResult:
    """One network at one pair: its accuracy under each policy, and one channel of one norm under one of them."""

    bits: Bits
    policy: str
    accuracy: dict[str, float]  # of each policy, in percent
    layer: str
    channel: int
    values: Tensor  # (values,): what arrives in the channel for all test images
    used: Two  # what the norm subtracts and divides by
    reach: Two  # of the axis: the lowest and the highest value that are of interest at any bitwidth

    @property
    def arrives(self) -> Two:
        """Mean and standard deviation of what arrives."""
        return two(self.values)

    @property
    def leaves(self) -> Tensor:
        """What leaves the norm before gain and shift, (values,)."""
        return (self.values - self.used[0]) / self.used[1]

    @property
    def ratio(self) -> float:
        """What the norm divides by, over the standard deviation that arrives."""
        return self.used[1] / self.arrives[1]

    @property
    def shift(self) -> float:
        """How far the mean that the norm subtracts is above the one that arrives, in deviations that arrive."""
        return (self.used[0] - self.arrives[0]) / self.arrives[1]


def two(values: Tensor) -> Two:
    """Return the mean and the standard deviation of values."""
    return float(values.mean()), float(values.std(correction=0))


class Bench:
    """A network, its copy with corrected weights, and the data on which they are tried.

    The network is in evaluation mode. Statistics that the policy ``recalibrated`` lacks are measured on the training
    images and stored with it. Accuracies are measured once and remembered.
    """

    def __init__(self, model: nn.Module, data: Data) -> None:
        data.test.of_classes("the widget of norm policies")
        self.model, self.data = model.eval(), data
        self.corrected = copy.deepcopy(model)
        requantize(self.corrected, f"{setting_of(model).quantizer}_corrected", methods.calibration(data))
        self._accuracy: dict[Bits, dict[str, float]] = {}
        self._reach: dict[tuple[str, int], Two] = {}

    def accuracy(self, bits: BitsLike) -> dict[str, float]:
        """Measure the percentage of test images that is right under each policy."""
        pair = Bits.parse(bits)
        if pair not in self._accuracy:
            self._accuracy[pair] = {kind: self._right(pair, kind) for kind in POLICIES}
        return self._accuracy[pair]

    def _right(self, pair: Bits, kind: str) -> float:
        """``one_class`` is the policy ``batch`` with a batch for each class."""
        (model, stats), test = self._ready(pair, kind), self.data.test
        if kind != "one_class":
            return accuracy(model, test, pair, stats)
        classes = [test.select(test.labels == label) for label in test.labels.unique()]
        return sum(accuracy(model, part, pair, stats) * len(part.labels) for part in classes) / len(test.labels)

    def _ready(self, pair: Bits, kind: str) -> tuple[nn.Module, str]:
        """Return the network that runs under a policy, and the name that the package has for the policy."""
        model = self.corrected if kind == "corrected" else self.model
        if kind == "recalibrated" and not is_recalibrated(model, str(pair)):
            recalibrate(model, self.data.train.images, pair)
        return model, {"corrected": "running", "one_class": "batch"}.get(kind, kind)

    def norm(self, kind: str, layer: str) -> SwitchableNorm:
        """The norm named ``layer`` of the network that a policy runs."""
        return norm_layers(self.corrected if kind == "corrected" else self.model)[layer]

    def reads(self, bits: BitsLike, kind: str, layer: str, channel: int, part: Tensor | None = None) -> Tensor:
        """What arrives in a channel of a norm, (values,), for all test images or a part of them, image by image."""
        pair, images = Bits.parse(bits), self.data.test.images
        model, stats = self._ready(pair, kind)
        return inputs_of(model, layer, images if part is None else images[part], pair, stats)[:, channel].flatten()

    def reach(self, layer: str, channel: int) -> Two:
        """Find between which two values nearly all lie that arrive in a channel at 1 or 8 bits or full precision."""
        if (layer, channel) not in self._reach:
            pairs = (Bits(1, 1), Bits(8, 8), FP)
            values = torch.cat([self.reads(pair, "batch", layer, channel) for pair in pairs])
            low, high = values.quantile(torch.tensor([0.002, 0.998])).tolist()
            self._reach[layer, channel] = (low, high)
        return self._reach[layer, channel]


def compute(
    bench: Bench, bits: BitsLike, policy: str = "running", layer: str = LAYERS[0], channel: int = 0
) -> ChannelResult:
    """Classify all test images at ``bits`` under every norm policy; look into one channel of one norm under one.

    Under ``one_class`` the channel shows all test images, and the statistics that the norm uses are those of the first
    class.

    Raises:
        ValueError: for a policy that is not in `POLICIES`.
    """
    if policy not in POLICIES:
        raise ValueError(f"no policy {policy!r}; choose one of {', '.join(POLICIES)}")
    pair = Bits.parse(bits)
    accuracy = bench.accuracy(pair)
    values = bench.reads(pair, "batch" if policy == "one_class" else policy, layer, channel)
    used = _used(bench, pair, policy, layer, channel)
    return ChannelResult(pair, policy, accuracy, layer, channel, values, used, bench.reach(layer, channel))


def _used(bench: Bench, pair: Bits, policy: str, layer: str, channel: int) -> Two:
    norm, labels = bench.norm(policy, layer), bench.data.test.labels
    if policy in ("batch", "one_class"):
        part = labels == labels.unique()[0] if policy == "one_class" else None
        var, mean = torch.var_mean(bench.reads(pair, policy, layer, channel, part), correction=0)
    elif policy == "recalibrated":
        mean, var = norm.get_buffer(f"stats_{pair}")[:, channel]
    else:
        mean, var = norm.get_buffer("running_mean")[channel], norm.get_buffer("running_var")[channel]
    return float(mean), float(var + norm.eps) ** 0.5


SIZE, WIDTHS, BINS = (PAGE, 3.5), (1.15, 1, 1.1), 31  # inches; of the three panels, as shares
LEAVES: dict[str, Any] = {"color": BLACK, "marker": "o", "markersize": 5, "linewidth": 2}
ARRIVES = LEAVES | {"label": "mean ± deviation of the values"}
USED = LEAVES | {"color": VERMILION, "marker": "s", "label": "what the norm takes them for"}
Mark = tuple[dict[str, Any], Callable[[ChannelResult], Two]]
REACHES = 4.2  # standard deviations on both sides of the values that leave
CHANCE = 10.0  # percent


def picture() -> Drawing:
    """Draw what arrives in a channel, what leaves it, and the accuracy under each policy.

    The drawing takes results of `compute`. Its last axes are those of the policies.
    """
    with plots.style():
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=SIZE, width_ratios=WIDTHS)
        own, used = (ARRIVES, lambda result: result.arrives), (USED, lambda result: result.used)
        arrives = _spread(left, "what arrives", lambda result: result.values, own, used)
        middle.set(xlim=(-REACHES, REACHES), xlabel="value in deviations")
        after = (LEAVES, lambda result: two(result.leaves))
        leaves = _spread(middle, "what leaves", lambda result: result.leaves, after)
        bars = _bars(right)
        goal = middle.axvspan(-1, 1, color=pale(GREY, 0.8), linewidth=0, label="0 ± 1, as it should be")
        figure.legend(handles=[*left.lines, goal], loc="outside lower center", ncols=3)

    def rescale(result: ChannelResult) -> None:
        if left.get_xlim() != result.reach:  # another channel or network: the axes are drawn again
            left.set(xlim=result.reach, xlabel=f"value in channel {result.channel} of {result.layer}")

    return Drawing(figure, say, Part(rescale, []), arrives, leaves, bars)


def still(result: ChannelResult) -> Figure:
    """Draw a result once, as a figure that is labelled with what it shows."""
    return picture().still(result)


def _spread(axes: Axes, title: str, values: Callable[[ChannelResult], Tensor], *marks: Mark) -> Part:
    """Draw a histogram of values, and above it lines with a mark at a mean and ends at the deviation.

    The highest bar always has the same height, so that widths can be compared.
    """
    axes.set(title=title, ylim=(0, 1.35), yticks=[])
    axes.spines["left"].set_visible(False)
    bars = axes.stairs([0.0], [0.0, 1.0], fill=True, linewidth=0, color=SKY)
    lines = [axes.plot([0] * 3, [1.1 + 0.14 * i] * 3, **look)[0] for i, (look, _) in enumerate(marks)]

    def update(result: ChannelResult) -> None:
        edges = torch.linspace(*axes.get_xlim(), BINS + 1)
        counts = torch.histogram(values(result), edges)[0]
        bars.set_data((counts / counts.max().clamp(min=1)).numpy(), edges.numpy())
        for line, (_, of) in zip(lines, marks, strict=True):
            mean, deviation = of(result)
            line.set_xdata([mean - deviation, mean, mean + deviation])

    return Part(update, [bars, *lines])


def _bars(axes: Axes) -> Part:
    """Draw a bar from 0 to 100 % for each policy; the chosen one is dark."""
    bars = axes.barh(range(len(POLICIES)), 100, height=0.36)
    words = [axes.text(1.5, i - 0.24, "", va="bottom", fontsize=SMALLEST) for i in range(len(POLICIES))]
    chance = [axes.plot([CHANCE] * 2, [i - 0.18, i + 0.18], ":", color=BLACK)[0] for i in range(len(POLICIES))]
    axes.grid(visible=False)
    axes.set(title="accuracy (%), by statistics", xlim=(0, 100), ylim=(len(POLICIES) - 0.6, -0.75), yticks=[])
    axes.set_xlabel("dotted: chance, 10 %")

    def update(result: ChannelResult) -> None:
        for bar, text, (kind, name) in zip(bars, words, POLICIES.items(), strict=True):
            is_chosen = kind == result.policy
            bar.set(width=result.accuracy[kind], color=BLUE if is_chosen else pale(BLUE))
            text.set(text=f"{name}: {result.accuracy[kind]:.1f}", weight="bold" if is_chosen else "normal")

    return Part(update, [*bars, *words, *chance])


def say(result: ChannelResult) -> str:
    """The picture in one sentence."""
    return (
        f"{result.bits}, statistics {POLICIES[result.policy]}: accuracy {result.accuracy[result.policy]:.1f} %; "
        f"channel {result.channel} of {result.layer} is divided by {result.ratio:.2f} times the deviation that arrives"
    )


def describe(result: ChannelResult) -> str:
    """The numbers of a result, as HTML."""
    side = "above" if result.shift > 0 else "below"
    return card(
        f"<b>{result.bits}, statistics {POLICIES[result.policy]}: {result.accuracy[result.policy]:.1f} %.</b> The norm "
        f"divides by {result.ratio:.2f} times the deviation that arrives, and subtracts a mean that lies "
        f"{abs(result.shift):.2f} deviations {side} the one that arrives",
        f"the price: {PRICES[result.policy]}",
    )


def norm_policies() -> LiveFigure:
    """The widget with shipped networks on the digits; a policy can be chosen in the figure too."""
    data, drawing, kinds = datasets.digits(), picture(), [*POLICIES]
    files = {title: paths.shipped("checkpoints", f"{name}.safetensors") for title, name in SHIPPED.items()}
    benches = {title: Bench(load_model(file)[0], data) for title, file in files.items()}
    widths = [("FP" if bits == FULL else str(bits), bits) for bits in (*range(1, 9), FULL)]
    policy = buttons("statistics", [(name, kind) for kind, name in POLICIES.items()], "running")
    controls = {
        "network": buttons("network", list(SHIPPED), next(iter(SHIPPED))),
        "bits": labelled("weights, activations (bits)", ipywidgets.SelectionSlider(options=widths, value=4)),
        "policy": policy,
        "layer": buttons("norm", LAYERS, LAYERS[0]),
        "channel": slider("channel", 3, 0, CHANNELS - 1),
    }

    def run(network: str, bits: int, **others: Any) -> ChannelResult:
        return compute(benches[network], Bits(bits, bits), **others)

    def choose(place: float) -> None:
        policy.value = kinds[min(max(round(place), 0), len(kinds) - 1)]

    live = LiveFigure(controls, run, drawing, words=describe)
    label = "the statistics: click a bar, or choose one with the arrow keys"
    live.touch(drawing.figure.axes[-1], label, lambda _x, y: choose(y),
               lambda right, up: choose(kinds.index(policy.value) + right - up))  # fmt: skip
    return live
