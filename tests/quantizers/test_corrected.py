"""Corrected weights keep the mean and the spread of each channel, at every width, in training and in files."""

import copy
import functools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import mebqat_lite as mq
from mebqat_lite.measure.summary import packed_bytes
from mebqat_lite.quantizers import QUANTIZERS, Quantizer, Site, corrected, register, unit_activation
from mebqat_lite.switching.state import quantized_layers

F64 = torch.float64
NAMES = ("dorefa", "sat", "lsq")
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def weights(seed=0, shape=(5, 3, 2, 2), shift=0.3):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)) + shift


def made(name, w, role="body"):
    site = Site("layer", role, mean_abs=0.5)
    return QUANTIZERS[f"{name}_corrected"], QUANTIZERS[name], QUANTIZERS[name].parameters(w, None, site), site


def by_hand(w, q):
    """(q - mean q) std w / std q + mean w of each channel, and the factor std w / std q, which is 1 where std q = 0."""
    dims = tuple(range(1, w.dim()))
    factor = torch.ones(len(w), *[1] * (w.dim() - 1), dtype=w.dtype)
    for i, (row, rounded) in enumerate(zip(w.flatten(1), q.flatten(1), strict=True)):
        if (rounded != rounded[0]).any():
            factor[i] = row.std(correction=0) / rounded.std(correction=0)
    return (q - q.mean(dims, keepdim=True)) * factor + w.mean(dims, keepdim=True), factor


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.sampled_from(NAMES),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.integers(0, 2**32 - 1),
    st.floats(-3, 3),
    st.sampled_from([(5, 3, 2, 2), (4, 7), (3, 2, 5)]),
)
def test_values_and_gradient_are_those_of_the_formula(name, b, seed, shift, shape):
    """In float64; the mean and the spread of each channel are those of its weights, if it has two codes."""
    if b == 1 and name != "dorefa":
        return
    w = weights(seed, shape, shift).requires_grad_()
    quantizer, base, params, site = made(name, w)
    q, out = base.weight(w, b, params, site), quantizer.weight(w, b, params, site)
    expected, factor = by_hand(w.detach(), q.detach())
    torch.testing.assert_close(out.detach(), expected, rtol=1e-9, atol=1e-10)
    up = torch.sin(1 + 3 * torch.arange(w.numel(), dtype=F64)).reshape(shape)
    [mine] = torch.autograd.grad(out, w, up)
    [theirs] = torch.autograd.grad(q, w, up * factor)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)
    rows, kept = out.detach().flatten(1), w.detach().flatten(1)
    torch.testing.assert_close(rows.mean(1), kept.mean(1), rtol=1e-9, atol=1e-10)
    lives = (q.flatten(1) != q.flatten(1)[:, :1]).any(1)
    torch.testing.assert_close(rows.std(1)[lives], kept.std(1)[lives], rtol=1e-9, atol=1e-10)


def test_a_small_example_with_its_numbers():
    """One bit: channels (3, 1) and (-1, -3) become plus and minus 2 first, which is one code each, so their mean; the
    channel (4, -2) has mean 1 and spread 3, and becomes 1 plus and minus 3.
    """
    w = torch.tensor([[3.0, 1.0], [-1.0, -3.0], [4.0, -2.0]])
    found = QUANTIZERS["dorefa_corrected"].weight(w, 1, {}, Site("layer"))
    torch.testing.assert_close(found, torch.tensor([[2.0, 2.0], [-2.0, -2.0], [4.0, -2.0]]))


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
@pytest.mark.parametrize("name", NAMES)
def test_a_channel_of_one_code_becomes_its_mean_and_keeps_the_gradient_of_the_other(name, value):
    """All weights of one sign at one bit; all zero; constant, where the tensor has other channels and where not."""
    for others in (torch.zeros(0, 6), weights(1, (2, 6))):
        w = torch.cat([torch.full((2, 6), value, dtype=F64), others.to(F64)]).requires_grad_()
        quantizer, base, params, site = made(name, w)
        for b in (1, 2, 4, 8, 16)[name != "dorefa" :]:
            out = quantizer.weight(w, b, params, site)
            torch.testing.assert_close(out[:2].detach(), w[:2].detach(), rtol=1e-9, atol=1e-12)
            [mine], [theirs] = (torch.autograd.grad(o[:2].sum(), w) for o in (out, base.weight(w, b, params, site)))
            assert mine.isfinite().all() and torch.allclose(mine, theirs)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-6, 1e6])
