"""Warm starts: full-precision training first, and what a run takes over from it."""

import pytest
import torch

from mebqat_lite import CheckpointError, fit, models, quantize
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import plan_of, quantized_layers

TRAIN = Split(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 10)
DATA = Data("made", TRAIN, None, None, ())


def net(quantizer="dorefa", **options):
    torch.manual_seed(0)
    return quantize(models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=TRAIN.images, **options)


def warm(model, method="mebqat", **options):
    fixed = {"steps": 2, "warm_steps": 3, "batch_size": 16, "progress": False}
    return fit(model, DATA, method, **{**fixed, **options})


def test_a_warm_start_is_full_precision_training_and_then_new_steps():
    model, other = net("lsq"), net("lsq")
    warm(model, recipe=Recipe(quantizer="lsq"))
    fit(other, DATA, "fp", steps=3, batch_size=16, progress=False)
    quantize(other, "lsq", sample=TRAIN.images)  # steps of the trained weights
    fit(other, DATA, "mebqat", steps=2, batch_size=16, progress=False)
    mine = model.state_dict()
    assert all(torch.equal(mine[name], t) for name, t in other.state_dict().items())


def test_a_warm_start_keeps_the_model_s_quantizer():
    model = net("lsq")
    warm(model)
    assert plan_of(model).quantizer == "lsq"


def test_a_warm_start_takes_the_quantizer_from_its_options():
    model = models.digit_net(widths=(4, 4, 4, 4))
    warm(model, quantizer="lsq")
    assert plan_of(model).quantizer == "lsq"


@pytest.mark.parametrize("train", [warm, lambda model: fit(model, DATA, "ptq_mse", steps=1, progress=False)])
def test_layers_kept_by_name_stay_kept(train):
    model = net(keep=["body.1.0"])
    train(model)
    body = {name for name, layer in quantized_layers(model).items() if layer.site.role == "body"}
    assert body == {"stem.0", "body.0.0", "body.2.0", "body.4"}


@pytest.mark.parametrize(("method", "bits"), [("mebcat", ()), ("qat", ()), ("qat", "W2A2,W4A4")])
def test_a_warm_start_refuses_before_it_trains(method, bits):
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"no method|exactly one pair"):
        warm(model, method, bits=bits)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("steps", [0, 3])
def test_a_run_of_one_pair_learns_from_the_labels(steps):
    """A network that stays as it was at the start holds QAT back, and its own full precision gets worse."""
    runs = {}
    for teacher in ("", "labels", "fp", "start"):
        model = net()
        warm(model, "qat", bits="W2A2", warm_steps=steps, teacher=teacher)
        runs[teacher] = model.body[1][0].weight.detach().clone()
    assert torch.equal(runs[""], runs["labels"])
    assert not any(torch.equal(runs[""], runs[other]) for other in ("fp", "start"))


def test_a_cold_run_does_not_continue_a_warm_one(tmp_path):
    warm(net(), path=tmp_path / "run")
    with pytest.raises(CheckpointError):
        warm(net(), path=tmp_path / "run", warm_steps=0)


def test_a_warm_run_continues_both_parts(tmp_path):
    whole, model = net("dorefa"), net("dorefa")
    wanted = warm(whole)
    fit(model, DATA, "fp", steps=3, batch_size=16, progress=False, path=tmp_path / "run.fp")
    got = warm(net(), path=tmp_path / "run")
    assert got.costs == wanted.costs and got.losses == wanted.losses
