"""The board of the pairs holds every value in its place, also after it was changed; so do tables."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.colors import to_hex

import mebqat_lite as mq
from mebqat_lite.bits import WIDTHS, Bits
from mebqat_lite.measure import looks, plots

PAIRS = mq.candidates()
VALUES = {pair: 20.0 + number for number, pair in enumerate(PAIRS)}


@pytest.fixture(autouse=True)
def closing():
    yield
    plt.close("all")


def shown(board) -> dict[Bits, str]:
    """The numbers that are written, by pair."""
    return {pair: text.get_text() for pair, text in board.texts.items() if text.get_text()}


def colors(board) -> dict[Bits, str]:
    """The colours of the cells, as they are drawn."""
    board.cells.update_scalarmappable()  # which drawing does, too
    return {pair: to_hex(color, True) for pair, color in zip(board.texts, board.cells.get_facecolor(), strict=True)}


def test_a_board_takes_what_a_grid_measured():
    assert shown(plots.board(pd.Series({str(pair): value for pair, value in VALUES.items()}))) == shown(
        plots.board(VALUES)
    )


def test_every_value_is_written_in_the_cell_of_its_pair():
    board = plots.board(VALUES)
    assert shown(board) == {pair: f"{value:.0f}" for pair, value in VALUES.items()} and len(board.texts) == 100
    for pair, text in board.texts.items():
        assert board.at(*text.get_position()) == pair
    names = [label.get_text() for label in board.axes.get_xticklabels()]
    assert names == [label.get_text() for label in board.axes.get_yticklabels()] == [*map(str, WIDTHS[:-1]), "FP"]
    assert (board.axes.get_xlabel(), board.axes.get_ylabel()) == ("activation bits", "weight bits")


def test_weight_bits_run_down_activation_bits_across_and_full_precision_is_apart():
    board = plots.board(VALUES)
    places = {str(pair): board.axes.transData.transform(text.get_position()) for pair, text in board.texts.items()}
    (x1, y1), (x2, y2), (x3, y3) = (places[pair] for pair in ("W2A2", "W2A3", "W3A2"))
    assert x1 == x3 < x2 and y1 == y2 > y3  # pixels count upwards
    columns = [places[f"W2A{width}"][0] for width in WIDTHS[:-1]]
    assert places["W2A32"][0] - columns[-1] > 1.2 * max(np.diff(columns))


@pytest.fixture(scope="module")
def used() -> plots.Board:
    """A board that all examples change."""
    return plots.board(VALUES, limits=(0, 100), decimals=1)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(PAIRS), st.floats(0, 100) | st.just(math.nan)))
def test_a_board_can_be_changed_to_any_values(used, values):
    used.update(values, "W2A2")
    known = {pair: value for pair, value in values.items() if math.isfinite(value)}
    assert shown(used) == {pair: f"{value:.1f}" for pair, value in known.items()} and used.frame.get_visible()
    found = colors(used)
    assert {p: found[p] for p in known} == {p: to_hex(colormaps["cividis"](v / 100), True) for p, v in known.items()}
    assert {found[pair][-2:] for pair in set(found) - set(known)} <= {"00"}  # an empty cell is transparent


def test_the_board_says_what_it_shows():
    board = plots.board({"W2A2": 80.25, "W4A4": 97.0, "FP": math.nan}, "A network", decimals=1)
    told = "A network: 2 pairs, from 80.2 at W2A2 to 97.0 at W4A4"
    assert board.figure.get_label() == told
    assert board.update({"W2A2": 80.25, "W4A4": 97.0}, "W4A4") == f"{told}; W4A4: 97.0" == board.figure.get_label()
    assert board.update({}, "W3A1") == "A network: 0 pairs; W3A1: no value"


def test_only_the_moving_artists_move():
    board = plots.board(VALUES, chosen="W2A4", limits=(0, 100))
    for artist in board.moving:
        artist.set_visible(False)
    for _ in "12":  # the first one places the axes
        board.figure.canvas.draw()
    before = np.array(board.figure.canvas.buffer_rgba())
    board.update(dict.fromkeys(PAIRS, 50.0), "W3A3")
    for artist in board.moving:
        artist.set_visible(False)
    board.figure.canvas.draw()
    assert np.array_equal(before, board.figure.canvas.buffer_rgba())


def test_the_chosen_pair_is_framed_and_dashed_if_it_is_no_candidate():
    board = plots.board(VALUES)
    for pair, dash in (("W2A4", "-"), ("W3A1", "--"), ("FP", "-")):
        board.update(VALUES, pair)
        x, y = board.frame.get_xy()
        assert board.at(x + 0.5, y + 0.5) == Bits.parse(pair) and board.frame.get_linestyle() == dash
    board.update(VALUES)
    assert not board.frame.get_visible()


def test_cells_that_are_no_pair_are_hatched():
    board = plots.board(VALUES)
    hatched = [patch for patch in board.axes.patches if patch.get_hatch()]
    places = {board.at(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in hatched}
    assert places == {Bits(w, a) for w in WIDTHS for a in WIDTHS} - set(PAIRS) and len(places) == 25


def test_a_point_beside_the_cells_is_no_pair():
    board = plots.board(VALUES)
    ninth = board.texts[Bits(16, 16)].get_position()[0] + 0.5
    assert [board.at(x, y) for x, y in ((-0.1, 1), (1, 11), (ninth + 0.1, 1))] == [None] * 3


def test_numbers_can_be_read():
    board = plots.board(VALUES, limits=(20, 95))
    for pair, color in colors(board).items():
        if pair in VALUES:
            light = looks.luminance([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
            white = board.texts[pair].get_color() == looks.WHITE
            assert (1.05 / (light + 0.05) if white else (light + 0.05) / 0.05) >= 4.5


def test_a_width_that_is_not_on_the_board_is_refused():
    with pytest.raises(ValueError, match="W9A9 has no place on the board, whose widths are 1, 2, 3"):
        plots.board({"W9A9": 50.0})


@pytest.mark.parametrize(
    ("values", "limits"), [([31.0, 98.0], (30, 100)), ([99.0, 99.5], (90, 100)), ([50.0], (50, 51))]
)
def test_colours_span_the_tens_around_the_values(values, limits):
    board = plots.board(dict(zip(PAIRS, values, strict=False)))
    assert board.cells.get_clim() == limits
    assert board.figure.axes[1].get_ylabel() == "accuracy (%)"


def test_two_wide_tables_stand_side_by_side_on_the_page_if_their_numbers_fit():
    wide = np.full((10, 10), 98.0)
    names = list("abcdefghij")
    sizes = {}
    for decimals in (0, 3):
        figure = plots.tables({"one": wide, "two": wide}, names, names, label="x", decimals=decimals)
        figure.canvas.draw()
        sizes[decimals] = [axes.get_position().y0 for axes in figure.axes[:2]]
        boxes = [text.get_window_extent() for text in figure.axes[0].texts[:10]]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert sizes[0][0] == sizes[0][1] and sizes[3][0] > sizes[3][1]
