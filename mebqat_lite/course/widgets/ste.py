"""Lesson 02: the straight-through estimator seen: a staircase forward, a gate and a learned clip backward."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets
import torch
from torch import Tensor

from mebqat_lite.course.widgets import svg
from mebqat_lite.course.widgets.base import Live, buttons, card, labelled
from mebqat_lite.course.widgets.svg import Plot, Style
from mebqat_lite.quantizers import integer_range, pact_activation, step_clip, unit_activation

RANGE = (-2.5, 2.5)  # of the input
BITS = range(1, 7)
H = 1e-4  # of the finite differences (f(x + h) - f(x - h)) / 2h
SIDE = 1e-6  # a break is drawn from this far before it to as far after it
MISSING = "One bit is not defined for this quantizer, its lowest bitwidth is 2 bits. DoReFa defines one bit."


@dataclass(frozen=True)
class Choice:
    """A quantizer on the menu; ``size`` names what it learns, the clip or the step."""

    title: str
    size: str  # "" if it learns none
    apply: Callable[[Tensor, Tensor, int], Tensor]  # of the input, the size and the bits


def _lsq(x: Tensor, step: Tensor, bits: int) -> Tensor:
    return step_clip(x, step, *integer_range(bits, signed=True))


CHOICES = {
    "dorefa": Choice("DoReFa, clip 1", "", lambda x, size, bits: unit_activation(x, bits)),
    "sat": Choice("SAT, clip α", "α", lambda x, alpha, bits: pact_activation(x, alpha, bits)),
    "pact": Choice("PACT, clip α", "α", lambda x, alpha, bits: pact_activation(x, alpha, bits, sat=False)),
    "lsq": Choice("LSQ, step s, signed", "s", _lsq),
}


@dataclass(frozen=True)
class Slopes:
    """At some inputs, (points,) each: what goes forward, what comes back, and the finite differences of forward."""

    x: Tensor
    out: Tensor
    grad_x: Tensor  # the package's gradient of the output with respect to the input
    grad_size: Tensor  # and with respect to the clip or the step; NaN where there is none
    slope_x: Tensor  # the finite differences of the forward pass
    slope_size: Tensor


@dataclass(frozen=True)
class STEResult:
    """What `compute` found. With a ``message`` the bitwidth is not defined and there are no slopes."""

    quantizer: str
    bits: int
    clip: float  # the largest output
    low: int  # the lowest and the highest code
    high: int
    message: str = ""
    curve: Slopes | None = None  # at every break and both ends: straight lines between the points are exact
    here: Slopes | None = None  # at one input

    @property
    def step(self) -> float:
        """The distance of two levels."""
        return self.clip / self.high if self.high else math.nan


@functools.lru_cache(maxsize=64)
def _curve(quantizer: str, bits: int, clip: float, low: int, high: int) -> Slopes:
    step = clip / high
    jumps = [(code + 0.5) * step for code in range(low, high)]
    near = [b + d for b in jumps for d in (-2 * H, -SIDE, SIDE, 2 * H)]
    gates = [edge + d for edge in (low * step, high * step) for d in (-SIDE, SIDE)]
    inside = [x for x in (*near, *gates) if RANGE[0] < x < RANGE[1]]
    return slopes(quantizer, bits, clip, sorted([*RANGE, *inside]))


def slopes(quantizer: str, bits: int, clip: float, inputs: list[float]) -> Slopes:
    """Outputs, the package's gradients and finite differences at ``inputs``, by running the package's functions."""
    choice, high = CHOICES[quantizer], codes(quantizer, bits)[1]
    x = torch.tensor(inputs, dtype=torch.float64, requires_grad=True)
    size = x.new_tensor(clip / high if quantizer == "lsq" else clip).requires_grad_()
    out = choice.apply(x, size, bits)
    (grad_x,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    grad_size = torch.full_like(x, math.nan)
    if choice.size:  # the gradient of a number is a sum: one output after the other
        rows = torch.eye(len(x), dtype=x.dtype)
        grad_size = torch.stack([torch.autograd.grad(out, size, row, retain_graph=True)[0] for row in rows])
    with torch.no_grad():
        slope_x = (choice.apply(x + H, size, bits) - choice.apply(x - H, size, bits)) / (2 * H)
        slope_size = (choice.apply(x, size + H, bits) - choice.apply(x, size - H, bits)) / (2 * H)
    return Slopes(x.detach(), out.detach(), grad_x, grad_size.detach(), slope_x, slope_size)


def codes(quantizer: str, bits: int) -> tuple[int, int]:
    """The lowest and the highest code: signed for LSQ, else 0 to 2^bits - 1."""
    return integer_range(bits, signed=quantizer == "lsq")


def compute(quantizer: str, bits: int, clip: float = 1.5, x: float = 0.6) -> STEResult:
    """The forward staircase and the gradients that come back, over inputs from -2.5 to 2.5 and at one input.

    Args:
        quantizer: a key of `CHOICES`.
        bits: 1 to 6.
        clip: the largest output; DoReFa's is 1 whatever is given.
        x: the input at which numbers are wanted.
    """
    clip = 1.0 if quantizer == "dorefa" else clip
    low, high = codes(quantizer, bits)
    if bits == 1 and quantizer != "dorefa":
        return STEResult(quantizer, bits, clip, low, high, MISSING)
    curve = _curve(quantizer, bits, clip, low, high)
    return STEResult(quantizer, bits, clip, low, high, "", curve, slopes(quantizer, bits, clip, [x]))


# --- the picture -----------------------------------------------------------------------------------------------

OUT, IDENTITY = Style(svg.BLUE, width=2.4), Style(svg.DARK, "5 4", width=1.1)
BACK, SLOPE = Style(svg.GREEN, width=2.4), Style(svg.VERMILION, "3 2", width=1.4)
GATE, HERE = Style(svg.DARK, "2 3", width=1.1), Style(svg.BLACK, shape="circle", width=0, size=5)
LEFT, WIDTH, PANELS = 74.0, 706.0, ((44.0, 176.0), (246.0, 78.0), (354.0, 96.0))  # top and height
X_TICKS = [(x, f"{x:g}") for x in (-2, -1, 0, 1, 2)]
ENTRIES = [("output", OUT), ("gradient that the package returns", BACK), ("the chosen input", HERE)]
ENTRIES += [("output = input", IDENTITY), ("ends of the clip", GATE), ("finite difference", SLOPE)]


def picture(result: STEResult, differences: bool = False) -> str:
    """Forward above, the gradients below, over a common input axis, as SVG; ``differences`` shows the slopes too."""
    words = result.message or _words(result)
    shown = ", finite differences shown" if differences else ""
    title = f"{CHOICES[result.quantizer].title}, {result.bits} bits, clip {result.clip:.1f}{shown}: {words}"
    parts = [svg.legend(LEFT, 12, ENTRIES[: 6 if differences else 5], 236, 3)]
    if result.curve is None or result.here is None:
        parts.append(svg.text(LEFT + 20, 110, "not defined at one bit", size=14))
        return svg.figure(800, 494, title, *parts)
    curve, here = result.curve, result.here
    size = CHOICES[result.quantizer].size
    panels = [_panel(0, "output", (RANGE, [-2, -1, 0, 1, 2])), _panel(1, "gradient to x", ((-0.2, 1.4), [0, 1]))]
    panels.append(_panel(2, f"gradient to {size}" if size else "", _size_axis(result)))
    panels[0].line(RANGE, RANGE, IDENTITY)
    _draw(panels[0], result, curve.out, here.out, OUT)
    _draw(panels[1], result, curve.grad_x, here.grad_x, BACK, curve.slope_x if differences else None)
    if size:
        _draw(panels[2], result, curve.grad_size, here.grad_size, BACK, curve.slope_size if differences else None)
    else:
        panels[2].parts.append(svg.text(LEFT + 20, PANELS[2][0] + 52, "DoReFa's clip is fixed: nothing to learn"))
    return svg.figure(800, 494, title, *parts, *(part for panel in panels for part in panel.parts))


def _size_axis(result: STEResult) -> tuple[tuple[float, float], list[float]]:
    """Range and ticks of the gradient to the clip or the step."""
    if result.quantizer != "lsq":
        return (-0.45, 1.25), [0, 1] if CHOICES[result.quantizer].size else []
    return (1.25 * result.low, 1.25 * result.high + 0.5), [result.low, 0, result.high]


def _panel(index: int, label: str, axis: tuple[tuple[float, float], list[float]]) -> Plot:
    """An empty panel; the last one carries the labels of the common axis."""
    plot = Plot((LEFT, PANELS[index][0], WIDTH, PANELS[index][1]), RANGE, axis[0])
    last = index == len(PANELS) - 1
    x_ticks = X_TICKS if last else [(x, "") for x, _ in X_TICKS]
    plot.axes("input x" if last else "", label, x_ticks, [(y, f"{y:g}") for y in axis[1]])
    return plot


def _draw(plot: Plot, result: STEResult, ys: Tensor, here: Tensor, style: Style, slope: Tensor | None = None) -> None:
    """The curve, the ends of the clip, the finite differences if asked for, and the chosen input."""
    assert result.curve is not None and result.here is not None
    xs = result.curve.x.tolist()
    for edge in (result.low * result.step, result.high * result.step):
        if RANGE[0] < edge < RANGE[1]:
            plot.line([edge, edge], plot.y_range, GATE)
    plot.line(xs, ys.tolist(), style)
    if slope is not None:
        plot.line(xs, slope.tolist(), SLOPE)
    plot.parts.append(svg.marker(*plot.at(float(result.here.x), float(here)), HERE))


def _words(result: STEResult) -> str:
    """The numbers at the chosen input."""
    here, size = result.here, CHOICES[result.quantizer].size
    assert here is not None
    found = f"input {float(here.x):.2f}, output {float(here.out):.3f}; gradient to x {float(here.grad_x):.0f}"
    found += f", finite difference {float(here.slope_x) + 0.0:.4g}"
    if not size:
        return found
    slope = float(here.slope_size) + 0.0
    return f"{found}; gradient to {size} {float(here.grad_size) + 0.0:.3f}, finite difference {slope:.4g}"


def describe(result: STEResult) -> str:
    """The numbers of a result, as HTML."""
    title = f"<b>{CHOICES[result.quantizer].title}, bitwidth {result.bits}</b>"
    if result.message:
        return card(title, result.message)
    levels = f"{title}: {result.high - result.low + 1} levels, step {result.step:.3f}, codes {result.low}"
    lines = [f"{levels} to {result.high}", _words(result)]
    if result.quantizer == "lsq":
        lines.append("The gradient to s is shown before LSQ multiplies it by 1 / √(N p).")
    return card(*lines)


# --- the widget ------------------------------------------------------------------------------------------------


def straight_through() -> Live:
    """The widget: a quantizer, its bits and its clip, and an input at which to read the numbers."""
    controls = _controls()

    def render(quantizer: str, bits: int, clip: float, x: float, differences: str) -> str:
        controls["clip"].disabled = not CHOICES[quantizer].size
        result = compute(quantizer, bits, round(clip, 2), round(x, 2))
        return picture(result, differences == "shown") + describe(result)

    return Live(controls, render)


def _controls() -> dict[str, ipywidgets.Widget]:
    menu = [(choice.title, key) for key, choice in CHOICES.items()]
    slider = ipywidgets.FloatSlider
    clip = slider(1.5, min=0.4, max=2.2, step=0.1, readout_format=".1f")
    x = slider(0.6, min=RANGE[0], max=RANGE[1], step=0.05, readout_format=".2f")
    return {
        "quantizer": buttons("quantizer", menu, "sat"),
        "bits": labelled("bitwidth (bits)", ipywidgets.IntSlider(2, BITS[0], BITS[-1])),
        "clip": labelled("clip: the largest output", clip),
        "x": labelled("input x", x),
        "differences": buttons("finite differences", ["hidden", "shown"], "hidden"),
    }
