"""The command line: what each command prints and writes, and errors of one line."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from torch import nn

from mebqat_lite import (
    accuracy,
    checkpoint,
    datasets,
    files,
    grid,
    load_model,
    models,
    paths,
    quantize,
    recalibrate,
    save_model,
)
from mebqat_lite.cli import main, selftest

SHIPPED = sorted(paths.shipped("checkpoints").glob("digits-wide-*.safetensors"))
NAMES = ("any_precision", "fp", "mebqat", "ptq_mse", "ptq_naive", "qat_w1a1", "qat_w2a2", "qat_w4a4")
TINY = ("--steps", "2", "--warm-steps", "2", "--batch-size", "16")
FEW = ("--data", "digits,count=100,val=20,test=60")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(elsewhere):
    torch.manual_seed(0)
    net = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
    return save_model(net, elsewhere / "model.safetensors")


# --- train ---------------------------------------------------------------------------------------------------


def test_train_saves_a_model_that_evaluate_reads(capsys, elsewhere):
    assert main(["train", *TINY, "--seed", "3"]) == 0
    out = elsewhere / "results" / "mebqat_in_turn.safetensors"
    printed = capsys.readouterr().out
    assert "4 steps, 4 back-propagations" in printed and str(out) in printed
    _, extra = load_model(out)
    known = {"data": "digits", "seed": 3, "method": "mebqat_in_turn"}  # the method of the default recipe
    assert {key: extra[key] for key in known} == known
    assert extra["setup"]["recipe"]["seed"] == 3 and extra["setup"]["model"] == "digit_net"
    command = printed.split("Next: mebqat-lite ")[1].split()
    assert main([*command, "--bits", "W2A2"]) == 0  # what it tells to do next works
    assert "W2A2" in capsys.readouterr().out


def test_train_again_continues_and_ends_the_same(capsys, elsewhere):
    results = []
    for _ in range(2):
        assert main(["train", *TINY, "--out", "a.safetensors", "--quantizer", "lsq"]) == 0
        results.append(load_model(elsewhere / "a.safetensors")[0].state_dict())
        assert "4 steps, 4 back-propagations" in capsys.readouterr().out
    assert all(torch.equal(results[0][name], t) for name, t in results[1].items())
    assert any(".quant.w2" in name for name in results[0])


def test_train_passes_its_options_on(capsys, elsewhere):
    options = ["--method", "qat", "--bits", "W3A4", "--teacher", "labels", "--lr", "0.5", "--warm-steps", "0"]
    assert main(["train", *TINY, *options, "--out", "q.safetensors"]) == 0
    _, meta = files.read(elsewhere / "q.training", "training")
    recipe = meta["run"]["recipe"]
    given = {"steps": 2, "batch_size": 16, "bits": ["W3A4"], "teacher": "labels", "lr": 0.5}
    assert {name: recipe[name] for name in given} == given and meta["run"]["method"] == "qat"
    assert "2 steps, 2 back-propagations" in capsys.readouterr().out


# --- evaluate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["running", "batch", "recalibrated"])
def test_evaluate_prints_and_writes_the_grid(capsys, elsewhere, model, norm):
    command = ["evaluate", "--checkpoint", str(model), "--bits", "W2A2,FP", "--norm", norm]
    assert main([*command, "--part", "val", "--seed", "2", "--json", "new/r.json"]) == 0
    printed, data = capsys.readouterr().out, datasets.digits(2)
    calibration = data.train.images if norm == "recalibrated" else None
    frame = grid(load_model(model)[0], data.val, "W2A2,FP", norm_stats=norm, calibration=calibration)
    written = json.loads((elsewhere / "new" / "r.json").read_text())
    assert written["norm_stats"] == norm
    for bits, value in frame["mean"].items():
        assert written["accuracy"]["model"][bits] == {"mean": value, "ci95": None, "n": 1}
        assert f"{value:.1f}" in next(line for line in printed.splitlines() if line.startswith(bits))
    assert "accuracy (%), val" in printed and f"norm statistics: {norm}; 257 images" in printed


def test_evaluate_measures_all_candidates_by_default(capsys, model):
    assert main(["evaluate", "--checkpoint", str(model), "--norm", "running"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("W", "FP"))]
    assert len(rows) == 75


def test_evaluate_takes_the_data_and_the_split_of_the_training_and_warns_of_another(capsys, elsewhere):
    assert main(["train", *TINY, "--seed", "3", "--out", "m.safetensors"]) == 0
    command = ["evaluate", "--checkpoint", "m.safetensors", "--bits", "FP", "--norm", "running"]
    for extra, said, warned in (([], 3, 0), (["--seed", "3"], 3, 0), (["--seed", "1"], 1, 1)):
        capsys.readouterr()
        assert main([*command, *extra]) == 0
        printed = capsys.readouterr()
        assert f"540 images of digits, split of seed {said}" in printed.out
        assert printed.err.count("trained on the split of seed 3 and knows some of these images") == warned


def test_evaluate_takes_a_pair_per_layer_and_saves_the_table(capsys, elsewhere, model):
    command = ["evaluate", "--checkpoint", str(model), "--layers", "*=W8A8,body.1.0=W2A2", "--save", "new/grid.csv"]
    assert main(command) == 0
    data, mixed = datasets.digits(), {"*": "W8A8", "body.1.0": "W2A2"}
    net = recalibrate(load_model(model)[0], data.train.images, mixed)
    wanted = accuracy(net, data.test, mixed, "recalibrated")
    assert f"*=W8A8,body.1.0=W2A2 {wanted:.1f}" in " ".join(capsys.readouterr().out.split())
    (row,) = pd.read_csv(elsewhere / "new" / "grid.csv").to_dict("records")
    assert row["bits"] == "*=W8A8,body.1.0=W2A2" and (row["w"], row["a"]) == (8, 8) and row["mean"] == wanted


def test_all_checkpoints_are_shipped():
    assert [path.name for path in SHIPPED] == [f"digits-wide-{name}.safetensors" for name in NAMES]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_checkpoint_has_the_test_accuracy_it_states(path, elsewhere):
    _, extra = load_model(path)
    stated = extra["accuracy"]["test"]
    command = ["evaluate", "--checkpoint", str(path), "--bits", ",".join(stated), "--json", "r.json"]
    assert main([*command, "--norm", extra["setup"]["norm_stats"]]) == 0
    cells = json.loads((elsewhere / "r.json").read_text())["accuracy"][path.stem]
    two_images = 100 * 2 / 540  # another processor may round another way, and so flip an answer
    assert {bits: cell["mean"] for bits, cell in cells.items()} == pytest.approx(stated, abs=two_images)


# --- compare ---------------------------------------------------------------------------------------------------


def test_compare_prints_its_table_and_writes_it(capsys, elsewhere):
    command = ["compare", *TINY, *FEW, "--methods", "ptq_mse,qat,mebqat", "--bits", "W2A2", "--pairs", "W2A2,FP"]
    assert main([*command, "--seeds", "1", "--jobs", "1", "--out", "c"]) == 0
    printed = capsys.readouterr().out
    written = json.loads((elsewhere / "c" / "compare.json").read_text())
    assert list(written["accuracy"]) == ["ptq_mse", "qat", "mebqat"]
    assert written["costs"]["mebqat"]["backprops"] == 2 + 4  # of two warm steps, and of one step with four pairs
    assert written["setup"]["recipe"]["batch_size"] == 16
    first = printed.split("\n\n")[0]  # the table under recalibrated statistics
    rows = {line.split("  ")[0]: line.split() for line in first.splitlines()}
    assert rows["QAT"][-1] == "-"  # not trained there
    assert rows["MEBQAT"][-1] == f"{written['accuracy']['mebqat']['FP']['mean']:.1f}"
    assert "nan" not in printed and "recalibrated" in printed and "1 seed," in printed and "batch" in printed


def test_compare_takes_variants_and_all_pairs(elsewhere, capsys):
    command = ["compare", *TINY, *FEW, "--methods", "mebqat,mebqat+exclude=(3,5)+teacher=next", "--pairs", "all"]
    assert main([*command, "--seeds", "1", "--jobs", "1", "--out", "c"]) == 0
    written = json.loads((elsewhere / "c" / "compare.json").read_text())
    assert list(written["accuracy"]) == ["mebqat", "mebqat+exclude=(3,5)+teacher=next"]
    assert len(written["accuracy"]["mebqat"]) == 75 and "held_out" in capsys.readouterr().out


# --- errors ----------------------------------------------------------------------------------------------------


def damaged(folder):
    (folder / "damaged.safetensors").write_bytes(b"x" * 100)


def mismatched(folder):
    """A model file whose tensors are not those of the network that it describes."""
    net = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
    meta = {"kind": "model", "model": checkpoint.describe(net), "extra": {}}
    files.write(folder / "mismatched", models.digit_net().state_dict(), meta)


def own(folder):
    net = quantize(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)), sample=IMAGES)
    save_model(net, folder / "own")


def occupied(folder):
    (folder / "file").write_text("not a folder")


IMAGES = torch.rand(8, 1, 8, 8)
EVALUATE = ["evaluate", "--checkpoint", "model.safetensors", "--norm", "running", "--bits", "W2A2"]
ERRORS = [
    (["evaluate", "--checkpoint", "gone"], "no checkpoint gone in", None),
    (["evaluate", "--checkpoint", "damaged.safetensors"], "is damaged or no safetensors file", damaged),
    (["evaluate", "--checkpoint", "mismatched"], "mismatched does not fit this model", mismatched),
    (["evaluate", "--checkpoint", "own"], "own holds a model of your own", own),
    ([*EVALUATE, "--bits", "W2"], "'W2' is no bitwidth pair; write W2A4", None),
    ([*EVALUATE, "--bits", ""], "--bits is empty: give it a value", None),
    ([*EVALUATE, "--data", "mnist"], "no dataset 'mnist'; known: digits", None),
    ([*EVALUATE, "--json", "file/r.json"], "file", occupied),
    (["train", *TINY, "--method", "mebcat"], "no method 'mebcat'; known: fp", None),
    (["train", *TINY, "--model", "vgg"], "no model 'vgg'; known: digit_net", None),
    (["train", *TINY, "--quantizer", "round"], "no quantizer 'round'; known: dorefa", None),
    (["train", *TINY, "--teacher", "boss"], "no teacher 'boss'", None),
    (["train", *TINY, "--steps", "0"], "steps must be at least 1, not 0", None),
    (["train", *TINY, "--method", "qat"], "qat trains exactly one pair", None),
    (["train", *TINY, "--lr", "-1"], "lr must be at least 0, not -1.0", None),
    (["train", *TINY, "--out", "file/a.safetensors"], "file", occupied),
    (["compare", *TINY, "--methods", "mebqat,qta"], "no method 'qta'; known: fp", None),
    ([*EVALUATE[:-2], "--layers", "W2A2"], "--layers takes LAYER=PAIR", None),
    ([*EVALUATE, "--save", "g.xls"], "written as .csv or .parquet", None),
    (["compare", *TINY, "--quantizer", "lsq", "--bits", "W1A1"], "defines no 1-bit values", None),
    (["compare", *TINY, "--quantizer", "double_rounding", "--bits", "W16A4"], "does not define W16A4", None),
    (["compare", *TINY, "--methods", "mebqat,mebqat"], "each method once: mebqat, mebqat", None),
    (["compare", *TINY, "--methods", "mebqat+steps=abc"], "steps must be a whole number, not 'abc'", None),
    (["compare", *TINY, "--qat-lrs", "fast"], "--qat-lrs takes numbers above 0, each once", None),
    (["compare", *TINY, "--seeds", "0"], "--seeds must be at least 1, not 0", None),
    (["demo", "--seeds", "0"], "--seeds must be at least 1, not 0", None),
]


@pytest.mark.parametrize(
    ("command", "message", "prepare"), ERRORS, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_an_expected_error_is_one_line_and_status_2(capsys, elsewhere, model, command, message, prepare):
    if prepare:
        prepare(elsewhere)
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mebqat-lite: ") and message in printed.err
    assert printed.err.count("\n") == 1 and len(printed.err) < 320


def test_another_recipe_on_the_same_file_says_what_to_do(capsys):
    assert main(["train", *TINY, "--out", "a.safetensors"]) == 0
    capsys.readouterr()
    assert main(["train", *TINY, "--lr", "0.3", "--out", "a.safetensors"]) == 2
    error = capsys.readouterr().err
    assert "belongs to another run" in error and "lr 0.01 there, 0.3 here" in error and "give another path" in error


def test_traceback_shows_where_an_error_comes_from(model):
    with pytest.raises(FileNotFoundError):
        main(["--traceback", "evaluate", "--checkpoint", "gone"])


def test_an_interrupt_is_no_traceback(capsys, monkeypatch, model):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load", interrupted)
    assert main(EVALUATE) == 130
    assert capsys.readouterr().err == "mebqat-lite: stopped\n"


@pytest.mark.parametrize("command", [[], ["fly"], ["evaluate"], ["evaluate", "--checkpoint", "a", "--norm", "none"]])
def test_a_command_that_is_none_shows_the_usage(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2 and "usage: mebqat-lite" in capsys.readouterr().err


@pytest.mark.parametrize("rest", [[], ["lint", "types"], ["tests", "-x", "-k", "bits"], ["-x"], ["-k", "bits"]])
def test_test_passes_the_rest_on(rest, monkeypatch):
    monkeypatch.setattr(selftest, "main", lambda got: 7 if got == rest else f"got {got}")
    assert main(["test", *rest]) == 7


@pytest.mark.slow
def test_doctor_as_a_module():
    command = [sys.executable, "-m", "mebqat_lite", "doctor"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) >= 5 and all(line.startswith(("[OK] ", "[FAIL] ")) for line in lines), done.stderr
    assert done.returncode == any(line.startswith("[FAIL]") for line in lines)
    assert any("PyTorch" in line or "torch" in line for line in lines)
