"""Assignment 02: right answers, each written another way, and wrong ones with the message that names them."""

import math

import torch
import torch.nn.functional as F
from torch.autograd import Function


def through(u):
    return u + (u.round() - u).detach()


def low_high(bits, signed=True):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


# --- dorefa_weights --------------------------------------------------------------------------------------------


def unit(w):
    return w.tanh() / w.tanh().abs().max()


def q(v, bits):
    return through(v * (2**bits - 1)) / (2**bits - 1)


class OwnTanh(Function):
    @staticmethod
    def forward(ctx, w, bits):
        t = torch.tanh(w)
        m = t.abs().amax()
        ctx.save_for_backward(t, m, w.abs().mean())
        levels = 2**bits - 1
        return w.abs().mean() * (torch.round((t / m + 1) * levels / 2) * 2 / levels - 1)

    @staticmethod
    def backward(ctx, grad):
        t, m, c = ctx.saved_tensors
        inner = c * grad / m
        inner = inner - torch.where(t.abs() == m, t.sign(), 0.0) * (inner * t).sum() / m
        return inner * (1 - t * t), None


class OnlyDirect(OwnTanh):
    @staticmethod
    def backward(ctx, grad):
        t, m, c = ctx.saved_tensors
        return c * grad / m * (1 - t * t), None


class SignLost(OwnTanh):
    @staticmethod
    def backward(ctx, grad):
        t, m, c = ctx.saved_tensors
        inner = c * grad / m
        return (inner - (t.abs() == m) * (inner * t).sum() / m) * (1 - t * t), None


def in_double(w, bits):
    w = w.double()
    t, size = torch.tanh(w), w.detach().abs().sum() / w.numel()
    v = t / (2 * torch.linalg.vector_norm(t, ord=math.inf)) + 0.5
    return size * (2 * q(v, bits) - 1)


def identity(w, bits):
    return w + (in_double(w, bits).float() - w).detach()


def past_tanh(w, bits):
    u = w * w.detach().abs().mean() / w.detach().tanh().abs().max()
    return u + (in_double(w, bits).float() - u).detach()


# --- lsq -------------------------------------------------------------------------------------------------------


def own_lsq(inside_too=True, outside_too=True, scaled=True, scales_x=False):
    """LSQ as an autograd.Function, and what becomes of it where something is left out."""

    class Own(Function):
        @staticmethod
        def forward(ctx, x, step, bits, signed):
            ctx.save_for_backward(x / step)
            ctx.ends = low_high(bits, signed)
            return (x / step).clamp(*ctx.ends).round() * step

        @staticmethod
        def backward(ctx, grad):
            (u,), (low, high) = ctx.saved_tensors, ctx.ends
            inside = ((u > low) & (u < high)).float()
            slope = inside * (u.round() - u) * inside_too
            slope = slope + (low * (u <= low) + high * (u >= high)) * outside_too
            scale = 1 / math.sqrt(u.numel() * high) if scaled else 1.0
            return grad * inside * (scale if scales_x else 1.0), (grad * slope).sum() * scale, None, None

    return Own.apply


def in_pieces(x, step, bits, signed):
    low, high = low_high(bits, signed)
    g = (x.numel() * high) ** -0.5
    s = (step - step * g).detach() + step * g
    u = (x / step).detach()
    inside = x + (u.round() - u) * s
    return torch.where(x / step <= low, low * s, torch.where(x / step >= high, high * s, inside))


def with_scale(x, step, bits, signed, power=-0.5, count=None):
    low, high = low_high(bits, signed)
    g = ((x.numel() if count is None else count) * high) ** power
    s = step * g + (step - step * g).detach()
    return s * through((x / s).clamp(low, high))


class Absolute(torch.autograd.Function):
    """LSQ whose gradient of the step has lost its sign."""

    @staticmethod
    def forward(ctx, x, step, bits, signed):
        low, high = low_high(bits, signed)
        ctx.save_for_backward(x, step)
        ctx.ends = low, high
        return step * (x / step).clamp(low, high).round()

    @staticmethod
    def backward(ctx, upstream):
        (x, step), (low, high) = ctx.saved_tensors, ctx.ends
        u = x / step
        inside = (u > low) & (u < high)
        slope = torch.where(inside, u.round() - u, u.clamp(low, high))
        scale = (x.numel() * high) ** -0.5
        return upstream * inside, ((upstream * slope).sum() * scale).abs(), None, None


def by_bits(x, step, bits, signed):
    """The scale has the bits where p belongs."""
    return with_scale(x, step, bits, signed, count=x.numel() * bits / low_high(bits, signed)[1])


def half_scaled(x, step, bits, signed):
    """The step with its gradient scaled."""
    g = (x.numel() * low_high(bits, signed)[1]) ** -0.5
    return step * g + (step - step * g).detach()


