"""The tiles of lesson 04: which pairs are visited, what is measured and when, and the widget without a browser."""

import copy
import io
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from PIL import Image

import mebqat_lite as mq
from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.course.exercises import lesson_04
from mebqat_lite.course.widgets import visits
from mebqat_lite.course.widgets.visits import Choice, Training, View, compute, pair_visits, picture, say, still
from mebqat_lite.datasets.base import Data

FUNCTIONS = tuple(exercise.reference for exercise in lesson_04.EXERCISES)
CHOICES = st.builds(
    Choice,
    st.sampled_from(visits.SIZES),
    st.booleans(),
    st.sampled_from([*visits.EXCLUDED.values()]),
    st.booleans(),
    st.booleans(),
)


@pytest.fixture(scope="module")
def data():
    whole, few = mq.datasets.digits(), torch.arange(60)
    return Data("few", whole.train.take(torch.arange(150)), whole.val.take(few), whole.test.take(few), whole.classes)


@pytest.fixture(scope="module")
def net(data):
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), "dorefa", sample=data.train.images)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Short trainings, measured at the start, in the middle and at the end."""
    monkeypatch.setattr(visits, "BACKPROPS", 32)
    monkeypatch.setattr(visits, "MEASURED", (16, 32))
    yield
    plt.close("all")


@pytest.fixture
def quick(monkeypatch):
    """Nothing is measured, so that a widget trains at once."""
    monkeypatch.setattr(visits, "measure", lambda net, data: dict.fromkeys(candidates(), 50.0))


# ---------------------------------------------------------------- what is visited


@given(CHOICES)
def test_a_choice_says_which_pairs_are_visited_and_makes_the_same_work(choice):
    assert choice.pool == sorted(p for p in candidates() if p.w not in choice.exclude and p.a not in choice.exclude)
    lowest = Bits(2, 2) if 1 in choice.exclude else Bits(1, 1)
    assert choice.guaranteed == ([FP, lowest] if choice.ends else [])
    assert choice.steps * (1 if choice.in_turn else choice.m) == visits.BACKPROPS


def test_titles_tell_choices_apart():
    assert Choice().title == "MEBQAT" and Choice(in_turn=True).title == "MEBQAT in turn"
    others = Choice(m=8, ends=False, exclude=(3, 5, 7), teacher=False)
    assert others.title == "MEBQAT, M = 8, no ends, never 3, 5 and 7 bits, no teacher"


@pytest.mark.parametrize("choice", [Choice(), Choice(m=2), Choice(in_turn=True), Choice(m=8, ends=False, exclude=(1,))])
def test_a_training_visits_as_its_choice_says_and_measures_all_pairs(net, data, choice):
    training = compute(copy.deepcopy(net), data, choice, FUNCTIONS)
    assert len(training.visited) == 32 and {*training.visited} <= {*choice.pool} and training.choice == choice
    if choice.ends:
        assert all(Counter(training.visited)[end] >= 32 // choice.m for end in choice.guaranteed)
    assert [*training.accuracy] == [0, 16, 32] and all(len(found) == 75 for found in training.accuracy.values())


def test_what_is_measured_is_the_network_at_that_moment(net, data):
    mine = copy.deepcopy(net)
    training = compute(mine, data, Choice(), FUNCTIONS)
    for at, model in ((0, copy.deepcopy(net)), (32, mine)):
        for bits in ("W1A1", "W2A8", "FP"):
            mq.recalibrate(model, data.train.images[: visits.CALIBRATION], bits)
            found = mq.accuracy(model, data.val, bits, "recalibrated")
            assert training.accuracy[at][Bits.parse(bits)] == pytest.approx(found)


def test_measuring_does_not_change_what_is_learned(net, data):
    measured, plain = copy.deepcopy(net), copy.deepcopy(net)
    compute(measured, data, Choice(), FUNCTIONS)
    for _ in lesson_04.train(plain, data.train, 8):
        pass
    for mine, theirs in zip(measured.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_without_a_teacher_the_loss_gets_none(net, data, quick):
    taught = []

    def loss(logits, labels, teacher):
        taught.append(teacher is not None)
        return lesson_04._mebqat_loss(logits, labels, teacher)

    for choice, some in ((Choice(), True), (Choice(teacher=False), False), (Choice(in_turn=True), False)):
        taught.clear()
        compute(copy.deepcopy(net), data, choice, (FUNCTIONS[0], loss, FUNCTIONS[2]))
        assert any(taught) is some and len(taught) == 32


# ---------------------------------------------------------------- the picture


def made(seed: int, choice: Choice = Choice()) -> Training:  # noqa: B008
    rng = np.random.default_rng(seed)
    visited = tuple(rng.choice(np.array(candidates(), dtype=object)) for _ in range(32))
    values = {at: rng.uniform(30, 100, 75) for at in (0, 16, 32)}
    return Training(choice, visited, {at: dict(zip(candidates(), row, strict=True)) for at, row in values.items()})


@given(st.integers(0, 32), st.integers(0, 9))
def test_a_view_counts_the_visits_so_far_and_lights_up_the_last(at, seed):
    view = View(made(seed), at, Bits(1, 1))
    assert view.visits.total() == at and view.lit == {*view.training.visited[max(0, at - visits.BEAT) : at]}
    assert view.training.measured(at) is view.training.accuracy[at // 16 * 16]
    assert [*view.training.curve(len, at)] == [known for known in (0, 16, 32) if known <= at]


def pixels(*views: View) -> np.ndarray:
    """The pixels after moves, drawn anew as a whole."""
    drawing = picture()
    for view in views:
        drawing.update(view)
    canvas = FigureCanvasAgg(drawing.figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def test_the_picture_shows_the_last_view_whatever_was_shown_before():
    last = View(made(1), 16, Bits(2, 2))
    before = View(made(2, Choice(in_turn=True)), 32, FP, made(3))
    assert np.array_equal(pixels(before, last), pixels(last)) and not np.array_equal(pixels(before), pixels(last))


def test_the_board_shows_the_accuracies_and_the_visits():
    view, drawing = View(made(1), 20, Bits(3, 2)), picture()
    drawing.update(view)
    axes = drawing.figure.axes[0]
    written: dict[tuple, list[str]] = {}
    for text in axes.texts:
        if text.get_text().isdigit():
            written.setdefault(text.get_position(), []).append(text.get_text())
    numbers = [f"{value:.0f}" for value in view.training.accuracy[16].values()]
    assert [words[0] for words in written.values()] == numbers
    assert sum(words == 2 * words[:1] for words in written.values()) == len(view.lit)  # again on the orange tile
    [dots] = [part for part in drawing.moving if isinstance(part, PathCollection)]
    every = [Bits(w, a) for w in mq.bits.WIDTHS for a in mq.bits.WIDTHS]
    assert {pair for pair, size in zip(every, dots.get_sizes(), strict=True) if size} == {*view.visits}


def test_the_words_have_the_numbers():
    view = View(made(1), 20, Bits(3, 2))
    accuracy = view.training.accuracy[16]
    words = say(view)
    assert words.startswith(f"MEBQAT, after 20 back-propagations: {len(view.visits)} of 75 pairs were visited; ")
    assert f"mean {sum(accuracy.values()) / 75:.1f} %, lowest {min(accuracy.values()):.1f} %" in words
    assert words.endswith(f"W3A2 {accuracy[Bits(3, 2)]:.1f} %")
    assert f"W3A2 {view.visits[Bits(3, 2)]} times" in visits.describe(view)


def test_a_still_figure_shows_the_end_and_says_so():
    training = made(1)
    assert still(training).get_label() == say(View(training, 32, Bits(1, 1)))


# ---------------------------------------------------------------- the widget


@pytest.fixture
def live(net, data, quick):
    return pair_visits(net, data, FUNCTIONS, [made(1), made(2, Choice(ends=False))])


def test_known_trainings_are_shown_at_once_and_the_first_one_first(live, monkeypatch):
    monkeypatch.setattr(visits, "train", None)
    assert live.result.training == made(1) and live.result.at == 32
    live.controls["ends"].value = False
    assert live.result.training == made(2, Choice(ends=False)) and live.result.other == made(1)
    assert live.error.value == ""


def test_it_trains_what_is_chosen_with_the_functions_that_it_is_given(net, data, quick):
    called = []

    def sample(*args):
        called.append(args[1])
        return FUNCTIONS[0](*args)

    live = pair_visits(net, data, (sample, *FUNCTIONS[1:]), [made(1)])
    before = [weight.clone() for weight in net.parameters()]
    live.controls["m"].value = 8
    assert called == [8] * 4 and len(live.result.training.visited) == live.result.at == 32
    assert all(map(torch.equal, before, net.parameters())) and live.error.value == ""


def test_the_moment_can_be_moved_back_and_nothing_trains_again(live, monkeypatch):
    monkeypatch.setattr(visits, "train", None)
    last = live.pictures[0].value
    live.moment.value = 8
    assert live.result.at == 8 and live.pictures[0].value != last and live.error.value == ""
    live.moment.value = 32
    assert live.pictures[0].value == last


def test_a_training_ends_when_something_else_is_chosen(live):
    live.chosen = Choice(m=8)
    work = live.training(Choice(m=8))
    next(work)
    live.chosen = Choice()
    assert list(work) == [] and live.trainings[Choice(m=8)].visited == ()


def test_in_turn_nobody_teaches_and_the_control_says_so(live):
    live.controls["in_turn"].value = True
    assert live.controls["teacher"].disabled and live.result.training.choice == Choice(in_turn=True)
    live.controls["in_turn"].value = False
    assert not live.controls["teacher"].disabled


@pytest.mark.parametrize(
    ("start", "steps", "end"),
    [("W1A1", [1, 0], "W1A32"), ("W1A32", [1, 0], "W1A32"), ("W2A2", [0, -1], "W3A2"), ("W3A2", [0, 5], "W2A2"),
     ("W16A32", [0, -1], "FP"), ("FP", [5, -5], "FP"), ("W1A1", [-1, 1], "W1A1")],
)  # fmt: skip
def test_arrow_keys_move_over_the_pairs(live, start, steps, end):
    live.pair, touched = start, live.pictures[0]
    touched.steps = [old + new for old, new in zip(touched.steps, steps, strict=True)]
    assert live.pair == end == str(live.result.pair) and live.error.value == ""


@pytest.mark.parametrize(("pair", "chosen"), [("W4A8", "W4A8"), ("FP", "FP"), ("W3A1", "W1A1")])
def test_a_press_on_a_tile_chooses_its_pair(live, pair, chosen):
    axes = live.drawings[0].figure.axes[0]
    bits = Bits.parse(pair)
    x, y = (mq.bits.WIDTHS.index(width) + 0.5 + 0.3 * (width == 32) for width in (bits.a, bits.w))
    live.pictures[0].point = axes.transAxes.inverted().transform(axes.transData.transform((x, y))).tolist()
    assert live.pair == chosen


def test_the_live_picture_is_the_still_one_and_only_its_moving_parts_are_drawn(live, monkeypatch):
    live.moment.value = 24
    monkeypatch.setattr(live.drawings[0]._canvas, "draw", lambda *args: pytest.fail("the whole figure is drawn again"))
    live.moment.value = 16  # nothing was measured between the two
    live.pair = "W2A2"
    shown = np.asarray(Image.open(io.BytesIO(live.pictures[0].value)))
    assert np.array_equal(shown, pixels(live.result))


def test_an_error_of_a_function_is_shown_in_place(net, data, quick):
    def broken(*args):
        raise RuntimeError("no step")

    live = pair_visits(net, data, (*FUNCTIONS[:2], broken), [made(1)])
    live.controls["m"].value = 8
    assert "RuntimeError: no step" in live.error.value
    live.controls["m"].value = 4
    assert live.result.training == made(1)
