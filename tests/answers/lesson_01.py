"""Lesson 01: right answers, each written another way, and wrong ones with the message that names them."""

import numpy as np
import torch

import mebqat_lite as mq


def signed(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantized_by_hand(x, step, low, high):
    out = torch.zeros_like(x)
    for code in range(low, high + 1):
        below = -torch.inf if code == low else (code - 0.5) * step
        above = torch.inf if code == high else (code + 0.5) * step
        out[(x >= below) & (x < above)] = code * step
    return out


def quantized_in_numpy(x, step, low, high):
    codes = np.clip(np.rint(x.numpy().astype(np.float64) / step), low, high)
    return codes * step


def quantized_in_python(x, step, low, high):
    values = [step * min(max(round(v / step), low), high) for v in x.flatten().tolist()]
    return torch.tensor(values).reshape(x.shape)


def quantized_in_place_on_a_copy(x, step, low, high):
    out = x.clone()
    return out.div_(step).round_().clamp_(low, high).mul_(step)


def quantized_by_distance(x, step, low, high):
    levels = step * torch.arange(low, high + 1, dtype=x.dtype)
    return levels[(x.unsqueeze(-1) - levels).square().argmin(-1)]


def quantized_by_buckets(x, step, low, high):
    edges = step * (torch.arange(low, high, dtype=x.dtype) + 0.5)
    return (torch.bucketize(x, edges) + low).to(x.dtype) * step


def quantized_in_float64(x, step, low, high):
    return torch.round(x.double() / step).clip(low, high) * step


def quantized_by_parts(x, step, low, high):
    codes = torch.round(x / step)
    codes[codes > high] = high
    codes[codes < low] = low
    return codes * step


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


def step_error(x, bits, step):
    low, high = signed(bits)
    return float(np.mean((step * np.clip(np.round(x / step), low, high) - x) ** 2))


def step_by_scan_in_numpy(x, bits):
    x = x.numpy()
    tries = np.linspace(0.01, 1, 150) * np.abs(x).max() / signed(bits)[1]
    return tries[np.argmin([step_error(x, bits, step) for step in tries])]


def step_in_one_broadcast(x, bits):
    low, high = signed(bits)
    steps = torch.linspace(0.005, 1, 200) * x.abs().max() / high
    flat = x.flatten()[:, None]
    return steps[((flat / steps).round().clamp(low, high) * steps - flat).pow(2).sum(0).argmin()]


def step_by_refinement(x, bits):
    low, high = float(x.std()) * 0.05, float(x.std()) * 3
    for _ in range(6):
        tries = np.geomspace(low, high, 25)
        errors = [step_error(x.numpy(), bits, step) for step in tries]
        k = int(np.argmin(errors))
        low, high = tries[max(k - 1, 0)], tries[min(k + 1, 24)]
    return float(np.sqrt(low * high))


def step_down_from_the_top(x, bits):
    best = step = float(x.abs().max()) / signed(bits)[1]
    while step > float(x.std()) * 0.05:
        if step_error(x.numpy(), bits, step) < step_error(x.numpy(), bits, best):
            best = step
        step *= 0.97
    return np.array(best)


def step_by_sorting(x, bits):
    tries = [float(x.std()) * k / 100 for k in range(8, 200)]
    return sorted(tries, key=lambda step: step_error(x.numpy(), bits, step))[0]


def step_in_float64(x, bits):
    wide = x.double()
    tries = [wide.std() * k / 64 for k in range(6, 128)]
    low, high = signed(bits)
    errors = torch.stack([((wide / s).round().clamp(low, high) * s - wide).square().mean() for s in tries])
    return tries[int(errors.argmin())]


def step_by_fake_quantize(x, bits):
    def error(step):
        return (torch.fake_quantize_per_tensor_affine(x, step, 0, *signed(bits)) - x).norm().item()

    return min((float(x.abs().max()) * k / 128 / signed(bits)[1] for k in range(2, 129)), key=error)


def exactly(sums):
    """An answer to integer_matmul from its sums alone."""
    return lambda x, w, s, t: (sums(x, w), s * t)


def sums_in_python(x, w):
    return [[sum(map(int.__mul__, a, b)) for b in w.tolist()] for a in x.tolist()]


def sums_in_numpy(x, w):
    return x.numpy().astype(np.int32) @ w.numpy().astype(np.int32).T


def sums_row_by_row(x, w):
    out = torch.zeros(len(x), len(w), dtype=torch.int32)
    for row, codes in enumerate(x.int()):
        out[row] = (codes * w.int()).sum(1)
    return out


def sums_input_by_input(x, w):
    out = torch.zeros(len(x), len(w), dtype=torch.int32)
    for i in range(x.shape[1]):
        out += x[:, i : i + 1].int() * w[:, i].int()
    return out


RIGHT = {
    "fake_quantize": [
        quantized_by_hand,
        quantized_in_numpy,
        quantized_in_python,
        quantized_in_place_on_a_copy,
        quantized_by_distance,
        quantized_by_buckets,
        quantized_in_float64,
        quantized_by_parts,
        lambda x, step, low, high: torch.fake_quantize_per_tensor_affine(x, step, 0, low, high),
        lambda x, step, low, high: torch.clip(torch.floor(x / step + 0.5), low, high) * step,
        lambda x, step, low, high: (x.clamp(low * step, high * step) / step).round() * step,
        lambda x, step, low, high: mq.quantizers.step_clip(x.requires_grad_(), torch.tensor(step), low, high),
        lambda x, step, low, high: (step * clip_round(x.double(), step, low, high)).tolist(),
        lambda x, step, low, high: mq.quantizers.functions.fake_quantize(x, torch.tensor(step), low, high),
    ],
    "best_step": [
        step_by_golden_section,
        step_by_alternation,
        steps_of_ptq,
        step_by_scan_in_numpy,
        step_in_one_broadcast,
        step_by_refinement,
        step_down_from_the_top,
        step_by_sorting,
        step_in_float64,
        step_by_fake_quantize,
    ],
    "integer_matmul": [
        exactly(sums_in_python),
        exactly(sums_in_numpy),
        exactly(sums_row_by_row),
        exactly(sums_input_by_input),
        exactly(lambda x, w: (x.long()[:, None] * w[None]).sum(-1)),
        exactly(lambda x, w: torch.nn.functional.linear(x.int(), w.int())),
        exactly(lambda x, w: torch.matmul(x.int(), w.int().t()).tolist()),
        exactly(lambda x, w: np.einsum("bi,oi->bo", x.numpy(), w.numpy(), dtype=np.int64)),
        exactly(lambda x, w: torch.stack([w.int() @ codes for codes in x.int()])),
        lambda x, w, s, t: [x.int() @ w.int().T, torch.tensor(s) * torch.tensor(t)],
        lambda x, w, s, t: (x.short().int().matmul(w.int().mT), np.float64(s) * t),
    ],
}


def clip_round(x, step, low, high):
    return (x / step).round().clamp(low, high)


def search(x, bits, low, high, error=torch.square, pick=min):
    steps = [float(x.abs().max()) / 2 ** (bits - 1) * k / 200 for k in range(1, 240)]
    return pick((float(error(step * (x / step).round().clamp(low, high) - x).mean()), step) for step in steps)


def coarse_search(x, bits, count):
    """The best of a few fractions of the step that clips nothing."""
    low, high = signed(bits)
    steps = [float(x.abs().max()) / high * k / count for k in range(1, count + 1)]
    return min(steps, key=lambda step: float((step * (x / step).round().clamp(low, high) - x).square().mean()))


def product(x, w, wide=torch.int32):
    return x.to(wide) @ w.to(wide).T


WRONG = {
    "fake_quantize": [
        ("beyond high .* clip the codes, not x", lambda x, s, low, high: s * (x / s).round()),
        ("it clips x at low and high", lambda x, s, low, high: s * (x.clamp(low, high) / s).round()),
        ("it clips x at low and high", lambda x, s, low, high: (s * (x / s).round()).clamp(low, high)),
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
        ("multiply them by step again", lambda x, s, low, high: clip_round(x, s, low, high).int()),
        ("x is multiplied by step", lambda x, s, low, high: s * clip_round(x * s, 1, low, high)),
        ("step is divided by x", lambda x, s, low, high: s * clip_round(s / x, 1, low, high)),
        ("low and high are swapped", lambda x, s, low, high: s * clip_round(x, s, high, low)),
        ("the sign is lost", lambda x, s, low, high: s * clip_round(x, s, low, high).abs()),
        ("dtype torch.float16", lambda x, s, low, high: (s * clip_round(x, s, low, high)).half()),
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
        ("at . bits your step is .*, the best .* too small", lambda x, bits: float(x.std()) * 0.58 ** (bits - 2)),
        ("LSQ's start", lambda x, bits: 2 * float(x.abs().mean()) / signed(bits)[1] ** 0.5),
        ("codes 0 .. 2.bits - 1", lambda x, bits: search(x, bits, 0, 2**bits - 1)[1]),
        ("twice as many codes", lambda x, bits: search(x, bits, -(2**bits), 2**bits - 1)[1]),
        ("absolute error: square it", lambda x, bits: search(x, bits, *signed(bits), torch.abs)[1]),
        ("finer grid", lambda x, bits: 1.12 * search(x, bits, *signed(bits))[1]),
        ("finer grid|too (large|small)", lambda x, bits: coarse_search(x, bits, 10)),
        ("too (large|small)|finer grid", lambda x, bits: coarse_search(x, bits, 5)),
        ("symmetric codes", lambda x, bits: search(x, bits, -signed(bits)[1], signed(bits)[1])[1]),
        ("Does your search clip the codes", lambda x, bits: search(x, bits, -(2**30), 2**30)[1]),
        ("too small", lambda x, bits: 0.4 * search(x, bits, *signed(bits))[1]),
        ("a step is positive", lambda x, bits: 0.0),
        ("tensor of 40 values: return one number", lambda x, bits: x.abs().amax(1) / 2**bits),
        ("type tuple: return a number", lambda x, bits: search(x, bits, *signed(bits))),
        ("changes its input x", lambda x, bits: float(x.abs_().max()) / bits),
    ],
    "integer_matmul": [
        ("the sum overflows in int8", exactly(lambda x, w: x @ w.T)),
        ("the sum overflows in int8", exactly(lambda x, w: (x @ w.T).int())),
        ("the sum overflows in int16", exactly(lambda x, w: product(x, w, torch.int16))),
        ("single products overflow", exactly(lambda x, w: (x[:, None] * w).sum(2))),
        ("range of int8", exactly(lambda x, w: product(x, w).clamp(-128, 127))),
        ("the sums are floats.*for in = ", exactly(lambda x, w: x.float() @ w.float().T)),
        ("the sums are floats", exactly(lambda x, w: x.double() @ w.double().T)),
        ("the sums are floats", exactly(lambda x, w: (x.numpy().astype(float) @ w.numpy().astype(float).T).tolist())),
        ("float32 is not exact beyond 2.24", exactly(lambda x, w: (x.float() @ w.float().T).int())),
        ("float32 is not exact beyond 2.24", exactly(
            lambda x, w: torch.nn.functional.linear(x.float(), w.float()).round().long())),
        ("multiplied by both steps", lambda x, w, s, t: (product(x, w) * (s * t), s * t)),
        ("multiplied by x_step", lambda x, w, s, t: (product(x, w) * s, t)),
        ("multiplied by w_step", lambda x, w, s, t: (product(x, w) * t, s)),
        ("divided by the steps", lambda x, w, s, t: (product(x, w) / (s * t), s * t)),
        ("take the sum", exactly(lambda x, w: product(x, w) / x.shape[1])),
        ("take the sum", exactly(lambda x, w: (product(x, w) / x.shape[1]).int())),
        ("signs of the codes are lost", exactly(lambda x, w: product(x.int().abs(), w.int().abs()))),
        ("multiply by its transpose", exactly(lambda x, w: x.int() @ w.int())),
        ("multiply by its transpose", exactly(lambda x, w: product(x, w.reshape(w.shape[1], -1).T))),
        ("w_step is forgotten", lambda x, w, s, t: (product(x, w), s)),
        ("x_step is forgotten", lambda x, w, s, t: (product(x, w), t)),
        ("steps are added", lambda x, w, s, t: (product(x, w), s + t)),
        ("upside down", lambda x, w, s, t: (product(x, w), 1 / (s * t))),
        ("divided by the other", lambda x, w, s, t: (product(x, w), s / t)),
        ("both steps are forgotten", lambda x, w, s, t: (product(x, w), 1)),
        ("the scale comes first", lambda x, w, s, t: (s * t, product(x, w))),
        ("it returns a Tensor: return two, the sums and the scale", lambda x, w, s, t: product(x, w) * (s * t)),
        ("it returns 3 values", lambda x, w, s, t: (product(x, w), s, t)),
        ("RuntimeError", exactly(lambda x, w: x.float() @ w)),
        ("has shape", exactly(lambda x, w: product(w, x))),
        ("dtype torch.float16", exactly(lambda x, w: product(x, w).half())),
        ("values are wrong", exactly(lambda x, w: product(x.abs(), w))),
    ],
}  # fmt: skip
