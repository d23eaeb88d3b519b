"""LSQ as in the public code of the MEBQAT authors, so that a lesson can show what the differences cost.

Their code differs from `lsq` in two ways: all bitwidths share one step (``lsq_shared``), and in few-shot learning the
steps of the activations are never trained (``lsq_untrained``). ``lsq_authors`` has both.
"""

from __future__ import annotations

from torch import Tensor

from mebqat_lite.bits import FULL
from mebqat_lite.quantizers.base import Params, Site, register
from mebqat_lite.quantizers.lsq import LSQ


class SharedLSQ(LSQ):
    """LSQ with one step for all bitwidths, which starts as the step for two bits.

    More details follow the authors' code: the highest code of an unsigned activation is 2^b instead of 2^b - 1, which
    makes five levels at two bits; the start of a step and the scale of its gradient have that code for p; the scale
    counts the values of the whole batch; and each step of an activation is measured while the layers before compute at
    two bits. Left out is the 1e-6 that they add to a step before they divide by it.
    """

    widths = (2,)  # the shared steps are named ``w2`` and ``a2``, and serve all bits from 2 on
    weight_widths = activation_widths = tuple(range(2, FULL + 1))
    starts_at = "W2A2"

    def step(self, kind: str, bits: int, params: Params) -> Tensor:
        """Return the shared step, a scalar, of the weights (``kind="w"``) or of the activations (``kind="a"``)."""
        return params[f"{kind}2"]

    def features(self, x: Tensor) -> int:
        """Return the number of values of the whole batch ``x``, (batch, ...)."""
        return x.numel()

    def highest(self, bits: int, site: Site) -> int:
        """Return the highest code of an activation: 2^b, or 2^(b-1) - 1 if the input is signed."""
        return super().highest(bits, site) + (not site.signed)


class UntrainedLSQ(LSQ):
    """LSQ whose activation steps keep their start values."""

    def learns(self, name: str) -> bool:
        """Whether ``name`` is a step of the weights: only these are trained."""
        return name.startswith("w")


class AuthorsLSQ(UntrainedLSQ, SharedLSQ):
    """LSQ with one step for all bitwidths, where the step of the activations is never trained."""


register("lsq_shared", SharedLSQ())
register("lsq_untrained", UntrainedLSQ())
register("lsq_authors", AuthorsLSQ())
