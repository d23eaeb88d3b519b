"""Lesson 01: what a quantizer does to a tensor, and where its error comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ipywidgets
import torch
from torch import Tensor

from mebqat_lite import quantizers
from mebqat_lite.quantizers import Quantizer, Site
from mebqat_lite.widgets import svg
from mebqat_lite.widgets.base import Live, card
from mebqat_lite.widgets.svg import Plot, Style

BITS = range(1, 9)
CLIPS = [round(0.2 * i, 1) for i in range(1, 31)]  # standard deviations
MOST_VALUES = 20_000  # that a picture is made of
MISSING = "{title}: one bit is not defined in this package, its lowest is 2 bits. DoReFa defines one bit."
RESCALED = (
    "This quantizer changes the scale of the weights, and a batch norm after it undoes any factor: "
    "the outputs are shown and measured times {factor:.3g}, the factor of least error."
)
SITE = Site("playground")


@dataclass(frozen=True)
class Choice:
    """A quantizer on the menu: ``apply(x, bits, clip)``, and the lowest and highest value it can give."""

    title: str
    quantizer: Quantizer
    apply: Callable[[Tensor, int, float], Tensor]
    limits: Callable[[Tensor, int, float], tuple[float, float]]
    has_clip: bool = False
    rescaled: bool = False  # measured after the best factor: a batch norm that follows takes up any factor


def _uniform() -> Choice:
    quantizer = quantizers.LSQ()

    def step(bits: int, clip: float) -> float:
        return clip / quantizers.integer_range(bits, signed=True)[1]

    def apply(x: Tensor, bits: int, clip: float) -> Tensor:
        return quantizer.weight(x, bits, {f"w{bits}": x.new_tensor(step(bits, clip))}, SITE)

    def limits(x: Tensor, bits: int, clip: float) -> tuple[float, float]:
        return quantizers.integer_range(bits, signed=True)[0] * step(bits, clip), clip

    return Choice("uniform signed (LSQ grid)", quantizer, apply, limits, has_clip=True)


def _tanh(title: str, quantizer: quantizers.DoReFa | quantizers.SAT, form: str) -> Choice:
    def limits(x: Tensor, bits: int, clip: float) -> tuple[float, float]:
        scale = float(x.abs().mean()) if form == "round" else 1.0
        low, high = quantizers.codes(torch.tensor([0.0, 1.0]), bits, form).tolist()
        return scale * (2 * low - 1), scale * (2 * high - 1)

    return Choice(
        title, quantizer, lambda x, bits, clip: quantizer.weight(x, bits, {}, SITE), limits, rescaled=True
    )


def _unit() -> Choice:
    quantizer = quantizers.DoReFa()
    return Choice(
        "activations: DoReFa, [0, 1]",
        quantizer,
        lambda x, bits, clip: quantizer.activation(x, bits, {}, SITE),
        lambda x, bits, clip: (0.0, 1.0),
    )


def _pact() -> Choice:
    quantizer = quantizers.SAT()
    return Choice(
        "activations: PACT, [0, α]",
        quantizer,
        lambda x, bits, clip: quantizer.activation(x, bits, {"alpha": x.new_tensor(clip)}, SITE),
        lambda x, bits, clip: (0.0, clip),
        has_clip=True,
    )


CHOICES = {
    "uniform": _uniform(),
    "dorefa": _tanh("DoReFa (tanh, rounded)", quantizers.DoReFa(), "round"),
    "sat": _tanh("SAT (tanh, floor)", quantizers.SAT("floor"), "floor"),
    "sat_centred": _tanh("SAT (tanh, centred)", quantizers.SAT("centred"), "centred"),
    "dorefa_activation": _unit(),
    "pact": _pact(),
}


@dataclass(frozen=True)
class Errors:
    """Mean squared error in two parts: of values between the outermost levels, and of values beyond them."""

    rounding: float = math.nan
    clipping: float = math.nan

    @property
    def total(self) -> float:
        """The mean squared error."""
        return self.rounding + self.clipping


@dataclass(frozen=True)
class PlaygroundResult:
    """What `compute` found. With a ``message`` the bitwidth is not defined and there are no outputs."""

    quantizer: str
    bits: int
    clip: float | None  # in standard deviations; None where the quantizer has no clip
    values: Tensor  # (values,)
    by_bits: dict[int, Errors]  # at this clip
    by_clip: dict[float, Errors]  # at these bits; empty where there is no clip
    message: str = ""
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))  # (values,), the factor included
    factor: float = 1.0  # of least squared error, for a quantizer that changes the scale
    limits: tuple[float, float] = (math.nan, math.nan)  # the outermost levels, the factor included
    errors: Errors = Errors()

    @property
    def levels(self) -> list[float]:
        """The levels in use, rising."""
        return self.outputs.unique().tolist()

    @property
    def clipped(self) -> float:
        """Share of the values that lie beyond the outermost levels, in percent."""
        return 100 * float(_beyond(self.values, self.limits).double().mean())

    @property
    def mse(self) -> float:
        """Mean squared difference of ``outputs`` and ``values``."""
        return self.errors.total

    @property
    def power(self) -> float:
        """Mean square of the values."""
        return float(self.values.double().square().mean())

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantization-noise ratio, 10 log10(power / mse), in dB."""
        return 10 * math.log10(self.power / self.mse) if self.mse > 0 else math.inf


