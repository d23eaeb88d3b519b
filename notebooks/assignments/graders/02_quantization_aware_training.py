"""Assignment 02: DoReFa's weights and LSQ with their gradients, and a step of quantization-aware training."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from mebqat_lite.course.classroom.grading import Assignment, Check, Part
from mebqat_lite.course.exercises import Mistake, checked, expect
from torch import Generator, Tensor

Named = list[tuple[str, Tensor]]  # (message, the result that it names)
Factors = list[tuple[str, float]]  # (message, what the result is too large by)
NEAR = "the step's gradient is right far from n and p, but not within half a step of them: "
NEAR += "is it clipped before it is rounded? Just beyond n and p the slopes are n and p already"
FLAT = "the gradient is zero everywhere: torch.round has none. Put what rounding adds into detach()"


def whole(low: int, high: int, rng: Generator) -> int:
    """A whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def around(codes: Tensor, rng: Generator) -> Tensor:
    """Values near whole numbers, neither on them nor in the middle of two."""
    side = torch.randint(0, 2, codes.shape, generator=rng) * 2 - 1
    return codes + side * torch.empty(codes.shape).uniform_(0.05, 0.4, generator=rng)


def arrived(student: Any, args: tuple[Any, ...], upstream: Tensor) -> list[Tensor | None]:
    """The gradients of all arguments, where the value is a tensor like the first."""
    value, grads = student.gradients(*args, upstream=upstream)
    checked(value, args[0])
    return grads


def by_factor(got: Tensor, right: Tensor, factors: Factors) -> Named:
    """Those of ``factors`` that lead from the right result to the one that was got, however large."""
    got, right = checked(got, right), right.double()
    near = 1e-5 * right.abs().max()
    return [(words, got) for words, factor in factors if bool(((got / factor - right).abs() <= near).all())]


# --- dorefa_weights --------------------------------------------------------------------------------------------


def layers(rng: Generator) -> list[tuple[Tensor, int]]:
    """Weights that are near no middle of two levels; the largest is a negative one, then a positive one.

    The first tell all mistakes apart.
    """
    bits = whole(4, 8, rng)
    first = layer(bits, -1.0, rng)
    while not tells_apart(first, bits):
        first = layer(bits, -1.0, rng)
    return [(first, bits), (layer(3, 1.0, rng), 3), (layer(2, -1.0, rng), 2)]


def layer(bits: int, side: float, rng: Generator) -> Tensor:
    """Weights (5, 24) of which the largest has the sign of ``side``."""
    levels = 2**bits - 1
    bounds = (0.1, int(0.8 * levels) + 0.2) if side < 0 else (0.2 * levels, levels - 0.1)
    free = around(torch.randint(0, levels + 1, (5, 24), generator=rng), rng).clamp(*bounds)
    u = 2 * free / levels - 1
    u[whole(0, 4, rng), whole(0, 23, rng)] = side
    return torch.atanh(u * torch.empty(()).uniform_(0.6, 0.9, generator=rng))


def tells_apart(w: Tensor, bits: int) -> bool:
    """Whether each mistake gives values of its own, and none the right ones."""
    values = [right_weights(w, bits), *(found for _, found in wrong_weights(w, bits))]
    return not any(torch.allclose(one, other, rtol=1e-3) for one, other in itertools.combinations(values, 2))


def right_weights(w: Tensor, bits: int) -> Tensor:
    """The level of -c .. c that is nearest to c u, where c = mean|w|."""
    size = sum(abs(value) for value in w.flatten().tolist()) / w.numel()
    u = w.double().tanh() / math.tanh(float(w.abs().max()))
    levels = torch.linspace(-1, 1, 2**bits, dtype=torch.float64)
    return size * levels[(u[..., None] - levels).abs().argmin(-1)]


def grade_weights(student: Any, rng: Generator) -> None:
    """The values."""
    for w, bits in layers(rng):
        expect(student(w, bits), right_weights(w, bits).float(), f"bits = {bits}", wrong_weights(w, bits))


