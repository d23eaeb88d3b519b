"""One part of a submission, ready to be called: its cells have run in a process of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mebqat_lite.course.classroom.attempts import Chosen, choose
from mebqat_lite.course.classroom.cells import definitions
from mebqat_lite.course.classroom.running import ASKED
from mebqat_lite.course.classroom.sandbox import Limits, Sandbox, Stopped

BEFORE = 5.0  # seconds that the cells before a part may take together
BOOT = """from mebqat_lite.course.classroom.running import Served
{function} = Served({cells!r}, {own}, {function!r}, {seconds})"""


@contextlib.contextmanager
def opened(
    cells: Sequence[tuple[str, str]], function: str, limits: Limits | None = None
) -> Iterator[tuple[Callable[..., Any], list[str]]]:
    """The call of a part's function, as `Sandbox.call`, and what the student should know of the other cells.

    Raises:
        LookupError: no cell has the function.
        Stopped: its own cell does not get so far as to define it.
    """
    chosen = choose(cells, function)
    sandbox, notes = _started(chosen, function, limits or Limits())
    with sandbox:
        notes += _left_out(sandbox.call(ASKED), chosen.own + 1, function)
        yield sandbox.call, notes


def _started(chosen: Chosen, function: str, limits: Limits) -> tuple[Sandbox, list[str]]:
    """A process in which the cells have run; where those before the part end it, their definitions alone."""
    notes = [chosen.note] if chosen.note else []
    before = chosen.cells[: chosen.own]
    lean = tuple(map(definitions, before))
    try:
        return _sandbox(chosen.cells, chosen.own, function, limits), notes
    except Stopped as reason:
        if not any(before):
            raise
        words = f"{function}: of the cells before it only imports, functions, classes and constants count, because"
        sandbox = _sandbox((*lean, *chosen.cells[chosen.own :]), chosen.own, function, limits)
        return sandbox, [*notes, f"{words} {reason}"]


def _sandbox(cells: Sequence[str], own: int, function: str, limits: Limits) -> Sandbox:
    seconds = min(BEFORE, limits.seconds / 4)
    return Sandbox([BOOT.format(cells=list(cells), own=own, function=function, seconds=seconds)], function, limits)


def _left_out(said: Any, own: int, function: str) -> list[str]:
    """A line for each statement that was left out; `Stopped` if therefore there is no function."""
    if not said["there"]:
        for skip in said["skipped"]:
            if skip["cell"] == own:
                raise Stopped(
                    f"the code stops with {skip['error']}, in line {skip['line']} of your cell: {skip['text']}"
                )
        raise Stopped(f"there is no function {function}: is it renamed, or its cell missing?")
    return [
        f"code cell {s['cell']}, line {s['line']}, `{s['text']}` is left out: {s['error']}" for s in said["skipped"]
    ]
