"""Exercises of lesson 01: the uniform quantizer, its best step, and arithmetic with whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from mebqat_lite import quantizers
from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect, numbers

Student = Callable[..., Any]
BEYOND = "your values go beyond high * step: clip the codes, not x"


def _draw(low: float, high: float, rng: Generator) -> float:
    """A number between ``low`` and ``high``, evenly over their ratio."""
    return math.exp(float(torch.empty(()).uniform_(math.log(low), math.log(high), generator=rng)))


# --- 1.1 -------------------------------------------------------------------------------------------------------


def _fake_quantize(x: torch.Tensor, step: float, low: int, high: int) -> torch.Tensor:
    """step clip(round(x / step), low, high), same shape as ``x``."""
    codes = torch.round(x / step).clamp(low, high)
    return step * codes


def _grade_fake_quantize(student: Student, rng: Generator) -> None:
    sizes = ((1.5, 4.0), (0.15, 0.5), (1.5, 4.0), (0.15, 0.5))  # large first: there x may not be clipped itself
    for signed, size in zip((True, True, False, False), sizes, strict=True):
        bits = int(torch.randint(3, 6, (), generator=rng))
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        step = _draw(*size, rng)
        shape = torch.randint(4, 9, (3 - signed,), generator=rng).tolist()
        x = _around_levels([*shape, 40], step, low, high, rng)
        levels = step * torch.arange(low, high + 1)
        want = levels[(x[..., None] - levels).abs().argmin(-1)]  # the nearest level: (..., levels) -> (...)
        where = f"step = {step:.4g}, low = {low} and high = {high}"
        got = checked(student(x, step, low, high), want)
        mistakes = _wrong_fake_quantize(x, step, low, high)
        shown = _by_property(got / step, low, high)
        expect(got, want, where, [*mistakes, (shown, got)] if shown else mistakes)


def _around_levels(shape: list[int], step: float, low: int, high: int, rng: Generator) -> Tensor:
    """Values inside and beyond the range, none near the middle of two levels, where float rounding decides."""
    codes = torch.randint(low - 6, high + 7, shape, generator=rng)
    return step * (codes + torch.empty(shape).uniform_(-0.45, 0.45, generator=rng))


def _wrong_fake_quantize(x: Tensor, step: float, low: int, high: int) -> list[tuple[str, Tensor]]:
    u = x / step
    codes = u.round().clamp(low, high)
    down, zero = "it rounds down (floor): use torch.round", "it cuts off towards zero: use torch.round"
    clips_x = "it clips x at low and high, but these are limits of the codes: clip round(x / step)"
    return [
        ("x comes back as it was: divide, round, clip, multiply", x),
        (BEYOND, step * u.round()),
        ("these are the codes: multiply them by step again", codes),
        ("it clips, but does not round: round x / step first", step * u.clamp(low, high)),
        (clips_x, step * (x.clamp(low, high) / step).round()),
        (clips_x, (step * u.round()).clamp(low, high)),
        (clips_x, x.clamp(low, high)),
        ("x is rounded before it is divided by step: divide first", step * (x.round() / step).clamp(low, high)),
        ("x is never divided by step: the codes are round(x / step)", step * x.round().clamp(low, high)),
        (down, step * u.floor().clamp(low, high)),
        (zero, step * u.trunc().clamp(low, high)),
        (zero, step * u.clamp(low, high).trunc()),
        ("it rounds up (ceil): use torch.round", step * u.ceil().clamp(low, high)),
        ("one level too many: the highest code is high, not high + 1", step * u.round().clamp(low, high + 1)),
        ("one level too many: the lowest code is low, not low - 1", step * u.round().clamp(low - 1, high)),
        ("one level is missing: the highest code is high itself", step * u.round().clamp(low, high - 1)),
        ("the codes below zero are cut: clip at low, not at 0", step * u.round().clamp(0, high)),
        ("the range is not symmetric: clip at low, not at -high", step * u.round().clamp(-high, high)),
        ("the codes are divided by step: multiply", codes / step),
        ("x is multiplied by step: the codes are round(x / step)", step * (x * step).round().clamp(low, high)),
        ("step is divided by x: the codes are round(x / step)", step * (step / x).round().clamp(low, high)),
        ("low and high are swapped", step * u.round().clamp(high, low)),
        ("the sign is lost", step * codes.abs()),
    ]


def _by_property(codes: Tensor, low: int, high: int) -> str:
    """The mistake that the values divided by step show, whatever made them; "" if none."""
    if codes.max() > high + 1e-3:
        return BEYOND
    if codes.min() < low - 1e-3:
        return "your values go below low * step: clip the codes, not x"
    if (codes - codes.round()).abs().max() > 1e-3:
        return "your values are not multiples of step: round x / step, then multiply by step"
    return ""


fake_quantize = Exercise(
    "fake_quantize",
    "1.1: Fake quantization",
    difficulty=1,
    minutes=10,
    question=r"""
    A uniform quantizer keeps of each number only a whole number, its *code*. *Fake* quantization turns the code back
    into the float that it stands for:

    $$\hat x = \mathrm{step} \cdot \mathrm{clip}(\mathrm{round}(x / \mathrm{step}),\ \mathrm{low},\ \mathrm{high})$$

    Write `fake_quantize(x, step, low, high)`. `x` is a float tensor of any shape, `step` is a positive number, and
    `low` and `high` are the lowest and the highest code. Return a new tensor of the same shape as `x`. The lesson
    then uses your function for a photograph and for a network.
    """,
    hints=[
        "Go from the inside to the outside: divide, round, clip, multiply.",
        "low and high limit the codes round(x / step), not x itself.",
        "tensor.clamp(low, high) clips; torch.round rounds to the nearest whole number.",
    ],
    solution=_fake_quantize,
    grade=_grade_fake_quantize,
    package=quantizers.fake_quantize,
)

# --- 1.2 -------------------------------------------------------------------------------------------------------


def _best_step(x: torch.Tensor, bits: int) -> float:
    """The step of least squared error of ``x`` for codes -2^(bits-1) .. 2^(bits-1) - 1."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = x.abs().max().item() / high  # clips nothing
    best, least = largest, float("inf")
    for k in range(1, 101):
        step = largest * k / 100
        error = (step * torch.round(x / step).clamp(low, high) - x).square().mean().item()
        if error < least:
            best, least = step, error
    return best


