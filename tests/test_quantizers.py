"""Every registered quantizer against references written from the papers' formulas, in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import mebqat_lite as mq
from mebqat_lite import quantizers as qz
from mebqat_lite.ptq import SAMPLES, LeastSquares, _subsample, fake_quantize, mse_step
from mebqat_lite.quantizers import QUANTIZERS, Site

prop = settings(deadline=None, max_examples=80, derandomize=True)
F64, EPS = torch.float64, torch.finfo(torch.float64).eps
LOW_WIDTHS = [2, 3, 4, 5, 6, 7, 8, 16]
CASES = [(name, b) for name in QUANTIZERS for b in ([1] if QUANTIZERS[name].one_bit else []) + LOW_WIDTHS]
SAT, LSQ = ["sat", "sat_centred", "sat_pact"], ["lsq", "lsq_shared"]
FORMS = st.sampled_from(["round", "floor", "centred"])

numbers = st.floats(-4, 4).map(lambda v: v if abs(v) > 1e-6 else 0.0)
vectors = st.lists(numbers, min_size=2, max_size=24).map(lambda v: torch.tensor(v, dtype=F64))
widths, steps = st.sampled_from([1, *LOW_WIDTHS]), st.floats(0.01, 2.0)


def leaf(x):
    return torch.as_tensor(x, dtype=F64).clone().requires_grad_()


def upstream(x):
    """A gradient from above without symmetry: signs and sizes all differ."""
    return torch.sin(1 + 3 * torch.arange(x.numel(), dtype=F64)).reshape(x.shape)


def close(actual, expected, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=F64), rtol=1e-11, atol=atol)


def layer(name, w, x, role="body", signed=False):
    """The registered quantizer as a layer has it: its site, and its parameters as leaves."""
    site = Site("layer", role, signed, float(x.detach().abs().mean()))
    start = QUANTIZERS[name].parameters(w.detach(), x.detach(), site)
    return QUANTIZERS[name], {k: leaf(v) for k, v in start.items()}, site


def ste(x, value):
    """``value`` forward, the identity backward: the straight-through estimator by detach."""
    return x + (value - x).detach()


def reference_tanh(w, b, scale=1.0, form="round"):
    """DESIGN: u = tanh(w) / max|tanh(w)| differentiated as it stands, then 2 codes((u + 1) / 2) - 1, times scale."""
    t, n = w.tanh(), 2**b
    v = (t / t.abs().amax() + 1) / 2
    if form == "round":
        return scale * (2 * ste(v, torch.round(v * (n - 1)) / (n - 1)) - 1)
    code = torch.minimum(torch.floor(v * n), torch.tensor(n - 1.0)) + (0.5 if form == "centred" else 0)
    return scale * (2 * ste(v, code / n) - 1)


def gradients(out, *leaves):
    return torch.autograd.grad(out, leaves, upstream(out))


# --- levels, range, order ------------------------------------------------------------------------------------------


def spans(name, b, signed, w):
    """From DESIGN: the lowest and highest weight and activation where steps are 0.1 and clips 8."""
    n, half, centred = 2**b, 2 ** (b - 1), name == "sat_centred"
    if name == "dorefa":
        return (-w.abs().mean(), w.abs().mean()), (0, 1)
    if name in SAT:  # codes 0 to 2^b - 1 of 2^b, or the middles of those steps
        return (-1 + centred / n, 1 - (2 - centred) / n), (0, 8)
    if b == 1:  # post-training: sign(w) mean|w| and {0, s}
        return (-0.1, 0.1), (0, 0.1)
    top = (half - 1 if signed else n - 1) + (name == "lsq_shared")  # the authors' clip: one level too many
    return (-half / 10, (half - 1) / 10), (-half / 10 * signed, top / 10)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("name", "b"), CASES)
def test_levels_range_and_order(name, b, signed):
    """2^b levels, all reached up to 6 bits (lsq_shared: five activations at two bits), the exact range, rising."""
    w, quantizer = torch.linspace(-12, 12, 6001, dtype=F64)[None], QUANTIZERS[name]
    site = Site("layer", signed=signed and quantizer.signed_inputs)
    params = {k: torch.tensor(8.0 if k == "alpha" else 0.1, dtype=F64) for k in layer(name, w, w)[1]}
    of_weight, of_input = spans(name, b, site.signed, w)
    for run, span, extra in (
        (quantizer.weight, of_weight, 0),
        (quantizer.activation, of_input, name == "lsq_shared"),
    ):
        out, before = run(w, b, params, site), w.clone()
        levels = out.unique()
        assert torch.equal(w, before) and out.shape == w.shape and out.dtype == w.dtype
        assert (out.diff() >= 0).all() and span[0] - 1e-12 <= levels[0] and levels[-1] <= span[1] + 1e-12
        assert len(levels) <= 2**b + extra
        if b <= 6:
            assert len(levels) == 2**b + extra
            close(levels[[0, -1]], span)


@prop
@given(vectors, steps, widths)
def test_fixed_levels_are_idempotent(x, size, b):
    """Unit, step and PACT clips have levels that the data does not move: quantizing again changes no bit."""
    size, (low, high) = torch.tensor(size, dtype=F64), qz.integer_range(b, signed=True)
    for quantize in (
        lambda v: qz.unit_activation(v, b),
        lambda v: qz.step_clip(v, size, low, high),
        lambda v: qz.pact_activation(v, size, b),
    ):
        assert torch.equal(quantize(quantize(x)), quantize(x))


@prop
@given(vectors)
def test_sign_weight_is_idempotent_up_to_the_rounding_of_a_mean(w):
    """mean|sign(w) m| = m, but a float mean of equal numbers rounds: signs stay exactly, the size to n eps.
    The tanh weights are not idempotent: tanh bends the levels again."""
    once, m = qz.sign_weight(w), float(w.abs().mean())
    torch.testing.assert_close(qz.sign_weight(once), once, rtol=len(w) * EPS, atol=0)
    assert once.tolist() == [m if v >= 0 else -m for v in w]


def test_the_sign_of_both_zeros_is_plus():
    w = torch.tensor([[-2.0, -0.0, 0.0, 1.0]], dtype=F64)
    for name in ("dorefa", "least_squares"):
        quantizer, params, site = layer(name, w, w)
        assert torch.equal(quantizer.weight(w, 1, params, site), torch.tensor([[-0.75, 0.75, 0.75, 0.75]], dtype=F64))


@pytest.mark.parametrize("role", ["body", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_all_zero_weights_and_inputs_stay_finite_with_a_finite_gradient(name, dtype, role):
    zeros, quantizer = torch.zeros(4, 8, dtype=dtype), QUANTIZERS[name]
    site = Site("layer", role if quantizer.edge_bits < 32 else "body")
    params = quantizer.parameters(zeros, zeros, site)
    for b in [b for known, b in CASES if known == name]:
        for run in [quantizer.weight, quantizer.activation][: 1 + (site.role == "body")]:
            leaves = [v.clone().requires_grad_() for v in (zeros, *params.values())]
            out = run(leaves[0], b, dict(zip(params, leaves[1:], strict=True)), site)
            grads = torch.autograd.grad(out, leaves, torch.full_like(out, 10.0), allow_unused=True)
            assert out.isfinite().all(), f"{run.__name__} at {b} bits"
            assert all(g is None or g.isfinite().all() for g in grads), f"gradient of {run.__name__} at {b} bits"


# --- gradients -----------------------------------------------------------------------------------------------------


@prop
@given(vectors, widths, st.floats(0.1, 3), FORMS)
def test_tanh_weight_and_its_gradient_through_the_maximum(w, b, scale, form):
    """Values and gradient of the formula; ``scale`` is a constant; at ties the maxima share, as in autograd."""
    assume(w.abs().max() > 0)
    w = torch.cat([w, -w[w.abs().argmax()][None]])  # the maximum of |w| is always shared by two
    mine, theirs, factor = leaf(w), leaf(w), leaf(scale)
    out, expected = qz.tanh_weight(mine, b, factor, form), reference_tanh(theirs, b, scale, form)
    close(out.detach(), expected.detach())
    out.backward(upstream(out))
    close(mine.grad, gradients(expected, theirs)[0], atol=1e-12 * float(1 / w.abs().max()))
    assert factor.grad is None


@prop
@given(vectors)
def test_sign_weight_has_the_identity_as_gradient(w):
    w = leaf(w)
    assert torch.equal(gradients(qz.sign_weight(w), w)[0], upstream(w))


@prop
@given(vectors, widths)
def test_unit_activation_and_its_gradient(x, b):
    around = [np.nextafter(v, v + d) for v in (0.0, 1.0) for d in (-1, 0, 1)]
    x = leaf(torch.cat([x, torch.tensor([*around, -0.0, 0.5], dtype=F64)]))
    out = qz.unit_activation(x, b)
    grad = gradients(out, x)[0]
    n, value = 2**b - 1, x.detach().numpy()
    close(out.detach(), np.rint(np.clip(value, 0, 1) * n) / n)
    assert np.array_equal(grad, np.where((value > 0) & (value < 1), upstream(x), 0))


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
    slope = np.where(inner, (code - value / size) if inside else 0, code)
    rounding = 64 * EPS * factor * float(np.abs(g) @ (np.abs(value) / size + np.abs(code)))
    close(grad_step, factor * (g @ slope), atol=rounding)


@prop
@given(vectors, st.integers(1, 64), widths, st.booleans())
def test_pact_and_sat_gradients_of_the_clip(x, unit, b, sat):
    """d/dalpha is 1 at and above alpha; below it q_b(x/alpha) - x/alpha (SAT) or 0 (PACT); 0 from 0 down.
    alpha is a whole number of 64ths a level, so that the edge x = alpha is exact in floats."""
    n = 2**b - 1
    size = n * unit / 64
    x = leaf(torch.cat([x * size / 2, size * torch.tensor([0, 1e-9, -1e-9, 1 - 1e-9, 1, 1 + 1e-9], dtype=F64)]))
    alpha = leaf(size)
    out = qz.pact_activation(x, alpha, b, sat)
    grad_x, grad_alpha = gradients(out, x, alpha)
    v, g = x.detach().numpy() / size, upstream(x).numpy()
    q = np.rint(np.clip(v, 0, 1) * n) / n
    close(out.detach(), size * q, atol=1e-12 * size)
    assert np.array_equal(grad_x, np.where((v > 0) & (v < 1), g, 0))
    slope = np.where(v >= 1, 1, np.where((v > 0) & sat, q - v, 0))
    close(grad_alpha, g @ slope, atol=64 * EPS * float(np.abs(g) @ (np.abs(v) + 1)))


def test_registered_sat_quantizers_differ_in_form_and_gradient_as_named():
    x = leaf([[0.5, 3.0, 7.0, 8.0, 9.0]])
    for name, grad in (("sat", True), ("sat_centred", True), ("sat_pact", False)):
        quantizer, params, site = layer(name, x, x)
        assert list(params) == ["alpha"] and params["alpha"] == 8
        loss = quantizer.activation(x, 2, params, site).sum()
        close(torch.autograd.grad(loss, params["alpha"])[0], 2 + grad * (0 + 1 / 3 + 1 - 0.5 / 8 - 3 / 8 - 7 / 8))
        form = "centred" if name == "sat_centred" else "floor"
        close(quantizer.weight(x, 3, params, site).detach(), reference_tanh(x, 3, form=form).detach())
    for bad in ({"form": "round"}, {"gradient": "lsq"}):
        with pytest.raises(ValueError, match="sat has form floor or centred and gradient sat or pact"):
            qz.SAT(**bad)


@pytest.mark.parametrize("b", LOW_WIDTHS)
@pytest.mark.parametrize("role", ["body", "first", "last", "kept"])
@pytest.mark.parametrize("name", ["dorefa", *SAT])
def test_weights_of_dorefa_and_sat_and_their_gradient(name, role, b):
    """dorefa: times mean|w| held constant. sat: no mean|w|, but its last linear layer has std 1/sqrt(out_features)."""
    w = leaf(torch.randn(6, 5, generator=torch.Generator().manual_seed(b), dtype=F64))
    quantizer, params, site = layer(name, w, w.abs(), role)
    out, form = quantizer.weight(w, b, params, site), {"dorefa": "round", "sat_centred": "centred"}.get(name, "floor")
    plain = reference_tanh(w, b, float(w.detach().abs().mean()) if name == "dorefa" else 1.0, form)
    rescaled = role == "last" and name in SAT
    expected = plain / (math.sqrt(6) * plain.detach().std()) if rescaled else plain
    close(out.detach(), expected.detach())
    close(gradients(out, w)[0], gradients(expected, w)[0])
    assert not rescaled or float(out.std()) == pytest.approx(1 / math.sqrt(6), rel=1e-12)


def test_the_rescaling_is_for_linear_layers_only():
    w = torch.randn(6, 5, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    quantizer, params, site = layer("sat", w, w, "last")
    close(quantizer.weight(w, 4, params, site), reference_tanh(w, 4, form="floor"))


@pytest.mark.parametrize("b", LOW_WIDTHS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", LSQ)
def test_lsq_gradient_scale_counts_weights_or_the_features_of_one_sample(name, signed, b):
    """1 / sqrt(N p): a batch of copies sums their gradients; only the shared form divides by the batch size too."""
    g = torch.Generator().manual_seed(b)
    w, x = torch.randn(4, 3, 3, 3, generator=g, dtype=F64), torch.randn(5, 4, 2, 3, generator=g, dtype=F64)
    x = x if signed else x.relu()
    quantizer, params, site = layer(name, w, x, signed=signed)
    tag, shared = 2 if name == "lsq_shared" else b, name == "lsq_shared"
    p_w, p_a = 2 ** (b - 1) - 1, 2 ** (b - 1) - 1 if signed else 2**b - 1
    for kind, tensor, count, p, span in (
        ("w", w, 108, p_w, (-(2 ** (b - 1)), p_w)),
        ("a", x, 24 * (5 if shared else 1), p_a, (-(2 ** (b - 1)) * signed, p_a + shared)),
    ):
        run = quantizer.weight if kind == "w" else quantizer.activation
        grad = gradients(run(tensor, b, params, site), params[f"{kind}{tag}"])[0]
        ratio = (tensor / params[f"{kind}{tag}"]).detach()
        slope = torch.where((ratio > span[0]) & (ratio < span[1]), ratio.round() - ratio, ratio.clamp(*span))
        close(grad, (upstream(tensor) * slope).sum() / math.sqrt(count * p))
    pair = torch.stack([x[0], x[0]])
    one, two = (
        torch.autograd.grad(quantizer.activation(v, b, params, site).sum(), params[f"a{tag}"])[0] for v in (x[:1], pair)
    )
    close(two, one * (math.sqrt(2) if shared else 2))


@pytest.mark.parametrize("signed", [False, True])
def test_lsq_starts_one_step_per_bitwidth_at_2_mean_over_sqrt_p(signed):
    w, x = torch.tensor([[0.5, -1.5]], dtype=F64), torch.tensor([[1.0, 5.0]], dtype=F64)
    _, params, _ = layer("lsq", w, x, signed=signed)
    assert set(params) == {f"{kind}{b}" for kind in "wa" for b in LOW_WIDTHS}
    for b in LOW_WIDTHS:
        p_a = 2 ** (b - 1) - 1 if signed else 2**b - 1
        close(params[f"w{b}"].detach(), 2 * 1.0 / math.sqrt(2 ** (b - 1) - 1))
        close(params[f"a{b}"].detach(), 2 * 3.0 / math.sqrt(p_a))
    shared = layer("lsq_shared", w, x, signed=signed)[1]
    assert set(shared) == {"w2", "a2"} and all(torch.equal(shared[k], params[k]) for k in shared)


def test_an_lsq_step_serves_its_bitwidth_alone():
    w = leaf(torch.randn(4, 9, dtype=F64, generator=torch.Generator().manual_seed(0)))
    for name in LSQ:
        quantizer, params, site = layer(name, w, w.abs())
        for b in LOW_WIDTHS:
            loss = (quantizer.weight(w, b, params, site) + quantizer.activation(w, b, params, site)).pow(2).sum()
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            used = {key for key, grad in zip(params, grads, strict=True) if grad is not None}
            assert used == ({"w2", "a2"} if name == "lsq_shared" else {f"w{b}", f"a{b}"})
    with pytest.raises(ValueError, match="lsq has no step for 9 bits; it has 2 to 8 and 16"):
        QUANTIZERS["lsq"].weight(w, 9, layer("lsq", w, w)[1], site)


# --- particular claims ---------------------------------------------------------------------------------------------


@prop
@given(vectors, st.floats(0.01, 1))
def test_sixteen_bits_are_close_to_the_identity_for_q_b_and_lsq_within_half_a_step(x, size):
    u = x.abs() / 4
    assert (qz.q_b(u, 16) - u).abs().max() <= (0.5 + 1e-10) / (2**16 - 1)
    out = qz.step_clip(x, torch.tensor(size * 1e-2, dtype=F64), *qz.integer_range(16, True))
    assert ((out - x).abs()[x.abs() <= size * 300] <= size * 1e-2 * (0.5 + 1e-10)).all()
    w = torch.linspace(-1, 1, 64, dtype=F64)
    assert (QUANTIZERS["dorefa"].weight(w, 16, {}, Site("layer")) - w).abs().max() > 0.4  # its tanh and scale stay


def test_floor_codes_at_two_bits():
    """{-1, -0.5, 0, 0.5} with mean -0.25 for symmetric weights; centred the mean is 0; DoReFa's is 0 anyway."""
    w = torch.randn(500, dtype=F64, generator=torch.Generator().manual_seed(0))
    w = torch.cat([w, -w])
    floor, centred = (QUANTIZERS[name].weight(w, 2, {}, Site("layer")) for name in ("sat", "sat_centred"))
    assert floor.unique().tolist() == [-1, -0.5, 0, 0.5] and centred.unique().tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert (floor.mean(), centred.mean()) == (-0.25, 0)
    assert torch.equal(floor + 0.25, centred)


