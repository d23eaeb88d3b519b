"""Samplers decide which pairs a training step visits.

A sampler is the first half of a method. For each training step it draws one list of pairs per task.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from mebqat_lite.bits import Bits, BitsLike, Pair, parse_all


class Listed:
    """Visit the same listed pairs in every step.

    One pair gives quantization-aware training (QAT) for that pair; `FP` alone gives float training; several pairs
    give AdaBits or Any-Precision.
    """

    def __init__(self, pairs: str | Iterable[BitsLike], tasks: int = 1) -> None:
        self.pairs, self.tasks = parse_all(pairs), tasks

    def draw(self) -> list[list[Pair]]:
        """Return the pairs of one step: ``tasks`` lists of ``len(pairs)`` pairs."""
        return [list(self.pairs) for _ in range(self.tasks)]

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, because the pairs never change."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing, because there is no state to restore."""


class Sampled:
    """Draw ``m`` pairs for each task: first the guaranteed pairs, then random ones (MEBQAT, ECCV 2022, algorithm 1).

    The random pairs are drawn independently and uniformly from ``pool``. If ``layers`` names the quantized layers,
    each random draw takes a separate pair for every layer.

    Raises:
        ValueError: there are more than ``m`` guaranteed pairs, or the pool is empty.
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
            always = " and ".join(map(str, guaranteed))
            raise ValueError(
                f"each step visits {always}: m, with MAML tasks, must be at least {len(guaranteed)}, not {m}"
            )
        if not pool:
            raise ValueError("the pool of a sampler must hold at least one pair")
        self.pool, self.m, self.guaranteed, self.tasks = list(pool), m, list(guaranteed), tasks
        self.rng, self.layers = np.random.default_rng(seed), list(layers)

    def draw(self) -> list[list[Pair]]:
        """Return the pairs of one step: ``tasks`` lists of ``m`` pairs."""
        shape = (self.tasks, self.m - len(self.guaranteed), len(self.layers) or 1)
        picks = self.rng.integers(len(self.pool), size=shape)  # (tasks, random pairs, layers)
        return [[*self.guaranteed, *(self._pair(row) for row in task)] for task in picks]

    def _pair(self, row: Sequence[int]) -> Pair:
        pairs = [self.pool[i] for i in row]
        return dict(zip(self.layers, pairs, strict=True)) if self.layers else pairs[0]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random generator, which JSON can store."""
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the draws exactly from a state that `state_dict` returned."""
        self.rng.bit_generator.state = state


class Dealt(Sampled):
    """Draw ``m`` pairs and give one to each of ``m`` tasks (MEBQAT-MAML, ECCV 2022, algorithm 2)."""

    def draw(self) -> list[list[Pair]]:
        """Return the pairs of one step: ``m`` lists of one pair."""
        return [[pair] for pair in super().draw()[0]]


class InTurn(Sampled):
    """Visit the ``m`` pairs that `Sampled` draws in ``m`` steps, one after the other, instead of in one step.

    The same pairs are visited equally often, with as many back-propagations, but the weights are updated after each.
    Guaranteed pairs and drawn ones alternate. This form of MEBQAT is this package's own, not the paper's.
    """

    def __init__(self, pool: Sequence[Bits], m: int = 4, guaranteed: Sequence[Bits] = (), **options: Any) -> None:
        super().__init__(pool, m, guaranteed, **options)
        self.round: list[Pair] = []  # the pairs of the present round
        self.visited = 0  # how many of them the steps so far have visited
        self.began = super().state_dict()  # the state of the generator before they were drawn

    def draw(self) -> list[list[Pair]]:
        """Return the pairs of one step: a list of one pair."""
        if self.visited == len(self.round):
            self.began, self.visited = super().state_dict(), 0
            [pairs] = super().draw()
            sure, drawn = pairs[: len(self.guaranteed)], pairs[len(self.guaranteed) :]
            self.round = [pair for both in zip_longest(sure, drawn) for pair in both if pair is not None]
        self.visited += 1
        return [[self.round[self.visited - 1]]]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator before the present round, and how many of its pairs were visited."""
        return {"began": self.began, "visited": self.visited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Draw the present round again, and go on after the pairs that were visited."""
        super().load_state_dict(state["began"])
        self.round, self.visited = [], 0
        for _ in range(state["visited"]):
            self.draw()
