"""Lesson 03: what N dedicated networks cost, and one that serves all N pairs."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import ipywidgets
import torch
from torch import nn

from mebqat_lite import models
from mebqat_lite.bits import FULL, candidates
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.measure import looks
from mebqat_lite.measure.costs import saving, stored_bytes
from mebqat_lite.switching.batchnorm import NORMS
from mebqat_lite.switching.layers import LAYERS

NETWORKS = {
    "digit_net_wide": "digits: 4 convolutions",
    "cnn8": "SVHN: CNN-8",
    "preact_resnet20": "CIFAR-10: PreActResNet-20, x5 wide",
}
PAIRS = len(candidates())
MEAN_BITS = sum(pair.w for pair in candidates()) / PAIRS  # of a weight: 493 / 75


@dataclass(frozen=True)
class CostResult:
    """Bytes, and back-propagations of one step, for ``pairs`` bitwidth pairs and ``m`` sampled pairs a step."""

    network: str
    pairs: int
    m: int
    one: int  # bytes of one float network
    quantized: int  # its weights that a bitwidth changes
    norm_channels: int

    @property
    def dedicated(self) -> int:
        """Bytes of a float network for each pair."""
        return self.pairs * self.one

    @property
    def packed(self) -> float:
        """Bytes of a packed network for each pair, pairs of the mean width; what is not quantized stays float."""
        return self.dedicated - self.pairs * self.quantized * (FULL - MEAN_BITS) / 8

    @property
    def with_stats(self) -> int:
        """Bytes of the one network and a mean and a variance a channel for each pair."""
        return self.one + self.pairs * 2 * 4 * self.norm_channels

    @property
    def savings(self) -> dict[str, float]:
        """What the one network saves, in percent; less than zero where it costs more."""
        return {
            "storage": saving(self.one, self.dedicated),
            "storage with statistics": saving(self.with_stats, self.dedicated),
            "packed": saving(self.one, self.packed),
            "packed with statistics": saving(self.with_stats, self.packed),
            "packed weights": saving(FULL, self.pairs * MEAN_BITS),
            "work": saving(self.m, self.pairs),
        }

    @property
    def break_even(self) -> int:
        """The fewest pairs for which ``m`` back-propagations a step are less than one for each pair."""
        return self.m + 1


def compute(pairs: int = PAIRS, m: int = 4, network: str = "digit_net_wide") -> CostResult:
    """Count the costs.

    Args:
        pairs: bitwidth pairs to deliver, 1 to 75.
        m: pairs that MEBQAT visits in a step.
        network: a key of `NETWORKS`. Its first and last layer and its norms stay float.
    """
    if not 1 <= pairs <= PAIRS or m < 1:
        raise ValueError(f"give 1 to {PAIRS} pairs and at least one a step, not {pairs} and {m}")
    return CostResult(network, pairs, m, *sizes(network))


@functools.cache
def sizes(network: str) -> tuple[int, int, int]:
    """Bytes of a float network, the number of its weights that get quantized, and its norm channels."""
    with torch.device("meta"):
        model = models.build(network)
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, tuple(LAYERS))]
    channels = sum(m.get_parameter("weight").numel() for m in model.modules() if isinstance(m, tuple(NORMS)))
    return stored_bytes(model), sum(m.get_parameter("weight").numel() for m in layers[1:-1]), channels


# --- the picture -----------------------------------------------------------------------------------------------

EACH, SAMPLED = (replace(style, shape="") for style in svg.styles(["qat", "mebqat"]).values())
EVEN = Style(svg.DARK, "6 4", width=1.2)


def picture(result: CostResult) -> str:
    """Bars of the storage, and back-propagations a step over the number of pairs, as SVG."""
    s = result.savings
    title = (
        f"N = {result.pairs} pairs, M = {result.m} a step, {NETWORKS[result.network]}: storage saved "
        f"{s['storage']:.1f} % against float models, {s['packed']:.1f} % against packed ones; "
        f"back-propagations saved {s['work']:.1f} %"
    )
    return svg.figure(800, 340, title, _storage(result), _work(result))


def _storage(result: CostResult) -> str:
    n, s = result.pairs, result.savings
    rows = [
        (f"{n} dedicated, FP32", result.dedicated, EACH.colour, ""),
        (f"{n} dedicated, packed", result.packed, looks.pale(EACH.colour), ""),
        ("one, FP32", result.one, SAMPLED.colour, f"{s['storage']:+.1f} % / {s['packed']:+.1f} %"),
        (f"one, with {n} norm statistics", result.with_stats, looks.pale(SAMPLED.colour),
         f"{s['storage with statistics']:+.1f} % / {s['packed with statistics']:+.1f} %"),
    ]  # fmt: skip
    longest = max(row[1] for row in rows)
    parts = [svg.text(12, 22, "Storage", size=14)]
    for i, (name, size, colour, saved) in enumerate(rows):
        y = 44 + 66 * i
        parts.append(svg.text(12, y + 8, f"{name}: {_bytes(size)}", size=12.5))
        parts.append(svg.tag("rect", x=12, y=y + 14, width=max(350 * size / longest, 1), height=16, fill=colour))
        if saved:
            parts.append(svg.text(12, y + 45, f"saved against FP32 / against packed: {saved}", size=11.5))
    return "".join(parts)


def _work(result: CostResult) -> str:
    n, m = result.pairs, result.m
    plot = Plot((450, 74, 330, 218), (0, 80), (0, 80))
    ticks = [(x, str(x)) for x in range(0, 81, 20)]
    plot.axes("pairs that you deliver, N", "back-propagations a step", ticks, ticks)
    plot.line([1, PAIRS], [1, PAIRS], EACH)
    plot.line([1, PAIRS], [m, m], SAMPLED)
    plot.line([m + 0.5, m + 0.5], [0, 80], EVEN)
    for name, count in (("qat", n), ("mebqat", m)):
        plot.parts.append(svg.marker(*plot.at(n, count), replace(svg.styles([name])[name], size=5.5)))
    words = f"{n} against {m}: {result.savings['work']:+.1f} %"
    plot.parts.append(svg.text(450, 22, f"Back-propagations a step: {words}", size=14))
    even = f"pays from {result.break_even} pairs on"
    entries = [("one for each pair", EACH), (f"MEBQAT: M = {m}", SAMPLED), (even, EVEN)]
    return "".join(plot.parts) + svg.legend(450, 40, entries, 165, 2)


def _bytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def describe(result: CostResult) -> str:
    """The numbers of a result, as HTML."""
    n, s = result.pairs, result.savings
    weights = f"{n * MEAN_BITS:,.0f} bits a weight against {FULL}: {s['packed weights']:+.1f} %"
    return card(
        f"<b>N = {n}, M = {result.m}</b>: storage {s['storage']:+.1f} %, back-propagations at equal steps "
        f"{s['work']:+.1f} %. Below zero: the one network costs more",
        f"dedicated networks packed at their bits (on average 493 / 75 = {MEAN_BITS:.2f} bits), quantized weights "
        f"alone: {weights}; first and last layer and norms stay float everywhere",
    )


def cost_calculator() -> Live:
    """The widget."""
    menu = [(title, name) for name, title in NETWORKS.items()]
    controls = {
        "pairs": labelled("pairs to deliver, N", ipywidgets.IntSlider(10, 1, PAIRS)),
        "m": labelled("pairs a step, M", ipywidgets.IntSlider(4, 1, 8)),
        "network": buttons("network", menu, "digit_net_wide"),
    }

    def render(pairs: int, m: int, network: str) -> str:
        result = compute(pairs, m, network)
        return picture(result) + describe(result)

    return Live(controls, render)
