"""The form of the lessons as they are stored; nbval runs them."""

import json
import re

import pytest
from lesson_form import widgets_have_a_still_figure
from lessons import FOLDER, REBUILT, code, markdown, read, source

LESSONS = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(params=LESSONS)
def lesson(request):
    return read(request.param)


def test_there_are_lessons():
    assert [name[:2] for name in LESSONS] == [f"{number:02}" for number in range(len(LESSONS))] != []


def test_it_opens_with_a_card(lesson):
    card = "".join(lesson["cells"][0]["source"])
    for part in ("You will be able to", "You need", "Time", "minutes", "You have built"):
        assert part in card


def test_it_ran_from_top_to_bottom_within_the_seconds_of_its_card(lesson):
    assert [cell["execution_count"] for cell in code(lesson)] == list(range(1, len(code(lesson)) + 1))
    promised = re.search(r"runs in under (\d+) seconds", "".join(lesson["cells"][0]["source"]))
    assert lesson["metadata"]["mebqat_lite"]["seconds"] < int(promised[1]) <= 75


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_no_marker_of_tests_is_seen(name):
    """Nbval reads the tag nbval-check-output."""
    assert not any("NBVAL_" in source(cell) for cell in code(read(name)))


def test_cells_are_short(lesson):
    assert max(len(cell["source"]) for cell in code(lesson)) <= 20


@pytest.mark.parametrize("name", sorted({*LESSONS} - {*REBUILT}))  # the others ask for guesses: test_lesson_form.py
def test_it_asks_for_a_prediction(name):
    assert len(re.findall(r"\*\*(?:Predict|Write your prediction)", "\n".join(markdown(read(name))))) >= 2


def test_it_ends_with_a_recap_of_five_lines(lesson):
    recap = "\n".join(markdown(lesson)).split("## Recap")[1]
    assert re.findall(r"(?m)^(\d)\. ", recap) == list("12345")
    assert "**Read on:**" in recap


def test_at_least_three_exercises_check_themselves_and_are_not_attempted(lesson):
    printed = [o["text"] for cell in code(lesson) for o in cell["outputs"] if o["output_type"] == "stream"]
    checks = [line for text in printed for line in text if line.startswith("[not attempted]")]
    assert len(checks) >= 3


def test_outputs_are_clean(lesson):
    text = json.dumps([cell["outputs"] for cell in code(lesson)])
    assert not re.search(r"/(root|home|tmp|Users|work)/", text)
    assert "Warning" not in text and '"stderr"' not in text and '"error"' not in text
    assert not re.search(r"<[\w.]+ (object )?at 0x", text)


def test_figures_have_alternative_text_and_a_widget_has_one_beneath(lesson):
    images = [o for cell in code(lesson) for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert images and all(o["metadata"]["image/png"].get("alt") for o in images)
    assert not list(widgets_have_a_still_figure(lesson))


def test_it_is_small(lesson):
    assert len(json.dumps(lesson)) < 1_500_000
