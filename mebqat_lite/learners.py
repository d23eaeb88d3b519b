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
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.norms import lent_stats, take_stats
from mebqat_lite.state import MapOrBits, at, has_norm_sets, has_stem, setting_of
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
                yield bits, cross_entropies(logits, labels, None if bits == FP else soft, self.alone)
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
        known, run = support.flatten(0, 1), functools.partial(run_adapted, model, bits=bits, norm_stats=norm_stats)
        stats = support_stats(model, known, bits) if norm_stats == "support" else {}
        if norm_stats == "batch":
            both = Episode(support, support)
            return lambda images: self.score(run(torch.cat([known, images])), both)
        prototypes = run(known, stats=stats).unflatten(0, (ways, shots)).mean(1)  # (N, features)
        return lambda images: prototype_logits(run(images, stats=stats), prototypes)


def call_with(model: nn.Module, weights: dict[str, Tensor], images: Tensor) -> Tensor:
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


def run_adapted(
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
        return call_with(model, weights or {}, images)


def support_stats(
    model: nn.Module, images: Tensor, bits: MapOrBits, weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The norm statistics of the support, (N K, channels, height, width), at ``bits``."""
    run_adapted(model, images, bits=bits, norm_stats="measure", weights=weights)
    return take_stats(model)


def cross_entropies(logits: Tensor, labels: Tensor, soft: Tensor | None, alone: bool = False) -> Tensor:
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
