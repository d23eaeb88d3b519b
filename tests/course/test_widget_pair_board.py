"""The board of lesson 00: what two networks read at the chosen pair, against a plain loop, and how a pair is chosen."""

import importlib
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mebqat_lite as mq
from mebqat_lite.bits import WIDTHS, Bits
from mebqat_lite.course.widgets import pair_board as make
from mebqat_lite.course.widgets.pair_board import Answers, compute, mosaic, picture
from mebqat_lite.datasets.base import Data
from mebqat_lite.measure.boards import GAP, pair_at
from mebqat_lite.switching.state import setting_of

MODULE = importlib.import_module("mebqat_lite.course.widgets.pair_board")  # the package has a function of its name
FEW = torch.arange(40)
WIDTH = st.sampled_from(WIDTHS)


@pytest.fixture(scope="module")
def data() -> Data:
    whole = mq.datasets.digits()
    return Data("few", whole.train.take(torch.arange(100)), whole.val, whole.test.take(FEW), whole.classes)


@pytest.fixture(scope="module")
def networks(data) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    nets = {name: mq.models.digit_net(widths=(4, 4, 4, 4)) for name in ("FP + PTQ-MSE", "QAT for W4A4", "MEBQAT")}
    return {name: mq.quantize(net, "dorefa", sample=data.train.images) for name, net in nets.items()}


@pytest.fixture(scope="module")
def board(networks, data):
    accuracies = {name: {"W1A1": 31.4 + number, "FP": 97.0} for number, name in enumerate(networks)}
    return make(networks, accuracies, data, "W2A2")


@pytest.mark.parametrize("bits", ["W2A2", "FP", "W32A4", "W3A1"])
def test_answers_are_those_of_a_plain_loop(networks, data, bits):
    model = networks["MEBQAT"].train()
    before = {name: value.clone() for name, value in model.state_dict().items() if "stats_" not in name}
    found = compute(model, data, bits)
    assert model.training and (setting_of(model).bits, setting_of(model).norm_stats) == (mq.FP, "running")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    mq.recalibrate(model.eval(), data.train.images, bits)
    with mq.at(model, bits, "recalibrated"), torch.no_grad():
        one_by_one = torch.cat([model(image[None]).argmax(1) for image in data.test.images])
    assert torch.equal(found, one_by_one)


def test_statistics_are_measured_once_for_a_pair(networks, data, monkeypatch):
    compute(networks["MEBQAT"], data, "W5A6")
    monkeypatch.setattr(MODULE, "recalibrate", lambda *args: pytest.fail("measured again"))
    compute(networks["MEBQAT"], data, "W5A6")


def test_both_sides_show_their_network_at_the_chosen_pair(board, networks, data):
    board.controls["left"].value = "FP + PTQ-MSE"
    for pair in ("W2A2", "W1A1"):
        board.pair = pair
        for found, name, shown in zip(board.result, ("FP + PTQ-MSE", "MEBQAT"), board.pictures, strict=True):
            wrong = int((compute(networks[name], data, pair) != data.test.labels).sum())
            assert (found.title, len(found.wrong), found.accuracy) == (name, wrong, pytest.approx(2.5 * (40 - wrong)))
            assert shown.alt == f"{name} at {pair}: {wrong} of 40 test images are read wrongly"
            assert f"{name} reads {40 - wrong}" in board.words.value


def test_another_network_comes_to_the_left_with_its_own_board(board):
    board.controls["left"].value = "QAT for W4A4"
    left, right = (drawing.figure.axes[0] for drawing in board.drawings)
    assert (left.get_title(), right.get_title()) == ("QAT for W4A4", "MEBQAT")
    assert {text.get_text() for text in left.texts} == {"", "32", "97"}
    assert {text.get_text() for text in right.texts} == {"", "33", "97"}
    assert board.controls["left"].options == ("FP + PTQ-MSE", "QAT for W4A4")


def press(board, side: int, pair: str) -> None:
    """Press the middle of a pair's cell, as the page tells it: in shares of the axes."""
    axes = board.drawings[side].figure.axes[0]
    for text, bits in zip(axes.texts, [Bits(w, a) for w in WIDTHS for a in WIDTHS], strict=True):
        if str(bits) == pair:
            inches = axes.transData.transform(text.get_position())
            board.pictures[side].point = axes.transAxes.inverted().transform(inches).tolist()


@pytest.mark.parametrize(("side", "pair"), [(0, "W8A2"), (1, "W1A32"), (1, "FP"), (0, "W3A1")])
def test_a_press_on_either_board_chooses_the_pair(board, side, pair):
    press(board, side, pair)
    assert board.pair == pair == str(board.result[0].bits) and board.error.value == ""


def test_a_press_between_the_cells_chooses_nothing(board):
    board.pair = "W4A4"
    board.pictures[0].point = [9.15 / 10.3, 0.5]  # between 16 bits and full precision
    assert board.pair == "W4A4"


