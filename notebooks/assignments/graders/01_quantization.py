"""Assignment 01: an asymmetric quantizer, its range, and what it costs in decibels."""

from __future__ import annotations

import math
from typing import Any

import torch
from mebqat_lite.course.classroom.grading import Assignment, Check, Part
from mebqat_lite.course.exercises import Mistake, checked, expect
from torch import Generator, Tensor


def draw(shape: tuple[int, ...], low: float, high: float, rng: Generator) -> Tensor:
    """Bell-shaped values scaled so that the least is ``low`` and the largest ``high``."""
    x = torch.randn(shape, generator=rng)
    return (x - x.min()) / (x.max() - x.min()) * (high - low) + low


# --- affine_range ----------------------------------------------------------------------------------------------


def ranges(rng: Generator) -> list[tuple[Tensor, int]]:
    """Values on both sides of zero, and all on one side, which the range must reach over to zero."""
    shift = float(torch.rand((), generator=rng))
    ends = ((-1 - shift, 2.0), (0.5 + shift, 3.0), (-4.0, -1 - shift))
    return [(draw((6, 50), *pair, rng), int(torch.randint(2, 9, (), generator=rng))) for pair in ends]


def crossings(rng: Generator) -> list[tuple[Tensor, int]]:
    """Ranges whose zero lies between two codes: five times nearer to the lower one, five times to the upper one. Both
    lie in the lower half, so that no other mistake has the same result.
    """
    found = []
    for number in range(10):
        bits = int(torch.randint(4, 9, (), generator=rng))
        step = math.exp(float(torch.randn((), generator=rng)))
        code = int(torch.randint(1, 2 ** (bits - 2), (), generator=rng))
        free = code + (0.2 if number % 2 else 0.6) + 0.2 * float(torch.rand((), generator=rng))
        found.append((draw((6, 50), -free * step, (2**bits - 1 - free) * step, rng), bits))
    return found


def true_range(x: Tensor, bits: int) -> tuple[float, int]:
    """Step and zero code, value by value."""
    values = [0.0, *x.flatten().tolist()]
    step = (max(values) - min(values)) / (2**bits - 1)
    return step, min(range(2**bits), key=lambda code: abs((0 - code) * step - min(values)))


def pair_of(got: Any) -> tuple[float, float]:
    """The two numbers that were returned."""
    if isinstance(got, Tensor) and got.shape == (2,):
        got = got.tolist()
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        raise Mistake(f"it returns a value of type {type(got).__name__}: return two numbers, step, zero")
    return float(checked(got[0], 0.0)), float(checked(got[1], 0.0))


def divided(span: float, bits: int) -> list[tuple[str, float]]:
    """What wrong divisors give; some of them are equal for 2 and for 3 bits."""
    whole = "this is the whole range: divide it by 2^bits - 1"
    signed = "by 2^(bits - 1) - 1, as for signed codes: all 2^bits codes are used"
    if bits == 2:
        return [(f"{whole}. Or it divides {signed}", span), ("it divides by bits, not by 2^bits - 1", span / bits)]
    if bits == 3:
        return [(whole, span), (f"it divides by bits, not by 2^bits - 1; or it divides {signed}", span / bits)]
    return [
        (whole, span),
        ("it divides by bits, not by 2^bits - 1", span / bits),
        (f"it divides {signed}", span / (2 ** (bits - 1) - 1)),
    ]


def grade_step(student: Any, rng: Generator) -> None:
    """The step: the range, zero included, over 2^bits - 1."""
    for x, bits in ranges(rng):
        step, _ = pair_of(student(x, bits))
        span, both = float(x.max() - x.min()), max(float(x.max()), 0) - min(float(x.min()), 0)
        expect(step, true_range(x, bits)[0], f"bits = {bits} and values {x.min():.2f} to {x.max():.2f}, the step", [
            ("the range must hold zero: where all values are on one side, stretch it to 0", span / (2**bits - 1)),
            ("2^bits levels have 2^bits - 1 steps between them, not 2^bits", both / 2**bits),
            ("this is the range of a symmetric quantizer: use the least and the largest value",
             2 * float(x.abs().max()) / (2**bits - 1)),
            *divided(both, bits),
            ("the code of zero comes first: return step, zero, in this order", true_range(x, bits)[1]),
        ])  # fmt: skip


