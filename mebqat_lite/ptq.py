"""Post-training quantization: steps chosen from trained weights and calibration images, nothing trained."""

from __future__ import annotations

import torch
from torch import Tensor

from mebqat_lite.bits import FULL, WIDTHS
from mebqat_lite.quantizers import TINY, Params, Quantizer, Site, integer_range, register

SAMPLES = 20_000  # activations that the search looks at


def fake_quantize(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """step clip(round(x / step), low, high), without a gradient."""
    return x.div(step).round_().clamp_(low, high).mul_(step)


def mse_step(x: Tensor, low: int, high: int, tries: int = 100) -> Tensor:
    """The step of least squared error for each row of ``x``, (rows, values); returns (rows, 1).

    It is searched among ``tries`` fractions of the step that would clip nothing.
    """
    peak = torch.maximum(x.amax(1, keepdim=True) / max(high, 1), x.amin(1, keepdim=True) / min(low, -1))
    best_step, best_error = peak.clamp_min(TINY), torch.full_like(peak, torch.inf)
    for fraction in torch.linspace(1, 1 / tries, tries):
        step = (peak * fraction).clamp_min(TINY)
        error = (fake_quantize(x, step, low, high) - x).square().mean(1, keepdim=True)
        better = error < best_error
        best_step, best_error = torch.where(better, step, best_step), torch.where(better, error, best_error)
    return best_step


class LeastSquares(Quantizer):
    """Uniform quantizer whose steps minimize the squared error: per output channel, and per layer input.

    One bit: sign(w) mean|w| of the channel, activations {0, s}. Its steps are chosen once and never trained.
    """

    one_bit = True
    signed_inputs = True
    learns = False

    def parameters(self, w: Tensor, x: Tensor | None, site: Site) -> dict[str, Tensor]:
        """Steps ``w<bits>``, (out, 1, ...), and ``a<bits>``, scalar, for every bitwidth."""
        if site.role != "body":
            return {}
        rows = w.detach().flatten(1)  # (out, in * height * width)
        shape = (-1, *[1] * (w.dim() - 1))
        sample = torch.ones(1, 1) if x is None else _subsample(x)
        steps = {}
        for bits in [b for b in WIDTHS if b < FULL]:
            by_mean = bits == 1 or x is None
            w_step = rows.abs().mean(1) if by_mean else mse_step(rows, *integer_range(bits, True))
            steps[f"w{bits}"] = w_step.reshape(shape)
            steps[f"a{bits}"] = mse_step(sample, *integer_range(bits, site.signed)).reshape(()).to(w)
        return steps

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Per-channel s clip(round(w / s), -2^(b-1), 2^(b-1) - 1)."""
        if bits == 1:
            return torch.copysign(params["w1"], w + 0.0)
        return fake_quantize(w, params[f"w{bits}"], *integer_range(bits, signed=True))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """s clip(round(x / s), 0, 2^b - 1), signed if the layer's input is."""
        return fake_quantize(x, params[f"a{bits}"], *integer_range(bits, site.signed))


def _subsample(x: Tensor) -> Tensor:
    """At most SAMPLES values of ``x``, evenly spaced, as (1, values)."""
    flat = x.detach().float().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][None]


register("least_squares", LeastSquares())
