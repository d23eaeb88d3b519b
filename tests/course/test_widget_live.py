"""Live figures without a browser: what is drawn again, what a touch means, and a guess that is marked."""

import io

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from mebqat_lite.course.widgets.live import Drawing, LiveFigure, Part, to_data
from mebqat_lite.course.widgets.mark import Mark, MarkOnAxes
from mebqat_lite.measure import plots

SHARE = st.floats(0, 1)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def drawing(scale: str = "linear") -> Drawing:
    """A line through the origin whose slope is the result; 9 is beyond the axes, which are made longer for it."""
    with plots.style():
        figure, axes = plt.subplots(figsize=(3, 2))
    [line] = axes.plot([0, 1], [1, 1])
    axes.set(xlim=(0, 1), ylim=(1, 10), yscale=scale)

    def update(slope: float) -> None:
        line.set_ydata([1, 1 + slope])
        if slope == 9:
            axes.set_ylim(1, 20)

    return Drawing(figure, "slope {}".format, Part(update, [line]))


def live(compute=lambda n: n, *drawings: Drawing, **more) -> LiveFigure:
    return LiveFigure({"n": ipywidgets.IntSlider(1, 0, 9)}, compute, *(drawings or (drawing(),)), **more)


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("moves", [(2,), (8, 2), (9, 3)])
def test_a_live_picture_is_that_of_a_whole_new_figure(moves):
    shown, still = live(), drawing()
    for n in moves:
        shown.controls["n"].value = n
        still.update(n)
    canvas = FigureCanvasAgg(still.figure)
    canvas.draw()
    assert np.array_equal(pixels(shown.pictures[0].value), np.asarray(canvas.buffer_rgba())[:, :, :3])
    plt.close(still.figure)


def test_only_a_change_of_the_rest_draws_the_whole_figure_again(monkeypatch):
    drawn, draw = [], FigureCanvasAgg.draw
    monkeypatch.setattr(FigureCanvasAgg, "draw", lambda canvas: drawn.append(canvas) or draw(canvas))
    shown = live()
    for n in (2, 5, 8):
        shown.controls["n"].value = n
    assert len(drawn) == 1
    shown.controls["n"].value = 9  # longer axes
    assert len(drawn) == 2
    shown.drawings[0].figure.suptitle("a title")
    shown.controls["n"].value = 2
    assert len(drawn) == 3
    shown.controls["n"].value = 3
    assert len(drawn) == 3


def test_a_live_figure_is_taken_from_pyplot_and_can_still_be_shown_still(capsys):
    before = plt.get_fignums()
    made = drawing()
    shown = live(lambda n: n, made)
    assert plt.get_fignums() == before
    buffer = io.BytesIO()
    made.figure.savefig(buffer, format="png", dpi="figure")
    assert np.array_equal(pixels(buffer.getvalue())[:, :, :3], pixels(shown.pictures[0].value))


def test_a_live_figure_goes_on_after_it_was_shown_still():
    shown, other = live(), live()
    shown.still().savefig(io.BytesIO(), format="png", dpi=50)
    for one in (shown, other):
        one.controls["n"].value = 5
    assert shown.pictures[0].value == other.pictures[0].value


def test_a_still_figure_is_shown_with_its_words(monkeypatch):
    seen, made = [], drawing()
    monkeypatch.setattr("IPython.display.display", seen.append)
    made.update(3)
    plots.show(made.figure)
    assert seen[0].alt == "slope 3" and seen[0].width == made.width == live(lambda n: n, made).pictures[0].width


def test_two_drawings_stand_side_by_side_and_follow_one_result():
    shown = live(lambda n: 2 * n, drawing(), drawing("log"), words=lambda result: f"<b>{result}</b>")
    old = [picture.value for picture in shown.pictures]
    shown.controls["n"].value = 3
    assert [picture.alt for picture in shown.pictures] == ["slope 6", "slope 6"]
    new = [picture.value for picture in shown.pictures]
    assert len({*old, *new}) == 4 and shown.words.value == "<b>6</b>" and shown.result == 6


