"""Sentences of a lesson, held to the outputs that are stored with it by ``tests/sentences/NN.toml``.

``[numbers]`` pulls numbers out of the text outputs, by name: a regular expression with one group, which matches once
in all outputs, or ``{ cell = "01-23", reads = '...' }`` for the outputs of one cell. Each ``[[sentence]]`` has the
words as they stand in the lesson (``says``) and a comparison of such numbers (``holds``), in which each number that
the words state stands too. ``[definitions]`` lists words that measure nothing (``says``, a list): theory, questions.
Words that ``claims.toml`` measures need no entry, nor do those that ``tests/course/test_lesson_NN.py`` holds by
``says("...")``, for what is shown in figures alone.
"""

import ast
import math
import operator
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claims import claims
from lessons import code, markdown, printed, read

TABLES = Path(__file__).parent.parent / "sentences"
# Numbers as a measurement is written, and words that compare. A comparison counts where its sentence names something
# that is measured.
UNITS = r" ?%| (?:percent|points?|dB|times|seconds|s|ms|MB|kB|bytes)\b"
NUMBER = rf"(?<![\w.])(?:\d[\d,]*(?:\.\d+)?(?:{UNITS})|\d+\.\d+\b)"
COMPARES = (
    r"\b(?:better|worse|best|worst|higher|lower|less|fewer|beats?|wins?|loses?|lost|falls?|fell|fails?|collapses?|"
    r"holds?|gains?|breaks?|as good as|the same as|nearly (?:all|every\w*)|twice|half|nothing)\b"
)
END = re.compile(r"(?:(?<=[.!?:])|(?<=[.!?:][*_)\"]))(?<!^\d\.) (?=[*_(\"`]*[A-Z])")  # of a sentence, not of "1."
HIDDEN = r"\$[^$]*\$|`[^`]*`|\]\([^)]*\)|arXiv \d+\.\d+|[Ee]xercises? \d+\.\d+"  # formulas, code, links, titles
MEASURED = r"\b(?:accurac\w+|errors?|PTQ\S*|QAT|MEBQAT\S*|DoReFa\S*|SAT|LSQ|FP|W\d+A\d+|networks?|naive|signal)\b"
ADVICE = """{what} is stated and not checked. Add this, or put the words under [definitions] if nothing is measured:
[[sentence]]
says = '''{sentence}'''
holds = ""  # a comparison of numbers that [numbers] pulls out of the outputs
"""


@dataclass(frozen=True)
class Table:
    """What stands in a file of sentences."""

    numbers: dict[str, Any] = field(default_factory=dict)
    sentence: list[dict[str, str]] = field(default_factory=list)
    definitions: dict[str, list[str]] = field(default_factory=dict)

    @property
    def listed(self) -> list[str]:
        """All words that are listed, as a sentence or as a definition."""
        return [plain(words) for words in [*(one["says"] for one in self.sentence), *self.definitions.get("says", [])]]


def table(name: str) -> Table:
    """The sentences of a lesson: tests/sentences/01.toml for 01_quantization; none if there is no file."""
    path = TABLES / f"{name[:2]}.toml"
    return Table(**tomllib.loads(path.read_text(encoding="utf-8"))) if path.exists() else Table()


def plain(text: str) -> str:
    """Text on one line."""
    return re.sub(r"\s+", " ", text).strip()


def sentences(lesson: dict) -> list[str]:
    """The sentences of the text cells; headings, code, formulas and the card (the first cell) are left away."""
    found = []
    for text in markdown(lesson)[1:]:
        text = re.sub(r"(?ms)^```.*?^```|\$\$.*?\$\$|^#+ .*?$", "\n\n", text)
        for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|>]|\d+\.) )", text):
            found += END.split(plain(block))
    return [sentence for sentence in found if sentence]


def shown(text: str) -> str:
    """Text with blanks in the place of formulas, code, links and titles."""
    return re.sub(HIDDEN, lambda hidden: " " * len(hidden[0]), text)


def flagged(sentence: str) -> list[tuple[int, int]]:
    """Where a sentence states what looks measured: places of numbers, and of comparisons of what is measured."""
    text = shown(sentence)
    found = [match.span() for match in re.finditer(NUMBER, text)]
    if re.search(MEASURED, text):
        found += [match.span() for match in re.finditer(COMPARES, text, re.IGNORECASE)]
    return found


def missing(lesson: dict, listed: list[str]) -> Iterator[str]:
    """For each sentence that states what looks measured and is not listed: what to add."""
    for sentence in sentences(lesson):
        covered = [match.span() for words in listed for match in re.finditer(re.escape(words), sentence)]
        covered += [(0, len(sentence)) for words in listed if sentence in words]  # words of more than one sentence
        unchecked = [
            place for place in flagged(sentence) if not any(a <= place[0] and place[1] <= b for a, b in covered)
        ]
        if unchecked:
            what = ", ".join(repr(sentence[start:end]) for start, end in unchecked)
            yield ADVICE.format(what=what, sentence=sentence)


