"""Double Rounding: values from the definition, gradients from finite differences, and the pairs that there are."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mebqat_lite as mq
from mebqat_lite.methods import METHODS
from mebqat_lite.quantizers import QUANTIZERS, TINY, Site
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import pairs_of, quantized_layers

F64 = torch.float64
DOUBLE = QUANTIZERS["double_rounding"]
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
sizes, widths = st.floats(0.003, 0.2), st.sampled_from([2, 3, 4, 5, 6, 7, 8])


def weights(size, seed, count=60):
    """Weights that lie on both sides of both clips, and at whole and half 8-bit codes."""
    w = torch.randn(count, dtype=F64, generator=torch.Generator().manual_seed(seed)) * 70 * size
    return torch.cat([w, torch.arange(-132, 133, dtype=F64) * size, torch.tensor([0.0, -0.0], dtype=F64)])


def by_hand(w, size, b):
    """The codes W_8 and W_b, in numpy."""
    eight = np.clip(np.rint(w.numpy() / size), -128, 127)
    return eight, np.clip(np.rint(eight / 2 ** (8 - b)), -(2 ** (b - 1)), 2 ** (b - 1) - 1)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(sizes, widths, st.integers(0, 2**32 - 1))
def test_weights_are_rounded_twice(size, b, seed):
    w = weights(size, seed)
    out = DOUBLE.weight(w, b, {"w8": torch.tensor(size, dtype=F64)}, Site("layer"))
    torch.testing.assert_close(out, torch.from_numpy(by_hand(w, size, b)[1]) * size * 2 ** (8 - b), rtol=1e-14, atol=0)


def test_a_few_codes_with_their_numbers():
    """8-bit codes 95, 96, 97, 127, -96, -97, -160: at 2 bits 95/64 = 1.48 and 96/64 = 1.5, which goes to even."""
    w = torch.tensor([95.0, 96.0, 97.0, 127.0, -96.0, -97.0, -160.0, 95.6]) / 8
    out = {b: DOUBLE.weight(w, b, {"w8": torch.tensor(0.125)}, Site("layer")) * 8 / 2 ** (8 - b) for b in (2, 4, 8)}
    assert out[8].tolist() == [95, 96, 97, 127, -96, -97, -128, 96]
    assert out[4].tolist() == [6, 6, 6, 7, -6, -6, -8, 6]
    assert out[2].tolist() == [1, 1, 1, 1, -2, -2, -2, 1]  # 95.6 is 96 first, so 1.5, clipped to 1
    once = mq.quantizers.step_clip(torch.tensor([0.4999 + 2**-9]) * 64, torch.tensor(64.0), -2, 1)
    twice = DOUBLE.weight(torch.tensor([0.4999 + 2**-9]) * 64, 2, {"w8": torch.tensor(1.0)}, Site("layer"))
    assert (once.item(), twice.item()) == (64, 0)  # 32.1 is 32 first, and half a step, which goes to even


@settings(deadline=None, max_examples=60, derandomize=True)
@given(sizes, widths, st.integers(0, 2**32 - 1), st.booleans())
def test_gradients_are_those_of_the_straight_through_surrogate(size, b, seed, negative):
    """The surrogate: step (clip(w / step, n, p) + r), where r is what both roundings add, a constant."""
    w, k, (n, p) = weights(size, seed), 2 ** (8 - b), (-(2 ** (b - 1)), 2 ** (b - 1) - 1)
    ratio = w.numpy() / (size * k)
    w = w[torch.from_numpy(np.minimum(abs(ratio - n), abs(ratio - p)) > 1e-3)]  # no difference across an edge
    up = torch.sin(1 + 3 * torch.arange(len(w), dtype=F64)).numpy()
    r = by_hand(w, size, b)[1] - np.clip(w.numpy() / (size * k), n, p)

    def surrogate(w, s):
        return up @ (s * k * (np.clip(w / (s * k), n, p) + r))

    mine, step = w.clone().requires_grad_(), torch.tensor(-size if negative else size, dtype=F64, requires_grad=True)
    out = DOUBLE.weight(mine, b, {"w8": step}, Site("layer"))
    grad_w, grad_s = torch.autograd.grad(out, [mine, step], torch.from_numpy(up))
    h = 1e-7 * size
    slope = (surrogate(w.numpy(), size + h) - surrogate(w.numpy(), size - h)) / (2 * h) / math.sqrt(len(w) * p)
    assert float(grad_s) == pytest.approx(-slope if negative else slope, rel=1e-4, abs=1e-4)
    for i in range(0, len(w), 17):
        moved = np.eye(len(w))[i] * h
        slope = (surrogate(w.numpy() + moved, size) - surrogate(w.numpy() - moved, size)) / (2 * h)
        assert float(grad_w[i]) == pytest.approx(slope, rel=1e-4, abs=1e-4)
    inside = (w > n * k * size) & (w < p * k * size)
    assert torch.equal(grad_w, torch.where(inside, torch.from_numpy(up), 0))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(sizes, widths, st.integers(0, 2**32 - 1))
def test_the_gradient_of_the_step_is_the_rule_of_lsq_at_these_bits(size, b, seed):
    """2^(8-b) W_b - w / s inside the clip and 2^(8-b) times the end code outside, times 1 / sqrt(N p)."""
    w, k, (n, p) = weights(size, seed), 2 ** (8 - b), (-(2 ** (b - 1)), 2 ** (b - 1) - 1)
    w = w[(w / size / k - n).abs().minimum((w / size / k - p).abs()) > 1e-9]  # an edge is the last digit's to decide
    step = torch.tensor(size, dtype=F64, requires_grad=True)
    out = DOUBLE.weight(w, b, {"w8": step}, Site("layer"))
    up = torch.sin(1 + 3 * torch.arange(len(w), dtype=F64))
    code, ratio = by_hand(w, size, b)[1], w.numpy() / size
    slope = np.where((ratio > n * k) & (ratio < p * k), k * code - ratio, k * code)
    [found] = torch.autograd.grad(out, step, up)
    assert float(found) == pytest.approx(float(up.numpy() @ slope) / math.sqrt(len(w) * p), rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(sizes, st.integers(0, 2**32 - 1))
def test_codes_of_fewer_bits_are_cut_from_the_eight(size, seed):
    """`cut` knows the 8-bit codes alone, as 0 to 255; it takes nothing from the float weights."""
    w = weights(size, seed)
    whole = torch.from_numpy(by_hand(w, size, 8)[1] + 128).to(torch.int32)
    for b in range(2, 9):
        wanted = torch.from_numpy(by_hand(w, size, b)[1] + 2 ** (b - 1)).to(torch.int32)
        assert torch.equal(DOUBLE.cut(whole, b), wanted)
    assert torch.equal(QUANTIZERS["sat"].cut(whole, 3), whole >> 5)


def test_the_step_starts_where_few_bits_lose_least():
    """Normal weights: of the starts of LSQ, and of the largest weight, that for two bits has the least error there."""
    w = torch.randn(4, 5000, dtype=F64, generator=torch.Generator().manual_seed(0))
    mine = DOUBLE.parameters(w, None, Site("layer"))
    assert set(mine) == {"w8", *(f"a{b}" for b in (2, 3, 4, 5, 6, 7, 8, 16))}
    torch.testing.assert_close(mine["w8"], w.abs().mean() / 32)
    others = [w.abs().max() / 127, 2 * w.abs().mean() / math.sqrt(127), 2 * w.abs().mean() / math.sqrt(7) / 16]

    def error(step, b):
        return float((DOUBLE.weight(w, b, {"w8": step}, Site("layer")) - w).square().mean())

    for b in (2, 4):
        assert error(mine["w8"], b) < min(error(step, b) for step in others)
    assert error(mine["w8"], 8) < 1e-3
    assert DOUBLE.parameters(w, None, Site("layer", "first")) == {}


def test_activations_and_what_is_not_of_weights_are_those_of_lsq():
    lsq, x = QUANTIZERS["lsq"], torch.randn(3, 8, dtype=F64)
    for signed in (False, True):
        site = Site("layer", signed=signed, mean_abs=0.7)
        params = {name: t for name, t in lsq.parameters(x, x, site).items() if name[0] == "a"}
        for name, t in params.items():
            assert torch.equal(DOUBLE.parameters(x, x, site)[name], t)
        for b in (2, 8, 16):
            assert torch.equal(DOUBLE.activation(x, b, params, site), lsq.activation(x, b, params, site))


def test_a_step_of_zero_is_tiny_and_finite():
    w, step = torch.randn(20, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    out = DOUBLE.weight(w, 2, {"w8": step}, Site("layer"))
    assert out.abs().max() <= 2 * TINY
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), [w, step]))


# --- which pairs there are ---------------------------------------------------------------------------------------


def net(name="double_rounding"):
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), name, sample=IMAGES).eval()


@pytest.mark.parametrize(
    ("name", "count"), [("dorefa", 75), ("lsq", 73), ("least_squares", 75), ("double_rounding", 64)]
)
def test_a_model_lists_the_pairs_that_its_quantizer_defines_and_refuses_the_others(name, count):
    model = net(name)
    pairs = pairs_of(model)
    assert len(pairs) == count and pairs == sorted(pairs) == QUANTIZERS[name].pairs()
    for pair in mq.candidates():
        if pair in pairs:
            mq.set_bits(model, pair)
        else:
            with pytest.raises(ValueError, match=f"^{name} (does not define {pair}: its weights|defines no 1-bit)"):
                mq.set_bits(model, pair)


@pytest.mark.parametrize("bits", ["W16A16", "W16A2", {"*": "W4A4", "body.1.0": "W16A4"}])
def test_weights_of_16_bits_are_refused_and_activations_are_not(bits):
    model = net()
    words = r"^double_rounding does not define W16A\d+: its weights have \[2, 3, 4, 5, 6, 7, 8, 32\] bits, its activ"
    with pytest.raises(ValueError, match=words), mq.at(model, bits):
        pass
    with mq.at(model, "W8A16"), torch.no_grad():
        assert model(IMAGES).isfinite().all()


@pytest.mark.parametrize("method", ["mebqat", "mebqat_in_turn", "mebqat_pn", "mebqat_maml"])
def test_methods_draw_only_pairs_that_exist(method):
    sampler = METHODS[method].sampler(net(), Recipe(exclude=(3,)))
    assert sampler.pool == [pair for pair in DOUBLE.pairs() if 3 not in (pair.w, pair.a)]
    assert mq.Bits(16, 16) not in sampler.pool and mq.Bits(8, 16) in sampler.pool
    listed = METHODS["adabits"].sampler(net(), Recipe())
    assert listed.pairs == [mq.Bits(2, 2), mq.Bits(4, 4), mq.Bits(8, 8), mq.FP]


def test_it_is_trained_and_measured_at_its_pairs_alone():
    data, model = mq.datasets.digits(), net()
    before = copy.deepcopy(model.state_dict())
    run = mq.fit(model, data, "mebqat", steps=6, batch_size=16, progress=False, device="cpu")
    assert np.isfinite(run.losses).all()
    changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    for name, layer in quantized_layers(model).items():
        if layer.site.role == "body":
            assert {f"{name}.weight", f"{name}.quant.w8"} <= changed
    frame = mq.grid(model, mq.datasets.base.Split(IMAGES, torch.arange(40) % 10), norm_stats="batch")
    assert list(frame.index) == [str(pair) for pair in DOUBLE.pairs()]
    with pytest.raises(ValueError, match="does not define W16A16"):
        mq.fit(model, data, "qat", bits="W16A16", steps=1, progress=False, device="cpu")