def test_weights_of_any_size_stay_finite(size):
    """Squares of tiny weights are zero in float32, although their codes differ."""
    w = torch.tensor([[size, -size, size], [-size, -size, size]])
    for b in (1, 2, 8, 16):
        for name in ("dorefa_corrected", "sat_corrected")[: 1 + (b > 1)]:
            out = QUANTIZERS[name].weight(w, b, {}, Site("layer"))
            assert out.isfinite().all()
            if size > 1e-20:
                torch.testing.assert_close(out.mean(1), w.mean(1), rtol=1e-3, atol=1e-6 * size)


@pytest.mark.parametrize("name", NAMES)
def test_only_layers_whose_bits_are_switched_are_corrected_and_nothing_else_differs(name):
    w, x = weights(), weights(3, (4, 6)).requires_grad_()
    for role in ("first", "last", "kept"):
        quantizer, base, params, site = made(name, w, role)
        if quantizer.edge_bits < 32:
            assert torch.equal(quantizer.weight(w, 8, params, site), base.weight(w, 8, params, site))
            assert quantizer.weight_grid(w, 8, params, site)[1] == base.weight_grid(w, 8, params, site)[1]
    quantizer, base, params, site = made(name, w)
    assert torch.equal(quantizer.activation(x, 4, params, site), base.activation(x, 4, params, site))
    for kind in ("one_bit", "signed_inputs", "clips_at_zero", "edge_bits", "starts_at", "step_lr", "float_weights"):
        assert getattr(quantizer, kind) == getattr(base, kind)
    assert all(quantizer.learns(key) for key in params) and str(quantizer) == f"{name}_corrected"
    if name != "dorefa":
        model = mq.quantize(mq.models.digit_net(), quantizer, sample=IMAGES)
        with pytest.raises(ValueError, match=f"^{name}_corrected defines no 1-bit values"):
            mq.set_bits(model, "W1A1")


def test_at_32_bits_a_layer_has_its_own_weights_or_those_of_the_other_quantizer(monkeypatch):
    monkeypatch.setattr(mq.quantizers.base, "QUANTIZERS", dict(QUANTIZERS))
    model = mq.quantize(mq.models.digit_net(), "dorefa_corrected", sample=IMAGES)
    layer = quantized_layers(model)["body.1.0"]
    assert layer.quantized_weight(32) is layer.weight
    tanh, w = corrected("dorefa_fp_tanh"), weights()
    assert torch.equal(tanh.weight(w, 32, {}, Site("a")), QUANTIZERS["dorefa_fp_tanh"].weight(w, 32, {}, Site("a")))


class Thirds(Quantizer):
    """A quantizer of one's own, with an option and a method of its own."""

    def __init__(self, size=3):
        self.size = size

    def step(self):
        return torch.tensor(1 / self.size)

    def weight(self, w, bits, params, site):
        q = (w / self.step()).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * self.step()
        return q.detach() + (w - w.detach())

    def weight_grid(self, w, bits, params, site):
        return self.step(), 2 ** (bits - 1)

    def activation(self, x, bits, params, site):
        return unit_activation(x, bits)


