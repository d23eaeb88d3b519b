"""A figure shows every curve that it was given, and each looks different."""

import itertools

import pytest
import torch

from mebqat_lite.measure import plots


def test_looks_differ_as_long_as_they_can():
    looks = list(itertools.islice(plots._looks("rgb", "-:x"), 9))
    assert looks[:3] == [("r", "-"), ("g", ":"), ("b", "x")] and len(set(looks)) == 9


@pytest.mark.parametrize("count", [1, 4, 7])
def test_every_curve_is_drawn(count):
    x = torch.linspace(0, 1, 5)
    curves = {f"curve {number}": x * number for number in range(count)}
    axes = plots.lines(x, curves, xlabel="x", ylabel="y").axes[0]
    drawn = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(axes.lines) == len(drawn) == count
    panel = plots.stacked(x, {"title": {"y": curves}}).axes[0]
    assert len(panel.lines) == count


def test_every_method_is_drawn():
    accuracy = {f"m{number}": {"W2A2": {"mean": 50.0 + number}} for number in range(8)}
    axes = plots.accuracy_over_cost(accuracy, {"W2A2": 10}, {}).axes[0]
    assert len(axes.collections) == 8
