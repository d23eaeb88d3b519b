"""Random small networks of the kinds that users write: branches, reuse, tied weights, in-place steps, odd norms."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

CHANNELS, SIDE, CLASSES = 4, 6, 3


class OwnNorm(nn.BatchNorm2d):
    """A norm of a class that this package does not know."""


class Residual(nn.Module):
    """x + block(x)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class Fork(nn.Module):
    """Two layers read one tensor, and a third reads both of their outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(), conv(kernel=1, padding=0)
        self.join = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.left(x), self.right(x).relu_()], 1))


class Twice(nn.Module):
    """One layer runs twice, and is known under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Tied(nn.Module):
    """Two layers own one weight, with biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(input=x)))


class InPlace(nn.Module):
    """Overwrites a tensor that a layer has read, and keeps a buffer that it makes when it first runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv()

    def forward(self, x: Tensor) -> Tensor:
        if "ones" not in self._buffers:
            self.register_buffer("ones", x.new_ones(1), persistent=False)
        y = self.a(x)
        return y.add_(x.clone().relu_() * self.ones)


class Own(nn.Module):
    """Has parameters and attributes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.setting, self.plan = nn.Parameter(torch.full((CHANNELS, 1, 1), 1.5)), "mine", ["mine"]

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def conv(kernel: int = 3, padding: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """Make a convolution that keeps the shape, (batch, `CHANNELS`, `SIDE`, `SIDE`)."""
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=padding, groups=groups, bias=bias)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "conv": conv,
    "norm": lambda: nn.BatchNorm2d(CHANNELS),
    "conv-norm-relu": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)),
    "depthwise": lambda: conv(groups=CHANNELS),
    "relu": lambda: nn.ReLU(),
    "relu in place": lambda: nn.Sequential(conv(), nn.ReLU(inplace=True)),
    "gelu": nn.GELU,
    "own norm": lambda: OwnNorm(CHANNELS),
    "no affine": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
    "no running": lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False),
    "group norm": lambda: nn.GroupNorm(2, CHANNELS),
    "instance norm": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "residual": lambda: Residual(nn.Sequential(conv(), nn.BatchNorm2d(CHANNELS))),
    "fork": Fork,
    "twice": Twice,
    "tied": Tied,
    "in place": InPlace,
    "own": Own,
    "dropout": lambda: nn.Dropout(0.5),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(conv()),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 3, padding=1),
}

chosen = st.tuples(st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=5), st.integers(0, 2**16))


def network(blocks: list[str], seed: int) -> nn.Module:
    """Build a network of these blocks, from (batch, 1, `SIDE`, `SIDE`) to (batch, `CLASSES`)."""
    torch.manual_seed(seed)
    first = nn.Conv2d(1, CHANNELS, 3, padding=1)
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, CLASSES)]
    return nn.Sequential(first, nn.ReLU(), *(BLOCKS[name]() for name in blocks), *head)