def test_a_quantizer_of_ones_own_is_corrected_by_its_name_and_copied_with_a_model(monkeypatch):
    monkeypatch.setattr(mq.quantizers.base, "QUANTIZERS", dict(QUANTIZERS))
    with pytest.raises(ValueError, match="no quantizer 'thirds'"):
        corrected("thirds")
    register("thirds", Thirds(5))
    quantizer = corrected("thirds")
    assert mq.quantizers.get("thirds_corrected")[1] is quantizer and quantizer.size == 5
    model = mq.quantize(mq.models.digit_net(), "thirds_corrected", sample=IMAGES)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with mq.at(model, "W2A2"), mq.at(other, "W2A2"), torch.no_grad():
            assert torch.equal(other(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_has_a_step_and_a_zero_for_each_channel_and_nothing_else_more(name, tmp_path):
    sizes, tensors = {}, {}
    for quantizer in (name, f"{name}_corrected"):
        torch.manual_seed(0)
        model = mq.quantize(mq.models.digit_net(widths=(4, 5, 6, 7)), quantizer, sample=IMAGES)
        mq.save_packed(model, tmp_path / "p", "W2A2,W4A4", calibration=IMAGES)
        with safe_open(tmp_path / "p", "pt") as file:
            tensors[quantizer] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        sizes[quantizer] = sum(t.numel() * t.element_size() for t in tensors[quantizer].values())
    zeros = {key: t.shape for key, t in tensors[f"{name}_corrected"].items() if key.startswith("zeros/")}
    assert zeros == {f"zeros/body.{i}.0": (2, out, 1, 1, 1) for i, out in enumerate((5, 6, 7))}
    assert not any(key.startswith("zeros/") for key in tensors[name])
    channels, layers = 5 + 6 + 7, 3
    assert sizes[f"{name}_corrected"] - sizes[name] == 4 * 2 * (2 * channels - layers)  # two widths; one step a layer


def test_a_file_without_the_zeros_of_its_channels_is_refused(tmp_path):
    model = mq.quantize(mq.models.digit_net(widths=(4, 5, 6, 7)), "dorefa_corrected", sample=IMAGES)
    mq.save_packed(model, tmp_path / "p", "W2A2,W4A4", calibration=IMAGES)
    tensors, meta = mq.files.read(tmp_path / "p", "packed")
    for change in (lambda t: t.pop("zeros/body.1.0"), lambda t: t.update({"zeros/body.1.0": t["zeros/body.1.0"][:1]})):
        change(tensors)
        mq.files.write(tmp_path / "q", tensors, meta)
        with pytest.raises(mq.CheckpointError, match="q is damaged"):
            mq.load_packed(tmp_path / "q")
        tensors, _ = mq.files.read(tmp_path / "p", "packed")


@pytest.mark.parametrize("double", [False, True])
def test_a_packed_network_is_packed_again(double, tmp_path):
    model = mq.quantize(mq.models.digit_net(widths=(4, 5, 6, 7)), "lsq_corrected", sample=IMAGES)
    model = (model.double() if double else model).eval()
    images = IMAGES.double() if double else IMAGES
    mq.save_packed(model, tmp_path / "p", "W2A2", calibration=IMAGES)
    again, _ = mq.load_packed(tmp_path / "p")
    mq.save_packed(again, tmp_path / "q", "W2A2")
    last, _ = mq.load_packed(tmp_path / "q")
    with mq.at(model, "W2A2", "recalibrated"), torch.no_grad():
        assert torch.equal(last(images), model(images))


def test_it_is_trained_by_every_kind_of_method():
    data = mq.datasets.digits()
    for method, options in (("qat", {"bits": "W2A2"}), ("mebqat", {}), ("mebqat_in_turn", {})):
        model = mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), "lsq_corrected", sample=IMAGES)
        before = copy.deepcopy(model.state_dict())
        run = mq.fit(model, data, method, steps=4, batch_size=16, progress=False, device="cpu", **options)
        changed = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
        assert "body.1.0.weight" in changed and torch.isfinite(torch.tensor(run.losses)).all()
        assert "body.1.0.quant.w2" in changed or method != "qat"


def test_a_float_linear_layer_and_a_depthwise_convolution_of_one_weight_a_channel():
    """A channel of one weight is its own mean: it stays exact, and so does its gradient."""
    w = torch.tensor([0.3, -0.8, 0.0]).reshape(3, 1, 1, 1).requires_grad_()
    out = QUANTIZERS["dorefa_corrected"].weight(w, 2, {}, Site("layer"))
    torch.testing.assert_close(out, w)
    torch.manual_seed(0)
    x = torch.rand(16, 4)
    model = mq.quantize(nn.Sequential(nn.Linear(4, 6)), "sat_corrected", sample=x, keep=[])
    row, own = model[0].quantized_weight(2), model[0].weight
    torch.testing.assert_close(row.mean(1), own.mean(1))
    torch.testing.assert_close(row.std(1), own.std(1))


@pytest.mark.parametrize("name", NAMES)
def test_the_summary_counts_a_step_and_a_zero_for_each_channel(name, tmp_path):
    """Of layers whose bits are switched, and below 32 bits; also of a packed network, and with one layer at FP."""
    build = functools.partial(mq.models.digit_net, widths=(4, 5, 6, 7))
    plain, model = (mq.quantize(build(), q, sample=IMAGES) for q in (name, f"{name}_corrected"))
    mq.save_packed(model, tmp_path / "p", "W2A2", calibration=IMAGES)
    again, _ = mq.load_packed(tmp_path / "p")
    for bits, channels in (("W2A2", 5 + 6 + 7), ({"*": "W2A2", "body.1.0": "FP"}, 5 + 7), ("FP", 0)):
        with mq.at(plain, bits), mq.at(model, bits):
            assert packed_bytes(model) - packed_bytes(plain) == 2 * 4 * channels
    with mq.at(model, "W2A2"), mq.at(again, "W2A2"):
        assert packed_bytes(again) == packed_bytes(model) and mq.summary(again) == mq.summary(model)


def test_what_cannot_be_corrected_is_refused(monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "gridless", Quantizer())
    with pytest.raises(ValueError, match=r"^gridless defines no weight_grid"):
        corrected("gridless")
    with pytest.raises(ValueError, match=r"^dorefa_corrected is corrected already"):
        corrected("dorefa_corrected")
