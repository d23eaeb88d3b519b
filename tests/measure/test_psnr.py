"""PSNR instead of accuracy where labels are values: its numbers, and the titles of tables and figures."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from painted import painted, painter, points, psnr
from torch import nn

import mebqat_lite as mq
from mebqat_lite.datasets.base import DataError, Split
from mebqat_lite.measure import plots
from mebqat_lite.measure.evaluate import norm_images
from mebqat_lite.switching.state import at, set_norm_stats

PAIRS = ("W1A1", "W2A8", "W4A4", "FP")


@pytest.fixture(scope="module")
def model():
    net = painter()
    mq.fit(net, painted(), "mebqat", steps=5, batch_size=32, progress=False, device="cpu")
    mq.recalibrate(net, points().images, PAIRS)
    set_norm_stats(net, "recalibrated")
    return net


@pytest.mark.parametrize("batch_size", [1, 7, 96, 1024])
def test_a_grid_of_values_is_the_formula(model, batch_size):
    split = points()
    frame = mq.grid(model, split, PAIRS, batch_size=batch_size)
    for pair in PAIRS:
        with at(model, pair), torch.no_grad():
            wanted = psnr(model(split.images), split.labels)
        assert frame.loc[pair, "mean"] == pytest.approx(wanted, rel=1e-6)
        assert mq.score(model, split, pair, batch_size=batch_size) == frame.loc[pair, "mean"]
    assert frame.attrs["measure"] == "PSNR (dB)"


def test_means_over_networks_are_means_of_decibels(model):
    other = painter(seed=3)
    both = mq.grid([model, other], points(), "W4A4", norm_stats="batch")
    each = [mq.score(net, points(), "W4A4", "batch") for net in (model, other)]
    assert both.loc["W4A4", "mean"] == pytest.approx(sum(each) / 2) and both.loc["W4A4", "n"] == 2


def test_a_network_without_any_error_has_no_finite_psnr():
    constant = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
    nn.init.zeros_(constant[2].weight)
    nn.init.constant_(constant[2].bias, 0.25)
    x = torch.rand(6, 2)
    model = mq.quantize(constant, sample=x)
    assert mq.grid(model, Split(x, torch.full((6, 2), 0.25)), "W2A8").loc["W2A8", "mean"] == np.inf


def test_accuracy_is_of_classes_alone(model):
    with pytest.raises(DataError, match="accuracy is for classes, but the labels of these data are values"):
        mq.accuracy(model, points(), "FP")
    labels = torch.arange(96) % 3
    assert mq.score(model, Split(points().images, labels), "FP") == mq.accuracy(
        model, Split(points().images, labels), "FP"
    )
    frame = mq.grid(model, Split(points().images, labels), "FP")
    assert frame.attrs["measure"] == "accuracy (%)"


def test_sensitivity_names_its_column(model):
    frame = mq.sensitivity(model, points(), "W1A1", calibration=points().images)
    assert list(frame.columns) == ["PSNR", "loss"] and frame.attrs["measure"] == "PSNR (dB)"
    assert frame.index.tolist() == [("body.0.0", "W1A1"), ("body.1.0", "W1A1")]
    whole = mq.score(model, points(), "FP")
    assert frame["PSNR"].tolist() == pytest.approx((whole - frame["loss"]).tolist())


def test_pairs_without_a_norm_set_are_nan():
    net = painter()
    mq.fit(net, painted(), "adabits", steps=2, bits="W2A2,FP", batch_size=32, progress=False, device="cpu")
    frame = mq.grid(net, points(), "W2A2,W3A3,FP")
    assert frame["mean"].isna().tolist() == [False, True, False]


def test_norm_statistics_are_measured_on_all_images_where_labels_are_values():
    many = torch.zeros(3000, 2)
    assert len(norm_images(Split(many, torch.zeros(3000, 1)))) == 3000
    assert len(norm_images(Split(many, torch.zeros(3000, dtype=torch.int64)))) == 2048
    assert len(norm_images(points())) == 96


# ---------------------------------------------------------------- figures


@pytest.fixture(autouse=True)
def closing():
    yield
    plt.close("all")


def test_axes_are_named_after_the_measure(model):
    rows = {"mebqat": {pair: {"mean": 150.0, "ci95": 1.0, "n": 3} for pair in PAIRS}}
    figure = plots.heat_map(mq.grid(model, points(), PAIRS))
    assert figure.axes[1].get_ylabel() == "PSNR (dB)"
    curves = plots.accuracy_curves(rows, PAIRS, {}, measure="PSNR (dB)").axes[0]
    assert curves.get_ylabel() == "PSNR (dB)" and curves.get_ylim()[1] > 150  # no ceiling of 100
    cost = plots.accuracy_over_cost(rows, dict.fromkeys(PAIRS, 10), {}, measure="PSNR (dB)").axes[0]
    assert cost.get_ylabel() == "PSNR (dB)"
    assert plots.accuracy_curves(rows, PAIRS, {}).axes[0].get_ylabel() == "accuracy (%)"
    plain = pd.DataFrame({"w": [1], "a": [1], "mean": [50.0]})  # a frame read from a file
    assert plots.heat_map(plain).axes[1].get_ylabel() == "accuracy (%)"


def test_paintings_stand_in_rows_of_methods_and_columns_of_pairs():
    generator = np.random.default_rng(0)
    pictures = {"one": {p: generator.random((4, 5, 3)) for p in PAIRS}, "two": {"FP": generator.random((4, 5, 3))}}
    measured = {"one": dict(zip(PAIRS, (9.96, 20, 30.04, 41.25), strict=True)), "two": {"FP": 12.345}}
    figure = plots.paintings(pictures, measured, PAIRS)
    cells = np.array(figure.axes).reshape(2, 4)
    assert [cell.get_title() for cell in cells[0]] == list(PAIRS)
    assert [cell.get_ylabel() for cell in cells[:, 0]] == ["one", "two"]
    assert [cell.get_xlabel() for cell in cells[0]] == ["10.0 dB", "20.0 dB", "30.0 dB", "41.2 dB"]
    assert [cell.get_xlabel() for cell in cells[1]] == ["", "", "", "12.3 dB"]
    for cell, pair in zip(cells[0], PAIRS, strict=True):
        assert np.array_equal(cell.images[0].get_array(), pictures["one"][pair])
    assert [len(cell.images) for cell in cells[1]] == [0, 0, 0, 1]
