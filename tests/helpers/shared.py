"""Networks with shared weights, layers under several names, and parts that evaluation does not reach."""

import torch
from torch import nn

from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import recalibrate

SHAPE = (3, 8, 8)
IMAGES = torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(0))


class Chain(nn.Module):
    """Four convolutions and a linear layer; the first of the inner convolutions lends its weights to the others."""

    def __init__(self, tied=("two",)):
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.two, self.three = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 4)
        for name in tied:
            self.get_submodule(name).weight = self.one.weight
        with torch.no_grad():  # other biases, and inputs of other sizes
            self.one.bias.add_(0.5)
            self.two.bias.add_(2)

    def forward(self, x):
        for layer in (self.first, self.one, self.two, self.three):
            x = layer(x).relu()
        return self.last(x.mean((2, 3)))


class Twice(nn.Module):
    """A convolution and a norm that have two names each and run under both."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.a = self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.n = self.m = nn.BatchNorm2d(6)

    def forward(self, x):
        x = self.n(self.a(self.first(x).relu())).relu()
        return self.last(self.m(self.b(x)).relu().mean((2, 3)))


class Lookup(nn.Module):
    """An embedding whose weights are also those of a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Linear(10, 4)
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 10)
        self.head.weight = self.table.weight

    def forward(self, x):
        x = self.first(x).relu().mean((2, 3)) + self.table(torch.arange(1, device=x.device))
        return self.last(self.head(x.relu()).relu())


class Auxiliary(Chain):
    """A head with a norm that runs in training only, dropout, and a layer that never runs."""

    def __init__(self):
        super().__init__(tied=())
        self.drop, self.norm, self.never = nn.Dropout(), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.aux = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 1))

    def forward(self, x):
        x = self.drop(self.norm(self.one(self.first(x).relu())).relu())
        out = self.last(self.three(self.two(x).relu()).relu().mean((2, 3)))
        return out + 0 * self.aux(x).mean() if self.training else out


def made(build, quantizer="lsq", bits="W3A3", **options):
    """A quantized network with statistics for ``bits``."""
    torch.manual_seed(0)
    return recalibrate(quantize(build(), quantizer, sample=IMAGES, **options), IMAGES, bits).eval()
