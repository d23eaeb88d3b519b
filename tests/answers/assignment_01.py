"""Assignment 01: right answers, each written another way, and wrong ones with the message that names them."""

import math

import numpy as np
import torch

RIGHT = {
    "affine_range": [
        lambda x, bits: (
            (step := float(max(x.amax(), 0) - min(x.amin(), 0)) / (2**bits - 1)),
            round(float(-min(x.amin(), 0)) / step),
        ),
        lambda x, bits: numpy_range(x.numpy().astype(float), bits),
        lambda x, bits: list(map(np.array, numpy_range(x.numpy().astype(float), bits))),
        lambda x, bits: torch.tensor(numpy_range(x.numpy().astype(float), bits)),
    ],
    "affine_quantize": [
        lambda x, s, z, bits: s * (through((x / s + z).clamp(0, 2**bits - 1)) - z),
        lambda x, s, z, bits: torch.fake_quantize_per_tensor_affine(x, s, z, 0, 2**bits - 1),
    ],
    "sqnr": [
        lambda x, y: 10 * torch.log10(x.double().pow(2).mean() / (x - y).double().pow(2).mean()),
        lambda x, y: -20 * math.log10(float((x - y).norm() / x.norm())),
        lambda x, y: 10 * np.log10(np.sum(x.numpy() ** 2) / np.sum((x - y).numpy() ** 2)),
    ],
}


def through(u):
    return u + (u.round() - u).detach()


def numpy_range(x, bits):
    low, high = np.minimum(x.min(), 0), np.maximum(x.max(), 0)
    step = (high - low) / (2**bits - 1)
    return step, np.rint(-low / step)


def of_range(x, low, high, bits):
    step = (high - low) / (2**bits - 1)
    return step, round(-low / step)


def zero_by(rounding):
    def answer(x, bits):
        low, high = low_high(x)
        return (step := (high - low) / (2**bits - 1)), rounding(-low / step)

    return answer


def low_high(x):
    return min(float(x.min()), 0.0), max(float(x.max()), 0.0)


def passing(x, value, low=-math.inf, high=math.inf, by=1.0):
    """``value``, with a gradient where x lies between ``low`` and ``high``."""
    gated = by * x.clamp(low, high)
    return gated + (value - gated).detach()


def quantized(x, s, z, bits):
    return RIGHT["affine_quantize"][0](x, s, z, bits)


def rounded_first(x, s, z, bits):
    """It rounds and then clips: a last digit beyond the range decides whether a gradient passes."""
    u = x / s + z + (torch.round(x / s) - x / s).detach()
    return s * (u.clamp(0, 2**bits - 1) - z)


def scaled(x, s, z, bits):
    gated = (s * x).clamp(-s * s * z, s * s * (2**bits - 1 - z))
    return gated + (RIGHT["affine_quantize"][0](x, s, z, bits) - gated).detach()