@pytest.mark.parametrize(
    ("start", "steps", "end"),
    [
        ("W2A2", [1, 0], "W2A3"),
        ("W2A2", [0, 1], "W1A2"),
        ("W2A2", [0, -5], "W7A2"),
        ("W8A8", [5, -5], "FP"),
        ("W1A1", [-1, 1], "W1A1"),
    ],
)
def test_arrow_keys_walk_over_the_board_and_stop_at_its_edges(board, start, steps, end):
    board.pair, touched = start, board.pictures[1]
    touched.steps = [old + new for old, new in zip(touched.steps, steps, strict=True)]
    assert board.pair == end


def test_a_pair_outside_the_candidates_runs_and_says_so(board):
    board.pair = "W3A1"
    assert "W3A1 is not one of the 75 pairs: no method trained for it." in board.words.value
    board.pair = "W3A3"
    assert "75 pairs" not in board.words.value


def test_only_the_moving_parts_are_drawn_at_a_new_pair(board, monkeypatch):
    board.pair = "W2A2"
    for drawing in board.drawings:
        monkeypatch.setattr(drawing._canvas, "draw", lambda *args: pytest.fail("the whole figure is drawn again"))
    board.pair = "W1A1"
    assert board.error.value == ""


# --- the picture -----------------------------------------------------------------------------------------------


def answers(data, wrong: list[int]) -> Answers:
    predicted = data.test.labels.clone()
    predicted[wrong] = (predicted[wrong] + 1) % 10
    return Answers("MEBQAT", Bits(2, 2), {"W2A2": 90.0}, predicted, data.test.labels)


def red(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > pixels[..., 2] + 0.3).any(axis=(1, 2))


def test_wrong_images_are_red_in_the_sheet_and_the_first_stand_large_with_the_answers(data):
    wrong = [1, 2, 3, 5, 8, 13, 21, 34, 38]
    drawing = picture(data.test, (30, 100), side=0)
    drawing.update([answers(data, wrong)])
    _, sheet, large = drawing.figure.axes
    shown = np.asarray(sheet.images[0].get_array()).reshape(2, 8, 36, 8, 3).swapaxes(1, 2).reshape(72, 8, 8, 3)
    assert red(shown).nonzero()[0].tolist() == wrong and (shown[40:] == 1).all()
    read = [text.get_text() for text in large.texts]
    assert read == [f"as {(int(data.test.labels[i]) + 1) % 10}" for i in wrong[:8]]
    assert sheet.texts[0].get_text() == "W2A2: 9 of 40 read wrongly (orange)"
    drawing.update([answers(data, [7])])
    assert [text.get_text() for text in large.texts][1:] == [""] * 7
    plt.close(drawing.figure)


def test_with_no_wrong_answer_nothing_stands_large(data):
    drawing = picture(data.test, (30, 100), side=0)
    assert drawing.update([answers(data, [])]) == "MEBQAT at W2A2: 0 of 40 test images are read wrongly"
    assert (np.asarray(drawing.figure.axes[2].images[0].get_array()) == 1).all()
    plt.close(drawing.figure)


@given(st.integers(0, 9), st.integers(1, 4), st.integers(0, 2**31))
def test_a_mosaic_holds_each_image_in_its_place(count, wide, seed):
    images = np.random.default_rng(seed).random((count, 2, 3, 3))
    sheet = mosaic(images, wide)
    for number, image in enumerate(images):
        row, column = divmod(number, wide)
        assert np.array_equal(sheet[2 * row : 2 * row + 2, 3 * column : 3 * column + 3], image)
    assert sheet.sum() == pytest.approx(images.sum() + 3 * (sheet.size / 3 - count * 6))


def test_the_still_figure_shows_both_sides_and_says_so(board):
    board.pair = "W2A2"
    figure = board.still()
    assert figure.get_label() == "; ".join(shown.alt for shown in board.pictures)
    assert [axes.get_title() for axes in figure.axes][::3] == [found.title for found in board.result]
    plt.close(figure)


def test_the_picture_is_a_page_wide(board):
    sizes = [Image.open(io.BytesIO(shown.value)).size for shown in board.pictures]
    assert sum(width for width, _ in sizes) == pytest.approx(784, abs=2)


def test_a_failure_is_shown_in_place(board, monkeypatch):
    def broken(*args):
        raise RuntimeError("no answer")

    monkeypatch.setattr(MODULE, "compute", broken)
    board.pair = "W6A6"
    assert "RuntimeError: no answer" in board.error.value and board.pictures[0].value == b""
    monkeypatch.undo()
    board.pair = "W7A7"
    assert board.error.value == "" and board.pictures[0].value


@pytest.mark.parametrize("widths", [(0.0, 0.0), (9.1, 3.0), (11.0, 2.0), (-0.1, 2.0)])
def test_points_beside_the_cells_belong_to_no_pair(widths):
    found = pair_at(*widths)
    assert found == (Bits(1, 1) if widths == (0.0, 0.0) else None)


@given(WIDTH, WIDTH, st.floats(0, 0.99), st.floats(0, 0.99))
def test_each_point_of_a_cell_belongs_to_its_pair(w, a, x, y):
    left, top = (WIDTHS.index(bits) + GAP * (bits == 32) for bits in (a, w))
    assert pair_at(left + x, top + y) == Bits(w, a)
