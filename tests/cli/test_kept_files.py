"""Commands refuse to write over what they read, before they work."""

import json
from pathlib import Path

import pytest
import torch

from mebqat_lite import files, models, paths, quantize, save_model, save_packed
from mebqat_lite.cli import main

SHIPPED = str(paths.shipped("checkpoints", "digits-wide-mebqat.safetensors"))
IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TINY = ["train", "--steps", "2", "--warm-steps", "0", "--batch-size", "16", "--no-tensorboard"]
EVALUATE = ["evaluate", "--norm", "running", "--bits", "W2A2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A folder with a file of each kind, where the test runs."""
    monkeypatch.chdir(tmp_path)
    net = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=IMAGES)
    save_model(net, "m.safetensors", data="digits", method="mebqat")
    save_model(net, "m.csv")
    save_packed(net, "p.safetensors", "W2A2", calibration=IMAGES)
    files.write("t.training", {}, {"kind": "training"})
    Path("link").symlink_to("m.safetensors")
    Path("m.run").mkdir()
    Path("m.run/metrics.jsonl").write_text("{}\n")
    Path("c").mkdir()
    Path("c/compare.json").symlink_to("elsewhere.json")
    return tmp_path


def unread(*_, **__):
    raise AssertionError("it has begun to work")


def contents(folder):
    return {path: path.read_bytes() for path in [*folder.rglob("*"), Path(SHIPPED)] if path.is_file()}


REFUSED = [
    ([*EVALUATE, "--checkpoint", "m.safetensors", "--json", "m.safetensors"], "m.safetensors is a model checkpoint"),
    ([*EVALUATE, "--checkpoint", "m.safetensors", "--json", "./p.safetensors"], "p.safetensors is a packed checkpoint"),
    ([*EVALUATE, "--checkpoint", "m.safetensors", "--json", "t.training"], "t.training is a training checkpoint"),
    ([*EVALUATE, "--checkpoint", "m.csv", "--save", "m.csv"], "m.csv is a model checkpoint"),
    ([*EVALUATE, "--checkpoint", "link", "--json", "link"], "link is a link to m.safetensors"),
    ([*EVALUATE, "--checkpoint", "m.safetensors", "--json", "/dev/null"], "/dev/null is a device"),
    ([*EVALUATE, "--checkpoint", "m.safetensors", "--json", "m.run/metrics.jsonl"], "is in the folder of a run"),
    ([*EVALUATE, "--checkpoint", "m.safetensors", "--save", "m.run/new.csv"], "is in the folder of a run"),
    ([*EVALUATE, "--checkpoint", "m.safetensors", "--save", "a.csv", "--json", "c/../a.csv"], "are the same"),
    ([*TINY, "--out", "t.training"], "t.training is a training checkpoint"),
    ([*TINY, "--out", "p.safetensors"], "p.safetensors is a packed checkpoint"),
    ([*TINY, "--out", "link"], "link is a link to m.safetensors"),
    ([*TINY, "--out", "/dev/null"], "/dev/null is a device"),
    (["compare", "--methods", "mebqat,qat", "--out", "c"], "compare.json is a link to elsewhere.json"),
    (
        ["export", "--checkpoint", SHIPPED, "--to", "packed", "--bits", "W4A4", "--out", SHIPPED],
        "is a model checkpoint",
    ),
    (
        ["export", "--checkpoint", SHIPPED, "--to", "nested", "--out", "t.training"],
        "t.training is a training checkpoint",
    ),
]


@pytest.mark.parametrize(
    ("command", "message"), REFUSED, ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else ""
)
def test_it_is_refused_before_the_work(command, message, elsewhere, capsys, monkeypatch):
    monkeypatch.setattr("mebqat_lite.deploy.packed.load_any", unread)
    monkeypatch.setattr("mebqat_lite.deploy.export.load_model", unread)
    monkeypatch.setattr("mebqat_lite.train.fit", unread)
    monkeypatch.setattr("mebqat_lite.experiments.compare.compare", unread)
    before = contents(elsewhere)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(elsewhere) == before


def test_a_command_that_is_run_again_replaces_what_it_wrote():
    for _ in range(2):
        command = [*EVALUATE, "--checkpoint", "m.safetensors", "--json", "r.json", "--save", "r.csv"]
        assert main([*command, "--data", "digits,count=100,val=20,test=20"]) == 0
        assert json.loads(Path("r.json").read_text())["accuracy"] and Path("r.csv").is_file()
        assert main([*TINY, "--out", "again.safetensors"]) == 0
        export = [
            "export",
            "--checkpoint",
            "again.safetensors",
            "--to",
            "packed",
            "--bits",
            "FP",
            "--out",
            "x",
            "--untrained",
        ]
        assert main(export) == 0


def test_two_trainings_on_one_name_are_refused(elsewhere, capsys):
    with files.locked("a.training"):
        assert main([*TINY, "--out", "a.safetensors"]) == 2
        assert "another run writes a.training (process " in capsys.readouterr().err
    assert not list(elsewhere.glob("*a.*"))
    assert main([*TINY, "--out", "a.safetensors"]) == 0
    assert sorted(path.name for path in elsewhere.glob("*a.*")) == ["a.run", "a.safetensors", "a.training"]


def test_a_model_that_has_the_name_of_a_run_s_checkpoint_stays(elsewhere, capsys):
    save_model(quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=IMAGES), "a.training")
    before = contents(elsewhere)
    assert main([*TINY, "--out", "a.safetensors"]) == 2
    assert "a.training is a model checkpoint, which is not overwritten" in capsys.readouterr().err
    assert contents(elsewhere) == before


def test_a_record_that_is_none_is_one_line(elsewhere, capsys):
    assert main([*TINY, "--out", "a.safetensors"]) == 0
    (elsewhere / "a.training").unlink()
    (elsewhere / "a.run" / "metrics.jsonl").write_text("{}\n")
    capsys.readouterr()
    assert main([*TINY, "--out", "a.safetensors"]) == 2
    error = capsys.readouterr().err
    assert (
        "metrics.jsonl is damaged, line 1 is no record of a step: delete the file" in error and error.count("\n") == 1
    )
