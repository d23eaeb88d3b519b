"""Exercises of lesson 01: the uniform quantizer, its best step, and arithmetic with whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from mebqat_lite.course.exercises import Exercise, Mistake, checked, expect
from mebqat_lite.quantizers import fake_quantize

Student = Callable[..., Any]
BEYOND = "your values go beyond high * step: clip the codes, not x"


def _draw(low: float, high: float, rng: Generator) -> float:
    """A number between ``low`` and ``high``, evenly over their ratio."""
    return math.exp(float(torch.empty(()).uniform_(math.log(low), math.log(high), generator=rng)))


# --- 1.1 -------------------------------------------------------------------------------------------------------


def _uniform(x: torch.Tensor, step: float, low: int, high: int) -> torch.Tensor:
    """step clip(round(x / step), low, high), same shape as ``x``."""
    codes = torch.round(x / step).clamp(low, high)
    return step * codes


def _grade_uniform(student: Student, rng: Generator) -> None:
    sizes = ((0.15, 0.5), (2.0, 20.0), (0.15, 0.5), (2.0, 20.0))
    for signed, size in zip((True, True, False, False), sizes, strict=True):
        bits = int(torch.randint(3, 6, (), generator=rng))
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        step = _draw(*size, rng)
        shape = torch.randint(4, 9, (3 - signed,), generator=rng).tolist()
        x = _around_levels([*shape, 40], step, low, high, rng)
        levels = step * torch.arange(low, high + 1)
        want = levels[(x[..., None] - levels).abs().argmin(-1)]  # the nearest level: (..., levels) -> (...)
        where = f"step = {step:.4g}, low = {low} and high = {high}"
        got = student(x, step, low, high)
        shown = _by_property(checked(got, want) / step, low, high)
        mistakes = _wrong_uniforms(x, step, low, high)
        expect(got, want, where, [*mistakes, (shown, got)] if shown else mistakes)


def _around_levels(shape: list[int], step: float, low: int, high: int, rng: Generator) -> Tensor:
    """Values inside and beyond the range, none near the middle of two levels, where float rounding decides."""
    codes = torch.randint(low - 6, high + 7, shape, generator=rng)
    return step * (codes + torch.empty(shape).uniform_(-0.45, 0.45, generator=rng))


def _wrong_uniforms(x: Tensor, step: float, low: int, high: int) -> list[tuple[str, Tensor]]:
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


uniform = Exercise(
    "uniform",
    "1.1: The uniform quantizer",
    difficulty=1,
    minutes=10,
    question=r"""
    A uniform quantizer keeps of each number only a whole number, its *code*:

    $$\hat x = \mathrm{step} \cdot \mathrm{clip}(\mathrm{round}(x / \mathrm{step}),\ \mathrm{low},\ \mathrm{high})$$

    Write `uniform(x, step, low, high)`. `x` is a float tensor of any shape, `step` a positive number, and `low`
    and `high` are the lowest and the highest code. The result is a new float tensor of the same shape.
    """,
    hints=[
        "Go from the inside to the outside: divide, round, clip, multiply.",
        "low and high limit the codes round(x / step), not x itself.",
        "tensor.clamp(low, high) clips; torch.round rounds to the nearest whole number.",
    ],
    solution=_uniform,
    grade=_grade_uniform,
    package=fake_quantize,
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
    inputs = [(x, bits) for x in _samples(rng) for bits in (3, 2, 4)]
    steps = [float(checked(student(x, bits), 0.0)) for x, bits in inputs]
    _must_depend_on_input(steps)
    ratios = [_error_ratio(x, bits, step) for (x, bits), step in zip(inputs, steps, strict=True)]
    if max(ratios) <= 1.03:
        return
    known = zip(*(_wrong_steps(x, bits) for x, bits in inputs), strict=True)  # each mistake at all inputs
    off, message = min(
        (max(abs(step / wrong - 1) for step, (_, wrong) in zip(steps, row, strict=True)), row[0][0]) for row in known
    )
    if off < 0.08:
        raise Mistake(message)
    worst = ratios.index(max(ratios))
    raise Mistake(_too_small_or_large(*inputs[worst], steps[worst], max(ratios)))


def _samples(rng: Generator) -> list[Tensor]:
    """Bell-shaped weights and long-tailed ones, (out, in), each on a scale of its own."""
    normal = torch.randn(40, 100, generator=rng)
    u = torch.empty(40, 100).uniform_(-0.9999, 0.9999, generator=rng)
    laplace = -u.sign() * (1 - u.abs()).log()
    return [normal * _draw(0.01, 0.1, rng), laplace * _draw(0.3, 10, rng)]


def _must_depend_on_input(steps: list[float]) -> None:
    """``steps``: of two tensors, at 3, 2 and 4 bits each."""
    if min(steps) <= 0:
        raise Mistake(f"it returns {min(steps):.4g}: a step is positive")
    if len(set(steps)) == 1:
        raise Mistake("it returns the same step whatever x and bits are: compute it from x and bits")
    if steps[:3] == steps[3:]:
        raise Mistake("it returns the same step whatever x is: search among fractions of max |x| / high")
    if steps[0] == steps[1] == steps[2]:
        raise Mistake("it returns the same step for 2, 3 and 4 bits: fewer levels need a larger step")


def _errors(x: Tensor, steps: Tensor, low: int, high: int, power: int = 2) -> Tensor:
    """Mean |error|^power at each of ``steps``, (steps,)."""
    flat, s = x.flatten(), steps[:, None]
    return (s * (flat / s).round().clamp(low, high) - flat).abs().pow(power).mean(1)


def _fine(x: Tensor, bits: int) -> Tensor:
    """Many steps, (400,), from far too small to more than clips nothing."""
    return float(x.abs().max()) / (2 ** (bits - 1) - 1) * torch.logspace(-2.3, 0.1, 400)


def _error_ratio(x: Tensor, bits: int, step: float) -> float:
    """Squared error at ``step`` over the least."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return float(_errors(x, torch.tensor([step]), low, high) / _errors(x, _fine(x, bits), low, high).min())


