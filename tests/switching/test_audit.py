"""What bits do not reach is said: by `quantize` once, and by `summary`."""

import warnings

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.measure.costs import bit_operations
from mebqat_lite.switching.audit import audit, own_bytes, uncounted

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class OwnNorm(nn.BatchNorm2d):
    """A subclass: its forward pass may be another one."""


class Scaled(nn.Module):
    """A module with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.gain * x


def net(norm=nn.BatchNorm2d, between=None, rectify=True):
    torch.manual_seed(0)
    middle = [nn.ReLU()] if rectify else []
    middle += [between] if between is not None else []
    layers = [nn.Conv2d(1, 4, 3), norm(4), *middle, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 3))


def quantized(model, quantizer="dorefa"):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        mq.quantize(model, quantizer, sample=X)
    return model, [str(one.message) for one in said]


def test_what_bits_reach_wholly_is_no_word_worth():
    model, said = quantized(net())
    assert said == audit(model) == [] and "WARNING" not in mq.summary(model)


@pytest.mark.parametrize("quantizer", ["dorefa", "sat"])
def test_inputs_that_stay_float_are_counted_and_the_cure_is_named(quantizer):
    model, [said, *_] = quantized(net(rectify=False), quantizer)
    words = "1 of 2 layer inputs that can be negative: they stay float at every activation bitwidth (2), because "
    assert said == f"quantize found {words}{quantizer} has no negative values; lsq has" and audit(model)[0] == said[15:]
    assert f"WARNING: {words}" in mq.summary(model)
    with mq.at(model, "W2A2", "batch"), torch.no_grad():
        coarse = model(X)
    with mq.at(model, {"*": "W2A2", "2": "W2A8"}, "batch"), torch.no_grad():
        assert torch.equal(model(X), coarse)  # its A is really without effect
    assert quantized(net(rectify=False), "lsq")[1] == []


@pytest.mark.parametrize("norm", [OwnNorm, nn.SyncBatchNorm])
def test_norms_that_no_policy_reaches_are_said(norm):
    model, [said] = quantized(net(norm).eval())
    assert "1 norms of other classes than BatchNorm1d, BatchNorm2d, BatchNorm3d" in said and norm.__name__ in said
    assert said.removeprefix("quantize found ") in mq.summary(model)


@pytest.mark.parametrize("module", [nn.ConvTranspose2d(4, 4, 1), Scaled(), nn.GroupNorm(2, 4), nn.PReLU()])
def test_all_other_parameters_have_a_line_and_are_in_the_sum(module):
    plain, (model, _) = quantized(net())[0], quantized(net(between=module))
    [(name, found)] = uncounted(model).items()
    assert found is module and own_bytes(module) == 4 * sum(p.numel() for p in module.parameters())
    assert any(
        type(module).__name__ in line and "float: parameters of no" in line for line in mq.summary(model).split("\n")
    )
    with mq.at(model, "W2A2"), mq.at(plain, "W2A2"):
        more = mq.measure.summary.packed_bytes(model) - mq.measure.summary.packed_bytes(plain)
    assert more == own_bytes(module) > 0
    with pytest.warns(UserWarning, match=rf"costs leave out .*{name} \({type(module).__name__}\)"):
        bit_operations(model, X[0], "W2A2")


def test_nothing_to_quantize_is_one_of_these_words():
    model, [said] = quantized(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    assert said == "quantize found no layer to quantize: see summary(model) for the reasons"
    assert "WARNING: no layer to quantize" in mq.summary(model)


def test_a_model_from_a_file_is_not_warned_of_again(tmp_path):
    model, said = quantized(net(rectify=False))
    path = mq.save_model(model, tmp_path / "a.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mq.load_model(path, net(rectify=False))
    assert len(said) == 1


def test_instance_norms_are_said_where_they_have_statistics():
    def tracking(channels):
        return nn.InstanceNorm2d(channels, track_running_stats=True)

    assert "1 norms of other classes" in quantized(net(tracking).eval())[1][0]
    assert not any("norms of other classes" in said for said in quantized(net(nn.InstanceNorm2d).eval())[1])


def test_a_grid_lists_what_bits_do_not_reach():
    model, _ = quantized(net(rectify=False).eval())
    split = mq.datasets.base.Split(X, torch.arange(4) % 3)
    [said] = mq.grid(model, split, "W2A2,FP", norm_stats="batch").attrs["unreached"]
    assert said.startswith("1 of 2 layer inputs that can be negative")
    model, _ = quantized(net().eval())
    assert mq.grid(model, split, "W2A2,FP", norm_stats="batch").attrs["unreached"] == []
