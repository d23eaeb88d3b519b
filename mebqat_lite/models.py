"""The networks of the lessons and of the paper.

Each model remembers in ``model.spec`` how it was built, so that a checkpoint can build it again. A subclass of
`stem.StemAndBody` has two parts, and a training step runs its full-precision stem once for all of the step's pairs.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.switching.inputs import InputReLU
from mebqat_lite.switching.stem import StemAndBody

MODELS: dict[str, Callable[..., nn.Module]] = {}
Build = TypeVar("Build", bound=Callable[..., nn.Module])
JSON = (str, int, float, list, tuple, dict, type(None))  # the types of the options that a spec can hold


class Spec(dict):
    """The ``name`` and all ``options`` of a model, also those that were not given: a default may change later.

    A default that is not JSON, such as a class, is left out. A user's own ``spec`` is not of this class.
    """


def architecture(build: Build) -> Build:
    """Register a function that builds a model; the model remembers the call as ``model.spec``."""
    defaults = {n: p.default for n, p in inspect.signature(build).parameters.items() if isinstance(p.default, JSON)}

    @functools.wraps(build)
    def wrapper(**options: Any) -> nn.Module:
        model = build(**options)
        model.spec = Spec(name=build.__name__, options=defaults | options)  # type: ignore[assignment]
        return model

    MODELS[build.__name__] = wrapper
    return wrapper  # type: ignore[return-value]


def build(name: str, **options: Any) -> nn.Module:
    """Build a registered architecture by name; an unknown name is a ValueError that lists the known ones."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name](**options)


def _conv(c_in: int, c_out: int, padding: int = 1, pool: bool = False) -> nn.Sequential:
    """Stack a 3 x 3 convolution, batch norm, an optional 2 x 2 max pool, and a ReLU.

    The pool comes before the ReLU: the result is the same, and the ReLU has a quarter of the work.
    """
    layers = [nn.Conv2d(c_in, c_out, 3, padding=padding, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []), InputReLU(inplace=True))


class GlobalMean(nn.Module):
    """Average each channel over the image: (batch, channels, height, width) -> (batch, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the mean of ``x`` over height and width."""
        return x.mean((2, 3))


class DigitNet(StemAndBody):
    """Four 3 x 3 convolutions with a pool after the second, then a global mean and a linear layer."""

    def __init__(self, widths: Sequence[int], classes: int, in_channels: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stem = _conv(in_channels, a)
        self.body = nn.Sequential(_conv(a, b, pool=True), _conv(b, c), _conv(c, d), GlobalMean(), nn.Linear(d, classes))


@architecture
def digit_net(widths: Sequence[int] = (6, 12, 12, 12), classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Build the small network for 8 x 8 digits.

    It has 3,508 parameters, so few that the methods differ; see `digit_net_wide`.

    Args:
        widths: the channels of the four convolutions; another number of them is a ValueError.
        classes: the number of logits.
        in_channels: the channels of the images.
    """
    if len(widths) != 4:
        raise ValueError(f"digit_net has four convolutions; got widths {tuple(widths)}")
    return DigitNet(widths, classes, in_channels)


@architecture
def digit_net_wide(classes: int = 10, in_channels: int = 1) -> nn.Module:
    """Build the digit net with widths 16-32-32-32 and 23,738 parameters, on which nearly every method reads 99 %."""
    return DigitNet((16, 32, 32, 32), classes, in_channels)


class Conv4(StemAndBody):
    """Four blocks of 3 x 3 convolution, batch norm, pool and ReLU; with or without a linear classifier."""

    def __init__(self, channels: int, in_channels: int, image_size: int, classes: int | None) -> None:
        super().__init__()
        self.stem = _conv(in_channels, channels, pool=True)
        blocks: list[nn.Module] = [_conv(channels, channels, pool=True) for _ in range(3)]
        head = [] if classes is None else [nn.Linear(channels * (image_size // 16) ** 2, classes)]
        self.body = nn.Sequential(*blocks, nn.Flatten(), *head)  # flat: (batch, channels * side * side)


@architecture
def conv4(channels: int = 64, in_channels: int = 1, image_size: int = 28, classes: int | None = None) -> nn.Module:
    """Build the usual few-shot network.

    With ``classes`` it ends in a linear classifier, as MAML needs; without, it is the embedding of a prototypical
    network and returns (batch, features).
    """
    return Conv4(channels, in_channels, image_size, classes)


class CNN8(StemAndBody):
    """Seven convolutions and a linear layer for SVHN at 40 x 40 pixels, as in the public code of the MEBQAT authors.

    The first and the last convolution have no batch norm, so that a batch of one image can be learned from, too.
    """

    def __init__(self, classes: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 48, 5), nn.MaxPool2d(2), InputReLU(inplace=True))  # 40 -> 36 -> 18
        self.body = nn.Sequential(
            _conv(48, 64),
            _conv(64, 64, pool=True),  # 18 -> 9
            _conv(64, 128, padding=0),  # 9 -> 7
            _conv(128, 128),
            _conv(128, 128, padding=0),  # 7 -> 5
            nn.Dropout(dropout),
            nn.Conv2d(128, 512, 5, bias=False),  # 5 -> 1
            InputReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(512, classes),
        )


@architecture
def cnn8(classes: int = 10, dropout: float = 0.5) -> nn.Module:
    """Build CNN-8 for SVHN images of 3 x 40 x 40."""
    return CNN8(classes, dropout)


class PreActBlock(nn.Module):
    """Pre-activation residual block.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the same activation that ``conv1`` reads.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.relu1, self.relu2 = InputReLU(inplace=True), InputReLU(inplace=True)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.skip: nn.Module | None = None
        if stride != 1 or c_in != c_out:
            self.skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, height, width) -> (batch, c_out, height / stride, width / stride)."""
        h = self.relu1(self.bn1(x))
        shortcut = x if self.skip is None else self.skip(h)
        h = self.relu2(self.bn2(self.conv1(h)))
        return self.conv2(h) + shortcut


def _stages(block: Callable[[int, int, int], nn.Module], *channels: int) -> list[nn.Module]:
    """Make three blocks for each number of channels; where it changes, a block has stride 2."""
    widths = [channels[0], *(c for c in channels for _ in range(3))]
    return [block(a, b, 1 if a == b else 2) for a, b in itertools.pairwise(widths)]


class PreActResNet(StemAndBody):
    """A convolution, three stages of pre-activation blocks, batch norm, a global mean and a linear layer."""

    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        a, b, c = (int(channels * width) for channels in (16, 32, 64))
        self.stem = nn.Conv2d(3, a, 3, padding=1, bias=False)
        stages = _stages(PreActBlock, a, b, c)
        self.body = nn.Sequential(*stages, nn.BatchNorm2d(c), GlobalMean(), nn.Linear(c, classes))


@architecture
def preact_resnet20(width: float = 5, classes: int = 10) -> nn.Module:
    """Build PreActResNet-20 for 32 x 32 images; the paper's ``width=5`` gives 80, 160 and 320 channels."""
    return PreActResNet(width, classes)


class BasicBlock(nn.Module):
    """Residual block with a ReLU after the sum.

    The shortcut has no parameters: where the shape changes it takes every second pixel, and the new channels are 0.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new = stride, c_out - c_in
        self.conv1, self.relu1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), InputReLU(inplace=True)
        self.conv2, self.relu2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.ReLU(inplace=True)
        self.bn1, self.bn2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c_in, height, width) -> (batch, c_out, height / stride, width / stride)."""
        h = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new)) if self.new else x
        return self.relu2(h + shortcut)


