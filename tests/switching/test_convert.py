"""`quantize` on networks of this package, of torchvision and of a user, and switching bits at run time."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import mebqat_lite as mq
from mebqat_lite import quantizers as qz
from mebqat_lite.switching.state import frozen_weights, plan_of, quantized_layers, setting_of


class Doubling(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Odd(nn.Module):
    """What users write: nested containers, functional ReLU, a fork, a shared layer, a subclass, an unused layer."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.unused = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3), nn.Linear(4, 4)
        self.nest = nn.ModuleDict({"a": nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.5)))})
        self.left, self.right, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.shared, self.own, self.line = nn.Conv2d(4, 4, 1), Doubling(4, 4, 1), nn.Conv1d(4, 4, 3, padding=1)
        for parameter in self.parameters():
            nn.init.kaiming_normal_(parameter) if parameter.dim() > 1 else None

    def forward(self, x):
        x = F.relu(self.nest["a"](F.relu(self.first(x))))
        x = F.relu(self.norm(self.left(x) + self.right(x)))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        return self.last(F.relu(self.line(F.relu(self.own(x)).flatten(2))).mean(2))


class Fork(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return self.a(x) + 2 * self.b(x)


NETS = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), (3, 64, 64)),
    "torchvision mobilenet": (lambda: torchvision.models.mobilenet_v2(weights=None), (3, 64, 64)),
    "digit_net": (mq.models.digit_net, (1, 8, 8)),
    "conv4": (lambda: mq.models.conv4(channels=8, classes=5), (1, 28, 28)),
    "cnn8": (mq.models.cnn8, (3, 40, 40)),
    "preact_resnet20": (lambda: mq.models.preact_resnet20(width=0.5), (3, 32, 32)),
    "resnet20": (mq.models.resnet20, (3, 32, 32)),
    "mobilenet_v2": (mq.models.mobilenet_v2, (3, 32, 32)),
    "odd": (Odd, (1, 6, 6)),
}
BODY = ["nest.a.0.0", "left", "right", "shared", "line"]  # what is quantized of Odd


def images(name, count=2, seed=0):
    return torch.randn(count, *NETS[name][1], generator=torch.Generator().manual_seed(seed))


def odd(quantizer="dorefa"):
    torch.manual_seed(0)
    return mq.quantize(Odd().eval(), quantizer, sample=images("odd", 8))


def run(model, x):
    """Output, gradients and buffers of one pass, under the same dropout."""
    torch.manual_seed(1)
    model.zero_grad()
    out = model(x)
    out.square().mean().backward()
    return [out, *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_quantize_changes_nothing_and_fp_equals_the_float_model_exactly(name, train):
    """No parameter, buffer, mode or random state moves; FP outputs and gradients are equal, also after W4A4."""
    original = NETS[name][0]().train(train)
    model = copy.deepcopy(original)
    before, state, parts = copy.deepcopy(original.state_dict()), torch.get_rng_state(), dict(model.named_modules())
    assert mq.quantize(model, "dorefa", sample=images(name)) is model
    assert torch.equal(torch.get_rng_state(), state) and list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.training == train and not m._forward_pre_hooks and not m._forward_hooks for m in parts.values())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    setting_of(model).track_running = False
    with torch.no_grad(), mq.at(model, "W4A4"):
        assert not torch.equal(model(images(name)), copy.deepcopy(original)(images(name)))
    setting_of(model).track_running = True
    for mine, theirs in zip(run(model, images(name)), run(original, images(name)), strict=True):
        assert torch.equal(mine, theirs)


def test_a_tensor_that_feeds_two_layers_is_quantized_once(monkeypatch):
    calls, activation = [], qz.DoReFa.activation
    monkeypatch.setattr(qz.DoReFa, "activation", lambda self, x, *rest: calls.append(x) or activation(self, x, *rest))
    model = odd()
    for step in range(1, 3):  # the second batch is quantized anew
        with mq.at(model, "W2A4"):
            model(images("odd", seed=step))
        assert len(calls) == 5 * step  # nest, left and right, shared twice, line
    with mq.at(model, {"*": "W2A4", "left": "W2A2"}):
        model(images("odd"))
    assert len(calls) == 16, "layers of unequal bits cannot share"


