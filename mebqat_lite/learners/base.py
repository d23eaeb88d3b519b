"""What a learner is: how a task is learned. The second half of a method.

A learner has ``losses(model, task, pairs)``, which yields ``(bits, loss)``, highest bits first, and after the last
pair finishes what the pairs shared. The training loop calls ``backward`` on each loss as it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from mebqat_lite.bits import Pair

Predictor = Callable[[Tensor], Tensor]  # images, (batch, channels, height, width) -> logits, (batch, N)


class Learner(Protocol):
    """What the training loop needs of a learner."""

    frozen: nn.Module | None  # a network that the learner keeps; it travels with a training checkpoint

    def begin(self, model: nn.Module) -> None:
        """Called once before the first step of a run."""
        ...

    def losses(self, model: nn.Module, task: Any, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Tensor]]:
        """Yield the loss of each pair, highest bits first, for a batch or an episode."""
        ...


def cross_entropies(logits: Tensor, labels: Tensor, soft: Tensor | None, alone: bool = False) -> Tensor:
    """Cross-entropy with the labels, plus that with a teacher's probabilities, or that ``alone``."""
    if soft is None:
        return F.cross_entropy(logits, labels)
    imitation = F.cross_entropy(logits, soft)
    return imitation if alone else F.cross_entropy(logits, labels) + imitation
