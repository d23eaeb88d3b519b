"""Lesson 03: one network, and whose mean and variance its batch norms use."""

from __future__ import annotations

from dataclasses import dataclass

import ipywidgets
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from mebqat_lite import datasets, paths
from mebqat_lite.bits import FP, FULL, Bits, BitsLike
from mebqat_lite.checkpoint import load_model
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.datasets.base import Data
from mebqat_lite.switching.batchnorm import SwitchableNorm
from mebqat_lite.switching.norms import is_recalibrated, recalibrate
from mebqat_lite.switching.state import at, norm_layers
from mebqat_lite.tensors import place

POLICIES = {
    "running": "kept from training",
    "recalibrated": "recalibrated",
    "batch": "batch",
    "one_class": "batch of one class",
}
LAYERS = ("body.0.1", "body.1.1", "body.2.1")  # the norms of the digit net behind quantized layers
SHIPPED = {
    "MEBQAT (kept: FP's)": "digits-wide-mebqat",
    "QAT for W4A4": "digits-wide-qat_w4a4",
    "QAT for W1A1": "digits-wide-qat_w1a1",
}


@dataclass(frozen=True)
class PolicyResult:
    """One network at one pair: accuracy under each policy, and the statistics of one norm under one of them."""

    bits: Bits
    policy: str
    accuracy: dict[str, float]  # of each policy, in percent
    layer: str
    arrives: Tensor  # (2, channels): mean and standard deviation over all test images
    used: Tensor  # (2, channels): what the norm subtracts and divides by

    @property
    def ratio(self) -> float:
        """What the norm divides by, over the standard deviation that arrives: median over channels."""
        return float((self.used[1] / self.arrives[1]).median())

    @property
    def shift(self) -> float:
        """How far the mean that the norm subtracts is from the one that arrives, in its standard deviations: median."""
        return float(((self.used[0] - self.arrives[0]).abs() / self.arrives[1]).median())


def compute(
    model: nn.Module, data: Data, bits: BitsLike, policy: str = "running", layer: str = "body.0.1"
) -> PolicyResult:
    """Classify all test images at ``bits`` under every norm policy; look into the norm named ``layer`` under one.

    ``one_class`` is the policy ``batch`` with ten batches, one for each class; the statistics are those of the first.
    Statistics that ``recalibrated`` lacks are measured on the training images and stored with the model.
    """
    data.test.of_classes("the widget of norm policies")
    pair = Bits.parse(bits)
    if policy not in POLICIES:
        raise ValueError(f"no policy {policy!r}; choose one of {', '.join(POLICIES)}")
    if not is_recalibrated(model, str(pair)):
        recalibrate(model, data.train.images, pair)
    model.eval()
    norm = norm_layers(model)[layer]
    images, labels = data.test.images.to(*place(model)), data.test.labels
    found = {}
    for kind in POLICIES:
        parts = [labels == c for c in labels.unique()] if kind == "one_class" else [torch.ones_like(labels).bool()]
        found[kind] = [_classify(model, norm, images[part], labels[part], pair, kind) for part in parts]
    accuracy = {kind: 100 * sum(hits for hits, _ in runs) / len(labels) for kind, runs in found.items()}
    arrives = found["batch" if policy == "one_class" else policy][0][1]
    return PolicyResult(pair, policy, accuracy, layer, arrives, _used(model, norm, pair, policy, found[policy][0][1]))


def _classify(
    model: nn.Module, norm: SwitchableNorm, images: Tensor, labels: Tensor, pair: Bits, kind: str
) -> tuple[int, Tensor]:
    """Right answers for one batch, and the (2, channels) mean and standard deviation of what ``norm`` reads."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(_moments(inputs[0])))
    try:
        with torch.no_grad(), at(model, pair, "batch" if kind == "one_class" else kind):
            answers = model(images).argmax(1).cpu()
    finally:
        hook.remove()
    return int((answers == labels).sum()), seen[0]


def _moments(x: Tensor) -> Tensor:
    """(2, channels) of x, (batch, channels, height, width)."""
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return torch.stack([mean, var.sqrt()]).cpu()


def _used(model: nn.Module, norm: SwitchableNorm, pair: Bits, policy: str, batch: Tensor) -> Tensor:
    if policy in ("batch", "one_class"):
        return batch
    if policy == "recalibrated":
        with at(model, pair):
            mean, var = norm.stats()
    else:
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    return torch.stack([mean, var.sqrt()]).cpu()


# --- the picture -----------------------------------------------------------------------------------------------

ARRIVES = Style(svg.VERMILION, "", "circle", width=1.6, size=3.4)
USED = Style(svg.BLUE, "4 2", "square", width=1.6, size=3.4)
TICKS = MaxNLocator(5, steps=[1, 2, 5, 10])  # at most five steps, at round numbers
CHANCE = Style(svg.BLACK, "2 3", width=1.3)


def picture(result: PolicyResult, network: str) -> str:
    """Accuracy under each policy, and the norm's statistics, as SVG."""
    title = (
        f"{network} at {result.bits}, statistics {POLICIES[result.policy]}: accuracy "
        f"{result.accuracy[result.policy]:.1f} %; {result.layer}: {_misfit(result)}"
    )
    return svg.figure(800, 350, title, _bars(result), _channels(result))