@prop
@given(vectors, st.integers(1, 7))
def test_floor_codes_nest(w, b):
    """A b-bit code is the top b bits of the 8-bit code, so one packed file holds every bitwidth."""
    code = ((qz.tanh_weight(w, 8, form="floor") + 1) * 128).long()
    assert torch.equal((qz.tanh_weight(w, b, form="floor") + 1) * 2 ** (b - 1), (code >> (8 - b)).to(F64))


@pytest.mark.parametrize(("name", "b"), [case for case in CASES if case[0] != "least_squares"])
def test_a_second_derivative_is_refused(name, b):
    w = leaf([[0.3, -0.7, 0.4]])
    quantizer, params, site = layer(name, w, w.abs())
    for run in (quantizer.weight, quantizer.activation):
        (grad,) = torch.autograd.grad(run(w, b, params, site).square().sum(), w, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


# --- post-training -------------------------------------------------------------------------------------------------


def errors(x, size, low, high):
    return ((np.clip(np.rint(x / size), low, high) * size - x) ** 2).mean(-1)


DATA = {"normal": lambda r: r.normal(size=4096), "laplace": lambda r: r.laplace(size=4096)}
DATA |= {"relu": lambda r: np.maximum(r.normal(size=4096), 0), "heavy": lambda r: r.standard_t(3, size=4096)}


@pytest.mark.parametrize("b", range(1, 9))
@pytest.mark.parametrize("kind", DATA)
def test_mse_step_is_within_two_percent_of_a_fine_search(kind, b):
    x = DATA[kind](np.random.default_rng(0))
    low, high = qz.integer_range(b, signed=kind != "relu")
    top = 1.2 * max(x.max() / max(high, 1), x.min() / min(low, -1))
    best = min(errors(x, size, low, high) for size in np.linspace(top / 3000, top, 3000))
    found = mse_step(torch.tensor(x)[None], low, high)
    assert found.shape == (1, 1) and errors(x, found.item(), low, high) <= 1.02 * best


def test_mse_step_clips_where_that_pays_and_treats_rows_apart():
    x = torch.randn(3, 4096, dtype=F64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1], [7], [0.1]])
    found = mse_step(x, -2, 1)
    assert torch.equal(found, torch.cat([mse_step(row[None], -2, 1) for row in x]))
    unclipped = torch.maximum(x.amax(1), x.amin(1) / -2)[:, None]
    error = [(fake_quantize(x, size, -2, 1) - x).square().mean(1) for size in (found, unclipped)]
    assert (error[0] < 0.7 * error[1]).all()


