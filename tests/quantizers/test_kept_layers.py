"""Kept by name means float, also for a quantizer that gives the first and the last layer 8-bit weights."""

import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.layers import QuantizedLayer

X = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 3))


def test_a_layer_that_is_kept_stays_float_under_sat():
    model = mq.quantize(net(), "sat", sample=X, keep=["2", "8"])
    assert not isinstance(model[2], QuantizedLayer) and isinstance(model[8], QuantizedLayer)  # 8 is the last one
    with mq.at(model, "W2A2"):
        assert model[8].bits == mq.Bits(8, 32) and model[4].bits == model[0].bits == mq.Bits(2, 2)
    assert "kept by name" in mq.summary(model)


def test_it_stays_so_in_a_file_and_under_another_quantizer(tmp_path):
    model = mq.quantize(net(), "sat", sample=X, keep=["2"])
    loaded = mq.load_model(mq.save_model(model, tmp_path / "a.safetensors"), net())[0]
    mq.switching.convert.requantize(model, "lsq", X)
    for one in (loaded, model):
        assert type(one[2]) is nn.Linear
        with mq.at(one, "W2A2"), torch.no_grad():
            assert one(X).isfinite().all()
