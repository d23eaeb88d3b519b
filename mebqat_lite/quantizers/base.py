"""The base class of quantizers, what they know of a layer, and the registry of all quantizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mebqat_lite.bits import FULL, Bits, candidates

Params = Mapping[str, Tensor] | nn.ParameterDict
NESTED = 8  # bits of the codes from which a nested file cuts all others


@dataclass
class Site:
    """What a quantizer may know about the layer that it quantizes.

    `quantize` measures it on a sample, and it is saved with the model.
    """

    name: str
    role: str = "body"  # "body" switches its bits; "first" and "last" (as executed) and "kept" (by name) do not
    signed: bool = False  # whether the layer's input had negative values
    mean_abs: float = 0.0  # mean |x| over the layer's input x
    leader: str = ""  # the layer that quantizes this input: itself, or the first of several that read one tensor
    normed: bool = True  # whether a norm follows the layer, which forgets the scale of its weights


class Quantizer:
    """The base class of all quantizers.

    A subclass overrides `weight` and `activation`, and `parameters` if it learns something. The attributes below say
    what it can do.
    """

    one_bit = False  # whether one bit is defined
    weight_widths: Sequence[int] = range(1, FULL + 1)  # numbers of bits that weights may have; 1 needs `one_bit` too
    activation_widths: Sequence[int] = range(1, FULL + 1)  # the same for activations
    signed_inputs = False  # whether it quantizes negative activations; if not, signed inputs stay full precision
    clips_at_zero = False  # whether unsigned activations are clipped at 0, so that a ReLU before is not needed
    edge_bits = FULL  # weight bits of the first and the last layer, except at FP
    starts_at = ""  # a pair at which the sample runs a second time, so that steps start from quantized inputs
    step_lr = 1.0  # learning rate of its learned values, as a multiple of that of the weights
    float_weights = True  # whether 32 bits mean the layer's own weights; if not, `weight` computes those too
    leaves_weights = False  # set it for a quantizer without a gradient for the weights, which `fit` would refuse
    predicts_only = False  # whether it belongs to a packed network, which has integers and no float weights

    def check(self, bits: Bits) -> None:
        """Raise a ValueError if the quantizer does not define the bits of this pair."""
        if 1 in (bits.w, bits.a) and not self.one_bit:
            raise ValueError(f"{self} defines no 1-bit values; its lowest is 2 bits")
        w, a = [*self.weight_widths], [*self.activation_widths]
        if bits.w not in w or bits.a not in a:
            raise ValueError(f"{self} does not define {bits}: its weights have {w} bits, its activations {a}")

    def pairs(self) -> list[Bits]:
        """List the candidate pairs that the quantizer defines, in rising order."""
        return [b for b in candidates(self.one_bit) if b.w in self.weight_widths and b.a in self.activation_widths]

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Return the start values of what the layer learns, by name.

        w: the weights, (out, in, ...); x: a sample of the layer's input, (batch, channels, ...), or None if it was not
        measured. The values come back in ``params`` of the other methods.
        """
        return {}

    def learns(self, name: str) -> bool:
        """Whether the parameter ``name`` of `parameters` is trained."""
        return True

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Fake-quantize the weights ``w``, (out, in, ...), to the same shape.

        ``bits`` is below 32, unless `float_weights` is False.
        """
        raise NotImplementedError(f"{type(self).__name__} must define weight()")

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Fake-quantize the layer's input ``x``, (batch, channels, ...), to the same shape; ``bits`` is below 32."""
        raise NotImplementedError(f"{type(self).__name__} must define activation()")

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float | Tensor]:
        """Return the step and the zero of the weights' integers, which files of integers need.

        `weight` must be exactly (code - zero) step with codes 0, ..., 2^bits - 1. The step is a scalar tensor, or
        (out, 1, ...) with one step per output channel. The zero is a number, or also (out, 1, ...).

        Raises:
            ValueError: the quantizer does not define it.
        """
        raise ValueError(f"{self} does not say what its integers mean: define weight_grid() to write it to a file")

    def cut(self, codes: Tensor, bits: int) -> Tensor:
        """Return the codes of ``bits`` bits that belong to 8-bit ``codes``, where codes nest: here the upper bits."""
        return codes >> (NESTED - bits)

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Return the step, a scalar tensor, and the lowest and highest code of the activations.

        `activation` must be step clip(round(x / step), lowest, highest).

        Raises:
            ValueError: the quantizer does not define it.
        """
        raise ValueError(f"{self} does not say what its integers mean: define activation_grid() to write it to a file")

    def __str__(self) -> str:
        """Return the registered name, for messages."""
        return next((name for name, known in QUANTIZERS.items() if known is self), repr(self))

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in sorted(vars(self).items()))
        return f"{type(self).__name__}({options})"


QUANTIZERS: dict[str, Quantizer] = {}


def register(name: str, quantizer: Quantizer) -> Quantizer:
    """Register ``quantizer`` under ``name``, by which `quantize`, recipes and checkpoints find it."""
    QUANTIZERS[name] = quantizer
    return quantizer


def get(name: str | Quantizer) -> tuple[str, Quantizer]:
    """Find a registered quantizer, and return its name and the quantizer itself.

    Raises:
        ValueError: it is not registered; for an unknown name the message lists the known ones.
    """
    if isinstance(name, str):
        if name not in QUANTIZERS:
            raise ValueError(f"no quantizer {name!r}; known: {', '.join(QUANTIZERS)}")
        return name, QUANTIZERS[name]
    for known, quantizer in QUANTIZERS.items():
        if quantizer is name:
            return known, name
    raise ValueError(f"{name!r} is not registered; call mebqat_lite.quantizers.register(name, it) first")
