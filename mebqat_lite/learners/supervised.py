"""Supervised learning at several bitwidths, with labels and with a teacher for the quantized pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FP, Pair, height
from mebqat_lite.learners.objectives import objective
from mebqat_lite.switching.state import at, has_norm_sets, setting_of
from mebqat_lite.switching.stem import has_stem
from mebqat_lite.tensors import logits_of

Body = Callable[[Tensor], Tensor]
TEACHERS = ("labels", "fp", "next", "start")


class Supervised:
    """Learn from the labels and, at quantized pairs, also from a teacher.

    loss(w, a) = CE(f_wa(x), y) + CE(f_wa(x), softmax(teacher(x))) (MEBQAT, ECCV 2022, section 3.2). For labels that are
    values it is ``|f_wa(x) - y|^2 + |f_wa(x) - teacher(x)|^2`` (`objectives.Values`). No gradient reaches the teacher.
    FP learns from the labels only.

    Args:
        teacher: who teaches the quantized pairs.
            ``fp``: the same weights at full precision. This suits methods that train FP in every step.
            ``next``: the next higher pair of the same step (the recursive supervision of Any-Precision); the highest
            pair has no teacher.
            ``start``: the network as it was before training. This suits runs that never train FP but start from a
            trained FP network.
            ``labels``: no teacher.
        alone: whether the teacher replaces the labels, as in Any-Precision.

    Raises:
        ValueError: the teacher is unknown.
    """

    def __init__(self, teacher: str = "fp", alone: bool = False) -> None:
        if teacher not in TEACHERS:
            raise ValueError(f"no teacher {teacher!r}; choose one of {', '.join(TEACHERS)}")
        self.teacher, self.alone = teacher, alone
        self.frozen: nn.Module | None = None

    def begin(self, model: nn.Module) -> None:
        """Copy the network if the teacher is ``start``."""
        if self.teacher == "start":
            self.frozen = copy.deepcopy(model).eval()

    def read(self, task: Any) -> tuple[Tensor, Tensor]:
        """Return the images of a task, (batch, channels, height, width), and the labels of its logits."""
        return task

    def score(self, out: Tensor, task: Any) -> Tensor:
        """Compute the logits, (batch, classes), from the output of the network; here they are the output itself."""
        return out

    def losses(self, model: nn.Module, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield ``(bits, loss)`` for each pair, the highest bits first; ``task`` is a batch of images and labels."""
        images, labels = self.read(task)
        pairs = sorted(pairs, key=height, reverse=True)
        setting, apart = setting_of(model), has_norm_sets(model)
        stem, body, features = _shared_stem(model, images)
        goal = objective(labels)
        taught: Tensor | None = None  # the output of the teacher, (batch, outputs)
        try:
            for index, bits in enumerate(pairs):
                if taught is None and bits != FP:
                    taught = self._teach(model, body, task, features)
                setting.track_running = index == 0 or apart  # only the highest updates statistics that all share
                with at(model, bits):
                    logits = logits_of(self.score(body(features), task))
                yield bits, goal.loss(logits, labels, None if bits == FP else taught, self.alone)
                if self.teacher == "next" or (self.teacher == "fp" and bits == FP):
                    taught = logits.detach()
        finally:
            setting.track_running = True
        if stem is not None and stem.requires_grad:
            # The stem's parameters get the mean gradient of the pairs.
            stem.backward(features.grad.div_(len(pairs)))  # type: ignore[union-attr]

    def _teach(self, model: nn.Module, body: Body, task: Any, features: Tensor) -> Tensor | None:
        """Compute the output of the teacher ``fp`` or ``start``, (batch, outputs); None for the others."""
        if self.teacher in ("labels", "next"):
            return None
        setting_of(model).track_running = False
        with torch.no_grad():
            if self.frozen is not None:
                with at(self.frozen, FP, "batch"):
                    return self.score(self.frozen(self.read(task)[0].clone()), task)
            with at(model, FP):
                return self.score(body(features.detach().clone()), task)


def _shared_stem(model: nn.Module, images: Tensor) -> tuple[Tensor | None, Body, Tensor]:
    """Run the full-precision stem once for all pairs of a step, because it is the same for all of them.

    Returns ``(stem, body, features)``. The pairs run ``body`` on ``features``, the output ``stem`` without its graph,
    and their backward passes add up their gradients in ``features.grad``. Afterwards one backward pass through
    ``stem`` serves all pairs.

    For a model that has no such stem, ``stem`` is None, ``body`` runs the model and ``features`` are the images.
    """
    if not has_stem(model):
        return None, lambda x: model(x.clone()), images  # a network may begin with an operation in place
    out, body = model.stem(images.clone()), model.body  # type: ignore[operator]
    first = next(module for module in body.modules() if not list(module.children()))  # type: ignore[union-attr]
    copied = getattr(first, "inplace", False)  # in place it would overwrite what the other pairs read
    return out, (lambda x: body(x.clone())) if copied else body, out.detach().requires_grad_()  # type: ignore[return-value,operator]
