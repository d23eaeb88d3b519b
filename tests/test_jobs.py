"""Jobs: names of variants and files, cold starts, chosen rates, means and the report; and subsets of data."""

import copy
import string
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite import datasets, fit, load_model, quantize
from mebqat_lite.experiments.collect import break_even, choose_rates, collect, means
from mebqat_lite.experiments.jobs import Job, Outcome, Variant, run_job, train_start
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.loop import Costs, Run
from mebqat_lite.measure.results import report
from mebqat_lite.methods import calibration
from mebqat_lite.recipe import Recipe

SETUP = Setup(
    data="digits,count=100,val=20,test=20",
    options={"widths": (4, 4, 4, 4)},
    recipe=Recipe(steps=3, warm_steps=4, batch_size=32, lr=0.03),
)


# --- variants and jobs by name -------------------------------------------------------------------------------------


def test_a_variant_is_a_method_and_python_values():
    name = "mebqat+teacher='next'+sandwich=True+exclude=(3,5,7)"
    variant = Variant.parse(name)
    assert (variant.name, variant.method) == (name, "mebqat")
    assert variant.options == {"teacher": "next", "sandwich": True, "exclude": (3, 5, 7)}
    assert Variant.parse("mebqat+teacher=next").options == {"teacher": "next"}  # what is no literal is text
    assert Variant.parse("qat") == Variant("qat", "qat", {})
    assert {variant, Variant.parse(name)} == {variant}


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("mebcat+steps=3", ValueError, r"no method 'mebcat'; known: fp, "),
        ("", ValueError, r"no method ''; known: fp, "),
        ("mebqat+stepz=3", TypeError, r"no option \['stepz'\]; known: steps, "),
        ("mebqat+sandwich", ValueError, r"^expected NAME=VALUE, not 'sandwich'$"),
        ("mebqat+steps=3+", ValueError, r"^expected NAME=VALUE, not ''$"),
        ("mebqat+steps=0", ValueError, r"^steps must be at least 1, not 0$"),
        ("mebqat+exclude=(9,)", ValueError, r"^exclude must hold some of the widths .*, not \(9,\)$"),
        ("mebqat+schedule=linear", ValueError, r"^no schedule 'linear'; choose cosine"),
    ],
)
def test_what_a_variant_cannot_be_is_named(name, error, text):
    with pytest.raises(error, match=text):
        Variant.parse(name)


VARIANTS = [
    "qat",
    "mebqat",
    "mebqat+teacher='next'+sandwich=True+exclude=(3,5,7)",
    "mebqat+teacher=next+sandwich=True+exclude=(3,5,7)",
    "mebqat+teacher=next+sandwich=True+exclude=(3,5)",
    "mebqat+teacher=next",
    "mebqat+lr=0.01",
    "mebqat+lr=0.001",
    "qat+steps=1",
    "qat+steps=11",
    "any_precision_hard",
]
jobs = st.builds(
    Job,
    st.sampled_from(VARIANTS),
    st.integers(0, 30),
    st.sampled_from(["", "W2A2", "W2A16", "FP", "W1A1", "W1A16"]),
    st.sampled_from([0.0, 0.1, 0.01, 3e-3, 1e-5, 1.0, 11.0]),
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(jobs, min_size=2, max_size=30, unique=True))
def test_jobs_have_names_of_their_own_that_files_may_have(found):
    names = {job.name for job in found}
    assert len(names) == len(found)
    allowed = set(string.ascii_letters + string.digits + "_-+.,()'")
    assert all(set(name) <= allowed and len(name) < 200 and name[0].isalpha() for name in names)


def test_every_part_of_a_job_is_in_its_name(tmp_path):
    job = Job("mebqat+exclude=(3,5)", 1, "W2A2", 0.003)
    others = [replace(job, **{k: v}) for k, v in [("variant", "mebqat"), ("seed", 2), ("bits", ""), ("lr", 0.03)]]
    assert len({each.name for each in (job, *others)}) == 5
    for each in (job, *others):
        (tmp_path / f"{each.name}.safetensors").touch()
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    assert Job("qat", 0, "W2A2").name == "qat_w2a2-seed0"


