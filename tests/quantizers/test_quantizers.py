"""Every registered quantizer against references written from the papers' formulas, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mebqat_lite as mq
from mebqat_lite import quantizers as qz
from mebqat_lite.quantizers import QUANTIZERS, Site
from mebqat_lite.quantizers.ptq import SAMPLES, LeastSquares, _subsample, mse_step

prop = settings(deadline=None, max_examples=80, derandomize=True)
F64, EPS = torch.float64, torch.finfo(torch.float64).eps
NORMAL = torch.randn(3, 5000, dtype=F64, generator=torch.Generator().manual_seed(0))
LOW_WIDTHS, SAT, LSQ = [2, 3, 4, 5, 6, 7, 8, 16], ["sat", "sat_centred", "sat_pact"], ["lsq", "lsq_shared"]
SHARED = ("lsq_shared", "lsq_authors")  # the authors' clip: one level too many, of activations without a sign
CASES = [(name, b) for name in QUANTIZERS for b in [1, *LOW_WIDTHS] if mq.Bits(b, b) in QUANTIZERS[name].pairs()]
vectors = st.lists(st.floats(-4, 4).map(lambda v: v * (abs(v) > 1e-6)), min_size=2, max_size=24).map(torch.DoubleTensor)
widths, steps = st.sampled_from([1, *LOW_WIDTHS]), st.floats(0.01, 2.0)


def upstream(x):  # a gradient from above without symmetry: signs and sizes all differ
    return torch.sin(1 + 3 * torch.arange(x.numel(), dtype=F64)).reshape(x.shape)


def gradients(out, *leaves):
    return torch.autograd.grad(out, leaves, upstream(out), allow_unused=True)


def leaf(x):
    return torch.as_tensor(x, dtype=F64).clone().requires_grad_()


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=1e-11, atol=atol)


def layer(name, w, x, role="body", signed=False):  # the quantizer, its parameters as leaves, and its site
    site = Site("layer", role, signed, float(x.detach().abs().mean()))
    start = QUANTIZERS[name].parameters(w.detach(), x.detach(), site)
    return QUANTIZERS[name], {k: leaf(v) for k, v in start.items()}, site


def ste(x, value):  # the straight-through estimator: ``value`` forward, the identity backward
    return x + (value - x).detach()


def reference_tanh(w, b, scale=1.0, form="round"):
    """DESIGN: u = tanh(w) / max|tanh(w)| differentiated as it stands, then 2 codes((u + 1) / 2) - 1, times scale."""
    t, n = w.tanh(), 2**b
    v = (t / t.abs().amax() + 1) / 2
    if form == "round":
        return scale * (2 * ste(v, torch.round(v * (n - 1)) / (n - 1)) - 1)
    code = torch.minimum(torch.floor(v * n), torch.tensor(n - 1.0)) + (0.5 if form == "centred" else 0)
    return scale * (2 * ste(v, code / n) - 1)


def spans(name, b, signed, w):  # DESIGN: lowest and highest weight and activation where steps are 0.1, clips 8
    if name.endswith("_corrected"):  # these are rising rows, symmetric for dorefa: (q - mean q) std w / std q + mean w
        base = name.removesuffix("_corrected")
        q = QUANTIZERS[base].weight(w, b, {f"w{b}": torch.tensor(0.1, dtype=F64)}, Site("layer"))
        q = (q - q.mean()) * w.std() / q.std() + w.mean()
        last = 1e-11 * (b > 8)  # the last digit of a zero near 2^15, times the step
        return (q.min() - last, q.max() + last), spans(base, b, signed, w)[1]
    n, half, mid = 2**b, 2 ** (b - 1), name == "sat_centred"
    if name in ["dorefa", "dorefa_fp_tanh", *SAT]:  # sat: codes 0 to 2^b - 1 of 2^b, or the middles of those steps
        sat = (-1 + mid / n, 1 - (2 - mid) / n), (0, 8)
        return sat if name in SAT else ((-w.abs().mean(), w.abs().mean()), (0, 1))
    if b == 1:  # post-training: sign(w) mean|w| and {0, s}
        return (-0.1, 0.1), (0, 0.1)
    top = half - 1 if signed else n - 1 + (name in SHARED)
    return (-half / 10, (half - 1) / 10), (-half / 10 * signed, top / 10)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("name", "b"), CASES)
def test_levels_range_and_order(name, b, signed):
    """2^b levels, all reached up to 6 bits (authors' lsq: five activations at two bits), the exact range, rising."""
    w, quantizer = torch.linspace(-12, 12, 6001, dtype=F64)[None], QUANTIZERS[name]
    site = Site("layer", signed=signed and quantizer.signed_inputs)
    params = {k: v if k == "alpha" else torch.tensor(0.1, dtype=F64) for k, v in layer(name, w, w)[1].items()}
    if name == "double_rounding":  # whose step at b bits is made of that at 8 bits
        params["w8"] /= 2 ** (8 - b)
    runs, extras = (quantizer.weight, quantizer.activation), (0, name in SHARED and not signed)
    for run, span, extra in zip(runs, spans(name, b, site.signed, w), extras, strict=True):
        before, out = w.clone(), run(w, b, params, site)
        levels = out.unique()
        assert torch.equal(w, before) and out.shape == w.shape and out.dtype == w.dtype
        assert (out.diff() >= 0).all() and span[0] - 1e-12 <= levels[0] and levels[-1] <= span[1] + 1e-12
        assert len(levels) == 2**b + extra if b <= 6 else len(levels) <= 2**b + extra
        if b <= 6:
            close(levels[[0, -1]], span)


@prop
@given(vectors, steps, widths)
def test_levels_that_the_data_does_not_move_are_idempotent(x, size, b):
    """Unit, step, PACT clip: exactly; sign(w) mean|w| up to a mean's n eps; tanh weights not: tanh bends levels."""
    size, span = torch.tensor(size, dtype=F64), qz.integer_range(b, signed=True)
    clip, pact = (lambda v: qz.step_clip(v, size, *span)), (lambda v: qz.pact_activation(v, size, b))
    for quantize in (lambda v: qz.unit_activation(v, b), clip, pact):
        assert torch.equal(quantize(quantize(x)), quantize(x))
    once, m = qz.sign_weight(x), float(x.abs().mean())
    assert once.tolist() == [m if v >= 0 else -m for v in x]
    torch.testing.assert_close(qz.sign_weight(once), once, rtol=len(x) * EPS, atol=0)


@pytest.mark.parametrize("role", ["body", "last"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_all_zero_weights_and_inputs_stay_finite_with_a_finite_gradient(name, role):
    zeros, quantizer = torch.zeros(4, 8), QUANTIZERS[name]
    site = Site("layer", role if quantizer.edge_bits < 32 else "body")
    params = quantizer.parameters(zeros, zeros, site)
    for b in [b for known, b in CASES if known == name]:
        for run in [quantizer.weight, quantizer.activation][: 1 + (site.role == "body")]:
            leaves = [v.clone().requires_grad_() for v in (zeros, *params.values())]
            out = run(leaves[0], b, dict(zip(params, leaves[1:], strict=True)), site)
            grads = torch.autograd.grad(out, leaves, torch.full_like(out, 10.0), allow_unused=True)
            assert out.isfinite().all(), f"{run.__name__} at {b} bits"
            assert all(g is None or g.isfinite().all() for g in grads), f"gradient of {run.__name__} at {b} bits"


@prop
@given(vectors.filter(torch.any), widths, st.floats(0.1, 3), st.sampled_from(["round", "floor", "centred"]))
def test_tanh_weight_and_its_gradient_through_the_maximum(w, b, scale, form):
    """Values and gradient of the formula; ``scale`` is a constant; at ties the maxima share, as in autograd."""
    w = torch.cat([w, -w[w.abs().argmax()][None]])  # the maximum of |w| is always shared by two
    mine, theirs, factor = leaf(w), leaf(w), leaf(scale)
    out, expected = qz.tanh_weight(mine, b, factor, form), reference_tanh(theirs, b, scale, form)
    close(out.detach(), expected.detach())
    out.backward(upstream(out))
    close(mine.grad, gradients(expected, theirs)[0], atol=1e-12 * float(1 / w.abs().max()))
    assert factor.grad is None


@prop
@given(vectors, widths)
def test_unit_activation_and_sign_weight_and_their_gradients(x, b):
    """q_b(clip(x, 0, 1)) passes inside (0, 1) only, to the float; the sign passes everywhere."""
    edges = [np.nextafter(v, v + d) for v in (0.0, 1.0) for d in (-1, 0, 1)]
    x, n = leaf(torch.cat([x, torch.tensor([*edges, -0.0, 0.5], dtype=F64)])), 2**b - 1
    out, value = qz.unit_activation(x, b), x.detach().numpy()
    close(out.detach(), np.rint(np.clip(value, 0, 1) * n) / n)
    assert np.array_equal(gradients(out, x)[0], np.where((value > 0) & (value < 1), upstream(x), 0))
    assert torch.equal(gradients(qz.sign_weight(x), x)[0], upstream(x))


@prop
@given(vectors, steps, widths, st.booleans(), st.booleans(), st.floats(0.01, 1))
def test_step_clip_and_its_gradients(x, size, b, signed, inside, factor):
    """LSQ equations 1 to 3 in numpy, also exactly at the clip's edges and one float beside them."""
    low, high = qz.integer_range(b, signed)
    edges = [np.nextafter(e * size, e * size + d) for e in (low, high) for d in (-1, 0, 1)]
    x, step = leaf(torch.cat([x, torch.tensor(edges, dtype=F64)])), leaf(size)
    out = qz.step_clip(x, step, low, high, factor, inside)
    grad_x, grad_step = gradients(out, x, step)
    value, g = x.detach().numpy(), upstream(x).numpy()
    code, inner = np.clip(np.rint(value / size), low, high), (value > low * size) & (value < high * size)
    close(out.detach(), size * code)
    assert np.array_equal(grad_x, np.where(inner, g, 0))
    rounding = 64 * EPS * factor * float(np.abs(g) @ (np.abs(value) / size + np.abs(code)))
    close(grad_step, factor * (g @ np.where(inner, (code - value / size) * inside, code)), atol=rounding)


@prop
@given(vectors, st.integers(1, 64), widths, st.booleans())
def test_pact_and_sat_gradients_of_the_clip(x, unit, b, sat):
    """d/dalpha is 1 at and above alpha; below it q_b(x/alpha) - x/alpha (SAT) or 0 (PACT); 0 from 0 down."""
    n, size = 2**b - 1, (2**b - 1) * unit / 64  # alpha in whole 64ths a level: the edge x = alpha is exact in floats
    x = leaf(torch.cat([x * size / 2, size * torch.tensor([0, 1e-9, -1e-9, 1 - 1e-9, 1, 1 + 1e-9], dtype=F64)]))
    alpha = leaf(size)
    out = QUANTIZERS["sat" if sat else "sat_pact"].activation(x, b, {"alpha": alpha}, Site("layer"))
    grad_x, grad_alpha = gradients(out, x, alpha)
    v, g = x.detach().numpy() / size, upstream(x).numpy()
    q = np.rint(np.clip(v, 0, 1) * n) / n
    close(out.detach(), size * q, atol=1e-12 * size)
    assert np.array_equal(grad_x, np.where((v > 0) & (v < 1), g, 0))
    slope = np.where(v >= 1, 1, np.where((v > 0) & sat, q - v, 0))
    close(grad_alpha, g @ slope, atol=64 * EPS * float(np.abs(g) @ (np.abs(v) + 1)))


@pytest.mark.parametrize("b", LOW_WIDTHS)
@pytest.mark.parametrize("role", ["body", "first", "last", "kept"])
@pytest.mark.parametrize("name", ["dorefa", *SAT])
def test_weights_of_dorefa_and_sat_and_their_gradient(name, role, b):
    """dorefa: times mean|w| held constant. sat: no mean|w|, but its last linear layer has std 1/sqrt(out_features)."""
    form = {"dorefa": "round", "sat_centred": "centred"}.get(name, "floor")
    for w in (leaf(NORMAL[0, :30].reshape(6, 5)), leaf(NORMAL[1, :30].reshape(6, 5, 1, 1))):
        quantizer, params, site = layer(name, w, w, role)
        out = quantizer.weight(w, b, params, site)
        expected = reference_tanh(w, b, w.abs().mean().detach() if name == "dorefa" else 1.0, form)
        if role == "last" and name in SAT and w.dim() == 2:
            expected = expected / (math.sqrt(6) * expected.detach().std())
        close(out.detach(), expected.detach())
        close(gradients(out, w)[0], gradients(expected, w)[0])


@pytest.mark.parametrize("b", LOW_WIDTHS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", LSQ)
def test_lsq_starts_at_2_mean_over_sqrt_p_and_scales_gradients_by_sqrt_N_p(name, signed, b):
    """N: weights or features of one sample (shared: the batch); a step per bitwidth (shared: the two-bit one).

    p: the highest code, which is 2^b for the unsigned activations of the shared step.
    """
    shared, w, x = name == "lsq_shared", NORMAL[0, :108].reshape(4, 3, 3, 3), NORMAL[1, :120].reshape(5, 4, 2, 3)
    x = x if signed else x.relu()
    quantizer, params, site = layer(name, w, x, signed=signed)
    assert set(params) == {f"{kind}{width}" for kind in "wa" for width in ([2] if shared else LOW_WIDTHS)}
    p_w, p_a = 2 ** (b - 1) - 1, 2 ** (b - 1) - 1 if signed else 2**b - 1 + shared
    for key, run, v, count, p, span in (
        ("w", quantizer.weight, w, 108, p_w, (-p_w - 1, p_w)),
        ("a", quantizer.activation, x, 120 if shared else 24, p_a, ((-p_w - 1) * signed, p_a)),
    ):
        key = f"{key}{2 if shared else b}"
        if b == 2 or not shared:
            close(params[key].detach(), 2 * v.abs().mean() / math.sqrt(p))
        grads = gradients(run(v, b, params, site), *params.values())
        assert [k for k, grad in zip(params, grads, strict=True) if grad is not None] == [key]
        ratio = (v / params[key]).detach()
        slope = torch.where((ratio > span[0]) & (ratio < span[1]), ratio.round() - ratio, ratio.clamp(*span))
        close(grads[list(params).index(key)], (upstream(v) * slope).sum() / math.sqrt(count * p))
    with pytest.raises(
        ValueError, match=r"^lsq does not define W9A4: its weights have \[2, 3, 4, 5, 6, 7, 8, 16, 32\] "
    ):
        QUANTIZERS["lsq"].check(mq.Bits(9, 4))


def test_sixteen_bits_are_within_half_a_step_of_the_identity_for_q_b_and_lsq_but_not_for_dorefa():
    u = torch.linspace(0, 1, 5001, dtype=F64)
    quantizer, params, site = layer("lsq", u, u)
    assert (qz.q_b(u, 16) - u).abs().max() <= (0.5 + 1e-9) / (2**16 - 1)
    assert (quantizer.activation(u, 16, params, site) - u).abs().max() <= params["a16"] * (0.5 + 1e-9)
    assert (QUANTIZERS["dorefa"].weight(u, 16, {}, site) - u).abs().max() > 0.4  # its tanh and scale stay


@prop
@given(vectors)
def test_floor_codes_nest_and_at_two_bits_lie_a_quarter_low(w):
    """Codes are the top bits of the 8-bit code; at two bits {-1, -0.5, 0, 0.5}, mean -0.25 for symmetric weights."""
    code = {b: ((qz.tanh_weight(w, b, form="floor") + 1) * 2 ** (b - 1)).long() for b in range(1, 9)}
    assert all(torch.equal(code[b], code[8] >> (8 - b)) for b in code)
    w = torch.cat([NORMAL[0], -NORMAL[0]])
    floor, centred = (QUANTIZERS[name].weight(w, 2, {}, Site("layer")) for name in ("sat", "sat_centred"))
    assert floor.unique().tolist() == [-1, -0.5, 0, 0.5] and torch.equal(floor + 0.25, centred)
    assert (floor.mean(), centred.mean()) == (-0.25, 0)


@pytest.mark.parametrize(("name", "b"), CASES)
def test_a_second_derivative_is_refused(name, b):
    w = leaf([[0.3, -0.7, 0.4]])
    quantizer, params, site = layer(name, w, w.abs())
    for run in (quantizer.weight, quantizer.activation):
        (grad,) = torch.autograd.grad(run(w, b, params, site).square().sum(), w, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


@pytest.mark.parametrize("b", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_mse_step_is_within_two_percent_of_a_fine_search_for_each_row_alone(signed, b):
    """Rows of other shapes and sizes; at two bits, clipping normal data saves more than 30 % of the error."""
    rows, (low, high) = torch.stack([NORMAL[0], 7 * NORMAL[1] * NORMAL[2]]), qz.integer_range(b, signed)
    rows = rows if signed else rows.relu()
    for x, found in zip(rows.numpy(), mse_step(rows, low, high).flatten().tolist(), strict=True):
        unclipped = max(x.max() / max(high, 1), x.min() / min(low, -1))
        sizes = np.array([found, unclipped, *np.linspace(unclipped / 1000, 1.2 * unclipped, 1200)])[:, None]
        mine, theirs, *others = ((np.clip(np.rint(x / sizes), low, high) * sizes - x) ** 2).mean(1)
        assert mine <= 1.02 * min(others) and (b != 2 or mine < 0.7 * theirs)


def test_one_bit_is_the_sign_times_mean_of_tensor_or_channel_and_both_zeros_are_plus():
    w = torch.tensor([[1.0, -3.0], [-0.0, 0.0]], dtype=F64)
    quantizer, params, site = layer("least_squares", w, w.abs())
    assert quantizer.weight(w, 1, params, site).tolist() == [[2, -2], [0, 0]]
    assert quantizer.weight(w, 1, {"w1": leaf(0.5)}, site).tolist() == [[0.5, -0.5], [0.5, 0.5]]
    assert QUANTIZERS["dorefa"].weight(w, 1, {}, site).tolist() == [[1, -1], [1, 1]]
    assert set(quantizer.activation(w.abs(), 1, params, site).unique().tolist()) == {0, params["a1"].item()}


def test_least_squares_sees_no_more_samples_than_it_says_and_every_position_of_a_map():
    """625 x 32 x 8 x 8 values: a stride of 64 would look at one corner of each map only, which here is empty."""
    x = NORMAL.abs().flatten()[torch.arange(625 * 2048) % 14_999].reshape(625, 32, 8, 8).clone()
    x[..., 0, 0] = 0
    step = LeastSquares().parameters(torch.ones(1, 32, 3, 3, dtype=F64), x, Site("layer"))["a4"]
    assert 0.8 < float(step / mse_step(x[:20].reshape(1, -1), 0, 15)) < 1.25
    assert _subsample(torch.zeros(39_999)).numel() <= SAMPLES


def test_a_quantizer_of_ones_own_takes_a_few_lines_and_unknown_ones_are_answered_with_the_known(monkeypatch):
    class Ternary(qz.Quantizer):
        def weight(self, w, bits, params, site):
            return ste(w, (w / w.abs().mean()).round().clamp(-1, 1) * w.abs().mean())

    monkeypatch.setattr(qz.base, "QUANTIZERS", dict(QUANTIZERS))
    own, net = qz.register("ternary", Ternary()), nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    model = mq.quantize(net, "ternary", sample=torch.rand(2, 4), keep=[])
    with mq.at(model, "W2A32"):
        model(torch.rand(2, 4)).sum().backward()
    assert model[1].quantizer is own and model[1].quantized_weight(2).round(decimals=5).unique().numel() <= 3
    assert all(p.grad is not None for p in model.parameters())
    assert all(qz.get(name) == (name, known) == qz.get(known) for name, known in qz.base.QUANTIZERS.items())
    with pytest.raises(ValueError, match=f"^no quantizer 'dorfea'; known: {', '.join(QUANTIZERS)}, ternary$"):
        qz.get("dorfea")
    with pytest.raises(ValueError, match=r"is not registered; call mebqat_lite.quantizers.register\(name, it\) first"):
        qz.get(qz.DoReFa())
    with mq.at(model, "W2A4"), pytest.raises(NotImplementedError, match=r"^Ternary must define activation\(\)$"):
        model(torch.rand(2, 4))
