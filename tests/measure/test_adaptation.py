"""The figure of networks that are adapted to one pair: every mean of every start is drawn, at its number of steps."""

import math

import pytest

from mebqat_lite.measure import plots

STEPS = (0, 10, 100)


def cells(*means, half=1.5):
    return [{"mean": mean, "ci95": half} for mean in means]


@pytest.mark.parametrize("half", [1.5, math.nan, None])
def test_adaptation_shows_each_start_at_each_pair(half):
    curves = {
        "W2A2": {"in turn": cells(80, 85, 90, half=half), "FP": cells(20, 60, 80, half=half)},
        "W4A4": {"in turn": cells(88, 89, 91, half=half), "FP": cells(70, 80, 88, half=half)},
    }
    figure = plots.adaptation(STEPS, curves, {"W2A2": {"mean": 91.0}, "W4A4": {"mean": 92.0}})
    assert [axes.get_title() for axes in figure.axes] == ["W2A2", "W4A4"]
    for axes, (pair, rows) in zip(figure.axes, curves.items(), strict=True):
        drawn = {tuple(line.get_ydata()) for line in axes.lines}
        assert {tuple(cell["mean"] for cell in row) for row in rows.values()} <= drawn
        assert any(set(line.get_ydata()) == {{"W2A2": 91.0, "W4A4": 92.0}[pair]} for line in axes.lines)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "10", "100"]
    assert {text.get_text() for text in figure.axes[-1].get_legend().get_texts()} == {"in turn", "FP", "QAT of its own"}
