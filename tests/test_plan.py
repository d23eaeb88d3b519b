"""The page on what large runs need: it is the script's, and its arithmetic is checked by hand."""

import inspect
import json

import pytest

from benchmarks import plan
from benchmarks.steps import CASES
from mebqat_lite import models
from mebqat_lite.bits import candidates
from mebqat_lite.experiments import setups
from mebqat_lite.experiments.setups import SETUPS
from mebqat_lite.quantizers import QUANTIZERS

MEASURED = json.loads((plan.FOLDER / "results.json").read_text())["measured"]


def test_the_page_is_what_the_script_writes():
    assert (plan.FOLDER / "PLAN.md").read_text() == plan.page()


@pytest.mark.parametrize("name", plan.RUNS)
def test_runs_are_those_of_the_recipes(name):
    run = plan.RUNS[name]
    if name not in SETUPS:
        assert run.pairs == len(candidates(QUANTIZERS[CASES[run.case].quantizer].one_bit))
        return
    setup, recipe = SETUPS[name], SETUPS[name].recipe
    assert (run.epochs, plan.BATCH) == (recipe.epochs, recipe.batch_size)
    assert f"{recipe.for_images(run.images).steps:,}" in plan.table({name: 1.0})
    assert run.visits == (1 if setup.method == "mebqat_in_turn" else recipe.m)
    visited = [pair for pair in QUANTIZERS[recipe.quantizer].pairs() if not {pair.w, pair.a} & set(recipe.exclude)]
    assert run.pairs == len(visited)
    build = CASES[run.case].build if run.build is None else run.build
    assert str(build()) == str(models.build(setup.model, **setup.options))
    assert run.build is not None or CASES[run.case].quantizer == recipe.quantizer


def test_a_run_in_turn_sends_an_image_through_one_pair():
    """ResNet-20 has 40,551,040 multiplications; PreActResNet-20, width 1, has two 1 x 1 shortcuts more."""
    once, apart = plan.seconds_of("cifar10-resnet20", plan.images_per_second("cifar10-resnet20"))
    second = MEASURED["mebqat_step/preact_resnet20_w1"]["seconds"][0]  # of a step of 64 images at 4 pairs
    more = (16 * 32 * 16**2 + 32 * 64 * 8**2) / 40_551_040
    assert (once, apart) == pytest.approx((50_000 * 200 * second / (64 * 4) / (1 + more), once * 21))
    assert f"One run takes {plan.duration(once)} on two cores" in inspect.getsource(setups)


def test_a_line_is_arithmetic_on_the_measured_step():
    second = MEASURED["mebqat_step/cnn8"]["seconds"][0]  # of a step of 64 images
    once = 73_257 * 100 / 64 * second
    assert plan.seconds_of("svhn-cnn8", plan.images_per_second("svhn-cnn8")) == pytest.approx((once, once * 75 / 4))
    line = next(line for line in plan.page().splitlines() if line.startswith("| `svhn-cnn8`"))
    hours, days = (float(cell.split()[0]) for cell in (line.split("|")[5], line.split("|")[7]))  # two digits
    assert "hours" in line.split("|")[5] and "days" in line.split("|")[7] and "| 75 |" in line
    assert (hours * 3600, days * 86400) == pytest.approx((once, once * 75 / 4), rel=0.05)


def test_another_network_is_slower_by_its_multiplications():
    case = CASES["mobilenet_v2"]
    small = plan.multiplications(case.build, 32)
    large = plan.multiplications(plan.RUNS["imagenet-mobilenet_v2"].build, 224)
    assert large == pytest.approx(300e6, rel=0.02)  # Sandler et al., 2018, table 4
    rate = 32 / MEASURED["mebqat_step/mobilenet_v2"]["seconds"][0]
    assert plan.images_per_second("imagenet-mobilenet_v2") == pytest.approx(rate * small / large)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1800, "0.5 hours"), (3600 * 13.2, "13 hours"), (86_400 * 1.6, "1.6 days"), (86_400 * 472, "470 days")],
)
def test_durations_have_two_digits(seconds, text):
    assert plan.duration(seconds) == text


def test_a_throughput_of_one_s_own(capsys):
    plan.main(["--run", "cifar10-preact_resnet20", "--images-per-second", "1000"])
    printed = capsys.readouterr().out
    assert "| 1e+03 | 5.6 hours | 75 | 4.3 days |" in printed  # 20 M images; times 75 / 4
    assert "4 devices, at best: 1.4 hours, 26 hours" in printed


@pytest.mark.parametrize("rate", ["0", "-3", "nan", "inf"])
def test_a_throughput_that_is_none_is_refused(rate, capsys):
    with pytest.raises(SystemExit):
        plan.main(["--images-per-second", rate])
    assert "--images-per-second must be above 0" in capsys.readouterr().err
