"""Lesson 02: right answers, each written another way, and wrong ones with the message that names them."""

import math

import numpy as np
import torch
import torch.nn.functional as F

import mebqat_lite as mq
from answers import lesson_02_qat


class Gate(torch.autograd.Function):
    """The estimator as a function of its own; ``gate`` and ``scale`` make the mistakes."""

    @staticmethod
    def forward(ctx, x, bits, gate):
        ctx.save_for_backward(x)
        ctx.gate = gate
        levels = 2**bits - 1
        return (x.clamp(0, 1) * levels).round() / levels

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return ctx.gate(grad, x), None, None


def gated(gate):
    return lambda x, bits: Gate.apply(x, bits, gate)


def inside(grad, x):
    return grad * ((x > 0) & (x < 1))


def rounded(x, bits):
    levels = 2**bits - 1
    return (x.clamp(0, 1) * levels).round() / levels


def slope_by_autograd(x, alpha, bits):
    """One value after the other, through the package."""
    size = torch.tensor(alpha, requires_grad=True)
    out = mq.quantizers.pact_activation(x, size, bits)
    rows = torch.eye(x.numel()).reshape(-1, *x.shape)
    return torch.stack([torch.autograd.grad(out, size, row, retain_graph=True)[0] for row in rows]).reshape(x.shape)


def slope_of_own_estimator(x, alpha, bits):
    size = torch.full_like(x, alpha).requires_grad_()
    u = (x / size).clamp(0, 1)
    out = size * (u + (rounded(u, bits) - u).detach())
    return torch.autograd.grad(out.sum(), size)[0]


def slope_by_cases(x, alpha, bits):
    out = torch.zeros_like(x)
    out[x >= alpha] = 1
    among = (x > 0) & (x < alpha)
    out[among] = rounded(x / alpha, bits)[among] - x[among] / alpha
    return out.double()


