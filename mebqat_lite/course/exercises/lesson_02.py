"""Exercises of lesson 02: the straight-through estimator, the gradient of a clip, and that of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from mebqat_lite.course.exercises import Exercise, Mistake, expect

Student = Callable[..., Any]


def _uniform(low: float, high: float, rng: Generator) -> float:
    return float(torch.empty(()).uniform_(low, high, generator=rng))


def _inside_a_step(codes: Tensor, rng: Generator) -> Tensor:
    """x / step around ``codes``, away from the middle of two levels and from the levels themselves."""
    side = torch.randint(0, 2, codes.shape, generator=rng) * 2 - 1
    return codes + side * torch.empty(codes.shape).uniform_(0.05, 0.42, generator=rng)


# --- 2.1 -------------------------------------------------------------------------------------------------------


def _ste_round(x: torch.Tensor, bits: int) -> torch.Tensor:
    """q_b(clip(x, 0, 1)), same shape as ``x``; the gradient is 1 inside the clip and 0 outside."""
    levels = 2**bits - 1
    clipped = x.clamp(0, 1)  # its gradient is the gate
    rounded = torch.round(clipped * levels) / levels
    return clipped + (rounded - clipped).detach()


def _grade_ste_round(student: Student, rng: Generator) -> None:
    for bits in (2, 1, 3, 4):
        levels = 2**bits - 1
        codes = torch.randint(-levels, 2 * levels + 1, (5, 40), generator=rng)
        codes[0, :4] = torch.tensor([-levels, -1, levels + 1, 2 * levels])  # outside on both sides, always
        x = (_inside_a_step(codes, rng) / levels).requires_grad_()
        upstream = torch.randn(x.shape, generator=rng)
        out = student(x, bits)
        nearest = codes.clamp(0, levels) / levels
        expect(out, nearest, f"bits = {bits}, the values", _wrong_values(x.detach(), levels))
        _grade_gate(x, out, upstream, bits)


def _wrong_values(x: Tensor, levels: int) -> list[tuple[str, Tensor]]:
    v = x.clamp(0, 1)
    return [
        ("x comes back: round it", x),
        ("x is clipped, but not rounded: the forward pass must give the levels", v),
        ("it does not clip: values outside 0 and 1 must become 0 and 1", (x * levels).round() / levels),
        ("these are the codes: divide them by 2^bits - 1", (v * levels).round()),
        ("it has 2^bits steps: 2^bits levels have 2^bits - 1 steps between them",
         (v * (levels + 1)).round() / (levels + 1)),
        ("it rounds down (floor): use torch.round", (v * levels).floor() / levels),
        ("it rounds to 0 and 1 only: multiply by 2^bits - 1 before rounding", v.round()),
    ]  # fmt: skip


def _grade_gate(x: Tensor, out: Tensor, upstream: Tensor, bits: int) -> None:
    """The gradient that comes back for ``upstream``, against the gate."""
    got = None
    if out.requires_grad:
        (got,) = torch.autograd.grad(out, x, upstream.to(out.dtype), allow_unused=True)
    if got is None:
        raise Mistake(
            "the values are right, but no gradient comes back: the way from x to the result is cut "
            "(detach, no_grad or .data). Add the clipped x, which has a gradient, and take it off again, detached"
        )
    where, levels, v = f"bits = {bits}, the gradient of x", 2**bits - 1, x.detach()
    gate = torch.tensor([[0 < value < 1 for value in row] for row in v.tolist()])
    want = torch.where(gate, upstream, torch.zeros(()))
    outside = "the gradient is {} inside the clip; it must be 1 there: the rounding is passed as if it were not there"
    expect(got, want, where, [
        ("the gradient is zero everywhere: torch.round's derivative is 0. Put what rounding adds into detach()", 0 * v),
        ("the gradient passes outside the clip too: there the output does not move, so it must be 0 where x is "
         "below 0 or above 1", upstream),
        ("the gradient is zero outside and inside exchanged", upstream - want),
        ("the gradient passes above 1 too: it must be 0 there", upstream * (v > 0)),
        ("the gradient passes below 0 too: it must be 0 there", upstream * (v < 1)),
        (outside.format("2^bits - 1"), levels * want),
        (outside.format("1 / (2^bits - 1)"), want / levels),
        (outside.format("2"), 2 * want),
        (outside.format("-1"), -want),
        ("the incoming gradient is lost: backward must return grad times the gate", gate.float()),
        ("it returns the incoming gradient times the output: times the gate", upstream * out.detach()),
    ])  # fmt: skip


ste_round = Exercise(
    "ste_round",
    "2.1: A rounding that learns",
    difficulty=1,
    minutes=10,
    question=r"""
    Write `ste_round(x, bits)`: DoReFa's activations with a gradient that is of use. `x` is a float tensor of any shape.

    *Forward*: clip `x` to [0, 1], then round it to the nearest of the 2^bits levels k / (2^bits - 1).

    *Backward*: the straight-through estimator. The gradient of the result with respect to `x` is 1 where
    0 < x < 1, and 0 outside. PyTorch must find it by itself: the check calls `backward` on your result.
    """,
    hints=[
        "x.clamp(0, 1) already has the gradient that is asked for. What is missing is the rounding, without its own.",
        "tensor.detach() gives the same values to the forward pass and hides them from the backward pass.",
        "clipped + (rounded - clipped).detach(): forward the clipped cancels, backward only the first term is seen.",
    ],
    solution=_ste_round,
    grade=_grade_ste_round,
)

# --- 2.2 -------------------------------------------------------------------------------------------------------


def _clip_gradient(x: torch.Tensor, alpha: float, bits: int) -> torch.Tensor:
    """d (alpha q_b(clip(x / alpha, 0, 1))) / d alpha for each value of ``x``, as SAT has it; same shape."""
    levels = 2**bits - 1
    u = (x / alpha).clamp(0, 1)
    inside = torch.round(u * levels) / levels - u  # 0 below the clip by itself
    return torch.where(x >= alpha, torch.ones_like(x), inside)


def _grade_clip_gradient(student: Student, rng: Generator) -> None:
    for bits, size in ((2, (1.5, 4.0)), (3, (0.3, 0.7)), (4, (5.0, 9.0))):
        alpha, levels = _uniform(*size, rng), 2**bits - 1
        codes = torch.randint(-levels // 2, 2 * levels, (4, 30), generator=rng)
        codes[0, :5] = torch.tensor([-1, 0, 1, levels, levels + 1])
        x = _inside_a_step(codes, rng) * (alpha / levels)
        want = torch.tensor([[_one_slope(value, alpha, levels) for value in row] for row in x.tolist()])
        where = f"alpha = {alpha:.4g} and bits = {bits}"
        expect(student(x, alpha, bits), want, where, _wrong_slopes(x, alpha, levels))


def _one_slope(x: float, alpha: float, levels: int) -> float:
    """d out / d alpha at one value: what the nearest level loses, in units of alpha; 1 and 0 outside."""
    if x >= alpha:
        return 1.0
    if x <= 0:
        return 0.0
    level = min(range(levels + 1), key=lambda k: abs(k * alpha / levels - x))
    return (level * alpha / levels - x) / alpha


def _wrong_slopes(x: Tensor, alpha: float, levels: int) -> list[tuple[str, Tensor]]:
    free, above, below = x / alpha, x >= alpha, x <= 0
    u = free.clamp(0, 1)
    q = (u * levels).round() / levels
    right = torch.where(above, 1.0, q - u)
    flat = "this is q_b(x / alpha), the slope of the staircase itself, which finite differences find: the estimator "
    flat += "also lets q_b move with x / alpha, which gives another term, - x / alpha"
    return [
        ("this is PACT's gradient, 0 inside the clip: SAT has q_b(x / alpha) - x / alpha there", above.float()),
        (flat, q),
        ("inside it is only - x / alpha: by the product rule q_b(x / alpha) comes before it",
         torch.where(above, 1.0, -u)),
        ("the sign inside is turned: q_b(x / alpha) - x / alpha", torch.where(above, 1.0, u - q)),
        ("it is 0 where x is clipped at alpha: there the output is alpha, its derivative 1", q - u),
        ("it is -1 where x is clipped at alpha: there the output is alpha, its derivative 1",
         torch.where(above, -1.0, q - u)),
        ("it is alpha where x is clipped: the output is alpha there, its derivative 1",
         torch.where(above, alpha, q - u)),
        ("below 0 it is not 0: the output is 0 there, whatever alpha is", torch.where(above, 1.0, q - free)),
        ("below 0 it is not 0: the output is 0 there, whatever alpha is",
         torch.where(above, 1.0, (free * levels).round() / levels - free)),
        ("below 0 it is 1: the output is 0 there, whatever alpha is", torch.where(below, 1.0, right)),
        ("beyond alpha it goes on as inside: there it is 1", torch.where(below, 0.0, q - free)),
        ("inside it is alpha times too large: this is the rounding error, divide it by alpha",
         torch.where(above, 1.0, (q - u) * alpha)),
        ("inside it must be divided by alpha once only", torch.where(above, 1.0, (q - u) / alpha)),
        ("inside the factor alpha is missing from the second term: alpha · (- x / alpha^2) is - x / alpha",
         torch.where(above, 1.0, q - u / alpha)),
        ("inside the factor alpha is missing from the second term: alpha · (- x / alpha^2) is - x / alpha",
         torch.where(above, 1.0, q - free / alpha)),
        ("it goes on outside the clip as inside: it is 0 below 0 and 1 beyond alpha",
         (free * levels).round() / levels - free),
        ("it is the gradient of LSQ's step, 2^bits - 1 times that of the clip", levels * right),
        ("it rounds down (floor): use torch.round", torch.where(above, 1.0, (u * levels).floor() / levels - u)),
        ("this is the gradient of x, not of alpha", ((x > 0) & ~above).float()),
    ]  # fmt: skip


clip_gradient = Exercise(
    "clip_gradient",
    "2.2: The gradient of the clip",
    difficulty=2,
    minutes=15,
    question=r"""
    SAT and PACT learn the clip $\alpha$ of their activations,

    $$\hat x = \alpha\, q_b\big(\mathrm{clip}(x / \alpha,\ 0,\ 1)\big)$$

    Derive $d\hat x / d\alpha$ as SAT does: by the product rule and the chain rule, with the derivative of $q_b$ taken
    as 1 (straight-through). There are three cases: x below 0, x inside, x beyond $\alpha$.

    Write `clip_gradient(x, alpha, bits)`, which returns it for each value of `x`, a float tensor of any shape; `alpha`
    is a positive number. Use no autograd.
    """,
    hints=[
        "Outside the clip the output is 0 or alpha: derive these two first.",
        "Inside, alpha q_b(x / alpha) is a product: q_b(x / alpha) · 1 + alpha · (d/dalpha of q_b(x / alpha)).",
        "With q_b' = 1, d/dalpha of q_b(x / alpha) is that of x / alpha: - x / alpha^2.",
    ],
    solution=_clip_gradient,
    grade=_grade_clip_gradient,
)

# --- 2.3 -------------------------------------------------------------------------------------------------------


def _step_gradient(w: torch.Tensor, step: float, bits: int, upstream: torch.Tensor) -> float:
    """LSQ's gradient of the loss with respect to the step of the weights ``w``, scaled by 1 / sqrt(N p)."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    u = w / step
    slope = torch.round(u) - u
    slope = torch.where(u <= low, float(low), slope)
    slope = torch.where(u >= high, float(high), slope)
    return (upstream * slope).sum().item() / (w.numel() * high) ** 0.5


