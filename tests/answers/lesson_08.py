"""Lesson 08: right answers, each written another way, and wrong ones with the message that names them."""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import LinearConstraint, milp
from torch import nn

from mebqat_lite.deploy import codes as packing


def pack_in_numpy(codes, bits):
    flat = codes.flatten().numpy()
    return np.packbits([flat >> k & 1 for k in range(bits)][::-1], axis=1)


def pack_in_strings(codes, bits):
    words = [f"{code:0{bits}b}" for code in codes.flatten().tolist()]
    rows = ["".join(column) for column in zip(*words, strict=True)]
    rows = [row.ljust(8 * math.ceil(len(row) / 8), "0") for row in rows]
    return [[int(row[i : i + 8], 2) for i in range(0, len(row), 8)] for row in rows]


def pack_in_loops(codes, bits):
    flat = codes.flatten().tolist()
    planes = torch.zeros(bits, math.ceil(len(flat) / 8))
    for i, code in enumerate(flat):
        for k in range(bits):
            planes[bits - 1 - k, i // 8] += (code >> k & 1) * 2 ** (7 - i % 8)
    return planes


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


def total(table, choice):
    return sum(row[k] for row, k in zip(table, choice, strict=True))


def every_choice(table):
    return itertools.product(*(range(len(row)) for row in table))


def choose_in_a_loop(losses, sizes, budget):
    best, least = None, math.inf
    for choice in every_choice(losses):
        if total(sizes, choice) <= budget and total(losses, choice) < least:
            best, least = choice, total(losses, choice)
    return torch.tensor(best)


def choose_layer_by_layer(losses, sizes, budget):
    """Dynamic programming over the bytes that are used."""
    best = {0: (0.0, [])}
    for row, costs in zip(losses, sizes, strict=True):
        following = {}
        for used, (loss, choice) in best.items():
            for k, cost in enumerate(costs):
                if used + cost <= budget:
                    old = following.get(used + cost, (math.inf, []))
                    following[used + cost] = min(old, (loss + row[k], [*choice, k]))
        best = following
    return min(best.values())[1]


def choose_by_integer_programming(losses, sizes, budget):
    layers, options = np.shape(losses)
    one_each = np.kron(np.eye(layers), np.ones(options))
    limits = [LinearConstraint(one_each, 1, 1), LinearConstraint(np.ravel(sizes), 0, budget)]
    found = milp(np.ravel(losses), constraints=limits, integrality=np.ones(layers * options), bounds=(0, 1))
    return found.x.reshape(layers, options).argmax(1)


RIGHT = {
    "pack": [pack_in_numpy, pack_in_strings, pack_in_loops, packing.pack],
    "cut": [
        lambda planes, count, bits: (whole(planes, count) >> (8 - bits)).tolist(),
        cut_in_numpy,
        cut_bit_by_bit,
        cut_whole_codes,
    ],
    "correction": [correction_by_pooling, correction_from_two_convolutions, correction_in_loops],
    "choose_bits": [choose_in_a_loop, choose_layer_by_layer, choose_by_integer_programming],
}

# --- wrong answers ---------------------------------------------------------------------------------------------


def rows_of(codes, bits, **options):
    """Planes in NumPy, from a flat array of codes."""
    flat = codes.flatten().numpy()
    return torch.from_numpy(np.packbits([flat >> k & 1 for k in reversed(range(bits))], axis=1, **options))


def padded_in_front(codes, bits):
    return rows_of(F.pad(codes.flatten(), (-codes.numel() % 8, 0)), bits)


def codes_in_a_row(codes, bits):
    text = "".join(f"{code:0{bits}b}" for code in codes.flatten().tolist())
    values = [int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)]
    return torch.tensor(values).reshape(bits, -1)


def a_byte_for_each_bit(codes, bits):
    return torch.stack([codes >> k & 1 for k in reversed(range(bits))])


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


def uniform(losses, sizes, budget):
    fits = [k for k in range(len(losses[0])) if total(sizes, [k] * len(sizes)) <= budget]
    return [max(fits, default=0)] * len(losses)


def fitting(sizes, budget):
    return [choice for choice in every_choice(sizes) if total(sizes, choice) <= budget]


