"""ReLUs that are left out where their readers clip: the same answers, and nowhere else."""

import copy

import pytest
import torch
from torch import nn
from uneven import F64, FLOAT_NETS, MAPS, SOURCES, images, net

import mebqat_lite as mq
from mebqat_lite.bits import Bits
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.switching.convert import restore_float
from mebqat_lite.switching.inputs import InputReLU
from mebqat_lite.switching.state import plan_of, quantized_layers, setting_of


def relus(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, InputReLU)}


def connected(model):
    return {name: module.__dict__["readers"] for name, module in relus(model).items() if "readers" in module.__dict__}


def pass_through(model, x, bits):
    """Logits and gradients of all parameters in training mode, dropout drawn anew from one seed."""
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(1)
    with mq.at(model, bits):
        logits = model(x)
    logits.mul(torch.linspace(-1, 2, logits.numel(), dtype=F64).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


def negatives(model, x, bits):
    """Which InputReLUs let numbers below zero through."""
    found = {}
    hooks = [
        relu.register_forward_hook(lambda _m, _a, out, name=name: found.update({name: bool((out < 0).any())}))
        for name, relu in relus(model).items()
    ]
    with torch.no_grad(), mq.at(model.eval(), bits, "batch"):
        model(x)
    for hook in hooks:
        hook.remove()
    return {name for name, below in found.items() if below}


@pytest.mark.parametrize("bits", ["FP", "W2A2", "W1A32", "map"])
@pytest.mark.parametrize("quantizer", ["dorefa", "sat", "lsq", "least_squares", "double_rounding", "lsq_corrected"])
@pytest.mark.parametrize("name", FLOAT_NETS)
def test_a_skipped_relu_changes_neither_logits_nor_gradients(name, quantizer, bits):
    if bits == "W1A32" and not QUANTIZERS[quantizer].one_bit:
        pytest.skip(f"{quantizer} has no 1 bit")
    model, x, bits = net(name, quantizer), SOURCES[name], MAPS[name] if bits == "map" else bits
    plain = copy.deepcopy(model)
    for relu in relus(plain).values():
        relu.__dict__.pop("readers", None)
    assert connected(model) and not connected(plain)
    (mine, gradients), (theirs, expected) = pass_through(model, x, bits), pass_through(plain, x, bits)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert any(grad is not None and grad.abs().sum() > 0 for grad in expected.values())
    for parameter, grad in expected.items():
        assert (grad is None) == (gradients[parameter] is None), parameter
        if grad is not None:
            torch.testing.assert_close(gradients[parameter], grad, rtol=1e-12, atol=1e-12, msg=parameter)


@pytest.mark.parametrize("quantizer", ["dorefa", "sat", "lsq", "least_squares", "double_rounding", "lsq_corrected"])
@pytest.mark.parametrize("name", FLOAT_NETS)
def test_a_relu_is_skipped_where_all_its_readers_clip_and_nowhere_else(name, quantizer):
    model, x = net(name, quantizer), SOURCES[name]
    body = {site.name for site in plan_of(model).sites if site.role == "body"}
    readers = {relu: names for relu, names in plan_of(model).readers.items() if names and set(names) <= body}
    readers.pop("stem.2", None)  # a stem may run once for all pairs, FP among them
    assert len(readers) == {"digit_net": 2, "resnet": 18, "cnn8_like": 3}[name]
    assert negatives(model, x, "W2A2") == set(readers)
    assert negatives(model, x, "FP") == set()
    assert negatives(model, x, "W2A32") == set()
    (kept,) = set(MAPS[name]) - {"*"}
    assert negatives(model, x, MAPS[name]) == {relu for relu, names in readers.items() if kept not in names}


def test_where_a_relu_has_two_readers_both_must_clip():
    model = net("resnet")
    assert plan_of(model).readers["body.3.relu1"] == ["body.3.skip.0", "body.3.conv1"]
    for kept in plan_of(model).readers["body.3.relu1"]:
        below = negatives(model, SOURCES["resnet"], {"*": "W2A2", kept: "W2A32"})
        assert "body.3.relu1" not in below and "body.3.relu2" in below


def test_the_edges_are_not_readers_that_clip():
    """The last convolution's ReLU goes into a mean; a kept layer stays a float layer, which sees no negatives."""
    model = net()
    assert "body.2.2" not in negatives(model, SOURCES["digit_net"], "W2A2")
    kept = mq.quantize(model, sample=SOURCES["digit_net"], keep=["stem.0", "body.1.0", "body.4"])
    assert negatives(kept, SOURCES["digit_net"], "W2A2") == {"body.1.2"}


class Shared(nn.Module):
    """One convolution reads two ReLUs; one ReLU is called twice; one ReLU has one reader."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.once, self.other, self.last = (
            nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(5)
        )
        self.one, self.two, self.again, self.single = (InputReLU() for _ in range(4))

    def forward(self, x):
        h = self.first(x)
        h = self.twice(self.one(h)) + self.twice(self.two(h - 0.1))
        h = self.once(self.again(h)) + self.other(self.again(h + 0.1))
        return self.last(self.single(h)).mean((2, 3))


def test_a_relu_called_twice_or_read_by_a_layer_that_runs_twice_is_never_skipped():
    torch.manual_seed(0)
    x = images(8) - 0.5
    model = mq.quantize(Shared().to(F64).eval(), sample=x, keep=["first"])
    assert set(quantized_layers(model)) == {"twice", "once", "other", "last"}
    assert plan_of(model).readers == {"single": ["last"]}
    assert negatives(model, x, "W2A2") == {"single"}


def test_restore_float_gives_the_relus_back():
    model = net()
    assert connected(model)
    restore_float(model)
    assert not connected(model)
    out = relus(model)["body.1.2"](torch.tensor([-1.0, 2.0]))
    assert out.tolist() == [0, 2]


def test_a_copy_s_relus_ask_the_copy_s_layers():
    model = net()
    twin = copy.deepcopy(model)
    for relu, readers in connected(twin).items():
        mine = [quantized_layers(twin)[reader.site.name] for reader in readers]
        assert all(a is b for a, b in zip(readers, mine, strict=True)), relu
    setting_of(model).bits = Bits(2, 2)
    assert negatives(twin, SOURCES["digit_net"], "FP") == set()


@pytest.mark.parametrize("name", ["digit_net", "resnet"])
def test_a_checkpoint_keeps_who_reads_which_relu(name, tmp_path):
    model = net(name)
    mq.save_model(model, tmp_path / "m.safetensors")
    loaded, _ = mq.load_model(tmp_path / "m.safetensors")
    assert plan_of(loaded).readers == plan_of(model).readers
    below = negatives(model, SOURCES[name], "W2A2")
    assert below and negatives(loaded, SOURCES[name], "W2A2") == below
