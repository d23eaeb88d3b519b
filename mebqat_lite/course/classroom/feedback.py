"""A page of feedback for a student: one file, readable without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from mebqat_lite.course.classroom.grading import Assignment, Outcome, Part

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #111 }
body { background: #fff } code { background: #f3f3f3; padding: 0 .2rem }
table { border-collapse: collapse; width: 100% }
td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-top: 1px solid #ccc }
td.points { white-space: nowrap; width: 6rem } .ok { color: #00563f } .no { color: #8a2b00 }
mark { background: #ffe9a8; color: inherit }
@media (prefers-color-scheme: dark) {
  body { color: #eee; background: #161616 } code { background: #303030 } td { border-top-color: #555 }
  .ok { color: #7fd4ad } .no { color: #ffa47a } mark { background: #5a4600 }
}
"""
MOST_NOTES = 20
HEAD = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{style}</style></head>'
)


def page(
    student: str,
    assignment: Assignment,
    outcomes: Sequence[Outcome],
    problem: str = "",
    notes: Sequence[str] = (),
    marked: Sequence[str] = (),
) -> str:
    """The feedback on one assignment as HTML; ``marked`` are lines on the answers that are marked by hand."""
    got, by_hand = sum(outcome.points for outcome in outcomes), sum(assignment.written.values())
    more = f", and {by_hand} more are marked by hand" if by_hand else ""
    in_words = "<h2>In words</h2>" + "".join(f"<p>{escape(line)}</p>" for line in marked) if marked else ""
    body = "".join(_part(part, outcomes) for part in assignment.parts) + in_words + _notes(notes)
    if problem:
        body = f'<p class="no">{escape(problem)}: nothing could be graded. Hand in the notebook itself.</p>'
    title = f"{escape(assignment.name)}: {escape(student)}"
    head = f"<h1>{title}</h1><p><b>{got} of {assignment.points} points</b>{more}</p>"
    return f"{HEAD.format(title=title, style=STYLE)}<body>{head}{body}</body></html>\n"


def _notes(notes: Sequence[str]) -> str:
    """What of the notebook did not count, or counted in place of something else."""
    if not notes:
        return ""
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes[:MOST_NOTES])
    more = f"<li>and {len(notes) - MOST_NOTES} more</li>" if len(notes) > MOST_NOTES else ""
    why = "For each part the cells above it are run as they stand. What stops there is left out, and costs nothing."
    return f"<h2>Which cells count</h2><p>{why}</p><ul>{lines}{more}</ul>"


def _part(part: Part, outcomes: Sequence[Outcome]) -> str:
    mine = [outcome for outcome in outcomes if outcome.part == part.function]
    got = sum(outcome.points for outcome in mine)
    rows = "".join(_row(outcome) for outcome in mine)
    head = f"{escape(part.title)}: <code>{escape(part.function)}</code>, {got} of {part.points}"
    return f"<h2>{head}</h2><table>{rows}</table>"


def _row(outcome: Outcome) -> str:
    kind, mark = ("no", "✗") if outcome.message else ("ok", "✓")
    words = (
        f"{escape(outcome.message)} (seed {outcome.seed})" if outcome.message else "right on every input that was tried"
    )
    points = f'<td class="points {kind}">{mark} {outcome.points} of {outcome.of}</td>'
    return f"<tr>{points}<td><b>{escape(outcome.check)}</b><br>{words}</td></tr>"
