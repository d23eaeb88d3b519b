"""Bitwidths: a pair of weight bits and activation bits, and the candidate pairs that the paper trains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
FULL = 32  # bits of a float: 32 means "not quantized"


@dataclass(frozen=True, order=True)
class Bits:
    """A bitwidth pair: ``w`` bits for the weights and ``a`` bits for the activations.

    Each is a whole number from 1 to 32, otherwise a ValueError is raised. 32 means full precision.
    """

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
        """Read a pair from ``"W2A4"``, ``"w2a4"``, ``"FP"``, ``(2, 4)`` or a `Bits`.

        >>> mq.Bits.parse("W2A4")
        Bits(w=2, a=4)
        >>> print(mq.Bits.parse((32, 32)))
        FP

        Raises:
            ValueError: ``text`` is something else, or has bits outside 1 to 32.
        """
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
        """Whether the pair is one that the paper trains and measures (ECCV 2022, section 4.1).

        Both widths are in `WIDTHS`. Full-precision weights need full-precision activations, one-bit weights need
        activations of 1 or 32 bits, and other weights need activations of more than one bit.
        """
        if self.w not in WIDTHS or self.a not in WIDTHS:
            return False
        if self.w == FULL:
            return self.a == FULL
        return self.a in (1, FULL) if self.w == 1 else self.a != 1

    def __str__(self) -> str:
        return "FP" if (self.w, self.a) == (FULL, FULL) else f"W{self.w}A{self.a}"


BitsLike = Bits | str | Sequence[int]
FP = Bits(FULL, FULL)
Pair = Bits | dict[str, Bits]  # one pair for the whole network, or one for each named layer


def height(pair: Pair) -> tuple[float, float]:
    """Compute the mean weight bits and the mean activation bits over the layers, by which a step sorts its pairs."""
    layers = [pair] if isinstance(pair, Bits) else list(pair.values())
    return sum(b.w for b in layers) / len(layers), sum(b.a for b in layers) / len(layers)


def candidates(one_bit: bool = True) -> list[Bits]:
    """List the 75 candidate pairs of the paper (ECCV 2022, section 4.1) in rising order.

    With ``one_bit=False`` the list leaves out W1A1 and W1A32, for quantizers that do not define one bit.

    >>> len(mq.candidates()), len(mq.candidates(one_bit=False))
    (75, 73)
    >>> print(*mq.candidates()[:4])
    W1A1 W1A32 W2A2 W2A3
    """
    pairs = [Bits(w, a) for w in WIDTHS for a in WIDTHS]
    return [b for b in pairs if b.is_candidate and (one_bit or 1 not in (b.w, b.a))]


def parse_all(pairs: str | Bits | Iterable[BitsLike]) -> list[Bits]:
    """Read several pairs from a comma-separated string (``"W2A2,W4A4,FP"``), from a list of pairs, or from one pair."""
    if isinstance(pairs, str):
        pairs = [part for part in pairs.split(",") if part.strip()]
    elif not isinstance(pairs, Iterable):
        pairs = [pairs]  # one pair, or what `parse` refuses
    parsed = [Bits.parse(pair) for pair in pairs]
    if not parsed:
        raise ValueError("no bitwidth pair given; write for example W2A2,W4A4,FP")
    return parsed


def nearest(width: int, widths: Iterable[int]) -> int:
    """Find the member of ``widths`` that is nearest to ``width`` on a logarithmic scale; in a tie, the wider one."""
    return min(widths, key=lambda other: (_octaves(width, other), -other))


def nearest_pair(pair: Bits, pairs: Iterable[Bits]) -> Bits:
    """Find the member of ``pairs`` that is nearest to ``pair`` on a logarithmic scale.

    The distances of weights and activations are added. In a tie the pair with the wider weights wins.
    """
    return min(pairs, key=lambda b: (round(_octaves(pair.w, b.w) + _octaves(pair.a, b.a), 9), -b.w, -b.a))


def _octaves(width: int, other: int) -> float:
    """The number of doublings between two widths, rounded so that ties are found despite float errors."""
    return round(abs(math.log2(other / width)), 9)
