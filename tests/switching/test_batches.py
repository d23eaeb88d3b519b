"""Batches and passes of unusual kinds: one image, three dimensions, inference mode, operations in place, no logits."""

import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.measure.evaluate import agreement
from mebqat_lite.switching.stem import StemAndBody, has_stem

X = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def made(x=X, y=Y):
    return Data("made", Split(x, y), Split(x, y), Split(x, y), ("a", "b", "c"))


def net(norm=True):
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4)] if norm else []
    layers = [nn.Conv2d(1, 4, 3), *middle, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


# ---------------------------------------------------------------- dimensions


@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [(nn.Conv1d, nn.BatchNorm1d, (7,)), (nn.Conv2d, nn.BatchNorm2d, (5, 6)), (nn.Conv3d, nn.BatchNorm3d, (5, 5, 6))],
)
def test_convolutions_of_all_dimensions_are_trained_measured_and_kept(conv, norm, shape, tmp_path):
    def build():
        torch.manual_seed(0)
        middle = [conv(3, 4, 3, padding=1), norm(4), nn.ReLU(), conv(4, 4, 3, padding=1), norm(4), nn.ReLU()]
        return nn.Sequential(*middle, nn.AdaptiveAvgPool2d((4, 1)) if len(shape) == 1 else nn.Flatten(2), Mean())

    data = made(torch.rand(24, 3, *shape), torch.arange(24) % 4)
    with pytest.warns(UserWarning, match="no layer to quantize"):  # the first and the last layer are kept
        run = mq.fit(build(), data, "mebqat", quantizer="lsq", steps=2, batch_size=8, lr=0.01, progress=False)
    assert run.costs.backprops == 8
    model = mq.quantize(build(), "lsq", sample=data.train.images, keep=[])
    mq.fit(model, data, "qat", bits="W2A2", steps=2, batch_size=8, lr=0.01, progress=False)
    assert model[3].quantized_weight(2).unique().numel() <= 4
    found = mq.accuracy(mq.recalibrate(model, data.train.images, "W2A2"), data.test, "W2A2", "recalibrated")
    loaded, _ = mq.load_model(mq.save_model(model, tmp_path / "m.safetensors"), build())
    assert mq.accuracy(loaded, data.test, "W2A2", "recalibrated") == found


class Mean(nn.Module):
    """The mean over all positions: (batch, channels, ...) -> (batch, channels)."""

    def forward(self, x):
        return x.flatten(2).mean(2)


# ---------------------------------------------------------------- one image


def test_one_image_is_a_batch_where_norms_see_more_than_one_value():
    model = mq.quantize(net(), "lsq", sample=X)
    mq.fit(model, made(X[:1], Y[:1]), "mebqat", steps=2, batch_size=1, lr=0.01, progress=False)
    assert mq.accuracy(model, Split(X[:1], Y[:1]), "W2A2", "batch") in (0, 100)


@pytest.mark.parametrize("use", ["fit", "batch", "measure"])
def test_one_value_per_channel_is_refused_with_the_cure(use):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)]
    model = mq.quantize(nn.Sequential(*layers), "lsq", sample=X[:, 0, 0]).eval()
    one = Split(X[:1, 0, 0], Y[:1])
    with pytest.raises(ValueError, match=r"one value per channel, which has no variance: .* recalibrated$"):
        if use == "fit":
            mq.fit(model, Data("one", one, one, one, ("a", "b", "c")), "mebqat", steps=1, batch_size=1, progress=False)
        elif use == "batch":
            mq.accuracy(model, one, "W2A2", "batch")
        else:
            mq.recalibrate(model, one.images, "W2A2")
    mq.recalibrate(model, X[:, 0, 0], "W2A2")
    assert mq.accuracy(model, one, "W2A2", "recalibrated") in (0, 100)


@pytest.mark.parametrize(("count", "size"), [(9, 8), (9, 4), (5, 2), (3, 2), (2, 1), (8, 8), (1, 4)])
def test_no_image_is_left_alone_at_the_end(count, size):
    sizes = []
    model = mq.quantize(net(), "lsq", sample=X)
    model[0].register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    mq.accuracy(model, Split(X[:count], Y[:count]), "W2A2", "batch", batch_size=size)
    assert sum(sizes) == count and max(sizes) <= size and (min(sizes) > 1 or 1 in (count, size) or size == 2)


# ---------------------------------------------------------------- inference mode


def test_inference_mode_changes_nothing_and_leaves_a_model_that_learns():
    plain, inferred = net(), net()
    mq.quantize(plain, "lsq", sample=X)
    with torch.inference_mode():
        mq.quantize(inferred, "lsq", sample=X)
        mq.recalibrate(inferred, X, "W2A2,FP")
        found = mq.grid(inferred, made().test, "W2A2,W4A4,FP", norm_stats="batch")
        assert mq.accuracy(inferred, made().test, "W2A2", "recalibrated") >= 0
        assert 0 <= agreement(inferred, X, "W2A2") <= 100
        with mq.at(inferred, "W2A2"):
            expected = inferred(X)
    assert found.equals(mq.grid(plain, made().test, "W2A2,W4A4,FP", norm_stats="batch"))
    with mq.at(mq.recalibrate(plain, X, "W2A2,FP"), "W2A2"):
        assert torch.equal(plain(X), expected)
    runs = [mq.fit(m, made(), "mebqat", steps=2, lr=0.01, progress=False) for m in (plain, inferred)]
    assert runs[0].losses == runs[1].losses


def test_a_network_that_begins_in_place_is_measured_rightly_in_inference_mode():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.sub_(0.5).div_(0.25))

    torch.manual_seed(0)
    model = mq.quantize(InPlace(*net()), "lsq", sample=X)
    expected = mq.grid(model, made().test, "W2A2,W4A4,FP", norm_stats="batch")
    images = X.clone()
    with torch.inference_mode():
        assert mq.grid(model, Split(images, Y), "W2A2,W4A4,FP", norm_stats="batch").equals(expected)
    assert torch.equal(images, X)


# ---------------------------------------------------------------- in place behind a stem


class Begins(StemAndBody):
    """A body that begins with an operation in place."""

    def __init__(self, first):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        rest = [nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
        self.body = nn.Sequential(first, *rest)


@pytest.mark.parametrize("first", [nn.ReLU, nn.LeakyReLU, nn.Hardswish])
def test_a_body_may_begin_in_place(first):
    runs = []
    for inplace in (False, True):
        model = mq.quantize(Begins(first(inplace=inplace)), "lsq", sample=X)
        assert has_stem(model)
        runs.append(mq.fit(model, made(), "mebqat", steps=3, lr=0.01, progress=False).losses)
        runs.append(mq.grid(model, made().test, "W2A2,FP", calibration=X)["mean"].tolist())
    assert runs[:2] == runs[2:]


# ---------------------------------------------------------------- no logits


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda out: (out, out), "a tuple"),
        (lambda out: {"logits": out}, "a dict"),
        (lambda out: out[:, None], r"a tensor of shape \(\d+, 1, 3\)"),
    ],
)
def test_what_is_no_logits_is_refused(wrap, found):
    class Odd(nn.Sequential):
        def forward(self, x):
            return wrap(super().forward(x))

    model = mq.quantize(Odd(*net()), "lsq", sample=X)
    message = rf"the network gives {found}, not logits \(batch, classes\): wrap it in a module that returns them"
    with pytest.raises(TypeError, match=message):
        mq.fit(model, made(), "mebqat", steps=1, progress=False)
    with pytest.raises(TypeError, match=message):
        mq.accuracy(model, made().test, "W2A2", "batch")
