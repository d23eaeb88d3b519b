"""Bitwidths: a pair of weight and activation bits, the candidate pairs, and the samplers that choose them.

A *sampler* is the first half of a method. For one training step it yields one list of pairs per task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
FULL = 32  # bits of a float: 32 means "not quantized"


@dataclass(frozen=True, order=True)
class Bits:
    """Bits of the weights ``w`` and of the activations ``a``, each 1 to 32, where 32 is full precision."""

    w: int
    a: int

    def __post_init__(self) -> None:
        for kind, value in (("weight", self.w), ("activation", self.a)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= FULL:
                raise ValueError(
                    f"{kind} bits must be a whole number from 1 to 32, not {value!r}; write W2A4, (2, 4) or FP"
                )

    @classmethod
    def parse(cls, text: BitsLike) -> Bits:
        """Read ``"W2A4"``, ``"w2a4"``, ``"FP"``, ``(2, 4)`` or a `Bits`; anything else is a ValueError."""
        if isinstance(text, Bits):
            return text
        if isinstance(text, (tuple, list)) and len(text) == 2:
            return cls(*text)
        if isinstance(text, str):
            if text.strip().upper() == "FP":
                return FP
            if match := re.fullmatch(r"\s*[wW](\d+)[aA](\d+)\s*", text):
                return cls(int(match[1]), int(match[2]))
        raise ValueError(f"{text!r} is no bitwidth pair; write W2A4, (2, 4) or FP")

    @property
    def is_candidate(self) -> bool:
        """Whether the pair is one that the paper trains and measures (ECCV 2022, section 4.1)."""
        if self.w not in WIDTHS or self.a not in WIDTHS:
            return False
        if self.w == FULL:
            return self.a == FULL
        return self.a in (1, FULL) if self.w == 1 else self.a != 1

    def __str__(self) -> str:
        return "FP" if (self.w, self.a) == (FULL, FULL) else f"W{self.w}A{self.a}"


BitsLike = Bits | str | Sequence[int]
FP = Bits(FULL, FULL)
Pair = Bits | dict[str, Bits]  # for the whole network, or a pair per layer


def height(pair: Pair) -> tuple[float, float]:
    """What a step is ordered by, highest first: the mean bits of weights and of activations."""
    layers = [pair] if isinstance(pair, Bits) else list(pair.values())
    return sum(b.w for b in layers) / len(layers), sum(b.a for b in layers) / len(layers)


def candidates(one_bit: bool = True) -> list[Bits]:
    """All 75 candidate pairs in rising order, or the 73 without 1 bit (for a quantizer that has none)."""
    pairs = [Bits(w, a) for w in WIDTHS for a in WIDTHS]
    return [b for b in pairs if b.is_candidate and (one_bit or 1 not in (b.w, b.a))]


def parse_all(pairs: str | Iterable[BitsLike]) -> list[Bits]:
    """Read several pairs: a comma-separated string (``"W2A2,W4A4,FP"``) or anything that holds pairs."""
    if isinstance(pairs, str):
        pairs = [part for part in pairs.split(",") if part.strip()]
    parsed = [Bits.parse(pair) for pair in pairs]
    if not parsed:
        raise ValueError("no bitwidth pair given; write for example W2A2,W4A4,FP")
    return parsed


def nearest(width: int, widths: Iterable[int]) -> int:
    """The member of ``widths`` nearest to ``width`` on a logarithmic scale; of two, the wider."""
    return min(widths, key=lambda other: (_octaves(width, other), -other))


def nearest_pair(pair: Bits, pairs: Iterable[Bits]) -> Bits:
    """The member of ``pairs`` nearest to ``pair`` on a logarithmic scale, weights and activations alike; of two, the
    one with the wider weights.
    """
    return min(pairs, key=lambda b: (round(_octaves(pair.w, b.w) + _octaves(pair.a, b.a), 9), -b.w, -b.a))


def _octaves(width: int, other: int) -> float:
    """How many doublings lie between two widths; rounded, so that equal distances are equal."""
    return round(abs(math.log2(other / width)), 9)


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
