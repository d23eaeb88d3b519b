"""Post-training quantization: steps chosen from trained weights and calibration images, nothing trained."""

from __future__ import annotations

import torch
from torch import Tensor

from mebqat_lite.bits import FULL, WIDTHS
from mebqat_lite.quantizers import TINY, Params, Quantizer, Site, check_listed, integer_range, register

SAMPLES = 20_000  # activations that the search looks at


def fake_quantize(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """step clip(round(x / step), low, high), without a gradient."""
    return x.div(step).round_().clamp_(low, high).mul_(step)


def mse_step(x: Tensor, low: int, high: int, tries: int = 50) -> Tensor:
    """The step of least squared error for each row of ``x``, (rows, values); returns (rows, 1).

    It is searched among fractions of the step that clips nothing: ``tries`` coarse ones, then as many between the
    neighbours of the best.
    """
    most = torch.maximum(x.amax(1, keepdim=True) / max(high, 1), x.amin(1, keepdim=True) / min(low, -1))
    coarse = torch.linspace(1 / tries, 1, tries).to(x)
    best = _best_fraction(x, most, coarse.expand(len(x), tries), low, high)  # (rows, 1)
    fine = best + torch.linspace(-1, 1, tries).to(x) / tries  # (rows, tries)
    best = _best_fraction(x, most, fine.clamp_min(0.1 / tries), low, high)
    return (most * best).clamp_min(TINY)


def _best_fraction(x: Tensor, most: Tensor, fractions: Tensor, low: int, high: int) -> Tensor:
    """Among ``fractions``, (rows, tries), those whose multiples of ``most``, (rows, 1), lose least: (rows, 1)."""
    errors = [
        (fake_quantize(x, (most * fraction[:, None]).clamp_min(TINY), low, high) - x).square().mean(1)
        for fraction in fractions.unbind(1)
    ]
    return fractions.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))


class LeastSquares(Quantizer):
    """Uniform quantizer whose steps minimize the squared error: per output channel, and per layer input.

    One bit: sign(w) mean|w| of the channel, activations {0, s}. Its steps are chosen once and never trained.
    """

    one_bit = True
    signed_inputs = True
    clips_at_zero = True

    def learns(self, name: str) -> bool:
        """No: the steps are chosen once."""
        return False

    def check(self, bits: int) -> None:
        """Bits without a step of their own are refused."""
        check_listed(self, bits)

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
            steps[f"a{bits}"] = mse_step(sample, *_input_range(bits, site)).reshape(()).to(w)
        return steps

    def weight(self, w: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """Per-channel s clip(round(w / s), -2^(b-1), 2^(b-1) - 1)."""
        if bits == 1:
            return torch.copysign(params["w1"], w + 0.0)
        return fake_quantize(w, params[f"w{bits}"], *integer_range(bits, signed=True))

    def activation(self, x: Tensor, bits: int, params: Params, site: Site) -> Tensor:
        """s clip(round(x / s), 0, 2^b - 1), signed if the layer's input is and there are two bits."""
        return fake_quantize(x, params[f"a{bits}"], *_input_range(bits, site))

    def weight_grid(self, w: Tensor, bits: int, params: Params, site: Site) -> tuple[Tensor, float]:
        """Multiples of each channel's step; at one bit minus and plus that step."""
        step = params[f"w{bits}"].detach()
        return (2 * step, 0.5) if bits == 1 else (step, float(2 ** (bits - 1)))

    def activation_grid(self, bits: int, params: Params, site: Site) -> tuple[Tensor, int, int]:
        """Multiples of the step."""
        return params[f"a{bits}"].detach(), *_input_range(bits, site)


def _input_range(bits: int, site: Site) -> tuple[int, int]:
    """The codes of a layer's input; one bit is {0, 1} even where the input is signed."""
    return integer_range(bits, site.signed and bits > 1)


def _subsample(x: Tensor) -> Tensor:
    """At most SAMPLES values of ``x``, chosen at random with a fixed seed, as (1, values)."""
    flat = x.detach().float().flatten()
    chosen = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(0))[:SAMPLES]
    return flat[chosen.to(flat.device)][None]


register("least_squares", LeastSquares())