# --- cold starts and other quantizers ------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    train_start(SETUP, 1, folder)
    return folder


def done(folder, variant, bits=""):
    """A job of seed 1: its outcome, and the model that it saved."""
    job = Job(variant, 1, bits)
    outcome = run_job(SETUP, job, ["W2A2", "FP"], folder)
    return outcome, load_model(folder / f"{job.name}.safetensors")[0]


def untrained(data, quantizer="dorefa"):
    torch.manual_seed(1)
    return quantize(SETUP.build(data), quantizer, sample=calibration(data))


def same(one, two):
    mine, theirs = dict(one.named_parameters()), dict(two.named_parameters())
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_cold_run_starts_from_the_seed_s_untrained_network(folder):
    """A learning rate of 0 shows the start itself; a run from there is the fit of that network, labels its teacher."""
    data = datasets.load(SETUP.data, 1)
    start, (fp, _) = untrained(data), load_model(folder / "fp-seed1.safetensors")
    assert not same(start, fp)
    assert same(done(folder, "mebqat+warm_steps=0+steps=1+lr=0.0")[1], start)
    assert same(done(folder, "mebqat+steps=1+lr=0.0")[1], fp)
    options = {"steps": 5, "batch_size": 32, "lr": 0.03, "seed": 1, "progress": False, "device": "cpu"}
    outcome, cold = done(folder, "qat+warm_steps=0+steps=5", "W2A2")
    fit(start, data, "qat", bits="W2A2", teacher="labels", **options)
    assert same(cold, start) and outcome.costs == Costs(5, 5, 5)


def test_a_cold_run_does_not_count_the_common_start(folder):
    names = ["mebqat", "mebqat+warm_steps=0+steps=5"]
    start = Run("fp", SETUP.recipe, Costs(4, 4, 4))
    found = [replace(done(folder, name)[0], job=Job(name, 0)) for name in names]
    costs = collect(SETUP, names, [start], found)["costs"]
    counted = {name: (row["steps"], row["backprops"]) for name, row in costs.items()}
    assert counted == {names[0]: (4 + 3, 4 + 3 * 4), names[1]: (5, 5 * 4)}


@pytest.mark.parametrize("options", ["+quantizer=lsq", "+quantizer=lsq+warm_steps=0"])
def test_a_variant_may_have_another_quantizer(folder, options):
    """Its steps are those of the start's weights before training, and learn."""
    _, model = done(folder, f"mebqat{options}")
    assert model.plan.quantizer == "lsq"
    steps = {name for name in model.state_dict() if ".quant." in name}
    assert len(steps) == 3 * 2 * 8  # three body layers, weights and activations, eight widths
    _, plain = done(folder, "mebqat")
    assert plain.plan.quantizer == "dorefa" and not any(".quant." in name for name in plain.state_dict())
    _, still = done(folder, f"mebqat{options}+steps=1+lr=0.0")
    data = datasets.load(SETUP.data, 1)
    fp, _ = load_model(folder / "fp-seed1.safetensors")
    start = untrained(data, "lsq") if "warm" in options else quantize(fp, "lsq", sample=calibration(data))
    assert same(still, start)
    moved = [n for n, p in model.named_parameters() if ".quant." in n and not torch.equal(p, start.get_parameter(n))]
    assert moved


# --- hand-made outcomes --------------------------------------------------------------------------------------------


def outcome(variant, seed, test, val=None, bits="", lr=0.0, backprops=10):
    accuracy = {"test": test, "val": test if val is None else val}
    return Outcome(Job(variant, seed, bits, lr), accuracy, copy.deepcopy(accuracy), {}, Costs(1, 1, backprops), 100)


