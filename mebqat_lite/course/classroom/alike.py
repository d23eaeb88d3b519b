"""Which students have written code that few others have: pairs to look at, part by part.

A piece counts by how rare it is in the class: what two students or at most a tenth of the class have counts whole, what
all have counts nothing, in between it is the logarithm that decides. The hand-out's own code does not count.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mebqat_lite.course.classroom.pieces import Pieces, pieces

LEAST_SHARE = 0.6  # of what is rare in one of two answers to a part, the other has too
LEAST_PIECES = 60.0  # together, in such parts: about seven lines that nobody else has


@dataclass(frozen=True)
class Same:
    """A part that two students have alike: the share of what is rare in it, its weight, and the pieces of each."""

    function: str
    share: float
    weight: float
    own: tuple[Pieces, Pieces]
    rarity: Mapping[int, float]

    @property
    def lines(self) -> tuple[frozenset[int], frozenset[int]]:
        """In the code of each, the lines that both have, and not all others."""
        first, second = self.own
        both = [piece for piece in first if piece in second and self.rarity[piece] > 0]
        return frozenset().union(*(first[piece] for piece in both)), frozenset().union(*(second[p] for p in both))


@dataclass(frozen=True)
class Pair:
    """Two students, and the parts that they have alike."""

    students: tuple[str, str]
    parts: tuple[Same, ...]

    @property
    def weight(self) -> float:
        """How many rare pieces they share, in all these parts."""
        return sum(part.weight for part in self.parts)


def alike(code: Mapping[str, Mapping[str, str]], handed_out: Iterable[str]) -> tuple[list[Pair], list[str]]:
    """The pairs above the thresholds, those that share most first, and what could not be compared.

    Args:
        code: the source of each function by student.
        handed_out: the cells of the hand-out.
    """
    given = set().union(*(pieces(cell) or () for cell in handed_out))
    found: dict[tuple[str, str], list[Same]] = collections.defaultdict(list)
    left_out = []
    for function in dict.fromkeys(itertools.chain.from_iterable(code.values())):
        own = {}
        for student, sources in code.items():
            if (read := pieces(sources.get(function, ""))) is None:
                left_out.append(f"{function} of {student}")
            elif mine := {piece: lines for piece, lines in read.items() if piece not in given}:
                own[student] = mine
        for students, same in _same(function, own):
            found[students].append(same)
    pairs = [Pair(students, tuple(parts)) for students, parts in found.items()]
    listed = [pair for pair in pairs if pair.weight >= LEAST_PIECES]
    return sorted(listed, key=lambda pair: -pair.weight), left_out


def _same(function: str, own: Mapping[str, Pieces]) -> Iterator[tuple[tuple[str, str], Same]]:
    """The pairs of students who have most of what is rare in a part alike."""
    students, holders = list(own), collections.Counter(itertools.chain.from_iterable(own.values()))
    rarity = {piece: _rarity(count, len(own)) for piece, count in holders.items()}
    shared, whole = _weights(list(own.values()), rarity, holders)
    share = shared / torch.minimum(whole[:, None], whole[None]).clamp(min=1e-9)
    for a, b in torch.triu((share >= LEAST_SHARE) & (shared >= 1), 1).nonzero().tolist():
        same = Same(function, float(share[a, b]), float(shared[a, b]), (own[students[a]], own[students[b]]), rarity)
        yield (students[a], students[b]), same


def _weights(own: Sequence[Pieces], rarity: Mapping[int, float], holders: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """The weight of what each two students share (students, students), and of all that each has (students)."""
    column = {piece: at for at, piece in enumerate(piece for piece, count in holders.items() if count > 1)}
    has = torch.zeros(len(own), len(column))
    for row, one in zip(has, own, strict=True):
        row[[column[piece] for piece in one if piece in column]] = 1
    whole = [sum(rarity[piece] for piece in one) for one in own]
    return (has * torch.tensor([rarity[piece] for piece in column])) @ has.T, torch.tensor(whole)


def _rarity(holders: int, students: int) -> float:
    """1 for what few have, two students or a tenth of them, down to 0 for what all have."""
    few = max(2, students / 10)
    return 1.0 if holders <= few else math.log(students / holders) / math.log(students / few)
