"""One file of 8-bit integers serves every width: how codes of fewer bits are cut is the quantizer's to say."""

import pytest
import torch
from dyadic import SHAPE, dyadic, images
from safetensors import safe_open

import mebqat_lite as mq
from mebqat_lite.deploy import packed
from mebqat_lite.deploy.codes import weight_codes
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import answers
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.switching.state import quantized_layers

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = [pair for pair in QUANTIZERS["double_rounding"].pairs() if pair.w < 32]


def net(quantizer, dtype=torch.float32):
    torch.manual_seed(0)
    model = mq.quantize(mq.models.digit_net(widths=(4, 5, 6, 7)).to(dtype), quantizer, sample=IMAGES)
    return mq.recalibrate(model, IMAGES, PAIRS).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_nested_file_serves_all_pairs_to_the_last_bit(dtype, tmp_path):
    model = net("double_rounding", dtype)
    assert mq.save_packed(model, tmp_path / "n", PAIRS, nested=True)
    with safe_open(tmp_path / "n", "pt") as file:
        names = {key for key in file.keys() if key.startswith("codes/")}  # noqa: SIM118
    assert names == {f"codes/body.{i}.0/8" for i in range(3)}
    again, _ = mq.load_packed(tmp_path / "n")
    assert len(PAIRS) == 63
    for pair in PAIRS:
        with mq.at(model, pair, "recalibrated"), mq.at(again, pair), torch.no_grad():
            assert torch.equal(again(IMAGES.to(dtype)), model(IMAGES.to(dtype))), pair


def test_a_nested_file_of_two_widths_is_packed_again_and_tells_its_pairs(tmp_path):
    model = net("double_rounding")
    assert mq.save_packed(model, tmp_path / "n", "W2A2,W3A3", nested=True)
    again, _ = mq.load_packed(tmp_path / "n")
    assert mq.save_packed(again, tmp_path / "m", "W2A2,W3A3", nested=True)
    last, _ = mq.load_packed(tmp_path / "m")
    for pair in ("W2A2", "W3A3"):
        with mq.at(model, pair, "recalibrated"), mq.at(last, pair), torch.no_grad():
            assert torch.equal(last(IMAGES), model(IMAGES))


@pytest.mark.parametrize(("name", "expected"), [("double_rounding", True), ("sat", True), ("lsq", False)])
def test_whether_codes_nest_is_asked_of_the_quantizer(name, expected, monkeypatch):
    layers = quantized_layers(net(name)).values()
    assert all(packed.nests(layer, range(2, 9)) for layer in layers) is expected
    if name == "double_rounding":  # the upper bits alone are other codes: rounding is not cutting off
        whole, four = (weight_codes(layer, b)[0] for layer in list(layers)[:1] for b in (8, 4))
        assert not torch.equal(whole >> 4, four)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "kind"), [("W2A2", "INT4"), ("W4A4", "INT4"), ("W8A8", "INT8")])
def test_onnx_holds_the_integers_of_the_pair(bits, kind, tmp_path):
    model = dyadic("double_rounding")
    with torch.no_grad():
        for layer in quantized_layers(model).values():
            layer.quant["w8"].fill_(1 / 256)
    done = export_onnx(model, tmp_path / "net.onnx", bits, SHAPE)
    assert {stored.weights for stored in done.layers} == {kind}
    with mq.at(model, bits), torch.no_grad():
        assert torch.equal(answers(done.path, images()), model(images()))
        assert all(layer.quantized_weight(layer.bits.w).any() for layer in quantized_layers(model).values())
