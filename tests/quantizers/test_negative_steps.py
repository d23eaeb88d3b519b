"""A step that an optimizer moved below zero is taken as its absolute value: the layer goes on learning."""

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.quantizers import TINY, pact_activation, step_clip
from mebqat_lite.switching.state import quantized_layers

X = torch.linspace(-3, 3, 41, dtype=torch.float64)
OUT = torch.linspace(1, 2, 41, dtype=torch.float64)


def gradients(function, size):
    """The value, and the gradients of input and step, of a step or clip of ``size``."""
    x, step = X.clone().requires_grad_(), torch.tensor(size, dtype=torch.float64, requires_grad=True)
    out = function(x, step)
    (out * OUT).sum().backward()
    return out.detach(), x.grad, step.grad


FORMS = {
    "signed": lambda x, s: step_clip(x, s, -2, 1),
    "unsigned": lambda x, s: step_clip(x, s, 0, 3, 0.5),
    "pact": lambda x, s: pact_activation(x, s, 2, sat=False),
    "sat": lambda x, s: pact_activation(x, s, 3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0.29, 1.3])
def test_a_negative_step_is_its_absolute_value(form, size):
    value, dx, ds = gradients(FORMS[form], size)
    mirrored, mirrored_dx, mirrored_ds = gradients(FORMS[form], -size)
    assert torch.equal(value, mirrored) and torch.equal(dx, mirrored_dx) and ds == -mirrored_ds
    assert dx.any() and ds != 0


def test_a_step_of_zero_is_tiny_and_finite():
    for found in gradients(FORMS["signed"], 0.0):
        assert found.isfinite().all()
    assert gradients(FORMS["signed"], 0.0)[0].abs().max() <= 2 * TINY


@pytest.mark.parametrize("quantizer", ["lsq", "sat", "double_rounding", "lsq_corrected"])
def test_an_own_loop_that_overshoots_trains_on_and_is_packed_as_it_runs(quantizer, tmp_path):
    torch.manual_seed(0)
    x = torch.rand(16, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    mq.quantize(model, quantizer, sample=x)
    layer = quantized_layers(model)["2"]
    with torch.no_grad():
        for step in layer.quant.values():
            step.neg_()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    before = layer.weight.detach().clone()
    with mq.at(model, "W2A2"):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            assert layer.weight.grad.any()
            optimizer.step()
        right = model(x).detach()
    assert not torch.equal(layer.weight, before) and min(float(step) for step in layer.quant.values()) < 0
    mq.save_packed(model, tmp_path / "a.safetensors", "W2A2", calibration=x)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    packed = mq.load_packed(tmp_path / "a.safetensors", plain)[0]
    with mq.at(packed, "W2A2"), torch.no_grad():
        assert torch.equal(packed(x), right)
