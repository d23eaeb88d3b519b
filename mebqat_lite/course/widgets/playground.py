"""Lesson 01: what a quantizer does to a tensor, and where its error comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ipywidgets
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mebqat_lite import quantizers
from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.quantizers import Quantizer, Site, integer_range

BITS = range(1, 9)
CLIPS = [round(0.2 * i, 1) for i in range(1, 31)]  # standard deviations
MOST_VALUES = 20_000  # that a picture is made of
MISSING = "One bit is not defined for this quantizer, its lowest bitwidth is 2 bits. DoReFa defines one bit."
RESCALED = (
    "This quantizer changes the scale of the weights, and a batch norm after it undoes any factor: "
    "the outputs are shown and measured times {factor:.3g}, the factor of least error."
)


@dataclass(frozen=True)
class Choice:
    """A quantizer on the menu, of weights or of activations."""

    title: str
    quantizer: Quantizer
    kind: str = "weight"  # or "activation": the method of the quantizer
    has_clip: bool = False
    form: str = ""  # of the codes, where tanh changes the scale of the weights

    def apply(self, x: Tensor, bits: int, clip: float) -> Tensor:
        """Fake-quantized ``x``; a quantizer takes the step or alpha that ``clip`` makes, if it knows one."""
        step = clip / max(integer_range(bits, signed=True)[1], 1)
        params = {f"w{bits}": x.new_tensor(step), "alpha": x.new_tensor(clip)}
        return getattr(self.quantizer, self.kind)(x, bits, params, Site("playground"))

    def limits(self, x: Tensor, bits: int, clip: float) -> tuple[float, float]:
        """The outermost levels."""
        if self.form:
            scale = float(x.abs().mean()) if self.form == "round" else 1.0
            step, zero = quantizers.unit_grid(bits, self.form)
            return -zero * step * scale, (2**bits - 1 - zero) * step * scale
        if self.kind == "activation":
            return 0.0, clip if self.has_clip else 1.0
        low, high = integer_range(bits, signed=True)
        return clip * low / high, clip


DOREFA, SAT, CENTRED, LSQ = (quantizers.get(name)[1] for name in ("dorefa", "sat", "sat_centred", "lsq"))
CHOICES = {
    "uniform": Choice("uniform signed (LSQ grid)", LSQ, has_clip=True),
    "dorefa": Choice("DoReFa (tanh, rounded)", DOREFA, form="round"),
    "sat": Choice("SAT (tanh, floor)", SAT, form="floor"),
    "sat_centred": Choice("SAT (tanh, centred)", CENTRED, form="centred"),
    "dorefa_activation": Choice("activations: DoReFa, [0, 1]", DOREFA, "activation"),
    "pact": Choice("activations: PACT, [0, α]", SAT, "activation", has_clip=True),
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

    Raises:
        ValueError: for values that are not finite, or all equal.
    """
    choice, x = CHOICES[quantizer], values.detach().flatten().float()
    if not x.isfinite().all() or x.unique().numel() < 2:
        raise ValueError("the playground needs finite values, and at least two different ones")
    unit = float(x.std())
    widths = [b for b in BITS if b > 1 or choice.quantizer.one_bit]
    by_bits = {b: _quantize(choice, x, b, clip * unit)[1] for b in widths}
    result = PlaygroundResult(quantizer, bits, clip if choice.has_clip else None, x, by_bits, {})
    if bits not in widths:
        return replace(result, message=MISSING)
    by_clip = {c: _quantize(choice, x, bits, c * unit)[1] for c in (CLIPS if choice.has_clip else ())}
    found, errors = _quantize(choice, x, bits, clip * unit)
    return replace(result, by_clip=by_clip, errors=errors, **found)


def _quantize(choice: Choice, x: Tensor, bits: int, clip: float) -> tuple[dict[str, Any], Errors]:
    """Outputs, factor and limits by name, and the errors; ``clip`` is in the values' unit."""
    out = choice.apply(x, bits, clip)
    power = float(out.square().sum())
    factor = float((x * out).sum()) / power if choice.form and power > 0 else 1.0
    out = out * factor
    low, high = (factor * limit for limit in choice.limits(x, bits, clip))
    beyond = _beyond(x, (low, high))
    squares = (out - x).double().square() / x.numel()
    errors = Errors(float(squares[~beyond].sum()), float(squares[beyond].sum()))
    return {"outputs": out, "factor": factor, "limits": (low, high)}, errors


