"""Compare a network with what was made of it, layer by layer, before a file is written.

Float arithmetic differs in the last digits between programs, so a value halfway between two levels may be rounded up
by one and down by the other, and such differences grow from layer to layer. Therefore one side records the quantized
input of each layer, and the other side compares its own with it and goes on with the recorded one.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mebqat_lite.bits import FP
from mebqat_lite.switching.state import quantized_layers

CLOSE = 1e-4  # how far apart two values may be, as a share of the largest one
FEW = 0.01  # the share of values that may be farther apart: those halfway between two levels

Inputs = Mapping[str, Sequence[Tensor | None]]  # the quantized inputs of each layer in order; None: not recorded


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, also if its attributes hold tensors that it computed with gradients, which deepcopy refuses."""
    held = [leaf for module in model.modules() for leaf in tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor.detach() for tensor in held if not tensor.is_leaf})


class DisagreementError(RuntimeError):
    """What was made of a network does not compute what the network computes."""


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, list[Tensor | None]]]:
    """Yield a dictionary that receives the quantized input of each layer that runs inside the block."""
    found: dict[str, list[Tensor | None]] = {}

    def see(name: str, x: Tensor) -> Tensor:
        found.setdefault(name, []).append(x)
        return x

    with _between(model, see):
        yield found


@contextlib.contextmanager
def compared(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Compare the quantized input of each layer that runs inside the block with a recorded one, and go on with that.

    Raises:
        DisagreementError: an input is another one, or none was recorded for a run of a layer.
    """
    left = {name: list(values) for name, values in inputs.items()}

    def take(name: str, x: Tensor) -> Tensor:
        if not left.get(name):
            raise DisagreementError(
                f"the layer {name} runs more often in the network than in what was made of it: nothing was written"
            )
        value = left[name].pop(0)
        if value is None:
            return x
        check_close(f"the quantized input of {name}", x, value)
        return value

    with _between(model, take):
        yield


@contextlib.contextmanager
def _between(model: nn.Module, see: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Let ``see`` have, and replace, each layer's input after it was quantized; layers at FP are left alone."""
    layers = {name: layer for name, layer in quantized_layers(model).items() if layer.bits != FP}

    def run(name: str, input: Tensor) -> Tensor:
        layer = layers[name]
        x = see(name, layer.shared_input(input, layer.bits.a, layer))
        return layer.apply_weight(x, layer.quantized_weight(layer.bits.w))

    try:
        for name, layer in layers.items():
            layer.forward = functools.partial(run, name)  # type: ignore[method-assign]
        with torch.no_grad():
            yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)


def check_close(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Raise a DisagreementError if two tensors differ by more than float arithmetic explains."""
    apart = (ours - theirs).abs() if ours.shape == theirs.shape else torch.full_like(ours, torch.inf)
    is_close = apart <= CLOSE * ours.abs().max()  # False for NaN
    if int((~is_close).sum()) > max(1, FEW * len(is_close.flatten())):
        raise DisagreementError(
            f"{what} differs by up to {apart.max():.2g} from that of the network: nothing was written"
        )
