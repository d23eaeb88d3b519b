"""The recipe: what its values may be, and that no option is given to a method that does not read it."""

import dataclasses
import math

import pytest
import torch

from mebqat_lite import METHODS, Bits, Recipe, fit, methods, models, quantize
from mebqat_lite.bits import parse_all
from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.experiments.setups import check_classes

IMAGES = torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TRAIN = Split(IMAGES, torch.arange(48) % 4)
DATA = Data("made", TRAIN, TRAIN, TRAIN, tuple("abcd"))
SHORT = {"steps": 1, "progress": False, "device": "cpu"}


def net(quantizer="dorefa"):
    torch.manual_seed(0)
    return quantize(models.digit_net(classes=4, widths=(4, 4, 4, 4)), quantizer, sample=IMAGES)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("steps", 10**22, f"steps must be at most 2,147,483,647, not {10**22}"),
        ("m", 2**31, "m must be at most 2,147,483,647, not 2147483648"),
        ("pad", -1, "pad must be at least 0, not -1"),
        ("seed", -1, "seed must be at least 0, not -1"),
        ("test_steps", -2, "test_steps must be at least 0, not -2"),
        ("ways", 0, "ways must be at least 1, not 0"),
        ("epochs", -1, "epochs must be at least 0, not -1"),
        ("lr", -0.1, "lr must be at least 0, not -0.1"),
        ("lr", math.nan, "lr must be at least 0, not nan"),
        ("gamma", -1.0, "gamma must be at least 0, not -1.0"),
        ("inner_lr", -1.0, "inner_lr must be at least 0, not -1.0"),
        ("milestones", 1, r"milestones are fractions of the steps, as \(0.5, 0.75\), not \(1,\)"),
        ("milestones", (0.5, 150), r"not \(0.5, 150\)"),
        ("milestones", 0.0, r"not \(0.0,\)"),
        ("milestones", None, r"not \(None,\)"),
        ("exclude", None, r"exclude must hold some of the widths .*, not \(None,\)"),
        ("exclude", [[3]], r"exclude must hold some of the widths .*, not \(\[3\],\)"),
        ("exclude", (1, 2, 3, 4, 5, 6, 7, 8, 16), "exclude must hold some of the widths"),
        ("bits", 5, "5 is no bitwidth pair; write W2A4"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_may_be(option, value, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{option: value})


def test_the_least_and_the_largest_values_are_fine():
    recipe = Recipe(steps=2**31 - 1, m=1, pad=0, seed=0, lr=0.0)
    assert (recipe.steps, recipe.m, recipe.pad, recipe.seed) == (2147483647, 1, 0, 0)
    assert Recipe(milestones=0.5).milestones == (0.5,) and Recipe(milestones=[]).milestones == ()
    assert Recipe(exclude=3).exclude == (3,) and set(Recipe(exclude={3, 5}).exclude) == {3, 5}
    assert Recipe(bits=Bits(2, 4)).bits == ("W2A4",) and parse_all(Bits(2, 4)) == [Bits(2, 4)]
    assert Recipe(clip=math.inf).clip == math.inf


def test_steps_replace_epochs_and_both_are_refused():
    long = Recipe(epochs=400)
    assert long.with_options(steps=5).for_images(1000).steps == 5
    assert long.with_options(lr=0.1).for_images(1280).steps == 4000
    for options in ({"steps": 5, "epochs": 2}, {"epochs": 1, "steps": 1}):
        with pytest.raises(ValueError, match="give steps or epochs, not both"):
            long.with_options(**options)
    assert len(fit(net(), DATA, "fp", long, **SHORT).losses) == 1


# ---------------------------------------------------------------- options that a method does not read

UNREAD = [
    ("mebqat", {"bits": "W2A2"}, "mebqat does not use bits with this recipe: leave it out"),
    ("mebqat", {"bits": "W2A2,W4A4", "ways": 3}, "mebqat does not use bits, ways with"),
    ("mebqat", {"sandwich": False}, "mebqat does not use sandwich"),  # dorefa visits its lowest pair anyway
    ("mebqat", {"gamma": 0.5}, "mebqat does not use gamma"),
    ("mebqat", {"schedule": "constant", "milestones": (0.5,)}, "mebqat does not use milestones"),
    ("fp", {"m": 3}, "fp does not use m"),
    ("fp", {"teacher": "labels"}, "fp does not use teacher"),
    ("ptq_mse", {"warm_steps": 3}, "ptq_mse does not use warm_steps"),
    ("qat", {"bits": "W2A2", "exclude": 3}, "qat does not use exclude"),
    ("adabits", {"per_layer": True}, "adabits does not use per_layer"),
    ("pn", {"batch_size": 8, "ways": 4, "queries": 2}, "pn does not use batch_size"),
    ("mebqat_maml", {"m": 3, "ways": 4, "queries": 2}, "mebqat_maml does not use m"),
]


@pytest.mark.parametrize(("method", "options", "message"), UNREAD)
def test_an_option_that_a_method_does_not_read_is_refused_before_training(method, options, message):
    model = net("lsq" if method == "mebqat_maml" else "dorefa")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        fit(model, DATA, method, **options, **SHORT)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "options", "quantizer"),
    [
        ("mebqat", {"m": 3, "exclude": 3, "teacher": "next", "pad": 1, "flip": True, "warm_steps": 1}, "dorefa"),
        ("mebqat", {"sandwich": False}, "lsq"),
        ("mebqat", {"schedule": "milestones", "gamma": 0.5, "milestones": (0.5,)}, "dorefa"),
        ("adabits", {"bits": "W2A2,FP"}, "dorefa"),
        ("qat", {"bits": "W2A2", "warm_steps": 1}, "dorefa"),
        ("fp", {"bits": (), "m": 4, "warm_steps": 0, "teacher": ""}, "dorefa"),  # the defaults ask for nothing
        ("mebqat_pn", {"ways": 4, "shots": 1, "queries": 2, "m": 3}, "lsq"),
    ],
)
def test_an_option_that_a_method_reads_is_taken(method, options, quantizer):
    assert len(fit(net(quantizer), DATA, method, **options, **SHORT).losses) == 1


def test_a_whole_recipe_may_hold_more_than_a_method_reads():
    assert len(fit(net(), DATA, "fp", Recipe(m=3, bits="W2A2", warm_steps=2), **SHORT).losses) == 1


def test_a_method_of_one_s_own_reads_what_it_looks_up(monkeypatch):
    def sampler(model, recipe):
        return methods.Listed(["FP", "W4A4"] * recipe.ways)

    monkeypatch.setitem(METHODS, "mine", dataclasses.replace(METHODS["mebqat"], sampler=sampler))
    assert len(fit(net(), DATA, "mine", ways=2, **SHORT).losses) == 1
    with pytest.raises(ValueError, match="mine does not use m with"):
        fit(net(), DATA, "mine", ways=2, m=3, **SHORT)


# ---------------------------------------------------------------- classes that are not trained


@pytest.mark.parametrize(("unseen", "count"), [([4], 1), ([4, 5, 5, 0], 2)])
def test_classes_that_are_only_tested_need_a_method_for_new_classes(unseen, count):
    data = Data("made", TRAIN, TRAIN, Split(IMAGES[: len(unseen)], torch.tensor(unseen)), tuple("abcdef"))
    for method in ("mebqat", "fp", "qat"):
        with pytest.raises(DataError, match=f"{method} learns fixed classes, and {count} classes of made are only in"):
            check_classes(method, data)
    check_classes("mebqat_pn", data)
    check_classes("mebqat", DATA)
