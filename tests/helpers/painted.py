"""Small data whose labels are values: a colour for each of 96 points, and a network of coordinates for them."""

import math

import torch

from mebqat_lite import models, quantize
from mebqat_lite.datasets.base import Data, Split


def points(count=96, outputs=3, dtype=torch.float32):
    """Points in the square from -1 to 1, each with smooth values in [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(count, 2, generator=generator) * 2 - 1
    waves = [0.5 + 0.5 * torch.sin((k + 1) * x[:, 0] + k * x[:, 1]) for k in range(outputs)]
    return Split(x, torch.stack(waves, 1).to(dtype))


def painted(**options):
    """The points as a dataset, of which all parts are the same."""
    split = points(**options)
    return Data("points", split, split, split, tuple("rgbxyz"[: split.labels.shape[1]]))


def painter(quantizer="dorefa", outputs=3, seed=0):
    """A small network of coordinates, quantized."""
    torch.manual_seed(seed)
    net = models.coordinate_net(width=16, pairs=4, scale=1.0, outputs=outputs)
    return quantize(net, quantizer, sample=points().images)


def psnr(out, values):
    """PSNR in dB by its formula, with Python's own numbers."""
    errors = [(a - b) ** 2 for a, b in zip(out.double().flatten().tolist(), values.flatten().tolist(), strict=True)]
    return -10 * math.log10(math.fsum(errors) / len(errors))
