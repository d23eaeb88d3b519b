"""What was measured knows the weights that it was measured with: other weights bring their own, or a word."""

import warnings

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.batchnorm import MissingStatisticsError

X = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))


def net(seed=0, scale=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[2].weight.data *= scale
    return model


@pytest.mark.parametrize("quantizer", ["lsq", "lsq_shared", "least_squares"])
def test_steps_of_weights_start_from_the_weights_that_are_loaded(quantizer):
    """With the steps of small weights, weights that are thirty times larger would all be clipped."""
    model, trained = mq.quantize(net(), quantizer, sample=X), net(1, scale=30)
    with pytest.warns(UserWarning, match="activation steps were measured with others"):
        model.load_state_dict(trained.state_dict(), strict=True)
    with mq.at(model, "W8A8"), torch.no_grad():
        error = (model[2].quantized_weight(8) - trained[2].weight).abs().mean() / trained[2].weight.abs().mean()
    assert error < 0.1 or quantizer == "lsq_shared"  # whose one step is that of two bits
    fresh = mq.quantize(net(1, scale=30), quantizer, sample=X)
    for name, step in fresh[2].quant.items():
        if name.startswith("w") and quantizer != "least_squares":  # which searches with a sample
            torch.testing.assert_close(model[2].quant[name], step)


@pytest.mark.parametrize("quantizer", ["lsq", "dorefa", "sat"])
def test_the_same_weights_and_whole_files_say_nothing(quantizer):
    model = mq.quantize(net(), quantizer, sample=X)
    other = mq.quantize(net(1), quantizer, sample=X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(net().state_dict(), strict=True)
        model.load_state_dict(other.state_dict(), strict=True)
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("file", ["float", "quantized", "statistics of another pair"])
def test_statistics_of_other_weights_are_dropped(file):
    model = mq.recalibrate(mq.quantize(net(), "dorefa", sample=X).eval(), X, "W4A4,FP")
    other = net(1) if file == "float" else mq.quantize(net(1), "dorefa", sample=X).eval()
    if file.startswith("statistics"):
        mq.recalibrate(other, X, "W2A2")
    model.load_state_dict(other.state_dict(), strict=True)
    with pytest.raises(MissingStatisticsError, match="call recalibrate"), mq.at(model, "W4A4", "recalibrated"):
        model(X)
    if file.startswith("statistics"):
        with mq.at(model, "W2A2", "recalibrated"), mq.at(other, "W2A2", "recalibrated"), torch.no_grad():
            assert torch.equal(model(X), other(X))


def test_a_part_that_is_not_loaded_keeps_its_statistics():
    model = mq.recalibrate(mq.quantize(net(), "dorefa", sample=X).eval(), X, "W4A4")
    model.load_state_dict({"5.bias": torch.zeros(3)}, strict=False)
    with mq.at(model, "W4A4", "recalibrated"), torch.no_grad():
        assert model(X).isfinite().all()
