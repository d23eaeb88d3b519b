"""The page on what large runs need: it is the script's, and its arithmetic is checked by hand."""

import json

import pytest

from benchmarks import plan
from benchmarks.steps import CASES
from mebqat_lite.bits import candidates
from mebqat_lite.experiments.setups import SETUPS
from mebqat_lite.quantizers import QUANTIZERS

MEASURED = json.loads((plan.FOLDER / "results.json").read_text())["measured"]


def test_the_page_is_what_the_script_writes():
    assert (plan.FOLDER / "PLAN.md").read_text() == plan.page()


@pytest.mark.parametrize("name", plan.RUNS)
def test_runs_are_those_of_the_recipes(name):
    run = plan.RUNS[name]
    if name in SETUPS:
        recipe = SETUPS[name].recipe
        assert (run.epochs, plan.BATCH) == (recipe.epochs, recipe.batch_size) and run.build is None
        assert CASES[run.case].quantizer == recipe.quantizer
        assert f"{recipe.for_images(run.images).steps:,}" in plan.table({name: 1.0})
    assert run.pairs == len(candidates(QUANTIZERS[CASES[run.case].quantizer].one_bit))


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