def _grade_step_gradient(student: Student, rng: Generator) -> None:
    for bits, size in ((3, (0.2, 0.4)), (2, (0.05, 0.1)), (4, (2.0, 3.0))):
        step = _uniform(*size, rng)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        shape = (*torch.randint(3, 7, (2,), generator=rng).tolist(), 3, 3)
        codes = torch.randint(low - 2, high + 3, shape, generator=rng)
        w = _inside_a_step(codes, rng) * step
        upstream = torch.randn(shape, generator=rng) + w.sign()  # the terms of the sum do not cancel
        want = _by_hand(w, step, low, high, upstream)
        where = f"weights {tuple(shape)}, step = {step:.4g} and bits = {bits}"
        expect(student(w, step, bits, upstream), want, where, _wrong_steps(w, step, low, high, upstream))


def _by_hand(w: Tensor, step: float, low: int, high: int, upstream: Tensor) -> float:
    """The sum, one weight after the other."""
    total = 0.0
    for value, arriving in zip(w.flatten().tolist(), upstream.flatten().tolist(), strict=True):
        u = value / step
        code = min(range(low, high + 1), key=lambda k: abs(k - u))
        total += arriving * (code - u if low < u < high else code)
    return total / math.sqrt(w.numel() * high)


def _wrong_steps(w: Tensor, step: float, low: int, high: int, upstream: Tensor) -> list[tuple[str, Tensor]]:
    w, upstream = w.double(), upstream.double()
    u, count = w / step, w.numel()
    code, inside = u.round().clamp(low, high), (u > low) & (u < high)
    slope = torch.where(inside, code - u, code)
    total, scale = (upstream * slope).sum(), 1 / math.sqrt(count * high)
    named = "the scale is {}: it is 1 / sqrt(N p), N the number of weights and p the highest code"
    terms = "the sum is right in form, but {}"
    parts = [
        ("it takes the codes alone, the slope of the staircase itself: inside, subtract w / step", code),
        ("inside it is 0, as in PACT: LSQ has round(w / step) - w / step there", torch.where(inside, 0.0, code)),
        ("the sign inside is turned: round(w / step) - w / step", torch.where(inside, u - code, code)),
        ("outside it is 0: a clipped weight is low or high times step, so its slope is low or high",
         torch.where(inside, slope, 0.0)),
        ("outside it goes on as inside: there the slope is low or high", u.round() - u),
        ("clipped weights lose - w / step too: there the slope is low or high alone", code - u),
        ("outside it is -1 or 1: there the slope is the code, low or high", torch.where(inside, slope, code.sign())),
        ("the slopes are multiplied by step: they are in units of the code", slope * step),
        ("the weights clipped at low are given the slope 0: it is low", torch.where(u <= low, 0.0, slope)),
        ("the range is not symmetric: low is -2^(bits - 1)",
         torch.where((u > -high) & (u < high), u.round() - u, u.sign() * high)),
    ]  # fmt: skip
    return [
        (named.format("missing"), total),
        (named.format("1 / (N p), without the root"), total / (count * high)),
        (named.format("1 / sqrt(N), without p"), total / math.sqrt(count)),
        (named.format("1 / sqrt(p), without N"), total / math.sqrt(high)),
        (named.format("1 / N, a mean"), total / count),
        (named.format("1 / sqrt(N · 2^bits), with the number of levels for p"),
         total / math.sqrt(count * (high - low + 1))),
        (named.format("made with the number of filters for N"), total / math.sqrt(len(w) * high)),
        ("upstream is forgotten: each weight's slope is multiplied by the gradient that arrives there",
         slope.sum() * scale),
        ("this is a mean: take the sum over the weights, then the scale", total * scale / count),
        *((terms.format(words), (upstream * part).sum() * scale) for words, part in parts),
        *((f"{words}. The scale is missing too", (upstream * part).sum()) for words, part in parts),
    ]  # fmt: skip


