"""Learners: how a task is learned. The second half of a method.

A learner has ``losses(model, task, pairs)``, which yields ``(bits, loss)``, highest bits first, and after the last
pair finishes what the pairs shared. The training loop calls ``backward`` on each loss as it comes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mebqat_lite.bits import FP, Pair, height
from mebqat_lite.convert import requantize
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.norms import lent_stats, stored_stats, take_stats
from mebqat_lite.quantizers import TINY
from mebqat_lite.state import MapOrBits, at, has_norm_sets, has_stem, norm_layers, setting_of
from mebqat_lite.tensors import evaluating

Predictor = Callable[[Tensor], Tensor]  # images, (batch, channels, height, width) -> logits, (batch, N)
TEACHERS = ("labels", "fp", "next", "start")


class Learner(Protocol):
    """What the training loop needs of a learner."""

    frozen: nn.Module | None  # a network that the learner keeps; it travels with a training checkpoint

    def begin(self, model: nn.Module) -> None:
        """Called once before the first step of a run."""
        ...

    def losses(self, model: nn.Module, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield the loss of each pair, highest bits first, for a batch or an episode."""
        ...


class Supervised:
    """Cross-entropy with the labels; a quantized task also imitates a teacher, without gradient to it.

    loss(w, a) = CE(f_wa(x), y) + CE(f_wa(x), softmax(teacher(x))) (MEBQAT, ECCV 2022, section 3.2). The highest
    pair of a step learns from the labels only, if it is FP or has no teacher.

    teacher: ``fp``, the weights of the moment at full precision, which is right where every step trains FP too;
    ``next``, the next higher pair that the step visits (Any-Precision's recursive supervision); ``start``, the
    network as it was when training began, for a run that never trains FP but starts from a trained FP network;
    ``labels``, none. With ``alone`` the teacher replaces the labels, as in Any-Precision.
    """

    def __init__(self, teacher: str = "fp", alone: bool = False) -> None:
        if teacher not in TEACHERS:
            raise ValueError(f"no teacher {teacher!r}; choose one of {', '.join(TEACHERS)}")
        self.teacher, self.alone = teacher, alone
        self.frozen: nn.Module | None = None

    def begin(self, model: nn.Module) -> None:
        """Keep a copy of the network if it is to teach the run."""
        if self.teacher == "start":
            self.frozen = copy.deepcopy(model).eval()

    def read(self, task: Any) -> tuple[Tensor, Tensor]:
        """The images that go through the network, (batch, channels, height, width), and the labels of the logits."""
        return task

    def score(self, out: Tensor, task: Any) -> Tensor:
        """Logits, (batch, classes), from what the network made of the images."""
        return out

    def losses(self, model: nn.Module, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield ``(bits, loss)`` for a batch of images and labels."""
        images, labels = self.read(task)
        pairs = sorted(pairs, key=height, reverse=True)
        setting, apart = setting_of(model), has_norm_sets(model)
        stem, body, features = _shared_stem(model, images, len(pairs))
        soft: Tensor | None = None  # the teacher's class probabilities, (batch, classes)
        try:
            for index, bits in enumerate(pairs):
                if soft is None and bits != FP:
                    soft = self._teach(model, body, task, features)
                setting.track_running = index == 0 or apart  # shared statistics are those of the highest pair
                with at(model, bits):
                    logits = self.score(body(features), task)  # (batch, classes)
                yield bits, _cross_entropies(logits, labels, None if bits == FP else soft, self.alone)
                if self.teacher == "next" or (self.teacher == "fp" and bits == FP):
                    soft = logits.detach().softmax(1)
        finally:
            setting.track_running = True
        if stem is not None and stem.requires_grad:
            stem.backward(features.grad)

    def _teach(self, model: nn.Module, body: nn.Module, task: Any, features: Tensor) -> Tensor | None:
        """Class probabilities of the teacher, (batch, classes); with ``fp``, where the step does not visit FP."""
        if self.teacher in ("labels", "next"):
            return None
        setting_of(model).track_running = False
        with torch.no_grad():
            if self.frozen is not None:
                with at(self.frozen, FP, "batch"):
                    return self.score(self.frozen(self.read(task)[0]), task).softmax(1)
            with at(model, FP):
                return self.score(body(features.detach()), task).softmax(1)


class ProtoNet(Supervised):
    """Prototypical networks (Snell et al., 2017): the network is an embedding, a class the mean of its support.

    logits(x) = -|f_wa(x) - c_n|^2, c_n = mean_k f_wa(x_nk). MEBQAT-PN (ECCV 2022, algorithm 3) learns one episode at
    several pairs; the teacher is the paper's labels or, beyond it, the query logits of a higher pair (`methods`).
    """

    def read(self, task: Episode) -> tuple[Tensor, Tensor]:
        """Support and query in one batch, (N K + N Q, channels, height, width), and the labels of the query."""
        return torch.cat([task.support.flatten(0, 1), task.query.flatten(0, 1)]), task.labels

    def score(self, out: Tensor, task: Episode) -> Tensor:
        """Logits of the query, (N Q, N), from the embeddings of support and query, (N K + N Q, features)."""
        ways, shots = task.support.shape[:2]
        support, query = out[: ways * shots], out[ways * shots :]
        return prototype_logits(query, support.unflatten(0, (ways, shots)).mean(1))

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Learn the classes of ``support``, (N, K, channels, height, width), at ``bits``: their prototypes.

        Under ``batch`` statistics prototypes are made again with each batch of queries, which then depend on one
        another (the paper's transductive evaluation).
        """
        ways, shots = support.shape[:2]
        known, run = support.flatten(0, 1), functools.partial(_run, model, bits=bits, norm_stats=norm_stats)
        stats = _support_stats(model, known, bits) if norm_stats == "support" else {}
        if norm_stats == "batch":
            both = Episode(support, support)
            return lambda images: self.score(run(torch.cat([known, images])), both)
        prototypes = run(known, stats=stats).unflatten(0, (ways, shots)).mean(1)  # (N, features)
        return lambda images: prototype_logits(run(images, stats=stats), prototypes)


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
                    logits = _call(model, fast, query)  # (N Q, N)
                yield bits, _cross_entropies(logits, task.labels, soft)
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
            logits = _call(model, fast, images)
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
                return _call(model, fast, task.query.flatten(0, 1)).softmax(1)

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Learn the classes of ``support``, (N, K, channels, height, width), at ``bits``: weights of its own.

        Under ``recalibrated`` statistics the inner steps use them too; otherwise those of the support.
        """
        known = support.flatten(0, 1)
        inner = "batch" if norm_stats == "support" else norm_stats
        with torch.enable_grad(), evaluating(model), at(model, bits, inner):
            fast = {n: p.detach() for n, p in self.inner_loop(model, support, self.test_steps).items()}
        stats = _support_stats(model, known, bits, fast) if norm_stats == "support" else {}
        return functools.partial(_run, model, bits=bits, norm_stats=norm_stats, stats=stats, weights=fast)


class QuantizeAdapted(FOMAML):
    """FOMAML at full precision; what it adapted is then quantized, with steps of least squared error on the support."""

    kept: tuple[Tensor, nn.Module, list[int], nn.Module] | None = None  # what was adapted last, for the next bitwidth

    def adapt(self, model: nn.Module, support: Tensor, bits: MapOrBits, norm_stats: str = "support") -> Predictor:
        """Adapt a copy to the classes of ``support``, (N, K, ...), and quantize it to ``bits``."""
        known = support.flatten(0, 1)
        copied = self._quantized(model, support)
        stats = _support_stats(copied, known, bits) if norm_stats == "support" else stored_stats(model)
        return functools.partial(_run, copied, bits=bits, norm_stats=norm_stats, stats=stats)

    def _quantized(self, model: nn.Module, support: Tensor) -> nn.Module:
        """A copy of the network with weights adapted at full precision and new steps; for all bitwidths the same."""
        versions = [p._version for p in model.parameters()]
        if self.kept is not None:
            last, of, then, copied = self.kept
            if last is support and of is model and then == versions:
                return copied
        copied = copy.deepcopy(model)
        with torch.enable_grad(), evaluating(copied), at(copied, FP, "batch"):
            fast = self.inner_loop(copied, support, self.test_steps)
        copied.load_state_dict({n: p.detach() for n, p in fast.items()}, strict=False)
        requantize(copied.train(), "least_squares", support.flatten(0, 1))  # on statistics of this batch
        self.kept = support, model, versions, copied
        return copied


def adaptable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that an inner loop moves: all that learn but gain and shift of batch norms."""
    fixed = {f"{name}." for name in norm_layers(model)}
    found = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return {n: p for n, p in found if not any(n.startswith(prefix) for prefix in fixed)}


def updated(name: str, value: Tensor, grad: Tensor, lr: float) -> Tensor:
    """A step of SGD; learned quantizer steps stay positive."""
    new = torch.sub(value, grad, alpha=lr)
    return new.clamp_min(TINY) if ".quant." in name else new


def _call(model: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """``model`` with other ``weights``. The images come channels-last: adapted weights of a first convolution with one
    channel do not show that layout any more, and all layers after it would leave it.
    """
    if images.dim() == 4:
        images = torch.empty_like(images, memory_format=torch.channels_last).copy_(images)
    return functional_call(model, weights, (images,))


def prototype_logits(query: Tensor, prototypes: Tensor) -> Tensor:
    """-|q - c|^2, (queries, N), of ``query`` (queries, features) and ``prototypes`` (N, features)."""
    squares = query.square().sum(1, keepdim=True) + prototypes.square().sum(1)  # (queries, N)
    return 2 * query @ prototypes.T - squares


def _run(
    model: nn.Module,
    images: Tensor,
    *,
    bits: MapOrBits,
    norm_stats: str,
    stats: Mapping[str, Tensor] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> Tensor:
    """``model`` on ``images`` without a gradient, with statistics (``support``) and weights of an adaptation."""
    policy = "recalibrated" if norm_stats == "support" else norm_stats
    with torch.no_grad(), evaluating(model), at(model, bits, policy), lent_stats(model, stats or {}):
        return _call(model, weights or {}, images)


def _support_stats(
    model: nn.Module, images: Tensor, bits: MapOrBits, weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The norm statistics of the support, (N K, channels, height, width), at ``bits``."""
    _run(model, images, bits=bits, norm_stats="measure", weights=weights)
    return take_stats(model)


def _cross_entropies(logits: Tensor, labels: Tensor, soft: Tensor | None, alone: bool = False) -> Tensor:
    """Cross-entropy with the labels, plus that with a teacher's probabilities, or that ``alone``."""
    if soft is None:
        return F.cross_entropy(logits, labels)
    imitation = F.cross_entropy(logits, soft)
    return imitation if alone else F.cross_entropy(logits, labels) + imitation


def _shared_stem(model: nn.Module, images: Tensor, count: int) -> tuple[Tensor | None, nn.Module, Tensor]:
    """Run a full-precision stem once for all ``count`` pairs, and cut the graph behind it.

    Returns the stem's output / count, the rest of the network, and its input, whose ``grad`` sums over the pairs:
    going backward through the first with that sum gives the stem the mean gradient of the pairs, once.
    """
    if not has_stem(model):
        return None, model, images
    out = model.stem(images)  # type: ignore[operator]
    return out / count, model.body, out.detach().requires_grad_()  # type: ignore[return-value]
