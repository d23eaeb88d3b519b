"""What a quantizer is, and the registry of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from mebqat_lite.bits import FULL, WIDTHS

Params = Mapping[str, Tensor] | nn.ParameterDict


@dataclass
class Site:
    """What a quantizer may know of the layer it serves; measured by one sample pass and stored with a model."""

    name: str
    role: str = "body"  # "body", "first" or "last" as executed, or "kept" by name
    signed: bool = False  # did the layer's input go below zero?
    mean_abs: float = 0.0  # mean |x| of that input
    leader: str = ""  # the layer that quantizes this layer's input; itself, unless several layers share one


class Quantizer:
    """Base of all quantizers. Override `weight` and `activation` (or only one, if the other is never asked for),
    and `parameters` where something is learned.
    """

    one_bit = False  # is one bit defined?
    signed_inputs = False  # can it quantize activations below zero? If not, they stay full precision
    clips_at_zero = False  # does it quantize an unsigned activation as if a ReLU went before? Saves that ReLU
    edge_bits = FULL  # bits of the first and the last layer's weights
    step_lr = 1.0  # learning rate of what it learns, over that of the weights
    float_weights = True  # are 32-bit weights the layer's own? Else `weight` is asked for them too
    predicts_only = False  # is it of a network without float weights, read from a file of integers?

    def check(self, bits: int) -> None:
        """Raise a ValueError for bits that the quantizer does not define."""
        if bits == 1 and not self.one_bit:
            raise ValueError(f"{self} defines no 1-bit values; its lowest is 2 bits")

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Initial values of what the layer learns, by name; ``x`` is a sample of its input (None: not measured)."""
        return {}

    def learns(self, name: str) -> bool:
        """Whether training moves the parameter of that name."""
        return True

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Fake-quantized weights, same shape as ``w``; ``bits`` is below 32, or 32 too without `float_weights`."""
        raise NotImplementedError(f"{type(self).__name__} must define weight()")

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Fake-quantized activations, same shape as ``x``; ``bits`` is below 32."""
        raise NotImplementedError(f"{type(self).__name__} must define activation()")

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """Step and zero of the weights' integers, for files.

        `weight` is exactly (code - zero) step, with codes 0 .. 2^bits - 1; the step is a scalar, or (out, 1, ...).
        """
        raise ValueError(f"{self} does not say what its integers mean: define weight_grid() to write it to a file")

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Step, lowest and highest code of the activations: `activation` is step clip(round(x / step), low, high)."""
        raise ValueError(f"{self} does not say what its integers mean: define activation_grid() to write it to a file")

    def __str__(self) -> str:
        """The registered name, for messages."""
        return next((name for name, known in QUANTIZERS.items() if known is self), repr(self))

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in sorted(vars(self).items()))
        return f"{type(self).__name__}({options})"


def check_listed(quantizer: Quantizer, bits: int) -> None:
    """Raise a ValueError for bits that are none of the candidates'."""
    if bits not in WIDTHS:
        raise ValueError(f"{quantizer} has no step for {bits} bits; it has steps for 2 to 8 and 16")


QUANTIZERS: dict[str, Quantizer] = {}


def register(name: str, quantizer: Quantizer) -> Quantizer:
    """Make ``quantizer`` known by ``name``, for `quantize`, recipes and checkpoints."""
    QUANTIZERS[name] = quantizer
    return quantizer


def get(name: str | Quantizer) -> tuple[str, Quantizer]:
    """The registered name and the quantizer; a name that is not known is a ValueError that lists those known."""
    if isinstance(name, str):
        if name not in QUANTIZERS:
            raise ValueError(f"no quantizer {name!r}; known: {', '.join(QUANTIZERS)}")
        return name, QUANTIZERS[name]
    for known, quantizer in QUANTIZERS.items():
        if quantizer is name:
            return known, name
    raise ValueError(f"{name!r} is not registered; call mebqat_lite.quantizers.register(name, it) first")
