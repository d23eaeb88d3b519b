"""Lesson 01: right answers, each written another way, and wrong ones with the message that names them."""

import numpy as np
import torch

import mebqat_lite as mq


def signed(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def uniform_by_hand(x, step, low, high):
    out = torch.zeros_like(x)
    for code in range(low, high + 1):
        below = -torch.inf if code == low else (code - 0.5) * step
        above = torch.inf if code == high else (code + 0.5) * step
        out[(x >= below) & (x < above)] = code * step
    return out


def uniform_double(x, step, low, high):
    return torch.fake_quantize_per_tensor_affine(x, step, 0, low, high).double()


def step_by_golden_section(x, bits):
    low, high = signed(bits)

    def error(step):
        return float((step * (x / step).round().clamp(low, high) - x).square().sum())

    a, b = float(x.std()) / 2**bits, 4 * float(x.std()) / 2 ** (bits - 1)
    for _ in range(40):
        c, d = b - (b - a) * 0.618, a + (b - a) * 0.618
        a, b = (a, d) if error(c) < error(d) else (c, b)
    return torch.tensor([(a + b) / 2])


def step_by_alternation(x, bits):
    """Codes of a step, then the step of least error for these codes, from two starts."""
    best = []
    for step in (float(x.std()) / 2 ** (bits - 2), 1.5 * float(x.std()) / 2 ** (bits - 2)):
        for _ in range(200):
            codes = (x / step).round().clamp(*signed(bits))
            step = float((codes * x).sum() / codes.square().sum())
        best.append((float((step * codes - x).square().mean()), step))
    return np.float32(min(best)[1])


def steps_of_ptq(x, bits):
    return mq.ptq.mse_step(x.reshape(1, -1), *signed(bits)).item()


def matmul_in_float(x, w, x_step, w_step):
    return (x.float() * x_step) @ (w.float() * w_step).T


def matmul_in_loops(x, w, x_step, w_step):
    rows = [[sum(map(int.__mul__, a, b)) * x_step * w_step for b in w.tolist()] for a in x.tolist()]
    return torch.tensor(rows)


RIGHT = {
    "uniform": [
        uniform_by_hand,
        uniform_double,
        lambda x, step, low, high: torch.clip(torch.floor(x / step + 0.5), low, high) * step,
        lambda x, step, low, high: (x.clamp(low * step, high * step) / step).round() * step,
        lambda x, step, low, high: mq.quantizers.step_clip(x.requires_grad_(), torch.tensor(step), low, high),
    ],
    "best_step": [step_by_golden_section, step_by_alternation, steps_of_ptq],
    "integer_matmul": [
        matmul_in_float,
        matmul_in_loops,
        lambda x, w, s, t: (x.long()[:, None] * w[None]).sum(-1).double() * s * t,
        lambda x, w, s, t: torch.nn.functional.linear(x.int(), w.int()) * torch.tensor(s) * torch.tensor(t),
    ],
}


def clip_round(x, step, low, high):
    return (x / step).round().clamp(low, high)


def search(x, bits, low, high, error=torch.square, pick=min):
    steps = [float(x.abs().max()) / 2 ** (bits - 1) * k / 200 for k in range(1, 240)]
    return pick((float(error(step * (x / step).round().clamp(low, high) - x).mean()), step) for step in steps)


def product(x, w, wide=torch.int32):
    return x.to(wide) @ w.to(wide).T


WRONG = {
    "uniform": [
        ("beyond high .* clip the codes, not x", lambda x, s, low, high: s * (x / s).round()),
        ("clip.* codes", lambda x, s, low, high: s * (x.clamp(low, high) / s).round()),
        ("it clips x at low and high", lambda x, s, low, high: (s * (x / s).round()).clamp(low, high)
         if s > 1 else s * clip_round(x, s, low, high)),
        ("it clips x at low and high", lambda x, s, low, high: s * (x.clamp(low, high) / s).round()
         if s > 1 else s * clip_round(x, s, low, high)),
        ("rounds down", lambda x, s, low, high: s * (x / s).floor().clamp(low, high)),
        ("rounds down", lambda x, s, low, high: s * (x // s).clamp(low, high)),
        ("towards zero", lambda x, s, low, high: s * (x / s).clamp(low, high).int().float()),
        ("towards zero", lambda x, s, low, high: s * (x / s).trunc().clamp(low, high)),
        ("rounds up", lambda x, s, low, high: s * (x / s).ceil().clamp(low, high)),
        ("multiply them by step again", clip_round),
        ("highest code is high, not high", lambda x, s, low, high: s * clip_round(x, s, low, high + 1)),
        ("lowest code is low, not low", lambda x, s, low, high: s * clip_round(x, s, low - 1, high)),
        ("one level is missing", lambda x, s, low, high: s * clip_round(x, s, low, high - 1)),
        ("clip at low, not at 0", lambda x, s, low, high: s * clip_round(x, s, 0, high)),
        ("not symmetric", lambda x, s, low, high: s * clip_round(x, s, -high, high)),
        ("does not round", lambda x, s, low, high: s * (x / s).clamp(low, high)),
        ("divide first", lambda x, s, low, high: s * (x.round() / s).clamp(low, high)),
        ("never divided by step", lambda x, s, low, high: s * x.round().clamp(low, high)),
        ("divided by step: multiply", lambda x, s, low, high: clip_round(x, s, low, high) / s),
        ("x comes back", lambda x, s, low, high: x),
        ("below low . step", lambda x, s, low, high: s * (x / s).round().clamp(max=high)),
        ("beyond high", lambda x, s, low, high: s * (x / s).floor()),
        ("not multiples of step", lambda x, s, low, high: s * clip_round(x, s, low, high) * 0.9),
        ("for step = .* values are wrong", lambda x, s, low, high: torch.zeros_like(x)),
        ("has shape", lambda x, s, low, high: (s * clip_round(x, s, low, high)).flatten()),
        ("dtype torch.int32", lambda x, s, low, high: clip_round(x, s, low, high).int()),
        ("dtype torch.float16", lambda x, s, low, high: (s * clip_round(x, s, low, high)).half()),
        ("type list: return a tensor", lambda x, s, low, high: (s * clip_round(x, s, low, high)).tolist()),
        ("NaN or infinity", lambda x, s, low, high: x / 0),
        ("changes its input x in place", lambda x, s, low, high: x.div_(s).round_().clamp_(low, high).mul_(s)),
    ],
    "best_step": [
        ("clips nothing", lambda x, bits: float(x.abs().max()) / signed(bits)[1]),
        ("clips nothing", lambda x, bits: float(x.abs().max()) / 2 ** (bits - 1)),
        ("clips nothing", lambda x, bits: float(x.max() - x.min()) / (2**bits - 1)),
        ("too small", lambda x, bits: float(x.abs().mean()) / 4**bits),
        ("too large", lambda x, bits: 3 * search(x, bits, *signed(bits))[1]),
        ("the same step whatever x and bits are", lambda x, bits: 0.1),
        ("the same step whatever x is", lambda x, bits: 1 / 2**bits),
        ("fewer levels need a larger step", lambda x, bits: float(x.std()) / 2),
        ("fewer levels need a larger step", lambda x, bits: float(x.abs().max())),
        ("this is the least error", lambda x, bits: search(x, bits, *signed(bits))[0]),
        ("too small|too large", lambda x, bits: search(x, bits, *signed(bits), pick=max)[1]),
        ("clips nothing|too large", lambda x, bits: float(x.std()) * {2: 0.9957, 3: 0.586, 4: 0.3352}[bits] * 2),
        ("at . bits your step .* is too small", lambda x, bits: float(x.std()) * 0.9957 * 0.58 ** (bits - 2)),
        ("LSQ's start", lambda x, bits: 2 * float(x.abs().mean()) / signed(bits)[1] ** 0.5),
        ("codes 0 .. 2.bits - 1", lambda x, bits: search(x, bits, 0, 2**bits - 1)[1]),
        ("twice as many codes", lambda x, bits: search(x, bits, -(2**bits), 2**bits - 1)[1]),
        ("absolute error: square it", lambda x, bits: search(x, bits, *signed(bits), torch.abs)[1]),
        ("finer grid", lambda x, bits: 1.12 * search(x, bits, *signed(bits))[1]),
        ("too small", lambda x, bits: 0.4 * search(x, bits, *signed(bits))[1]),
        ("a step is positive", lambda x, bits: 0.0),
        ("tensor of 40 values: return one number", lambda x, bits: x.abs().amax(1) / 2**bits),
        ("type tuple: return a number", lambda x, bits: search(x, bits, *signed(bits))),
        ("changes its input x", lambda x, bits: float(x.abs_().max()) / bits),
    ],
    "integer_matmul": [
        ("the sum overflows in int8", lambda x, w, s, t: (x @ w.T) * (s * t)),
        ("the sum overflows in int8", lambda x, w, s, t: (x @ w.T).int() * (s * t)),
        ("the sum overflows in int16", lambda x, w, s, t: product(x, w, torch.int16) * (s * t)),
        ("single products overflow", lambda x, w, s, t: (x[:, None] * w).sum(2) * (s * t)),
        ("range of int8", lambda x, w, s, t: product(x, w).clamp(-128, 127) * (s * t)),
        ("w_step is forgotten", lambda x, w, s, t: product(x, w) * s),
        ("x_step is forgotten", lambda x, w, s, t: product(x, w) * t),
        ("whole numbers .torch.int32.", lambda x, w, s, t: product(x, w)),
        ("both steps are forgotten", lambda x, w, s, t: product(x, w).float()),
        ("divided by the steps", lambda x, w, s, t: product(x, w) / (s * t)),
        ("steps are added", lambda x, w, s, t: product(x, w) * (s + t)),
        ("take the sum", lambda x, w, s, t: product(x, w) * (s * t) / x.shape[1]),
        ("multiply by its transpose", lambda x, w, s, t: (x.int() @ w.int()) * (s * t)),
        ("multiply by its transpose", lambda x, w, s, t: product(x, w.reshape(w.shape[1], -1).T) * (s * t)),
        ("RuntimeError", lambda x, w, s, t: (x.float() @ w) * (s * t)),
        ("has shape", lambda x, w, s, t: product(w, x) * (s * t)),
        ("dtype torch.float16", lambda x, w, s, t: (product(x, w) * (s * t)).half()),
        ("values are wrong", lambda x, w, s, t: product(x.abs(), w) * (s * t)),
    ],
}  # fmt: skip
