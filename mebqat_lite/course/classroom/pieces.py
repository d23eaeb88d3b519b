"""The code of a cell as pieces that two students share if they write the same: names of variables, comments,
docstrings, annotations and blanks do not matter.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from mebqat_lite.course.classroom.cells import parsed

WORDS = 8  # of a piece: about a line of code
LONGEST = 20_000  # characters of a cell that is compared
MOST = 1_500  # words of it
BUILTINS = frozenset(dir(builtins))
UNSEEN = {"ctx", "annotation", "returns", "type_comment"}  # fields that do not matter
Pieces = dict[int, frozenset[int]]  # the lines of each piece, by its hash


def pieces(source: str) -> Pieces | None:
    """Each run of `WORDS` words of the code, and the lines in which it stands; None if it cannot be read."""
    lines = parsed(source) if len(source) <= LONGEST else None
    if lines is None:
        return None
    words = [word for word, _ in zip(_words(lines), range(MOST), strict=False)]
    text, at = [word for word, _ in words], [line for _, line in words]
    starts = range(len(words) - WORDS + 1)
    return {hash(tuple(text[n : n + WORDS])): frozenset(at[n : n + WORDS]) for n in starts}


def _words(statements: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    """(what stands there, its line) of each node, in the order of the code."""
    waiting: list[tuple[ast.AST, int]] = [(node, node.lineno) for node in reversed(statements)]
    while waiting:  # no recursion: what students nest may be deep
        node, line = waiting.pop()
        line = getattr(node, "lineno", line)
        if not _is_text(node):
            yield _word(node), line
            waiting += [(child, line) for child in reversed(_children(node))]


def _is_text(node: ast.AST) -> bool:
    """A docstring, or another text that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _word(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id if node.id in BUILTINS else "a name"
    if isinstance(node, ast.Attribute):
        return f".{node.attr}"
    if isinstance(node, ast.keyword):
        return f"{node.arg}="
    if isinstance(node, ast.Constant):  # a number may be too long to be written out
        return f"{type(node.value).__name__} {hash(node.value)}"
    return "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__


def _children(node: ast.AST) -> list[ast.AST]:
    """In the order of the code."""
    found: list[object] = []
    for name in node._fields:
        value = getattr(node, name, None) if name not in UNSEEN else None
        found += value if isinstance(value, list) else [value]
    return [child for child in found if isinstance(child, ast.AST)]
