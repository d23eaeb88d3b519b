"""Comparisons: the same numbers from one process or two, paired differences, costs, budgets."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import scipy.stats
import torch

from mebqat_lite import datasets, fit, load_model, models, quantize
from mebqat_lite.experiments.collect import paired
from mebqat_lite.experiments.compare import compare, list_jobs
from mebqat_lite.experiments.jobs import Job, run_job, train_start, within
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.files import read
from mebqat_lite.loop import Costs
from mebqat_lite.measure.costs import stored_bytes
from mebqat_lite.measure.evaluate import accuracy
from mebqat_lite.recipe import Recipe

NAMES = ("ptq_naive", "ptq_mse", "qat", "mebqat")
PAIRS, LISTED = ("W2A2", "W4A4", "FP"), ("W2A2", "W4A4")
SETUP = Setup(
    data="digits,val=60,test=90",
    options={"widths": (4, 4, 4, 4)},
    recipe=Recipe(steps=8, warm_steps=9, batch_size=32, lr=0.03),
)


def run(folder, workers, names=NAMES):
    options = {"pairs": PAIRS, "listed": LISTED, "seeds": 2, "progress": False}
    return compare(SETUP, names, folder=folder, workers=workers, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def outcome(folder):
    return run(folder, workers=1)


@pytest.mark.slow
def test_workers_change_nothing(outcome, tmp_path):
    two = run(tmp_path, workers=2)
    assert two.pop("seconds") > 0
    alone = {name: value for name, value in outcome.items() if name != "seconds"}
    assert json.dumps(two) == json.dumps(alone)


def measured(folder, name, part):
    return read(folder / f"{name}.safetensors", "model")[1]["extra"]["accuracy"][part]


@pytest.mark.parametrize(("part", "key"), [("test", "accuracy"), ("val", "validation")])
def test_tables_are_means_over_the_saved_models(outcome, folder, part, key):
    assert list(outcome[key]) == list(NAMES)
    for method in NAMES:
        for bits in LISTED if method == "qat" else PAIRS:
            name = f"qat_{bits.lower()}" if method == "qat" else method
            runs = [measured(folder, f"{name}-seed{seed}", part)[bits] for seed in range(2)]
            half = scipy.stats.t.ppf(0.975, 1) * np.std(runs, ddof=1) / 2**0.5
            wanted = {"mean": np.mean(runs), "ci95": half, "n": 2}
            assert outcome[key][method][bits] == pytest.approx(wanted, rel=1e-12), (method, bits)
    assert list(outcome[key]["qat"]) == list(LISTED)


def test_saved_models_have_the_accuracy_they_state(outcome, folder):
    for name in ("mebqat-seed1", "qat_w2a2-seed1", "ptq_mse-seed0", "ptq_naive-seed0"):
        model, extra = load_model(folder / f"{name}.safetensors")
        data = datasets.load(SETUP.data, int(name[-1]))
        for part in ("val", "test"):
            for bits, value in extra["accuracy"][part].items():
                assert accuracy(model, getattr(data, part), bits, "recalibrated") == value, (name, bits)
        assert json.dumps(extra["setup"]) == json.dumps(asdict(SETUP))


def test_paired_differences_go_seed_by_seed(outcome, folder):
    for part in ("val", "test"):
        assert list(outcome["paired"][part]) == list(LISTED)
        for bits, gap in outcome["paired"][part].items():
            ours = [measured(folder, f"mebqat-seed{seed}", part)[bits] for seed in range(2)]
            other = [measured(folder, f"qat_{bits.lower()}-seed{seed}", part)[bits] for seed in range(2)]
            differences = np.subtract(ours, other)
            half = scipy.stats.t.ppf(0.975, 1) * differences.std(ddof=1) / 2**0.5
            assert gap == pytest.approx({"mean": differences.mean(), "ci95": half, "n": 2}, abs=1e-10)


def test_pairing_needs_both():
    values = {"mebqat": {"W2A2": {0: 5.0, 1: 9.0}, "FP": {0: 1.0, 1: 1.0}}, "qat": {"W2A2": {1: 6.0, 0: 5.0}}}
    gaps = paired(values)
    assert list(gaps) == ["W2A2"] and gaps["W2A2"]["mean"] == 1.5
    assert paired({"mebqat": values["mebqat"]}) == {}


def test_each_network_gets_the_same_back_propagations_by_default(outcome, folder):
    """Nine of the common start and eight steps of four pairs; PTQ rounds a network that was trained as long at FP."""
    size = stored_bytes(models.digit_net(widths=(4, 4, 4, 4)))
    mse = stored_bytes(load_model(folder / "ptq_mse-seed0.safetensors")[0], statistics=False)
    assert mse > size
    alone = {"steps": 41, "forwards": 41, "backprops": 41, "each": 41}
    both = {"steps": 9 + 64, "forwards": 9 + 64, "backprops": 9 + 64, "each": 41}
    assert outcome["costs"] == {
        "ptq_naive": {"models": 1, "bytes": size, **alone},
        "ptq_mse": {"models": 1, "bytes": mse, **alone},
        "qat": {"models": 2, "bytes": 2 * size, **both},
        "mebqat": {"models": 1, "bytes": size, "steps": 9 + 8, "forwards": 41, "backprops": 41, "each": 41},
    }
    assert outcome["budget"] == "backprops"


def test_schema(outcome):
    assert {"accuracy", "norm_stats", "costs", "seconds"} <= set(outcome)
    assert outcome["norm_stats"] == "recalibrated" and outcome["seconds"] > 0
    assert json.loads(json.dumps(outcome["setup"]))["recipe"]["steps"] == 8


def test_a_job_is_a_pure_function(outcome, folder, tmp_path):
    train_start(SETUP, 1, tmp_path)
    run_job(SETUP, Job("fp", 1), PAIRS, tmp_path)  # writes over the common start, which must not matter
    again = run_job(SETUP, Job("mebqat", 1), PAIRS, tmp_path)
    for part in ("val", "test"):
        assert again.accuracy[part] == measured(folder, "mebqat-seed1", part)
    assert again.costs == Costs(8, 32, 32)


def test_a_job_is_a_fit_with_the_seed_s_batches(outcome, folder):
    model, _ = load_model(folder / "start-fp-seed1.safetensors")
    data = datasets.load(SETUP.data, 1)
    quantize(model, "dorefa", sample=data.train.images[:512])
    fit(model, data, "qat", SETUP.recipe, bits="W4A4", seed=1, steps=4 * 8, warm_steps=0, progress=False)
    saved = read(folder / "qat_w4a4-seed1.safetensors", "model")[0]
    assert all(torch.equal(p, saved[name]) for name, p in model.named_parameters())


def test_methods_start_from_the_same_network(tmp_path):
    options = {"pairs": ["W2A2"], "seeds": 1, "workers": 1, "progress": False, "budget": "steps"}
    compare(SETUP, ["ptq_naive", "mebqat"], folder=tmp_path, **options)
    start, _ = load_model(tmp_path / "start-fp-seed0.safetensors")
    naive, _ = load_model(tmp_path / "ptq_naive-seed0.safetensors")
    ours, _ = load_model(tmp_path / "mebqat-seed0.safetensors")
    for name, p in start.named_parameters():
        assert torch.equal(p, naive.get_parameter(name)) and not torch.equal(p, ours.get_parameter(name))


def test_a_comparison_leaves_this_process_its_threads(tmp_path):
    torch.set_num_threads(2)
    try:
        setup = replace(SETUP, recipe=Recipe(steps=1, warm_steps=1))
        compare(setup, ["ptq_naive"], pairs=["FP"], seeds=1, folder=tmp_path, workers=1, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_jobs():
    jobs = list_jobs(["ptq_mse", "qat", "mebqat"], ["W1A1", "W4A8"], range(2))
    names = [job.name for job in jobs]
    wanted = [f"{n}-seed{s}" for s in range(2) for n in ("mebqat", "ptq_mse", "qat_w1a1", "qat_w4a8")]
    assert sorted(names) == sorted(wanted)
    assert names.index("mebqat-seed0") < names.index("qat_w1a1-seed0")  # the long ones first
    with pytest.raises(ValueError, match="no method 'qta'; known: fp"):
        list_jobs(["mebqat", "qta"], [], [0])


@pytest.mark.parametrize(
    ("budget", "pairs", "models", "steps"),
    [
        ("steps", 1, 3, 300),
        ("backprops", 1, 3, 1200),
        ("backprops", 5, 1, 240),
        ("total", 1, 3, 400),
        ("total", 4, 1, 300),
    ],
)
def test_a_budget_gives_each_method_its_steps(budget, pairs, models, steps):
    assert within(budget, Recipe(steps=300), pairs, models, reference=4).steps == steps


@pytest.mark.parametrize("budget", ["steps", "backprops", "total"])
def test_counted_back_propagations_keep_the_budget(budget, tmp_path):
    setup = replace(SETUP, recipe=Recipe(steps=4, warm_steps=1, batch_size=16))
    options = {"listed": ["W2A2", "W4A4"], "pairs": ["W2A2"], "seeds": 1, "workers": 1, "progress": False}
    outcome = compare(setup, ["qat", "mebqat"], folder=tmp_path, budget=budget, **options)
    spent = {name: cost["backprops"] - 1 for name, cost in outcome["costs"].items()}  # without the common start
    assert spent == {"mebqat": 16, "qat": {"steps": 2 * 4, "backprops": 2 * 16, "total": 16}[budget]}
    assert outcome["budget"] == budget


def test_an_unknown_budget_is_answered_with_the_known(tmp_path):
    with pytest.raises(ValueError, match="no budget 'time'; choose one of backprops, steps, total"):
        compare(SETUP, ["qat"], folder=tmp_path, budget="time")