def search(lr, seed, val, test, bits="W2A2", variant="qat"):
    return outcome(variant, seed, {bits: test}, {bits: val}, bits, lr)


def test_rates_are_chosen_by_mean_validation_over_the_seeds_and_never_by_test():
    """By the first seed 0.1 would win, by the best single run too, and by test accuracy 0.3."""
    tried = {0.1: [(95, 50), (60, 50)], 0.03: [(80, 40), (81, 40)], 0.3: [(70, 99), (70, 99)]}
    found = [search(lr, seed, *runs[seed]) for lr, runs in tried.items() for seed in (0, 1)]
    other = [search(lr, seed, 10 * lr, -lr, "W4A4") for lr in tried for seed in (0, 1)]
    variant = [search(lr, seed, -lr, lr, variant="qat+steps=9") for lr in tried for seed in (0, 1)]
    rest = [outcome("mebqat", seed, {"W2A2": 1.0}) for seed in (0, 1)]
    kept, rates = choose_rates([*found, *other, *variant, *rest])
    assert rates == {"qat": {"W2A2": 0.03, "W4A4": 0.3}, "qat+steps=9": {"W2A2": 0.03}}
    assert kept == [*found[2:4], *other[4:6], *variant[2:4], *rest]


def test_without_a_search_every_outcome_stays():
    found = [outcome("qat", 0, {"W2A2": 1.0}, bits="W2A2"), outcome("mebqat", 0, {"W2A2": 1.0})]
    assert choose_rates(found) == (found, {})


@pytest.mark.parametrize(("ours", "each", "pairs"), [(16, [4, 4], 5), (15, [4, 4], 4), (3, [4], 1), (30, [5, 15], 4)])
def test_break_even_is_the_first_number_of_pairs_at_which_one_training_costs_less(ours, each, pairs):
    found = [outcome("mebqat", 0, {}, backprops=ours), outcome("mebqat", 1, {}, backprops=10**6)]
    found += [outcome("qat", 0, {}, bits=f"W{n}A{n}", backprops=cost) for n, cost in enumerate(each, 2)]
    mean = sum(each) / len(each)
    assert ours < pairs * mean and ours >= (pairs - 1) * mean
    assert break_even([*found, outcome("qat", 1, {}, backprops=1)]) == pairs


def test_there_is_no_break_even_without_both():
    assert break_even([outcome("mebqat", 0, {})]) is None and break_even([outcome("qat", 0, {})]) is None


VALUES = {  # the seeds of each row in another order
    "adabits": {"W2A2": {0: 50.0, 1: 60.0}, "W3A3": {1: 10.0, 0: 30.0}, "W2A5": {0: 1.0, 1: 2.0}, "FP": {1: 90, 0: 80}},
    "mebqat": {"W2A2": {1: 55.0, 0: 53.0}, "W3A3": {0: 50.0, 1: 57.0}, "W2A5": {1: 9.0, 0: 5.0}, "FP": {0: 81, 1: 95}},
    "qat": {"W2A2": {0: 70.0, 1: 70.0}},
}


def test_means_go_over_listed_other_and_held_out_pairs_and_differences_seed_by_seed():
    found = means(VALUES, ["W2A2", "W4A4", "FP"], {3, 5})
    groups = {"all": ["W2A2", "W3A3", "W2A5", "FP"], "listed": ["W2A2", "FP"], "off_list": ["W3A3", "W2A5"]}
    groups["held_out"] = groups["off_list"]
    assert list(found) == ["minus_first", *groups] and list(found["minus_first"]) == list(groups)
    for group, pairs in groups.items():
        runs = {n: [np.mean([VALUES[n][b][seed] for b in pairs]) for seed in (0, 1)] for n in ("adabits", "mebqat")}
        gaps = np.subtract(runs["mebqat"], runs["adabits"])
        assert set(found[group]) == set(runs), "qat measured one pair only"
        for cell, values in [(found[group][n], runs[n]) for n in runs] + [
            (found["minus_first"][group]["mebqat"], gaps)
        ]:
            half = scipy.stats.t.ppf(0.975, 1) * np.std(values, ddof=1) / 2**0.5
            assert cell == pytest.approx({"mean": np.mean(values), "ci95": half, "n": 2}, rel=1e-12)
        assert set(found["minus_first"][group]) == {"mebqat"}


