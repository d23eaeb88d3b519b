"""FOMAML: a learner that adapts the weights to new classes by some steps of SGD."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import FP, Pair, height
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.learners.adapting import call_with, run_adapted, support_stats
from mebqat_lite.learners.base import Predictor, cross_entropies
from mebqat_lite.quantizers import TINY
from mebqat_lite.switching.state import MapOrBits, at, norm_layers, setting_of
from mebqat_lite.tensors import evaluating


class FOMAML:
    """First-order MAML (Finn et al., 2017): some steps of SGD on the support, then a loss on the query.

    theta_0 = theta, theta_i+1 = theta_i - inner_lr dCE(f_wa(support; theta_i))/dtheta_i; the gradient of the query
    loss at the adapted weights updates theta (MEBQAT-MAML, ECCV 2022, algorithm 2). Each pair adapts by itself, with
    its own quantizer steps; gain and shift of batch norm do not adapt.

    Args:
        inner_steps: of SGD while training.
        inner_lr: their learning rate.
        second_order: differentiate through the inner steps, as MAML does. At full precision only.
        teacher: ``labels`` (the paper) or ``fp``: quantized pairs also imitate the query logits of the same weights
            adapted at full precision.
        test_steps: of SGD in `adapt`; by default ``inner_steps``.
    """

    frozen: nn.Module | None = None

    def __init__(
        self,
        inner_steps: int = 5,
        inner_lr: float = 0.1,
        second_order: bool = False,
        teacher: str = "labels",
        test_steps: int = 0,
    ) -> None:
        if teacher not in ("labels", "fp"):
            raise ValueError(f"FOMAML has no teacher {teacher!r}; choose labels or fp")
        self.inner_steps, self.inner_lr, self.second_order, self.teacher = inner_steps, inner_lr, second_order, teacher
        self.test_steps = test_steps or inner_steps

    def begin(self, model: nn.Module) -> None:
        """Nothing to keep."""

    def losses(self, model: nn.Module, task: Episode, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield ``(bits, query loss)`` of the weights that each pair adapts for itself."""
        setting_of(model).track_running = False  # statistics are the episode's
        query = task.query.flatten(0, 1)  # (N Q, channels, height, width)
        try:
            for bits in sorted(pairs, key=height, reverse=True):
                if self.second_order and bits != FP:
                    raise ValueError(f"{bits} has no second order: rounding has no second derivative; first order has")
                soft = self._teach(model, task) if self.teacher == "fp" and bits != FP else None
                with at(model, bits):
                    fast = self.inner_loop(model, task.support, self.inner_steps)
                    logits = call_with(model, fast, query)  # (N Q, N)
                yield bits, cross_entropies(logits, task.labels, soft)
        finally:
            setting_of(model).track_running = True

    def inner_loop(self, model: nn.Module, support: Tensor, steps: int) -> dict[str, Tensor]:
        """The weights after ``steps`` of SGD on ``support``, (N, K, ...), by name.

        They are theta minus constants, so that a loss of theirs gives theta the gradient at the adapted weights: first
        order. With ``second_order`` the subtracted gradients are no constants.
        """
        images, labels = support.flatten(0, 1), Episode(support, support).labels
        fast: dict[str, Tensor] = adaptable(model)
        for _ in range(steps):
            logits = call_with(model, fast, images)
            if logits.shape[1] != len(support):
                raise ValueError(
                    f"{len(support)} ways need a classifier of as many outputs, this has {logits.shape[1]}"
                )
            grads = torch.autograd.grad(
                F.cross_entropy(logits, labels), list(fast.values()), create_graph=self.second_order, allow_unused=True
            )
            fast = {
                name: updated(name, value, grad, self.inner_lr)
                for (name, value), grad in zip(fast.items(), grads, strict=True)
                if grad is not None  # the steps of other bitwidths
            }
        return fast

    def _teach(self, model: nn.Module, task: Episode) -> Tensor:
        """Class probabilities of the query, (N Q, N), after adapting at full precision."""
        with at(model, FP):
            fast = self.inner_loop(model, task.support, self.inner_steps)
            with torch.no_grad():
                return call_with(model, fast, task.query.flatten(0, 1)).softmax(1)

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Learn the classes of ``support``, (N, K, channels, height, width), at ``bits``: weights of its own.

        Under ``recalibrated`` statistics the inner steps use them too; otherwise those of the support.
        """
        known = support.flatten(0, 1)
        inner = "batch" if norm_stats == "support" else norm_stats
        with torch.enable_grad(), evaluating(model), at(model, bits, inner):
            fast = {n: p.detach() for n, p in self.inner_loop(model, support, self.test_steps).items()}
        stats = support_stats(model, known, bits, fast) if norm_stats == "support" else {}
        return functools.partial(run_adapted, model, bits=bits, norm_stats=norm_stats, stats=stats, weights=fast)


def adaptable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that an inner loop moves: all that learn but gain and shift of batch norms."""
    fixed = {f"{name}." for name in norm_layers(model)}
    found = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return {n: p for n, p in found if not any(n.startswith(prefix) for prefix in fixed)}


def updated(name: str, value: Tensor, grad: Tensor, lr: float) -> Tensor:
    """A step of SGD; learned quantizer steps stay positive."""
    new = torch.sub(value, grad, alpha=lr)
    return new.clamp_min(TINY) if ".quant." in name else new
