"""Every figure fits the page, in letters that can be read, on white under any theme."""

import inspect
import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.display import Image
from matplotlib.text import Text
from PIL import Image as Picture

import mebqat_lite as mq
from mebqat_lite.measure import boards, looks, plots
from mebqat_lite.paths import checkout

X = torch.linspace(-1, 1, 41)
CURVES = {name: X * number for number, name in enumerate(("a", "b", "c"))}
CELL = {"mean": 90.0, "ci95": 1.0, "n": 3}
PAIRS = ["W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "FP"]
CELLS = dict.fromkeys(PAIRS, CELL)
ROWS = dict.fromkeys(mq.METHODS, CELLS)
EIGHT = dict(list(ROWS.items())[:8])
ONES = np.ones((10, 10))
PAINTED = {"MEBQAT": dict.fromkeys(PAIRS, np.ones((2, 2, 3)))}
TITLES = {name: method.title for name, method in mq.METHODS.items()}
STARTS = {pair: {"a": [CELL, CELL]} for pair in PAIRS[:3]}
FIGURES = {
    "accuracy_curves": lambda: plots.accuracy_curves(EIGHT, PAIRS, TITLES, "title"),
    "accuracy_over_cost": lambda: plots.accuracy_over_cost(ROWS, dict.fromkeys(PAIRS, 10), TITLES),
    "adaptation": lambda: plots.adaptation([0, 1], STARTS, CELLS),
    "board": lambda: plots.board(dict.fromkeys(mq.candidates(), 90.0), "title").figure,
    "channel": lambda: plots.channel(CURVES, dict.fromkeys(CURVES, (0.0, 1.0)), "title"),
    "channel_statistics": lambda: plots.channel_statistics({"a": torch.ones(2, 32)}, "title"),
    "code_histograms": lambda: plots.code_histograms({"a": torch.ones(9), "b": torch.ones(9)}, -4),
    "episode": lambda: plots.episode(X.expand(5, 5, 1, 8, 41), X.expand(5, 10, 1, 8, 41), torch.zeros(5, 10)),
    "histogram_with_levels": lambda: plots.histogram_with_levels(X, CURVES),
    "images_row": lambda: plots.images_row(X.expand(12, 1, 8, 41), ["8 (3)"] * 12, [True] * 12),
    "intervals": lambda: plots.intervals({"a": {"x": CELL, "y": CELL}}, "points", "title"),
    "lines": lambda: plots.lines(X, CURVES, xlabel="x", ylabel="y", title="title", mark=0),
    "paintings": lambda: plots.paintings(PAINTED, {"MEBQAT": dict.fromkeys(PAIRS, 1)}, PAIRS),
    "regrets": lambda: plots.regrets({"a": {"x": (1, 2), "y": (0, 3)}}, {"a": "x"}, "regret (points)"),
    "spreads": lambda: plots.spreads({"a": [88.0, 90, 91], "b": [89.0, 92]}, {"true": 90, "yours": None}, "x", "title"),
    "stacked": lambda: plots.stacked(X, {title: {"y": CURVES} for title in "abc"}),
    "staircases": lambda: plots.staircases(X, CURVES),
    "swings": lambda: plots.swings([0.1, 0.2, 0.3], [0.0, 1.0, 0.0], 0.5, 0.4, "title"),
    "tables": lambda: plots.tables(dict.fromkeys("abcd", ONES), [*PAIRS, *"abcd"], [*"0123456789"], label="x"),
}
DRAW_NOTHING = {"beside", "save", "show", "pixels", "style", "heat_map"}  # or what another one draws


@pytest.fixture(autouse=True)
def closing():
    yield
    plt.close("all")


def test_all_figures_are_looked_at():
    functions = {name for name, thing in vars(plots).items() if inspect.isfunction(thing) and not name.startswith("_")}
    here = {name for name in functions if vars(plots)[name].__module__ in (plots.__name__, boards.__name__)}
    assert here - DRAW_NOTHING == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_the_page_in_letters_that_can_be_read(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    width, _ = figure.get_size_inches()
    assert width <= looks.PAGE + 1e-9
    letters = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert len(letters) > 3 and min(text.get_fontsize() for text in letters) >= looks.SMALLEST
    drawn = figure.get_tightbbox()
    assert drawn.x0 > -0.02 and drawn.x1 < width + 0.02


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_stands_on_white_in_a_dark_theme(name, tmp_path):
    def pixels() -> np.ndarray:
        plots.save(FIGURES[name](), tmp_path / "figure.png", dpi=50)
        return np.asarray(Picture.open(tmp_path / "figure.png").convert("RGBA"))

    light = pixels()
    with plt.style.context("dark_background"), plt.rc_context({"savefig.transparent": True}):
        dark = pixels()
    assert (light[..., 3] == 255).all() and tuple(light[0, 0]) == (255, 255, 255, 255)
    assert np.array_equal(light, dark)


@pytest.fixture
def displayed(monkeypatch) -> list[Image]:
    found: list[Image] = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


@pytest.mark.parametrize(("inches", "pixels"), [(7.5, 784), (3.75, 392), (9, 784)])
def test_a_figure_is_shown_as_wide_as_the_page(displayed, inches, pixels):
    plots.show(plt.figure(figsize=(inches, 2)), alt="nothing")
    assert displayed[0].width == pixels and displayed[0].alt == "nothing" and not plt.get_fignums()
    assert Picture.open(io.BytesIO(displayed[0].data)).width >= pixels


def test_a_figure_without_words_is_not_shown(displayed):
    figure = plt.figure()
    with pytest.raises(ValueError, match="a figure needs alternative text"):
        plots.show(figure)
    figure.set_label("what it shows")
    plots.show(figure)
    assert displayed[0].alt == "what it shows"


# ---------------------------------------------------------------- the figures of single ideas


def test_panels_with_levels_share_both_axes():
    figure = plots.histogram_with_levels(
        torch.randn(500), {"a": torch.tensor([-9.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    )
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_position().y0 > figure.axes[1].get_position().y1  # above each other


def test_swings_show_the_weight_as_a_line_and_what_is_rounded_as_dots():
    path, rounded = [0.1, 0.4, 0.6, 0.4], [0.0, 0.0, 1.0, 0.0]
    axes = plots.swings(path, rounded, 0.5, 0.7).axes[0]
    by_name = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert by_name["weight, w"] == path and by_name["threshold"] == [0.5] * 2 and by_name["target"] == [0.7] * 2
    assert axes.collections[0].get_offsets()[:, 1].tolist() == rounded


def test_a_channel_shows_what_arrives_and_what_leaves():
    values = {"FP": torch.randn(4000) * 2 + 1, "W1A1": torch.randn(4000) * 0.5}
    used = {"FP": (1.0, 2.0), "W1A1": (1.0, 2.0)}
    figure = plots.channel(values, used)
    for row, (name, arrives) in enumerate(values.items()):
        left, right = figure.axes[2 * row : 2 * row + 2]
        assert left.get_ylabel() == name
        for cell, part, middle in ((left, arrives, 1.0), (right, (arrives - 1.0) / 2.0, 0.0)):
            assert cell.lines[0].get_xdata() == [middle] * 2
            bars = [bar for bar in cell.patches if bar.get_height() and bar.get_height() < 99 and bar.get_width() < 1]
            edges = [bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()]
            inside = (part >= edges[0]) & (part <= edges[-1])
            assert sum(bar.get_height() for bar in bars) == pytest.approx(100 * float(inside.float().mean()), abs=0.1)
            assert float(inside.float().mean()) > 0.99


def test_the_stored_comparison_of_all_methods_is_drawn_on_the_page():
    stored = json.loads((checkout() / "benchmarks" / "accuracy" / "digits-backprops.json").read_text())
    figure = plots.accuracy_curves(stored["accuracy"], PAIRS, TITLES)
    figure.canvas.draw()
    axes = figure.axes[0]
    assert len(axes.containers) == len(stored["accuracy"])
    assert axes.get_legend().get_window_extent().x1 <= figure.bbox.x1