def wrong_weights(w: Tensor, bits: int) -> Named:
    """What wrong answers give as values."""
    levels, w = 2**bits - 1, w.double()
    t, size = w.tanh(), w.abs().mean()
    u = t / t.abs().max()
    plain, v = w / w.abs().max(), (u + 1) / 2

    def q(v: Tensor, levels: int = levels) -> Tensor:
        return (v * levels).round() / levels

    right = 2 * q(v) - 1
    half = 2 ** (bits - 1) - 1
    return [
        ("w comes back: round it", w),
        ("it does not round", size * u),
        ("it rounds down (floor): use torch.round", size * (2 * (v * levels).floor() / levels - 1)),
        ("the sign is lost: after q_b come 2 q_b - 1, which lead from 0 .. 1 back to -1 .. 1", size * q(v)),
        ("the sign is lost: after q_b come 2 q_b - 1, which lead from 0 .. 1 back to -1 .. 1", 2 * size * q(v)),
        ("the sign is lost: all weights come out positive", size * right.abs()),
        ("the sign is lost: |u| is rounded in place of (u + 1) / 2", size * q(u.abs())),
        ("the sign is turned", -size * right),
        ("q_b has 2^bits - 1 steps between its 2^bits levels: here it has 2^bits", size * (2 * q(v, levels + 1) - 1)),
        ("a level is missing: q_b has 2^bits - 1 steps", size * (2 * q(v, levels - 1) - 1)),
        ("u itself is rounded: q_b takes (u + 1) / 2, which lies between 0 and 1", size * q(u)),
        ("these are the codes: divide by 2^bits - 1, take 2 q_b - 1, times mean|w|", (v * levels).round()),
        ("the size is missing: times mean|w|", right),
        ("the size is the largest |w|: it should be mean|w|", w.abs().max() * right),
        ("the size is the mean of w: it should be that of |w|", w.mean() * right),
        ("the size is the mean of |tanh w|: it should be that of |w|", t.abs().mean() * right),
        ("the size is the standard deviation: it should be mean|w|", w.std() * right),
        ("tanh is missing: u is tanh(w) / max|tanh(w)|", size * (2 * q((plain + 1) / 2) - 1)),
        ("tanh(w) is not divided by its largest size m", size * (2 * q((t + 1) / 2) - 1)),
        ("tanh(w) is divided by max|w|, not by max|tanh(w)|", size * (2 * q((t / w.abs().max() + 1) / 2) - 1)),
        ("m is the largest of tanh(w), not of |tanh(w)|: the largest weight may be negative",
         size * (2 * q((t / t.max() + 1) / 2) - 1)),
        ("m is that of each row: it is the largest |tanh(w)| of all",
         size * (2 * q((t / t.abs().amax(1, True) + 1) / 2) - 1)),
        ("mean|w| is that of each row: it is that of all weights", w.abs().mean(1, True) * right),
        ("tanh is taken of w / max|w|: it is taken of w", size * (2 * q((plain.tanh() + 1) / 2) - 1)),
        ("it rounds up (ceil): use torch.round", size * (2 * (v * levels).ceil() / levels - 1)),
        ("the size is the root of the mean square: it should be mean|w|", w.square().mean().sqrt() * right),
        ("these are the levels of one bit less: q_b has 2^bits - 1 steps", size * (2 * q(v, half) - 1)),
        ("q_b takes (u + 1) / 2: here the half is missing", size * (2 * q(u + 1) - 1)),
        ("mean|w| stands inside q_b: it is multiplied after the rounding", 2 * q((size * u + 1) / 2) - 1),
    ]  # fmt: skip


def smooth_slopes(w: Tensor, upstream: Tensor) -> Tensor:
    """The gradient without rounding and at constant mean|w|: each weight is moved a little, up and down."""
    flat, h = w.double().flatten(), 1e-5

    def moved(by: float) -> Tensor:
        t = torch.tanh(flat + by * torch.eye(len(flat), dtype=torch.float64))  # a row for each weight that moves
        return (t / t.abs().amax(1, keepdim=True)) @ upstream.double().flatten()

    return (w.double().abs().mean() * (moved(h) - moved(-h)) / (2 * h)).reshape(w.shape)


