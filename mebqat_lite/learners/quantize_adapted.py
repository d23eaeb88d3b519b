"""FOMAML that adapts at full precision and quantizes the adapted weights."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FP
from mebqat_lite.learners.adapting import put_weights, refuse_unmeasured, run_adapted, support_stats
from mebqat_lite.learners.base import Predictor
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.switching.convert import requantize
from mebqat_lite.switching.norms import stored_stats
from mebqat_lite.switching.state import MapOrBits, at
from mebqat_lite.tensors import evaluating


class QuantizeAdapted(FOMAML):
    """FOMAML that adapts at full precision, and then quantizes with the steps of least squared error.

    The steps are chosen for the adapted weights and for the layers' inputs on the support set.
    """

    kept: tuple[Tensor, nn.Module, list[int], nn.Module] | None = None  # the last adaptation, for the next bitwidth

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Adapt a copy of the model to the classes of ``support``, (N, K, channels, height, width), and quantize it.

        Returns a function from images, (batch, channels, height, width), to logits, (batch, N), at ``bits``.

        Raises:
            ValueError: as in `FOMAML.adapt`.
        """
        refuse_unmeasured(model, norm_stats)
        known = support.flatten(0, 1)
        copied = self._quantized(model, support)
        stats = support_stats(copied, known, bits) if norm_stats == "support" else stored_stats(model)
        return functools.partial(run_adapted, copied, bits=bits, norm_stats=norm_stats, stats=stats)

    def _quantized(self, model: nn.Module, support: Tensor) -> nn.Module:
        """Return a copy of the model with adapted weights and new steps for them; it serves all bitwidths."""
        versions = [p._version for p in model.parameters()]
        if self.kept is not None:
            last, of, then, copied = self.kept
            if last is support and of is model and then == versions:
                return copied
        copied = copy.deepcopy(model)
        with torch.enable_grad(), evaluating(copied), at(copied, FP, "batch"):
            fast = self.inner_loop(copied, support, self.test_steps)
        put_weights(copied, fast)
        requantize(copied.train(), "least_squares", support.flatten(0, 1))  # in training mode: batch statistics
        self.kept = support, model, versions, copied
        return copied
