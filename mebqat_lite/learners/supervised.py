"""Supervised learning at several bitwidths: labels, and a teacher for the quantized pairs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mebqat_lite.bits import FP, Pair, height
from mebqat_lite.learners.base import cross_entropies
from mebqat_lite.switching.state import at, has_norm_sets, has_stem, setting_of

TEACHERS = ("labels", "fp", "next", "start")


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


def _shared_stem(model: nn.Module, images: Tensor, count: int) -> tuple[Tensor | None, nn.Module, Tensor]:
    """Run a full-precision stem once for all ``count`` pairs, and cut the graph behind it.

    Returns the stem's output / count, the rest of the network, and its input, whose ``grad`` sums over the pairs:
    going backward through the first with that sum gives the stem the mean gradient of the pairs, once.
    """
    if not has_stem(model):
        return None, model, images
    out = model.stem(images)  # type: ignore[operator]
    return out / count, model.body, out.detach().requires_grad_()  # type: ignore[return-value]
