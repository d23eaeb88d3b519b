"""Guesses: asked by a slider or by buttons, answered by one sentence, and never needed."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mebqat_lite.course import guess


@pytest.fixture
def shown(monkeypatch):
    """What is displayed."""
    seen = []
    monkeypatch.setattr(guess, "display", lambda value, **options: seen.append(value))
    return seen


def test_the_question_is_text_above_the_controls(shown):
    my = guess.number("How many percent at W1A1?", unit="%")
    assert shown == [{"text/markdown": "**Your guess:** How many percent at W1A1?",
                      "text/plain": "How many percent at W1A1?"}, my]  # fmt: skip


def test_nothing_is_said_before_the_reader_has_moved_something(shown):
    assert guess.number("How many?").value is None
    assert guess.choice("Does it hold?", ["yes", "no"]).value is None


def test_a_stored_page_shows_words_in_the_place_of_the_controls(shown):
    data, _ = guess.choice("Does it hold?", ["yes", "no"])._repr_mimebundle_()
    assert data["text/plain"] == "Run the notebook to answer with a guess."
    assert "application/vnd.jupyter.widget-view+json" in data


@pytest.mark.parametrize("bad", [{"low": 3, "high": 3}, {"low": 1, "high": 0}, {"step": 0}, {"step": -1},
                                 {"high": float("inf")}, {"high": 5, "step": 6}])  # fmt: skip
def test_a_range_without_a_choice_is_refused(bad, shown):
    with pytest.raises(ValueError, match="leaves no choice"):
        guess.number("How many?", **bad)
    assert not shown


@pytest.mark.parametrize("options", [[], ["yes"], ["yes", "yes"]])
def test_a_choice_of_one_is_refused(options, shown):
    with pytest.raises(ValueError, match="at least two options, all different"):
        guess.choice("Does it hold?", options)


# --- the answer ------------------------------------------------------------------------------------------------


def mine(value, unit=""):
    return SimpleNamespace(value=value, unit=unit)


@pytest.mark.parametrize(
    ("my", "truth", "options", "sentence"),
    [
        (mine(70, "%"), 31.4, {}, "You said 70 %; it is 31.4 %, 38.6 points lower."),
        (mine(20, "%"), torch.tensor(31.44), {}, "You said 20 %; it is 31.4 %, 11.4 points higher."),
        (mine(None, "%"), 31.4, {}, "It is 31.4 %."),
        (mine(None), "yes", {}, "It is yes."),
        (mine(4), 3.8, {}, "You said 4; it is 3.8, 0.2 lower."),
        (mine(6, "dB"), 6.02, {"digits": 0}, "You said 6 dB, and that is right."),
        (mine(0.03), 0.0123, {"digits": 3}, "You said 0.030; it is 0.012, 0.018 lower."),
        (mine(-1), -0.04, {}, "You said -1; it is 0, 1 higher."),
        (mine(100), 16384, {}, "You said 100; it is 16,384, 16,284 higher."),
        (mine("no"), "yes", {}, "You said no; it is yes."),
        (mine("yes"), "yes", {}, "You said yes, and that is right."),
        (SimpleNamespace(value=4.0), 4, {}, "You said 4, and that is right."),  # a mark has no unit
    ],
)
def test_every_guess_is_answered(my, truth, options, sentence):
    assert guess.said(my, truth, **options) == sentence


@pytest.mark.parametrize(("value", "truth"), [("no", 3.0), (3.0, "yes")])
def test_things_of_two_kinds_are_not_compared(value, truth):
    with pytest.raises(TypeError, match="cannot be compared: give two of one kind"):
        guess.said(mine(value), truth)


numbers = st.floats(-1000, 1000)


@given(numbers, numbers, st.integers(0, 4))
def test_the_numbers_of_the_sentence_add_up(value, truth, digits):
    sentence = guess.said(mine(value, "%"), truth, digits)
    found = [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?", sentence)]
    if sentence.endswith("and that is right."):
        assert max(abs(found[0] - truth), abs(found[0] - value)) <= 0.51 * 10**-digits
    else:
        said, told, away = found
        assert said + (away if "higher" in sentence else -away) == pytest.approx(told, abs=1e-6)
        assert away > 0 and told == pytest.approx(truth, abs=0.51 * 10**-digits)


def test_a_widget_is_answered_as_any_guess(shown):
    my = guess.number("How many percent?", unit="%")
    assert guess.said(my, 5) == "It is 5 %."
    my.value = 7  # as the page sends it
    assert guess.said(my, 5) == "You said 7 %; it is 5 %, 2 points lower."


@pytest.mark.slow
def test_without_anywidget_the_error_says_what_to_install():
    code = "import sys; sys.modules['anywidget'] = None; from mebqat_lite.course import guess"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1 and 'pip install "mebqat_lite[lab]"' in run.stderr.splitlines()[-1]