def wrong_slopes(w: Tensor, bits: int, upstream: Tensor) -> Named:
    """What wrong answers give as gradient of w."""
    levels, w, upstream = 2**bits - 1, w.double(), upstream.double()
    t, size, right = w.tanh(), w.abs().mean(), smooth_slopes(w, upstream)
    m, bell = t.abs().max(), 1 - t.square()
    out = 2 * ((t / m + 1) / 2 * levels).round() / levels - 1
    mean = (upstream * out).sum() * w.sign() / w.numel()  # what a mean|w| that is not constant adds
    moving = "mean|w| is to be held constant: detach it"
    return [
        (FLAT, 0 * w),
        (f"only mean|w| has a gradient, and {moving}. Rounding has none: put what it adds into detach()", mean),
        (moving, right + mean),
        (moving, upstream * size / m * bell + mean),
        ("the gradient is 1: straight through is q_b alone, and tanh, m and mean|w| remain", upstream),
        ("the slope of tanh is missing: 1 - tanh(w)^2", upstream * size / m),
        ("the gradient is mean|w|: straight through is q_b alone, and tanh and m remain", upstream * size),
        ("the slope of tanh is 1 - tanh(w)^2, not 1 - tanh(w)", upstream * size / m * (1 - t)),
        ("tanh is differentiated at u: its slope is 1 - tanh(w)^2", upstream * size / m * (1 - (t / m) ** 2)),
        ("the incoming gradient is lost: times the gradient that arrives", right / upstream),
    ]  # fmt: skip


def slope_factors(w: Tensor, bits: int) -> Factors:
    """By which a gradient of w may be too large or too small."""
    words, levels = "the gradient is wrong by a factor: ", 2**bits - 1
    return [
        (words + "it lacks mean|w|", 1 / float(w.abs().mean())),
        (words + "it must be divided by m, the largest |tanh(w)|", float(w.tanh().abs().max())),
        (words + "it is 2^bits - 1 times too large: q_b divides by that again", levels),
        (words + "it is 2^bits - 1 times too small: q_b multiplies by that first", 1 / levels),
        (words + "it is half as large: the 2 before q_b belongs to it", 0.5),
        (words + "it is twice as large", 2.0),
        (words + "its sign is turned", -1.0),
    ]


def slopes_of(student: Any, rng: Generator) -> Any:
    """For each layer: w, its bits, the upstream gradient, what arrives at w, and where the largest weight is."""
    for w, bits in layers(rng):
        upstream = torch.randn(w.shape, generator=rng) + w.sign()  # the largest weight's sum does not cancel
        got = arrived(student, (w, bits), upstream)[0]
        if got is None:
            raise Mistake("no gradient comes back: put only what rounding adds into detach(), and keep u")
        yield w, bits, upstream, got, w.abs() == w.abs().max()


def grade_most(student: Any, rng: Generator) -> None:
    """The gradient of all weights but the largest."""
    for w, bits, upstream, got, largest in slopes_of(student, rng):
        got, right = got[~largest], smooth_slopes(w, upstream)[~largest].float()
        named = [(words, result[~largest]) for words, result in wrong_slopes(w, bits, upstream)]
        named += by_factor(got, right, slope_factors(w, bits))
        expect(got, right, f"bits = {bits}, the gradient of w (not the largest)", named)


