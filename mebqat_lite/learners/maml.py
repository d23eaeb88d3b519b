"""FOMAML: a learner that adapts the weights to new classes with a few steps of SGD."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import FP, Pair, height
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.learners.adapting import call_with, refuse_unmeasured, run_adapted, support_stats
from mebqat_lite.learners.base import Predictor
from mebqat_lite.learners.objectives import cross_entropies
from mebqat_lite.quantizers import TINY
from mebqat_lite.switching.state import MapOrBits, at, norm_layers, setting_of
from mebqat_lite.tensors import evaluating


class FOMAML:
    """First-order MAML (Finn et al., 2017): adapt the weights on the support set, then learn from the query set.

    The inner loop is theta_0 = theta, theta_i+1 = theta_i - inner_lr dCE(f_wa(support; theta_i))/dtheta_i. The
    gradient of the query loss at the adapted weights updates theta (MEBQAT-MAML, ECCV 2022, algorithm 2). Each pair
    adapts its own copy of the weights and of its quantizer steps. The gain and shift of batch norm do not adapt.

    Args:
        inner_steps: SGD steps of the inner loop in training.
        inner_lr: the learning rate of the inner loop.
        second_order: whether to differentiate through the inner loop, as MAML does; at full precision only.
        teacher: ``labels`` (the paper) or ``fp``: then quantized pairs also learn from the query logits of the same
            weights, adapted at full precision.
        test_steps: SGD steps in `adapt`; 0 means ``inner_steps``.

    Raises:
        ValueError: the teacher is unknown.
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
        """Do nothing, because this learner needs no preparation."""

    def losses(self, model: nn.Module, task: Episode, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield ``(bits, query loss)`` for each pair, with weights that were adapted at that pair.

        Raises:
            ValueError: a second-order gradient is asked for at a quantized pair, or the classifier does not have as
                many outputs as the episode has classes.
        """
        setting_of(model).track_running = False  # batch norm uses the episode's own statistics
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
        """Return the weights by name after ``steps`` of SGD on ``support``, (N, K, channels, height, width).

        First order: the adapted weights are theta minus constants, so the gradient of a loss with respect to theta
        is its gradient at the adapted weights. With ``second_order`` the subtracted gradients depend on theta, too.
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
                if grad is not None  # quantizer steps of other bitwidths have none
            }
        return fast

    def _teach(self, model: nn.Module, task: Episode) -> Tensor:
        """Compute the class probabilities of the query, (N Q, N), after adapting at full precision."""
        with at(model, FP):
            fast = self.inner_loop(model, task.support, self.inner_steps)
            with torch.no_grad():
                return call_with(model, fast, task.query.flatten(0, 1)).softmax(1)

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Adapt to the classes of ``support``, (N, K, channels, height, width), at ``bits``; the model does not change.

        Returns a function from images, (batch, channels, height, width), to logits, (batch, N). The inner loop uses
        the norm policy ``norm_stats``; for ``support`` this is the statistics of the batch, which is the support set.

        Raises:
            ValueError: the policy is ``running``, but nothing measured these statistics, as after training by MAML.
        """
        refuse_unmeasured(model, norm_stats)
        known = support.flatten(0, 1)
        inner = "batch" if norm_stats == "support" else norm_stats
        with torch.enable_grad(), evaluating(model), at(model, bits, inner):
            fast = {n: p.detach() for n, p in self.inner_loop(model, support, self.test_steps).items()}
        stats = support_stats(model, known, bits, fast) if norm_stats == "support" else {}
        return functools.partial(run_adapted, model, bits=bits, norm_stats=norm_stats, stats=stats, weights=fast)


def adaptable(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that the inner loop adapts: all trained ones except the gain and shift of batch norm."""
    fixed = {f"{name}." for name in norm_layers(model)}
    found = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return {n: p for n, p in found if not any(n.startswith(prefix) for prefix in fixed)}


def updated(name: str, value: Tensor, grad: Tensor, lr: float) -> Tensor:
    """Do one step of SGD on the parameter ``name``; learned quantizer steps stay positive."""
    new = torch.sub(value, grad, alpha=lr)
    return new.clamp_min(TINY) if ".quant." in name else new
