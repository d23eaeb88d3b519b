"""What becomes of anything that a command raises: a line and an exit status, or with --traceback the whole."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mebqat_lite import cli, models, quantize, save_model
from mebqat_lite.cli import doctor, main, selftest

EVALUATE = ["evaluate", "--checkpoint", "m.safetensors", "--norm", "batch", "--bits", "W2A2"]


def raising(error):
    def run(*arguments):
        raise error

    return run


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
    return save_model(net, tmp_path / "m.safetensors", data="digits", seed=0, method="mebqat")


# ---------------------------------------------------------------- any exception


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError("model"), "KeyError: 'model'; run again with --traceback for the details"),
        (IndexError("too far"), "IndexError: too far; run again with --traceback for the details"),
        (ZeroDivisionError(), "ZeroDivisionError: no words; run again with --traceback for the details"),
        (ValueError(), "ValueError: no words; run again with --traceback for the details"),
        (RecursionError("too deep"), "too deep"),
        (MemoryError(), "MemoryError: no words; run again with --traceback for the details"),
        (AssertionError("never"), "AssertionError: never; run again with --traceback for the details"),
        (PermissionError(13, "Permission denied", "a/b"), "a/b: you may not read or write this"),
        (FileExistsError(17, "File exists", "a"), "a: there is a file, and a folder is needed"),
        (NotADirectoryError(20, "Not a directory", "a/b"), "a/b: a folder on the way is a file"),
        (OSError(28, "No space left on device", "a"), "a: No space left on device"),
        (OSError("words of our own"), "words of our own"),
    ],
    ids=repr,
)
def test_any_exception_is_one_line(error, line, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "main", raising(error))
    assert main(["doctor"]) == 2
    assert capsys.readouterr() == ("", f"mebqat-lite: {line}\n")


@pytest.mark.parametrize("words", [["--traceback", "doctor"], ["doctor", "--traceback"]])
@pytest.mark.parametrize("error", [KeyError("model"), ValueError("words")])
def test_traceback_shows_the_rest_wherever_it_stands(words, error, monkeypatch):
    monkeypatch.setattr(doctor, "main", raising(error))
    with pytest.raises(type(error)):
        main(words)


def test_every_command_takes_traceback():
    [commands] = [action.choices for action in cli.parser()._actions if action.choices]
    assert set(commands) >= {"demo", "train", "evaluate", "export", "compare", "benchmark", "grade", "doctor", "test"}
    for name, command in commands.items():
        assert "--traceback" in command.format_help(), name


@pytest.mark.parametrize("words", [["test", "--traceback", "lint"], ["test", "lint", "--traceback"]])
def test_the_tests_take_traceback_too(words, monkeypatch, capsys):
    monkeypatch.setattr(selftest, "run", raising(KeyError("ruff")))
    monkeypatch.setattr(selftest, "obstacle", lambda: None)
    with pytest.raises(KeyError):
        main(words)
    assert main(["test", "lint"]) == 2 and "KeyError: 'ruff'" in capsys.readouterr().err
    with pytest.raises(KeyError):
        main(["--traceback", "test", "lint"])


# ---------------------------------------------------------------- files that are not what they seem


def without(part):
    def change(meta, tensors):
        del meta[part]

    return change


def in_the_model(part):
    def change(meta, tensors):
        del meta["model"][part]

    return change


def flip(meta, tensors):
    """A bit of the name of a tensor."""
    name = next(iter(tensors))
    tensors[chr(ord(name[0]) ^ 1) + name[1:]] = tensors.pop(name)


def no_dictionary(meta, tensors):
    meta["extra"] = [1]


@pytest.mark.parametrize(
    "change", [without("model"), without("extra"), in_the_model("plan"), in_the_model("dtype"), flip, no_dictionary]
)
@pytest.mark.parametrize("command", [EVALUATE, ["export", *EVALUATE[1:3], "--to", "packed", "--bits", "W2A2"]])
def test_a_file_with_other_content_is_one_line(change, command, model, capsys):
    text = model.read_bytes()
    meta = json.loads(json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])["__metadata__"]["mebqat_lite"])
    tensors = load_file(model)
    change(meta, tensors)
    save_file(tensors, model, metadata={"mebqat_lite": json.dumps(meta)})
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("mebqat-lite: ") and printed.err.count("\n") == 1 and "Traceback" not in printed.err


@pytest.mark.parametrize("line", [b"{}", b"[]", b"3", b'{"step": "x"}', b"\xff"])
def test_a_run_folder_with_other_content_is_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.run").mkdir()
    (tmp_path / "m.run" / "metrics.jsonl").write_bytes(line + b"\n")
    train = ["train", "--steps", "1", "--warm-steps", "0", "--no-tensorboard", "--out", "m.safetensors"]
    assert main(train) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------- outputs side by side


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["a.v1", "a.v2"], {"a.v1", "a.v1.run", "a.v1.training", "a.v2", "a.v2.run", "a.v2.training"}),
        (["a.safetensors", "a.v1"], {"a.safetensors", "a.run", "a.training", "a.v1", "a.v1.run", "a.v1.training"}),
        (["b", "b.c"], {"b", "b.run", "b.training", "b.c", "b.c.run", "b.c.training"}),
    ],
)
def test_models_whose_names_share_a_beginning_keep_their_own_files(names, left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(names):
        command = ["train", "--steps", "1", "--warm-steps", "0", "--seed", str(seed), "--out", name, "--no-tensorboard"]
        assert main(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == left
    for seed, name in enumerate(names):
        folder = tmp_path / f"{name.removesuffix('.safetensors')}.run"
        assert json.loads((folder / "recipe.json").read_text())["setup"]["recipe"]["seed"] == seed


@pytest.mark.slow  # an export takes a second or two
@pytest.mark.parametrize(("out", "written"), [("a.v1", "a.v1.onnx"), ("a.onnx", "a.onnx"), (None, "m.v2-w2a2.onnx")])
def test_an_onnx_file_keeps_the_name_that_it_is_given(out, written, model, tmp_path):
    pytest.importorskip("onnxruntime")
    extra = {"data": "digits,test=60", "seed": 0, "method": "mebqat", "setup": {"recipe": {}}}
    net = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
    save_model(net, tmp_path / "m.v2.safetensors", **extra)
    command = ["export", "--checkpoint", "m.v2.safetensors", "--to", "onnx", "--bits", "W2A2"]
    assert main([*command, *([] if out is None else ["--out", out])]) == 0
    assert [path.name for path in tmp_path.rglob("*.onnx")] == [written]


# ---------------------------------------------------------------- who reads has gone


@pytest.mark.slow
@pytest.mark.parametrize(("command", "status"), [(["doctor"], 141), (["evaluate", "--help"], 0)])
def test_a_reader_that_goes_away_is_no_error(command, status):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "mebqat_lite", *command]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (status, "")