@pytest.mark.parametrize("sample", [torch.rand(8, 3), [torch.rand(4, 3), torch.rand(4, 3)]], ids=["tensor", "loader"])
def test_the_shared_input_is_found_and_its_gradient_is_that_of_one_quantizer(sample):
    model = mq.quantize(Fork(), "lsq", sample=sample, keep=[]).double()
    assert [site.leader for site in plan_of(model).sites] == ["a", "a"]
    inner, x = model.a.quant, torch.rand(5, 3, dtype=torch.float64, requires_grad=True)
    with mq.at(model, "W3A2"):
        model(x).square().sum().backward()
    y, step = x.detach().clone().requires_grad_(), inner["a2"].detach().clone().requires_grad_()
    q = qz.step_clip(y, step, 0, 3, (3 * 3) ** -0.5)
    weights = [layer.quantized_weight(3).detach() for layer in (model.a, model.b)]
    out = F.linear(q, weights[0], model.a.bias) + 2 * F.linear(q, weights[1], model.b.bias)
    out.square().sum().backward()
    torch.testing.assert_close([x.grad, inner["a2"].grad], [y.grad, step.grad], rtol=1e-12, atol=1e-12)
    assert model.b.quant["a2"].grad is None and inner["a3"].grad is None and inner["w3"].grad is not None


@pytest.mark.parametrize("bits", ["W2A4", {"*": "W2A4", "a": "FP"}, {"*": "W2A4", "b": "W2A2"}], ids=str)
@pytest.mark.parametrize(("lone", "grad"), [(True, True), (True, False), (False, True), (False, False)])
def test_what_a_forked_input_gave_before_is_never_used_again_and_does_not_hinder_a_copy(lone, grad, bits):
    """The same tensor again after training, in place changes and other bits, also if one layer read it alone."""
    model, x = mq.quantize(Fork(), "lsq", sample=torch.rand(8, 3), keep=[]), torch.rand(5, 3)
    mq.set_bits(model, bits)
    weights = [p.data for p in model.parameters()]
    for change in (lambda: torch._foreach_mul_(weights, 1.5), lambda: x.mul_(0.5), lambda: mq.set_bits(model, "W2A3")):
        with torch.set_grad_enabled(grad):
            model.a(x) if lone else model(x)
        change()
        fresh = mq.quantize(Fork(), "lsq", plan=plan_of(model))
        fresh.load_state_dict(model.state_dict())
        mq.set_bits(fresh, {"*": setting_of(model).bits, **setting_of(model).per_layer})
        assert all(torch.equal(a, b) for a, b in zip(run(model, x), run(fresh, x.clone()), strict=True))
    mq.set_bits(model, bits)
    model(x.requires_grad_() * 1)
    copy.deepcopy(model)


def test_float_state_dicts_load_strictly_and_are_saved_under_the_same_names():
    torch.manual_seed(5)
    other = Odd()
    model = odd("lsq")
    steps = {key: value.clone() for key, value in model.state_dict().items() if ".quant." in key}
    with pytest.warns(UserWarning, match="its activation steps were measured with others: "):
        assert model.load_state_dict(other.state_dict(), strict=True) == ([], [])
    for key, value in model.state_dict().items():
        if ".quant.w" in key:  # starts from the new weights: 2 mean|w| / sqrt(p)
            weight, bits = other.state_dict()[f"{key.partition('.quant.')[0]}.weight"], int(key.rpartition("w")[2])
            torch.testing.assert_close(value, 2 * weight.abs().mean() / (2 ** (bits - 1) - 1) ** 0.5)
        else:
            assert torch.equal(value, steps[key] if key in steps else other.state_dict()[key])
    assert set(model.state_dict()) == set(other.state_dict()) | set(steps)
    assert set(steps) == {f"{n}.quant.{kind}{b}" for n in BODY for kind in "wa" for b in (2, 3, 4, 5, 6, 7, 8, 16)}
    Odd().load_state_dict({key: value for key, value in model.state_dict().items() if key not in steps}, strict=True)
    with pytest.raises(RuntimeError, match=r"left\.weight"):
        model.load_state_dict({k: v for k, v in other.state_dict().items() if k != "left.weight"})