def grade_largest(student: Any, rng: Generator) -> None:
    """The gradient of the largest weight, which moves all the others through m."""
    for w, bits, upstream, got, largest in slopes_of(student, rng):
        t, double = w.double().tanh(), upstream.double()
        m, size = t.abs().max(), w.double().abs().mean()
        bell, sign = (1 - m**2) * size / m, t[largest].sign()
        pull = (double * t / m).sum()  # of m on all weights
        alone = double[largest] * bell
        constant = "m is held constant: no detach() there. The largest weight moves m, and m all the others"
        named = [
            (constant, alone),
            (f"{constant}. mean|w|, though, is constant", alone + wrong_slopes(w, bits, upstream)[1][1][largest]),
            (
                "the sign is lost: where the largest weight is negative, m falls when it rises",
                alone - bell * pull,
            ),
            ("the sign of what m adds is turned: with m all others shrink", alone + sign * bell * pull),
            ("the largest weight's own share is missing: it has one as all have, and that of m", -sign * bell * pull),
            ("what m adds lacks the slope of tanh", alone - sign * pull * size / m),
            *((words, result[largest]) for words, result in wrong_slopes(w, bits, upstream)),
        ]
        got, right = got[largest], smooth_slopes(w, upstream)[largest].float()
        named += by_factor(got, right, slope_factors(w, bits))
        expect(got, right, f"bits = {bits}, the gradient of the largest weight", named)


# --- lsq -------------------------------------------------------------------------------------------------------


def ends(bits: int, signed: bool) -> tuple[int, int]:
    """The lowest and the highest code."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def settings(rng: Generator) -> list[tuple[Tensor, Tensor, int, bool]]:
    """Values inside and on both sides of the range, some within half a step of its ends.

    Signed and unsigned codes have a step above 1, where it shows if x itself is clipped, and one below.
    """
    found = []
    for bits, signed, side in ((4, False, 1), (2, True, -1), (whole(3, 5, rng), True, 1), (2, False, -1)):
        low, high = ends(bits, signed)
        codes = torch.randint(low - 3, high + 4, (whole(3, 5, rng), 20), generator=rng)
        codes[0, :4] = torch.tensor([low - 1, low, high, high + 1])
        step = torch.randn((), generator=rng).abs().mul(0.7).add(0.2).mul(side).exp()
        found.append((step * around(codes, rng), step, bits, signed))
    return found


def near_ends(u: Tensor, low: int, high: int) -> Tensor:
    """Where it matters that the clip comes before the rounding."""
    return ((u - low).abs() < 0.5) | ((u - high).abs() < 0.5)


def grade_codes(student: Any, rng: Generator) -> None:
    """The values: the nearest of 2^bits levels."""
    for x, step, bits, signed in settings(rng):
        low, high = ends(bits, signed)
        levels = step * torch.arange(low, high + 1)
        nearest = levels[(x[..., None] - levels).abs().argmin(-1)]
        where = f"bits = {bits}, signed = {signed} and step = {step:.3g}"
        expect(student(x, step, bits, signed), nearest, where, wrong_codes(x, step, bits, signed))


ITSELF = "x itself is clipped to n .. p: it is x / step that is clipped"


def wrong_codes(x: Tensor, step: Tensor, bits: int, signed: bool) -> Named:
    """What wrong answers give as values."""
    (low, high), (other_low, other_high) = ends(bits, signed), ends(bits, not signed)
    u = x / step
    code = u.round().clamp(low, high)
    small = step / math.sqrt(x.numel() * high)
    itself = step * (x.clamp(low, high) / step).round().clamp(low, high)
    short = [
        ("one level is missing: the highest code is p", step * u.round().clamp(low, high - 1)),
        ("one level is missing: signed codes begin at -2^(bits - 1)", step * u.round().clamp(-high, high)),
    ]
    or_itself = f". Or {ITSELF}"  # with few bits and a large step it can give the same
    return [
        ("x comes back: round it", x),
        ("these are the codes: times step", code),
        ("it does not round", step * u.clamp(low, high)),
        ("it does not clip: codes lie between n and p", step * u.round()),
        ("it rounds down (floor): use torch.round", step * u.floor().clamp(low, high)),
        (f"signed is {signed}, but the codes are those of {not signed}", step * u.round().clamp(other_low, other_high)),
        ("one level too many: the highest code p is one less than a power of 2", step * u.round().clamp(low, high + 1)),
        *((words + or_itself if torch.equal(value, itself) else words, value) for words, value in short),
        (ITSELF, itself),
        ("the sign is lost: signed codes go below zero", step * code.abs()),
        ("the sign is lost: signed codes go below zero", step * u.abs().round().clamp(low, high)),
        ("the step itself is scaled: 1 / sqrt(N p) belongs to its gradient alone",
         small * (x / small).round().clamp(low, high)),
        ("the step itself is scaled: 1 / sqrt(N p) belongs to its gradient alone", small * code),
        ("x is multiplied by step: the codes are round(x / step)", step * (x * step).round().clamp(low, high)),
        ("one bit too many: the codes end at 2^bits - 1, or at 2^(bits - 1) - 1 if they are signed",
         step * u.round().clamp(*ends(bits + 1, signed))),
    ]  # fmt: skip


def grade_input(student: Any, rng: Generator) -> None:
    """The gradient of x: 1 inside the range, 0 outside."""
    for x, step, bits, signed in settings(rng):
        low, high = ends(bits, signed)
        u, upstream = x / step, torch.randn(x.shape, generator=rng)
        upstream[near_ends(u, low, high)] = 0  # the step's gradient has these
        got = arrived(student, (x, step, bits, signed), upstream)[0]
        if got is None:
            raise Mistake("no gradient comes back for x: put only what rounding adds into detach()")
        inside = (u > low) & (u < high)
        right, scale = torch.where(inside, upstream, 0.0), 1 / math.sqrt(x.numel() * high)
        expect(got, right, f"bits = {bits}, signed = {signed}, the gradient of x", [
            (FLAT, 0 * x),
            ("the gradient of x passes outside the range too: there the output does not move", upstream),
            ("the gradient of x passes above the range too", torch.where(u > low, upstream, 0.0)),
            ("the gradient of x passes below the range too", torch.where(u < high, upstream, 0.0)),
            ("the gradient of x is zero inside, and passes outside", upstream - right),
            (ITSELF, torch.where((x > low) & (x < high), right, 0.0)),
            ("the gradient of x is scaled by 1 / sqrt(N p): that is for the step alone", right * scale),
            ("the gradient of x is step times too large or too small", right * step),
            ("the gradient of x is 1 / step times too large or too small", right / step),
            ("the gradient of x has its sign turned", -right),
            ("the incoming gradient is lost: times the gradient that arrives", inside.float()),
        ])  # fmt: skip


def step_slope(x: Tensor, step: Tensor, low: int, high: int, upstream: Tensor) -> Tensor:
    """LSQ's gradient of the step, unscaled: the step is moved a little, and what rounding added stays."""
    x, upstream, s, h = x.double(), upstream.double(), step.double(), 1e-6 * float(step)
    added = (x / s).clamp(low, high).round() - (x / s).clamp(low, high)

    def output(s: Tensor) -> Tensor:
        return (upstream * s * ((x / s).clamp(low, high) + added)).sum()

    return (output(s + h) - output(s - h)) / (2 * h)


