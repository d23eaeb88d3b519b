"""The quantizer of least squared error can be trained on: a straight-through gradient, and steps that stay."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mebqat_lite as mq
from mebqat_lite.quantizers import QUANTIZERS, Site, fake_quantize, integer_range
from mebqat_lite.switching.state import quantized_layers

F64 = torch.float64
LEAST = QUANTIZERS["least_squares"]
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def edges(step, low, high):
    """Values in a row: the ends of the clip, one float beside them on both sides, and others."""
    ends = [np.nextafter(e * step, e * step + d) for e in (low, high) for d in (-1, 0, 1)]
    return torch.tensor([*ends, 0.0, -0.0, 0.3 * step, 100 * step, -100 * step], dtype=F64)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]), st.floats(0.01, 2), st.booleans(), st.integers(0, 99))
def test_the_gradient_is_one_inside_the_clip_and_zero_outside(b, size, signed, seed):
    """Weights with a step for each channel, and inputs with one; values are those of `fake_quantize`, bit by bit."""
    sizes = torch.tensor([[size], [size / 3]], dtype=F64)
    noise = torch.randn(2, 9, dtype=F64, generator=torch.Generator().manual_seed(seed)) * 2**b * size
    low, high = integer_range(b, True)
    w = torch.cat([torch.stack([edges(float(s), low, high) for s in sizes]), noise], 1).requires_grad_()
    steps = {f"w{b}": sizes.requires_grad_(), f"a{b}": torch.tensor(size, dtype=F64, requires_grad=True)}
    a_low, a_high = integer_range(b, signed)
    x = torch.cat([edges(size, a_low, a_high), noise[0]]).requires_grad_()
    for run, v, step, (n, p) in (
        (LEAST.weight, w, sizes, (low, high)),
        (LEAST.activation, x, torch.tensor(size, dtype=F64), (a_low, a_high)),
    ):
        out = run(v, b, steps, Site("layer", signed=signed))
        assert torch.equal(out.detach(), fake_quantize(v.detach(), step.detach(), n, p))
        up = torch.sin(1 + 3 * torch.arange(v.numel(), dtype=F64)).reshape(v.shape)
        grad, *of_steps = torch.autograd.grad(out, [v, *steps.values()], up, allow_unused=True)
        inside = (v > n * step) & (v < p * step)
        assert torch.equal(grad, torch.where(inside, up, 0)) and of_steps == [None, None]


def test_at_one_bit_all_weights_pass_and_activations_between_zero_and_the_step():
    w = torch.tensor([[5.0, -0.1], [-0.0, 0.0]], requires_grad=True)
    out = LEAST.weight(w, 1, {"w1": torch.tensor([[2.0], [0.5]])}, Site("layer"))
    assert out.tolist() == [[2, -2], [0.5, 0.5]]
    assert torch.autograd.grad(out, w, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))[0].tolist() == [[1, 2], [3, 4]]
    for signed in (False, True):
        x = torch.tensor([-0.1, 0.0, 0.1, 0.39, 0.4, 0.5], requires_grad=True)
        out = LEAST.activation(x, 1, {"a1": torch.tensor(0.4)}, Site("layer", signed=signed))
        assert torch.autograd.grad(out.sum(), x)[0].tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(("method", "bits"), [("qat", "W2A2"), ("qat", "W1A1"), ("mebqat", ()), ("adabits", ())])
def test_a_network_is_trained_on_with_the_steps_that_it_has(method, bits):
    """Post-training quantization, then training: the weights change and serve better, no step does."""
    data = mq.datasets.digits()
    torch.manual_seed(0)
    model = mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), "least_squares", sample=IMAGES)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    run = mq.fit(model, data, method, bits=bits, steps=12, lr=0.01, batch_size=32, progress=False, device="cpu")
    now = model.state_dict()
    steps = [name for name in before if ".quant." in name]
    assert len(steps) == 3 * 2 * 9 and all(torch.equal(now[name], before[name]) for name in steps)
    for name in quantized_layers(model):
        assert not torch.equal(now[f"{name}.weight"], before[f"{name}.weight"])
    assert method == "mebqat" or run.losses[-1] < run.losses[0]
