"""Lesson 01: what a quantizer does to a tensor, and where its error comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from mebqat_lite import quantizers
from mebqat_lite.bits import FP, BitsLike
from mebqat_lite.course.widgets.base import buttons, card, labelled, slider
from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part
from mebqat_lite.measure import plots
from mebqat_lite.measure.looks import BLACK, BLUE, GREY, ORANGE, PAGE, PALE, SMALLEST, VERMILION, WHITE, looks
from mebqat_lite.quantizers import Quantizer, Site, integer_range
from mebqat_lite.switching.state import at
from mebqat_lite.tensors import evaluating, like_model

BITS = range(1, 9)
CLIPS = [round(0.2 * i, 1) for i in range(1, 31)]  # standard deviations
REACH, POINTS = 6.4, 1601  # of the inputs whose outputs are drawn: standard deviations, and how many on each side of 0
MOST_VALUES = 10_000  # that a picture is made of
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

    def beside(self, x: Tensor, inputs: Tensor, bits: int, clip: float) -> Tensor:
        """The outputs for other ``inputs``, of their shape, when ``x`` is what is quantized.

        Weights are scaled by their largest and by their mean, so inputs are quantized together with ``x``, and the mean
        of all of them is replaced by that of ``x``. No input may lie beyond the largest.
        """
        both = torch.cat([x, inputs])
        out = self.apply(both, bits, clip)[x.numel() :]
        return out * (x.abs().mean() / both.abs().mean()) if self.form == "round" else out

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
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))  # (inputs,), evenly spaced
    stairs: Tensor = field(default_factory=lambda: torch.empty(0))  # (inputs,), the outputs there
    factor: float = 1.0  # of least squared error, for a quantizer that changes the scale
    limits: tuple[float, float] = (math.nan, math.nan)  # the outermost levels, the factor included
    errors: Errors = Errors()

    @cached_property
    def unit(self) -> float:
        """The standard deviation of the values."""
        return float(self.values.std())

    @property
    def ends(self) -> tuple[float, float]:
        """Where the axes of the values begin and end."""
        high = REACH * self.unit
        return -high if bool((self.values < 0).any()) else 0.0, high

    @cached_property
    def levels(self) -> list[float]:
        """The levels in use, rising."""
        return self.outputs.unique().tolist()

    @cached_property
    def clipped(self) -> float:
        """Share of the values that lie beyond the outermost levels, in percent."""
        return 100 * float(beyond(self.values, self.limits).double().mean())

    @property
    def mse(self) -> float:
        """Mean squared difference of ``outputs`` and ``values``."""
        return self.errors.total

    @cached_property
    def power(self) -> float:
        """Mean square of the values."""
        return float(self.values.double().square().mean())

    @cached_property
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
    inputs = _inputs(choice, x)
    stairs = found["factor"] * choice.beside(x, inputs, bits, clip * unit)
    return replace(result, by_clip=by_clip, errors=errors, inputs=inputs, stairs=stairs, **found)


def _quantize(choice: Choice, x: Tensor, bits: int, clip: float) -> tuple[dict[str, Any], Errors]:
    """Outputs, factor and limits by name, and the errors; ``clip`` is in the values' unit."""
    out = choice.apply(x, bits, clip)
    factor = _best_factor(x, out) if choice.form else 1.0
    out = out * factor
    low, high = (factor * limit for limit in choice.limits(x, bits, clip))
    outside = beyond(x, (low, high))
    squares = (out - x).double().square() / x.numel()
    errors = Errors(float(squares[~outside].sum()), float(squares[outside].sum()))
    return {"outputs": out, "factor": factor, "limits": (low, high)}, errors


def _best_factor(x: Tensor, out: Tensor) -> float:
    """The factor of ``out`` with the least squared difference to ``x``."""
    power = float(out.square().sum())
    return float((x * out).sum()) / power if power > 0 else 1.0


def _inputs(choice: Choice, x: Tensor) -> Tensor:
    """Evenly spaced inputs to draw the outputs of; where tanh is divided by its largest, none beyond the largest."""
    reach = REACH * float(x.std())
    inputs = torch.linspace(-reach, reach, 2 * POINTS - 1)
    return inputs[inputs.abs() <= x.abs().max()] if choice.form else inputs


