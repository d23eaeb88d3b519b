"""A quantized model inside another module, and modules that wrap it: switched, described, trained and saved."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.switching.state import plan_of, quantized_layers, setting_of, unwrapped

X = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PART = Split(X, torch.arange(32) % 3)
DATA = Data("made", PART, PART, PART, ("a", "b", "c"))


class Scale(nn.Module):
    """Shifts and scales images, as models that take raw images do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, x):
        return (x - self.mean) / 0.25


class Named(nn.Module):
    """Holds a network under a name and calls it by keyword."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)


def net():
    torch.manual_seed(0)
    return mq.models.digit_net(widths=(4, 4, 4, 4), classes=3)


WRAPPERS = {
    "Sequential": (lambda model: nn.Sequential(Scale(), model), "1."),
    "Named": (Named, "network."),
    "DataParallel": (nn.DataParallel, "module."),
    "AveragedModel": (AveragedModel, "module."),
    "twice": (lambda model: Named(nn.Sequential(model)), "network.0."),
}
PLAIN = ("DataParallel", "AveragedModel")  # what is saved of these is the model inside


@pytest.fixture(params=list(WRAPPERS))
def wrapped(request):
    wrap, prefix = WRAPPERS[request.param]
    return request.param, wrap(mq.quantize(net(), "lsq", sample=X)).eval(), prefix


def test_a_wrapped_model_is_switched_and_described_by_the_names_it_has_there(wrapped):
    _, model, prefix = wrapped
    names = [f"{prefix}body.{i}.0" for i in range(3)]
    assert list(quantized_layers(model)) == names
    assert [site.name for site in plan_of(model).sites if site.role == "body"] == names
    assert all(name in mq.summary(model) for name in names) and "3 of 5 layers quantized" in mq.summary(model)
    inner = model.get_submodule(prefix[:-1])
    with torch.no_grad(), mq.at(inner, {"*": "W8A8", "body.1.0": "W2A2"}, "batch"):
        expected = model(X)
    with torch.no_grad(), mq.at(model, {"*": "W8A8", f"{prefix}body.1.0": "W2A2"}, "batch"):
        assert torch.equal(model(X), expected)
        assert str(quantized_layers(model)[names[1]].bits) == "W2A2"
    with pytest.raises(ValueError, match="no quantized layer"), mq.at(model, {"body.1.0": "W2A2"}):
        pass


def test_a_wrapped_model_is_trained_measured_and_quantized_anew(wrapped):
    _, model, prefix = wrapped
    before = copy.deepcopy(model.state_dict())
    run = mq.fit(model, DATA, "mebqat", steps=2, batch_size=16, lr=0.01, progress=False)
    assert run.costs.backprops == 8 and not torch.equal(
        model.state_dict()[f"{prefix}body.0.0.weight"], before[f"{prefix}body.0.0.weight"]
    )
    found = mq.grid(model, PART, "W2A2,FP", calibration=X)
    assert list(found.index) == ["W2A2", "FP"]
    own = mq.grid(model.get_submodule(prefix[:-1]), PART, "W2A2,FP", calibration=X)
    assert isinstance(model[0] if isinstance(model, nn.Sequential) else None, Scale) or found.equals(own)
    mq.quantize(model, "dorefa", sample=X)
    assert plan_of(model).quantizer == "dorefa" and setting_of(model) is setting_of(model.get_submodule(prefix[:-1]))


def test_a_wrapped_model_is_saved_and_loaded(wrapped, tmp_path):
    name, model, _ = wrapped
    with torch.no_grad(), mq.at(model, "W2A2", "batch"):
        expected = model(X)
    path = mq.save_model(model, tmp_path / "model.safetensors")
    if name in PLAIN:
        loaded, _ = mq.load_model(path)  # the architecture is known, because the wrapper is left out
    else:
        with pytest.raises(mq.CheckpointError, match="holds a model of your own: pass model= to load into"):
            mq.load_model(path)
        loaded, _ = mq.load_model(path, WRAPPERS[name][0](net()))
    with torch.no_grad(), mq.at(loaded, "W2A2", "batch"):
        assert torch.equal(loaded(X), expected)


def test_averaged_weights_are_told_from_those_that_statistics_belong_to():
    model = mq.recalibrate(mq.quantize(net(), "lsq", sample=X).eval(), X, "W2A2")
    averaged = AveragedModel(model)
    with mq.at(averaged, "W2A2", "recalibrated"):  # a copy of the same weights
        pass
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    mq.set_bits(averaged, "W2A2")
    with pytest.warns(UserWarning, match="weights have changed since the norm statistics were measured: call recal"):
        mq.set_norm_stats(averaged, "recalibrated")


def test_the_model_inside_is_found_and_others_are_their_own():
    model = net()
    assert unwrapped(nn.DataParallel(AveragedModel(model))).state_dict().keys() == model.state_dict().keys()
    holder = Named(model)
    assert unwrapped(holder) is holder and unwrapped(model) is model


@pytest.mark.slow
def test_a_compiled_model_is_saved_under_its_plain_names(tmp_path):
    model = mq.quantize(net(), "lsq", sample=X).eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad(), mq.at(compiled, "W2A2", "batch"):
        expected = model(X)
        assert torch.equal(compiled(X), expected)
    loaded, _ = mq.load_model(mq.save_model(compiled, tmp_path / "compiled.safetensors"))
    with torch.no_grad(), mq.at(loaded, "W2A2", "batch"):
        assert torch.equal(loaded(X), expected)


# ---------------------------------------------------------------- statistics know their weights


def changed_by_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(X), PART.labels).backward()
    optimizer.step()


def changed_by_hand(model):
    with torch.no_grad():
        model.body[0][0].weight.add_(0.1)


def changed_in_a_copy(model):
    with torch.no_grad():
        model.body[0][0].weight.mul_(2)


@pytest.mark.parametrize("change", [changed_by_step, changed_by_hand, changed_in_a_copy])
def test_weights_that_change_after_statistics_were_measured_are_said(change, recwarn):
    model = mq.recalibrate(mq.quantize(net(), "lsq", sample=X).eval(), X, "W2A2")
    with mq.at(model, "W2A2", "recalibrated"):
        model(X)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.clone())  # the same values
    with mq.at(model, "W2A2", "recalibrated"):
        model(X)
    assert not [w for w in recwarn if "recalibrate again" in str(w.message)]
    change(model)
    with pytest.warns(UserWarning, match="call recalibrate again"), mq.at(model, "W2A2", "recalibrated"):
        model(X)
    with mq.at(mq.recalibrate(model, X, "W2A2"), "W2A2", "recalibrated"):
        model(X)


def test_statistics_that_come_with_their_weights_are_right(tmp_path, recwarn):
    model = mq.recalibrate(mq.quantize(net(), "lsq", sample=X).eval(), X, "W2A2")
    other = mq.quantize(net(), "lsq", sample=X).eval()
    mq.recalibrate(other, X.flip(0) * 0.5, "W2A2")
    other.load_state_dict(model.state_dict())
    with torch.no_grad(), mq.at(other, "W2A2", "recalibrated"), mq.at(model, "W2A2", "recalibrated"):
        assert torch.equal(other(X), model(X))
    assert not [w for w in recwarn if "recalibrate again" in str(w.message)]


def test_each_pair_knows_the_weights_that_it_was_measured_with(tmp_path, recwarn):
    model = mq.recalibrate(mq.quantize(net(), "lsq", sample=X).eval(), X, "W2A2")
    with torch.no_grad():
        model.body[0][0].weight.mul_(2)
    mq.recalibrate(model, X, "W4A4")
    for use in (
        lambda: mq.at(model, "W2A2", "recalibrated").__enter__(),
        lambda: mq.save_model(model, tmp_path / "model.safetensors"),
        lambda: mq.save_packed(model, tmp_path / "packed.safetensors", "W2A2,W4A4"),
    ):
        with pytest.warns(UserWarning, match="call recalibrate again for W2A2$"):
            use()
    mq.set_norm_stats(model, "recalibrated")
    with pytest.warns(UserWarning, match="call recalibrate again for W2A2$"):
        mq.set_bits(model, "W2A2")
    recwarn.clear()
    with mq.at(model, "W4A4"):
        model(X)
    mq.save_packed(model, tmp_path / "packed.safetensors", "W2A2,W4A4", calibration=X)  # measures W2A2 again
    mq.save_model(model, tmp_path / "model.safetensors")
    assert not [w for w in recwarn if "recalibrate again" in str(w.message)]
