"""Lesson 02: right answers, each written another way, and wrong ones with the message that names them."""

import numpy as np
import torch

import mebqat_lite as mq


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


RIGHT = {
    "ste_round": [
        gated(inside),
        lambda x, bits: mq.quantizers.unit_activation(x, bits),
        lambda x, bits: x.clamp(0, 1) - (x.clamp(0, 1) - rounded(x, bits)).detach(),
        lambda x, bits: torch.nn.functional.hardtanh(x, 0, 1).double() + (rounded(x, bits) - x.clamp(0, 1)).detach(),
        lambda x, bits: rounded(x, bits).detach() + inside(1.0, x.detach()) * (x - x.detach()),
    ],
    "clip_gradient": [slope_by_autograd, slope_of_own_estimator, slope_by_cases],
    "step_gradient": [
        step_by_autograd,
        step_of_own_estimator,
        step_in_numpy,
        lambda w, step, bits, upstream: scaled(slopes(w, step, bits), w, step, bits, upstream),
    ],
}


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
        ("exchanged", gated(lambda grad, x: grad * ((x < 0) | (x > 1)))),
        ("gradient is 2.bits - 1 inside|values are wrong|wrong: it returns",
         lambda x, bits: rounded(x, bits).detach() + (2**bits - 1) * inside(1.0, x.detach()) * (x - x.detach())
         if bits > 1 else gated(inside)(x, bits)),
        ("gradient is -1 inside", gated(lambda grad, x: -inside(grad, x))),
        ("gradient is 2 inside", gated(lambda grad, x: 2 * inside(grad, x))),
        ("incoming gradient is lost", gated(lambda grad, x: inside(torch.ones_like(x), x))),
        ("incoming gradient is lost", gated(lambda grad, x: ((x > 0) & (x < 1)).float())),
        ("x comes back", lambda x, bits: x),
        ("clipped, but not rounded", lambda x, bits: x.clamp(0, 1)),
        ("does not clip", lambda x, bits: x + ((x * (2**bits - 1)).round() / (2**bits - 1) - x).detach()),
        ("these are the codes", lambda x, bits: (x.clamp(0, 1) * (2**bits - 1)).round()),
        ("2.bits steps", lambda x, bits: (x.clamp(0, 1) * 2**bits).round() / 2**bits),
        ("rounds down", lambda x, bits: (x.clamp(0, 1) * (2**bits - 1)).floor() / (2**bits - 1)),
        ("0 and 1 only", lambda x, bits: x.clamp(0, 1).round()),
        ("changes its input x in place", lambda x, bits: x.clamp_(0, 1)),
        ("has shape", lambda x, bits: rounded(x, bits).flatten()),
        ("dtype torch.int32", lambda x, bits: rounded(x, bits).int()),
        ("RuntimeError|inplace", lambda x, bits: gated(inside)(x, bits) @ x),
    ],
    "clip_gradient": [
        ("PACT's gradient", wrong_slope(0.0)),
        ("PACT's gradient", lambda x, alpha, bits: (x >= alpha).float()),
        ("slope of the staircase itself", lambda x, alpha, bits: rounded(x / alpha, bits)),
        ("slope of the staircase itself", lambda x, alpha, bits: (
            rounded(x / (alpha * 1.0001), bits) * alpha * 1.0001 - rounded(x / alpha, bits) * alpha) / (alpha * 1e-4)
            if bits < 1 else rounded(x / alpha, bits)),
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
        ("without the root", wrong_step(lsq, lambda n, p: 1 / (n * p))),
        ("without p", lambda w, step, bits, upstream: wrong_step(lsq, lambda n, p: n**-0.5)(w, step, bits, upstream)),
        ("without N", wrong_step(lsq, lambda n, p: p**-0.5)),
        ("a mean", wrong_step(lsq, lambda n, p: 1 / n)),
        ("for weights .* it returns", wrong_step(lsq, lambda n, p: (n * p) ** 0.5)),
        ("number of levels for p", wrong_step(lsq, lambda n, p: (n * 2 * (p + 1)) ** -0.5)),
        ("number of filters for N",
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