def beyond(x: Tensor, limits: tuple[float, float]) -> Tensor:
    """Which of the values lie beyond the outermost levels, of the shape of ``x``."""
    return (x < limits[0]) | (x > limits[1])


SIZE, WIDTHS = (PAGE, 3.7), (1.6, 1, 1)  # inches; of the three panels, as shares
INSIDE, OUTSIDE, BINS = PALE, ORANGE, 96
SHARES = looks(("total", "rounding", "clipping"))  # of the error


def picture() -> Drawing:
    """Draw the values under the quantizer's staircase, and the error over bits and over the clip.

    The drawing takes results of `compute`. Its first axes are those of the values.
    """
    with plots.style():
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=SIZE, width_ratios=WIDTHS)
        values, staircase = _values(left), _staircase(left)
        over_bits = _errors(middle, lambda result: (result.by_bits, result.bits))
        over_clip = _errors(right, lambda result: (result.by_clip, result.clip or 0))
        middle.set(xlabel="bitwidth", ylabel="squared error / mean square", xlim=(0.5, 8.5), xticks=BITS)
        right.set(xlabel="clip (std. deviations)", xlim=(0, REACH), xticks=range(7))
        right.tick_params(labelleft=False)  # the axis is that of the middle
        narrow: dict[str, Any] = {"ncols": 3, "columnspacing": 1.2, "handlelength": 1.7}
        handles = [*values.moving, *staircase.moving[:4]]
        figure.legend(handles=handles, loc="outside upper left", **narrow)
        figure.legend(handles=middle.lines[:3], loc="outside upper right", **narrow)
    return Drawing(figure, say, values, staircase, over_bits, over_clip)


def _values(axes: Axes) -> Part:
    """Draw how the values are spread, half of the panel high, and set the axes.

    A bar for exact zeros, which a ReLU makes many of, may be cut off.
    """
    look: dict[str, Any] = {"fill": True, "linewidth": 0}
    outside = axes.stairs([0.0], [0.0, 1.0], color=OUTSIDE, label="clipped values", **look)
    inside = axes.stairs([0.0], [0.0, 1.0], color=INSIDE, label="values", **look)
    axes.set(xlabel="input", ylabel="output")

    def update(result: PlaygroundResult) -> None:
        low, high = result.ends
        if axes.get_xlim() != (low, high):  # other values: the axes are drawn again
            axes.set(xlim=(low, high), ylim=(low, high))
        edges, values = torch.linspace(low, high, BINS + 1), result.values
        parts = (values, values[~beyond(values, result.limits)], values[values != 0])
        counts, within, some = (torch.histogram(part.clamp(low, high), edges)[0] for part in parts)
        for bars, count in ((outside, counts), (inside, within)):
            heights = low + 0.5 * (high - low) * (count / some.max()).clamp(max=1.1)
            bars.set_data(heights.numpy(), edges.numpy(), baseline=low)

    return Part(update, [outside, inside])


def _staircase(axes: Axes) -> Part:
    """Draw the output over the input, the levels, and the ends of the clip, one of which can be dragged."""
    [identity] = axes.plot([], [], color=GREY, linestyle="--", linewidth=1, label="output = input")
    [stairs] = axes.plot([], [], color=BLUE, linewidth=2, drawstyle="steps-mid", label="output")
    [levels] = axes.plot([], [], "_", color=BLUE, markersize=12, markeredgewidth=1.6, label="levels in use")
    ends = axes.vlines([], 0, 1, colors=VERMILION, linestyles=":", linewidths=1.8, label="outermost levels")
    [handle] = axes.plot([], [], "D", color=VERMILION, markersize=9, markeredgecolor=WHITE)
    words = axes.text(0.03, 0.97, "", transform=axes.transAxes, va="top", fontsize=SMALLEST)

    def update(result: PlaygroundResult) -> None:
        low, high = result.ends
        identity.set_data([low, high], [low, high])
        stairs.set_data(result.inputs.numpy(), result.stairs.numpy())
        levels.set_data([low] * len(result.levels), result.levels)
        ends.set_segments([[(end, low), (end, high)] for end in result.limits if low < end < high])
        top = low + 0.85 * (high - low)
        handle.set_data(*(([result.limits[1]], [top]) if result.clip and not result.message else ([], [])))
        scaled = "" if result.factor == 1 else f"output times {result.factor:.3g}, the best factor"
        words.set_text("not defined at one bit" if result.message else scaled)

    return Part(update, [identity, stairs, levels, ends, handle, words])


