"""Sums and codes in bfloat16, float16 and float32 are those of float64 from the same inputs, up to one rounding."""

import pytest
import torch

from mebqat_lite.quantizers import QUANTIZERS, Site, pact_activation, step_clip

NARROW = [torch.bfloat16, torch.float16]
F32, F64 = torch.float32, torch.float64
WIDTHS = [1, 2, 4, 8, 16]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def eps(dtype):
    return torch.finfo(dtype).eps


def run(function, dtype, *tensors, up):
    """The value and the gradients in ``dtype``, as float64; ``up`` is the gradient from above."""
    leaves = [t.to(dtype).clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    grads = torch.autograd.grad(out, leaves, up.to(dtype), allow_unused=True)
    assert out.dtype == dtype and all(g is None or g.dtype == dtype for g in grads)
    return [out.detach().double(), *(g if g is None else g.double() for g in grads)]


STEPS = {  # a function of values and a step or clip; its lowest and highest code; levels per step or clip
    "lsq": (lambda x, s: step_clip(x, s, 0, 255), 0, 255, 1),
    "lsq signed": (lambda x, s: step_clip(x, s, -128, 127), -128, 127, 1),
    "lsq, 2 bits": (lambda x, s: step_clip(x, s, 0, 3), 0, 3, 1),
    "sat": (lambda x, s: pact_activation(x, s, 8), 0, 255, 255),
    "pact": (lambda x, s: pact_activation(x, s, 8, sat=False), 0, 255, 255),
}


@pytest.mark.parametrize("clipped", [0.0, 0.02])
@pytest.mark.parametrize("dtype", [*NARROW, F32])
@pytest.mark.parametrize("form", STEPS)
def test_the_gradient_of_a_step_is_that_of_float64(form, dtype, clipped):
    """It is a small difference of two large sums, above all if no value is clipped; narrow types must not see these."""
    function, low, high, levels = STEPS[form]
    codes = torch.rand(200_000, dtype=F64, generator=torch.Generator().manual_seed(1)) * (high - low) + low
    size = torch.tensor(0.0117).bfloat16().double()  # float32 holds its multiples, so that its sums alone are tested
    size = (size * levels).to(dtype).double() / levels
    x = (codes * size * (1 + clipped)).to(dtype).double()
    codes = x / size
    x = x[((2 * codes) - (2 * codes).round()).abs() > 1e-4]  # others may fall to another code in float32
    codes, up = (x / size).clamp(low, high), (1e-3 + 1e-4 * random(len(x))).to(dtype).double()
    out, grad_x, grad_step = run(function, dtype, x, size * levels, up=up)
    right, right_x, right_step = run(function, F64, x, size * levels, up=up)
    assert torch.equal(grad_x, right_x)
    assert ((out - right).abs() <= eps(dtype) * right.abs()).all()
    single_values = 8 * eps(F32) * float((up * codes).square().sum().sqrt()) / levels  # of float32, which add up
    assert abs(grad_step - right_step) <= eps(dtype) * abs(right_step) + single_values


@pytest.mark.parametrize("dtype", NARROW)
def test_a_float32_step_of_narrow_values_keeps_its_own_width(dtype):
    """As under autocast: neither the step nor its gradient is rounded to the type of the values."""
    x, step = random(20_000).relu().to(dtype), torch.tensor(0.0123, requires_grad=True)
    out = step_clip(x, step, 0, 255, 0.5)
    (grad,) = torch.autograd.grad(out, step, torch.ones_like(out))
    right = run(lambda v, s: step_clip(v, s, 0, 255, 0.5), F64, x, step.detach().double(), up=torch.ones(20_000))
    assert out.dtype == dtype and grad.dtype == F32
    assert ((out.double() - right[0]).abs() <= eps(dtype) / 2 * right[0]).all()  # rounded once
    assert float(grad) == pytest.approx(float(right[2]), rel=1e-4)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_is_that_of_float64(name, dtype, signed):
    """Also at 16 bits, whose codes neither type can hold. A scale, its product and the result are rounded each."""
    quantizer = QUANTIZERS[name]
    w, x = (random(6, 40, seed=2) / 4).to(dtype), random(5, 40, seed=3).to(dtype)
    x = x if signed else x.relu()
    for role in ("body", "last") if quantizer.edge_bits < 32 else ("body",):
        site = Site("layer", role, signed and quantizer.signed_inputs, float(x.abs().float().mean()))
        params = quantizer.parameters(w, x, site)
        assert all(value.dtype == dtype for value in params.values())
        for b in [b for b in WIDTHS if b > 1 or quantizer.one_bit]:
            weight = [(w, quantizer.weight)] * (b in quantizer.weight_widths)
            for v, method in [*weight, (x, quantizer.activation)][: 1 + (role == "body")]:
                mine, right = (results(method, v.to(kind), b, params, site, quantizer) for kind in (dtype, F64))
                for narrow, wide in zip(mine, right, strict=True):
                    error = (narrow - wide).abs() - 4 * eps(dtype) * wide.abs()
                    assert (error <= 1e-3 * eps(dtype)).all(), (method, b)


def results(method, v, b, params, site, quantizer):
    """The value, and the gradients of ``v`` and of what is learned, with everything in the type of ``v``."""
    learned = [key for key in params if quantizer.learns(key)]
    fixed = {key: value.to(v.dtype) for key, value in params.items()}
    up = random(*v.shape, seed=4).bfloat16().double()  # both narrow types hold its values
    found = run(
        lambda v, *p: method(v, b, fixed | dict(zip(learned, p, strict=True)), site),
        v.dtype,
        v,
        *(fixed[key] for key in learned),
        up=up,
    )
    return [value for value in found if value is not None]
