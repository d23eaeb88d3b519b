"""Several devices on the command line: one of everything is written, errors are one line."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from two_processes import assert_close, run

from mebqat_lite import files
from mebqat_lite.cli import main
from mebqat_lite.experiments.run_folder import read_metrics

TRAIN = ["train", "--steps", "4", "--warm-steps", "2", "--batch-size", "15", "--no-tensorboard"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def model_of(folder):
    return files.read(folder / "a.safetensors", "model")[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What ``mebqat-lite train --devices 2`` leaves and prints."""
    folder = tmp_path_factory.mktemp("command")
    script = str(Path(sys.executable).parent / "mebqat-lite")
    ended = run(script, *TRAIN, "--devices", "2", "--out", "a.safetensors", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder, ended


@pytest.mark.slow
def test_the_command_leaves_one_of_everything(trained):
    folder, ended = trained
    assert names(folder) == ["a.run", "a.safetensors", "a.training", "a.training.fp"]
    assert ended.stdout.count("6 steps, 6 back-propagations") == ended.stdout.count("Written: a.safetensors") == 1
    assert names(folder / "a.run") == ["environment.json", "metrics.jsonl", "recipe.json", "result.json"]
    assert [record["step"] for record in read_metrics(folder / "a.run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert json.loads((folder / "a.run" / "recipe.json").read_text())["devices"] == 2
    assert main(["evaluate", "--checkpoint", str(folder / "a.safetensors"), "--bits", "W2A2"]) == 0


@pytest.mark.slow
def test_torchrun_gives_the_same_model(trained, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "mebqat_lite", *TRAIN, "--devices", "2", "--out", "a.safetensors"]
    ended = run(*command, cwd=tmp_path, TMPDIR=str(tmp_path))  # torchrun leaves folders there
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Written: a.safetensors") == 1
    assert_close(model_of(tmp_path), model_of(trained[0]), 0)


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line(tmp_path):
    """A rate of 1e30 leaves no finite loss; both processes know after the same step."""
    rate = ["--lr", "1e30", "--set", "clip=1e30", "--set", "schedule=constant"]
    ended = run(sys.executable, "-m", "mebqat_lite", *TRAIN, *rate, "--devices", "2", cwd=tmp_path)
    assert ended.returncode == 2 and ended.stdout == ""
    assert re.fullmatch(r"mebqat-lite: the loss is nan at step 1, FP: lower lr .*\n", ended.stderr)


@pytest.fixture
def called(monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["mebqat-lite", *words])
        return main()

    return call


def test_without_fabric_the_message_has_the_cure(called, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for package in ("lightning_fabric", "lightning", "lightning.fabric"):
        monkeypatch.setitem(sys.modules, package, None)
    assert called(*TRAIN, "--devices", "2") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'pip install "mebqat_lite[fabric]"' in error and not names(tmp_path)


def test_one_device_needs_no_fabric(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert main([*TRAIN, "--out", "a.safetensors"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--devices", "0"), "--devices must be at least 1, not 0"),
        (("--nodes", "-1"), "--nodes must be at least 1, not -1"),
    ],
)
def test_devices_that_cannot_be(called, capsys, words, message):
    assert called(*TRAIN, *words) == 2
    assert message in capsys.readouterr().err


def test_more_devices_than_gpus_are_refused(called, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert called(*TRAIN, "--devices", "2") == 2
    assert "there are 1 GPUs, not 2" in capsys.readouterr().err


def test_a_call_from_python_starts_no_processes(capsys):
    """They would run Python's own command line again, here all tests."""
    assert main([*TRAIN, "--devices", "2"]) == 2
    assert "several devices need a command line of its own" in capsys.readouterr().err


def test_processes_of_torchrun_that_were_not_asked_for_are_refused(called, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert called(*TRAIN) == 2
    assert re.search("torchrun started 2 processes: give --devices", capsys.readouterr().err)