WRONG = {
    "affine_range": [
        ("must hold zero", lambda x, bits: of_range(x, float(x.min()), float(x.max()), bits)),
        ("2.bits - 1 steps", lambda x, bits: ((low_high(x)[1] - low_high(x)[0]) / 2**bits, 0)),
        ("symmetric quantizer", lambda x, bits: (2 * float(x.abs().max()) / (2**bits - 1), 2 ** (bits - 1))),
        ("from the upper end", lambda x, bits: (
            (step := (low_high(x)[1] - low_high(x)[0]) / (2**bits - 1)), 2**bits - 1 + round(low_high(x)[0] / step))),
        ("round it", lambda x, bits: (
            (step := (low_high(x)[1] - low_high(x)[0]) / (2**bits - 1)), -low_high(x)[0] / step)),
        ("zero is always 0|right is", lambda x, bits: ((low_high(x)[1] - low_high(x)[0]) / (2**bits - 1), 0)),
        ("return two numbers", lambda x, bits: low_high(x)[1] / (2**bits - 1)),
        ("it is cut off", zero_by(int)),
        ("it is rounded up", zero_by(math.ceil)),
        ("whole range", lambda x, bits: (low_high(x)[1] - low_high(x)[0], 0)),
        ("signed codes", lambda x, bits: ((low_high(x)[1] - low_high(x)[0]) / (2 ** (bits - 1) - 1), 0)),
        ("comes first", lambda x, bits: of_range(x, *low_high(x), bits)[::-1]),
        ("must hold zero", lambda x, bits: of_range(x, min(float(x.min()), 0.0), float(x.max()), bits)),
        ("must hold zero", lambda x, bits: of_range(x, float(x.min()), max(float(x.max()), 0.0), bits)),
        ("lies between", lambda x, bits: (of_range(x, *low_high(x), bits)[0], -of_range(x, *low_high(x), bits)[1])),
        ("from the upper end", lambda x, bits: (of_range(x, *low_high(x), bits)[0], round(
            low_high(x)[1] / of_range(x, *low_high(x), bits)[0]))),
        ("half of the codes", lambda x, bits: (of_range(x, *low_high(x), bits)[0], 2 ** (bits - 1))),
    ],
    "affine_quantize": [
        ("these are the codes", lambda x, s, z, bits: (x / s + z).round().clamp(0, 2**bits - 1)),
        ("not taken off", lambda x, s, z, bits: s * (x / s + z).round().clamp(0, 2**bits - 1)),
        ("does not clip", lambda x, s, z, bits: s * ((x / s + z).round() - z)),
        ("does not round", lambda x, s, z, bits: s * ((x / s + z).clamp(0, 2**bits - 1) - z)),
        ("rounds down", lambda x, s, z, bits: s * ((x / s + z).floor().clamp(0, 2**bits - 1) - z)),
        ("one level too many", lambda x, s, z, bits: s * ((x / s + z).round().clamp(0, 2**bits) - z)),
        ("no gradient comes back", lambda x, s, z, bits: RIGHT["affine_quantize"][0](x, s, z, bits).detach()),
        ("zero everywhere", lambda x, s, z, bits: s * ((x / s + z).round().clamp(0, 2**bits - 1) - z)),
        ("passes outside", lambda x, s, z, bits: x + (RIGHT["affine_quantize"][0](x, s, z, bits) - x).detach()),
        ("step times", lambda x, s, z, bits: scaled(x, s, z, bits)),
        ("rounds up", lambda x, s, z, bits: s * ((x / s + z).ceil().clamp(0, 2**bits - 1) - z)),
        ("towards zero", lambda x, s, z, bits: s * (((x / s).trunc() + z).clamp(0, 2**bits - 1) - z)),
        ("multiplied by step", lambda x, s, z, bits: s * ((x * s + z).round().clamp(0, 2**bits - 1) - z)),
        ("step is missing", lambda x, s, z, bits: (x / s + z).round().clamp(0, 2**bits - 1) - z),
        ("after the multiplication", lambda x, s, z, bits: s * (x / s + z).round().clamp(0, 2**bits - 1) - z),
        ("sign of the gradient", lambda x, s, z, bits: passing(
            x, quantized(x, s, z, bits), -s * z, s * (2**bits - 1 - z), by=-1.0)),
        ("passes below", lambda x, s, z, bits: passing(x, quantized(x, s, z, bits), high=s * (2**bits - 1 - z))),
        ("passes above", lambda x, s, z, bits: passing(x, quantized(x, s, z, bits), low=-s * z)),
        ("passes from 0", lambda x, s, z, bits: passing(x, quantized(x, s, z, bits), 0.0, s * (2**bits - 1))),
        ("lost at the lowest", rounded_first),
    ],
    "sqnr": [
        ("sign is turned", lambda x, y: -RIGHT["sqnr"][0](x, y)),
        ("no decibels", lambda x, y: x.square().sum() / (x - y).square().sum()),
        ("20 log10", lambda x, y: 2 * RIGHT["sqnr"][0](x, y)),
        ("natural", lambda x, y: 10 * math.log(x.square().sum() / (x - y).square().sum())),
        ("times 10", lambda x, y: RIGHT["sqnr"][0](x, y) / 10),
        ("not its variance", lambda x, y: 10 * math.log10(
            x.double().var(correction=0) / (x - y).double().square().mean())),
        ("absolute values", lambda x, y: 10 * math.log10(x.double().abs().sum() / (x - y).double().abs().sum())),
        ("right is", lambda x, y: 12.0),
        ("base 2", lambda x, y: 10 * torch.log2(x.pow(2).sum() / (x - y).pow(2).sum())),
        ("that of their roots", lambda x, y: 10 * torch.log10(x.norm() / (x - y).norm())),
        ("other a mean", lambda x, y: 10 * torch.log10(x.pow(2).sum() / (x - y).pow(2).mean())),
        ("other a mean", lambda x, y: 10 * torch.log10(x.pow(2).mean() / (x - y).pow(2).sum())),
        ("PSNR", lambda x, y: 10 * torch.log10(x.abs().max() ** 2 / (x - y).pow(2).mean())),
        ("square first", lambda x, y: 10 * torch.log10(x.sum() ** 2 / (x - y).double().sum() ** 2)),
        ("difference of the squares", lambda x, y: 10 * torch.log10(
            x.double().pow(2).sum() / (x.double().pow(2) - y.double().pow(2)).sum().abs())),
        ("standard deviations", lambda x, y: 20 * torch.log10(x.std() / (x - y).std())),
    ],
}  # fmt: skip
EQUIVALENT: dict[str, str] = {}
