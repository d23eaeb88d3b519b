"""LSQ as the MEBQAT authors' public code has it, so that a lesson can show what the difference costs.

Two things differ from `lsq`. One step serves all bitwidths, and in the few-shot code no optimizer holds the steps of
the activations. Each is here by itself, and both together are ``lsq_authors``.
"""

from __future__ import annotations

from torch import Tensor

from mebqat_lite.quantizers.base import Params, Quantizer, Site, register
from mebqat_lite.quantizers.lsq import LSQ


class SharedLSQ(LSQ):
    """One step serves all bitwidths. It starts as the step of two bits, so that at first all weights are two-bit ones.

    Activations clip at 2^b instead of 2^b - 1, five levels at two bits, and the gradient's scale counts the batch.
    """

    widths = (2,)  # the one step is stored under the name of the two-bit one

    def check(self, bits: int) -> None:
        """Refuse one bit only: the one step serves every other width."""
        Quantizer.check(self, bits)

    def step(self, kind: str, bits: int, params: Params) -> Tensor:
        """The one step of the weights (``w``) or of the activations (``a``), a scalar."""
        return params[f"{kind}2"]

    def features(self, x: Tensor) -> int:
        """N for activations, (batch, ...): the values of the whole batch."""
        return x.numel()

    def highest(self, bits: int, site: Site) -> int:
        """The highest code of an activation, one more than there are bits for."""
        return super().highest(bits, site) + 1


class UntrainedLSQ(LSQ):
    """The steps of the activations stay as they started."""

    def learns(self, name: str) -> bool:
        """Only the steps of the weights are trained."""
        return name.startswith("w")


class AuthorsLSQ(UntrainedLSQ, SharedLSQ):
    """Both: one step for all bitwidths, and that of the activations never trained."""


register("lsq_shared", SharedLSQ())
register("lsq_untrained", UntrainedLSQ())
register("lsq_authors", AuthorsLSQ())