def _errors(axes: Axes, of: Callable[[PlaygroundResult], tuple[Mapping[Any, Errors], float]]) -> Part:
    """Draw the error, over the mean square of the values, with its two parts, and a ring where the result is.

    ``of`` takes the errors, by bits or by the clip, and the place of the ring from a result.
    """
    lines = {name: axes.plot([], [], label=name, markersize=3.5, **look)[0] for name, look in SHARES.items()}
    [ring] = axes.plot([], [], "o", color=BLACK, markersize=12, fillstyle="none", markeredgewidth=2)
    words = axes.text(0.5, 0.5, "", transform=axes.transAxes, ha="center", fontsize=SMALLEST)
    axes.set(yscale="log", ylim=(1e-6, 2))

    def update(result: PlaygroundResult) -> None:
        curve, now = of(result)
        for name, line in lines.items():
            shares = [getattr(errors, name) / result.power for errors in curve.values()]
            line.set_data(list(curve), [share or math.nan for share in shares])  # none has no place on the axis
        is_shown = bool(curve) and not result.message
        ring.set_data(*(([now], [result.mse / result.power]) if is_shown else ([], [])))
        words.set_text("" if curve or result.message else "no clip to choose")

    return Part(update, [*lines.values(), ring, words])


def say(result: PlaygroundResult) -> str:
    """The picture in one sentence."""
    clip = "" if result.clip is None else f", clip {result.clip:.1f} standard deviations"
    found = f"{len(result.levels)} levels in use, error {result.sqnr_db:.1f} dB below the signal"
    return f"{CHOICES[result.quantizer].title}, bitwidth {result.bits}{clip}: {result.message or found}"


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


def playground(weights: Tensor, activations: Tensor) -> LiveFigure:
    """The widget: a quantizer, its bits and its clip, which can be dragged on the values.

    Args:
        weights: of a layer, in any shape; they are shown to the quantizers of weights.
        activations: inputs of a layer, in any shape; they are shown to the quantizers of activations.

    Of each at most 10,000 values are used, evenly spaced.
    """
    samples, drawing = {"weight": _some(weights), "activation": _some(activations)}, picture()
    steps = {"min": CLIPS[0], "max": CLIPS[-1], "step": 0.1, "readout_format": ".1f"}
    clip = labelled("clip (std. deviations)", ipywidgets.FloatSlider(3.0, **steps))
    controls = {
        "quantizer": buttons("quantizer", [(choice.title, key) for key, choice in CHOICES.items()], "uniform"),
        "bits": slider("bitwidth (bits)", 4, BITS[0], BITS[-1]),
        "clip": clip,
    }

    def run(quantizer: str, **others: Any) -> PlaygroundResult:
        clip.disabled = not CHOICES[quantizer].has_clip
        return compute(samples[CHOICES[quantizer].kind], quantizer, **others)

    def move(place: float) -> None:
        clip.value = round(place, 1)

    live = LiveFigure(controls, run, drawing, words=describe)
    live.touch(
        drawing.figure.axes[0],
        "the clip: drag it, or move it with the arrow keys",
        lambda x, _y: move(abs(x) / live.result.unit),
        lambda right, up: move(clip.value + clip.step * (right + up)),
        can_touch=lambda: not clip.disabled,
    )
    return live


def inputs_of(
    model: nn.Module, layer: str, images: Tensor, bits: BitsLike = FP, norm_stats: str | None = None
) -> Tensor:
    """Return what a layer reads when the model is shown ``images``, by default at full precision."""
    seen: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad(), evaluating(model), at(model, bits, norm_stats):
            model(like_model(images, model))
    finally:
        hook.remove()
    return seen[0].cpu()


def _some(values: Tensor) -> Tensor:
    x = values.detach().flatten().float().cpu()
    return x[:: -(-x.numel() // MOST_VALUES) or 1]