def one_after_the_other(losses, sizes, budget, order=1):
    choice = [0] * len(sizes)
    for i in range(len(sizes))[::order]:
        rest = total(sizes, choice) - sizes[i][0]
        choice[i] = max(k for k, size in enumerate(sizes[i]) if size + rest <= budget)
    return choice


def greedy(losses, sizes, budget):
    choice = [0] * len(sizes)
    while True:
        best = None
        for i, k in enumerate(choice):
            if k + 1 < len(sizes[i]) and total(sizes, choice) + sizes[i][k + 1] - sizes[i][k] <= budget:
                worth = (losses[i][k] - losses[i][k + 1]) / (sizes[i][k + 1] - sizes[i][k])
                best = max(best or (0, 0), (worth, i))
        if best is None:
            return choice
        choice[best[1]] += 1


WRONG = {
    "pack": [
        ("wrong order", lambda codes, bits: rows_of(codes, bits).flip(0)),
        ("highest bit, the one worth 128", lambda codes, bits: rows_of(codes, bits, bitorder="little")),
        ("most significant plane", lambda codes, bits: rows_of(codes, bits, bitorder="little").flip(0)),
        ("zeros and ones are exchanged|after the codes", lambda codes, bits: rows_of(2**bits - 1 - codes, bits)),
        ("come after the codes, not before", padded_in_front),
        ("whole codes stand one after the other", codes_in_a_row),
        ("value for each bit", a_byte_for_each_bit),
        ("last codes are lost", lambda codes, bits: rows_of(codes, bits)[:, : codes.numel() // 8]),
        ("a byte too many", lambda codes, bits: rows_of(F.pad(codes.flatten(), (0, 8 - codes.numel() % 8)), bits)),
        ("rows and columns are exchanged", lambda codes, bits: rows_of(codes, bits).T),
        ("these are 8 planes", lambda codes, bits: rows_of(codes, 8)),
        ("has shape", lambda codes, bits: rows_of(codes, bits).flatten()),
        ("changes its input codes", lambda codes, bits: rows_of(codes.mul_(0), bits)),
        ("values are wrong", lambda codes, bits: 0 * rows_of(codes, bits)),
    ],
    "cut": [
        ("whole 8-bit codes", lambda planes, count, bits: whole(planes, count)),
        ("lower bits", lambda planes, count, bits: whole(planes, count) % 2**bits),
        ("lower bits", lambda planes, count, bits: packing.unpack(planes[8 - bits :], (count,))),
        ("first row counts most", low_plane_first),
        ("worth 128", low_bit_first),
        ("shifted back", lambda planes, count, bits: whole(planes, count) >> (8 - bits) << (8 - bits)),
        ("it rounds", lambda planes, count, bits: (whole(planes, count) + 2 ** (8 - bits) // 2) >> (8 - bits)),
        ("scales the codes down", lambda p, count, bits: (whole(p, count) * (2**bits - 1) / 255).round()),
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
        ("zero counts twice", lambda x, k, s, z: -s * 2 * z * window(x, k)),
        ("rounded to a whole number", lambda x, k, s, z: -s * int(z) * window(x, k)),
        ("rounded to a whole number", lambda x, k, s, z: -s * int(z + 0.5) * window(x, k)),
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
    ],
    "choose_bits": [
        ("exactly the budget fits", lambda n, s, b: choose_in_a_loop(n, s, b - 1)),
        ("each may have its own", uniform),
        ("a list of whole numbers", lambda n, s, b: dict(enumerate(choose_in_a_loop(n, s, b)))),
        ("wastes the budget", lambda n, s, b: [0] * len(s)),
        ("most bytes that fit", lambda n, s, b: max(fitting(s, b), key=lambda c: total(s, c))),
        ("one layer after the other", one_after_the_other),
        ("one layer after the other", lambda n, s, b: one_after_the_other(n, s, b, -1)),
        ("never gives one back", greedy),
        ("more than the budget", lambda n, s, b: [len(row) - 1 for row in s]),
        ("more than the budget", lambda n, s, b: [max(k for k, size in enumerate(row) if size <= b) for row in s]),
        ("place of the choice", lambda n, s, b: [row[0] for row in s]),
        ("has shape", lambda n, s, b: choose_in_a_loop(n, s, b)[1:]),
        ("return a tensor", lambda n, s, b: total(n, choose_in_a_loop(n, s, b).tolist())),
    ],
}  # fmt: skip
