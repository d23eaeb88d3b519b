"""Named set-ups."""

from mebqat_lite import models
from mebqat_lite.experiments import frozen
from mebqat_lite.experiments.setups import SETUPS, Setup


def test_the_paper_s_set_ups_build_and_count_their_steps():
    """ECCV 2022, section 4.1: 400, 600 and 100 epochs in batches of 256; 4.2: 75 x 800 steps of MAML, 20,000 of PN."""
    steps = {name: setup.recipe.for_images(45_000).steps for name, setup in SETUPS.items()}
    epochs = {"cifar10-preact_resnet20": 400, "cifar10-mobilenet_v2": 600, "svhn-cnn8": 100}
    wanted = {"digits": 300} | {name: count * (45_000 // 256) for name, count in epochs.items()}
    for data in ("omniglot", "miniimagenet"):
        wanted |= {f"{data}-maml": 75 * 800, f"{data}-pn": 20_000}
    assert {name: steps[name] for name in wanted} == wanted
    for setup in SETUPS.values():
        models.build(setup.model, **setup.options)


def test_the_setup_names_what_it_measures():
    assert Setup().episodes == 600 == frozen.EPISODES
