"""A training run's folder, also of one that is killed."""

import importlib.util
import json
import math
import random
import subprocess
import sys
import time
import types

import pytest
import torch
from interrupted_runs import command, kill_and_restart, wait_for_lines

from mebqat_lite import files, paths
from mebqat_lite.cli import main
from mebqat_lite.experiments import run_folder
from mebqat_lite.experiments.run_folder import RunFolder, read_metrics, read_sessions

TINY = ["--steps", "24", "--warm-steps", "8", "--batch-size", "16", "--save-every", "3"]


def read(path):
    return json.loads(path.read_text())


def lines(folder):
    """The records of a run without the seconds, which no two runs share."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(folder / "metrics.jsonl")]


# --- the command line ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_command_that_is_killed_at_random_ends_the_same(tmp_path):
    assert main(["train", *TINY, "--out", str(tmp_path / "whole.safetensors"), "--no-tensorboard"]) == 0
    rng, metrics = random.Random(5), tmp_path / "killed.run" / "metrics.jsonl"

    def moment(process):
        wait_for_lines(metrics, rng.randint(1, 7), process)  # of 32 steps
        time.sleep(rng.uniform(0, 0.02))  # within a step or the writing of a checkpoint

    words = ["train", *TINY, "--out", "killed.safetensors", "--no-tensorboard"]
    kill_and_restart(command, [words, tmp_path], moment)
    whole, _ = files.read(tmp_path / "whole.safetensors", "model")
    killed, _ = files.read(tmp_path / "killed.safetensors", "model")
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)
    assert [line["step"] for line in lines(tmp_path / "whole.run")] == list(range(1, 33))
    assert lines(tmp_path / "killed.run") == lines(tmp_path / "whole.run")
    sessions = read_sessions(tmp_path / "killed.run" / "environment.json")
    assert len(sessions) > 1 and sessions[0]["first_step"] == 1
    seconds = [record["seconds"] for record in read_metrics(metrics)]
    assert seconds == sorted(seconds)


def test_train_leaves_its_folder_beside_the_model(tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    options = ["--steps", "3", "--warm-steps", "2", "--batch-size", "16", "--seed", "4", "--lr", "0.02"]
    assert main(["train", "--method", "mebqat", *options, "--out", str(out)]) == 0
    folder = tmp_path / "a.run"
    assert str(folder) in capsys.readouterr().out
    described, cost = read(folder / "recipe.json"), read(folder / "result.json")
    assert (described["method"], described["amp"], described["compiled"]) == ("mebqat", False, False)
    assert (described["setup"]["data"], described["setup"]["model"]) == ("digits", "digit_net")
    assert (described["setup"]["recipe"]["seed"], described["setup"]["recipe"]["lr"]) == (4, 0.02)
    assert cost["costs"] == {"steps": 5, "forwards": 14, "backprops": 14} and cost["seconds"] > 0
    records = lines(folder)
    assert [r["method"] for r in records] == ["fp"] * 2 + ["mebqat"] * 3
    assert [r["backprops"] for r in records] == [1, 2, 6, 10, 14]
    cosine = [0.02 * (1 + math.cos(math.pi * part)) / 2 for part in (0, 1 / 2, 0, 1 / 3, 2 / 3)]
    assert [r["lr"] for r in records] == pytest.approx(cosine) and cost["loss"] == records[-1]["loss"]


def test_a_refused_run_leaves_the_folder_as_it_was(tmp_path, capsys):
    command = [
        "train",
        "--steps",
        "2",
        "--warm-steps",
        "0",
        "--batch-size",
        "16",
        "--out",
        str(tmp_path / "a.safetensors"),
    ]
    assert main([*command, "--no-tensorboard"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "a.run").iterdir()}
    assert main([*command, "--lr", "0.5"]) == 2 and main([*command, "--amp"]) == 2
    error = capsys.readouterr().err
    assert "lr 0.01 there, 0.5 here" in error
    assert "a.training was trained with plain passes" in error
    assert {path: path.read_bytes() for path in (tmp_path / "a.run").iterdir()} == before


def test_tensorboard_without_the_package_is_an_error_that_names_the_cure(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = [
        "train",
        "--steps",
        "1",
        "--warm-steps",
        "0",
        "--batch-size",
        "16",
        "--out",
        str(tmp_path / "a.safetensors"),
    ]
    assert main([*command, "--tensorboard"]) == 2
    assert 'pip install "mebqat_lite[logs]"' in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert main(command) == 0 and lines(tmp_path / "a.run")  # not asked for: no error


# --- the folder ----------------------------------------------------------------------------------------------


def record(step, loss=1.0):
    return {"step": step, "method": "fp", "loss": loss, "lr": 0.1, "seconds": 1.0, "backprops": step}


def session(folder, steps, loss=1.0, tensorboard=False):
    log = RunFolder(folder, {"method": "fp"}, tensorboard)
    for step in steps:
        log.log(record(step, loss))
    log.close()


def test_steps_after_the_checkpoint_are_dropped(tmp_path):
    session(tmp_path, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    (tmp_path / "result.json").write_text("{}")
    session(tmp_path, range(4, 8), loss=2.0)
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(s, 1.0 if s < 4 else 2.0) for s in range(1, 8)]
    assert [s["first_step"] for s in read_sessions(tmp_path / "environment.json")] == [1, 4]
    assert not (tmp_path / "result.json").exists()  # of another run
    session(tmp_path, [1])  # started again from the first step
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1)]
    assert [s["first_step"] for s in read_sessions(tmp_path / "environment.json")] == [1]


def test_a_record_is_in_the_file_at_once(tmp_path):
    folder = RunFolder(tmp_path, {}, tensorboard=False)
    folder.log(record(1))
    assert read_metrics(tmp_path / "metrics.jsonl") == [record(1)]
    folder.close()


def test_tensorboard_gets_each_step_once(tmp_path, monkeypatch):
    class Writer:
        def __init__(self, log_dir):
            drawn.clear()
            self.file = tmp_path / f"events.out.tfevents.{time.time_ns()}"
            self.file.touch()

        def add_scalar(self, name, value, step):
            drawn.append((name, value, step))

        def close(self):
            pass

    drawn = []
    fake = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    session(tmp_path, range(1, 5), tensorboard=True)
    session(tmp_path, range(3, 6), loss=2.0, tensorboard=None)
    losses = [("loss", 1.0 if step < 3 else 2.0, step) for step in range(1, 6)]
    assert [d for d in drawn if d[0] == "loss"] == losses
    assert [d for d in drawn if d[0] == "lr"] == [("lr", 0.1, step) for step in range(1, 6)]
    assert len(list(tmp_path.glob("events*"))) == 1  # the killed session's are gone


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    session(tmp_path, range(1, 5), tensorboard=True)
    session(tmp_path, range(3, 6), loss=2.0, tensorboard=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert len(events.Scalars("lr")) == 5


def test_the_environment_is_that_of_this_process():
    found = run_folder.environment()
    assert set(found) == {"python", "mebqat_lite", *run_folder.PACKAGES, "platform", "threads", "device", "git"}
    assert found["threads"] == 1 and found["torch"] and found["device"]


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


def test_the_revision_and_whether_files_differ(tmp_path, monkeypatch):
    assert run_folder.revision(None) is None and run_folder.revision(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert run_folder.revision(tmp_path) is None  # no commit yet
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    clean = run_folder.revision(tmp_path)
    assert len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "inside").mkdir()
    assert run_folder.revision(tmp_path / "inside") is None  # an unpacked copy, not this repository
    (tmp_path / "new").touch()
    assert run_folder.revision(tmp_path) == {"commit": clean["commit"], "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_folder.revision(tmp_path) is None  # no git
    monkeypatch.setattr(paths, "checkout", lambda: None)
    assert run_folder.environment()["git"] is None
