"""A training or a measurement that could only end in a wrong number is refused, with what to do."""

import math

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite import files
from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.quantizers import Quantizer, register
from mebqat_lite.scale.speed import Fast

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
SHORT = {"steps": 2, "batch_size": 12, "progress": False, "device": "cpu"}


def data(images=IMAGES, labels=LABELS):
    return Data("noise", Split(images, labels), None, None, tuple("abc"))


def net(quantizer="dorefa", classes=3):
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4), classes=classes), quantizer, sample=IMAGES)


def untouched(model, before):
    return all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# ---------------------------------------------------------------- nothing would be trained


class Rounds(Quantizer):
    """A quantizer of one's own without a straight-through gradient."""

    def weight(self, w, bits, params, site):
        return (w.detach() * 2**bits).round() / 2**bits

    def activation(self, x, bits, params, site):
        return x


class Flat(Rounds):
    """A quantizer of one's own whose gradient is the true one of rounding: zero."""

    one_bit = True

    def weight(self, w, bits, params, site):
        return (w * 2**bits).round() / 2**bits


@pytest.mark.parametrize("method", ["qat", "mebqat", "adabits", "any_precision_recursive"])
@pytest.mark.parametrize("quantizer", [Rounds(), Flat()])
def test_weights_that_get_no_gradient_are_refused(method, quantizer, monkeypatch):
    monkeypatch.setattr(mq.quantizers.base, "QUANTIZERS", dict(mq.quantizers.QUANTIZERS))
    register("mine", quantizer)
    model = net("mine")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="the quantizer mine gives weights no gradient, so that nothing would be"):
        mq.fit(model, data(), method, bits="W2A2" if method == "qat" else (), **SHORT)
    assert untouched(model, before)


def test_full_precision_is_trained_whatever_the_quantizer(monkeypatch):
    monkeypatch.setattr(mq.quantizers.base, "QUANTIZERS", dict(mq.quantizers.QUANTIZERS))
    register("mine", Rounds())
    model = net("mine")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    mq.fit(model, data(), "fp", **SHORT)
    assert not untouched(model, before)


def test_a_quantizer_may_leave_the_weights_on_purpose(monkeypatch):
    monkeypatch.setattr(mq.quantizers.base, "QUANTIZERS", dict(mq.quantizers.QUANTIZERS))
    monkeypatch.setattr(Rounds, "leaves_weights", True)
    register("mine", Rounds())
    model = net("mine")
    weight = model.body[0][0].weight.detach().clone()
    mq.fit(model, data(), "qat", bits="W2A2", weight_decay=0.0, **SHORT)
    assert torch.equal(model.body[0][0].weight, weight)


def test_weights_that_somebody_froze_are_nobodys_fault(monkeypatch):
    monkeypatch.setattr(mq.quantizers.base, "QUANTIZERS", dict(mq.quantizers.QUANTIZERS))
    register("mine", Rounds())
    model = net("mine")
    for layer in mq.switching.state.quantized_layers(model).values():
        layer.weight.requires_grad_(False)
    mq.fit(model, data(), "qat", bits="W2A2", **SHORT)


# ---------------------------------------------------------------- labels