def clip_last(x, step, bits, signed):
    low, high = low_high(bits, signed)
    g = (x.numel() * high) ** -0.5
    s = step * g + (step - step * g).detach()
    return s * through(x / s).clamp(low, high)


# --- qat_step --------------------------------------------------------------------------------------------------


def rounded(w, step, bits):
    return step * torch.round((w / step).clamp(*low_high(bits)))


def by_autograd(w, x, y, step, bits, lr):
    w = w.detach().clone().requires_grad_()
    F.mse_loss(F.linear(x, step * through((w / step).clamp(*low_high(bits)))), y).backward()
    with torch.no_grad():
        return w - lr * w.grad


def by_fake_quantize(w, x, y, step, bits, lr):
    """PyTorch's own rounds first and then asks what was clipped, so that half a step beyond n and p still passes."""
    w = w.detach().requires_grad_()
    w_hat = torch.fake_quantize_per_tensor_affine(w, step, 0, *low_high(bits))
    return w.detach() - lr * torch.autograd.grad((x @ w_hat.T - y).pow(2).mean(), w)[0]


def by_optimizer(w, x, y, step, bits, lr):
    w = torch.nn.Parameter(w.detach().clone())
    optimizer = torch.optim.SGD([w], lr)
    clipped = w.clamp(*(end * step for end in low_high(bits)))
    w_hat = clipped + (torch.fake_quantize_per_tensor_affine(w, step, 0, *low_high(bits)) - clipped).detach()
    (x @ w_hat.T - y).pow(2).mean().backward()
    optimizer.step()
    return w


def at_the_levels(w, x, y, step, bits, lr):
    w_hat = rounded(w.double(), step, bits).requires_grad_()
    (((x.double() @ w_hat.mT - y) ** 2).sum() / len(y) / y.shape[1]).backward()
    low, high = low_high(bits)
    return w - lr * torch.where((w / step).clamp(low, high) == w / step, w_hat.grad, 0.0)


def gradient(w, x, y, step, bits, forward=rounded, gate=True):
    low, high = low_high(bits)
    found = 2 * (x @ forward(w, step, bits).T - y).T @ x / y.numel()
    return found * ((w > low * step) & (w < high * step)) if gate else found


def no_straight_through(w, x, y, step, bits, lr):
    w = w.detach().requires_grad_()
    ((x @ rounded(w, step, bits).T - y) ** 2).mean().backward()
    return w - lr * w.grad


def wide_gate(w, x, y, step, bits, lr):
    """Passes where the codes are in the range, which weights half a step outside still round to."""
    low, high = low_high(bits)
    codes = (w / step).round()
    return w - lr * gradient(w, x, y, step, bits, gate=False) * ((codes >= low) & (codes <= high))


def narrow_gate(w, x, y, step, bits, lr):
    """Passes where the codes are neither the lowest nor the highest."""
    (low, high), codes = low_high(bits), (w / step).round()
    return w - lr * gradient(w, x, y, step, bits, gate=False) * ((codes > low) & (codes < high))


def unclipped(w, step, bits):
    return step * (w / step).round()


def one_more(w, x, y, step, bits, lr):
    low, high = low_high(bits)
    w = w.detach().requires_grad_()
    ((x @ (step * through((w / step).clamp(low, high + 1))).T - y) ** 2).mean().backward()
    return w - lr * w.grad


RIGHT = {
    "dorefa_weights": [
        lambda w, bits: w.detach().abs().mean() * (2 * q((unit(w) + 1) / 2, bits) - 1),
        lambda w, bits: OwnTanh.apply(w, bits),
        in_double,
    ],
    "lsq": [
        own_lsq(),
        in_pieces,
        lambda x, step, bits, signed: with_scale(x.double(), step.double(), bits, signed),
    ],
    "qat_step": [by_autograd, by_optimizer, at_the_levels],
}

