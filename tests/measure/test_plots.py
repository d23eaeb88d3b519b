"""Figures of results, fresh or read back."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from known_results import ACCURACY, PAIRS, TITLES, read_back

from mebqat_lite.measure import plots


@pytest.fixture(autouse=True)
def closing():
    yield
    plt.close("all")


def curves(accuracy):
    """Per label: the points that a figure shows, and the heights of its intervals."""
    axes = plots.accuracy_curves(accuracy, PAIRS, TITLES, "a title").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == PAIRS and axes.get_title() == "a title"
    shown = {}
    for container in axes.containers:
        line, _, bars = container.lines
        halves = [np.ptp(segment[:, 1]) / 2 for bar in bars for segment in bar.get_segments()]
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        shown[container.get_label()] = (np.round(x), y, np.round(halves, 6))
    return shown


def test_curves_show_each_mean_at_its_pair_with_its_interval():
    row = {b: {"mean": m, "ci95": m / 10, "n": 2} for b, m in zip(PAIRS, (20, 30, 40), strict=True)}
    whole = {"qat": ACCURACY["qat"], "x": row}
    shown = curves(whole)
    own = shown["QAT: a network for each pair"]
    assert own[0].tolist() == [1] and own[1].tolist() == [98.04] and own[2].tolist() == [0.26]
    assert shown["x"][0].tolist() == [0, 1, 2] and shown["x"][1].tolist() == [20, 30, 40]
    assert shown["x"][2].tolist() == [2, 3, 4]


def test_an_interval_that_is_known_is_shown_beside_one_that_is_not():
    shown = curves({"mebqat": {b: ACCURACY["mebqat"][b] for b in ("W1A1", "W2A2")}})
    assert shown["mebqat"][1].tolist() == [9.96, 100]
    assert np.nanmax(shown["mebqat"][2]) == pytest.approx(12.345)


def test_curves_of_results_read_back_are_the_same(tmp_path):
    fresh, again = curves(ACCURACY), curves(read_back(ACCURACY, tmp_path / "r.json"))
    for label, (x, y, _) in fresh.items():
        known = np.isfinite(y)
        assert again[label][0][: len(x)][known].tolist() == x[known].tolist()
        assert again[label][1][known].tolist() == y[known].tolist()


def test_networks_of_their_own_are_points_and_the_legend_says_so():
    whole = {"qat": ACCURACY["qat"], "mebqat": ACCURACY["mebqat"]}
    axes = plots.accuracy_curves(whole, PAIRS, TITLES).axes[0]
    dashes = {box.get_label(): box.lines[0].get_linestyle() for box in axes.containers}
    assert dashes == {"QAT: a network for each pair": "None", "mebqat": "-"}


def test_a_style_ends_with_its_block():
    before = dict(plt.rcParams)
    with plots.style():
        assert plt.rcParams["font.size"] == 10
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("widths", [(3, 2), (2, 2, 5)])
def test_figures_stand_beside_each_other_over_their_note(widths):
    def draw(figure):
        return plots.accuracy_curves(ACCURACY, PAIRS, TITLES, "a title", figure=figure)

    whole = plots.beside([draw] * len(widths), widths, 4, "a note")
    whole.canvas.draw()
    assert whole.get_size_inches().tolist() == [sum(widths), 4] and whole.get_supxlabel() == "a note"
    places = [figure.bbox.width for figure in whole.subfigs]
    assert [place / places[0] for place in places] == pytest.approx([width / widths[0] for width in widths])
    assert [figure.axes[0].get_title() for figure in whole.subfigs] == ["a title"] * len(widths)
    assert plt.get_fignums() == [whole.number]  # nothing else was opened


def test_paintings_have_a_title_if_one_is_given():
    arguments = ({"one": {"FP": np.zeros((2, 2, 3))}}, {"one": {"FP": 30.0}}, ["FP"])
    assert plots.paintings(*arguments, "a photograph").get_suptitle() == "a photograph"
    assert plots.paintings(*arguments).get_suptitle() == ""


def test_spreads_show_each_sample_in_a_panel_and_only_the_marks_that_there_are():
    figure = plots.spreads({"a": [1.0, 2.0, 2.0], "b": [3.0]}, {"true": 2.0, "your guess": None}, "percent")
    first, second = figure.axes
    for panel, name, count in ((first, "a", 3), (second, "b", 1)):
        assert panel.get_title("left") == name and sum(bar.get_height() for bar in panel.patches) == count
        assert [line.get_xdata()[0] for line in panel.lines] == [2.0]
    assert second.get_xlabel() == "percent" and first.get_xlim() == second.get_xlim()
    both = plots.spreads({"a": [1.0, 2.0]}, {"true": 2.0, "your guess": 1.5}, "percent")
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["true", "your guess"]
    solid, dashed = both.axes[0].lines
    assert solid.get_linestyle() != dashed.get_linestyle()


@pytest.mark.parametrize("step", [5.0, 0.25, 100 / 540 / 3])
def test_a_bar_stands_over_its_number_and_all_bins_hold_equally_many_numbers(step):
    numbers = step * np.arange(-9, 71)
    figure = plots.spreads({"few": [-step, 0.0, 2 * step], "all": numbers.tolist()}, {}, "points")
    bars = figure.axes[1].patches
    assert len(bars) == 40 and {bar.get_height() for bar in bars} == {2.0}
    [*alone] = plots.spreads({"few": [-step, 0.0, 2 * step, 2 * step]}, {}, "points").axes[0].patches
    middles = [bar.get_x() + bar.get_width() / 2 for bar in alone]
    assert middles == pytest.approx([-step, 0, step, 2 * step]) and [bar.get_height() for bar in alone] == [1, 1, 0, 2]


def test_equal_values_are_shown_in_one_bar():
    [bar] = plots.spreads({"one": [90.0, 90.0]}, {"true": 90}, "points").axes[0].patches
    assert bar.get_height() == 2 and bar.get_x() + bar.get_width() / 2 == 90


def test_a_legend_says_what_filled_and_hollow_marks_of_differences_are():
    cells = {"not": {"mean": 1.0, "ci95": 1.0}, "apart": {"mean": -2.0, "ci95": 1.0}}
    cells |= {"again": {"mean": 0.0, "ci95": 2.0}, "seed 0": {"mean": 3.0, "ci95": float("nan")}}
    figure = plots.intervals({"group": cells}, "points")
    looks = {words: look["fmt"] for words, look in plots.TOLD.items()}
    handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    assert {words: handle.lines[0].get_marker() for words, handle in handles.items()} == looks
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*looks]
    drawn = [container.lines[0].get_marker() for container in figure.axes[0].containers]
    assert drawn == ["D", "o", "D", "x"]
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width < figure.bbox.width
    only = plots.intervals({"group": {"apart": cells["apart"]}}, "points")
    assert len(only.legends[0].get_texts()) == 1


def test_curves_of_the_same_names_in_all_panels_are_explained_once_beneath_them():
    x = torch.linspace(0, 1, 5)
    same = plots.stacked(x, {title: {"y": {"": x}, "z": {"a": x, "b": -x}} for title in ("left", "right")})
    assert [text.get_text() for text in same.legends[0].texts] == ["a", "b"]
    assert not any(axes.get_legend() for axes in same.axes)
    other = plots.stacked(x, {"title": {"y": {"a": x, "b": -x}, "z": {"a": x, "c": -x}}})
    assert not other.legends and all(axes.get_legend() for axes in other.axes)


def test_regrets_show_mean_and_worst_and_the_choice_of_a_reader():
    groups = {"x": {"a": (1.0, 4.0), "b": (-1.0, 0.5)}, "y": {"a": (2.0, 2.0)}}
    figure = plots.regrets(groups, {"x": "b", "y": None}, "points")
    first, second = figure.axes
    names = [[label.get_text() for label in axes.get_yticklabels()] for axes in (first, second)]
    assert names == [["a", "your choice: b"], ["a"]]
    assert len(first.patches) == 1 and not second.patches  # the band behind the choice
    spans = [tuple(line.get_xdata()) for line in first.lines if len(line.get_xdata()) == 2]
    assert [span for span in spans if span != (0, 0)] == [(1.0, 4.0), (-1.0, 0.5)]  # but the line at zero
    assert first.get_title("left") == "x" and second.get_xlabel() == "points"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean", "worst pair"]
