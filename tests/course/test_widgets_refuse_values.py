"""Widgets that count right answers refuse labels that are values, before they measure anything."""

import importlib

import pytest
from painted import painted, painter

from mebqat_lite.datasets import DataError


def widget(name):
    return importlib.import_module(f"mebqat_lite.course.widgets.{name}")


@pytest.mark.parametrize(
    ("what", "compute"),
    [
        ("the board of pairs", lambda model, data: widget("pair_board").compute(model, data, "W2A2")),
        ("the widget of norm policies", lambda model, data: widget("norm_policies").Bench(model, data)),
        ("the widget of bit planes", lambda model, data: widget("planes").Stripped(model, data)),
        ("the widget of bits for each layer", lambda model, data: widget("allocations").search({"a": model}, data)),
    ],
)
def test_values_are_refused(what, compute):
    with pytest.raises(DataError, match=f"{what} is for classes, but the labels of these data are values"):
        compute(painter(), painted())


def test_a_comparison_of_decibels_is_not_shown_as_percent():
    shows = r"shows accuracy \(%\), not PSNR \(dB\): take another comparison"
    with pytest.raises(ValueError, match=f"the decision calculator {shows}"):
        widget("decisions").compute({"steps": {"measure": "PSNR (dB)"}}, None, ["W1A1"], "steps", True, False)