WRONG = {
    "dorefa_weights": [
        ("gradient is zero everywhere", lambda w, b: w.detach().abs().mean() * (
            2 * torch.round((unit(w) + 1) / 2 * (2**b - 1)) / (2**b - 1) - 1)),
        ("only mean", lambda w, b: w.abs().mean() * (
            2 * torch.round((unit(w) + 1) / 2 * (2**b - 1)) / (2**b - 1) - 1)),
        ("mean.w. is to be held constant", lambda w, b: w.abs().mean() * (2 * q((unit(w) + 1) / 2, b) - 1)),
        ("m is held constant", lambda w, b: w.detach().abs().mean() * (
            2 * q((w.tanh() / w.detach().tanh().abs().max() + 1) / 2, b) - 1)),
        ("m is held constant", lambda w, b: OnlyDirect.apply(w, b)),
        ("sign is lost: where", lambda w, b: SignLost.apply(w, b)),
        ("straight through is q_b alone", identity),
        ("no gradient comes back", lambda w, b: in_double(w, b).detach()),
        ("2.bits - 1 steps between", lambda w, b: w.detach().abs().mean() * (
            2 * through((unit(w) + 1) / 2 * 2**b) / 2**b - 1)),
        ("a level is missing", lambda w, b: w.detach().abs().mean() * (
            2 * through((unit(w) + 1) / 2 * (2**b - 2)) / (2**b - 2) - 1)),
        ("sign is lost: after", lambda w, b: w.detach().abs().mean() * q((unit(w) + 1) / 2, b)),
        ("sign is lost: .u. is", lambda w, b: w.detach().abs().mean() * q(unit(w).abs(), b)),
        ("size is missing", lambda w, b: 2 * q((unit(w) + 1) / 2, b) - 1),
        ("largest .w.: it should", lambda w, b: w.detach().abs().max() * (2 * q((unit(w) + 1) / 2, b) - 1)),
        ("tanh is missing", lambda w, b: w.detach().abs().mean() * (2 * q((w / w.abs().max() + 1) / 2, b) - 1)),
        ("not divided", lambda w, b: w.detach().abs().mean() * (2 * q((w.tanh() + 1) / 2, b) - 1)),
        ("not of .tanh", lambda w, b: w.detach().abs().mean() * (2 * q((w.tanh() / w.tanh().max() + 1) / 2, b) - 1)),
        ("slope of tanh is missing", past_tanh),
        ("it does not round", lambda w, b: w.detach().abs().mean() * unit(w)),
        ("m is that of each row", lambda w, b: w.detach().abs().mean() * (
            2 * q((w.tanh() / w.tanh().abs().amax(1, True) + 1) / 2, b) - 1)),
        ("mean.w. is that of each row", lambda w, b: w.detach().abs().mean(1, True) * (
            2 * q((unit(w) + 1) / 2, b) - 1)),
        ("tanh is taken of w / max", lambda w, b: w.detach().abs().mean() * (
            2 * q((torch.tanh(w / w.abs().max()) + 1) / 2, b) - 1)),
        ("rounds up", lambda w, b: w.detach().abs().mean() * (
            2 * ((unit(w) + 1) / 2 * (2**b - 1)).ceil() / (2**b - 1) - 1)),
        ("root of the mean square", lambda w, b: w.detach().square().mean().sqrt() * (2 * q((unit(w) + 1) / 2, b) - 1)),
        ("one bit less", lambda w, b: w.detach().abs().mean() * (2 * q((unit(w) + 1) / 2, b - 1) - 1)),
        ("the half is missing", lambda w, b: w.detach().abs().mean() * (2 * q(unit(w) + 1, b) - 1)),
        ("stands inside q_b", lambda w, b: 2 * q((w.detach().abs().mean() * unit(w) + 1) / 2, b) - 1),
        ("gradient is mean", lambda w, b: (size := w.detach().abs().mean() * w) + (
            in_double(w, b).float() - size).detach()),
    ],
    "lsq": [
        ("scale of the step's gradient is missing", own_lsq(scaled=False)),
        ("without the root", lambda *args: with_scale(*args, power=-1)),
        ("not 1 over", lambda *args: with_scale(*args, power=0.5)),
        ("without N", lambda *args: with_scale(*args, count=1)),
        ("1 / sqrt.N bits", by_bits),
        ("the sign is lost: it is the absolute value", lambda *args: Absolute.apply(*args)),
        ("number of rows", lambda x, *args: with_scale(x, *args, count=len(x))),
        ("inside it is 0", own_lsq(inside_too=False)),
        ("outside the range it is 0", own_lsq(outside_too=False)),
        ("for the step alone", own_lsq(scales_x=True)),
        ("clipped before it is rounded", clip_last),
        ("scale of the step's gradient is missing", lambda x, s, b, signed: s * through(
            (x / s).clamp(*low_high(b, signed)))),
        ("zero everywhere", lambda x, s, b, signed: s * torch.round((x / s).clamp(*low_high(b, signed)))),
        ("only the codes count", lambda x, s, b, signed: s * torch.round((x / s).clamp(*low_high(b, signed)))),
        ("for the step: float", lambda x, s, b, signed: s.item() * through((x / s.item()).clamp(*low_high(b, signed)))),
        ("for x: put", lambda x, s, b, signed: with_scale(x.detach(), s, b, signed)),
        ("passes outside", lambda x, s, b, signed: x + (with_scale(x, s, b, signed) - x).detach()),
        ("signed is True, but", lambda x, s, b, signed: with_scale(x, s, b, False)),
        ("signed is False, but", lambda x, s, b, signed: with_scale(x, s, b, True)),
        ("one level too many", lambda x, s, b, signed: s * through(
            (x / s).clamp(low_high(b, signed)[0], low_high(b, signed)[1] + 1))),
        ("signed codes begin", lambda x, s, b, signed: s * through(
            (x / s).clamp(-low_high(b, signed)[1] * signed, low_high(b, signed)[1]))),
        ("sign is lost", lambda x, s, b, signed: with_scale(x, s, b, signed).abs()),
        ("step itself is scaled", lambda x, s, b, signed: (s / (x.numel() * low_high(b, signed)[1]) ** 0.5) * through(
            (x / s).clamp(*low_high(b, signed)))),
        ("these are the codes", lambda x, s, b, signed: with_scale(x, s, b, signed) / s),
        ("does not clip", lambda x, s, b, signed: s * through(x / s)),
        ("x itself is clipped", lambda x, s, b, signed: with_scale(x.clamp(*low_high(b, signed)), s, b, signed)),
        ("one bit too many", lambda x, s, b, signed: with_scale(x, s, b + 1, signed)),
        ("number of columns", lambda x, *args: with_scale(x, *args, count=x.shape[1])),
        ("1 / sqrt.N 2", lambda x, s, b, signed: with_scale(
            x, s, b, signed, count=x.numel() * 2 ** (b - 1) / low_high(b, signed)[1])),
        ("is cut off: both", lambda x, s, b, signed: s.detach() * through((x / s).clamp(*low_high(b, signed)))),
        ("in one place", lambda x, s, b, signed: s * through(
            (x / half_scaled(x, s, b, signed)).clamp(*low_high(b, signed)))),
        ("in one place", lambda x, s, b, signed: half_scaled(x, s, b, signed) * through(
            (x / s).clamp(*low_high(b, signed)))),
    ],
    "qat_step": [
        ("no weight moves", no_straight_through),
        ("taken by them", lambda w, x, y, s, b, lr: rounded(w, s, b) - lr * gradient(w, x, y, s, b)),
        ("kept: return w minus", lambda w, x, y, s, b, lr: rounded(w - lr * gradient(w, x, y, s, b), s, b)),
        ("kept: return w minus", lambda w, x, y, s, b, lr: rounded(w, s, b)),
        ("passes the clip", lambda w, x, y, s, b, lr: w - lr * gradient(w, x, y, s, b, gate=False)),
        ("half a step beyond", wide_gate),
        ("half a step beyond", by_fake_quantize),
        ("uphill", lambda w, x, y, s, b, lr: w + lr * gradient(w, x, y, s, b)),
        ("lacks lr", lambda w, x, y, s, b, lr: w - gradient(w, x, y, s, b)),
        ("lacks the 2", lambda w, x, y, s, b, lr: w - lr / 2 * gradient(w, x, y, s, b)),
        ("this is the sum", lambda w, x, y, s, b, lr: w - lr * y.numel() * gradient(w, x, y, s, b)),
        ("over the outputs too", lambda w, x, y, s, b, lr: w - lr * y.shape[1] * gradient(w, x, y, s, b)),
        ("change alone", lambda w, x, y, s, b, lr: -lr * gradient(w, x, y, s, b)),
        ("float weights: x times", lambda w, x, y, s, b, lr: w - lr * gradient(w, x, y, s, b, lambda w, s, b: w)),
        ("does not clip", lambda w, x, y, s, b, lr: w - lr * gradient(w, x, y, s, b, unclipped)),
        ("one level too many", one_more),
        ("round to the lowest or the highest", narrow_gate),
        ("from -p to p", lambda w, x, y, s, b, lr: w - lr * gradient(w, x, y, s, b, gate=False) * (
            w.abs() < low_high(b)[1] * s)),
        ("float weights are clipped", lambda w, x, y, s, b, lr: (w - lr * gradient(w, x, y, s, b)).clamp(
            *(end * s for end in low_high(b)))),
        ("float weights are clipped", lambda w, x, y, s, b, lr: (
            w.clamp(*(end * s for end in low_high(b))) - lr * gradient(w, x, y, s, b))),
        ("rounds down", lambda w, x, y, s, b, lr: w - lr * gradient(
            w, x, y, s, b, lambda w, s, b: s * (w / s).floor().clamp(*low_high(b)))),
        ("error has the wrong sign", lambda w, x, y, s, b, lr: w - lr * gradient(w, x, -y, s, b)),
        ("in place", lambda w, x, y, s, b, lr: w.sub_(lr * gradient(w, x, y, s, b))),
        ("should be", lambda w, x, y, s, b, lr: (w - lr * gradient(w, x, y, s, b)).T),
    ],
}  # fmt: skip
EQUIVALENT: dict[str, str] = {}
