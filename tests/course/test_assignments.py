"""The assignments: masters solve themselves, hand-outs hold no solution, graders name mistakes and kill mutants."""

import importlib
import inspect
import itertools
import json
import re
import textwrap
from dataclasses import replace

import nbformat
import pytest
import torch
from capstone import CHOOSE, GRADER, half, points, words
from graders import SEEDS, messages
from guide import ASSIGNMENTS, FOLDER, master, rows
from mutants import mutants

from mebqat_lite.course.classroom.attempts import choose
from mebqat_lite.course.classroom.cells import definitions
from mebqat_lite.course.classroom.grading import Part
from mebqat_lite.course.classroom.submission import Submission

ANSWERS = {name: importlib.import_module(f"answers.assignment_{name[:2]}") for name in ASSIGNMENTS}
PARTS = [(name, part) for name, assignment in ASSIGNMENTS.items() for part in assignment.parts]
seeds = pytest.mark.parametrize("seeds", [SEEDS[:1], pytest.param(SEEDS[1:], marks=pytest.mark.slow)], ids=str)


def label(item):
    """The same name for a case in every process."""
    return item.function if isinstance(item, Part) else item[:30] if isinstance(item, str) else "answer"


every = pytest.mark.parametrize("name", ASSIGNMENTS)
parts = pytest.mark.parametrize(("name", "part"), PARTS, ids=label)


def trains(part):
    """The marks of a part each of whose checks trains a network."""
    return [pytest.mark.slow] if part.function == "choose" else []


def solution(name, function):
    """Source of the master's imports and of its solution of a part, and the function."""
    chosen = choose(Submission.read(master(name), "master").cells, function)
    cells = [*map(definitions, chosen.cells[: chosen.own]), chosen.cells[chosen.own]]
    space: dict = {}
    for cell in cells:
        exec(cell, space)
    return cells, space[function]


# --- masters and hand-outs -------------------------------------------------------------------------------------


@every
def test_a_master_opens_with_what_a_student_needs_and_its_points_add_up(name):
    cells, assignment = nbformat.read(master(name), as_version=4).cells, ASSIGNMENTS[name]
    card = cells[0].source
    assert "**Time** about" in card and "**You need**" in card
    assert f"**Points** {assignment.points} by machine, {sum(assignment.written.values())} by hand" in card
    for part in assignment.parts:
        assert re.search(rf"`{part.function}` \| {part.points} \| {part.minutes} ", card)
        assert any(f"`{part.function}({', '.join(part.arguments)})`" in cell.source for cell in cells)
    by_hand = {c.metadata.nbgrader.grade_id: c.metadata.nbgrader.points for c in cells
               if "nbgrader" in c.metadata and c.metadata.nbgrader.grade}  # fmt: skip
    assert by_hand == assignment.written
    assert 60 <= sum(part.minutes for part in assignment.parts) + 10 <= 130


@every
def test_a_hand_out_holds_no_solution(name):
    pytest.importorskip("nbgrader")
    from mebqat_lite.course.classroom.release import student_version

    handed = student_version(nbformat.read(master(name), as_version=4))
    text = json.dumps(handed)
    assert "BEGIN SOLUTION" not in text and "HIDDEN" not in text
    for part in ASSIGNMENTS[name].parts:
        cells, _ = solution(name, part.function)
        for line in textwrap.dedent(cells[-1]).splitlines():
            if len(line.strip()) > 25 and not line.startswith("def ") and "###" not in line:
                assert line.strip() not in text
        [stub] = [
            cell.source for cell in handed.cells if cell.cell_type == "code" and f"def {part.function}(" in cell.source
        ]
        space: dict = {}
        exec(stub, space)
        assert all(message.startswith("not attempted") for message in messages(space[part.function], part, 0))
    for cell in nbformat.read(master(name), as_version=4).cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            assert cell.source not in text


# --- graders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "part"), [pytest.param(*case, marks=trains(case[1])) for case in PARTS], ids=label)
@seeds
def test_the_masters_solution_gets_all_points(name, part, seeds):
    assert not [
        (seed, lost) for seed in seeds for lost in messages(solution(name, part.function)[1], part, seed) if lost
    ]


@parts
def test_there_are_many_answers(name, part):
    assert len(ANSWERS[name].RIGHT[part.function]) >= 2 and len(ANSWERS[name].WRONG[part.function]) >= 6
    assert tuple(inspect.signature(solution(name, part.function)[1]).parameters) == part.arguments


RIGHT = [
    pytest.param(part, answer, marks=trains(part))
    for name, part in PARTS
    for answer in ANSWERS[name].RIGHT[part.function]
]
WRONG = [
    pytest.param(part, *case, marks=trains(part)) for name, part in PARTS for case in ANSWERS[name].WRONG[part.function]
]


@seeds
@pytest.mark.parametrize(("part", "answer"), RIGHT, ids=label)
def test_right_answers_written_otherwise_get_all_points(part, answer, seeds):
    assert not [(seed, lost) for seed in seeds for lost in messages(answer, part, seed) if lost]


@seeds
@pytest.mark.parametrize(("part", "words", "answer"), WRONG, ids=label)
def test_wrong_answers_lose_points_and_are_named(part, words, answer, seeds):
    for seed in seeds:
        found = [message for message in messages(answer, part, seed) if message]
        assert found and any(re.search(words, message) for message in found), (seed, found)


