"""Small mistakes made on purpose in a function: each is one change of its source."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
COMPARISONS = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
DROPPED = ("detach", "round", "clamp", "abs", "square", "mean", "sum", "sqrt", "log_softmax", "softmax")


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the whole changed source) for each mutant of ``source``."""
    tree = ast.parse(source)
    for index, node in enumerate(ast.walk(tree)):
        for number in range(_kinds(node)):
            changed = copy.deepcopy(tree)
            target = list(ast.walk(changed))[index]
            before = ast.unparse(target)
            _change(target, number)
            after = ast.unparse(target)
            if after != before:
                yield f"{before} -> {after}", ast.unparse(changed)


def _kinds(node: ast.AST) -> int:
    """How many mutants a node has."""
    if isinstance(node, ast.BinOp):
        return int(type(node.op) in OPERATORS)
    if isinstance(node, ast.Compare):
        return int(type(node.ops[0]) in COMPARISONS)
    if isinstance(node, ast.Constant):
        return int(isinstance(node.value, (int, float)) and not isinstance(node.value, str))
    if isinstance(node, ast.Call):
        return int(isinstance(node.func, ast.Attribute) and node.func.attr in DROPPED)
    return int(isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub))


def _change(node: ast.AST, number: int) -> None:
    if isinstance(node, ast.BinOp):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.Constant):
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd()
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        inside = (
            node.args[0] if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch" else node.func.value
        )
        node.func, node.args, node.keywords = ast.Name("_same", ast.Load()), [inside], []
