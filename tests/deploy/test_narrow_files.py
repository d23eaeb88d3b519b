"""Networks in bfloat16, float16 and float64 come back from their files as they were, to the last digit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mebqat_lite as mq
from mebqat_lite import files
from mebqat_lite.deploy.codes import dequantize, weight_codes
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.switching.norms import stored_stats
from mebqat_lite.switching.state import quantized_layers

DTYPES = [torch.bfloat16, torch.float16, torch.float64]
IMAGES = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PAIRS = "W2A2,W4A8,W8A4,W16A16,FP"


def pairs_for(name):
    return [pair for pair in PAIRS.split(",") if mq.Bits.parse(pair) in QUANTIZERS[name].pairs()]


def outputs(model, dtype, pairs):
    found = {}
    for pair in pairs:
        with mq.at(model, pair, "recalibrated"), torch.no_grad():
            found[pair] = model(IMAGES.to(dtype))
    return found


def check(model, expected, dtype):
    for pair, out in outputs(model, dtype, expected).items():
        assert out.dtype == dtype and out.isfinite().all() and torch.equal(out, expected[pair]), pair


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_saved_and_a_packed_network_predict_the_very_same(name, dtype, tmp_path):
    torch.manual_seed(0)
    model = mq.quantize(mq.models.digit_net(widths=(4, 8, 8, 8)).to(dtype).eval(), name, sample=IMAGES)
    pairs = pairs_for(name)
    mq.recalibrate(model, IMAGES, pairs)
    expected = outputs(model, dtype, pairs)
    loaded, _ = mq.load_model(mq.save_model(model, tmp_path / "model.safetensors"))
    mq.save_packed(model, tmp_path / "packed.safetensors", pairs)
    packed, _ = mq.load_packed(tmp_path / "packed.safetensors")
    for again in (loaded, packed):
        assert next(again.parameters()).dtype == dtype
        check(again, expected, dtype)
    before, after = stored_stats(model), stored_stats(loaded)
    wide = torch.promote_types(dtype, torch.float32)
    assert all(s.dtype == wide and torch.equal(s, after[key]) and after[key].dtype == wide for key, s in before.items())


@pytest.mark.parametrize("name", ["sat", "lsq"])
def test_a_nested_or_a_partly_float_file_is_read_as_it_was_written(name, tmp_path):
    torch.manual_seed(0)
    model = mq.quantize(mq.models.digit_net(widths=(4, 8, 8, 8)).bfloat16().eval(), name, sample=IMAGES)
    maps = [{"*": "W4A4", "body.1.0": "FP"}, {"*": "W8A8", "body.0.0": "W2A2"}]
    nested = mq.save_packed(model, tmp_path / "a.safetensors", maps[1:] if name == "sat" else maps,
                            nested=name == "sat", calibration=IMAGES)  # fmt: skip
    packed, _ = mq.load_packed(tmp_path / "a.safetensors")
    assert nested == (name == "sat")
    for setting in maps[1:] if name == "sat" else maps:
        with mq.at(model, setting, "recalibrated"), mq.at(packed, setting), torch.no_grad():
            assert torch.equal(packed(IMAGES.bfloat16()), model(IMAGES.bfloat16()))


@pytest.mark.parametrize("name", QUANTIZERS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 30), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from(DTYPES[:2]))
def test_narrow_weights_are_integers_times_a_step_rounded_once(name, seed, spread, bits, dtype):
    """Also at 16 bits, where neighbouring integers may give one weight."""
    if mq.Bits(bits, 32) not in QUANTIZERS[name].pairs():
        return
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(spread)
    model = mq.quantize(module.to(dtype), name, sample=torch.rand(3, 1, 4, 4))
    for layer in quantized_layers(model).values():
        codes, step, zero = weight_codes(layer, bits)
        assert codes.dtype == torch.int32 and codes.min() >= 0 and codes.max() < 2**bits
        assert torch.equal(dequantize(codes, step, zero).to(dtype), layer.quantized_weight(bits))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32, torch.uint8, torch.bool])
def test_a_checksum_is_over_the_bytes_of_any_type(dtype):
    """In their order, whatever the memory layout; of a number, a matrix and nothing."""
    tensors = [torch.tensor(1), torch.tensor([[0, 1, 0], [0, 2, 3]]), torch.ones(0, 3)]
    tensors = [t.to(dtype) for t in tensors]
    found = files.checksum(tensors)
    assert found == files.checksum([t.clone() for t in tensors])
    turned = [tensors[0], tensors[1].T.contiguous().T, tensors[2]]
    assert files.checksum(turned) == found
    assert files.checksum([tensors[0], tensors[1].T, tensors[2]]) != found
