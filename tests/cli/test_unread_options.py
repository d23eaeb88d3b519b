"""Every option of every command, in every mode of the command: it changes what comes out, or is refused."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_few_shot import made

from mebqat_lite import models, quantize, save_model, save_packed
from mebqat_lite.cli import main, parser
from mebqat_lite.datasets import digits
from mebqat_lite.experiments.setups import SETUPS

[COMMANDS] = [action.choices for action in parser()._actions if action.choices]
TRAIN = "train --steps 2 --warm-steps 1 --seed 0 --no-tensorboard"
FEW = "--data digits,count=100,val=20,test=20 --batch-size 16"
MODES = {
    "train": [
        f"{TRAIN} --batch-size 16 --steps 4",
        f"{TRAIN} --batch-size 16 --method mebqat",
        f"{TRAIN} --batch-size 16 --method qat --bits W4A4",
        f"{TRAIN} --batch-size 16 --method adabits",
        "train --steps 2 --no-tensorboard --method fp",
        f"{TRAIN} --recipe tiny-pn --method mebqat_pn",
        f"{TRAIN} --recipe tiny-maml --method mebqat_maml",
    ],
    "evaluate": [
        "evaluate --checkpoint m.safetensors --bits W2A2,FP",
        "evaluate --checkpoint pn.safetensors --bits W2A2,FP --episodes 5",
        "evaluate --checkpoint packed.safetensors",
    ],
    "allocate": ["allocate --checkpoint m.safetensors --bytes 480"],
    "export": ["export --checkpoint m.safetensors --to packed --bits W2A2"],
    "compare": [
        f"compare {FEW} --steps 2 --warm-steps 1 --seeds 1 --engine serial --methods mebqat,qat --bits W2A2 --pairs FP",
        f"compare {FEW} --steps 8 --warm-steps 1 --seeds 1 --engine serial --methods mebqat --pairs W2A2",
        f"compare {FEW} --warm-steps 2 --seeds 1 --engine serial --methods ptq_mse --pairs W2A2",
    ],
    "benchmark": ["benchmark pn.safetensors --bits W2A2 --episodes 4"],
}
# Values that differ from those above; one of them differs from the default of the mode.
VALUES = {
    "recipe": ["svhn-cnn8"],
    "data": ["digits,count=200,val=20,test=30"],
    "model": ["conv4", "digit_net"],
    "quantizer": ["sat"],
    "steps": ["3"],
    "warm_steps": ["3"],
    "batch_size": ["8"],
    "lr": ["0.4"],
    "m": ["3", "4"],
    "teacher": ["labels", "fp"],
    "set": ["clip=0.0001"],
    "method": ["ptq_naive"],
    "bits": ["W3A3"],
    "seed": ["1"],
    "amp": [],
    "devices": ["2"],
    "nodes": ["2"],
    "checkpoint": ["other.safetensors"],
    "part": ["val"],
    "layers": ["*=W2A2"],
    "bytes": ["380"],
    "bitops": ["9999999"],
    "norm": ["batch"],
    "ways": ["3"],
    "shots": ["2"],
    "queries": ["2"],
    "episodes": ["6"],
    "to": ["nested"],
    "methods": ["adabits"],
    "budget": ["total"],
    "pairs": ["W3A3"],
    "qat_lrs": ["0.1,0.2"],
    "seeds": ["2"],
    "engine": ["gone"],
    "address": ["x:1"],
    "checkpoints": ["other.safetensors"],
    "out": ["new.safetensors"],
    "folder": ["new"],
    "json": ["new.json"],
    "save": ["new.csv"],
}
# What changes no number: how fast or how often something is done, and what is written beside. Tests of their own.
UNSEEN = {"help", "traceback", "save_every", "compile", "vectorized", "tensorboard", "jobs", "retries", "fresh"}
UNSEEN |= {"untrained"}  # allows more, and changes nothing that is allowed
WITHOUT = {"demo", "assignments", "grade", "check-submission", "doctor", "test"}  # each takes long, or has no options


def test_every_option_is_looked_at():
    assert set(MODES) | WITHOUT == set(COMMANDS)
    assert {action.dest for name in MODES for action in COMMANDS[name]._actions} == set(VALUES) | UNSEEN


@pytest.fixture
def networks(elsewhere, monkeypatch):
    """Saved networks of each kind, and the glyphs replaced by few small images."""
    monkeypatch.setitem(SETUPS, "tiny-pn", replace(SETUPS["tiny-pn"], data="made"))
    monkeypatch.setitem(SETUPS, "tiny-maml", replace(SETUPS["tiny-maml"], data="made"))
    for seed, name in enumerate(("m", "other")):
        torch.manual_seed(seed)
        net = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
        setup = {"recipe": {}, "norm_stats": "recalibrated"}
        save_model(net, elsewhere / f"{name}.safetensors", data="digits", seed=0, method="mebqat", setup=setup)
    save_packed(net, elsewhere / "packed.safetensors", "W2A2", calibration=digits().train.images)
    few_shot = quantize(models.conv4(channels=4, image_size=16, classes=None), "lsq", sample=made().train.images)
    setup = {"recipe": {"quantizer": "lsq", "ways": 4, "queries": 1}}
    save_model(few_shot, elsewhere / "pn.safetensors", data="made", seed=0, method="mebqat_pn", setup=setup)
    return elsewhere


def outcome(folder, command, capsys):
    """What a command prints and writes, without times; None if it is refused in one line."""
    before = {path for path in folder.rglob("*") if path.is_file()}
    try:
        status = main(command)
    except SystemExit as stop:  # argparse itself refuses two options that exclude each other
        status = stop.code
    printed = capsys.readouterr()
    if status:
        assert status == 2 and printed.err.splitlines()[-1].startswith("mebqat-lite"), printed.err
        return None
    written = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in before]
    found = {str(path.relative_to(folder)): content(path) for path in written}
    for path in written:
        path.unlink()
    return re.sub(r"[\d.]+ s\b", "", printed.out), found


def content(path):
    """What is in a file that depends on all that was asked for, and on nothing else."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        return [(name, t.tolist()) for name, t in sorted(tensors.items())]
    if path.suffix == ".csv":
        return path.read_text()
    return None


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=pytest.mark.slow) if command == "compare" else mode
        for command, modes in MODES.items()
        for mode in modes
    ],
)
def test_every_option_changes_what_comes_out_or_is_refused(mode, networks, capsys):
    command = mode.split()
    plain = outcome(networks, command, capsys)
    assert plain is not None and plain == outcome(networks, command, capsys)
    for action in COMMANDS[command[0]]._actions:
        if action.dest not in UNSEEN:
            given = [[*action.option_strings[-1:], value] for value in VALUES[action.dest]]
            lines = [[*command, *words] if words[1:] else [command[0], *words, *command[1:]] for words in given]
            tried = [outcome(networks, line, capsys) for line in lines or [[*command, action.option_strings[-1]]]]
            assert any(found != plain for found in tried), f"{action.dest} has no effect in: {mode}"
