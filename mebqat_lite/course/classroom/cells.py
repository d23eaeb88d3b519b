"""The code of a cell: Python without IPython's magics, and which of its statements only define something."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

MAGIC = re.compile(r"^(\s*)(?:[%!?]|[\w.]+\s*=\s*[%!]|[\w.]+\?)")
FOREIGN = re.compile(r"\s*%%(?!time|timeit|capture|prun|python)\w+")  # the cell is in another language, or a file
MOST_MAGICS = 100  # of a cell
KEPT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError, SystemError)  # what Python makes of a spoiled cell


def python(source: str) -> str:
    """The source with ``pass`` for each magic and shell line, so that lines keep their numbers.

    The cell is read once for each such line, so only the first `MOST_MAGICS` are replaced.
    """
    if FOREIGN.match(source):
        return ""
    lines = source.splitlines()
    for _ in range(min(len(lines), MOST_MAGICS) + 1):
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            number = (error.lineno or 0) - 1
            magic = MAGIC.match(lines[number]) if 0 <= number < len(lines) else None
            if magic is None:
                break
            _leave_out(lines, number, magic[1])
        except UNREADABLE:
            break
        else:
            break
    return "\n".join(lines)


def _leave_out(lines: list[str], number: int, indent: str) -> None:
    """``pass`` for a line and for those that continue it."""
    goes_on = True
    while goes_on and number < len(lines):
        goes_on = lines[number].rstrip().endswith("\\")
        lines[number], number = f"{indent}pass", number + 1


def parsed(source: str) -> list[ast.stmt] | None:
    """The statements of a cell; None if Python cannot read it."""
    try:
        return ast.parse(python(source)).body
    except UNREADABLE:
        return None


def is_definition(line: ast.stmt) -> bool:
    """An import, a function, a class, or ``NAME = literal``: it takes no time and prints nothing."""
    if isinstance(line, KEPT):
        return True
    if not isinstance(line, ast.Assign) or not all(isinstance(target, ast.Name) for target in line.targets):
        return False
    try:
        ast.literal_eval(line.value)
    except Exception:  # whatever Python makes of it, it is no literal
        return False
    return True


def definitions(source: str) -> str:
    """The definitions of a cell alone; "" if Python cannot read it."""
    try:
        return "\n".join(ast.unparse(line) for line in parsed(source) or () if is_definition(line))
    except UNREADABLE:
        return ""


def names(line: ast.stmt) -> set[str]:
    """The names that a definition binds."""
    if isinstance(line, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in line.names}
    if isinstance(line, ast.Assign):
        return {target.id for target in line.targets if isinstance(target, ast.Name)}
    return {line.name} if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else set()


def defined(lines: list[ast.stmt]) -> Iterator[tuple[str, bool]]:
    """(name, whether it is attempted) of each function or name that a cell defines, also inside ``if`` and ``try``."""
    waiting = lines[::-1]
    while waiting:  # no recursion: an `elif` lies in the one before it, and there may be thousands
        line = waiting.pop()
        if isinstance(line, ast.If | ast.Try | ast.With):
            waiting += [inner for inner in ast.iter_child_nodes(line) if isinstance(inner, ast.stmt)][::-1]
        elif isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef):
            yield line.name, not all(map(_does_nothing, line.body))
        elif isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            parts = [part for target in targets for part in getattr(target, "elts", [target])]
            yield from ((part.id, not _is_nothing(line.value)) for part in parts if isinstance(part, ast.Name))


def _does_nothing(line: ast.stmt) -> bool:
    """Whether a line may stand in a stub: a docstring, dots, ``pass``, nothing returned, ``NotImplementedError``."""
    if isinstance(line, ast.Raise):
        words = ast.walk(line.exc) if line.exc is not None else ()
        return any(isinstance(word, ast.Name) and word.id == "NotImplementedError" for word in words)
    if isinstance(line, ast.Return):
        return line.value is None or _is_nothing(line.value)
    return isinstance(line, ast.Pass) or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))


def _is_nothing(value: ast.expr) -> bool:
    """Dots, None or NotImplemented."""
    name = isinstance(value, ast.Name) and value.id == "NotImplemented"
    return name or (isinstance(value, ast.Constant) and (value.value is None or value.value is ...))
