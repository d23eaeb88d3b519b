"""A page of the pairs of students whose code is alike, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mebqat_lite.course.classroom.alike import Pair, Same, alike
from mebqat_lite.course.classroom.feedback import HEAD, STYLE
from mebqat_lite.course.classroom.kept import Graded
from mebqat_lite.files import replace

WIDE = """
body { max-width: 90rem } table { table-layout: fixed } td { width: 50% }
pre { overflow-x: auto; font-size: .85rem; margin: 0 }
"""
MOST_PAIRS = 50  # of an assignment, on the page
WHAT = (
    "Likeness is a reason to look, and no proof: ask both students to explain their code. Names of variables, "
    "comments, docstrings and blanks do not matter. What the hand-out gives does not count, and a piece of code, about "
    "a line long, counts the less, the more of the class have written it. The number of a pair is the sum of what both "
    "have; pairs with the largest stand first. Marked is what both students have, and not all others."
)


def write_alike(path: Path, graded: Sequence[Graded], handed_out: Mapping[str, Sequence[str]]) -> None:
    """Compare the code of all results, assignment by assignment, and write the page.

    ``handed_out`` are the code cells of each assignment's hand-out.
    """
    sections = []
    for name in sorted({one.assignment.name for one in graded}):
        code = {one.student: one.code for one in graded if one.assignment.name == name}
        pairs, left_out = alike(code, handed_out.get(name, ()))
        sections.append(_section(name, code, pairs, left_out))
    title = "Code that is alike"
    body = f"<h1>{title}</h1><p>{WHAT}</p>{''.join(sections)}"
    replace(path, f"{HEAD.format(title=title, style=STYLE + WIDE)}<body>{body}</body></html>\n".encode())


def _section(name: str, code: Mapping[str, Mapping[str, str]], pairs: Sequence[Pair], left_out: Sequence[str]) -> str:
    """All pairs of an assignment."""
    said = f"{len(pairs)} of {len(code) * (len(code) - 1) // 2:,} pairs are alike."
    if len(pairs) > MOST_PAIRS:
        said += f" Here are the {MOST_PAIRS} that share most."
    if left_out:
        said += f" Not compared, because it is too long or no Python: {', '.join(left_out)}."
    shown = "".join(_pair(pair, code) for pair in pairs[:MOST_PAIRS])
    return f"<h2>{escape(name)}</h2><p>{escape(said)}</p>{shown}"


def _pair(pair: Pair, code: Mapping[str, Mapping[str, str]]) -> str:
    first, second = map(escape, pair.students)
    rows = "".join(_row(same, *(code[student][same.function] for student in pair.students)) for same in pair.parts)
    head = f"<h3>{first} and {second}: {round(pair.weight)}</h3>"
    return f"{head}<table><tr><td><b>{first}</b></td><td><b>{second}</b></td></tr>{rows}</table>"


def _row(same: Same, first: str, second: str) -> str:
    """A part: how much of what is rare is shared, and the code of both."""
    words = f"<code>{escape(same.function)}</code>: {round(100 * same.share)} % of what is rare in it is the same"
    cells = "".join(
        f"<td><pre>{_marked(text, lines)}</pre></td>" for text, lines in zip((first, second), same.lines, strict=True)
    )
    return f'<tr><td colspan="2">{words}</td></tr><tr>{cells}</tr>'


def _marked(source: str, lines: frozenset[int]) -> str:
    """The code, with a mark on the lines from their indent on."""
    return "\n".join(
        line[: -len(text)] + f"<mark>{escape(text)}</mark>"
        if (text := line.lstrip()) and number in lines
        else escape(line)
        for number, line in enumerate(source.split("\n"), 1)
    )
