"""A comparison on values: the set-up ``paint``, its measure, and what is left out because it is about classes."""

from dataclasses import replace

import pytest
import torch
from painted import painted

from mebqat_lite import datasets
from mebqat_lite.datasets import DataError
from mebqat_lite.experiments.compare import compare, refuse_unread
from mebqat_lite.experiments.jobs import Outcome
from mebqat_lite.experiments.setups import Setup, check_classes, get
from mebqat_lite.files import plain
from mebqat_lite.measure.results import report
from mebqat_lite.recipe import Recipe

SMALL = Setup("points", "coordinate_net", {"width": 8, "pairs": 2}, Recipe(steps=2, warm_steps=2, batch_size=32))
NAMES = ["mebqat", "ptq_naive", "qat+bits=W2A2+teacher=labels"]


@pytest.fixture
def points(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "points", lambda seed=0: painted())


def test_the_set_up_has_the_budget_of_the_experiment():
    setup = get("paint")
    data = datasets.load(setup.data)
    net = setup.build(data)
    assert net(data.test.images[:5]).shape == (5, 3)
    recipe = setup.recipe
    assert (setup.method, recipe.warm_steps, recipe.steps, recipe.batch_size) == ("mebqat_in_turn", 400, 1600, 1024)
    assert (recipe.lr, recipe.quantizer, setup.norm_stats) == (1e-2, "dorefa", "recalibrated")


@pytest.mark.parametrize(
    ("model", "options", "outputs"),
    [("coordinate_net", {}, 3), ("coordinate_net", {"outputs": 5}, 5), ("coordinate_net", {"width": 4}, 3)],
)
def test_a_network_has_an_output_for_each_value(model, options, outputs):
    net = Setup("points", model, options).build(painted())
    assert net(torch.zeros(2, 2)).shape == (2, outputs)


@pytest.mark.parametrize("model", ["digit_net", "conv4", "mobilenet_v2"])
def test_a_network_of_images_refuses_vectors(model):
    with pytest.raises(ValueError, match=f"the model {model} cannot take images of 2: "):
        Setup("points", model).build(painted())


def test_a_network_of_coordinates_refuses_images():
    with pytest.raises(ValueError, match="the model coordinate_net cannot take images of 1 x 8 x 8"):
        Setup("digits", "coordinate_net").build(datasets.digits())


def test_methods_for_new_classes_are_refused_before_anything_is_trained():
    for method in ("mebqat_pn", "pn_qat", "fomaml"):
        with pytest.raises(DataError, match=f"{method} is for classes, but the labels of these data are values"):
            check_classes(method, painted())
    check_classes("mebqat", painted())
    test = painted().test
    other = replace(painted(), test=test._replace(labels=test.labels + 1))  # values that no training label has
    check_classes("qat", other)


def test_a_comparison_measures_decibels_and_asks_for_no_class(points, tmp_path):
    refuse_unread(SMALL, NAMES, [])
    found = compare(
        SMALL,
        NAMES,
        pairs=["W2A2", "FP"],
        seeds=2,
        folder=tmp_path,
        engine="serial",
        budget="backprops",
        progress=False,
    )
    assert found["measure"] == "PSNR (dB)" and all(row == {} for row in found["alone"].values())
    assert {name: set(row) for name, row in found["accuracy"].items()} == {name: {"W2A2", "FP"} for name in NAMES}
    assert {cost["backprops"] for cost in found["costs"].values()} == {2 + 2 * 4}
    text = report(plain(found), ["W2A2", "FP"])
    assert text.startswith("PSNR (dB), test images, 2 seeds, norm statistics recalibrated, budget: equal backprops")
    assert "ccuracy" not in text and "Batches of one image" not in text


def test_results_of_before_are_accuracies():
    job = {"variant": "mebqat", "seed": 0, "bits": "", "lr": 0.0}
    costs = {"steps": 1, "forwards": 1, "backprops": 1}
    old = {"job": job, "accuracy": {}, "native": {}, "alone": {}, "costs": costs, "bytes": 1}
    assert Outcome.from_json(old).measure == "accuracy (%)"
