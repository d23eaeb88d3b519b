"""What the sample tells: for inputs of any form, whatever the model does with them, and without a trace."""

import copy

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.norms import is_recalibrated
from mebqat_lite.switching.state import plan_of, quantized_layers

X = torch.rand(16, 4, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.5


def sites(model):
    return {site.name: site for site in plan_of(model).sites}


# ---------------------------------------------------------------- inputs of any form


class Two(nn.Module):
    """A network with two inputs, or with one dictionary; it gives logits and features."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.norm, self.right = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(4, 5)
        self.mid, self.last = nn.Linear(5, 5), nn.Linear(5, 2)
        self.form = form

    def forward(self, a, b=None):
        a, b = (a["a"], a["b"]) if isinstance(a, dict) else (a, b)
        h = self.mid((self.norm(self.left(a)) + self.right(b)).relu())
        return {"logits": self.last(h)} if self.form == "dict" else (self.last(h), h)


A, B = torch.rand(8, 3), torch.rand(8, 4)
FORMS = {
    "positions": lambda model: model(A, B),
    "keywords": lambda model: model(b=B, a=A),
    "dict": lambda model: model({"a": A, "b": B}),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("quantizer", ["lsq", "least_squares"])
def test_a_function_runs_a_model_with_inputs_of_its_own(form, quantizer):
    run, float_model = FORMS[form], Two(form).eval()
    model = mq.quantize(copy.deepcopy(float_model), quantizer, sample=run, keep=["last"])
    assert [name for name, layer in quantized_layers(model).items()] == ["left", "right", "mid"]
    assert sites(model)["mid"].mean_abs > 0 and not sites(model)["mid"].signed

    def logits(model):
        out = run(model)
        return out["logits"] if form == "dict" else out[0]

    with torch.no_grad():
        assert torch.equal(logits(model), logits(float_model))
        mq.recalibrate(model, run, "W2A2,W4A4")
        assert is_recalibrated(model, "W2A2") and is_recalibrated(model, "W4A4")
        with mq.at(model, "W2A2", "measure"):
            run(model)
        [(mean, var)] = [norm.take_measured()["W2A2"] for norm in model.modules() if isinstance(norm, nn.BatchNorm1d)]
        assert torch.equal(model.norm.get_buffer("stats_W2A2"), torch.stack([mean, var]))


def test_samples_that_are_none_are_refused_with_what_to_give():
    net = nn.Sequential(nn.Linear(3, 3))
    for sample in (torch.rand(0, 3), [], iter(())):
        with pytest.raises(ValueError, match="the sample has no images: give some hundred of them"):
            mq.quantize(net, sample=sample)
    with pytest.raises(TypeError, match=r"not dict; where a function .* give lambda model: model\(\*\*batch\)"):
        mq.quantize(net, sample={"x": torch.rand(4, 3)})
    with pytest.raises(TypeError, match=r"a loader must yield tensors .* not dict; .* lambda model"):
        mq.quantize(net, sample=[{"x": torch.rand(4, 3)}])
    with pytest.raises(TypeError, match=r"not str$"):
        mq.quantize(net, sample="images")


def test_tokens_stay_whole_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
    tokens = torch.randint(9, (10, 3))
    mq.quantize(model, "lsq", sample=tokens, keep=["4"])
    mq.recalibrate(model, tokens, "W2A2")
    split = mq.datasets.base.Split(tokens, torch.arange(10) % 3)
    assert 0 <= mq.accuracy(model, split, "W4A4") <= 100


# ---------------------------------------------------------------- whatever the model does with them


class InPlace(nn.Module):
    """Overwrites a tensor after a layer has read it."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)
        self.change = change

    def forward(self, x):
        x = self.a(x)
        y = self.b(x)
        return self.c(self.change(x)[..., 1:-1, 1:-1] + y)


@pytest.mark.parametrize("change", [torch.relu_, lambda x: x.abs_(), lambda x: x.zero_()])
@pytest.mark.parametrize("quantizer", ["lsq", "least_squares"])
def test_a_tensor_that_is_overwritten_counts_as_it_was_read(change, quantizer):
    def copied(x):
        return change(x.clone())

    there, apart = (mq.quantize(InPlace(how), quantizer, sample=X, keep=[]) for how in (change, copied))
    assert sites(there)["b"].signed and sites(there) == sites(apart)
    for name, value in there.state_dict().items():
        assert torch.equal(value, apart.state_dict()[name]), name


def test_layers_take_their_input_by_name():
    class Named(nn.Sequential):
        def forward(self, x):
            for module in self:
                x = module(input=x)
            return x

    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2)]
    named = mq.quantize(Named(*layers).eval(), "lsq", sample=X)
    plain = mq.quantize(nn.Sequential(*copy.deepcopy(layers)).eval(), "lsq", sample=X)
    assert sites(named) == sites(plain)
    with mq.at(named, "W2A2"), mq.at(plain, "W2A2"), torch.no_grad():
        assert torch.equal(named(X), plain(X))


# ---------------------------------------------------------------- without a trace


class Lazy(nn.Module):
    """Makes, replaces and changes buffers when it runs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))
        self.register_buffer("none", None)

    def forward(self, x):
        if "mask" not in self._buffers:
            self.register_buffer("mask", torch.ones(4))
        self.calls += 1
        self.last = x.detach().mean((0, 1))
        self.none = torch.ones(2)
        return self.layer(x * self.mask)


def test_the_sample_leaves_no_buffers_behind():
    model = Lazy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mq.quantize(model, sample=torch.rand(3, 4), keep=[])
    after = {name: value for name, value in model.state_dict().items() if ".quant" not in name}
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.none is None
    model(torch.rand(3, 4))
    assert model.calls == 1 and "mask" in model._buffers


@pytest.mark.parametrize("name", ["setting", "plan", "spec", "bits", "quantizer", "stem", "body"])
def test_a_model_keeps_attributes_of_any_name(name, tmp_path):
    def net():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        setattr(model, name, {"mine": 1})
        return model

    model = mq.quantize(net(), "lsq", sample=X[:, 0, 0, :4])
    assert getattr(model, name) == {"mine": 1}
    with mq.at(model, "W2A2"):
        expected = model(X[:, 0, 0, :4])
    loaded, _ = mq.load_model(mq.save_model(model, tmp_path / "own.safetensors"), net())
    with mq.at(loaded, "W2A2"):
        assert torch.equal(loaded(X[:, 0, 0, :4]), expected)
    assert getattr(mq.restore_float(model), name) == {"mine": 1}


@pytest.mark.parametrize(("layer", "name"), [(0, "site"), (2, "setting"), (1, "sets")])
def test_a_layer_with_an_attribute_that_is_needed_is_refused_before_anything_changes(layer, name):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    setattr(model[layer], name, "mine")
    with pytest.raises(ValueError, match=rf"^{layer} has an attribute '{name}' of its own, which quantize needs"):
        mq.quantize(model, sample=torch.rand(3, 4))
    assert [type(module) for module in model] == [nn.Linear, nn.BatchNorm1d, nn.Linear]