ONE_KIND = [
    pytest.param(half()[0], "no pair but the guaranteed", id="W1A1 alone"),
    pytest.param(words()[1], "guarantee the pair", id="the baseline, recalibrated"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "named"), ONE_KIND)
def test_a_plan_that_does_not_hold_everywhere_gets_at_most_half_of_the_points(plan, named):
    """``python tests/capstone.py`` tries more plans on all hidden splits."""
    assert points(plan, 0) <= CHOOSE.points / 2
    assert named in messages(lambda: plan, CHOOSE, 0)[-1]


@pytest.mark.parametrize(("few", "many", "want"), [(74.5, 90.0, 8), (74.4, 99.0, 4), (99.0, 89.9, 4), (74.4, 89.9, 2)])
def test_the_points_of_a_plan_follow_from_its_worst_pairs(monkeypatch, few, many, want):
    worst = {"W1A1": few, "W4A4": many, "W2A32": 99.0, "FP": 99.0}
    monkeypatch.setitem(GRADER, "trained", lambda plan, split: worst)
    assert points(words()[0], 0) == want


def test_all_checks_of_a_plan_share_their_hidden_splits_and_each_split_is_used(monkeypatch):
    seen = []
    monkeypatch.setitem(GRADER, "trained", lambda plan, split: seen.append(split) or {"W1A1": 99.0, "FP": 99.0})
    hidden, cases = GRADER["HIDDEN"], set()
    for seed in range(len(hidden)):
        seen.clear()
        points(words()[0], seed)
        start = hidden.index(seen[0])
        assert seen[:5] == [hidden[(start + number) % len(hidden)] for number in range(5)] and set(seen) == {*seen[:5]}
        cases.add(start)
    assert cases == {*range(len(hidden))}


def test_each_setting_of_the_baseline_is_changed_alone():
    first, *others = words()
    changed = [[name for name in first if plan[name] != first[name]] for plan in others]
    assert all(len(names) == 1 for names in changed)
    assert {name for [name] in changed} == set(first) - {"warm_steps"}  # more of which exceeds the budget


def spoil(value):
    """Make zeros of all float tensors in a value, in place; how many there were."""
    if isinstance(value, torch.Tensor):
        if is_float := value.is_floating_point():
            value.data.zero_()
        return int(is_float)
    return sum(
        map(spoil, value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ())
    )


@parts
@pytest.mark.parametrize("kept", [0, 1])
def test_an_answer_that_makes_zeros_of_its_input_passes_no_check(name, part, kept):
    """What is right is found from the grader's own copies, so that zeros are not compared with zeros."""
    spoiled, (_, right) = [], solution(name, part.function)

    def spoiling(*args):
        spoiled.append(spoil(args[kept:]))  # with ``kept`` the first argument, often the weights, is spared
        return right(*args)

    found = messages(spoiling, part, 0) if part.arguments else []
    assert all(found) or not any(spoiled)


@parts
def test_no_mutant_of_the_solution_survives(name, part):
    """Each small change loses points, or stands in EQUIVALENT with the reason why it changes nothing."""
    cells, _ = solution(name, part.function)
    survived = []
    for change, source in mutants(cells[-1]):
        space: dict = {"_same": lambda value: value}
        for cell in [*cells[:-1], source]:
            exec(cell, space)
        checks = enumerate(part.checks)  # one after the other, each with its own seed: the first that kills is enough
        if not any(any(messages(space[part.function], replace(part, checks=(one,)), seed)) for seed, one in checks):
            survived.append(f"{part.function}: {change}")
    assert [change for change in survived if change not in ANSWERS[name].EQUIVALENT] == []


@every
def test_equivalent_mutants_have_a_reason(name):
    assert all(len(reason) > 10 for reason in ANSWERS[name].EQUIVALENT.values())


def collide(calls, number):
    """Whether two of the calls give a rule's generator the same number."""
    return len({number(*call) for call in calls}) < len(calls)


def test_the_calls_of_draw_step_find_every_rule_that_adds_multiples_of_seed_and_step():
    [part] = [part for _, part in PARTS if part.function == "draw_step"]
    grader = part.checks[0].grade.__globals__
    calls, most = grader["grid_of_calls"](), grader["MOST"]
    assert all(0 <= number <= most for call in calls for number in call)
    for factor in range(1, most + 1):
        assert collide(calls, lambda seed, step, a=factor: a * seed + step)
        assert collide(calls, lambda seed, step, b=factor: seed + b * step)
    for a, b in itertools.product(range(100), repeat=2):
        assert collide(calls, lambda seed, step, a=a, b=b: a * seed + b * step)
    assert not collide(calls, lambda seed, step: (most + 1) * seed + step)


def test_the_seed_decides_the_input_and_the_random_state_is_left_alone():
    name, part = PARTS[0]
    torch.manual_seed(0)
    want = torch.rand(2)
    torch.manual_seed(0)
    messages(solution(name, part.function)[1], part, 3)
    assert torch.equal(torch.rand(2), want)


def test_the_guide_lists_the_assignments():
    """``python tests/guide.py`` writes the table."""
    text = (FOLDER / "INSTRUCTOR.md").read_text()
    assert text.split("<!-- assignments -->\n")[1].split("<!-- /assignments -->")[0] == rows()
