"""A class of made submissions, right, wrong, broken and hostile: each gets what it must, and none costs another."""

import sys

import pytest

from benchmarks.classroom.graded import Class
from benchmarks.classroom.made import FOUR, ONE, SEVEN, SIX, TIGHT, TWO
from mebqat_lite.course.classroom.sandbox import LAYERS, layers

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")]
PARTS = {  # two of each: a process for each costs some seconds
    ONE: ("affine_range", "sqnr"), TIGHT: ("affine_range", "sqnr"), TWO: ("lsq", "qat_step"),
    FOUR: ("draw_step", "mean_gradients"), SIX: ("normalized", "proto_logits"), SEVEN: ("worst_pairs", "decide"),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = Class(tmp_path_factory.mktemp("class"), PARTS, workers=2)
    yield made
    made.outside.close()


@pytest.mark.parametrize("kind", ["right", "wrong", "broken", "hostile"])
def test_each_gets_what_it_must(made, kind):
    students = [student for student, case in made.cases.items() if case.kind == kind]
    if kind == "hostile" and not students:
        pytest.skip(f"this machine grants {layers()} alone, of {LAYERS}")
    assert len(students) >= 10
    assert {student: faults for student in students if (faults := made.faults(student))} == {}


def test_nothing_is_left_outside_and_everybody_has_a_row(made):
    assert made.others() == []


def test_there_are_many_of_all_assignments(made):
    if layers() != LAYERS:
        pytest.skip(f"this machine grants {layers()} alone: no hostile one was handed in")
    assert len(made.cases) >= 60 and {case.assignment for case in made.cases.values()} == set(PARTS)