def _beyond(x: Tensor, limits: tuple[float, float]) -> Tensor:
    return (x < limits[0]) | (x > limits[1])


OUTPUT, IDENTITY = Style(svg.BLUE, width=2.2), Style(svg.DARK, "5 4", width=1.2)
INSIDE, OUTSIDE = Style(svg.PALE, width=9), Style(svg.ORANGE, width=9)
LIMIT, LEVEL = Style(svg.VERMILION, "2 3", width=1.5), Style(svg.BLUE, width=1.6)
LEVELS = Style(svg.BLUE, "1.6 6.5", width=9)
TOTAL, NOW = Style(svg.BLACK, width=2.5), Style(svg.BLACK, shape="circle", size=7)
ROUNDING = Style(svg.BLUE, "6 3", "circle", size=3)
CLIPPING = Style(svg.VERMILION, "2 3", "square", size=3)
TICKS = MaxNLocator(5, steps=[1, 2, 5, 10])  # at most five, at round numbers
AREA, ERROR_AREA, DECADES = (62.0, 50.0, 370.0, 262.0), (520.0, 50.0, 268.0, 262.0), (-6, 0)


def picture(result: PlaygroundResult, against: str = "bits") -> str:
    """The values under the quantizer's staircase, and the error ``against`` bits or clip, as SVG."""
    found = f"levels in use {len(result.levels)}, error {result.sqnr_db:.1f} dB below the signal"
    title = f"{CHOICES[result.quantizer].title}, bitwidth {result.bits}: {result.message or found}"
    return svg.figure(800, 362, title, _staircase(result), _error_curve(result, against))


def _staircase(result: PlaygroundResult) -> str:
    x = result.values
    high = min(float(x.abs().max()), 6 * float(x.std()))
    low = -high if float(x.min()) < 0 else 0.0
    plot = Plot(AREA, (low, high), (low, high))
    _histogram(plot, result)
    ticks = [(t, f"{t + 0.0:.6g}") for t in TICKS.tick_values(low, high) if low <= t <= high]
    best = "" if result.factor == 1 else f" × {result.factor:.3g}, the best factor"
    plot.axes("input (unit of the values)", f"output{best}", ticks, ticks)
    plot.line([low, high], [low, high], IDENTITY)
    if result.message:
        plot.parts.append(svg.text(AREA[0] + 12, AREA[1] + 22, "not defined at one bit", size=14))
    else:
        plot.stairs(*_stairs(result, low, high), OUTPUT)
        _marks(plot, result)
    entries = [("output", OUTPUT), ("output = input", IDENTITY), ("outermost level", LIMIT)]
    entries += [("values", INSIDE), ("clipped values", OUTSIDE), ("levels in use", LEVELS)]
    return "".join(plot.parts) + svg.legend(62, 14, entries, 128, 3)


def _histogram(plot: Plot, result: PlaygroundResult, bins: int = 60) -> None:
    """How the values are spread, half the area high; those beyond the outermost levels in another colour."""
    (low, high), x = plot.x_range, result.values
    edges = torch.linspace(low, high, bins + 1)
    parts = (x, x[~_beyond(x, result.limits)])
    counts = [torch.histogram(part.clamp(low, high), edges)[0] for part in parts]
    scale = 0.5 * (high - low) / max(float(counts[0].max()), 1.0)
    for count, style in zip(counts, (OUTSIDE, INSIDE), strict=True):
        plot.bars(edges.tolist(), (low + count * scale).tolist(), style.colour)


def _stairs(result: PlaygroundResult, low: float, high: float) -> tuple[list[float], list[float]]:
    """Edges and heights: the output jumps midway between two neighbouring values that differ in it."""
    x, order = result.values.sort()
    out = result.outputs[order]
    jumps = (out[1:] != out[:-1]).nonzero()[:, 0]
    edges = ((x[jumps] + x[jumps + 1]) / 2).tolist()
    return [low, *edges, high], [*out[jumps].tolist(), float(out[-1])]