def test_least_squares_at_one_bit_is_the_sign_times_the_mean_of_the_channel():
    w = torch.tensor([[1.0, -3.0], [-0.5, 0.0]], dtype=F64)
    quantizer, params, site = layer("least_squares", w, w.abs())
    assert quantizer.weight(w, 1, params, site).tolist() == [[2, -2], [-0.25, 0.25]]
    assert set(quantizer.activation(w, 1, params, site).unique().tolist()) == {0, float(params["a1"])}


def test_least_squares_sees_at_most_the_samples_it_says_and_every_position_of_a_map():
    """625 x 32 x 8 x 8 values: a stride of 64 would look at one corner of each map only, which here is empty."""
    x = torch.randn(625, 32, 8, 8, generator=torch.Generator().manual_seed(0)).abs()
    x[..., 0, 0] = 0
    step = LeastSquares().parameters(torch.ones(1, 32, 3, 3), x, Site("layer"))["a4"]
    full = mse_step(x[:20].reshape(1, -1), 0, 15)
    assert 0.8 < float(step / full) < 1.25
    assert _subsample(torch.zeros(39_999)).numel() <= SAMPLES


# --- registry ------------------------------------------------------------------------------------------------------


def test_an_unknown_quantizer_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=f"^no quantizer 'dorfea'; known: {', '.join(QUANTIZERS)}$"):
        qz.get("dorfea")
    with pytest.raises(ValueError, match=r"is not registered; call mebqat_lite.quantizers.register\(name, it\) first"):
        qz.get(qz.DoReFa())
    assert {"dorefa", *SAT, *LSQ, "least_squares"} <= set(QUANTIZERS)
    assert all(qz.get(name) == (name, known) == qz.get(known) for name, known in QUANTIZERS.items())


def test_a_quantizer_of_ones_own_takes_a_few_lines(monkeypatch):
    class Ternary(qz.Quantizer):
        def weight(self, w, bits, params, site):
            return ste(w, (w / w.abs().mean()).round().clamp(-1, 1) * w.abs().mean())

        def activation(self, x, bits, params, site):
            return ste(x, x.clamp(0, 1).mul(bits).round() / bits)

    monkeypatch.setattr(qz, "QUANTIZERS", dict(QUANTIZERS))
    own = qz.register("ternary", Ternary())
    model = mq.quantize(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), "ternary", sample=torch.rand(2, 4))
    with mq.at(model, "W2A4"):
        out = model(torch.rand(2, 4))
    out.sum().backward()
    assert model[1].quantizer is own and model[1].quantized_weight(2).unique().numel() <= 3
    assert model[1].weight.grad is not None
    with pytest.raises(NotImplementedError, match="Quantizer must define weight"):
        qz.Quantizer().weight(torch.ones(1), 2, {}, Site("layer"))
