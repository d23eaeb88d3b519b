"""Which cell of a notebook counts for a part: of several attempts the last one that is attempted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mebqat_lite.course.classroom.cells import defined, parsed

NAMED, STUB, SPOILED, ATTEMPTED = range(4)  # a cell that only has the part's id; the stub; no Python; an answer


@dataclass(frozen=True)
class Chosen:
    """The cells of a notebook as they are run for a part, its own one among them, and what to tell the student."""

    cells: tuple[str, ...]
    own: int
    worth: int
    note: str


def choose(cells: Sequence[tuple[str, str]], function: str) -> Chosen:
    """The cell that counts for ``function``: the last attempt; if there is none, the last one that defines it.

    Raises:
        LookupError: no cell defines the function or has its id.
    """
    kinds = {n: kind for n, (name, text) in enumerate(cells) if (kind := _kind(name, text, function)) is not None}
    if not kinds:
        raise LookupError(f"there is no cell of {function}: is it deleted, or the function renamed?")
    own = max(kinds, key=lambda n: (kinds[n], n))
    several = [str(n + 1) for n, kind in kinds.items() if kind >= STUB]
    note = f"{function} is written in the code cells {', '.join(several)}: number {own + 1} counts, the last attempt"
    sources = [text for _, text in cells]
    copied = _copied_stubs(sources) - {own}
    used = tuple("" if n in copied else text for n, text in enumerate(sources))
    return Chosen(used, own, kinds[own], note if len(several) > 1 else "")


def answers(cells: Sequence[tuple[str, str]], functions: Iterable[str]) -> dict[str, str]:
    """The source of the cell that counts for each function; of those that have one."""
    found = {}
    for function in functions:
        try:
            found[function] = cells[choose(cells, function).own][1]
        except LookupError:
            continue
    return found


def _kind(name: str, source: str, function: str) -> int | None:
    """What a cell has of a function; None if nothing."""
    lines = parsed(source)
    if lines is None:
        is_there = re.search(rf"(?m)^\s*(async\s+)?def\s+{re.escape(function)}\b", source) or name == function
        return SPOILED if is_there else None
    found = [attempted for this, attempted in defined(lines) if this == function]
    if found:
        return ATTEMPTED if found[-1] else STUB
    return NAMED if name == function else None


def _copied_stubs(sources: Sequence[str]) -> set[int]:
    """The cells that are nothing but stubs of functions that a cell above defines in earnest."""
    known: set[str] = set()
    found = set()
    for number, source in enumerate(sources):
        lines = parsed(source) or []
        here = list(defined(lines))
        if here and len(here) == len(lines) and all(not attempted and name in known for name, attempted in here):
            found.add(number)
        known |= {name for name, attempted in here if attempted}
    return found