def grade_learned(student: Any, rng: Generator) -> None:
    """The gradient of the step, the sum over all values, times 1 / sqrt(N p)."""
    for x, step, bits, signed in settings(rng):
        low, high = ends(bits, signed)
        side = -1 if signed else 1  # the sum is negative for some settings
        everywhere = torch.randn(x.shape, generator=rng) + side * x.sign()  # its terms do not cancel
        for upstream in (everywhere * ~near_ends(x / step, low, high), everywhere):
            got = arrived(student, (x, step, bits, signed), upstream)[1]
            if got is None:
                raise Mistake("no gradient comes back for the step: float(step), .item() and detach() cut it off")
            right = (step_slope(x, step, low, high, upstream) / math.sqrt(x.numel() * high)).float()
            where = f"bits = {bits}, signed = {signed} and {x.numel()} values, the gradient of the step"
            named = by_factor(got, right, step_factors(x, bits, signed)) + wrong_steps(x, step, bits, signed, upstream)
            if upstream is everywhere:  # far from the ends it was right
                named = [(NEAR, got)]
            expect(got, right, where, named)


def step_factors(x: Tensor, bits: int, signed: bool) -> Factors:
    """By which a gradient of the step may be too large or too small, for each wrong scale."""
    (low, high), other, count = ends(bits, signed), ends(bits, not signed)[1], x.numel()
    root, words = math.sqrt(count * high), "the scale of the step's gradient is {}: it is 1 / sqrt(N p)"
    scales = [
        ("missing", 1.0),
        ("1 / (N p), without the root", count * high),
        ("1 / sqrt(N), without p", math.sqrt(count)),
        ("1 / sqrt(p), without N", math.sqrt(high)),
        ("1 / N, a mean", count),
        ("sqrt(N p), not 1 over it", 1 / root),
        ("1 / sqrt(N 2^bits)", math.sqrt(count * 2**bits)),
        ("1 / sqrt(N bits)", math.sqrt(count * bits)),
        (f"made with the p of {'unsigned' if signed else 'signed'} codes", math.sqrt(count * other)),
        ("made with the number of rows for N", math.sqrt(len(x) * high)),
        ("made with the number of columns for N", math.sqrt(x.shape[-1] * high)),
        ("1 / sqrt(N 2^(bits - 1))", math.sqrt(count * 2 ** (bits - 1))),
        ("made with -n, not with p", math.sqrt(count * max(-low, 1))),
    ]
    return [(words.format(name), root / by) for name, by in scales]