def _grade_best_step(student: Student, rng: Generator) -> None:
    inputs = [(kind, x, bits) for kind, x in _samples(rng).items() for bits in (3, 2, 4)]
    steps = [float(checked(student(x, bits), 0.0)) for _, x, bits in inputs]
    _must_depend_on_input(steps)
    ratios = [_error_ratio(x, bits, step) for (_, x, bits), step in zip(inputs, steps, strict=True)]
    if max(ratios) <= 1.03:
        return
    worst = ratios.index(max(ratios))
    kind, x, bits = inputs[worst]
    known = zip(*(_wrong_steps(x, bits) for _, x, bits in inputs), strict=True)  # each mistake at all inputs
    # By how much each mistake's steps differ; the largest difference may come from two minima that are equally low.
    off, message = min(
        (sorted(abs(step / wrong - 1) for step, (_, wrong) in zip(steps, row, strict=True))[-2], row[0][0])
        for row in known
    )
    if off >= 0.03:
        message = _too_small_or_large(x, bits, steps[worst], max(ratios))
    best = _least(x, _fine(x, bits), *_limits(bits))
    raise Mistake(f"for {kind} at {bits} bits your step is {steps[worst]:.4g}, the best {best:.4g}: {message}")


def _limits(bits: int) -> tuple[int, int]:
    """The lowest and the highest code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _samples(rng: Generator) -> dict[str, Tensor]:
    """Values, (out, in), each on a scale of its own. With the outlier a search in steps of a tenth is too coarse."""
    normal, outlier = torch.randn(2, 40, 100, generator=rng)
    outlier = outlier.clamp(-3, 3)
    outlier[0, 0] = float(torch.empty(()).uniform_(6.2, 7.2, generator=rng))
    u = torch.empty(40, 100).uniform_(-0.9999, 0.9999, generator=rng)
    return {
        "bell-shaped values": normal * _draw(0.01, 0.1, rng),
        "long-tailed values": -u.sign() * (1 - u.abs()).log() * _draw(0.3, 10, rng),
        "bell-shaped values with one outlier": outlier * _draw(0.01, 10, rng),
    }


def _must_depend_on_input(steps: list[float]) -> None:
    """``steps``: of three tensors, at 3, 2 and 4 bits each."""
    if min(steps) <= 0:
        raise Mistake(f"it returns {min(steps):.4g}: a step is positive")
    if len(set(steps)) == 1:
        raise Mistake("it returns the same step whatever x and bits are: compute it from x and bits")
    if steps[:3] == steps[3:6] == steps[6:]:
        raise Mistake("it returns the same step whatever x is: search among fractions of max |x| / high")
    if len(set(steps[:3])) == len(set(steps[3:6])) == 1:
        raise Mistake(f"it returns the same step, {steps[0]:.4g}, for 2, 3 and 4 bits: fewer levels need a larger step")


def _errors(x: Tensor, steps: Tensor, low: int, high: int, power: int = 2) -> Tensor:
    """Mean |error|^power at each of ``steps``, (steps,)."""
    flat, s = x.flatten(), steps[:, None]
    off = (flat / s).round_().clamp_(low, high).mul_(s).sub_(flat)  # in place: there are millions of them
    return off.abs_().pow_(power).mean(1)


def _fine(x: Tensor, bits: int) -> Tensor:
    """Many steps, (400,), from far too small to more than clips nothing."""
    return float(x.abs().max()) / (2 ** (bits - 1) - 1) * torch.logspace(-2.3, 0.1, 400)


def _error_ratio(x: Tensor, bits: int, step: float) -> float:
    """Squared error at ``step`` over the least."""
    least = _errors(x, _fine(x, bits), *_limits(bits)).min()
    return float(_errors(x, torch.tensor([step]), *_limits(bits)) / least)


def _wrong_steps(x: Tensor, bits: int) -> list[tuple[str, float]]:
    """Steps by which a mistake is known."""
    low, high = _limits(bits)
    fine, peak = _fine(x, bits), float(x.abs().max())
    errors = _errors(x, fine, low, high)
    clips_none = "this step clips nothing: with few bits, clipping a few values costs less than coarse steps"
    error = "this is the least error: return the step at which it is reached"
    lsq = "this is LSQ's start 2 mean|x| / sqrt(high): search from there"
    codes = ": here they are -2^(bits-1) .. 2^(bits-1) - 1"
    return [
        (clips_none, peak / high),
        (clips_none, peak / (high + 1)),
        (clips_none, float(x.max()) / high),
        (clips_none, float(x.max() - x.min()) / (2**bits - 1)),
        (error, float(errors.min())),
        (error, float(errors.min()) * x.numel()),
        (lsq, 2 * float(x.abs().mean()) / high**0.5),
        (f"it searches with codes 0 .. 2^bits - 1{codes}", _least(x, fine, 0, 2**bits - 1)),
        (f"it searches with twice as many codes{codes}", _least(x, fine, 2 * low, 2 * high + 1)),
        (f"it searches with symmetric codes, -high .. high{codes}", _least(x, fine, -high, high)),
        ("it minimizes the absolute error: square it", _least(x, fine, low, high, power=1)),
    ]


def _least(x: Tensor, steps: Tensor, low: int, high: int, power: int = 2) -> float:
    return float(steps[_errors(x, steps, low, high, power).argmin()])


def _too_small_or_large(x: Tensor, bits: int, step: float, ratio: float) -> str:
    error = f"its squared error is {ratio:.2f} times the least"
    best = _least(x, _fine(x, bits), *_limits(bits))
    if ratio < 1.2:
        return f"close, but {error}. Search a finer grid of steps"
    if step < best / 3:
        again = "Does your search clip the codes? If not, the smallest step always wins"
        return f"it is too small, so that nearly everything is clipped, and {error}. {again}"
    return f"it {'is too small and clips too much' if step < best else 'is too large and rounds too coarsely'}: {error}"


best_step = Exercise(
    "best_step",
    "1.2: The best step",
    difficulty=2,
    minutes=15,
    question="""
    A large step rounds coarsely, and a small one clips the large values. Write `best_step(x, bits)`, which returns one
    number: the step with the least squared error between `x` and its quantized values. `x` is a float tensor, and the
    codes are signed, from -2^(bits-1) to 2^(bits-1) - 1, with at least 2 `bits`.

    Any search will do. Your step is right if its squared error is within 3 % of the least, also where `x` has an
    outlier.
    """,
    hints=[
        "With step = max |x| / high nothing is clipped. The best step is a fraction of it.",
        "Try a hundred fractions, compute the mean squared error of each, and keep the best.",
        "The error of one step: (fake_quantize(x, step, low, high) - x).square().mean().item()",
    ],
    solution=_best_step,
    grade=_grade_best_step,
)

# --- 1.3 -------------------------------------------------------------------------------------------------------


def _integer_matmul(
    x_codes: torch.Tensor, w_codes: torch.Tensor, x_step: float, w_step: float
) -> tuple[torch.Tensor, float]:
    """(batch, in) and (out, in) int8 codes -> (batch, out) int32 sums, and what one unit of them is worth."""
    sums = x_codes.int() @ w_codes.int().T
    return sums, x_step * w_step


def _grade_integer_matmul(student: Student, rng: Generator) -> None:
    few, many = (int(torch.randint(low, 2 * low, (), generator=rng)) for low in (200, 3000))
    for n_in, n_out in ((few, few), (few, 3 * few // 2), (many, 7)):  # square: a missing transpose is no error
        x, w = _codes(3, n_in, n_out, n_in == many, rng)
        x_step, w_step = _draw(0.02, 0.5, rng), _draw(0.006, 0.02, rng)  # no step is 1 / in, which would make a mean
        where = f"in = {n_in}, out = {n_out}, x_step = {x_step:.3g} and w_step = {w_step:.3g}"
        sums = x.double() @ w.double().T  # exact: float64 holds whole numbers up to 2^53
        got, scale = _sums_and_scale(student(x, w, x_step, w_step), sums)
        expect(got, sums, f"the sums with {where}", _wrong_sums(x, w, sums, x_step, w_step))
        if not _is_whole(got):
            raise Mistake(f"the sums are floats: make the codes int32 before the product (for {where})")
        if not torch.equal(numbers(got), sums):
            raise Mistake(f"for the sums with {where}: {_inexact(numbers(got), sums)}")
        expect(scale, x_step * w_step, f"the scale with {where}", _wrong_scales(x_step, w_step))


def _codes(batch: int, n_in: int, n_out: int, large: bool, rng: Generator) -> tuple[Tensor, Tensor]:
    """int8 codes, (batch, in) and (out, in). ``large``: the sums are so large that float32 could not hold them."""
    if not large:
        x, w = (torch.randint(-128, 128, (rows, n_in), generator=rng) for rows in (batch, n_out))
    else:
        side = 2 * torch.randint(2, (n_in,), generator=rng) - 1  # so that all products are positive
        x, w = (side * torch.randint(90, 128, (rows, n_in), generator=rng) for rows in (batch, n_out))
    return x.to(torch.int8), w.to(torch.int8)


def _sums_and_scale(got: Any, sums: Tensor) -> tuple[Any, Any]:
    """The two parts of the answer; a Mistake if something else is returned."""
    if not isinstance(got, (tuple, list)) or len(got) != 2:
        what = f"{len(got)} values" if isinstance(got, (tuple, list)) else f"a {type(got).__name__}"
        raise Mistake(f"it returns {what}: return two, the sums and the scale")
    if numbers(got[0]).dim() == 0 and numbers(got[1]).shape == sums.shape:
        raise Mistake("the scale comes first: return sums, scale")
    return got[0], got[1]


def _is_whole(sums: Any) -> bool:
    """Whether the sums are stored as whole numbers, in a tensor, an array or lists."""
    if isinstance(sums, (tuple, list)):
        return all(map(_is_whole, sums))
    return not torch.as_tensor(sums).is_floating_point()


def _inexact(got: Tensor, sums: Tensor) -> str:
    place = tuple((got != sums).nonzero()[0].tolist())
    beyond = "float32 is not exact beyond 2^24, so take the sum in int32"
    return f"one of them is {int(got[place]):,} and should be {int(sums[place]):,}. {beyond}"


def _wrong_sums(x: Tensor, w: Tensor, sums: Tensor, x_step: float, w_step: float) -> list[tuple[str, Tensor]]:
    small = "the sum overflows in {}: make the codes int32 before the product"
    apart = "{}: return them as they are, and the scale beside them"
    named = [
        (small.format("int8"), sums.long().to(torch.int8)),
        (small.format("int16"), sums.long().to(torch.int16)),
        ("the single products overflow in int8: make the codes int32 first", (x[:, None] * w).long().sum(2)),
        ("the sums are clipped to the range of int8: only the inputs are int8", sums.clamp(-128, 127)),
        (apart.format("they are multiplied by both steps"), sums * x_step * w_step),
        (apart.format("they are multiplied by x_step"), sums * x_step),
        (apart.format("they are multiplied by w_step"), sums * w_step),
        (apart.format("they are divided by the steps"), sums / (x_step * w_step)),
        ("this is a mean over the inputs: take the sum", sums / x.shape[1]),
        ("this is a mean over the inputs: take the sum", (sums / x.shape[1]).trunc()),
        ("the signs of the codes are lost", x.double().abs() @ w.double().abs().T),
    ]
    if w.shape[0] == w.shape[1]:
        named.append(("w_codes is (out, in): multiply by its transpose", x.double() @ w.double()))
    return named


def _wrong_scales(x_step: float, w_step: float) -> list[tuple[str, float]]:
    return [
        ("w_step is forgotten: it is the product of both steps", x_step),
        ("x_step is forgotten: it is the product of both steps", w_step),
        ("the steps are added: multiply them", x_step + w_step),
        ("it is turned upside down: multiply the steps", 1 / (x_step * w_step)),
        ("one step is divided by the other: multiply them", x_step / w_step),
        ("one step is divided by the other: multiply them", w_step / x_step),
        ("both steps are forgotten: it is their product", 1.0),
    ]


integer_matmul = Exercise(
    "integer_matmul",
    "1.3: Arithmetic with whole numbers",
    difficulty=2,
    minutes=10,
    question="""
    With x = x_step · x_codes and w = w_step · w_codes the steps can be taken out of the sum, so that a linear layer
    becomes a product of whole numbers. That is what integer hardware computes; it multiplies by the steps only once, at
    the end.

    Write `integer_matmul(x_codes, w_codes, x_step, w_step)`. `x_codes` is `(batch, in)` and `w_codes` is `(out, in)`,
    both int8; the steps are numbers. Return `(sums, scale)`: the sums over `in`, `(batch, out)`, as whole numbers in
    int32, and the number that they are to be multiplied by. Then `sums * scale` is the product of the fake-quantized
    x and w.
    """,
    hints=[
        "int8 holds -128 to 127. One product of two codes can be 16,384: what becomes of it, and of the sum?",
        "tensor.int() makes int32. w_codes is (out, in), so that its transpose is needed: w_codes.T.",
        "Both steps stand in front of every product in the sum, so the scale is x_step * w_step.",
    ],
    solution=_integer_matmul,
    grade=_grade_integer_matmul,
)

EXERCISES = (fake_quantize, best_step, integer_matmul)