def grade_zero(student: Any, rng: Generator) -> None:
    """The code of zero: a whole number from 0 to 2^bits - 1, so that zero is exact."""
    for x, bits in [*crossings(rng), *ranges(rng)]:
        step, zero = pair_of(student(x, bits))
        if zero != round(zero):
            raise Mistake(f"zero is {zero:.4g}: a code is a whole number, round it")
        if not 0 <= zero <= 2**bits - 1:
            raise Mistake(f"zero is {zero:g}: a code lies between 0 and 2^bits - 1 = {2**bits - 1}")
        low = min(float(x.min()), 0.0)
        expect(zero, float(true_range(x, bits)[1]), f"bits = {bits} and values {x.min():.2f} to {x.max():.2f}, zero", [
            ("it is counted from the upper end: the code of zero is round(-low / step)",
             2**bits - 1 + round(low / step)),
            ("it is cut off (int, floor): round(-low / step) is the nearest code", float(math.floor(-low / step))),
            ("it is rounded up (ceil): round(-low / step) is the nearest code", float(math.ceil(-low / step))),
            ("zero is always 0: but where values lie below zero, code 0 is the least of them", 0.0),
            ("it is half of the codes, as for a symmetric quantizer", 2.0 ** (bits - 1)),
        ])  # fmt: skip


# --- affine_quantize -------------------------------------------------------------------------------------------


def settings(rng: Generator) -> list[tuple[Tensor, float, int, int]]:
    """Values inside and beyond the range, none near the middle of two levels."""
    found = []
    for bits in (2, 3, 4):
        step, zero = (
            math.exp(float(torch.randn((), generator=rng))),
            int(torch.randint(1, 2**bits - 1, (), generator=rng)),
        )
        codes = torch.randint(-4, 2**bits + 4, (5, 30), generator=rng)
        x = step * (codes - zero + torch.empty(5, 30).uniform_(-0.4, 0.4, generator=rng))
        found.append((x, step, zero, bits))
    return found


def nearest(x: Tensor, step: float, zero: int, bits: int) -> Tensor:
    """The nearest level of each value."""
    levels = step * (torch.arange(2**bits) - zero)
    return levels[(x[..., None] - levels).abs().argmin(-1)]


def grade_levels(student: Any, rng: Generator) -> None:
    """The values: the nearest of 2^bits levels."""
    for x, step, zero, bits in settings(rng):
        free, top = x / step + zero, 2**bits - 1
        codes = free.round().clamp(0, top)
        expect(student(x, step, zero, bits), nearest(x, step, zero, bits), f"step = {step:.3g}, zero = {zero}", [
            ("these are the codes: subtract zero, then multiply by step", codes),
            ("zero is not taken off again: step * (code - zero)", step * codes),
            ("it does not clip: codes lie between 0 and 2^bits - 1", step * (free.round() - zero)),
            ("it does not round", step * (free.clamp(0, top) - zero)),
            ("it rounds down (floor): use torch.round", step * (free.floor().clamp(0, top) - zero)),
            ("it rounds up (ceil): use torch.round", step * (free.ceil().clamp(0, top) - zero)),
            ("it rounds towards zero (int, trunc): use torch.round",
             step * (((x / step).trunc() + zero).clamp(0, top) - zero)),
            ("x is multiplied by step: the codes are round(x / step) + zero",
             step * ((x * step + zero).round().clamp(0, top) - zero)),
            ("the step is missing: multiply the code, less zero, by it", codes - zero),
            ("zero is taken off after the multiplication: step * (code - zero)", step * codes - zero),
            ("one level too many: the highest code is 2^bits - 1", step * (free.round().clamp(0, top + 1) - zero)),
            ("one level is missing: the highest code is 2^bits - 1", step * (free.round().clamp(0, top - 1) - zero)),
            ("it clips before zero is added: the codes are round(x / step) + zero",
             step * (x / step).round().clamp(0, top)),
            ("the range is that of signed codes: here they go from 0 to 2^bits - 1",
             step * (free.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) - zero)),
            ("the sign of zero is turned: add it to the codes, then take it off",
             step * ((x / step - zero).round().clamp(0, top) + zero)),
        ])  # fmt: skip


