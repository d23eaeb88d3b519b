"""Named set-ups."""

import pytest
import torch

from mebqat_lite import datasets, methods, models, quantize
from mebqat_lite.bits import Bits
from mebqat_lite.experiments import frozen
from mebqat_lite.experiments.setups import SETUPS, Setup
from mebqat_lite.samplers import InTurn


def test_the_paper_s_set_ups_build_and_count_their_steps():
    """ECCV 2022, section 4.1: 400, 600 and 100 epochs in batches of 256; 4.2: 75 x 800 steps of MAML, 20,000 of PN."""
    steps = {name: setup.recipe.for_images(45_000).steps for name, setup in SETUPS.items()}
    epochs = {"cifar10-preact_resnet20": 400, "cifar10-mobilenet_v2": 600, "svhn-cnn8": 100}
    wanted = {"digits": 1200, "digits-wide": 300, "glyph-classes": 1200, "paint": 1600, "glyphs-pn": 1600}
    wanted |= {name: count * (45_000 // 256) for name, count in epochs.items()}
    for data in ("omniglot", "miniimagenet"):
        wanted |= {f"{data}-maml": 75 * 800, f"{data}-pn": 20_000}
    assert {name: steps[name] for name in wanted} == wanted
    for setup in SETUPS.values():
        models.build(setup.model, **setup.options)


def test_resnet20_visits_the_widths_of_double_rounding_in_turn():
    setup = SETUPS["cifar10-resnet20"]
    recipe = setup.recipe
    model = quantize(models.build(setup.model), recipe.quantizer, sample=torch.rand(2, 3, 32, 32))
    sampler = methods.get(setup.method).sampler(model, recipe)
    assert sampler.guaranteed == [Bits(32, 32), Bits(2, 2)] and isinstance(sampler, InTurn)
    pairs = {Bits(w, a) for w in (2, 4, 6, 8) for a in (2, 4, 6, 8, 32)} | {Bits(32, 32)}
    assert set(sampler.pool) == pairs and len(sampler.pool) == 21
    assert recipe.for_images(45_000).steps == 200 * 175 and recipe.schedule == "cosine"
    assert (recipe.pad, recipe.flip, recipe.warm_steps) == (4, True, 0)


@pytest.mark.parametrize(("name", "parameters"), [("digits", 3_508), ("digits-wide", 23_738)])
def test_the_digits_have_a_narrow_and_a_wide_network(name, parameters):
    setup = SETUPS[name]
    model = setup.build(datasets.load(setup.data))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert setup.model == model.spec["name"] and setup.options == {}


def test_a_set_up_builds_the_wide_network_for_its_data():
    model = Setup("glyph_classes", "digit_net_wide").build(datasets.load("glyph_classes"))
    assert model.spec == {"name": "digit_net_wide", "options": {"classes": 32, "in_channels": 1}}


def test_glyph_classes_take_a_small_network_and_1200_back_propagations_of_mebqat_in_turn():
    setup = SETUPS["glyph-classes"]
    data = datasets.load(setup.data)
    model = quantize(setup.build(data), setup.recipe.quantizer, sample=data.train.images[:8])
    assert [tuple(weight.shape) for weight in model.parameters() if weight.dim() == 2] == [(32, 16)]
    assert model(data.train.images[:5] / 255).shape == (5, 32)
    recipe, digits = setup.recipe, SETUPS["digits"].recipe
    assert (recipe.warm_steps, recipe.steps, setup.method) == (300, 1200, "mebqat_in_turn")
    assert recipe == digits.with_options(batch_size=32, lr=0.03, pad=1)


def test_the_setup_names_what_it_measures():
    assert Setup().episodes == 600 == frozen.EPISODES
