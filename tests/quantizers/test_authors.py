"""The authors' form of LSQ against what their public code computes, written out plainly in float64."""

import copy
import math

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.quantizers import QUANTIZERS, Site
from mebqat_lite.switching.convert import requantize
from mebqat_lite.switching.state import quantized_layers

F64 = torch.float64
FORMS = ["lsq_shared", "lsq_authors"]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def span(kind, b, signed):
    """Lowest and highest code; an activation after a ReLU reaches 2^b, one code more than its bits can store."""
    return (0, 2**b) if kind == "a" and not signed else (-(2 ** (b - 1)), 2 ** (b - 1) - 1)


def start(v, kind, b=2, signed=False):
    return 2 * v.abs().mean() / math.sqrt(span(kind, b, signed)[1])


def rounded(v, step, kind, b, signed=False):
    return (v / step).clamp(*span(kind, b, signed)).round() * step


def gradients(v, step, kind, b, signed, up):
    """LSQ's gradients of value and step, the latter scaled by 1 / sqrt(p times the number of all values)."""
    (n, p), ratio = span(kind, b, signed), v / step
    inside = (ratio > n) & (ratio < p)
    slope = torch.where(inside, ratio.round() - ratio, ratio.clamp(n, p))
    return up * inside, (up * slope).sum() / math.sqrt(v.numel() * p)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("b", [2, 3, 5, 8])
@pytest.mark.parametrize("name", FORMS)
def test_values_gradients_and_starts_are_the_authors(name, b, signed):
    w, x, quantizer = normal(6, 5), 3 * normal(7, 5, seed=1), QUANTIZERS[name]
    x = x if signed else x.relu()
    site = Site("layer", signed=signed, mean_abs=float(x.abs().mean()))
    begun = quantizer.parameters(w, x, site)
    assert set(begun) == {"w2", "a2"}
    for kind, v, run in (("w", w, quantizer.weight), ("a", x, quantizer.activation)):
        step = begun[f"{kind}2"]
        torch.testing.assert_close(step, start(v, kind, 2, signed), rtol=1e-12, atol=0)
        step, leaf, up = (0.4 * step).requires_grad_(), v.clone().requires_grad_(), normal(*v.shape, seed=2)
        out = run(leaf, b, {f"{kind}2": step}, site)
        torch.testing.assert_close(out, rounded(v, step, kind, b, signed), rtol=1e-12, atol=0)
        found = torch.autograd.grad(out, [leaf, step], up)
        for mine, theirs in zip(found, gradients(v, step.detach(), kind, b, signed, up), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


def linear_net(act=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), act(), nn.Linear(8, 9), act(), nn.Linear(9, 7), act(), nn.Linear(7, 3))


def steps_of(net, x, signed=False):
    """Run the layers one after the other at two bits: the first and the last stay float, each step starts as read."""
    found = {}
    for name, layer in net.named_children():
        if isinstance(layer, nn.Linear) and name not in ("0", str(len(net) - 1)):
            w, a = start(layer.weight, "w"), start(x, "a", 2, signed)
            found[name] = (w, a)
            x = rounded(x, a, "a", 2, signed) @ rounded(layer.weight, w, "w", 2).T + layer.bias
        else:
            x = layer(x)
    return found


def check_steps(model, expected):
    layers = quantized_layers(model)
    assert set(layers) == set(expected)
    for name, (w, a) in expected.items():
        torch.testing.assert_close(layers[name].quant["w2"].data, w.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(layers[name].quant["a2"].data, a.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("name", FORMS)
def test_steps_start_from_a_pass_at_two_bits(name, act):
    """A later layer reads quantized activations when its step is measured; its input has a sign after a tanh."""
    net, x = linear_net(act).double(), normal(64, 6, seed=3)
    expected = steps_of(net, x, signed=act is nn.Tanh)
    model = mq.quantize(copy.deepcopy(net), name, sample=x)
    check_steps(model, expected)
    with torch.no_grad():
        float_input = net[:4](x)  # of the second quantized layer
    assert abs(expected["4"][1] / start(float_input, "a", 2, act is nn.Tanh) - 1) > 0.01  # it does make a difference
    assert not any(layer._forward_pre_hooks for layer in quantized_layers(model).values())


def test_steps_start_anew_from_other_weights_and_a_loader_that_yields_once_serves():
    net, x = linear_net().double(), normal(64, 6, seed=3)
    model = mq.quantize(copy.deepcopy(net), "lsq", sample=x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    for name, parameter in net.named_parameters():
        model.get_parameter(name).data.copy_(parameter)
    check_steps(requantize(model, "lsq_shared", iter([x[:40], x[40:]])), steps_of(net, x))


def test_a_layer_that_runs_twice_starts_from_its_first_input_and_statistics_stay():
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.inner, self.last = (
                nn.Linear(6, 8),
                nn.BatchNorm1d(8),
                nn.Linear(8, 8),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            x = self.norm(self.first(x)).relu()
            return self.last(self.inner(self.inner(x).relu()).relu())

    net, x = Twice().double().train(), normal(64, 6, seed=3)
    before = copy.deepcopy(net.state_dict())
    read = torch.nn.functional.batch_norm(net.first(x), None, None, training=True).relu()
    model = mq.quantize(net, "lsq_shared", sample=x)
    torch.testing.assert_close(model.inner.quant["a2"].data, start(read, "a").detach(), rtol=1e-12, atol=0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_lsq_untrained_is_lsq_in_all_else():
    """It differs from `lsq` in what is trained alone, so its sample pass is that of lsq, at full precision."""
    net, x = linear_net().double(), normal(64, 6, seed=3)
    mine, theirs = (mq.quantize(copy.deepcopy(net), name, sample=x) for name in ("lsq_untrained", "lsq"))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())
