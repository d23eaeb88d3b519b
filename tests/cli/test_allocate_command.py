"""The command that chooses bits for each layer, and the commands that take its map."""

import json

import pytest
import torch

from mebqat_lite import allocate, datasets, grid, load_model, load_packed, models, quantize, save_model
from mebqat_lite.cli import main
from mebqat_lite.measure.costs import bit_operations, by_layer

SETUP = {"recipe": {}, "norm_stats": "recalibrated"}
CHOOSE = ["allocate", "--checkpoint", "m.safetensors"]
TRIED = ["W1A1", "W2A2", "W3A3", "W4A4", "W8A8"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = quantize(models.digit_net(widths=(4, 6, 6, 6)), sample=torch.rand(8, 1, 8, 8))
    save_model(net, tmp_path / "m.safetensors", data="digits", seed=0, method="mebqat", setup=SETUP)
    return load_model(tmp_path / "m.safetensors")[0]


def refused(capsys, command, message):
    assert main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(("unit", "budget"), [("bytes", 700), ("bitops", 3_000_000)])
def test_the_map_is_the_one_that_solve_finds_and_fits_the_budget(capsys, tmp_path, model, unit, budget):
    data = datasets.digits()
    assert main([*CHOOSE, f"--{unit}", str(budget), "--out", "map.json"]) == 0
    printed, layers = capsys.readouterr().out, json.loads((tmp_path / "map.json").read_text())
    how = {"rest": "W2A2", "metric": "KL", "calibration": data.train.images}
    losses = allocate.sensitivity(model, data.train, TRIED, **how).loss.unstack()
    frame = by_layer(model, data.train.images[0], layers)
    left = budget - frame[unit][frame.edge].sum()
    chosen = allocate.solve(losses, allocate.prices(model, data.train.images[0], TRIED, unit), left)
    assert layers == {"*": "W1A1", **{layer: str(pair) for layer, pair in chosen.items()}}
    assert frame[unit].sum() <= budget and len(set(chosen.values())) > 1
    shown = {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith(("W", "layers"))}
    fits = [pair for pair in TRIED if by_layer(model, data.train.images[0], pair)[unit].sum() <= budget]
    assert [name for name in shown if name != "Written:"] == [*fits, "layers"]
    measured = grid(model, data.val, [layers], calibration=data.train.images)["mean"].iloc[0]
    assert shown["layers"][1:4:2] == [str(frame.bytes.sum()), str(bit_operations(model, data.train.images[0], layers))]
    assert float(shown["layers"][-1]) == pytest.approx(measured, abs=1e-3)
    assert "Next: mebqat-lite evaluate --checkpoint m.safetensors --layers map.json" in printed


def test_evaluate_and_export_take_the_map(capsys, tmp_path, model):
    assert main([*CHOOSE, "--bytes", "700"]) == 0
    written = tmp_path / "results" / "m-layers.json"
    layers = json.loads(written.read_text())
    next_one = capsys.readouterr().out.split("Next: mebqat-lite ")[1].split()
    assert main(next_one) == 0  # what it tells to do next works
    name = ",".join(f"{layer}={pair}" for layer, pair in layers.items())
    accuracy = capsys.readouterr().out.split(f"\n{name}")[1].split()[0]
    assert main(["export", *CHOOSE[1:], "--layers", str(written), "--to", "packed"]) == 0
    packed = tmp_path / "results" / "m-layers.safetensors"
    assert str(packed.relative_to(tmp_path)) in capsys.readouterr().out.replace(f"{tmp_path}/", "")
    assert main(["evaluate", "--checkpoint", str(packed)]) == 0
    assert capsys.readouterr().out.split(f"\n{name}")[1].split()[0] == accuracy
    again, _ = load_packed(packed)
    inner = [layer for layer in layers if layer != "*"]
    sizes = by_layer(again, torch.rand(1, 8, 8), layers).bytes[inner]
    assert sizes.tolist() == by_layer(model, torch.rand(1, 8, 8), layers).bytes[inner].tolist()
    out = ["--to", "nested", "--out", "nested.safetensors"]
    assert main(["export", *CHOOSE[1:], "--layers", name, *out]) == 0


def test_what_cannot_be_allocated_is_one_line(capsys, tmp_path, model):
    refused(capsys, [*CHOOSE, "--bytes", "100"], "--bytes 100: layers of fixed bits take 384, and the others at least")
    refused(capsys, [*CHOOSE, "--bytes", "700", "--out", "new.safetensors"], "give a name that ends with .json")
    save_model(model, tmp_path / "bare.safetensors")
    refused(
        capsys, [CHOOSE[0], "--checkpoint", "bare.safetensors", "--bytes", "700"], "does not say how it was trained"
    )
    few = quantize(models.conv4(channels=4, image_size=16, classes=None), "lsq", sample=torch.rand(8, 1, 16, 16))
    save_model(few, tmp_path / "pn.safetensors", data="glyphs", seed=0, method="mebqat_pn", setup=SETUP)
    refused(
        capsys, [CHOOSE[0], "--checkpoint", "pn.safetensors", "--bytes", "700"], "pn.safetensors learns new classes"
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"*": 3}', "\udcff"])
def test_a_file_without_a_map_is_one_line(capsys, tmp_path, model, content):
    (tmp_path / "map.json").write_bytes(content.encode(errors="surrogateescape"))
    refused(capsys, ["evaluate", *CHOOSE[1:], "--layers", "map.json"], "map.json: this file holds no map of layers")


def test_a_map_is_written_for_trained_pairs_only(capsys, model):
    command = ["export", *CHOOSE[1:], "--to", "packed", "--layers"]
    refused(capsys, [*command, "*=W2A1"], "never trained for W2A1")
    refused(capsys, [*command, "gone=W2A2"], "no quantized layer ['gone']")
