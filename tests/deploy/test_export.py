"""``mebqat-lite export``: the forms, what they refuse, and that evaluate reads what it wrote."""

import json
from pathlib import Path

import pytest
import torch

from mebqat_lite import METHODS, load_model, load_packed, models, quantize, recalibrate, save_model
from mebqat_lite.cli import main
from mebqat_lite.deploy import export, onnx_run
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.packed import packed_settings
from mebqat_lite.measure import saved

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))

SHIPPED = "data/checkpoints/digits-wide-{}.safetensors"


def test_the_command_writes_a_file_that_evaluate_reads(tmp_path, capsys):
    out, shown = tmp_path / "x.safetensors", tmp_path / "x.json"
    assert (
        main(
            ["export", "--checkpoint", SHIPPED.format("mebqat"), "--to", "packed", "--bits", "W2A2", "--out", str(out)]
        )
        == 0
    )
    assert f"{out} ({out.stat().st_size:,} bytes)" in capsys.readouterr().out
    found = []
    for path in (out, SHIPPED.format("mebqat")):
        assert main(["evaluate", "--checkpoint", str(path), "--bits", "W2A2", "--json", str(shown)]) == 0
        found.append(next(iter(json.loads(shown.read_text())["accuracy"].values()))["W2A2"]["mean"])
    assert found[0] == found[1]
    assert main(["evaluate", "--checkpoint", str(out)]) == 0
    assert "W2A2" in capsys.readouterr().out
    assert main(["evaluate", "--checkpoint", str(out), "--bits", "W3A3", "--norm", "batch"]) == 2
    assert "this packed file has no" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["qat_w2a2", "--to", "packed", "--bits", "W4A4"], "never trained for W4A4 (qat: W2A2)"),
        (["any_precision", "--to", "packed", "--bits", "W3A3"], "never trained for W3A3"),
        (["fp", "--to", "packed", "--bits", "W4A4"], "never trained for W4A4 (fp: FP)"),
        (["mebqat", "--to", "packed"], "--to packed needs --bits, as W4A4"),
        (["mebqat", "--to", "zip", "--bits", "W4A4"], "no format 'zip'; choose one of packed, nested, onnx"),
        (["mebqat", "--to", "onnx", "--bits", "W4A4,W2A2"], "an ONNX file holds one pair, not 2"),
    ],
)
def test_export_refuses_what_it_cannot_do(words, message, tmp_path, capsys):
    name, *rest = words
    assert main(["export", "--checkpoint", SHIPPED.format(name), *rest, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_untrained_pairs_can_be_asked_for_and_adapted_networks_cannot(tmp_path, capsys):
    command = ["export", "--to", "packed", "--bits", "W4A4", "--out", str(tmp_path / "x"), "--checkpoint"]
    assert main([*command, SHIPPED.format("qat_w2a2"), "--untrained"]) == 0
    assert main([*command, "data/checkpoints/glyphs-fomaml.safetensors"]) == 2
    assert "adapts its weights to each set of classes" in capsys.readouterr().err


def test_what_each_method_trains_for():
    model = quantize(models.digit_net(), "lsq", sample=IMAGES)
    about = lambda name, **recipe: {"method": name, "setup": {"recipe": recipe}}  # noqa: E731
    known = {
        name: set(map(str, saved.trained_for(model, about(name, bits=["W2A2"]))))
        for name in METHODS
        if "qat" in name.split("_") or name in ("fp", "ptq_mse", "adabits")
    }
    assert known["qat"] == known["adabits"] == {"W2A2"} and known["fp"] == {"FP"} and len(known["ptq_mse"]) == 73
    drawn = saved.trained_for(model, about("mebqat", exclude=[3, 5, 7]))
    assert len(drawn) == 5 * 6 + 1 and not any({3, 5, 7} & {b.w, b.a} for b in drawn)


@pytest.mark.slow
def test_onnx_is_compared_with_the_network_on_the_test_images(tmp_path, capsys):
    out = tmp_path / "x.onnx"
    command = ["export", "--checkpoint", SHIPPED.format("mebqat"), "--to", "onnx", "--bits", "W2A2", "--out", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "same class for 100.00 % of 540 images" in shown and f"{out} ({out.stat().st_size:,} bytes)" in shown


@pytest.mark.slow
def test_a_network_for_new_classes_becomes_two_onnx_files(tmp_path, capsys):
    checkpoint = "data/checkpoints/glyphs-mebqat_pn.safetensors"
    command = ["export", "--checkpoint", checkpoint, "--to", "onnx", "--bits", "W4A4", "--out", str(tmp_path / "pn")]
    assert main(command) == 0
    assert {path.name for path in (tmp_path / "pn").iterdir()} == {"enroll.onnx", "classify.onnx"}


def test_by_default_files_lie_in_results_and_nested_takes_all_trained_pairs(tmp_path, capsys, monkeypatch):
    source = (Path.cwd() / SHIPPED.format("any_precision")).as_posix()
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--checkpoint", source, "--to", "nested"]) == 0
    assert "codes do not nest" in capsys.readouterr().out
    again, _ = load_packed(tmp_path / "results" / "digits-wide-any_precision-nested.safetensors")
    assert list(map(str, packed_settings(again))) == ["W1A1", "W2A2", "W4A4", "W8A8"]


def test_a_checkpoint_that_does_not_say_how_it_was_trained_is_refused(tmp_path):
    save_model(quantize(models.digit_net(), "lsq", sample=IMAGES), tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"mine\.safetensors does not say how it was trained; from Python"):
        export.export(tmp_path / "mine.safetensors", "packed", "W4A4")


def test_the_checkpoint_itself_is_not_written_over(tmp_path):
    source = tmp_path / "mine.safetensors"
    source.write_bytes(Path(SHIPPED.format("mebqat")).read_bytes())
    with pytest.raises(FileExistsError, match=r"mine\.safetensors is a model checkpoint, which is not overwritten"):
        export.export(source, "packed", "W4A4", out=tmp_path / "." / "mine.safetensors")
    assert source.read_bytes() == Path(SHIPPED.format("mebqat")).read_bytes()


@pytest.mark.parametrize("more", [["--bits", "W2A2"], ["--bits", "FP"], ["--layers", "*=W4A4,body.0.0=W8A8"]])
def test_evaluate_says_what_a_packed_file_has(more, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    export.export(Path(SHIPPED.format("mebqat")), "packed", "W4A4", out=out)
    assert main(["evaluate", "--checkpoint", str(out), *more]) == 2
    assert "it was written for W4A4" in capsys.readouterr().err


def test_files_that_are_none(tmp_path, capsys):
    (tmp_path / "x.onnx").write_bytes(b"no protobuf" * 9)
    assert main(["evaluate", "--checkpoint", str(tmp_path / "x.onnx")]) == 2
    assert "ONNX Runtime runs ONNX files" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"x\.onnx is damaged or no ONNX file"):
        onnx_run.session(tmp_path / "x.onnx")
    command = ["export", "--checkpoint", SHIPPED.format("mebqat"), "--to", "packed", "--bits", "W4A4"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "is a folder, which is not overwritten: give the name of another file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_is_compared_at_its_own_bits(tmp_path):
    model, _ = load_model(SHIPPED.format("mebqat"))
    export_onnx(model, tmp_path / "x.onnx", "W4A4", (1, 8, 8), calibration=IMAGES)
    with pytest.raises(ValueError, match=r"x\.onnx is of W4A4: use it at these bits, not at W2A2"):
        onnx_run.agreement(tmp_path / "x.onnx", recalibrate(model, IMAGES, "W2A2"), IMAGES, "W2A2")