def _misfit(result: PolicyResult) -> str:
    return f"divided by {result.ratio:.2f} × the true spread, mean off by {result.shift:.2f} spreads"


def _bars(result: PolicyResult) -> str:
    parts = [svg.text(12, 22, f"{result.bits}: accuracy (%) by norm policy", size=14)]
    for i, (kind, name) in enumerate(POLICIES.items()):
        y, value, chosen = 44 + 70 * i, result.accuracy[kind], kind == result.policy
        fill = svg.BLUE if chosen else svg.SKY
        words = f"{'▸ ' if chosen else ''}{name}: {value:.1f} %"
        frame = Style(svg.BLACK if chosen else svg.LIGHT, width=2.2 if chosen else 1).paint
        parts += [
            svg.text(12, y + 8, words, size=13),
            svg.tag("rect", x=12, y=y + 15, width=max(2.7 * value, 1), height=20, fill=fill),
            svg.tag("rect", x=12, y=y + 15, width=270, height=20, **frame),
            svg.segment(39, y + 15, 39, y + 35, CHANCE),
        ]
    return "".join([*parts, svg.text(12, 318, "dotted: chance, 10 %", size=11.5)])


def _channels(result: PolicyResult) -> str:
    """Mean ± standard deviation of each channel: what arrives, and beside it what the norm uses."""
    both = torch.stack([result.arrives, result.used])  # (2, 2, channels)
    limit = 1.1 * float((both[:, 0].abs() + both[:, 1]).max())
    count = both.shape[2]
    plot = Plot((370, 62, 415, 232), (-0.8, count - 0.2), (-limit, limit))
    ticks = [(y, f"{y + 0.0:.4g}") for y in TICKS.tick_values(-limit, limit) if abs(y) <= limit]
    x_ticks = [(i, str(i)) for i in range(0, count, 4)]
    plot.axes(f"channel of {result.layer}", "mean ± standard deviation", x_ticks, ticks)
    for (means, spreads), style, shift in zip(both.tolist(), (ARRIVES, USED), (-0.18, 0.18), strict=True):
        for i, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
            low, high = plot.at(i + shift, mean - spread), plot.at(i + shift, mean + spread)
            plot.parts += [svg.segment(*low, *high, style), svg.marker(*plot.at(i + shift, mean), style)]
    used = "used by the norm" + (" (a batch of zeros)" if result.policy == "one_class" else "")
    entries = [("arrives, all test images", ARRIVES), (used, USED)]
    words = f"Median channel: {_misfit(result)}"
    return "".join(plot.parts) + svg.text(345, 22, words, size=12.5) + svg.legend(370, 43, entries, 190, 2)


def describe(result: PolicyResult, network: str) -> str:
    """The numbers of a result, as HTML."""
    rest = ", ".join(f"{name} {result.accuracy[kind]:.1f} %" for kind, name in POLICIES.items())
    return card(f"<b>{network} at {result.bits}</b>, all test images, the same weights each time: {rest}")


def norm_policies() -> Live:
    """The widget with shipped networks on the digits."""
    data = datasets.digits()
    nets = {n: load_model(paths.shipped("checkpoints", f"{f}.safetensors"))[0] for n, f in SHIPPED.items()}
    widths = [("FP" if b == FULL else str(b), b) for b in (*range(1, 9), FP.w)]
    controls = {
        "bits": labelled("weights and activations (bits)", ipywidgets.SelectionSlider(options=widths, value=2)),
        "policy": buttons("statistics", [(name, kind) for kind, name in POLICIES.items()], "running"),
        "layer": buttons("show the norm", LAYERS, LAYERS[0]),
        "network": buttons("network", list(nets), next(iter(nets))),
    }

    def render(bits: int, policy: str, layer: str, network: str) -> str:
        result = compute(nets[network], data, Bits(bits, bits), policy, layer)
        return picture(result, network) + describe(result, network)

    return Live(controls, render)