@pytest.mark.parametrize("quantizer", qz.QUANTIZERS)
def test_bits_are_state_alone_there_and_back_gives_the_first_output_and_builds_nothing(quantizer):
    model, x = odd(quantizer), images("odd", 4)
    parts = [(name, id(m), type(m)) for name, m in model.named_modules()]
    parts += [(name, id(p), p.dtype) for name, p in [*model.named_parameters(), *model.named_buffers()]]
    outs = {}
    for bits in ("W2A4", "FP", "W8A8", {"*": "W8A8", "left": "W2A4"}, "W4A2", "W2A4", "W8A8", "FP"):
        mq.set_bits(model, bits)
        out = outs.setdefault(str(bits), model(x).detach())
        assert torch.equal(out, model(x))
    distinct = {tuple(out.flatten().tolist()) for out in outs.values()}
    one_step = quantizer in ("lsq_shared", "lsq_authors")  # 4 and 8 bits start as the 2-bit weights
    assert len(distinct) == (2 if one_step else 5)
    now = [(name, id(m), type(m)) for name, m in model.named_modules()]
    assert parts == now + [(name, id(p), p.dtype) for name, p in [*model.named_parameters(), *model.named_buffers()]]


@pytest.mark.parametrize("quantizer", qz.QUANTIZERS)
def test_weights_have_as_many_values_as_bits_allow(quantizer):
    model = odd(quantizer)
    for name in BODY:
        layer = model.get_submodule(name)
        corrected = quantizer.endswith("_corrected")  # a channel may have one code in all its weights
        rows = layer.weight if corrected or quantizer == "least_squares" else layer.weight[None]  # steps per channel
        for b in (2, 3, 4):
            out = layer.quantized_weight(b).reshape(rows.shape)
            assert all(1 - corrected < row.unique().numel() <= 2**b for row in out)
        assert (layer.quantized_weight(32) is layer.weight) == (quantizer != "dorefa_fp_tanh")
        fixed = {"least_squares": "aw", "lsq_untrained": "a", "lsq_authors": "a"}.get(quantizer, "")
        assert all(step.requires_grad == (name[0] not in [*fixed]) for name, step in layer.quant.items())


def test_at_restores_bits_map_and_policy_after_an_exception_and_nests():
    model = odd()
    setting = setting_of(model)
    mq.set_bits(model, {"*": "W4A4", "left": "W2A2"})
    with pytest.raises(KeyboardInterrupt), mq.at(model, "W2A2", "batch"):
        assert (str(setting.bits), setting.per_layer, setting.norm_stats) == ("W2A2", {}, "batch")
        with mq.at(model, "FP") as same:
            assert same is model and setting.of("left") == mq.FP and setting.norm_stats == "batch"
        assert setting.of("left") == mq.Bits(2, 2)
        raise KeyboardInterrupt
    for bad in (("W2", None), ("W8A8", "median"), ({"nowhere": "W2A2"}, None)):
        with pytest.raises(ValueError), mq.at(model, *bad):
            pass
    assert (setting.of("left"), setting.of("right"), setting.norm_stats) == (mq.Bits(2, 2), mq.Bits(4, 4), "running")


def test_a_map_sets_each_layer_with_star_for_the_rest_which_is_fp_without():
    mq.set_bits(model := odd(), "W3A3")
    for bits, rest in (({"left": "W2A4"}, "FP"), ({"*": (8, 8), "left": mq.Bits(2, 4)}, "W8A8")):
        mq.set_bits(model, bits)
        found = {name: str(layer.bits) for name, layer in quantized_layers(model).items()}
        assert found == {name: "W2A4" if name == "left" else rest for name in found}
    with pytest.raises(ValueError, match=r"^no quantized layer \['first'\]; there are \['nest.a.*\* for the rest$"):
        mq.set_bits(model, {"first": "W2A2", "left": "W4A4"})
    with pytest.raises(ValueError, match="'W4' is no bitwidth pair"):
        mq.set_bits(model, {"left": "W4"})
    assert str(model.left.bits) == "W2A4", "a refused map leaves the bits as they were"


