"""The shipped networks are what `benchmarks/ship.py` says of them."""

import json

import pytest
import torch

from benchmarks import ship
from mebqat_lite import datasets, paths
from mebqat_lite.checkpoint import load_model
from mebqat_lite.experiments import frozen
from mebqat_lite.experiments.setups import get
from mebqat_lite.files import read
from mebqat_lite.measure.costs import stored_bytes
from mebqat_lite.measure.evaluate import grid
from mebqat_lite.recipe import Recipe

CHECKPOINTS = paths.shipped("checkpoints")
FILES = sorted(CHECKPOINTS.glob("glyphs-*.safetensors"))
DIGITS = sorted(CHECKPOINTS.glob("digits-wide-*.safetensors"))
SHEETS = json.loads((CHECKPOINTS / "glyphs.json").read_text())


def test_they_are_there_and_small():
    names = {path.stem.removeprefix("glyphs-") for path in FILES}
    assert names == {"pn", "pn_qat_w2a2", "mebqat_pn", "mebqat_pn_in_turn", "fomaml", "mebqat_maml"}
    assert all(path.stat().st_size < 300_000 for path in CHECKPOINTS.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in CHECKPOINTS.iterdir()) < 3_500_000


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


# --- the narrow digit net and the painting -----------------------------------------------------------------------

NARROW = ["fp", "mebqat", "mebqat_in_turn", "ptq_mse", "ptq_naive", "qat_w1a1", "qat_w2a2", "qat_w4a4"]
PAINTERS = ["mebqat", "mebqat_in_turn", "ptq_mse", "ptq_naive", "qat_w1a1", "qat_w4a4"]
EACH = [("digits", name) for name in NARROW] + [("paint", name) for name in PAINTERS]
EQUAL = ["W1A1", "W2A2", "W3A3", "W4A4", "W5A5", "W6A6", "W7A7", "W8A8", "W16A16", "FP"]


def shipped(setup, name):
    return CHECKPOINTS / f"{setup}-{name}.safetensors"


def test_all_of_them_are_there():
    found = {path.stem for path in CHECKPOINTS.glob("*.safetensors")}
    narrow = {f"{setup}-{name}" for setup, name in EACH}
    assert found == narrow | {path.stem for path in [*FILES, *DIGITS]}
    trained = {name for group in ship.GROUPS for name in group.jobs}
    assert {name for name in found if not name.startswith("digits-wide-")} <= trained


@pytest.mark.parametrize(("setup", "name"), EACH)
def test_each_is_seed_0_of_its_set_up(setup, name):
    _, extra = load_model(shipped(setup, name))
    wanted = get(setup)
    found = Recipe(**extra["setup"]["recipe"])
    assert (extra["data"], extra["seed"], extra["setup"]["model"]) == (wanted.data, 0, wanted.model)
    assert (found.warm_steps, found.batch_size, found.lr) == (
        0 if name == "fp" else wanted.recipe.warm_steps,
        wanted.recipe.batch_size,
        wanted.recipe.lr,
    )
    assert found.steps == wanted.recipe.steps and extra["setup"]["method"] == "mebqat_in_turn"


def test_the_fp_network_is_the_one_that_rounding_rounds():
    fp, naive = (read(shipped("digits", name), "model")[0] for name in ("fp", "ptq_naive"))
    assert len(fp) > 20 and all(torch.equal(tensor, naive[key]) for key, tensor in fp.items())


def test_their_comparison_is_that_of_the_demo():
    found = json.loads((CHECKPOINTS / "digits.json").read_text())
    demo = json.loads(paths.shipped("demo.json").read_text())
    assert found["validation"].keys() == {"ptq_naive", "ptq_mse", "qat", "mebqat", "mebqat_in_turn"}
    for part in ("accuracy", "validation"):
        for method, row in demo[part].items():
            for pair, cell in row.items():
                assert found[part][method][pair]["mean"] == pytest.approx(cell["mean"], abs=100 / 540)
    assert {found["costs"][name]["each"] for name in found["costs"]} == {1500}


@pytest.mark.parametrize("name", PAINTERS)
def test_each_painting_is_as_good_as_its_file_says(name):
    model, extra = load_model(shipped("paint", name))
    stated = extra["accuracy"]["test"]
    assert list(stated) == EQUAL
    frame = grid(model, datasets.paint().test, EQUAL, norm_stats="recalibrated")  # the statistics are in the file
    assert frame["mean"].tolist() == pytest.approx(list(stated.values()), abs=0.05)


def test_one_painting_holds_at_every_bitwidth_where_the_others_fall_apart():
    rows = {name: load_model(shipped("paint", name))[1]["accuracy"]["test"] for name in PAINTERS}
    lowest = {name: min(row.values()) for name, row in rows.items()}
    assert lowest["mebqat_in_turn"] > 29 and lowest["ptq_mse"] < 15 and lowest["qat_w4a4"] < 19
    assert rows["ptq_mse"]["FP"] > rows["mebqat_in_turn"]["FP"] + 10  # what it costs


# --- how they are made -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "trained", "seeds"),
    [
        (["digits-fp"], ["digits-fp"], [1]),
        (["digits-mebqat*"], ["digits-mebqat", "digits-mebqat_in_turn"], [1]),
        (["digits-[mpq]*"], sorted(ship.DIGITS), [3]),
        (["paint-qat*", "digits-fp"], ["digits-fp", "paint-qat_w1a1", "paint-qat_w4a4"], [1, 1]),
    ],
)
def test_a_part_of_them_is_trained_alone(monkeypatch, tmp_path, patterns, trained, seeds):
    groups = []
    monkeypatch.setattr(ship, "train", lambda group, out: groups.append(group))
    ship.main(patterns, tmp_path)
    assert sorted(name for group in groups for name in group.jobs) == trained
    assert [group.seeds for group in groups] == seeds  # the comparison is written if it is whole


def test_a_name_that_nothing_has_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"none of paint-sat is shipped; there are digits-ptq_naive, .*mebqat_maml"):
        ship.main(["paint-sat"], tmp_path)


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
    assert twenty["mebqat_pn_in_turn"]["W2A2"]["mean"] > twenty["mebqat_pn"]["W2A2"]["mean"]
    assert five["mebqat_maml"]["W2A2"]["mean"] > five["fomaml"]["W2A2"]["mean"] + 5
