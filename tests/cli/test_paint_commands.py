"""The commands on data whose labels are values."""

import json

import pandas as pd
import pytest
from painted import painted

from mebqat_lite import datasets
from mebqat_lite.cli import main
from mebqat_lite.experiments import setups
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.recipe import Recipe

SMALL = Setup("points", "coordinate_net", {"width": 8, "pairs": 2}, Recipe(steps=2, warm_steps=2, batch_size=32))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own, where the data ``points`` and a small set-up are known by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(datasets.DATASETS, "points", lambda seed=0: painted())
    monkeypatch.setitem(setups.SETUPS, "points", SMALL)
    return tmp_path


def test_train_evaluate_and_export(capsys, elsewhere):
    assert main(["train", "--recipe", "points", "--method", "mebqat_in_turn"]) == 0
    file = str(elsewhere / "results" / "mebqat_in_turn.safetensors")
    assert main(["evaluate", "--checkpoint", file, "--bits", "W2A2,FP", "--json", "r.json", "--save", "r.csv"]) == 0
    printed = capsys.readouterr().out
    assert "PSNR (dB), test" in printed and "accuracy" not in printed
    record = json.loads((elsewhere / "r.json").read_text())
    assert record["measure"] == "PSNR (dB)" and set(record["accuracy"]["mebqat_in_turn"]) == {"W2A2", "FP"}
    assert pd.read_csv("r.csv")["bits"].tolist() == ["W2A2", "FP"]
    assert main(["export", "--checkpoint", file, "--to", "packed", "--bits", "W2A2", "--out", "p.safetensors"]) == 0
    assert main(["evaluate", "--checkpoint", "p.safetensors", "--data", "points"]) == 0
    assert "PSNR (dB), test" in capsys.readouterr().out


@pytest.mark.slow  # an export takes a second
def test_export_to_onnx_compares_values(capsys, elsewhere):
    assert main(["train", "--recipe", "points", "--method", "mebqat"]) == 0
    file = str(elsewhere / "results" / "mebqat.safetensors")
    assert main(["export", "--checkpoint", file, "--to", "onnx", "--bits", "W2A2"]) == 0
    printed = capsys.readouterr().out
    assert "ONNX Runtime: outputs differ by up to" in printed and "same class" not in printed


def test_compare(capsys, elsewhere):
    command = ["compare", "--recipe", "points", "--methods", "mebqat,ptq_mse", "--seeds", "1", "--engine", "serial"]
    assert main([*command, "--pairs", "W2A2,FP"]) == 0
    printed = capsys.readouterr().out
    assert "PSNR (dB), test images, 1 seed" in printed and "Accuracy" not in printed
    assert json.loads((elsewhere / "results" / "compare" / "compare.json").read_text())["measure"] == "PSNR (dB)"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "--method", "mebqat_pn"], "mebqat_pn is for classes, but the labels of these data are values"),
        (["train", "--data", "points,count=10"], "a stratified subset is for classes"),
        (["train", "--model", "digit_net"], "the model digit_net cannot take images of 2"),
        (["compare", "--methods", "mebqat_pn,pn_qat"], "is for classes, but the labels of these data are values"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, command, words):
    assert main([command[0], "--recipe", "points", *command[1:]]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_photograph_is_known_to_the_commands(capsys, elsewhere):
    assert main(["train", "--recipe", "paint", "--method", "mebqat", "--steps", "1", "--warm-steps", "1"]) == 0
    file = str(elsewhere / "results" / "mebqat.safetensors")
    assert main(["evaluate", "--checkpoint", file, "--bits", "W1A1"]) == 0
    assert "4096 images of paint, split of seed 0" in capsys.readouterr().out