def grade_passing(student: Any, rng: Generator) -> None:
    """The gradient: straight through inside the range, nothing outside."""
    for x, step, zero, bits in settings(rng):
        upstream = torch.randn(x.shape, generator=rng)
        free, top = x / step + zero, 2**bits - 1
        upstream[((free < 0) & (free > -0.5)) | ((free > top) & (free < top + 0.5))] = 0  # either is right there
        value, (got, *_) = student.gradients(x, step, zero, bits, upstream=upstream)
        checked(value, x)
        if got is None:
            raise Mistake("no gradient comes back: put what rounding adds into detach(), and keep the clipped x")
        inside, code = (free > 0) & (free < top), free.round()
        at_ends = (code == 0) | (code == top)  # where the last digit of a rounded float may lie beyond the range
        expect(got, torch.where(inside, upstream, 0.0), "the gradient with respect to x", [
            ("the gradient is zero everywhere: torch.round has none. Put what rounding adds into detach()", 0 * x),
            ("the gradient passes outside the range too: there the output does not move", upstream),
            ("the gradient is 1 / step times too large or too small", torch.where(inside, upstream / step, 0.0)),
            ("the gradient is step times too large or too small", torch.where(inside, upstream * step, 0.0)),
            ("the gradient is zero inside, and passes outside", torch.where(inside, 0.0, upstream)),
            ("the sign of the gradient is turned", torch.where(inside, -upstream, 0.0)),
            ("the gradient passes below the range too", torch.where(free < top, upstream, 0.0)),
            ("the gradient passes above the range too", torch.where(free > 0, upstream, 0.0)),
            ("the gradient passes from 0 to 2^bits - 1 steps: the range of x begins at -step * zero",
             torch.where((x > 0) & (x < step * top), upstream, 0.0)),
            ("some of the gradient is lost at the lowest and the highest code: clip first and round then, or the last "
             "digit of a rounded float decides what the clip lets through",
             torch.where(at_ends, got, torch.where(inside, upstream, 0.0))),
        ])  # fmt: skip


# --- sqnr ------------------------------------------------------------------------------------------------------


def grade_sqnr(student: Any, rng: Generator) -> None:
    """10 log10 of the signal's power over the error's."""
    for size in (1.0, 0.01, 30.0):
        x = size * (torch.randn(4, 60, generator=rng) + 0.5)
        y = x + 0.1 * size * (torch.randn(4, 60, generator=rng) + 0.3)
        pairs = list(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
        signal, noise = sum(a * a for a, _ in pairs), sum((a - b) ** 2 for a, b in pairs)
        right, error = 10 * math.log10(signal / noise), (x - y).double()
        expect(student(x, y), right, f"values of mean square {signal / len(pairs):.3g}", [
            ("the sign is turned: the signal is divided by the error", -right),
            ("these are no decibels yet: 10 log10 of the ratio", signal / noise),
            ("20 log10 is for amplitudes: of powers, squares, it is 10", 2 * right),
            ("it is the natural logarithm: use log10", 10 * math.log(signal / noise)),
            ("this is log10 alone: times 10", right / 10),
            ("the signal's power is its mean square, not its variance: here the mean is not 0",
             10 * math.log10(float(x.double().var(correction=0) / error.square().mean()))),
            ("absolute values are summed, not squares",
             10 * math.log10(float(x.double().abs().sum() / error.abs().sum()))),
            ("10 log10 is of powers: this is that of their roots, half of it", right / 2),
            ("it is the logarithm to base 2: use log10", 10 * math.log2(signal / noise)),
            ("one power is a sum and the other a mean: take both alike", 10 * math.log10(signal / noise * len(pairs))),
            ("one power is a sum and the other a mean: take both alike", 10 * math.log10(signal / noise / len(pairs))),
            ("this is the largest value over the error (PSNR): the signal's power is that of all values",
             10 * math.log10(float(x.double().abs().max() ** 2 / error.square().mean()))),
            ("the sum is squared: square first, then sum",
             20 * math.log10(abs(float(x.double().sum() / error.sum())))),
            ("the error is the square of the difference, not the difference of the squares",
             10 * math.log10(signal / abs(signal - sum(b * b for _, b in pairs)))),
            ("standard deviations are taken: of neither the mean is subtracted",
             20 * math.log10(float(x.double().std() / error.std()))),
            ("it divides the power of the output, not of the input",
             10 * math.log10(sum(b * b for _, b in pairs) / noise)),
        ])  # fmt: skip


ASSIGNMENT = Assignment(
    "01_quantization",
    (
        Part("affine_range", ("x", "bits"), "The range", 20, (
            Check("the step", 3, grade_step), Check("the code of zero", 3, grade_zero))),
        Part("affine_quantize", ("x", "step", "zero", "bits"), "The quantizer", 30, (
            Check("the levels", 4, grade_levels), Check("the gradient", 3, grade_passing))),
        Part("sqnr", ("x", "y"), "Signal to noise", 15, (Check("decibels", 3, grade_sqnr),)),
    ),
    written={"analysis": 4},
)  # fmt: skip