def test_an_error_stands_in_place_of_the_picture_until_all_is_well_again(caplog):
    shown = live(lambda n: 6 // n)
    shown.touch(shown.drawings[0].figure.axes[0], "touch", lambda x, y: None)
    shown.controls["n"].value = 0
    picture = shown.pictures[0]
    assert 'class="mq-error"' in shown.error.value and caplog.records[0].exc_info[0] is ZeroDivisionError
    assert "ZeroDivisionError: integer division" in shown.error.value
    assert (picture.value, picture.alt, picture.area, picture.busy, shown.words.value) == (b"", "", [], False, "")
    shown.controls["n"].value = 2
    assert shown.error.value == "" and picture.alt == "slope 3" and len(picture.area) == 4


def test_the_words_of_an_error_are_escaped():
    assert "KeyError: &#x27;&lt;b&gt;&#x27;" in live(lambda n: {}["<b>"]).error.value


def test_the_picture_is_busy_while_its_result_is_computed():
    seen = []
    shown = live(lambda n: seen.append([picture.busy for picture in shown.pictures] if n > 1 else None) or n)
    shown.controls["n"].value = 4
    assert seen == [None, [True]] and not shown.pictures[0].busy


def test_a_change_made_by_compute_is_drawn_once_afterwards():
    control, seen = ipywidgets.IntSlider(1, 0, 9), []

    def compute(n: int) -> int:
        seen.append(n)
        control.value = 7 if n > 1 else n
        return n

    shown = LiveFigure({"n": control}, compute, drawing())
    control.value = 4
    assert seen == [1, 4, 7] and shown.pictures[0].alt == "slope 7"


# ---------------------------------------------------------------- touch


TOUCHED = live(lambda n: n, drawing("log"))


@given(SHARE, SHARE)
@settings(max_examples=30, deadline=None)
def test_a_touch_is_heard_in_the_units_of_the_axes(right, up):
    heard, shown = [], TOUCHED
    shown.touch(shown.drawings[0].figure.axes[0], "touch", lambda x, y: heard.append((x, y)))
    shown.pictures[0].point = []
    heard.clear()
    shown.pictures[0].point = [right, up]
    assert heard == [pytest.approx((right, 10**up))]  # the axes go from 1 to 10 by a logarithm


def test_the_area_is_where_the_axes_stand():
    shown = live()
    axes = shown.drawings[0].figure.axes[0]
    shown.touch(axes, "drag the line", lambda x, y: None)
    left, top, width, height = shown.pictures[0].area
    dark = (pixels(shown.pictures[0].value) < 60).all(-1)  # the spines, on the left and beneath
    columns, rows = dark.mean(0).argmax() / dark.shape[1], dark.mean(1).argmax() / dark.shape[0]
    assert (left, top + height) == pytest.approx((columns, rows), abs=0.01) and 0.5 < width < 1 - left
    assert shown.pictures[0].label == "drag the line"


def test_steps_and_presses_are_heard_and_an_error_is_shown():
    heard, shown = [], live()
    axes = shown.drawings[0].figure.axes[0]
    shown.touch(axes, "touch", lambda x, y: 1 / 0, lambda *steps: heard.append(steps), lambda: heard.append("press"))
    picture = shown.pictures[0]
    picture.steps = [1, 0]
    picture.steps = [1, -5]
    picture.presses = 1
    assert heard == [(1, 0), (0, -5), "press"] and shown.error.value == ""
    picture.point = [0.5, 0.5]
    assert "ZeroDivisionError" in shown.error.value


def test_what_cannot_be_touched_now_has_no_area():
    shown = live()
    axes = shown.drawings[0].figure.axes[0]
    shown.touch(axes, "touch", lambda x, y: None, can_touch=lambda: shown.result != 3)
    assert len(shown.pictures[0].area) == 4
    shown.controls["n"].value = 3
    assert shown.pictures[0].area == []
    shown.controls["n"].value = 4
    assert len(shown.pictures[0].area) == 4


# ---------------------------------------------------------------- a guess


def axes_from_0_to_10():
    with plots.style():
        _, axes = plt.subplots(figsize=(3, 2))
    axes.set(xlim=(0, 10), ylim=(0, 10), title="a figure")
    return axes


GUESSES = {axis: MarkOnAxes(axes_from_0_to_10(), axis) for axis in ("x", "y")}


@pytest.mark.parametrize("axis", GUESSES)
def test_there_is_no_guess_until_one_is_marked(axis):
    guess = MarkOnAxes(axes_from_0_to_10(), axis)
    assert guess.value is None and "Click in the figure" in guess.pictures[0].alt


@pytest.mark.parametrize("axis", GUESSES)
@given(right=SHARE, up=SHARE)
@settings(max_examples=20, deadline=None)
def test_a_guess_is_where_the_pointer_was(axis, right, up):
    guess = GUESSES[axis]
    guess.pictures[0].point = [right, up]
    assert guess.value == pytest.approx({"x": 10 * right, "y": 10 * up}[axis], abs=1e-9)


def test_arrow_keys_move_a_guess_within_the_axes():
    guess = MarkOnAxes(axes_from_0_to_10(), "y")
    guess.pictures[0].steps = [3, 5]
    assert guess.value == pytest.approx(6)
    guess.pictures[0].steps = [3, 500]
    assert guess.value == pytest.approx(10) and guess.pictures[0].alt == "a figure, your guess: 10"
    started = MarkOnAxes(axes_from_0_to_10(), "x")
    started.pictures[0].presses = 1
    assert started.value == pytest.approx(5)


def test_the_mark_is_drawn_at_the_guess():
    guess = MarkOnAxes(axes_from_0_to_10(), "y")
    plain = pixels(guess.pictures[0].value)
    guess.pictures[0].point = [0.5, 0.25]
    changed = (pixels(guess.pictures[0].value) != plain).any(-1)
    left, top, _, height = guess.pictures[0].area
    row = changed.mean(1).argmax() / changed.shape[0]
    assert row == pytest.approx(top + 0.75 * height, abs=0.01)
    assert changed[:, : int(left * changed.shape[1])].sum() == 0


def test_a_guess_beside_the_truth_is_seen_wherever_it_lies():
    figure, axes = plt.subplots()
    axes.plot([0, 1], [0, 1])
    Mark(axes, "y", 5.0)
    assert axes.get_ylim()[1] > 5 and axes.get_xlim()[1] < 2
    mark = Mark(axes, "x", -3.0)
    assert axes.get_xlim()[0] < -3 and mark.words.get_text() == "your guess: -3"
    assert not any(artist.get_visible() for artist in Mark(axes, "x").artists)
    plt.close(figure)


def test_an_axis_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="axis is 'z'; take \"y\" for a level"):
        MarkOnAxes(axes_from_0_to_10(), "z")


def test_a_place_becomes_data_and_data_a_place():
    axes = axes_from_0_to_10()
    axes.set_yscale("symlog")
    x, y = to_data(axes, 0.3, 0.7)
    there = axes.transAxes.inverted().transform(axes.transData.transform((x, y)))
    assert there == pytest.approx((0.3, 0.7))
    plt.close(axes.figure)
