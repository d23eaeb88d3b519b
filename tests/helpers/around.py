"""A small network around a part of one's own, with which tests try what a model of a user may be."""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.switching.state import quantized_layers

X = torch.rand(16, 2, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3
PART = Split(X, Y)
DATA = Data("made", PART, PART, PART, ("a", "b", "c"))


class Net(nn.Module):
    """A first layer, a part of one's own from (batch, 4, 6, 6) to the same shape, and a last layer."""

    def __init__(self, middle: nn.Module, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.middle, self.last = nn.Conv2d(2, 4, 3, padding=1), norm(4), middle, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(F.relu(self.norm(self.first(x)))).mean((2, 3)))


class Own(nn.Module):
    """A part with layers of its own and a function for the forward pass."""

    def __init__(self, run: Callable, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(seed: int = 0, **options) -> nn.Conv2d:
    torch.manual_seed(seed)  # so that networks that are built twice are equal, whatever ran before
    return nn.Conv2d(4, 4, 3, padding=1, **options)


def normed(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(4))


def made(middle: nn.Module | None = None, quantizer: str = "lsq", **options) -> nn.Module:
    """A quantized network in evaluation mode; what `quantize` warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return mq.quantize(Net(middle or normed(conv()), **options).eval(), quantizer, sample=X)


def out(model: nn.Module, bits: str, norm_stats: str = "running") -> Tensor:
    with torch.no_grad(), mq.at(model, bits, norm_stats):
        return model(X.clone())


def follows(model: nn.Module, *layers: str) -> None:
    """These layers, and no others, follow the bits: few weights, and another answer."""
    assert [name for name, layer in quantized_layers(model).items() if layer.site.role == "body"] == list(layers)
    for layer in quantized_layers(model).values():
        rows = layer.quantized_weight(2).flatten(1)  # least_squares has a step for each row
        assert all(row.unique().numel() <= 4 for row in rows)
    assert not torch.equal(out(model, "W2A2"), out(model, "FP"))


@contextlib.contextmanager
def fresh_folder() -> Iterator[Path]:
    """An empty folder, which is gone after the block."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
