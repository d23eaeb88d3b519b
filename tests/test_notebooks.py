"""The form of the lessons as they are stored; nbval runs them."""

import itertools
import json
import re

import pytest

from mebqat_lite import paths

ROOT = paths.checkout()

LESSONS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request):
    return json.loads(request.param.read_text())


def code(lesson: dict) -> list[dict]:
    return [cell for cell in lesson["cells"] if cell["cell_type"] == "code"]


def prose(lesson: dict) -> str:
    return "\n".join("".join(cell["source"]) for cell in lesson["cells"] if cell["cell_type"] == "markdown")


def test_there_are_lessons():
    assert [path.stem[:2] for path in LESSONS] == [f"{number:02}" for number in range(len(LESSONS))] != []


def test_it_opens_with_a_card(lesson):
    card = "".join(lesson["cells"][0]["source"])
    for part in ("You will be able to", "You need", "Time", "minutes", "You have built"):
        assert part in card


def test_it_ran_from_top_to_bottom_within_the_seconds_of_its_card(lesson):
    assert [cell["execution_count"] for cell in code(lesson)] == list(range(1, len(code(lesson)) + 1))
    promised = re.search(r"runs in under (\d+) seconds", "".join(lesson["cells"][0]["source"]))
    assert lesson["metadata"]["mebqat_lite"]["seconds"] < int(promised[1]) <= 75


def test_cells_are_short(lesson):
    assert max(len(cell["source"]) for cell in code(lesson)) <= 20


def test_it_asks_for_a_prediction_and_ends_with_a_recap_of_five_lines(lesson):
    text = prose(lesson)
    assert len(re.findall(r"\*\*(?:Predict|Write your prediction)", text)) >= 2
    recap = text.split("## Recap")[1]
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
    cells = code(lesson)
    images = [o for cell in cells for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert images and all(o["metadata"]["image/png"].get("alt") for o in images)
    for cell, below in itertools.pairwise(cells):
        if any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in cell["outputs"]):
            assert any("image/png" in o.get("data", {}) for o in below["outputs"])


def test_it_is_small(lesson):
    assert len(json.dumps(lesson)) < 1_500_000
