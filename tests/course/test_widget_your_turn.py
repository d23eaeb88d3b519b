"""The reader's own task of lesson 05: which questions are asked, what counts as an answer, and what is kept."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mebqat_lite.course.widgets import your_turn
from mebqat_lite.course.widgets.your_turn import QUESTIONS, compared, compute, picture
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.measure.looks import VERMILION


def episode(ways: int = 5, queries: int = 2, shots: int = 1) -> Episode:
    """Each image is a flat grey that says its class and its number."""
    both = torch.arange(ways)[:, None] + torch.linspace(0, 0.5, shots + queries)
    images = (both / ways)[..., None, None, None].expand(-1, -1, 1, 4, 4).clone()
    return Episode(images[:, :shots], images[:, shots:])


@pytest.fixture
def turn():
    return your_turn(episode())


def test_the_question_does_not_cover_its_frame():
    asked = picture(episode()).still(compute(episode())).axes[0]
    assert min(side.get_zorder() for side in asked.spines.values()) > asked.images[0].get_zorder()
    plt.close(asked.figure)


def press(turn, number: int, place: int, wide: int = 5, tall: int = 1) -> None:
    """Press the middle of an example, as the page tells it: shares to the right and upwards, number of the press."""
    turn.pictures[0].point = [(place % wide + 0.5) / wide, 1 - (place // wide + 0.5) / tall, number]


@given(st.integers(2, 30), st.integers(1, 6))
def test_questions_are_queries_with_their_class_and_none_comes_twice(ways, queries):
    task = episode(ways, queries)
    found = compute(task)
    assert len(found.images) == len(found.labels) == min(QUESTIONS, ways * queries)
    assert len(found.images[:, 0, 0].unique()) == len(found.images)
    for image, label in zip(found.images, found.labels, strict=True):
        assert image[0, 0] in task.query[label, :, 0, 0, 0]


def test_the_classes_are_asked_in_no_order():
    labels = compute(episode(10, 1)).labels.tolist()
    assert sorted(labels) == list(range(10)) != labels


@pytest.mark.parametrize(("answers", "right"), [((), 0), ((0,), 0), ("all", 10), ("next", 0)])
def test_right_answers_are_counted(answers, right):
    labels = compute(episode()).labels
    given = {"all": labels.tolist(), "next": ((labels + 1) % 5).tolist()}.get(answers, answers)
    if answers == (0,):
        right = int(labels[0] == 0)
    found = compute(episode(), given)
    assert found.right == right and found.is_done == (len(given) == 10)


@pytest.mark.parametrize("answers", [[5], [-1], [0] * 11])
def test_impossible_answers_are_refused(answers):
    with pytest.raises(ValueError, match="10 questions, and each answer is one of 0 to 4"):
        compute(episode(), answers)


def test_an_episode_of_several_shots_is_refused():
    with pytest.raises(ValueError, match="one example of each character, and the episode has 2"):
        compute(episode(shots=2))


# --- the hand ------------------------------------------------------------------------------------------------------


def test_a_press_answers_and_the_drag_that_follows_does_not(turn):
    press(turn, 1, 3)
    turn.pictures[0].point = [0.1, 0.4, 1]  # the same press, moved
    turn.pictures[0].point = [0.1, 0.5, 1]
    assert turn.answers == (3,) and turn.error.value == ""
    press(turn, 2, 3)  # a second press at the same place
    assert turn.answers == (3, 3) and turn.place == 3
    assert turn.pictures[0].alt == "5 examples, question 3 of 10, the frame is around example 4"


@pytest.mark.parametrize(
    ("start", "steps", "end"),
    [(0, [1, 0], 1), (0, [5, -1], 12), (19, [1, 0], 19), (12, [0, -1], 19), (13, [0, -1], 19), (3, [-5, 5], 0)],
)
def test_arrow_keys_walk_over_the_examples_and_stop_at_their_ends(start, steps, end):
    turn = your_turn(episode(20, 1))
    turn.place = start
    turn.pictures[0].steps = steps
    assert turn.place == end and turn.answers == ()


def test_enter_answers_with_the_example_in_the_frame(turn):
    turn.pictures[0].steps = [2, 0]
    turn.pictures[0].presses += 1
    turn.pictures[0].presses += 1
    assert turn.answers == (2, 2)


def test_a_press_beside_the_examples_answers_nothing():
    turn = your_turn(episode(20, 1))
    press(turn, 1, 20, wide=7, tall=3)  # the last place of the last row is empty
    assert turn.answers == ()
    press(turn, 2, 19, wide=7, tall=3)
    assert turn.answers == (19,)


def test_after_the_last_question_nothing_can_be_touched_and_the_score_stays(turn):
    labels = turn.result.labels.tolist()
    for number, label in enumerate(labels):
        assert turn.pictures[0].area
        press(turn, number + 1, label)
    assert turn.result.is_done and turn.result.right == 10 and turn.pictures[0].area == []
    assert "all 10 questions answered, 10 are right" in turn.pictures[0].alt
    assert "<b>10 of 10</b> are right" in turn.words.value
    turn.pictures[0].presses += 1
    assert len(turn.answers) == 10


def test_until_then_it_does_not_say_what_is_right(turn):
    before = turn.words.value
    press(turn, 1, int(turn.result.labels[0]))
    assert before.replace("0 of 10", "1 of 10") == turn.words.value


# --- the pictures --------------------------------------------------------------------------------------------------


def test_the_question_and_all_examples_are_shown():
    task = episode(20, 1)
    drawing = picture(task)
    asked, known = drawing.figure.axes
    assert [float(image.get_array().mean()) for image in known.images] == pytest.approx(
        task.support.mean((1, 2, 3, 4)).tolist()
    )
    assert [text.get_text() for text in known.texts] == [str(number) for number in range(1, 21)]
    drawing.update(found := compute(task, (4, 4), place=8))
    assert np.allclose(asked.images[0].get_array(), found.images[2])
    drawing.update(compute(task, (4,) * 10))
    assert not asked.images[0].get_visible()
    plt.close(drawing.figure)


def test_the_still_figure_shows_the_same_as_the_widget(turn):
    press(turn, 1, 2)
    figure = turn.still()
    assert figure.get_label() == turn.pictures[0].alt
    plt.close(figure)


def test_answers_stand_beside_the_networks_and_wrong_ones_are_crossed():
    labels = compute(episode()).labels
    mine = labels.clone()
    mine[0] = (mine[0] + 1) % 5
    tasks = {"some": (compute(episode(), mine[:3].tolist()), labels.tolist()), "none": (compute(episode()), [0] * 10)}
    figure = compared(tasks)
    cells = figure.axes[:10]
    network, you = ([cell.texts[row].get_text() for cell in cells] for row in (0, 1))
    assert network == [str(int(label) + 1) for label in labels]
    assert you == [f"✗ {int(mine[0]) + 1}", *(str(int(label) + 1) for label in labels[1:3]), *"–" * 7]
    assert cells[0].texts[1].get_color() == VERMILION
    crossed = sum(cell.texts[0].get_text().startswith("✗") for cell in figure.axes[10:])
    assert crossed == int((labels != 0).sum()) and len(figure.axes) == 20
    plt.close(figure)