class ResNet(StemAndBody):
    """A convolution, batch norm, ReLU, three stages of basic blocks, a global mean and a linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.body = nn.Sequential(*_stages(BasicBlock, 16, 32, 64), GlobalMean(), nn.Linear(64, classes))


@architecture
def resnet20(classes: int = 10) -> nn.Module:
    """Build ResNet-20 for 32 x 32 images (He et al., CVPR 2016, section 4.2), with identity shortcuts (option A)."""
    return ResNet(classes)


@architecture
def mobilenet_v2(classes: int = 10) -> nn.Module:
    """Build torchvision's MobileNetV2 for 32 x 32 images: its first two layers with stride 2 have stride 1."""
    from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2

    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1]]
    stages += [[6, 160, 3, 2], [6, 320, 1, 1]]  # each: expansion, channels, blocks, stride
    model = torchvision_mobilenet_v2(num_classes=classes, inverted_residual_setting=stages)
    first = model.features[0][0]
    assert isinstance(first, nn.Conv2d)
    first.stride = (1, 1)
    return model


class Fourier(nn.Module):
    """Turn coordinates into waves, with which a network learns fine detail (Tancik et al., NeurIPS 2020).

    The frequencies, waves across the picture, are drawn from a normal distribution of deviation ``scale``, always the
    same ones, and saved with the network. They do not learn.
    """

    def __init__(self, pairs: int, scale: float) -> None:
        super().__init__()
        drawn = torch.randn(2, pairs, generator=torch.Generator().manual_seed(0))
        self.register_buffer("frequencies", scale * drawn)

    def forward(self, x: Tensor) -> Tensor:
        """Compute sines and cosines of coordinates from -1 to 1: (batch, 2) -> (batch, 2 pairs)."""
        angles = torch.pi * x @ self.get_buffer("frequencies")  # (batch, pairs)
        return torch.cat([angles.sin(), angles.cos()], 1)


def _dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), InputReLU(inplace=True))


class CoordinateNet(StemAndBody):
    """Fourier features and four linear layers, the first three with batch norm and ReLU."""

    def __init__(self, width: int, pairs: int, scale: float, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(Fourier(pairs, scale), _dense(2 * pairs, width))
        self.body = nn.Sequential(_dense(width, width), _dense(width, width), nn.Linear(width, outputs))


@architecture
def coordinate_net(width: int = 128, pairs: int = 32, scale: float = 6.0, outputs: int = 3) -> nn.Module:
    """Build a network from coordinates, (batch, 2), to values, (batch, outputs), such as the colours of a picture."""
    return CoordinateNet(width, pairs, scale, outputs)


def channels_last(model: nn.Module) -> nn.Module:
    """Store the weights in channels-last order, which makes these networks 1.3 to 1.7 times faster on a CPU.

    The order is one of four dimensions, so the weights of three-dimensional convolutions stay as they are.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model
