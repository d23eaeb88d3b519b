"""Files of integers: the very weights and predictions back, and clear words for bad files."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from mebqat_lite import (
    Bits,
    CheckpointError,
    at,
    checkpoint,
    datasets,
    files,
    fit,
    give_norm_sets,
    load_packed,
    models,
    quantize,
    recalibrate,
    restore_float,
    save_packed,
)
from mebqat_lite.bits import candidates
from mebqat_lite.deploy import packed
from mebqat_lite.deploy.codes import weight_codes
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import agreement
from mebqat_lite.measure.costs import stored_bytes
from mebqat_lite.quantizers import QUANTIZERS, Quantizer, register, unit_activation
from mebqat_lite.switching.state import norm_layers, quantized_layers

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = ("W2A2", "W3A8", "W8A4", "W16A16")


def net(quantizer="lsq", pairs=(), seed=0, **options):
    torch.manual_seed(seed)
    model = quantize(models.digit_net(widths=(4, 5, 6, 7), **options), quantizer, sample=IMAGES)
    return recalibrate(model, IMAGES, pairs).eval() if pairs else model.eval()


def predictions(model, bits, images=IMAGES):
    with torch.no_grad(), at(model, bits, "recalibrated"):
        return model(images)


@pytest.mark.parametrize("name", QUANTIZERS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 30), st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16]), st.booleans())
def test_integers_times_step_are_the_weights(name, seed, spread, bits, double):
    """Every registered quantizer, all widths, in both precisions, at the layers that it rescales too."""
    if Bits(bits, 32) not in QUANTIZERS[name].pairs():
        return
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(spread)
    images = torch.rand(3, 1, 4, 4)
    model = quantize(module.double() if double else module, name, sample=images)
    for layer in quantized_layers(model).values():
        codes, step, zero = weight_codes(layer, bits)
        assert codes.dtype == torch.int32 and codes.min() >= 0 and codes.max() < 2**bits
        assert torch.equal((codes.to(step.dtype) - zero) * step, layer.quantized_weight(bits))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_activations_are_what_their_grid_says(name):
    x, quantizer = torch.linspace(-3, 12, 1001, dtype=torch.float64)[None], QUANTIZERS[name]
    model = net(name).double()
    layer = quantized_layers(model)["body.1.0"]
    for bits in (2, 4, 8, 16):
        step, low, high = quantizer.activation_grid(bits, layer.quant, layer.site)
        expected = (x / step).clamp(low, high).round() * step
        torch.testing.assert_close(quantizer.activation(x, bits, layer.quant, layer.site), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_packed_network_predicts_the_very_same(name, tmp_path):
    """Every logit, at every pair of one file and from files of one pair; the weights are equal too."""
    pairs = [pair for pair in (*PAIRS, "FP", "W1A1") if Bits.parse(pair) in QUANTIZERS[name].pairs()]
    model = net(name, pairs)
    save_packed(model, tmp_path / "all.safetensors", pairs, extra={"method": "mebqat"})
    several, extra = load_packed(tmp_path / "all.safetensors")
    assert extra == {"method": "mebqat"} and not several.training
    for pair in pairs:
        save_packed(model, tmp_path / "one.safetensors", pair)
        one, _ = load_packed(tmp_path / "one.safetensors")
        assert torch.equal(predictions(several, pair), predictions(model, pair))
        assert torch.equal(one(IMAGES), predictions(model, pair))  # it is at its pair already
        for mine, theirs in zip(quantized_layers(model).values(), quantized_layers(one).values(), strict=True):
            with at(model, pair):
                bits = mine.bits.w
            assert torch.equal(mine.quantized_weight(bits), theirs.quantized_weight(bits))


def test_the_shipped_network_predicts_the_same_class_for_every_test_image(tmp_path):
    model, extra = checkpoint.load_model("data/checkpoints/digits-wide-mebqat.safetensors")
    data = datasets.load(extra["data"], extra["seed"])
    for pair in ("W1A1", "W2A2", "W4A4", "W8A8"):
        save_packed(model, tmp_path / "p", pair, calibration=data.train.images)
        again, _ = load_packed(tmp_path / "p")
        assert torch.equal(again(data.test.images), predictions(model, pair, data.test.images))


@pytest.mark.parametrize("name", ["dorefa", "sat"])
def test_the_file_is_as_small_as_the_bits_say(name, tmp_path):
    """Codes of exactly b bits a weight, a step a layer, statistics of one pair, what stays float: nothing else."""
    model = net(name, ["W3A4"])
    save_packed(model, tmp_path / "p", "W3A4")
    with safe_open(tmp_path / "p", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    codes = {key: t for key, t in tensors.items() if key.startswith("codes/")}
    layers = {key: layer for key, layer in quantized_layers(model).items() if layer.site.role == "body"}
    assert {f"codes/{key}/3" for key in layers} == {key for key in codes if key.endswith("/3")}
    for key, layer in layers.items():
        assert codes[f"codes/{key}/3"].numel() == 3 * math.ceil(layer.weight.numel() / 8)
    assert not any("running" in key or "num_batches" in key for key in tensors)
    norms = sum(4 * norm.weight.numel() * 4 for norm in norm_layers(model).values())
    edges = [m for key, m in model.named_modules() if key in ("stem.0", "body.4")]
    size = {"dorefa": sum(stored_bytes(m) for m in edges), "sat": None}[name]
    if size is not None:
        rest = sum(t.numel() * t.element_size() for key, t in tensors.items() if key not in codes)
        assert rest == norms + size + 4 * len(layers)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sat", True), ("sat_centred", True), ("sat_corrected", True), ("dorefa", False), ("lsq", False)],
)
def test_floor_codes_nest_and_others_say_that_they_do_not(name, expected, tmp_path):
    pairs = [str(b) for b in candidates(one_bit=False) if b.w <= 8]
    model = net(name, pairs)
    assert save_packed(model, tmp_path / "n", pairs, nested=True) is expected
    again, _ = load_packed(tmp_path / "n")
    for pair in pairs:
        assert torch.equal(predictions(again, pair), predictions(model, pair))
    with safe_open(tmp_path / "n", "pt") as file:
        widths = {key.rpartition("/")[2] for key in file.keys() if key.startswith("codes/body.1.0")}  # noqa: SIM118
    assert widths == ({"8"} if expected else set("2345678"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_the_floor_code_is_the_upper_bits_of_the_8_bit_one(seed, bits):
    layer = next(iter(quantized_layers(net("sat", seed=seed)).values()))
    if bits > 1:
        assert packed.nests(layer, [bits])
        codes, whole = (weight_codes(layer, b)[0] for b in (bits, 8))
        assert torch.equal(codes, whole >> (8 - bits))


def test_a_nested_file_holds_no_more_than_8_bits(tmp_path):
    with pytest.raises(ValueError, match="up to 8 bits: leave out"):
        save_packed(net("sat", ["FP"]), tmp_path / "n", "FP", nested=True)


def test_a_map_of_layers_and_norm_sets_and_shared_inputs_come_back(tmp_path):
    mixed = {"*": "W8A8", "body.1.0": "W2A2"}
    model = net("lsq", [mixed])
    save_packed(model, tmp_path / "m", [mixed])
    assert torch.equal(load_packed(tmp_path / "m")[0](IMAGES), predictions(model, mixed))
    switched = give_norm_sets(net("sat"), "W2A2,W4A4")
    with torch.no_grad():
        for norm in norm_layers(switched).values():
            norm.sets["W2A2"].weight.mul_(1.5)
    recalibrate(switched, IMAGES, "W2A2,W4A4")
    save_packed(switched, tmp_path / "s", "W2A2")
    assert torch.equal(load_packed(tmp_path / "s")[0](IMAGES), predictions(switched, "W2A2"))
    with pytest.raises(KeyError, match="no norm set for W3A3"):
        save_packed(switched, tmp_path / "s", "W3A3", calibration=IMAGES)
    torch.manual_seed(0)
    residual = quantize(models.preact_resnet20(width=0.25), "lsq", sample=torch.rand(8, 3, 32, 32))
    recalibrate(residual, torch.rand(8, 3, 32, 32), "W4A4").eval()
    save_packed(residual, tmp_path / "r", "W4A4")
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(load_packed(tmp_path / "r")[0](images), predictions(residual, "W4A4", images))


def test_a_model_of_ones_own_loads_into_an_instance(tmp_path):
    build = lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 2))  # noqa: E731
    model = quantize(build(), "lsq", sample=IMAGES)
    save_packed(model, tmp_path / "o", "W4A4")
    with pytest.raises(CheckpointError, match="a model of your own: pass model="):
        load_packed(tmp_path / "o")
    assert torch.equal(load_packed(tmp_path / "o", build())[0](IMAGES), predictions(model, "W4A4"))


@pytest.mark.slow
def test_a_packed_network_is_packed_again_and_exported(tmp_path):
    """Its integers go on as they are."""
    model = net("sat", ["W3A4"])
    save_packed(model, tmp_path / "p", "W3A4")
    again, _ = load_packed(tmp_path / "p")
    save_packed(again, tmp_path / "q", "W3A4")
    assert torch.equal(load_packed(tmp_path / "q")[0](IMAGES), predictions(model, "W3A4"))
    export_onnx(again, tmp_path / "p.onnx", "W3A4", (1, 8, 8))
    assert agreement(tmp_path / "p.onnx", model, IMAGES, "W3A4").share == 100


def test_what_is_not_in_the_file_is_refused(tmp_path):
    model = net("lsq", ["W4A4", "W2A2"])
    save_packed(model, tmp_path / "p", "W4A4")
    again, _ = load_packed(tmp_path / "p")
    for pair, bits in (("W2A4", 2), ("W4A2", 2), ("FP", 32), ({"*": "W4A4", "body.1.0": "W8A8"}, 8)):
        with pytest.raises(ValueError, match=f"of {bits} bits: it was written for W4A4$"), at(again, pair):
            pass
    save_packed(net("lsq", ["W2A8", "W8A4"]), tmp_path / "two", ["W2A8", "W8A4"])
    two, _ = load_packed(tmp_path / "two")
    for pair, lacks in (("W4A8", "weights of 4 bits"), ("W8A2", "activations of 2 bits")):
        with pytest.raises(ValueError, match=f"no {lacks}: it was written for W2A8, W8A4"), at(two, pair, "batch"):
            two(IMAGES)
    with pytest.raises(ValueError, match="call recalibrate"), at(two, "W8A8"):  # it has both widths, not the statistics
        two(IMAGES)
    with pytest.raises(ValueError, match="no float weights to save: keep its file"):
        checkpoint.save_model(again, tmp_path / "again")
    with pytest.raises(ValueError, match="no recalibrated norm statistics for W3A3: give calibration="):
        save_packed(model, tmp_path / "p", "W3A3")


class Mute(Quantizer):
    """A quantizer that says nothing about its integers."""

    def weight(self, w, bits, params, site):
        return w.sign()

    def activation(self, x, bits, params, site):
        return unit_activation(x, bits)


class Wrong(Mute):
    """A quantizer whose grid is not that of its weights."""

    def weight_grid(self, w, bits, params, site):
        return torch.tensor(0.3), 0.5


@pytest.mark.parametrize(
    ("quantizer", "words"), [(Mute(), "define weight_grid"), (Wrong(), "does not give the weights back")]
)
def test_a_quantizer_of_ones_own_must_say_what_its_integers_mean(quantizer, words, tmp_path):
    register("of my own", quantizer)
    try:
        model = recalibrate(quantize(models.digit_net(), "of my own", sample=IMAGES), IMAGES, "W4A4")
        with pytest.raises(ValueError, match=words):
            save_packed(model, tmp_path / "p", "W4A4")
    finally:
        del QUANTIZERS["of my own"]


def damaged(path, change):
    """Write a file anew with other content, which has a right checksum."""
    tensors, meta = files.read(path, "packed")
    change(tensors, meta)
    files.write(path, tensors, meta)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, meta: tensors.pop("steps/body.1.0"),
        lambda tensors, meta: tensors.update({"codes/body.1.0/4": torch.zeros(4, 1, dtype=torch.uint8)}),
        lambda tensors, meta: tensors.update({"codes/body.1.0/4": tensors["codes/body.1.0/4"].float()}),
        lambda tensors, meta: tensors.pop("statistics/body.1.1"),
        lambda tensors, meta: tensors.update({"statistics/body.1.1": torch.zeros(1, 2, 99)}),
        lambda tensors, meta: tensors.pop("model/body.1.1.weight"),
        lambda tensors, meta: tensors.update({"model/stranger": torch.zeros(1)}),
        lambda tensors, meta: meta.pop("zeros"),
        lambda tensors, meta: meta["zeros"].pop("body.1.0"),
        lambda tensors, meta: meta.update(settings=["four"]),
    ],
)
def test_a_damaged_packed_file_is_refused_in_one_message(change, tmp_path):
    path = tmp_path / "p.safetensors"
    save_packed(net("lsq", ["W4A4"]), path, "W4A4")
    damaged(path, change)
    with pytest.raises(CheckpointError, match=r"p\.safetensors is damaged"):
        load_packed(path)


def test_one_wrong_bit_is_found(tmp_path):
    path = tmp_path / "p.safetensors"
    save_packed(net("lsq", ["W4A4"]), path, "W4A4")
    whole, planes = bytearray(path.read_bytes()), files.read(path, "packed")[0]["codes/body.1.0/4"]
    whole[whole.index(planes.numpy().tobytes()) + 2 * planes.shape[1] + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"p\.safetensors is damaged: its checksum is not that of its content"):
        load_packed(path)


def test_a_packed_network_only_predicts(tmp_path):
    model = net("lsq", ["W4A4"])
    save_packed(model, tmp_path / "p", "W4A4")
    again, _ = load_packed(tmp_path / "p")
    data = datasets.digits()
    with pytest.raises(ValueError, match="is for prediction: train the checkpoint"):
        fit(again, data, "mebqat", steps=1)
    with pytest.raises(ValueError, match="no float weights"):
        restore_float(again)
    assert torch.equal(again(IMAGES), predictions(model, "W4A4"))  # neither has changed it


def test_a_network_that_diverged_is_not_written(tmp_path):
    for name in ("body.1.0.weight", "stem.0.weight"):
        model = net("lsq", ["W4A4"])
        with torch.no_grad():
            model.get_parameter(name)[0] = torch.nan
        with pytest.raises(ValueError, match="finite: the network diverged"):
            save_packed(model, tmp_path / "p", "W4A4")
    assert not (tmp_path / "p").exists()


def test_an_instance_of_another_size_does_not_fit(tmp_path):
    save_packed(net("lsq", ["W4A4"]), tmp_path / "p", "W4A4")
    with pytest.raises(CheckpointError, match="p does not fit this model"):
        load_packed(tmp_path / "p", models.digit_net(widths=(4, 5, 6, 7), classes=3))


def test_a_truncated_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    save_packed(net("lsq", ["W4A4"]), path, "W4A4")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        load_packed(path)
    path.unlink()
    checkpoint.save_model(net(), path)
    with pytest.raises(CheckpointError, match="is a model checkpoint, not a packed one"):
        load_packed(path)
    path.unlink()
    save_packed(net("lsq", ["W4A4"]), path, "W4A4")
    with pytest.raises(CheckpointError, match="is a packed checkpoint, not a model one"):
        checkpoint.load_model(path)