def outputs(lesson: dict) -> dict[str, str]:
    """The text outputs by the cells' identifiers."""
    return {cell["id"]: printed(cell) for cell in code(lesson)}


def pull(numbers: dict[str, Any], texts: dict[str, str]) -> dict[str, float]:
    """The numbers by name.

    Raises:
        ValueError: for an expression that does not match exactly once, or whose group is no number.
    """
    found = {}
    for name, entry in numbers.items():
        entry = {"reads": entry} if isinstance(entry, str) else entry
        chosen = [texts.get(entry["cell"], "")] if "cell" in entry else texts.values()
        matches = [match for text in chosen for match in re.finditer(entry["reads"], text)]
        if len(matches) != 1:
            raise ValueError(f"{name}: {entry} matches {len(matches)} times in the stored outputs, and must match once")
        try:
            found[name] = float(matches[0][1].replace(",", ""))
        except (IndexError, ValueError) as error:
            raise ValueError(f"{name}: the group of {entry['reads']!r} is no number: {error}") from None
    return found


OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.Not: operator.not_, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
FUNCTIONS = {"abs": abs, "min": min, "max": max, "round": round, "log10": math.log10}


def evaluate(expression: str, numbers: dict[str, float]) -> Any:
    """The value of arithmetic and comparisons of numbers, such as ``"ptq_w1a1 < 70 < min(ptq_w2a2, ptq_fp)"``.

    Raises:
        ValueError: for anything else, and for a name that is not among ``numbers``.
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Expression():
                return value(node.body)
            case ast.Constant(value=int() | float() as constant):
                return constant
            case ast.Name() if node.id in numbers:
                return numbers[node.id]
            case ast.UnaryOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](value(node.operand))
            case ast.BinOp() if type(node.op) in OPERATORS:
                return OPERATORS[type(node.op)](value(node.left), value(node.right))
            case ast.BoolOp():
                return (all if isinstance(node.op, ast.And) else any)([value(part) for part in node.values])
            case ast.Compare() if all(type(op) in OPERATORS for op in node.ops):
                parts = [value(part) for part in (node.left, *node.comparators)]
                return all(OPERATORS[type(op)](a, b) for op, a, b in zip(node.ops, parts, parts[1:], strict=False))
            case ast.Call(func=ast.Name(id=name), keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(value, node.args))
        raise ValueError(f"{ast.unparse(node)!r} in {expression!r} is no number of [numbers], comparison or arithmetic")

    return value(ast.parse(expression, mode="eval"))


def names(expression: str) -> set[str]:
    """The names that an expression reads, without those of functions."""
    nodes = ast.walk(ast.parse(expression or "0", mode="eval"))
    return {node.id for node in nodes if isinstance(node, ast.Name)} - set(FUNCTIONS)


def faults(lesson: dict, table: Table, elsewhere: list[str]) -> Iterator[str]:
    """What is wrong with a lesson and its table; ``elsewhere`` are words that another test holds."""
    yield from missing(lesson, table.listed + elsewhere)
    text = plain(" ".join(markdown(lesson)))
    yield from (f"{words!r} does not stand in the lesson" for words in table.listed if words not in text)
    numbers = pull(table.numbers, outputs(lesson))
    for one in table.sentence:
        yield from untrue(plain(one["says"]), one["holds"], numbers)
    used = {name for one in table.sentence for name in names(one["holds"])}
    yield from (f"the number {name!r} is read by no sentence" for name in numbers if name not in used)


def untrue(says: str, expression: str, numbers: dict[str, float]) -> Iterator[str]:
    """Why a sentence is not held by its comparison: it is false, reads no output, or leaves out a number."""
    if not names(expression):
        yield f"{says!r}: holds = {expression!r} compares no number of [numbers]"
    elif (answer := evaluate(expression, numbers)) is not True:
        values = {name: numbers[name] for name in sorted(names(expression))}
        yield f"{says!r} is not so: {expression} is {answer}, where {values}"
    held = {float(word) for word in re.findall(r"\d+(?:\.\d+)?", expression)}
    for word in re.findall(NUMBER, shown(says)):
        if float(re.sub(r"[^\d.]", "", word)) not in held:
            yield f"{says!r} states {word!r}, which does not stand in holds = {expression!r}"


def held_elsewhere(name: str) -> list[str]:
    """The words of a lesson that claims.toml or a test of the lesson holds to what was measured."""
    words = [claim.says for claim in claims() if claim.page == f"notebooks/{name}.ipynb"]
    path = TABLES.parent / "course" / f"test_lesson_{name[:2]}.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8") if path.exists() else "")):
        match node:
            case ast.Call(func=ast.Name(id="says"), args=[ast.Constant(value=str() as said)]):
                words.append(said)
    return [plain(said) for said in words]


def check(name: str) -> list[str]:
    """All faults of a lesson of the folder."""
    return list(faults(read(name), table(name), held_elsewhere(name)))