def wrong_steps(x: Tensor, step: Tensor, bits: int, signed: bool, upstream: Tensor) -> Named:
    """What wrong answers give as gradient of the step."""
    (low, high), count = ends(bits, signed), x.numel()
    x, step, upstream = x.double(), step.double(), upstream.double()
    u, root = x / step, math.sqrt(count * high)
    code, inside = u.round().clamp(low, high), (u > low) & (u < high)
    slope = torch.where(inside, code - u, code)
    total = (upstream * slope).sum()
    parts = [
        ("only the codes count, as without straight-through: inside the range, subtract x / step", code),
        ("inside it is 0: LSQ has round(x / step) - x / step there", torch.where(inside, 0.0, code)),
        ("the sign inside is turned: round(x / step) - x / step", torch.where(inside, u - code, code)),
        ("outside the range it is 0: there it is n or p", torch.where(inside, slope, 0.0)),
        ("outside the range it goes on as inside: there it is n or p alone", u.round() - u),
        ("outside the range x / step is subtracted too: there it is n or p alone", code - u),
        ("outside the range it is -1, 0 or 1: there it is the code, n or p", torch.where(inside, slope, code.sign())),
        ("it is 0 below the range: there it is n", torch.where(u < low, 0.0, slope)),
        ("the step that multiplies the codes is cut off: both the product and the quotient have a gradient",
         torch.where(inside, -u, 0.0)),
        ("it is multiplied by step: the slopes are in units of a code", slope * step),
        ("it is divided by step: the slopes are in units of a code", slope / step),
        ("its sign is turned", -slope),
    ]  # fmt: skip
    product, quotient = (upstream * code).sum(), (upstream * torch.where(inside, -u, 0.0)).sum()
    one = "the scaled step stands in one place, and the step itself in the other: scale the gradient of both"
    return [
        ("the step's gradient is zero", 0 * total),
        (one, product + quotient / root),
        (one, product / root + quotient),
        ("the sign is lost: it is the absolute value of the step's gradient", total.abs() / root),
        ("the step's gradient lacks the one that arrives: multiply by it before the sum", slope.sum() / root),
        *((f"the step's gradient: {name}", (upstream * part).sum() / root) for name, part in parts),
        *((f"the step's gradient: {name}. And its scale is missing", (upstream * part).sum()) for name, part in parts),
    ]


# --- qat_step --------------------------------------------------------------------------------------------------