def compute(values: Tensor, quantizer: str, bits: int, clip: float = 3.0) -> PlaygroundResult:
    """Quantize ``values`` (any shape) and split the squared error.

    Args:
        values: weights or activations.
        quantizer: a key of `CHOICES`.
        bits: 1 to 8.
        clip: in standard deviations of the values; ignored where the quantizer has none.
    """
    choice, x = CHOICES[quantizer], values.detach().flatten().float()
    unit = float(x.std())
    widths = [b for b in BITS if b > 1 or choice.quantizer.one_bit]
    by_bits = {b: _quantize(choice, x, b, clip * unit)[1] for b in widths}
    result = PlaygroundResult(quantizer, bits, clip if choice.has_clip else None, x, by_bits, {})
    if bits not in widths:
        return replace(result, message=MISSING.format(title=choice.title))
    by_clip = {c: _quantize(choice, x, bits, c * unit)[1] for c in (CLIPS if choice.has_clip else ())}
    found, errors = _quantize(choice, x, bits, clip * unit)
    return replace(result, by_clip=by_clip, errors=errors, **found)


def _quantize(choice: Choice, x: Tensor, bits: int, clip: float) -> tuple[dict[str, Any], Errors]:
    """Outputs, factor and limits by name, and the errors; ``clip`` is in the values' unit."""
    out = choice.apply(x, bits, clip)
    power = float(out.square().sum())
    factor = float((x * out).sum()) / power if choice.rescaled and power > 0 else 1.0
    out = out * factor
    low, high = (factor * limit for limit in choice.limits(x, bits, clip))
    beyond = _beyond(x, (low, high))
    squares = (out - x).double().square() / x.numel()
    errors = Errors(float(squares[~beyond].sum()), float(squares[beyond].sum()))
    return {"outputs": out, "factor": factor, "limits": (low, high)}, errors


def _beyond(x: Tensor, limits: tuple[float, float]) -> Tensor:
    return (x < limits[0]) | (x > limits[1])


# --- the picture -----------------------------------------------------------------------------------------------

OUTPUT, IDENTITY = Style(svg.BLUE, width=2.2), Style(svg.DARK, "5 4", width=1.2)
INSIDE, OUTSIDE = Style("#C8C8C8", width=9), Style("#EFB27C", width=9)
LIMIT = Style(svg.VERMILION, "2 3", width=1.5)
TOTAL, NOW = Style(svg.BLACK, width=2.5), Style(svg.BLACK, shape="circle", size=7)
ROUNDING = Style(svg.BLUE, "6 3", "circle", size=3)
CLIPPING = Style(svg.VERMILION, "2 3", "square", size=3)
DECADES = (-6, 0)


def picture(result: PlaygroundResult, against: str = "bits") -> str:
    """The values under the quantizer's staircase, and the error ``against`` bits or clip, as SVG."""
    state = f"{CHOICES[result.quantizer].title} at {_plural(result.bits, 'bit')}"
    if not result.message:
        state += f": {_plural(len(result.levels), 'level')}, SQNR {result.sqnr_db:.1f} dB"
    return svg.figure(800, 362, state, _staircase(result), _error_curve(result, against))


def _staircase(result: PlaygroundResult) -> str:
    x = result.values
    high = min(float(x.abs().max()), 6 * float(x.std())) or 1.0
    low = -high if float(x.min()) < 0 else 0.0
    plot = Plot(62, 50, 370, 262, (low, high), (low, high))
    _histogram(plot, result)
    ticks = svg.nice_ticks(low, high)
    best = "" if result.factor == 1 else f" × {result.factor:.3g}, the best factor"
    plot.axes("input (unit of the values)", f"output{best}", ticks, ticks)
    plot.line([low, high], [low, high], IDENTITY)
    if not result.message:
        plot.stairs(*_stairs(result, low, high), OUTPUT)
        _marks(plot, result)
    entries = [("output", OUTPUT), ("output = input", IDENTITY), ("values", INSIDE), ("clipped values", OUTSIDE)]
    return plot.draw() + svg.legend(62, 14, entries, 150, 2)


def _histogram(plot: Plot, result: PlaygroundResult, bins: int = 60) -> None:
    """How the values are spread, half the area high; those beyond the outermost levels in another colour."""
    (low, high), x = plot.x_range, result.values
    edges = torch.linspace(low, high, bins + 1)
    inside = ~_beyond(x, result.limits)
    counts = [torch.histogram(part.clamp(low, high), edges)[0] for part in (x, x[inside])]
    scale = 0.5 * (high - low) / max(float(counts[0].max()), 1.0)
    for count, style in zip(counts, (OUTSIDE, INSIDE), strict=True):
        plot.bars(edges.tolist(), (low + count * scale).tolist(), style.colour)


