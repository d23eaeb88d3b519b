"""Quantizers: pairs of fake-quantization functions, for weights and for activations, with their gradients.

The functions are pure. A `Quantizer` joins two of them and says which learnable numbers (steps, clips) a layer
needs; `register` puts it in the one registry. Rounding has no useful derivative, so each function brings its own
backward pass, the straight-through estimator: one fused pass forward, one backward, nothing twice
differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mebqat_lite.bits import FULL, WIDTHS, nearest

Params = Mapping[str, Tensor] | nn.ParameterDict
TINY = 1e-8  # steps and clips never fall below it


# --- the pure functions ----------------------------------------------------------------------------------------


def q_b(u: Tensor, bits: int) -> Tensor:
    """Round ``u`` in [0, 1] to the nearest of 2^bits levels k / (2^bits - 1). No gradient of its own."""
    levels = 2**bits - 1
    return u.mul(levels).round_().div_(levels)


def codes(v: Tensor, bits: int, form: str) -> Tensor:
    """The codes 0 .. 2^bits - 1, still floats, of ``v`` in [0, 1]; the levels that they mean: `unit_grid`.

    ``round``: round((2^b - 1) v) (DoReFa). ``floor`` and ``centred``: min(floor(2^b v), 2^b - 1) (AdaBits).
    """
    if form == "round":
        return v.mul(2**bits - 1).round_()
    return v.mul(2**bits).floor_().clamp_(max=2**bits - 1)


def unit_grid(bits: int, form: str) -> tuple[float, float]:
    """Step and zero of 2^bits levels of [-1, 1]: a code means (code - zero) step.

    ``round``: 2 q_b - 1, the zero is a half-integer. ``floor``: 2 code / 2^b - 1; ``centred``: half a step more.
    """
    if form == "round":
        return 2 / (2**bits - 1), (2**bits - 1) / 2
    return 2 / 2**bits, 2 ** (bits - 1) - (0.5 if form == "centred" else 0.0)


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """sum(a b) of two tensors of one shape, without the products in between where both lie in memory alike."""
    dense = a.is_contiguous() or a.is_contiguous(memory_format=torch.channels_last)
    if not dense or a.stride() != b.stride():
        return (a * b).sum()
    flat = (a.numel(),), (1,)  # in memory order
    return torch.dot(a.as_strided(*flat), b.as_strided(*flat))


class _TanhWeight(Function):
    """scale step (code((u + 1) / 2) - zero), u = tanh(w) / max|tanh(w)|: gradient through tanh and the maximum."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, scale: Tensor, bits: int, form: str) -> Tensor:
        t = w.tanh()
        peak = t.abs().amax()
        peak += peak == 0  # all-zero weights stay finite
        ctx.save_for_backward(t, peak, scale)
        v = t.div(peak * 2).add_(0.5).clamp_(0, 1)  # (u + 1) / 2; the clamp guards the last float digit
        step, zero = unit_grid(bits, form)
        return codes(v, bits, form).sub_(zero).mul_(scale * step)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        t, peak, scale = ctx.saved_tensors
        grad_t = grad * (scale / peak)  # d out / dt at a constant maximum
        grad_peak = inner_product(grad_t, t) / peak  # minus d out / d peak, which is spread over the maxima
        sign = t.div(peak).trunc_()  # of the maxima; 0 elsewhere
        grad_t -= sign * (grad_peak / sign.abs().sum().clamp_min_(1))
        return torch.ops.aten.tanh_backward(grad_t, t), None, None, None