def problem(
    rng: Generator, bits: int, beyond: int, near: bool = False
) -> tuple[Tensor, Tensor, Tensor, float, int, float]:
    """A linear layer and a batch; codes reach up to ``beyond`` outside the range, and only with ``near`` also into the
    half step outside of its ends."""
    low, high = ends(bits, True)
    outputs, inputs, examples = whole(3, 5, rng), whole(6, 9, rng), whole(10, 20, rng)
    step = math.exp(float(torch.randn((), generator=rng)) * 0.6)
    u = around(torch.randint(low - beyond, high + beyond + 1, (outputs, inputs), generator=rng), rng)
    u[0, :2] = torch.tensor([low - beyond - 0.2, high + beyond + 0.2])
    u = torch.where((u < low) & (u > low - 0.5), u + 0.5 if beyond == 0 else low - 0.7, u)
    u = torch.where((u > high) & (u < high + 0.5), u - 0.5 if beyond == 0 else high + 0.7, u)
    if near:
        u[1:, 0], u[1:, 1] = low - 0.3, high + 0.3
    x = torch.randn(examples, inputs, generator=rng)
    y = x @ (u * step).T + 2 * step * torch.randn(examples, outputs, generator=rng)
    return u * step, x, y, step, bits, 0.3 + 0.5 * float(torch.rand((), generator=rng))


def true_move(w: Tensor, x: Tensor, y: Tensor, step: float, bits: int, lr: float) -> Tensor:
    """How far each weight goes down, output by output and example by example."""
    low, high = ends(bits, True)
    move, share = torch.zeros(w.shape, dtype=torch.float64), lr / y.numel()
    for row, (weights, targets) in enumerate(zip(w.double(), y.double().T, strict=True)):
        codes = torch.tensor([min(range(low, high + 1), key=lambda k: abs(k * step - v)) for v in weights.tolist()])
        for inputs, target in zip(x.double(), targets, strict=True):
            move[row] += 2 * share * (inputs @ (codes * step).double() - target) * inputs
        move[row][(weights < low * step) | (weights > high * step)] = 0
    return move


def grade_move(student: Any, rng: Generator, beyond: int, near: bool = False) -> None:
    """What the weights lose, w minus the new weights."""
    for bits in (3, 2, 4):
        args = problem(rng, bits, beyond, near)
        w, _, y, step, _, lr = args
        move, right = w.double() - checked(student(*args), w), true_move(*args).float()
        where = f"bits = {bits}, step = {step:.3g} and lr = {lr:.3g}, w minus the new weights"
        expect(move, right, where, by_factor(move, right, move_factors(y, step, lr)) + wrong_moves(*args))


def grade_inside(student: Any, rng: Generator) -> None:
    """The step of weights inside the range."""
    grade_move(student, rng, 0)


def grade_outside(student: Any, rng: Generator) -> None:
    """Some weights are clipped, and stay where they are."""
    grade_move(student, rng, 2)
    grade_move(student, rng, 2, near=True)


def move_factors(y: Tensor, step: float, lr: float) -> Factors:
    """By which a step may be too long or too short."""
    words = "the step is wrong by a factor: "
    return [
        (words + "it lacks lr", 1 / lr),
        (words + "the sign is turned, it goes uphill", -1.0),
        (words + "it lacks the 2 of the square's derivative", 0.5),
        (words + "the loss is a mean, and this is the sum", y.numel()),
        (words + "the mean is over the outputs too, not over the examples alone", y.shape[1]),
        (words + "the mean is over the examples too, not over the outputs alone", y.shape[0]),
        (words + "it is step times too large or too small", step),
        (words + "it is 1 / step times too large or too small", 1 / step),
    ]