BAD = {
    "ignored ones": (torch.where(LABELS == 2, -100, LABELS), "labels are 0 or more, but these go from -100 to 1"),
    "too few": (LABELS[:10], r"24 images need one label each, but the labels have the shape \(10,\)"),
    "a column": (LABELS[:, None], r"have the shape \(24, 1\)"),
    "probabilities": (torch.rand(24), "labels are whole numbers, the index of a class, not torch.float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_labels_that_cannot_be_are_refused_before_any_step(name):
    labels, message = BAD[name]
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(DataError, match=message):
        mq.fit(model, data(labels=labels), **SHORT)
    for measure in (mq.accuracy, mq.grid):
        with pytest.raises(DataError, match=message):
            measure(model, Split(IMAGES, labels), "W2A2", norm_stats="batch")
    assert untouched(model, before)


def test_a_network_of_fewer_outputs_than_classes_is_refused():
    model = net(classes=3)
    split = Split(IMAGES, torch.arange(24) % 10)
    with pytest.raises(DataError, match="labels go up to 9, but this network has 3 outputs"):
        mq.grid(model, split, "W2A2,FP", norm_stats="batch")
    with pytest.raises(DataError, match="labels go up to 9"):
        mq.accuracy(model, split, "FP", "batch")
    assert 0 <= mq.accuracy(model, Split(IMAGES, LABELS), "FP", "batch") <= 100


def test_no_images_have_no_labels_to_check():
    empty = Split(IMAGES[:0], LABELS[:0])
    assert empty.check() is empty


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize(("rate", "steps"), [(math.inf, 1), (math.inf, 2), (1e30, 2)])
def test_a_run_that_diverges_is_an_error_and_leaves_the_checkpoint_before(rate, steps, tmp_path):
    path = tmp_path / "run"
    with pytest.raises(mq.TrainingError, match=r"not finite after step \d: lower lr|the loss is"):
        mq.fit(net(), data(), path=path, save_every=1, **SHORT | {"steps": steps, "lr": rate, "clip": 1e30})
    if path.exists():
        tensors, _ = files.read(path, "training")
        assert all(t.isfinite().all() for name, t in tensors.items() if name.startswith("model/"))


def test_a_norm_statistic_that_is_not_finite_counts_too(tmp_path):
    model = net()
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_var.fill_(math.inf)
    with pytest.raises(mq.TrainingError, match=r"running_var is not finite after step 2"):
        mq.fit(model, data(), "fp", path=tmp_path / "run", **SHORT)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- narrow and wide types


@pytest.mark.parametrize("method", ["fp", "mebqat", "qat"])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_refused_with_the_way_to_mixed_precision(dtype, quantized, method):
    torch.manual_seed(0)
    model = (net() if quantized else mq.models.digit_net(widths=(4, 4, 4, 4), classes=3)).to(dtype)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    bits = {"bits": "W4A4"} if method == "qat" else {}
    with pytest.raises(ValueError, match=rf"numbers of {dtype}: train model.float\(\), .*passes=Fast\(amp=True\)$"):
        mq.fit(model, data(), method, **SHORT, **bits)
    assert untouched(model, before) and len(model.state_dict()) == len(before)
    mq.fit(model.float(), data(), method, **SHORT, **bits, passes=Fast(amp=True))
    assert not untouched(model, before)


FEW = {"mebqat": {"batch_size": 12}, "pn": {"ways": 3, "shots": 2, "queries": 2}}
FEW["fomaml"] = FEW["pn"] | {"tasks": 2, "inner_steps": 1}


@pytest.mark.parametrize("kind", ["float32", "float64", "bytes"])
@pytest.mark.parametrize("method", list(FEW))
def test_float64_networks_train_on_images_of_any_type(method, kind):
    """The same losses as in float32, up to its rounding."""
    images = (IMAGES * 255).to(torch.uint8)
    images = images if kind == "bytes" else images.to(getattr(torch, kind)) / 255
    losses, once = {}, {"steps": 1, "lr": 1e-3, "progress": False, "device": "cpu"}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = mq.models.conv4(channels=4, image_size=16, classes=None if method == "pn" else 3)
        big = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
        model = mq.quantize(model.to(dtype), "lsq", sample=big)
        losses[dtype] = mq.fit(model, data(big), method, **FEW[method], **once).losses
        assert next(model.parameters()).dtype == dtype
    assert losses[torch.float64] == pytest.approx(losses[torch.float32], rel=1e-3)


# ---------------------------------------------------------------- what a run cannot begin with


@pytest.mark.parametrize("method", ["qat", "adabits"])
@pytest.mark.parametrize("quantizer", ["lsq", "lsq_shared", "sat"])
def test_bits_that_the_quantizer_does_not_define_are_named_as_such(method, quantizer):
    model = net(quantizer)
    with pytest.raises(ValueError, match=f"^{quantizer} defines no 1-bit values; its lowest is 2 bits"):
        mq.fit(model, data(), method, bits="W1A1", **SHORT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_refused_as_such(mode):
    model = net("lsq")
    with mode(), pytest.raises(ValueError, match=r"training needs gradients: call fit outside of torch\.no_grad"):
        mq.fit(model, data(), "mebqat", **SHORT)


def test_a_model_without_anything_to_train_is_refused():
    model = net("lsq").requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of this model is trained: set requires_grad"):
        mq.fit(model, data(), "mebqat", **SHORT)


def test_weights_that_became_computed_are_trained():
    model = net("lsq")
    nn.utils.parametrizations.weight_norm(model.body[0][0])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    mq.fit(model, data(), "mebqat", **SHORT)
    assert not untouched(model, before)


@pytest.mark.parametrize("method", ["mebqat", "mebqat_in_turn"])
def test_norm_sets_of_another_method_are_refused_before_the_first_step(method):
    model = net("lsq")
    mq.fit(model, data(), "adabits", bits="W2A2,FP", **SHORT)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError, match="visits pairs for which this model has no norm sets: quantize it again"):
        mq.fit(model, data(), method, **SHORT)
    assert untouched(model, before) and not model.training
    mq.quantize(model, "lsq", sample=IMAGES)
    mq.fit(model, data(), method, **SHORT)


def test_a_clip_at_zero_would_train_nothing():
    with pytest.raises(ValueError, match=r"clip must be greater than 0, not 0\.0: nothing would be trained"):
        mq.fit(net(), data(), "mebqat", clip=0.0, **SHORT)


def test_labels_of_other_whole_numbers_are_taken_and_lists_are_refused():
    runs = [mq.fit(net(), data(labels=labels), "mebqat", **SHORT).losses for labels in (LABELS, LABELS.int())]
    assert runs[0] == runs[1]
    with pytest.raises(DataError, match=r"images and labels are tensors, not Tensor and list: make them with torch"):
        mq.fit(net(), data(labels=LABELS.tolist()), "mebqat", **SHORT)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_has_at_least_one_image(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
        mq.accuracy(net(), Split(IMAGES, LABELS), "W2A2", "batch", batch_size=size)


@pytest.mark.parametrize("method", ["mebqat_in_turn", "qat"])
def test_the_next_higher_pair_cannot_teach_where_a_step_has_one_pair(method):
    with pytest.raises(
        ValueError, match=r"teacher=next is the next higher pair of a step, but .* visits one pair in a"
    ):
        mq.fit(net(), data(), method, teacher="next", **({"bits": "W2A2"} if method == "qat" else {}), **SHORT)
