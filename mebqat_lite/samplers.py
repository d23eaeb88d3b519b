"""Samplers: which pairs a training step visits. A sampler is the first half of a method.

For one training step it yields one list of pairs per task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mebqat_lite.bits import Bits, BitsLike, Pair, parse_all


class Listed:
    """The same pairs in every step: one pair is dedicated QAT (`FP` alone: float training), several AdaBits."""

    def __init__(self, pairs: str | Iterable[BitsLike], tasks: int = 1) -> None:
        self.pairs, self.tasks = parse_all(pairs), tasks

    def draw(self) -> list[list[Pair]]:
        """The pairs of one step: ``tasks`` lists of ``len(pairs)`` pairs."""
        return [list(self.pairs) for _ in range(self.tasks)]

    def state_dict(self) -> dict[str, Any]:
        """A listed sampler has no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Sampled:
    """``m`` pairs a task: first the guaranteed ones, the rest uniform over ``pool`` (MEBQAT, algorithm 1).

    The draws are independent and seeded. Their state is a small dictionary that JSON can hold. With ``layers``, the
    names of the quantized layers, each free draw is a pair of its own for every layer.
    """

    def __init__(
        self,
        pool: Sequence[Bits],
        m: int = 4,
        guaranteed: Sequence[Bits] = (),
        tasks: int = 1,
        seed: int = 0,
        layers: Sequence[str] = (),
    ) -> None:
        if len(guaranteed) > m:
            raise ValueError(f"{len(guaranteed)} guaranteed pairs do not fit in m = {m} pairs a task")
        if not pool:
            raise ValueError("the pool of a sampler must hold at least one pair")
        self.pool, self.m, self.guaranteed, self.tasks = list(pool), m, list(guaranteed), tasks
        self.rng, self.layers = np.random.default_rng(seed), list(layers)

    def draw(self) -> list[list[Pair]]:
        """The pairs of one step: ``tasks`` lists of ``m`` pairs."""
        shape = (self.tasks, self.m - len(self.guaranteed), len(self.layers) or 1)
        picks = self.rng.integers(len(self.pool), size=shape)  # (tasks, free, layers)
        return [[*self.guaranteed, *(self._pair(row) for row in task)] for task in picks]

    def _pair(self, row: Sequence[int]) -> Pair:
        pairs = [self.pool[i] for i in row]
        return dict(zip(self.layers, pairs, strict=True)) if self.layers else pairs[0]

    def state_dict(self) -> dict[str, Any]:
        """Where the generator stands, as JSON."""
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken."""
        self.rng.bit_generator.state = state


class Dealt(Sampled):
    """One pair a task: the ``m`` pairs of a step are dealt out to ``m`` tasks (MEBQAT-MAML, ECCV 2022, algorithm 2)."""

    def draw(self) -> list[list[Pair]]:
        """The pairs of one step: ``m`` lists of one pair."""
        return [[pair] for pair in super().draw()[0]]