def wrong_moves(w: Tensor, x: Tensor, y: Tensor, step: float, bits: int, lr: float) -> Named:
    """What wrong answers give as w minus the new weights."""
    w, x, y, (low, high) = w.double(), x.double(), y.double(), ends(bits, True)
    inside = (w > low * step) & (w < high * step)

    def rounded(w: Tensor, low: int = low, high: int = high) -> Tensor:
        return step * (w / step).round().clamp(low, high)

    def down(forward: Tensor) -> Tensor:
        return 2 * lr / y.numel() * (x @ forward.T - y).T @ x

    free = down(rounded(w))
    right, top = free * inside, 2**bits - 1
    kept = "the quantized weights are kept: "
    clipped = "the float weights are clipped to the range: they start at w, and end where the step leads"
    return [
        ("no weight moves: torch.round has no gradient. Take it straight through", 0 * w),
        (kept + "return w minus lr times the gradient, not rounded", w - rounded(w)),
        (kept + "the step is taken by them; it starts at the float weights w", w - rounded(w) + right),
        (kept + "the step is taken by them; it starts at the float weights w", w - rounded(w) + free),
        (kept + "return w minus lr times the gradient, not rounded", w - rounded(w - right)),
        (kept + "return w minus lr times the gradient, not rounded", w - rounded(w - free)),
        ("this is the change alone: return w minus lr times the gradient", w + right),
        ("this is the change alone: return w minus lr times the gradient", w - right),
        ("this is the gradient: return w minus lr times it", w - right / lr),
        ("the gradient passes the clip: clipped weights do not move", free),
        ("the gradient passes half a step beyond the clip: clipped is what lies outside n .. p before it is rounded",
         free * (w > (low - 0.5) * step) * (w < (high + 0.5) * step)),
        ("weights that round to the lowest or the highest code do not move: clipped is only what lies beyond n .. p",
         free * (rounded(w) > low * step) * (rounded(w) < high * step)),
        ("the gradient passes from -p to p: the range begins at n, which is one less", free * (w.abs() < high * step)),
        (clipped,
         w - (w - right).clamp(low * step, high * step)),
        (clipped, w - w.clamp(low * step, high * step) + right),
        ("the forward pass rounds down (floor): use torch.round",
         down(step * (w / step).floor().clamp(low, high)) * inside),
        ("the error has the wrong sign: it is x times the weights, less y",
         (2 * lr / y.numel() * (x @ rounded(w).T + y).T @ x) * inside),
        ("the gradient passes the clip above: weights above the range do not move", free * (w > low * step)),
        ("the gradient passes the clip below: weights below the range do not move", free * (w < high * step)),
        ("the clipped weights move, the others stay: it is the other way round", free * ~inside),
        ("the forward pass uses the float weights: x times the quantized ones", down(w)),
        ("the forward pass uses the float weights: x times the quantized ones", down(w) * inside),
        ("the forward pass clips, but does not round", down(w.clamp(low * step, high * step)) * inside),
        ("the forward pass rounds, but does not clip", down(step * (w / step).round())),
        ("the forward pass rounds, but does not clip", down(step * (w / step).round()) * inside),
        ("the forward pass uses the codes: times step", down(rounded(w) / step) * inside),
        ("the weights are signed: codes from -2^(bits - 1) to 2^(bits - 1) - 1",
         down(rounded(w, 0, top)) * (w > 0) * (w < top * step)),
        ("a level is missing: signed codes begin at -2^(bits - 1)",
         down(rounded(w, -high)) * (w > -high * step) * (w < high * step)),
        ("one level too many: the highest code is 2^(bits - 1) - 1",
         down(rounded(w, low, high + 1)) * (w > low * step) * (w < (high + 1) * step)),
    ]  # fmt: skip


ASSIGNMENT = Assignment(
    "02_quantization_aware_training",
    (
        Part("dorefa_weights", ("w", "bits"), "DoReFa's weights", 30, (
            Check("the levels", 3, grade_weights), Check("the gradient", 2, grade_most),
            Check("the gradient of the largest weight", 1, grade_largest))),
        Part("lsq", ("x", "step", "bits", "signed"), "A learned step", 30, (
            Check("the levels", 2, grade_codes), Check("the gradient of x", 1, grade_input),
            Check("the gradient of the step", 3, grade_learned))),
        Part("qat_step", ("w", "x", "y", "step", "bits", "lr"), "One step of training", 20, (
            Check("weights inside the range", 3, grade_inside), Check("clipped weights", 2, grade_outside))),
    ),
    written={"analysis": 4},
)  # fmt: skip