def _wrong_steps(x: Tensor, bits: int) -> list[tuple[str, float]]:
    """Steps by which a mistake is known."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
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
        ("it minimizes the absolute error: square it", _least(x, fine, low, high, power=1)),
    ]


def _least(x: Tensor, steps: Tensor, low: int, high: int, power: int = 2) -> float:
    return float(steps[_errors(x, steps, low, high, power).argmin()])


def _too_small_or_large(x: Tensor, bits: int, step: float, ratio: float) -> str:
    if ratio < 1.15:
        return f"close, but the squared error is {ratio:.2f} times the least: search a finer grid of steps"
    best = _least(x, _fine(x, bits), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    side = "too small: it clips too much" if step < best else "too large: it rounds too coarsely"
    return f"at {bits} bits your step {step:.4g} is {side}. Its squared error is {ratio:.1f} times the least"


best_step = Exercise(
    "best_step",
    "1.2: The best step",
    difficulty=2,
    minutes=15,
    question="""
    A large step rounds coarsely, a small one clips the large values. Write `best_step(x, bits)`, which returns, as
    one number, the step with the least squared error between `x` and its quantized values. `x` is a float tensor,
    and the codes are signed: -2^(bits-1) to 2^(bits-1) - 1, `bits` at least 2.

    Any search will do: your step is right if its squared error is within 3 % of the best.
    """,
    hints=[
        "With step = max |x| / high nothing is clipped. The best step is a fraction of it.",
        "Try a hundred fractions, compute the mean squared error of each, and keep the best.",
        "The error of one step: (uniform(x, step, low, high) - x).square().mean().item()",
    ],
    solution=_best_step,
    grade=_grade_best_step,
)

# --- 1.3 -------------------------------------------------------------------------------------------------------


def _integer_matmul(x_codes: torch.Tensor, w_codes: torch.Tensor, x_step: float, w_step: float) -> torch.Tensor:
    """(batch, in) and (out, in) int8 codes -> (batch, out) floats; the sum is taken in int32."""
    sums = x_codes.int() @ w_codes.int().T  # (batch, out) int32
    return sums * (x_step * w_step)


def _grade_integer_matmul(student: Student, rng: Generator) -> None:
    n_in = int(torch.randint(200, 400, (), generator=rng))
    for n_out in (n_in, n_in // 7, 3 * n_in // 2):  # square first: there a missing transpose raises no error
        batch = int(torch.randint(2, 7, (), generator=rng))
        x = torch.randint(-128, 128, (batch, n_in), generator=rng).to(torch.int8)
        w = torch.randint(-128, 128, (n_out, n_in), generator=rng).to(torch.int8)
        x_step, w_step = _draw(0.02, 0.5, rng), _draw(0.001, 0.01, rng)
        got = student(x, w, x_step, w_step)
        if isinstance(got, Tensor) and not got.is_floating_point():
            raise Mistake(f"it returns whole numbers ({got.dtype}): multiply the sums by x_step * w_step")
        want = torch.einsum("bi,oi->bo", x.double() * x_step, w.double() * w_step).float()
        expect(got, want, f"in = {n_in}, out = {n_out}", _wrong_products(x, w, x_step, w_step))


def _wrong_products(x: Tensor, w: Tensor, x_step: float, w_step: float) -> list[tuple[str, Tensor]]:
    terms = x.long()[:, None] * w.long()  # (batch, out, in)
    sums = terms.sum(2)
    small = "the sum overflows in {}: make the codes int32 before the product"
    scale = x_step * w_step
    named = [
        (small.format("int8"), sums.to(torch.int8) * scale),
        (small.format("int16"), sums.to(torch.int16) * scale),
        ("the single products overflow in int8: make the codes int32 first", terms.to(torch.int8).sum(2) * scale),
        ("the sums are clipped to the range of int8: only the inputs are int8", sums.clamp(-128, 127) * scale),
        ("w_step is forgotten: multiply by both steps", sums * x_step),
        ("x_step is forgotten: multiply by both steps", sums * w_step),
        ("both steps are forgotten: multiply the sums by x_step * w_step", sums.double()),
        ("the sums are divided by the steps: multiply", sums / scale),
        ("the steps are added: multiply by both", sums * (x_step + w_step)),
        ("this is a mean over the inputs: take the sum", sums * scale / x.shape[1]),
    ]
    if w.shape[0] == w.shape[1]:
        turned = (x.long() @ w.long()) * scale
        named.append(("w_codes is (out, in): multiply by its transpose", turned))
    return named


integer_matmul = Exercise(
    "integer_matmul",
    "1.3: Arithmetic with whole numbers",
    difficulty=2,
    minutes=10,
    question="""
    With x = x_step · x_codes and w = w_step · w_codes the steps can be taken out of the sum, and a
    linear layer becomes a product of whole numbers. That is what integer hardware computes.

    Write `integer_matmul(x_codes, w_codes, x_step, w_step)`. `x_codes` is `(batch, in)`, `w_codes` is `(out, in)`,
    both int8; the steps are numbers. Take the sum over `in` in int32 and return the float result, `(batch, out)`:
    the same as the product of the fake-quantized x and w.
    """,
    hints=[
        "int8 holds -128 to 127. One product of two codes can be 16,384: what becomes of it, and of the sum?",
        "tensor.int() makes int32. w_codes is (out, in), so that its transpose is needed: w_codes.T.",
        "The sums times x_step * w_step are the result.",
    ],
    solution=_integer_matmul,
    grade=_grade_integer_matmul,
)

EXERCISES = (uniform, best_step, integer_matmul)