def signed(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def slopes(w, step, bits):
    low, high = signed(bits)
    u = w / step
    return torch.where(u <= low, float(low), torch.where(u >= high, float(high), u.round() - u))


def step_by_autograd(w, step, bits, upstream):
    low, high = signed(bits)
    size = torch.tensor(step, requires_grad=True)
    mq.quantizers.step_clip(w, size, low, high, (w.numel() * high) ** -0.5).backward(upstream)
    return size.grad


def step_of_own_estimator(w, step, bits, upstream):
    low, high = signed(bits)
    size = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    u = (w.double() / size).clamp(low, high)
    out = size * (u + (u.round() - u).detach())
    return torch.autograd.grad(out, size, upstream.double())[0] / np.sqrt(w.numel() * high)


def step_in_numpy(w, step, bits, upstream):
    low, high = signed(bits)
    u = w.double().numpy() / step
    slope = np.select([u <= low, u >= high], [low, high], np.round(u) - u)
    return np.dot(slope.ravel(), upstream.double().numpy().ravel()) / np.sqrt(w.numel() * high)


def scaled(slope, w, step, bits, upstream):
    """LSQ's sum and scale over other ``slope``s."""
    return float((upstream * slope).sum()) / (w.numel() * signed(bits)[1]) ** 0.5


class HardGate(torch.autograd.Function):
    """The estimator with the gate kept as a mask."""

    @staticmethod
    def forward(ctx, x, bits):
        mask = x.gt(0).logical_and(x.lt(1))
        ctx.save_for_backward(mask)
        return rounded(x, bits)

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad, None


def ste_with_data(x, bits):
    clipped = x.clamp(0, 1)
    out = clipped * 1
    out.data = rounded(x.detach(), bits)
    return out


def ste_by_where(x, bits):
    u = torch.where(x < 0, torch.zeros_like(x), torch.where(x > 1, torch.ones_like(x), x))
    with torch.no_grad():
        added = rounded(u, bits) - u
    return u + added


def ste_by_levels(x, bits):
    levels = torch.linspace(0, 1, 2**bits, dtype=x.dtype)
    nearest = levels[(x.detach().unsqueeze(-1) - levels).abs().argmin(-1)]
    clipped = torch.relu(x) - torch.relu(x - 1)
    return clipped - clipped.detach() + nearest


def ste_in_numpy(x, bits):
    levels = 2**bits - 1
    values = np.rint(np.clip(x.detach().numpy(), 0, 1) * levels) / levels
    return x.clip(0, 1) + torch.from_numpy(values.astype(np.float32)) - x.detach().clip(0, 1)


def ste_in_float64(x, bits):
    wide = x.double().clamp(0, 1)
    return wide + (rounded(wide, bits) - wide).detach()


def ste_value_by_value(x, bits):
    rows = [rounded(v.detach(), bits) + v.clamp(0, 1) - v.clamp(0, 1).detach() for v in x.flatten()]
    return torch.stack(rows).reshape(x.shape)


def hand_slopes(make):
    """A clip gradient from u = x / alpha, its code and 2^bits - 1."""

    def answer(x, alpha, bits):
        levels = 2**bits - 1
        return make(x / alpha, torch.round((x / alpha).clamp(0, 1) * levels) / levels)

    return answer


def slopes_in_numpy(x, alpha, bits):
    u, levels = x.numpy().astype(np.float64) / alpha, 2**bits - 1
    return np.select([u <= 0, u >= 1], [0.0, 1.0], np.rint(u * levels) / levels - u)


def slopes_in_a_loop(x, alpha, bits):
    levels = 2**bits - 1

    def one(v):
        if v <= 0:
            return 0
        return 1 if v >= alpha else round(v / alpha * levels) / levels - v / alpha

    return [[one(v) for v in row] for row in x.tolist()]


def slopes_of_error(x, alpha, bits):
    """What rounding adds to the clipped x, over alpha; and 1 where x is clipped at alpha."""
    step = alpha / (2**bits - 1)
    error = (x.clamp(0, alpha) / step).round() * step - x.clamp(0, alpha)
    return error / alpha + (x >= alpha).float()


def slopes_by_difference(x, alpha, bits):
    """The quotient of differences where the codes are held constant and x / alpha is taken off again."""
    x, h, step = x.double(), 1e-3 * alpha, 1 / (2**bits - 1)
    code = ((x / alpha).clamp(0, 1) / step).round()
    return (code * step * (alpha + h) - code * step * (alpha - h)) / (2 * h) - (x / alpha) * ((x > 0) & (x < alpha))


def step_in_a_loop(w, step, bits, upstream):
    low, high = signed(bits)
    total = 0.0
    for value, arriving in zip(w.flatten().tolist(), upstream.flatten().tolist(), strict=True):
        u = value / step
        total += arriving * (low if u <= low else high if u >= high else round(u) - u)
    return total / math.sqrt(w.numel() * high)


def step_by_parts(w, step, bits, upstream):
    low, high = signed(bits)
    u = w / step
    below, above = u <= low, u >= high
    among = ~(below | above)
    total = low * upstream[below].sum() + high * upstream[above].sum()
    total += (upstream[among] * (u[among].round() - u[among])).sum()
    return total / torch.tensor(float(w.numel() * high)).sqrt()


def step_by_filters(w, step, bits, upstream):
    rows = [(slopes(a, step, bits) * b).sum() for a, b in zip(w, upstream, strict=True)]
    return np.float32(sum(rows).item() / (w.numel() * signed(bits)[1]) ** 0.5)


def step_by_einsum(w, step, bits, upstream):
    total = torch.einsum("oihw,oihw->", slopes(w.double(), step, bits).double(), upstream.double())
    return total * (w.numel() * signed(bits)[1]) ** -0.5


def step_by_clamp(w, step, bits, upstream):
    u = w / step
    code, free = u.round().clamp(*signed(bits)), u.clamp(*signed(bits))
    slope = code - free + torch.where(free == u, 0.0, free)
    return torch.dot(slope.flatten(), upstream.flatten()).item() / math.sqrt(w.numel() * signed(bits)[1])


RIGHT = {
    "ste_round": [
        gated(inside),
        lambda x, bits: HardGate.apply(x, bits),
        lambda x, bits: mq.quantizers.unit_activation(x, bits),
        lambda x, bits: x.clamp(0, 1) - (x.clamp(0, 1) - rounded(x, bits)).detach(),
        lambda x, bits: F.hardtanh(x, 0, 1) + (rounded(x, bits) - x.clamp(0, 1)).detach(),
        lambda x, bits: rounded(x, bits).detach() + inside(1.0, x.detach()) * (x - x.detach()),
        ste_with_data,
        ste_by_where,
        ste_by_levels,
        ste_in_numpy,
        ste_in_float64,
        ste_value_by_value,
    ],
    "qat": lesson_02_qat.RIGHT,
    "clip_gradient": [
        slope_by_cases,
        slopes_in_numpy,
        slopes_in_a_loop,
        slopes_of_error,
        slopes_by_difference,
        hand_slopes(lambda u, q: torch.where(u < 1, q - u.clamp(0, 1), 1.0)),
        hand_slopes(lambda u, q: q - u * ((u > 0) & (u < 1))),
        hand_slopes(lambda u, q: (q - u.clamp(0, 1)) + u.ge(1)),
        hand_slopes(lambda u, q: (q - u).masked_fill(u <= 0, 0).masked_fill(u >= 1, 1).double()),
        hand_slopes(lambda u, q: torch.stack([u * 0, q - u, u * 0 + 1])[
            (u > 0).long() + (u >= 1).long(), *torch.meshgrid(*map(torch.arange, u.shape), indexing="ij")]),
        hand_slopes(lambda u, q: np.where(u >= 1, 1, np.where(u <= 0, 0, (q - u).numpy()))),
    ],
    "step_gradient": [
        step_by_autograd,
        step_of_own_estimator,
        step_in_numpy,
        step_in_a_loop,
        step_by_parts,
        step_by_filters,
        step_by_einsum,
        step_by_clamp,
        lambda w, step, bits, upstream: scaled(slopes(w, step, bits), w, step, bits, upstream),
        lambda w, step, bits, upstream: np.array(scaled(slopes(w.double(), step, bits), w, step, bits, upstream)),
    ],
}  # fmt: skip


def wrong_slope(middle, above=1.0, below=0.0):
    """A clip gradient with other cases; each may be a function of u = x / alpha and q."""

    def answer(x, alpha, bits):
        u = x / alpha
        q = rounded(u, bits)
        parts = [part(u, q, alpha, bits) if callable(part) else torch.full_like(x, part)
                 for part in (middle, above, below)]  # fmt: skip
        return torch.where(u >= 1, parts[1], torch.where(u <= 0, parts[2], parts[0]))

    return answer


def right_middle(u, q, alpha, bits):
    return q - u


def wrong_step(slope, scale=lambda n, p: (n * p) ** -0.5):
    """A step gradient with another slope, a function of u and the codes' limits, and another scale."""

    def answer(w, step, bits, upstream):
        low, high = signed(bits)
        slope_of = slope(w / step, low, high)
        return float((upstream * slope_of).sum()) * scale(w.numel(), high)

    return answer


def lsq(u, low, high):
    return torch.where(u <= low, float(low), torch.where(u >= high, float(high), u.round() - u))


def within(u, low, high):
    return (u > low) & (u < high)


WRONG = {
    "ste_round": [
        ("no gradient comes back", lambda x, bits: rounded(x, bits).detach()),
        ("no gradient comes back", lambda x, bits: torch.no_grad()(rounded)(x, bits)),
        ("zero everywhere", rounded),
        ("zero everywhere", lambda x, bits: rounded(x, bits) + 0 * x),
        ("outside the clip too", lambda x, bits: x + (rounded(x, bits) - x).detach()),
        ("outside the clip too", gated(lambda grad, x: grad)),
        ("passes above 1 too", gated(lambda grad, x: grad * (x > 0))),
        ("passes below 0 too", gated(lambda grad, x: grad * (x < 1))),
        ("clip x before you round, not after", lambda x, bits: (
            x + ((x * (2**bits - 1)).round() / (2**bits - 1) - x).detach()).clamp(0, 1)),
        ("gradient stops where the output is 0 or 1", gated(
            lambda grad, x: grad * ((x * 3).round() > 0) * ((x * 3).round() < 3))),
        ("other way round", gated(lambda grad, x: grad * ((x < 0) | (x > 1)))),
        ("inside the clip is 2.bits - 1;",
         lambda x, bits: rounded(x, bits).detach() + (2**bits - 1) * inside(1.0, x.detach()) * (x - x.detach())),
        ("inside the clip is 1 / .2.bits - 1.;",
         lambda x, bits: rounded(x, bits).detach() + inside(1.0, x.detach()) * (x - x.detach()) / (2**bits - 1)),
        ("inside the clip is 1/2;", gated(lambda grad, x: inside(grad, x) / 2)),
        ("times the output: times the gate", gated(lambda grad, x: grad * (x.clamp(0, 1) * 3).round() / 3)),
        ("times x: times the gate", gated(lambda grad, x: grad * x)),
        ("times the clipped x", gated(lambda grad, x: grad * x.clamp(0, 1))),
        ("inside the clip is -1;", gated(lambda grad, x: -inside(grad, x))),
        ("inside the clip is 2;", gated(lambda grad, x: 2 * inside(grad, x))),
        ("gradient that arrives is lost", gated(lambda grad, x: inside(torch.ones_like(x), x))),
        ("gradient that arrives is lost", gated(lambda grad, x: ((x > 0) & (x < 1)).float())),
        ("x comes back", lambda x, bits: x),
        ("clipped, but not rounded", lambda x, bits: x.clamp(0, 1)),
        ("does not clip", lambda x, bits: x + ((x * (2**bits - 1)).round() / (2**bits - 1) - x).detach()),
        ("these are the codes", lambda x, bits: (x.clamp(0, 1) * (2**bits - 1)).round()),
        ("2.bits steps", lambda x, bits: (x.clamp(0, 1) * 2**bits).round() / 2**bits),
        ("rounds down", lambda x, bits: (x.clamp(0, 1) * (2**bits - 1)).floor() / (2**bits - 1)),
        ("0 and 1 only", lambda x, bits: x.clamp(0, 1).round()),
        ("changes its input x in place", lambda x, bits: x.clamp_(0, 1)),
        ("has shape", lambda x, bits: rounded(x, bits).flatten()),
        ("values are wrong", lambda x, bits: rounded(x, bits).int()),
        ("type ndarray: return a tensor", lambda x, bits: rounded(x.detach(), bits).numpy()),
        ("RuntimeError|inplace", lambda x, bits: gated(inside)(x, bits) @ x),
    ],
    "qat": lesson_02_qat.WRONG,
    "clip_gradient": [
        ("PyTorch find the gradient", slope_by_autograd),
        ("PyTorch find the gradient", slope_of_own_estimator),
        ("PyTorch find the gradient", torch.enable_grad()(slope_of_own_estimator)),
        ("x is not divided by alpha", lambda x, alpha, bits: torch.where(
            x >= alpha, 1.0, rounded(x / alpha, bits) - x)),
        ("x is not divided by alpha", wrong_slope(lambda u, q, alpha, bits: q - u * alpha)),
        ("only one of the two terms", wrong_slope(lambda u, q, alpha, bits: alpha * q - u)),
        ("2.bits levels", wrong_slope(lambda u, q, alpha, bits: (u * 2**bits).round() / 2**bits - u)),
        ("2.bits levels", wrong_slope(lambda u, q, alpha, bits: (u * 2**bits).floor() / 2**bits - u)),
        ("only two levels", wrong_slope(lambda u, q, alpha, bits: u.round() - u)),
        ("PACT's gradient", wrong_slope(0.0)),
        ("PACT's gradient", lambda x, alpha, bits: (x >= alpha).float()),
        ("slope of the staircase itself", lambda x, alpha, bits: rounded(x / alpha, bits)),
        ("slope of the staircase itself", lambda x, alpha, bits: (
            rounded(x.double() / (alpha * 1.0001), bits) * 1.0001 - rounded(x.double() / alpha, bits)) / 1e-4),
        ("by the product rule", wrong_slope(lambda u, q, alpha, bits: -u)),
        ("sign inside is turned", wrong_slope(lambda u, q, alpha, bits: u - q)),
        ("it is 0 where x is clipped at alpha", wrong_slope(right_middle, above=0.0)),
        ("it is -1 where x is clipped", wrong_slope(right_middle, above=-1.0)),
        ("it is alpha where x is clipped",
         wrong_slope(right_middle, above=lambda u, q, alpha, bits: torch.full_like(u, alpha))),
        ("below 0 it is not 0", wrong_slope(right_middle, below=lambda u, q, alpha, bits: q - u)),
        ("below 0 it is not 0", lambda x, alpha, bits: torch.where(
            x >= alpha, 1.0, (x / alpha * (2**bits - 1)).round() / (2**bits - 1) - x / alpha)),
        ("below 0 it is 1", wrong_slope(right_middle, below=1.0)),
        ("beyond alpha it goes on as inside", wrong_slope(right_middle, above=right_middle)),
        ("alpha times too large", wrong_slope(lambda u, q, alpha, bits: (q - u) * alpha)),
        ("divided by alpha once", wrong_slope(lambda u, q, alpha, bits: (q - u) / alpha)),
        ("gradient of LSQ's step", lambda x, alpha, bits: (2**bits - 1) * slope_by_cases(x, alpha, bits)),
        ("rounds down", wrong_slope(
            lambda u, q, alpha, bits: (u * (2**bits - 1)).floor() / (2**bits - 1) - u)),
        ("gradient of x", lambda x, alpha, bits: ((x > 0) & (x < alpha)).float()),
        ("for alpha = .* values are wrong", lambda x, alpha, bits: torch.zeros_like(x)),
        ("type float: return a tensor", lambda x, alpha, bits: slope_by_cases(x, alpha, bits).sum().item()),
        ("has shape", lambda x, alpha, bits: slope_by_cases(x, alpha, bits).sum()),
        ("dtype torch.bool", lambda x, alpha, bits: x >= alpha),
        ("changes its input x", lambda x, alpha, bits: x.div_(alpha)),
    ],
    "step_gradient": [
        ("the scale is missing", wrong_step(lsq, lambda n, p: 1.0)),
        ("the sign is lost", lambda w, step, bits, up: abs(scaled(slopes(w, step, bits), w, step, bits, up))),
        ("round to low or high", wrong_step(lambda u, low, high: torch.where(
            (u.round() > low) & (u.round() < high), u.round() - u, u.round().clamp(low, high)))),
        ("half a step beyond", wrong_step(lambda u, low, high: torch.where(
            (u >= low - 0.5) & (u <= high + 0.5), u.round() - u, u.clamp(low, high)))),
        ("without the root", wrong_step(lsq, lambda n, p: 1 / (n * p))),
        ("without high", wrong_step(lsq, lambda n, p: n**-0.5)),
        ("-low for high", wrong_step(lsq, lambda n, p: (n * (p + 1)) ** -0.5)),
        ("highest code without a sign", wrong_step(lsq, lambda n, p: (n * (2 * p + 1)) ** -0.5)),
        ("w is compared with low and high", lambda w, step, bits, up: scaled(torch.where(
            w <= signed(bits)[0], float(signed(bits)[0]), torch.where(
                w >= signed(bits)[1], float(signed(bits)[1]), (w / step).round() - w / step)), w, step, bits, up)),
        ("low and high are swapped", wrong_step(lambda u, low, high: torch.where(
            u <= low, float(high), torch.where(u >= high, float(low), u.round() - u)))),
        ("rounds down", wrong_step(lambda u, low, high: torch.where(
            within(u, low, high), u.floor() - u, u.clamp(low, high)))),
        ("rounds up", wrong_step(lambda u, low, high: torch.where(
            within(u, low, high), u.ceil() - u, u.clamp(low, high)))),
        ("towards zero", wrong_step(lambda u, low, high: torch.where(
            within(u, low, high), u.trunc() - u, u.clamp(low, high)))),
        ("codes are those without a sign", wrong_step(lambda u, low, high: lsq(u, 0, high - low))),
        ("w is not divided by step", lambda w, step, bits, up: scaled(torch.where(
            within(w / step, *signed(bits)), (w / step).round() - w, (w / step).clamp(*signed(bits))),
            w, step, bits, up)),
        ("clipped at high are given the slope 0", wrong_step(
            lambda u, low, high: torch.where(u >= high, 0.0, lsq(u, low, high)))),
        ("without count", wrong_step(lsq, lambda n, p: p**-0.5)),
        ("a mean", wrong_step(lsq, lambda n, p: 1 / n)),
        ("not 1 over it", wrong_step(lsq, lambda n, p: (n * p) ** 0.5)),
        ("number of levels for high", wrong_step(lsq, lambda n, p: (n * 2 * (p + 1)) ** -0.5)),
        ("number of filters for count",
         lambda w, step, bits, up: wrong_step(lsq, lambda n, p: (len(w) * p) ** -0.5)(w, step, bits, up)),
        ("upstream is forgotten",
         lambda w, step, bits, up: wrong_step(lsq)(w, step, bits, torch.ones_like(w))),
        ("this is a mean", lambda w, step, bits, up: wrong_step(lsq)(w, step, bits, up) / w.numel()),
        ("the codes alone", wrong_step(lambda u, low, high: u.round().clamp(low, high))),
        ("the codes alone.*scale is missing too",
         wrong_step(lambda u, low, high: u.round().clamp(low, high), lambda n, p: 1.0)),
        ("as in PACT", wrong_step(
            lambda u, low, high: torch.where(within(u, low, high), 0.0, u.clamp(low, high)))),
        ("sign inside is turned", wrong_step(
            lambda u, low, high: torch.where(within(u, low, high), u - u.round(), u.clamp(low, high)))),
        ("outside it is 0", wrong_step(lambda u, low, high: lsq(u, low, high) * within(u, low, high))),
        ("goes on as inside", wrong_step(lambda u, low, high: u.round() - u)),
        ("lose - w / step too", wrong_step(lambda u, low, high: u.round().clamp(low, high) - u)),
        ("it is -1 or 1", wrong_step(
            lambda u, low, high: torch.where(within(u, low, high), u.round() - u, u.sign()))),
        ("multiplied by step", lambda w, step, bits, up: step * wrong_step(lsq)(w, step, bits, up)),
        ("clipped at low are given the slope 0", wrong_step(
            lambda u, low, high: torch.where(u <= low, 0.0, lsq(u, low, high)))),
        ("not symmetric", wrong_step(lambda u, low, high: lsq(u, -high, high))),
        ("tensor of .* values: return one number", lambda w, step, bits, up: up * slopes(w, step, bits)),
        ("for weights .*it returns 0", lambda w, step, bits, up: 0.0),
        ("type str: return a number", lambda w, step, bits, up: "s"),
        ("changes its input w", lambda w, step, bits, up: float(w.div_(step).sum())),
    ],
}  # fmt: skip