def _stairs(result: PlaygroundResult, low: float, high: float) -> tuple[list[float], list[float]]:
    """Edges and heights: the output jumps midway between two neighbouring values that differ in it."""
    x, order = result.values.sort()
    out = result.outputs[order]
    jumps = (out[1:] != out[:-1]).nonzero()[:, 0]
    edges = (x[jumps] + x[jumps + 1]) / 2
    return [low, *edges.tolist(), high], [*out[jumps].tolist(), float(out[-1])]


def _marks(plot: Plot, result: PlaygroundResult) -> None:
    """The levels in use on the output axis, and the outermost levels as limits of the input."""
    (low, high), left = plot.x_range, plot.left
    for level in result.levels:
        down = plot.at(low, level)[1]
        plot.parts.append(svg.segment(left, down, left + 9, down, Style(svg.BLUE, width=1.6)))
    for limit in result.limits:
        if low < limit < high:
            plot.line([limit, limit], [low, high], LIMIT)


def _error_curve(result: PlaygroundResult, against: str) -> str:
    """Error over the mean square of the values, on a logarithmic axis, in its parts."""
    by_clip = against == "clip" and result.clip is not None
    curve: Mapping[float, Errors] = result.by_clip if by_clip else result.by_bits  # type: ignore[assignment]
    plot = Plot(520, 50, 268, 262, (0, 6.2) if by_clip else (0.7, 8.3), DECADES)
    ticks = [(x, str(x)) for x in (range(7) if by_clip else BITS)]
    decades = [(y, f"1e{y}" if y else "1") for y in range(DECADES[0], DECADES[1] + 1)]
    x_label = "clip (standard deviations)" if by_clip else "bitwidth (bits)"
    plot.axes(x_label, "mean squared error / mean square", ticks, decades)
    for name, style in (("total", TOTAL), ("rounding", ROUNDING), ("clipping", CLIPPING)):
        heights = [_decade(getattr(errors, name) / result.power) for errors in curve.values()]
        plot.line(list(curve), heights, style)
    if not result.message:
        now = result.clip if by_clip else result.bits
        plot.parts.append(svg.marker(*plot.at(now or 0, _decade(result.mse / result.power)), NOW, hollow=True))
    entries = [("total", TOTAL), ("rounding", ROUNDING), ("clipping", CLIPPING)]
    return plot.draw() + svg.legend(512, 31, entries, 98, 3)


def _decade(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


def describe(result: PlaygroundResult) -> str:
    """The numbers of a result, as HTML."""
    title = f"<b>{CHOICES[result.quantizer].title}, {_plural(result.bits, 'bit')}</b>"
    if result.message:
        return card(title, result.message)
    lines = [
        f"{title}: {_plural(len(result.levels), 'level')} used of {2**result.bits}; "
        f"{result.clipped:.1f} % of the values clipped (beyond the outermost level)",
        f"mean squared error {result.mse:.3g} = rounding {result.errors.rounding:.3g} "
        f"+ clipping {result.errors.clipping:.3g}; signal-to-quantization-noise ratio {result.sqnr_db:.1f} dB",
    ]
    if CHOICES[result.quantizer].rescaled:
        lines.append(RESCALED.format(factor=result.factor))
    return card(*lines)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


# --- the widget ------------------------------------------------------------------------------------------------


def playground(values: Tensor) -> Live:
    """The widget for ``values``: weights of a layer, or activations. At most 20,000 of them, evenly spaced."""
    x = values.detach().flatten().float().cpu()
    x = x[:: max(1, x.numel() // MOST_VALUES)]
    wide = {"style": {"description_width": "initial"}}
    menu = [(choice.title, key) for key, choice in CHOICES.items()]
    start = "uniform" if bool((x < 0).any()) else "pact"
    controls = {
        "quantizer": ipywidgets.Dropdown(options=menu, value=start, description="quantizer", **wide),
        "bits": ipywidgets.IntSlider(4, BITS[0], BITS[-1], description="bitwidth (bits)", **wide),
        "clip": ipywidgets.FloatSlider(
            3.0, min=CLIPS[0], max=CLIPS[-1], step=CLIPS[0], readout_format=".1f", description="clip (std. dev.)", **wide
        ),
        "against": ipywidgets.Dropdown(options=["bits", "clip"], description="error against", **wide),
    }

    def render(quantizer: str, bits: int, clip: float, against: str) -> str:
        for name in ("clip", "against"):
            controls[name].disabled = not CHOICES[quantizer].has_clip
        result = compute(x, quantizer, bits, clip)
        return picture(result, against) + describe(result)

    live = Live(controls, render)
    live.update()
    return live