@pytest.mark.parametrize("bits", ["W1A1", "W1A32", {"left": "W1A1"}, "W9A9", "W31A4", {"left": "W2A10"}], ids=str)
@pytest.mark.parametrize("quantizer", qz.QUANTIZERS)
def test_bits_are_refused_when_they_are_set_if_the_quantizer_does_not_define_them_and_else_work(quantizer, bits):
    """sat and lsq have no 1 bit; lsq and least_squares have steps for 1 or 2 to 8 and for 16 bits only."""
    model, one = odd(quantizer), "W1A" in str(bits)
    listed = ("lsq", "lsq_untrained", "least_squares", "lsq_corrected", "double_rounding")
    if not qz.QUANTIZERS[quantizer].one_bit if one else quantizer in listed:
        with pytest.raises(
            ValueError, match="defines no 1-bit values; its lowest is 2 bits" if one else "does not define"
        ):
            mq.set_bits(model, bits)
        assert setting_of(model).bits == mq.FP and setting_of(model).per_layer == {}
    else:
        mq.set_bits(model, bits)
        assert model(images("odd")).isfinite().all()


def test_frozen_weights_give_the_same_outputs_and_quantize_once_for_each_bitwidth(monkeypatch):
    model, x, calls, weight = odd(), images("odd"), [], qz.DoReFa.weight
    plan, expected = ["W4A8", "W2A8", "W2A4", "FP", "W4A8"], []
    for bits in plan:
        with mq.at(model, bits):
            expected.append(model(x).detach())
    monkeypatch.setattr(qz.DoReFa, "weight", lambda self, *args: calls.append(args) or weight(self, *args))
    with frozen_weights(model):
        for bits, out in zip(plan, expected, strict=True):
            mq.set_bits(model, bits)
            assert torch.equal(model(x), out) and torch.equal(model(x), out)
    assert len(calls) == 2 * len(BODY)  # at 4 and at 2 bits
    assert torch.equal(model(x), expected[-1])
    with torch.no_grad():
        model.left.weight.mul_(-1)
    assert not torch.equal(model(x), expected[-1]) and (new := model(x)).requires_grad
    with frozen_weights(model):
        assert torch.equal(model(x), new), "weights of the last time"


def test_a_copy_is_independent():
    model, x = odd("lsq"), images("odd")
    mq.set_bits(model, "W2A4")
    model(x)
    out, twin = model(x), copy.deepcopy(model)
    assert torch.equal(twin(x), out)
    mq.set_bits(twin, "FP")
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert torch.equal(model(x), out) and str(setting_of(model).bits) == "W2A4" and str(twin.left.bits) == "FP"
    assert twin.right.leader is twin.left and not twin(x).any()


@pytest.mark.parametrize(
    ("options", "cure"), [({}, "needs sample="), ({"keep": ["x"]}, r"keep names \['x'\], but the")]
)
def test_a_refused_quantize_leaves_the_model_as_it_was(options, cure):
    options = options and {"sample": images("odd"), **options}
    with pytest.raises(ValueError, match=cure):
        mq.quantize(net := Odd(), **options)
    assert not quantized_layers(net) and not any(m._forward_pre_hooks for m in net.modules())
    with pytest.raises(ValueError, match=cure):
        mq.quantize(model := odd("lsq"), "dorefa", **options)
    assert list(quantized_layers(model)) and plan_of(model).quantizer == "lsq"


@pytest.mark.parametrize("quantizer", qz.QUANTIZERS)
def test_another_quantizer_a_plan_and_the_way_back_to_float(quantizer):
    """Quantizing again gives what quantizing anew gives; from a plan the same model; restore_float the original."""
    model, direct, x = odd("sat" if quantizer == "lsq" else "lsq"), odd(quantizer), images("odd")
    mq.recalibrate(mq.give_norm_sets(model, ["W4A4"]), x, "W4A4")
    assert mq.quantize(model, quantizer, sample=images("odd", 8)) is model
    planned = mq.quantize(Odd(), quantizer, plan=plan_of(direct)).eval()
    planned.load_state_dict(direct.state_dict(), strict=True)
    for other in (model, planned):
        assert plan_of(other) == plan_of(direct) and list(other.state_dict()) == list(direct.state_dict())
        with mq.at(other, "W4A4"), mq.at(direct, "W4A4"):
            assert torch.equal(other(x), direct(x))
    plain = Odd()
    assert mq.restore_float(model) is model and list(model.state_dict()) == list(plain.state_dict())
    for mine, theirs in zip(model.modules(), plain.modules(), strict=True):
        assert type(mine) is type(theirs) and set(vars(mine)) == set(vars(theirs))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain.eval()(x))
