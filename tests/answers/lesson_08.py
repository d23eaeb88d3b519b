"""Lesson 08: right answers, each written another way, and wrong ones with the message that names them."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mebqat_lite.deploy import codes as packing


def size_by_packing(shape, bits):
    return packing.pack(torch.zeros(shape, dtype=torch.int32), bits).numel()


def size_in_strings(shape, bits):
    return bits * len(range(0, math.prod(shape), 8))


def cut_in_numpy(planes, count, bits):
    ones = np.unpackbits(planes.numpy(), axis=1)[:bits, :count].astype(np.int64)
    return torch.from_numpy((ones * 2 ** np.arange(bits)[::-1, None]).sum(0))


def cut_bit_by_bit(planes, count, bits):
    codes = []
    for i in range(count):
        byte, place = divmod(i, 8)
        text = "".join(str(int(row[byte]) >> (7 - place) & 1) for row in planes[:bits])
        codes.append(int(text, 2))
    return torch.tensor(codes, dtype=torch.int32)


def cut_whole_codes(planes, count, bits):
    return packing.unpack(planes, (count,)) >> (8 - bits)


def correction_by_pooling(x, kernel, step, zero):
    window = F.avg_pool2d(x, kernel, stride=1, padding=kernel // 2)  # counts the padding
    return -step * zero * kernel**2 * window.sum(1, keepdim=True)


def correction_from_two_convolutions(x, kernel, step, zero):
    """The difference is the same for any codes, also for zeros."""
    layer = nn.Conv2d(x.shape[1], 1, kernel, padding=kernel // 2, bias=False)
    nn.init.constant_(layer.weight, step * (0 - zero))
    return layer(x).detach()


def correction_in_loops(x, kernel, step, zero):
    wide = kernel // 2
    padded = F.pad(x.double().sum(1), (wide, wide, wide, wide))  # (batch, height, width)
    out = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.float64)
    for i in range(kernel):
        for j in range(kernel):
            out[:, 0] += padded[:, i : i + x.shape[2], j : j + x.shape[3]]
    return -out * step * zero


def file_sizes(layers, rest, statistics, widths):
    """Nested, and each width."""
    fixed = rest + statistics * len(widths)
    planes = [[math.ceil(count / 8)] * bits for count in layers for bits in widths]
    return fixed + 8 * sum(math.ceil(count / 8) for count in layers), fixed + sum(map(sum, planes))


def file_by_both_sizes(budget, layers, rest, statistics, widths):
    fitting = [size for size in file_sizes(layers, rest, statistics, widths) if size <= budget]
    return min(fitting, default=0)


def file_in_steps(budget, layers, rest, statistics, widths):
    nested, apart = file_sizes(layers, rest, statistics, widths)
    size = nested if sum(widths) > 8 else apart
    if size > budget:
        return 0
    return torch.tensor(size)


RIGHT = {
    "packed_size": [
        size_by_packing,
        size_in_strings,
        lambda shape, bits: bits * -(-math.prod(shape) // 8),
        lambda shape, bits: float(bits * math.ceil(np.prod(shape) / 8)),
    ],
    "cut": [
        lambda planes, count, bits: (whole(planes, count) >> (8 - bits)).tolist(),
        cut_in_numpy,
        cut_bit_by_bit,
        cut_whole_codes,
    ],
    "correction": [correction_by_pooling, correction_from_two_convolutions, correction_in_loops],
    "best_file": [file_by_both_sizes, file_in_steps],
}

# --- wrong answers ---------------------------------------------------------------------------------------------


def number(shape):
    return math.prod(shape)


def four_sizes(shape, bits):
    out, into, height, width = shape
    return bits * math.ceil(out * into * height * width / 8)


def whole(planes, count):
    return packing.unpack(planes, (count,)).long()


def low_bit_first(planes, count, bits):
    """Bytes read from the lowest bit on."""
    ones = np.unpackbits(planes.numpy(), axis=1, bitorder="little")[:bits, :count].astype(np.int64)
    return torch.from_numpy((ones * 2 ** np.arange(bits)[::-1, None]).sum(0))


def low_plane_first(planes, count, bits):
    ones = np.unpackbits(planes.numpy(), axis=1)[:bits, :count].astype(np.int64)
    return torch.from_numpy((ones * 2 ** np.arange(bits)[:, None]).sum(0))


def with_padding(planes, count, bits):
    return whole(planes, 8 * planes.shape[1]) >> (8 - bits)


def added(planes, count, bits):
    return torch.from_numpy(np.unpackbits(planes.numpy(), axis=1)[:bits, :count].astype(np.int64).sum(0))


def window(x, kernel, **options):
    return F.conv2d(x, torch.ones(1, x.shape[1], kernel, kernel), **{"padding": kernel // 2, **options})


def border(x, kernel):
    """Means over what of the window lies inside the picture, as if it were full."""
    inside = F.avg_pool2d(x, kernel, 1, kernel // 2, count_include_pad=False)
    return inside.sum(1, keepdim=True) * kernel**2


def repeated(x, kernel):
    return window(F.pad(x, (kernel // 2,) * 4, mode="replicate"), kernel, padding=0)


def kept(size, budget):
    return size if size <= budget else 0


def plane(layers):
    return sum(math.ceil(count / 8) for count in layers)


def few(widths):
    return min(8, sum(widths))


WRONG = {
    "packed_size": [
        ("bytes of float weights", lambda shape, bits: 4 * number(shape)),
        ("these are bits", lambda shape, bits: bits * number(shape)),
        ("plane by plane", lambda shape, bits: math.ceil(bits * number(shape) / 8)),
        ("whole bytes", lambda shape, bits: bits * number(shape) / 8),
        ("rounds down", lambda shape, bits: bits * number(shape) // 8),
        ("rounds down", lambda shape, bits: bits * (number(shape) // 8)),
        ("one byte too many", lambda shape, bits: bits * (number(shape) // 8 + 1)),
        ("a byte for each weight", lambda shape, bits: number(shape)),
        ("this is one plane", lambda shape, bits: math.ceil(number(shape) / 8)),
        ("number of levels", lambda shape, bits: 2**bits * math.ceil(number(shape) / 8)),
        ("sizes of the shape are added", lambda shape, bits: bits * math.ceil(sum(shape) / 8)),
        ("only the first size", lambda shape, bits: bits * math.ceil(shape[0] / 8)),
        ("return a number", lambda shape, bits: [bits] * math.ceil(number(shape) / 8)),
        ("ValueError: not enough values", four_sizes),
    ],
    "cut": [
        ("whole 8-bit codes", lambda planes, count, bits: whole(planes, count)),
        ("lower bits", lambda planes, count, bits: whole(planes, count) % 2**bits),
        ("lower bits", lambda planes, count, bits: packing.unpack(planes[8 - bits :], (count,))),
        ("first row counts most", low_plane_first),
        ("worth 128", low_bit_first),
        ("shifted back", lambda planes, count, bits: whole(planes, count) >> (8 - bits) << (8 - bits)),
        ("it rounds", lambda planes, count, bits: (whole(planes, count) + 2 ** (8 - bits) // 2) >> (8 - bits)),
        ("rows are added", added),
        ("one bit too few", lambda planes, count, bits: packing.unpack(planes[: bits - 1], (count,))),
        ("fill the last byte", with_padding),
        ("has shape", lambda planes, count, bits: planes[:bits]),
        ("changes its input planes", lambda planes, count, bits: planes.zero_()[0]),
        ("values are wrong", lambda planes, count, bits: torch.arange(count)),
    ],
    "correction": [
        ("sign is wrong", lambda x, k, s, z: s * z * window(x, k)),
        ("zero is forgotten", lambda x, k, s, z: -s * window(x, k)),
        ("step is forgotten", lambda x, k, s, z: -z * window(x, k)),
        ("step and zero are forgotten", lambda x, k, s, z: window(x, k)),
        ("divided by step", lambda x, k, s, z: -z / s * window(x, k)),
        ("step counts twice", lambda x, k, s, z: -(s**2) * z * window(x, k)),
        ("mean over the window", lambda x, k, s, z: -s * z * window(x, k) / (x.shape[1] * k**2)),
        ("mean over the channels", lambda x, k, s, z: -s * z * window(x, k) / x.shape[1]),
        ("mean over the pixels", lambda x, k, s, z: -s * z * window(x, k) / k**2),
        ("reaches over zeros, which add nothing", lambda x, k, s, z: -s * z * border(x, k)),
        ("do not repeat pixels", lambda x, k, s, z: -s * z * repeated(x, k)),
        ("x alone at each pixel", lambda x, k, s, z: -s * z * x.sum(1, keepdim=True)),
        ("whole picture", lambda x, k, s, z: -s * z * x.sum((1, 2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])),
        ("only the first channel", lambda x, k, s, z: -s * z * window(x[:, :1], k)),
        ("for each channel of x", lambda x, k, s, z: -s * z * k**2 * F.avg_pool2d(x, k, 1, k // 2)),
        ("pad by kernel // 2", lambda x, k, s, z: -s * z * window(x, k, padding=0)),
        ("has shape", lambda x, k, s, z: (-s * z * window(x, k))[:, 0]),
        ("return a tensor", lambda x, k, s, z: -s * z * float(x.sum())),
        ("changes its input x", lambda x, k, s, z: window(x.mul_(-s * z), k)),
        ("values are wrong", lambda x, k, s, z: -s * int(z) * window(x, k)),
    ],
    "best_file": [
        ("not always the smaller one", lambda b, n, r, s, w: kept(8 * plane(n) + r + len(w) * s, b)),
        ("not always the smaller ones", lambda b, n, r, s, w: kept(sum(w) * plane(n) + r + len(w) * s, b)),
        ("not always the smaller", lambda b, n, r, s, w: kept(max(file_sizes(n, r, s, w)), b)),
        ("all 8 planes", lambda b, n, r, s, w: kept(max(w) * plane(n) + r + len(w) * s, b)),
        ("once for each pair", lambda b, n, r, s, w: kept(few(w) * plane(n) + r + s, b)),
        ("statistics are forgotten", lambda b, n, r, s, w: kept(few(w) * plane(n) + r, b)),
        ("layer by layer", lambda b, n, r, s, w: kept(few(w) * math.ceil(sum(n) / 8) + r + len(w) * s, b)),
        ("layer by layer", lambda b, n, r, s, w: kept(few(w) * sum(n) / 8 + r + len(w) * s, b)),
        ("rounds down", lambda b, n, r, s, w: kept(few(w) * sum(c // 8 for c in n) + r + len(w) * s, b)),
        ("these are bits|it does fit", lambda b, n, r, s, w: kept(few(w) * sum(n) + r + len(w) * s, b)),
        ("rest is forgotten", lambda b, n, r, s, w: kept(few(w) * plane(n) + len(w) * s, b)),
        ("not for each pair", lambda b, n, r, s, w: kept(few(w) * plane(n) + len(w) * (s + r), b)),
        ("exactly the budget fits", lambda b, n, r, s, w: file_by_both_sizes(b - 1, n, r, s, w)),
        ("it does not fit", lambda b, n, r, s, w: min(file_sizes(n, r, s, w))),
        ("it does fit", lambda b, n, r, s, w: 0),
        ("this is the budget", lambda b, n, r, s, w: b),
        ("every branch", lambda b, n, r, s, w: file_by_both_sizes(b, n, r, s, w) or None),
        ("return a number", lambda b, n, r, s, w: file_sizes(n, r, s, w)),
    ],
}  # fmt: skip