def test_a_held_out_width_may_be_that_of_weights_or_of_activations_alone():
    one = {"mebqat": {"W2A5": {0: 1.0}, "W5A2": {0: 2.0}, "W2A2": {0: 40.0}}}
    assert means(one, ["W2A2"], {5})["held_out"]["mebqat"]["mean"] == 1.5
    assert "held_out" not in means(one, ["W2A2"]) and "held_out" not in means(one, ["W2A2"], {7})
    assert "off_list" not in means(one, list(one["mebqat"]))


def test_differences_are_against_the_variant_named_first():
    turned = {name: VALUES[name] for name in ("mebqat", "adabits", "qat")}
    one, two = means(VALUES, ["FP"])["minus_first"], means(turned, ["FP"])["minus_first"]
    assert one["all"]["mebqat"]["mean"] == -two["all"]["adabits"]["mean"] != 0


def collected():
    """Two seeds of three variants; under their own policies other numbers, and none off adabits' list."""
    names, rng, found = ("mebqat", "adabits", "qat"), np.random.default_rng(0), []
    for seed in (0, 1):
        for name in names[:2]:
            row = {b: float(rng.integers(20, 99)) for b in ("W2A2", "W3A3", "FP")}
            found.append(outcome(name, seed, row, backprops=70))
            if name == "adabits":
                found[-1].native["test"]["W3A3"] = float("nan")
        found.append(outcome("qat", seed, {"W2A2": 33.0}, bits="W2A2", backprops=20))
    for each in found:
        each.native["test"]["W2A2"] += 0.5
        each.alone = {"W2A2": 100.0 - each.job.seed / 4}
    start = Run("fp", SETUP.recipe, Costs(4, 4, 4))
    return {"budget": "steps", **collect(SETUP, names, [start], found)}


def test_the_report_says_both_policies_means_differences_costs_and_the_break_even():
    result = collected()
    text = report(result, ["W2A2", "W3A3", "FP"])
    assert "test images, 2 seeds, norm statistics recalibrated, budget: equal steps" in text
    assert "own policy (mebqat batch, adabits running, qat running)" in text
    assert "mebqat 74, adabits 74, qat 24" in text
    assert "mebqat takes fewer than qat from 4 delivered pairs on." in text
    assert "at least 99.75 % of the predictions" in text
    first, _, second = text.partition("\nNorm statistics of each")
    for block, accuracy in ((first, result["accuracy"]), (second, result["native"]["accuracy"])):
        cell = f"{accuracy['mebqat']['W2A2']['mean']:.1f} ±{accuracy['mebqat']['W2A2']['ci95']:.1f}"
        assert cell in block
    gap = result["paired"]["test"]["W2A2"]
    assert f"mebqat - qat, paired, recalibrated: W2A2 {gap['mean']:+.1f} ±{gap['ci95']:.1f}" in text
    assert "Mean over" not in text, "all that was measured is in the tables"
    (row,) = [line for line in second.splitlines() if line.startswith("adabits")]
    assert row.split()[-3] == "-" and row.count("±") == 2  # W3A3 is off its list
    means_of, lines = result["means"]["test"], report(result, ["W2A2"]).split("\nMean over all pairs")[1].splitlines()
    assert lines[1].split() == ["all", "listed", "off_list"]
    for line, cells in [
        (lines[2], {group: means_of[group]["mebqat"] for group in ("all", "listed", "off_list")}),
        (lines[6], {group: means_of["minus_first"][group]["adabits"] for group in ("all", "listed", "off_list")}),
    ]:
        assert line.split()[1::2] == [f"{cell['mean']:.1f}" for cell in cells.values()]


