"""What the training loop expects of a learner.

A learner's ``losses(model, task, pairs)`` yields ``(bits, loss)``, the highest bits first. The training loop calls
``backward`` on each loss before it asks for the next one. After the last pair the learner goes backward through what
the pairs shared, the stem of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

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