def _marks(plot: Plot, result: PlaygroundResult) -> None:
    """The levels in use on the output axis, and the outermost levels as limits of the input."""
    low, high = plot.x_range
    for left, y in (plot.at(low, level) for level in result.levels):
        plot.parts.append(svg.segment(left, y, left + 9, y, LEVEL))
    for limit in result.limits:
        if low < limit < high:
            plot.line([limit, limit], [low, high], LIMIT)


def _error_curve(result: PlaygroundResult, against: str) -> str:
    """Error over the mean square of the values, on a logarithmic axis, in its parts."""
    by_clip = against == "clip" and result.clip is not None
    curve: Mapping[float, Errors] = result.by_clip if by_clip else result.by_bits  # type: ignore[assignment]
    plot = Plot(ERROR_AREA, (0, 6.2) if by_clip else (0.7, 8.3), DECADES)
    ticks = [(x, str(x)) for x in (range(7) if by_clip else BITS)]
    decades = [(y, f"1e{y}" if y else "1") for y in range(DECADES[0], DECADES[1] + 1)]
    x_label = "clip (standard deviations)" if by_clip else "bitwidth (bits)"
    plot.axes(x_label, "mean squared error / mean square of input", ticks, decades)
    entries = [("total", TOTAL), ("rounding", ROUNDING), ("clipping", CLIPPING)]
    for name, style in entries:
        heights = [_decade(getattr(errors, name) / result.power) for errors in curve.values()]
        plot.line(list(curve), heights, style)
    if not result.message:
        now = result.clip if by_clip else result.bits
        plot.parts.append(svg.marker(*plot.at(now or 0, _decade(result.mse / result.power)), NOW, hollow=True))
    return "".join(plot.parts) + svg.legend(512, 31, entries, 98, 3)


def _decade(value: float) -> float:
    return math.log10(value) if value > 0 else -math.inf


def describe(result: PlaygroundResult) -> str:
    """The numbers of a result, as HTML."""
    title = f"<b>{CHOICES[result.quantizer].title}, bitwidth {result.bits}</b>"
    if result.message:
        return card(title, result.message)
    lines = [
        f"{title}: {len(result.levels)} of {2**result.bits} levels in use; "
        f"{result.clipped:.1f} % of the values clipped (beyond the outermost levels)",
        f"mean squared error {result.mse:.2e} = rounding {result.errors.rounding:.2e} "
        f"+ clipping {result.errors.clipping:.2e}; signal-to-quantization-noise ratio {result.sqnr_db:.1f} dB",
    ]
    if CHOICES[result.quantizer].form:
        lines.append(RESCALED.format(factor=result.factor))
    return card(*lines)


def playground(values: Tensor) -> Live:
    """The widget for ``values``: weights of a layer, or activations. At most 20,000 of them, evenly spaced."""
    x = values.detach().flatten().float().cpu()
    x = x[:: -(-x.numel() // MOST_VALUES) or 1]
    controls = _controls("uniform" if bool((x < 0).any()) else "pact")

    def render(quantizer: str, bits: int, clip: float, against: str) -> str:
        for name in ("clip", "against"):
            controls[name].disabled = not CHOICES[quantizer].has_clip
        result = compute(x, quantizer, bits, clip)
        return picture(result, against) + describe(result)

    return Live(controls, render)


def _controls(quantizer: str) -> dict[str, ipywidgets.Widget]:
    menu = [(choice.title, key) for key, choice in CHOICES.items()]
    clips = {"min": CLIPS[0], "max": CLIPS[-1], "step": CLIPS[0], "readout_format": ".1f"}
    return {
        "quantizer": buttons("quantizer", menu, quantizer),
        "bits": labelled("bitwidth (bits)", ipywidgets.IntSlider(4, BITS[0], BITS[-1])),
        "clip": labelled("clip (standard deviations)", ipywidgets.FloatSlider(3.0, **clips)),
        "against": buttons("show the error against", ["bits", "clip"], "bits"),
    }
