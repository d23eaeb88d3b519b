"""The rules of a lesson's form: each takes a lesson as it is stored and yields a line for each fault."""

import re
from collections.abc import Iterator

from lessons import FIGURE, WIDGET, calls, code, exercise, guesses, markdown, reads, shows, source

from notebooks.store import ANSWER, is_hidden

MOST_CELLS, MOST_LINES, MOST_GUESSES, CELLS_A_FIGURE = 45, 12, 5, 5
# The minutes on the card are those of reading the text, of running each cell and looking at what it shows, and of the
# exercises, as they say themselves.
WORDS_A_MINUTE, MINUTES_A_CELL, MINUTES_OFF = 200, 0.5, 5
MINUTES_A_TURN = 5  # ten questions that a reader answers, half a minute each
PLUMBING = r"\bplt\.|\bmatplotlib\b|\.set_[xy]label|\bsys\.path\b|\.index\(\"def |getsource\(\w+\)\["


def cells_are_few_and_short(lesson: dict) -> Iterator[str]:
    if (count := len(lesson["cells"])) > MOST_CELLS:
        yield f"it has {count} cells: at most {MOST_CELLS}"
    for cell in code(lesson):
        if (lines := source(cell).count("\n") + 1) > MOST_LINES:
            yield f"cell {cell['id']} has {lines} lines of code: at most {MOST_LINES}"


def a_picture_carries_each_idea(lesson: dict) -> Iterator[str]:
    figures, count = sum(shows(cell, FIGURE) for cell in code(lesson)), len(lesson["cells"])
    if figures * CELLS_A_FIGURE < count:
        yield f"it has {figures} figures in {count} cells: at least one in {CELLS_A_FIGURE} cells"


def guesses_are_answered(lesson: dict) -> Iterator[str]:
    """Each guess is read by a later cell, and the first that reads it is stored hidden."""
    cells = code(lesson)
    asked = [(index, name) for index, cell in enumerate(cells) for name in guesses(cell)]
    if not 1 <= len(asked) <= MOST_GUESSES:
        yield f"it asks for {len(asked)} guesses: 1 to {MOST_GUESSES}"
    for index, name in asked:
        answers = [cell for cell in cells[index + 1 :] if name in reads(cell)]
        if not answers:
            yield f"the guess {name} is never answered: print(guess.said({name}, truth)), or show it in a figure"
        elif not keeps_its_answer(answers[0]):
            yield (
                f'cell {answers[0]["id"]} answers the guess {name}: give it the metadata "jupyter": '
                '{"outputs_hidden": true}, and store the lesson with notebooks/store.py'
            )


def keeps_its_answer(cell: dict) -> bool:
    """Whether the outputs are closed, with a first line that does not give the answer away."""
    first = cell["outputs"][0].get("data", {}) if cell["outputs"] else {"text/plain": ANSWER}
    return is_hidden(cell) and "".join(first.get("text/plain", "")) == ANSWER


def the_card_adds_up(lesson: dict) -> Iterator[str]:
    words = sum(len(text.split()) for text in markdown(lesson))
    turns = sum(source(cell).count("your_turn(") for cell in code(lesson))
    reading, running = words / WORDS_A_MINUTE, MINUTES_A_CELL * len(code(lesson)) + MINUTES_A_TURN * turns
    names = {name for cell in code(lesson) for name, _ in calls(cell, "check")}
    writing = sum(exercise(name).minutes for name in names)
    card = re.search(r"\*\*Time\*\* (\d+) minutes", markdown(lesson)[0])
    if card is None:
        yield 'the card names no time: "**Time** 35 minutes"'
    elif abs(int(card[1]) - (need := reading + running + writing)) > MINUTES_OFF:
        yield (
            f"the card says {card[1]} minutes, but it takes {need:.0f}: {reading:.0f} for {words} words, "
            f"{running:.0f} for {len(code(lesson))} cells and {turns} tasks of ten questions, "
            f"{writing} for the exercises"
        )


def exercises_run_the_lesson(lesson: dict) -> Iterator[str]:
    """Each exercise is checked and then used, and the function that ``use`` returns is read afterwards."""
    cells, is_used, met = code(lesson), set(), set()
    for index, cell in enumerate(cells):
        used = calls(cell, "use")
        for name, line in sorted(calls(cell, "check") + used, key=lambda call: call[1]):
            if (name, line) not in used:
                met.add(name)
                continue
            is_used.add(name)
            if name not in met:
                yield f"cell {cell['id']} uses {name} before its check: an exercise stands where it is first needed"
            if not goes_on(name, cells[index:]):
                yield f"what {name}.use() returns in cell {cell['id']} is not read afterwards: name = {name}.use()"
    yield from (f"{name} is checked and never used: go on with {name}.use()" for name in sorted(met - is_used))


def goes_on(name: str, cells: list[dict]) -> bool:
    """Whether the name that ``name.use()`` gets in the first cell is read in these cells."""
    found = re.search(rf"(?m)^(\w+) = {re.escape(name)}\.use\(\)", source(cells[0]))
    return bool(found) and any(found[1] in reads(cell) for cell in cells)


def nothing_but_the_lesson_is_seen(lesson: dict) -> Iterator[str]:
    for cell in code(lesson):
        for found in re.findall(PLUMBING, source(cell)):
            yield f"cell {cell['id']} shows {found!r}: figures are functions of mebqat_lite.measure.plots"
    for title in re.findall(r"(?mi)^#+ .*misconception.*$", "\n".join(markdown(lesson))):
        yield f"the heading {title!r}: say what is true"


def widgets_have_a_still_figure(lesson: dict) -> Iterator[str]:
    cells = code(lesson)
    for cell, below in zip(cells, [*cells[1:], None], strict=True):
        has_figure = any(shows(one, FIGURE) for one in (cell, below) if one)
        if shows(cell, WIDGET) and not guesses(cell) and not has_figure:
            yield f"cell {cell['id']} shows a widget without a still figure in it or in the next code cell"


RULES = (
    cells_are_few_and_short,
    a_picture_carries_each_idea,
    guesses_are_answered,
    the_card_adds_up,
    exercises_run_the_lesson,
    nothing_but_the_lesson_is_seen,
    widgets_have_a_still_figure,
)
