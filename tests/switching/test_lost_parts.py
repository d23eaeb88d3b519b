"""Parts that a model shares with another, lost or got: it is refused, because bits would not reach them."""

import copy
import warnings

import pytest
import torch
from around import DATA, PART, Net, X, conv, made, normed, out
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.state import quantized_layers


def uses(model):
    return (
        lambda: mq.set_bits(model, "W2A2"),
        lambda: mq.accuracy(model, PART, "W2A2"),
        lambda: mq.recalibrate(model, X, "W2A2"),
        lambda: mq.fit(model, DATA, "mebqat", steps=1, progress=False),
        lambda: mq.summary(model),
    )


def shared():
    """Two models with one backbone, quantized one after the other."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), conv(), nn.ReLU(), nn.Flatten())
    first, second = (nn.Sequential(backbone, nn.Linear(64, classes)) for classes in (3, 5))
    mq.quantize(first, "lsq", sample=X)
    mq.quantize(second, "lsq", sample=X)
    return first


def transplanted():
    model = made()
    model.middle[0] = made().middle[0]
    return model


def restored():
    model = made()
    mq.restore_float(model.middle)
    return model


def quantized_below():
    model = made()
    mq.quantize(model.middle, "lsq", sample=torch.rand(4, 4, 6, 6), keep=[])
    return model


def replaced():
    model = made()
    model.middle[0] = conv()
    return model


@pytest.mark.parametrize("lost", [shared, transplanted, restored, quantized_below, replaced])
def test_bits_that_would_not_reach_every_layer_are_refused(lost):
    model = lost()
    words = r"(holds several quantized models|1 of 1 quantized layers were replaced).*: .*quantize "
    for use in uses(model):
        with pytest.raises(ValueError, match=words):
            use()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mq.quantize(model, "lsq", sample=X)  # the cure
    assert len(quantized_layers(model)) == 1 and not torch.equal(out(model, "W2A2"), out(model, "FP"))


def test_an_edge_layer_of_sat_counts_and_a_kept_one_does_not():
    model = mq.quantize(Net(normed(conv())).eval(), "sat", sample=X)
    assert len(quantized_layers(model)) == 3
    model.last = nn.Linear(4, 3)
    with pytest.raises(ValueError, match="1 of 3 quantized layers were replaced"):
        mq.set_bits(model, "W2A2")


def test_a_copy_is_whole():
    model = copy.deepcopy(made())
    mq.set_bits(model, "W2A2")
    assert all(str(layer.bits) == "W2A2" for layer in quantized_layers(model).values())


# ---------------------------------------------------------------- steps that a file lacks


@pytest.mark.parametrize("other", ["lsq_shared", "lsq_authors"])
def test_steps_that_a_file_lacks_start_from_the_weights_that_it_brings(other):
    model, source = made(), made(quantizer=other)
    with torch.no_grad():
        source.middle[0].weight.mul_(20)
        source.middle[0].quant["w2"].mul_(20)
    steps = {name: float(value) for name, value in model.middle[0].quant.items()}
    with pytest.warns(UserWarning, match="activation steps were measured with others"):
        model.load_state_dict(source.state_dict(), strict=False)
    found = {name: float(value) for name, value in model.middle[0].quant.items()}
    assert found["w2"] == float(source.middle[0].quant["w2"])  # what the file has
    for name in steps:
        if name[0] == "w" and name != "w2":
            assert found[name] == pytest.approx(20 * steps[name], rel=1e-5)


# ---------------------------------------------------------------- numbers that are none


def test_what_is_not_a_number_is_no_accuracy_no_statistic_and_no_step():
    bad = X.clone()
    bad[3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="the sample gives first an input that is not finite"):
        mq.quantize(Net(normed(conv())), "lsq", sample=bad)
    with pytest.raises(ValueError, match="is not finite: look for bad values in the images"):
        mq.recalibrate(made(), bad, "W2A2")
    model = made()
    with torch.no_grad():
        model.last.bias[0] = torch.nan
    for use in (mq.accuracy, mq.grid):
        with pytest.raises(ValueError, match=r"logits that are not numbers \(NaN\) at W2A2"):
            use(model, PART, "W2A2")


@pytest.mark.parametrize("images", [X[:0], [], iter(())])
def test_statistics_of_no_images_are_refused(images):
    with pytest.raises(ValueError, match="there are no images to measure norm statistics on"):
        mq.recalibrate(made(), images, "W2A2")
