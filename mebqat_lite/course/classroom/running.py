"""In the student's process: the cells of a notebook run as they stood, and what raises is left out and noted."""

from __future__ import annotations
import __future__

import ast
import contextlib
import linecache
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mebqat_lite.course.classroom.cells import is_definition, names, python

ASKED = "what was left out?"  # instead of arguments


class Late(BaseException):
    """The cells before a part took too long."""


class Notebook:
    """Runs cells in one namespace. ``skipped`` are (number of the cell, error) of what was left out."""

    def __init__(self) -> None:
        self.space: dict[str, Any] = {"__name__": "__main__", "display": lambda *shown, **options: None}
        self.skipped: list[tuple[int, BaseException]] = []
        self.late = self._running = False
        self._flags = 0

    def run(self, cells: Sequence[str], own: int, function: str, seconds: float) -> Any:
        """Run all cells up to the part's own one, then take what it needs from those below; return its function.

        The cells before may take ``seconds`` together; once they are over, only their definitions are run. None if
        the part's own cell stopped before it defined the function.
        """
        with self._at_most(seconds):
            for number, source in enumerate(cells[:own], 1):
                self.cell(number, source, lambda line: not self.late or is_definition(line))
        before, noted = self.space.get(function), len(self.skipped)
        self.cell(own + 1, cells[own])
        found = self.space.get(function)
        if not callable(found) or (len(self.skipped) > noted and found is before):
            return None
        self._add_from_below(cells[own + 1 :], own + 2, seconds)
        return found

    def cell(self, number: int, source: str, counts: Callable[[ast.stmt], bool] = lambda line: True) -> None:
        """Run a cell statement by statement; what raises is noted, and the next one is run."""
        name, source = f"<cell {number}>", python(source)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        try:
            lines = compile(source, name, "exec", ast.PyCF_ONLY_AST | self._flags, True).body
        except BaseException as error:
            self.skipped.append((number, error))
            return
        for line in filter(counts, lines):
            try:
                code = compile(ast.Module([line], []), name, "exec", self._flags, True)
                self._flags |= code.co_flags & __future__.annotations.compiler_flag
                self._running = True
                exec(code, self.space)
                self._running = False
            except BaseException as error:
                self._running = False
                self.skipped.append((number, error))

    def _add_from_below(self, cells: Sequence[str], first: int, seconds: float) -> None:
        """Definitions that a function needs when it is called, and that stand below it. They replace nothing."""
        noted = len(self.skipped)
        with self._at_most(seconds):
            for number, source in enumerate(cells, first):
                self.cell(number, source, lambda line: is_definition(line) and not names(line) & {*self.space, "*"})
        del self.skipped[noted:]  # they do not count, so nobody asks why one was left out

    @contextlib.contextmanager
    def _at_most(self, seconds: float) -> Iterator[None]:
        """Interrupt the statement that is running when the time is over."""

        def ring(*_: Any) -> None:
            self.late = True
            if self._running:
                raise Late(f"the cells before this part take longer than {seconds:g} s")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again, if the student's code catches it
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


class Served:
    """A part as the grader calls it: with arguments the student's function, with `ASKED` what was left out."""

    def __init__(self, cells: Sequence[str], own: int, function: str, seconds: float) -> None:
        notebook = Notebook()
        self.function = notebook.run(cells, own, function, seconds)
        self.skipped = [_described(number, error) for number, error in notebook.skipped]

    def __call__(self, *args: Any) -> Any:
        """The function's value; for `ASKED` a dictionary of ``there`` and ``skipped``."""
        if len(args) == 1 and isinstance(args[0], str) and args[0] == ASKED:
            return {"there": self.function is not None, "skipped": self.skipped}
        return self.function(*args)


def _described(number: int, error: BaseException) -> dict[str, Any]:
    """The cell, the line in it and its text, and the error, as a message can hold them."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == f"<cell {number}>"]
    line, text = (frames[0].lineno or 0, frames[0].line or "") if frames else (0, "")
    if isinstance(error, SyntaxError) and not frames:
        line, text = error.lineno or 0, error.text or ""
    words = type(error).__name__
    with contextlib.suppress(Exception):  # a student's error may have words that raise
        words += f": {str(error).strip()[:200]}"
    return {"cell": number, "line": line, "text": text.strip()[:100], "error": words}
