"""What the training loop expects of a learner.

A learner's ``losses(model, task, pairs)`` yields ``(bits, loss)``, the highest bits first. The training loop calls
``backward`` on each loss before it asks for the next one. After the last pair the learner goes backward through what
the pairs shared, the stem of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import Pair

Predictor = Callable[[Tensor], Tensor]  # images, (batch, channels, height, width) -> logits, (batch, N)


class Learner(Protocol):
    """The methods and attributes that the training loop needs."""

    frozen: nn.Module | None  # a teacher that does not change; it is saved in training checkpoints

    def begin(self, model: nn.Module) -> None:
        """Prepare a run; it is called once, before the first step."""
        ...

    def losses(self, model: nn.Module, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield ``(bits, loss)`` for each pair, the highest bits first; ``task`` is a batch or an episode."""
        ...


def cross_entropies(logits: Tensor, labels: Tensor, soft: Tensor | None, alone: bool = False) -> Tensor:
    """Add the cross-entropies with the labels and with a teacher's class probabilities (ECCV 2022, section 3.2).

    logits: (batch, classes); labels: (batch,); soft: the teacher's probabilities, (batch, classes), or None if only
    the labels teach. With ``alone`` only the teacher teaches. Returns a scalar, the mean over the batch.
    """
    if soft is None:
        return F.cross_entropy(logits, labels)
    imitation = F.cross_entropy(logits, soft)
    return imitation if alone else F.cross_entropy(logits, labels) + imitation
