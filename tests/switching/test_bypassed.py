"""Layers whose weights a model reads without calling them: PyTorch's fast path is off, other reads are said."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.audit import audit
from mebqat_lite.switching.state import plan_of, quantized_layers

X = torch.rand(6, 5, 8, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    """A transformer encoder between two linear layers."""

    def __init__(self, layers=2, **options):
        super().__init__()
        torch.manual_seed(0)
        one = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(one, layers, enable_nested_tensor=False) if layers else one
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


@pytest.mark.parametrize("options", [{}, {"layers": 0}, {"norm_first": True}, {"activation": "gelu"}], ids=str)
def test_attention_in_evaluation_runs_at_its_bits(options):
    float_model = Encoder(**options).eval()
    model = mq.quantize(copy.deepcopy(float_model), "lsq", sample=X)
    with torch.no_grad():
        torch.testing.assert_close(model(X), float_model(X), rtol=0, atol=1e-6)  # its fast path rounds differently
    outs = {}
    for bits in ("W2A2", "W8A8", "FP"):
        with mq.at(model, bits):
            slow = model(X).detach()  # with gradients PyTorch never takes the fast path
            with torch.no_grad():
                outs[bits] = model(X)
        torch.testing.assert_close(outs[bits], slow, rtol=0, atol=1e-6)  # attention itself may round differently
    assert not torch.equal(outs["W2A2"], outs["FP"]) and not torch.equal(outs["W8A8"], outs["FP"])
    back = mq.restore_float(model)
    with torch.no_grad():
        assert torch.equal(back(X), float_model(X)) and not any(m._forward_pre_hooks for m in back.modules())


class Raw(nn.Module):
    """Reads a weight by itself, in the way of ``read``, beside calling the layer."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.read = read

    def forward(self, x):
        h = self.b(self.a(x).relu()).relu()
        return self.d(self.c(h).relu() + self.read(self, h))


READS = {
    "functional": lambda m, h: F.linear(h, m.b.weight),
    "transposed": lambda m, h: h @ m.b.weight.T,
    "data": lambda m, h: h @ m.b.weight.data,
    "einsum": lambda m, h: torch.einsum("nti,oi->nto", h, m.b.weight),
}


@pytest.mark.parametrize("read", list(READS))
def test_a_weight_that_is_read_without_its_layer_is_said(read):
    with pytest.warns(UserWarning, match=r"1 layers whose weights the model also reads without .* \(b\): no bitwidth"):
        model = mq.quantize(Raw(READS[read]), "lsq", sample=X)
    assert plan_of(model).bypassed == ["b"] and len(audit(model)) == 1
    assert "WARNING: 1 layers whose weights the model also reads" in mq.summary(model)


@pytest.mark.parametrize(
    "read",
    [
        lambda m, h: m.b(h),  # a layer called twice
        lambda m, h: h.to(m.b.weight.device, m.b.weight.dtype),
        lambda m, h: h.new_zeros(m.b.weight.shape[0]) + m.b.weight.numel(),
    ],
)
def test_calls_and_questions_about_a_weight_are_no_reads(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mq.quantize(Raw(read), "lsq", sample=X)
    assert plan_of(model).bypassed == [] and len(quantized_layers(model)) == 2


def test_tied_layers_read_one_weight_by_their_own_forward():
    model = Raw(READS["functional"])
    model.read = lambda m, h: 0
    model.c.weight = model.b.weight
    mq.quantize(model, "lsq", sample=X)
    assert plan_of(model).bypassed == []


@pytest.mark.parametrize("padded", [0, 2])
def test_an_encoder_with_a_padding_mask_runs_at_its_bits(padded):
    torch.manual_seed(0)
    one = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(one, 2).eval()  # by default it makes nested tensors of what is not padded
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[:, 5 - padded :] = padded > 0

    def run(model):
        return model(X, src_key_padding_mask=mask)

    model = mq.quantize(copy.deepcopy(encoder), "lsq", sample=run, keep=[])
    with torch.no_grad(), mq.at(model, "W2A2"):
        low = run(model)
    with torch.no_grad():
        kept = ~mask[0]
        torch.testing.assert_close(run(model)[:, kept], run(encoder)[:, kept], rtol=0, atol=1e-5)
        assert not torch.allclose(low[:, kept], run(model)[:, kept], atol=1e-2)
    assert mq.restore_float(model).use_nested_tensor is encoder.use_nested_tensor is True