class _Sign(Function):
    """sign(w) mean|w| with the identity as gradient; the sign of zero is plus."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return torch.copysign(w.abs().mean(), w + 0.0)  # + 0.0 turns -0.0 into 0.0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _UnitClip(Function):
    """q_b(clip(x, 0, 1)); the gradient passes inside (0, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(x)
        levels = 2**bits - 1
        return x.clamp(0, 1).mul_(levels).round_().div_(levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(grad, x, 0.0, 1.0), None


class _StepClip(Function):
    """step clip(round(x / step), low, high).

    d out / dx is 1 inside the clip, else 0. d out / dstep is low or high outside and round(x / step) - x / step
    inside (LSQ, equation 3); with ``inside=False`` 0 inside (PACT). It is multiplied by ``grad_scale``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, grad_scale: float, inside: bool) -> Tensor:
        out = x.div(step).clamp_(low, high).round_().mul_(step)
        ctx.save_for_backward(x, step, out)
        ctx.low, ctx.high, ctx.grad_scale, ctx.inside = low, high, grad_scale, inside
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, out = ctx.saved_tensors
        size = float(step)
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, ctx.low * size, ctx.high * size)
        # Everywhere out / step is the code; inside, where grad_x is grad, the code loses x / step (or itself).
        lost = inner_product(grad_x, x if ctx.inside else out)
        grad_step = (inner_product(grad, out) - lost) * (ctx.grad_scale / size)
        return grad_x, grad_step.reshape(step.shape), None, None, None, None


def tanh_weight(w: Tensor, bits: int, scale: Tensor | float = 1.0, form: str = "round") -> Tensor:
    """Weights squashed by tanh, normalised by their maximum and rounded to 2^bits levels of [-scale, scale].

    DoReFa (Zhou et al., 2016, equation 9) with ``form="round"``, AdaBits (Jin et al., 2020) with ``"floor"``
    or ``"centred"``. ``scale`` is a constant to the gradient.
    """
    return _TanhWeight.apply(w, torch.as_tensor(scale, dtype=w.dtype, device=w.device), bits, form)


def sign_weight(w: Tensor) -> Tensor:
    """One-bit weights: sign(w) mean|w|, where the sign is never 0; the gradient is the identity."""
    return _Sign.apply(w)


def unit_activation(x: Tensor, bits: int) -> Tensor:
    """DoReFa activations: q_b(clip(x, 0, 1)), straight-through inside (0, 1)."""
    return _UnitClip.apply(x, bits)


def step_clip(x: Tensor, step: Tensor, low: int, high: int, grad_scale: float = 1.0, inside: bool = True) -> Tensor:
    """step clip(round(x / step), low, high) with a learnable scalar ``step`` (LSQ, Esser et al., 2020, eq. 1-3).

    ``inside=False`` drops the gradient of the step inside the clip, which is PACT's.
    """
    return _StepClip.apply(x, step, low, high, grad_scale, inside)


def pact_activation(x: Tensor, alpha: Tensor, bits: int, sat: bool = True) -> Tensor:
    """alpha q_b(clip(x / alpha, 0, 1)): a learnable clip is a learnable step alpha / (2^bits - 1).

    d / dalpha is 1 where x >= alpha; inside it is q_b(x / alpha) - x / alpha (SAT) or 0 (plain PACT).
    """
    levels = 2**bits - 1
    return step_clip(x, alpha / levels, 0, levels, inside=sat)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code of a ``bits``-bit integer: -2^(b-1) .. 2^(b-1) - 1, or 0 .. 2^b - 1."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


# --- the quantizers --------------------------------------------------------------------------------------------


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


class DoReFa(Quantizer):
    """DoReFa in Any-Precision's scaled form: tanh weights times mean|w|, activations in [0, 1].

    ``fp_tanh=True`` keeps tanh and scale at full precision too, as Any-Precision does (`FP_tanh`); by default FP is
    the float model. The two are different networks: weights trained as one are not good as the other.
    """

    one_bit = True
    clips_at_zero = True

    def __init__(self, fp_tanh: bool = False) -> None:
        self.float_weights = not fp_tanh

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """mean|w| (2 q_b((u + 1) / 2) - 1); at one bit sign(w) mean|w|; at 32 bits mean|w| u."""
        if bits == 1:
            return sign_weight(w)
        scale = w.detach().abs().mean()
        if bits < FULL:
            return tanh_weight(w, bits, scale)
        t = w.tanh()
        return t * (scale / t.abs().max().clamp_min(TINY))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """q_b(clip(x, 0, 1))."""
        return unit_activation(x, bits)

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """Odd multiples of mean|w| / (2^b - 1): the zero is a half-integer."""
        step, zero = unit_grid(bits, "round")
        return w.detach().abs().mean() * step, zero

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Multiples of 1 / (2^b - 1)."""
        levels = 2**bits - 1
        return torch.tensor(1 / levels, dtype=torch.float64), 0, levels


class SAT(Quantizer):
    """Scale-adjusted training (AdaBits): floor or centred weights, PACT activations with a learned clip.

    ``gradient="pact"`` takes plain PACT's gradient of the clip. First and last layers keep 8-bit weights. One clip
    serves all bitwidths, unless `convert.give_clips` gave some their own (AdaBits' switchable clip).
    """

    edge_bits = 8
    clips_at_zero = True

    def __init__(self, form: str = "floor", gradient: str = "sat") -> None:
        if form not in ("floor", "centred") or gradient not in ("sat", "pact"):
            raise ValueError(f"sat has form floor or centred and gradient sat or pact, not {form}, {gradient}")
        self.form, self.gradient = form, gradient

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """One clip alpha = 8 for each layer whose input is quantized."""
        return {} if site.role != "body" or site.signed else {"alpha": w.new_tensor(8.0)}

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Levels of [-1, 1]; the last linear layer is rescaled to standard deviation 1 / sqrt(out_features)."""
        out = tanh_weight(w, bits, form=self.form)
        return out * self._rescaling(out) if site.role == "last" and w.dim() == 2 else out

    @staticmethod
    def _rescaling(out: Tensor) -> Tensor:
        """1 / (sqrt(out_features) std) of weights (out_features, in_features), a constant to the gradient."""
        spread = out.detach().std()
        return 1 / (math.sqrt(out.shape[0]) * (spread + (spread == 0)))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """alpha q_b(clip(x / alpha, 0, 1)); where bitwidths have clips of their own, that of the nearest."""
        return pact_activation(x, self._clip(bits, params), bits, sat=self.gradient == "sat")

    @staticmethod
    def _clip(bits: int, params: Params) -> Tensor:
        widths = [int(name[5:]) for name in params if name[5:]]  # alpha2, alpha4, ...
        return params[f"alpha{nearest(bits, widths)}" if widths else "alpha"]

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """Multiples of 2 / 2^b, a power of two, so that a rescaled step is exact too."""
        step, zero = unit_grid(bits, self.form)
        if site.role == "last" and w.dim() == 2:
            return self._rescaling(tanh_weight(w, bits, form=self.form)).detach() * step, zero
        return w.new_tensor(step), zero

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Multiples of alpha / (2^b - 1)."""
        levels = 2**bits - 1
        return self._clip(bits, params).detach() / levels, 0, levels


class LSQ(Quantizer):
    """Learned step size. One step per bitwidth, for weights and for activations.

    ``shared=True`` is the MEBQAT authors' form, kept for comparison: one step serves all bitwidths (it starts as
    the two-bit one), activations clip at 2^b instead of 2^b - 1, and the batch counts in the gradient's scale.
    With ``untrained=True`` the steps of activations stay as they started: in the authors' few-shot code no optimizer
    holds them.
    """

    signed_inputs = True
    clips_at_zero = True
    step_lr = 0.01  # steps are that much smaller than weights, and Adam moves all numbers alike

    def __init__(self, shared: bool = False, untrained: bool = False) -> None:
        self.shared, self.untrained = shared, untrained

    def learns(self, name: str) -> bool:
        """All steps, unless those of activations stay as they started."""
        return not (self.untrained and name.startswith("a"))

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """2 mean|.| / sqrt(p) for the weights and, where inputs are quantized, for the activations."""
        if site.role != "body":
            return {}
        steps = {}
        for bits in (2,) if self.shared else [b for b in WIDTHS if 1 < b < FULL]:
            p_w, p_a = integer_range(bits, True)[1], integer_range(bits, site.signed)[1]
            steps[f"w{bits}"] = 2 * w.detach().abs().mean() / math.sqrt(p_w)
            steps[f"a{bits}"] = w.new_tensor(2 * site.mean_abs / math.sqrt(p_a))
        return {name: step.clamp_min(TINY) for name, step in steps.items()}

    def check(self, bits: int) -> None:
        """Bits without a step of their own are refused."""
        super().check(bits)
        if not self.shared:
            check_listed(self, bits)

    def _step(self, kind: str, bits: int, params: Params) -> Tensor:
        return params[f"{kind}{2 if self.shared else bits}"]

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """s clip(round(w / s), -2^(b-1), 2^(b-1) - 1), gradient scale 1 / sqrt(N p) with N weights."""
        low, high = integer_range(bits, signed=True)
        return step_clip(w, self._step("w", bits, params), low, high, 1 / math.sqrt(w.numel() * high))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """s clip(round(x / s), 0, 2^b - 1), signed if the input is; N counts the features of one sample."""
        low, high = integer_range(bits, site.signed)
        count = x.numel() if self.shared else x[0].numel()
        grad_scale = 1 / math.sqrt(count * high)
        return step_clip(x, self._step("a", bits, params), low, high + self.shared, grad_scale)

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """Multiples of the learned step, two's complement."""
        return self._step("w", bits, params).detach(), float(2 ** (bits - 1))

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Multiples of the learned step."""
        low, high = integer_range(bits, site.signed)
        return self._step("a", bits, params).detach(), low, high + self.shared


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


register("dorefa", DoReFa())
register("dorefa_fp_tanh", DoReFa(fp_tanh=True))
register("sat", SAT())
register("sat_centred", SAT("centred"))
register("sat_pact", SAT(gradient="pact"))
register("lsq", LSQ())
register("lsq_shared", LSQ(shared=True))
register("lsq_untrained", LSQ(untrained=True))
register("lsq_authors", LSQ(shared=True, untrained=True))
