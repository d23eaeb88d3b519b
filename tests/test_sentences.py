"""Each sentence of a lesson that states a number or a comparison is held to the outputs that are stored with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lessons import FOLDER, REBUILT
from sentences import TABLES, Table, check, evaluate, faults, flagged, held_elsewhere, pull, sentences

NAMES = sorted(
    {*REBUILT, *(path.stem for file in TABLES.glob("*.toml") for path in FOLDER.glob(f"{file.stem}_*.ipynb"))}
)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_lesson_says_is_what_it_has_stored(name):
    found = check(name)
    assert not found, f"tests/sentences/{name[:2]}.toml:\n" + "\n".join(found)


def test_each_table_belongs_to_a_lesson():
    assert sorted(path.stem for path in TABLES.iterdir()) == [name[:2] for name in NAMES]


def test_words_that_claims_and_tests_of_a_lesson_hold_are_known():
    assert "with 8-bit ones (W8A8) 85.9 %" in held_elsewhere("01_quantization")
    assert "More than one point from nothing." in held_elsewhere("07_compare_and_decide")


# --- on a made lesson ------------------------------------------------------------------------------------------


def lesson(*texts: str, printed: str = "PTQ   67.8  98.1\nQAT   91.0\n") -> dict:
    outputs = [{"output_type": "stream", "text": [printed]}]
    cells = [{"cell_type": "markdown", "source": [text]} for text in ("the card: 99 %", *texts)]
    return {"cells": [*cells, {"cell_type": "code", "id": "c1", "source": [], "outputs": outputs}]}


NUMBERS = {"ptq": r"PTQ +([\d.]+)", "qat": {"cell": "c1", "reads": r"QAT +([\d.]+)"}}
SAYS = "At one bit PTQ reads 67.8 %."
TRUE = {"says": SAYS, "holds": "ptq == 67.8 < qat"}
MADE = lesson(f"# PTQ at 12 %\n\n{SAYS} There is `1.5` more in\n$a = 2.5$, exercise 1.3 and [one](a2.2.html).")


def found(*entries: dict, made: dict = MADE, numbers: dict = NUMBERS, definitions=(), elsewhere=()) -> list[str]:
    return list(faults(made, Table(numbers, list(entries), {"says": list(definitions)}), list(elsewhere)))


def test_a_true_sentence_that_is_listed_is_no_fault():
    assert found(TRUE) == []


def test_a_sentence_that_is_not_listed_is_named_with_what_to_add():
    [fault] = found(numbers={})
    assert fault.startswith("'67.8 %' is stated and not checked. Add this, or put the words under [definitions]")
    assert f"[[sentence]]\nsays = '''{SAYS}'''\nholds = " in fault


def test_words_of_a_definition_or_of_another_test_are_covered():
    assert found(numbers={}, definitions=[SAYS]) == found(numbers={}, elsewhere=["PTQ reads 67.8 %"]) == []


def test_words_that_leave_the_number_out_do_not_cover_it():
    assert "'67.8 %' is stated" in found(numbers={}, definitions=["At one bit PTQ"])[0]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"holds": "ptq == 67.8 > qat"}, "is not so: ptq == 67.8 > qat is False, where {'ptq': 67.8, 'qat': 91.0}"),
        ({"holds": "ptq - 67.8 + qat"}, "is not so: ptq - 67.8 + qat is 91.0"),  # no comparison
        ({"holds": "67.8 < 91"}, "compares no number of [numbers]"),
        ({"holds": ""}, "compares no number of [numbers]"),
        ({"holds": "ptq < qat"}, "states '67.8 %', which does not stand in holds = 'ptq < qat'"),
        ({"says": "At two bits PTQ reads 67.8 %."}, "does not stand in the lesson"),
        ({"holds": "ptq == 67.8"}, "the number 'qat' is read by no sentence"),
    ],
)
def test_a_sentence_that_does_not_hold_is_named(entry, message):
    assert any(message in fault for fault in found(TRUE | entry))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (r"LSQ +([\d.]+)", "matches 0 times"),
        (r"([\d.]+)", "matches 3 times"),
        ({"cell": "c2", "reads": r"PTQ +([\d.]+)"}, "matches 0 times"),
        (r"(PTQ)", "is no number"),
        (r"PTQ", "is no number"),
    ],
)
def test_a_number_is_pulled_out_once(entry, message):
    with pytest.raises(ValueError, match=message):
        pull({"one": entry}, {"c1": "PTQ   67.8  98.1\nQAT   91.0\n"})
    assert pull({"one": r"size ([\d,]+)"}, {"c1": "size 16,384 bytes"}) == {"one": 16384}


@pytest.mark.parametrize(
    ("sentence", "places"),
    [
        ("It is 31.4 % at 2 bits.", ["31.4 %"]),
        ("It loses 3 points and 6 dB in 16,384 bytes.", ["3 points", "6 dB", "16,384 bytes"]),
        ("W2A2 has 4 levels in lesson 03.", []),
        ("PTQ is worse than QAT.", ["worse"]),
        ("A larger step is worse for you.", []),  # names nothing that is measured
        ("The best accuracy falls to nearly half.", ["best", "falls", "half"]),
        ("See exercise 1.3 and $s = 0.5$, `0.5` and [this](https://a.b/1.5).", []),
        ("Zhou et al. (arXiv 1606.06160) say 1.5.", ["1.5"]),
    ],
)
def test_what_looks_measured(sentence, places):
    assert [sentence[start:end] for start, end in flagged(sentence)] == places


def test_text_is_taken_apart_into_sentences():
    made = lesson(
        "## A 3 % title\n\nOne *here.* Two is\nlong: e.g. this. \n\n1. Three\n2. Four (x). Five\n\n```\n9 %\n```"
    )
    assert sentences(made) == ["One *here.*", "Two is long: e.g. this.", "1. Three", "2. Four (x).", "Five"]


# --- the comparisons -------------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6)


@given(numbers, numbers, numbers)
def test_comparisons_mean_what_they_mean_in_python(a, b, c):
    values = {"a": a, "b": b, "c": c}
    assert evaluate("a < b <= c", values) is (a < b <= c)
    assert evaluate("a > b or not b != c and abs(a - c) > 1", values) is (a > b or (b == c and abs(a - c) > 1))
    assert evaluate("max(a, b) * 2 - -c / 4", values) == max(a, b) * 2 - -c / 4
    assert evaluate("min(a, b, c) ** 2 + round(a)", values) == min(a, b, c) ** 2 + round(a)


@pytest.mark.parametrize("bad", ["unknown < 1", "a.real", "[a]", "__import__('os')", "a if a else 1", "'x' < 'y'",
                                 "abs(x=a)", "a in b", "lambda: a", "eval(a)", "a and print(a)"])  # fmt: skip
def test_nothing_else_is_evaluated(bad):
    with pytest.raises(ValueError, match="is no number of"):
        evaluate(bad, {"a": 1.0, "b": 2.0})
