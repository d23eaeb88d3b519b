"""The form of the rebuilt lessons: each rule of `lesson_form`, tried on a made lesson first."""

import copy
import itertools

import pytest
from lesson_form import (
    RULES,
    a_picture_carries_each_idea,
    cells_are_few_and_short,
    exercises_run_the_lesson,
    guesses_are_answered,
    nothing_but_the_lesson_is_seen,
    the_card_adds_up,
    widgets_have_a_still_figure,
)
from lessons import FIGURE, FOLDER, REBUILT, WIDGET, read

from notebooks.store import ANSWER


@pytest.mark.parametrize("name", REBUILT)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rebuilt_lesson_keeps_the_rule(rule, name):
    assert not list(rule(read(name)))


def test_rebuilt_lessons_are_there():
    assert all((FOLDER / f"{name}.ipynb").exists() for name in REBUILT)


# --- the rules, on a made lesson -------------------------------------------------------------------------------

IDS = itertools.count()


def text(words: str) -> dict:
    return {"cell_type": "markdown", "id": f"t{next(IDS)}", "source": [words], "metadata": {}}


def cell(source: str, *kinds: str, hidden: bool = False) -> dict:
    outputs = [{"output_type": "display_data", "data": {kind: ""}} for kind in kinds]
    if hidden:
        outputs.insert(0, {"output_type": "display_data", "data": {"text/plain": [ANSWER]}})
    metadata = {"jupyter": {"outputs_hidden": True}} if hidden else {}
    lines = source.splitlines(keepends=True)
    return {"cell_type": "code", "id": f"c{next(IDS)}", "source": lines, "metadata": metadata, "outputs": outputs}


CARD = text("# 01\n\n**Time** 15 minutes" + " word" * 300)  # 1.5 minutes to read, 6 cells, an exercise of 10 minutes
ASK = cell("my = guess.number('How many?')", WIDGET)
ANSWERED = cell("print(guess.said(my, truth))\nplots.show(figure)", FIGURE, hidden=True)
CHECK = cell("def fake_quantize(x, step, low, high):\n    return ...\n\n\nlesson_01.fake_quantize.check(fake_quantize)")
USE = cell("fake_quantize = lesson_01.fake_quantize.use()\nfake_quantize(x, 1.0, 0, 3)")
PLAY, STILL = cell("playground(w)", WIDGET), cell("plots.show(figure)", FIGURE)
GOOD = {"cells": [CARD, ASK, ANSWERED, CHECK, USE, PLAY, STILL]}


def without(*gone: dict) -> dict:
    return {"cells": [one for one in GOOD["cells"] if one not in gone]}


def instead(old: dict, new: dict) -> dict:
    return {"cells": [new if one is old else one for one in GOOD["cells"]]}


def test_a_good_lesson_keeps_all_rules():
    assert not [fault for rule in RULES for fault in rule(GOOD)]


SPOILT = copy.deepcopy(ANSWERED)
del SPOILT["outputs"][0]
OPEN = ANSWERED | {"metadata": {}}
CASES = [
    (cells_are_few_and_short, {"cells": [text("one")] * 46}, "it has 46 cells: at most 45"),
    (cells_are_few_and_short, instead(STILL, cell("\n".join("x = 1" for _ in range(13)))), "has 13 lines of code"),
    (a_picture_carries_each_idea, without(STILL), "it has 1 figures in 6 cells"),
    (guesses_are_answered, without(ASK), "it asks for 0 guesses: 1 to 5"),
    (guesses_are_answered, {"cells": GOOD["cells"] * 6}, "it asks for 6 guesses"),
    (guesses_are_answered, without(ANSWERED), "the guess my is never answered: print(guess.said(my, truth))"),
    (guesses_are_answered, instead(ANSWERED, OPEN), "answers the guess my: give it the metadata"),
    (guesses_are_answered, instead(ANSWERED, SPOILT), "store the lesson with notebooks/store.py"),
    (guesses_are_answered, instead(ASK, cell("axes_guess = MarkOnAxes(axes)")), "the guess axes_guess is never"),
    (the_card_adds_up, instead(CARD, text("# 01")), "the card names no time"),
    (
        the_card_adds_up,
        instead(CARD, text("**Time** 15 minutes" + " word" * 1500)),
        "15 minutes, but it takes 21: 8 for",
    ),
    (the_card_adds_up, without(CHECK), "15 minutes, but it takes 4: "),
    (the_card_adds_up, instead(PLAY, cell("your_turn(one)\nyour_turn(two)")), "15 minutes, but it takes 25: "),
    (exercises_run_the_lesson, without(CHECK), "uses lesson_01.fake_quantize before its check"),
    (exercises_run_the_lesson, {"cells": [CARD, USE, CHECK]}, "uses lesson_01.fake_quantize before its check"),
    (exercises_run_the_lesson, without(USE), "lesson_01.fake_quantize is checked and never used"),
    (exercises_run_the_lesson, instead(USE, cell("f = lesson_01.fake_quantize.use()")), "is not read afterwards"),
    (exercises_run_the_lesson, instead(USE, cell("lesson_01.fake_quantize.use()")), "is not read afterwards"),
    (nothing_but_the_lesson_is_seen, instead(USE, cell("plt.plot(x)")), "shows 'plt.'"),
    (nothing_but_the_lesson_is_seen, instead(CARD, text("## 6 · A misconception: floats")), "say what is true"),
    (widgets_have_a_still_figure, without(STILL), "shows a widget without a still figure"),
    (widgets_have_a_still_figure, {"cells": [PLAY, cell("x = 1"), STILL]}, "shows a widget without a still figure"),
]


@pytest.mark.parametrize(("rule", "lesson", "message"), CASES)
def test_a_rule_names_the_fault(rule, lesson, message):
    faults = list(rule(lesson))
    assert faults and any(message in fault for fault in faults), faults


def test_a_still_figure_may_stand_in_the_widgets_own_cell():
    assert not list(widgets_have_a_still_figure({"cells": [cell("show(playground(w))", WIDGET, FIGURE)]}))
