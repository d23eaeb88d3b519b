"""Bitwidths: a pair of weight and activation bits, the candidate pairs, and the samplers that choose them.

A *sampler* is the first half of a method. For one training step it yields one list of pairs per task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
