"""The shipped networks are what `benchmarks/ship.py` says of them."""

import json

import pytest

from mebqat_lite import paths
from mebqat_lite.checkpoint import load_model
from mebqat_lite.experiments import frozen
from mebqat_lite.experiments.setups import get
from mebqat_lite.measure.costs import stored_bytes
from mebqat_lite.recipe import Recipe

CHECKPOINTS = paths.shipped("checkpoints")
FILES = sorted(CHECKPOINTS.glob("glyphs-*.safetensors"))
DIGITS = sorted(CHECKPOINTS.glob("digits-wide-*.safetensors"))
SHEETS = json.loads((CHECKPOINTS / "glyphs.json").read_text())


def test_they_are_there_and_small():
    names = {path.stem.removeprefix("glyphs-") for path in FILES}
    assert names == {"pn", "pn_qat_w2a2", "mebqat_pn", "fomaml", "mebqat_maml"}
    assert all(path.stat().st_size < 300_000 for path in CHECKPOINTS.glob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_of_the_recipes(path):
    _, extra = load_model(path)
    wanted = get("glyphs-maml" if "maml" in path.stem else "glyphs-pn")
    found = Recipe(**extra["setup"]["recipe"])
    assert (extra["data"], extra["seed"], extra["setup"]["model"]) == ("glyphs", 0, "conv4")
    assert (found.ways, found.lr, found.m, found.quantizer) == (
        wanted.recipe.ways,
        wanted.recipe.lr,
        wanted.recipe.m,
        "lsq",
    )


def test_the_wide_digit_nets_are_there():
    names = {path.stem.removeprefix("digits-wide-") for path in DIGITS}
    methods = {"any_precision", "fp", "mebqat", "ptq_mse", "ptq_naive", "qat_w1a1", "qat_w2a2", "qat_w4a4"}
    assert names == methods


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_they_are_of_the_wide_set_up(path):
    model, extra = load_model(path)
    setup = get("digits-wide")
    assert model.spec == {"name": "digit_net_wide", "options": {"classes": 10, "in_channels": 1}}
    assert (extra["setup"]["model"], extra["setup"]["options"]) == (setup.model, setup.options)
    assert (extra["data"], extra["seed"], Recipe(**extra["setup"]["recipe"])) == ("digits", 0, setup.recipe)


def test_their_sheet_is_of_the_wide_set_up():
    found = json.loads((CHECKPOINTS / "digits-wide.json").read_text())
    assert found["setup"]["model"] == "digit_net_wide" and found["counted"]["model_bytes"] == 95_880
    model, _ = load_model(CHECKPOINTS / "digits-wide-mebqat.safetensors")
    assert stored_bytes(model, statistics=False) == found["costs"]["mebqat"]["bytes"] == 95_880


@pytest.mark.slow
def test_the_prototypical_ones_score_what_the_sheet_says():
    files = [path for path in FILES if "pn" in path.stem]
    wanted = SHEETS["glyphs-20way"]
    found = frozen.sheet(files, "glyphs-20way", part="val", bits=["W2A2", "FP"], progress=False)
    assert found["set"] == wanted["set"]
    for row, cells in found["accuracy"].items():
        for pair, cell in cells.items():  # 60,000 answers; roundings fall another way on another machine
            assert cell["mean"] == pytest.approx(wanted["accuracy"][row][pair]["mean"], abs=0.2)


def test_mebqat_reaches_what_full_precision_and_rounding_do_not():
    """On validation scripts, 600 episodes, seed 0: the claim that the lessons rest on."""
    twenty, five = (SHEETS[name]["accuracy"] for name in ("glyphs-20way", "glyphs-5way"))
    assert twenty["mebqat_pn"]["W2A2"]["mean"] > twenty["pn"]["W2A2"]["mean"] + 10
    assert twenty["mebqat_pn"]["FP"]["mean"] > twenty["pn"]["FP"]["mean"] - 1
    assert five["mebqat_maml"]["W2A2"]["mean"] > five["fomaml"]["W2A2"]["mean"] + 5