def test_the_report_has_no_break_even_and_no_differences_where_there_is_no_qat():
    result = collected()
    result |= {"break_even": None, "paired": {"test": {}, "val": {}}}
    text = report(result, ["W2A2"])
    assert "takes fewer" not in text and "mebqat - qat" not in text


def test_the_report_of_validation_shows_validation():
    result = collected()
    result["validation"]["mebqat"]["W2A2"] = {"mean": 12.3, "ci95": 0.4, "n": 2}
    assert "12.3 ±0.4" in report(result, ["W2A2"], "val") and "12.3" not in report(result, ["W2A2"])
    assert "val images" in report(result, ["W2A2"], "val")


# --- subsets of the parts ------------------------------------------------------------------------------------------


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def counts(split):
    return np.bincount(split.labels.numpy(), minlength=10)


@pytest.mark.parametrize(("option", "part"), [("count", "train"), ("val", "val"), ("test", "test")])
def test_a_subset_of_one_part_is_stratified_and_the_others_are_whole(option, part):
    whole, data = datasets.load("digits", 3), datasets.load(f"digits,{option}=60", 3)
    assert data.name == f"digits,{option}=60" and len(data.classes) == 10
    mine = getattr(data, part)
    assert mine.images.shape == (60, 1, 8, 8)
    assert np.abs(counts(mine) - 60 * counts(getattr(whole, part)) / len(getattr(whole, part).labels)).max() < 1
    there = {(image.numpy().tobytes(), int(label)) for image, label in zip(*getattr(whole, part), strict=True)}
    chosen = [(image.numpy().tobytes(), int(label)) for image, label in zip(*mine, strict=True)]
    assert set(chosen) <= there and len(set(chosen)) > 55
    for other in {"train", "val", "test"} - {part}:
        assert equal(getattr(data, other), getattr(whole, other))


def test_the_seed_chooses_the_subset():
    name = "digits,val=50,test=40"
    one, again, other = (datasets.load(name, seed) for seed in (0, 0, 1))
    assert equal(one.val, again.val) and equal(one.test, again.test)
    assert not equal(one.val, other.val) and not equal(one.test, other.test)
    same_split = [datasets.subset(datasets.digits(0), 50, seed, "val").val for seed in (0, 1)]
    assert equal(same_split[0], one.val) and not equal(*same_split)


def test_all_parts_may_be_subsets_together():
    data, whole = datasets.load("digits,count=100,val=30,test=20", 2), datasets.digits(2)
    assert [len(split.labels) for split in (data.train, data.val, data.test)] == [100, 30, 20]
    assert data.name == "digits,count=100,val=30,test=20"
    assert equal(data.val, datasets.load("digits,val=30", 2).val)
    assert equal(datasets.load("digits,val=257", 2).val, whole.val)  # all of them


@pytest.mark.parametrize(
    ("option", "part", "total"), [("count", "training", 1000), ("val", "validation", 257), ("test", "test", 540)]
)
@pytest.mark.parametrize("extra", [1, -1, -9])
def test_a_subset_that_cannot_be_names_the_part(option, part, total, extra):
    """Too many, or so many that a stratified choice is none: fewer left over than classes."""
    count = total + extra
    with pytest.raises(datasets.DataError, match=f"^no stratified subset of {count} of the {total} {part} images"):
        datasets.load(f"digits,{option}={count}")


@pytest.mark.parametrize("count", [0, 9])
def test_a_subset_without_an_example_of_each_class_is_refused(count):
    with pytest.raises(datasets.DataError, match=f"of {count} of the 540 test images of digits: choose from 10 to 530"):
        datasets.load(f"digits,test={count}")


def test_an_unknown_part_lists_what_there_is():
    with pytest.raises(ValueError, match=r"^digits has no option valid; known: .*count, test, val"):
        datasets.load("digits,valid=30")