step_gradient = Exercise(
    "step_gradient",
    "2.3: The gradient of the step",
    difficulty=3,
    minutes=15,
    question=r"""
    LSQ quantizes weights as $\hat w = s \cdot \mathrm{clip}(\mathrm{round}(w / s),\ n,\ p)$, $n = -2^{b-1}$ and
    $p = 2^{b-1} - 1$, and learns $s$. For one weight

    $$\frac{d\hat w}{ds} = n\ \text{ if } w/s \le n,\qquad p\ \text{ if } w/s \ge p,\qquad
    \mathrm{round}(w/s) - w/s\ \text{ inside.}$$

    One step serves all N weights of the layer, so that the chain rule sums over them; the sum is multiplied by
    $1 / \sqrt{N p}$. Write `step_gradient(w, step, bits, upstream)`, which returns that one number. `w` are the
    weights, (out, in, height, width), `upstream` is the loss's gradient with respect to each $\hat w$, of the same
    shape.
    """,
    hints=[
        "The slopes first, a tensor like w: three cases, for which torch.where serves.",
        "Multiply them by upstream and sum over all weights: that is the chain rule.",
        "N is w.numel(), p is 2 ** (bits - 1) - 1; divide the sum by the root of their product.",
    ],
    solution=_step_gradient,
    grade=_grade_step_gradient,
)

EXERCISES = (ste_round, clip_gradient, step_gradient)
