"""Jobs: names of variants and files, cold starts, other quantizers."""

import string
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite import datasets, fit, load_model, quantize
from mebqat_lite.experiments.collect import collect
from mebqat_lite.experiments.jobs import Job, Variant, run_job, train_start
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.loop import Costs, Run
from mebqat_lite.methods import calibration
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import plan_of

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    train_start(SETUP, 1, folder)
    return folder


def done(folder, variant, bits=""):
    """A job of seed 1: its outcome, and the model that it saved."""
    job = Job(variant, 1, bits)
    outcome = run_job(SETUP, job, ["W2A2", "FP"], folder, budget="steps")
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
    start, (fp, _) = untrained(data), load_model(folder / "start-fp-seed1.safetensors")
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
    costs = collect(SETUP, names, [start], found, "steps")["costs"]
    counted = {name: (row["steps"], row["backprops"]) for name, row in costs.items()}
    assert counted == {names[0]: (4 + 3, 4 + 3 * 4), names[1]: (5, 5 * 4)}


@pytest.mark.parametrize("options", ["+quantizer=lsq", "+quantizer=lsq+warm_steps=0"])
def test_a_variant_may_have_another_quantizer(folder, options):
    """Its steps are those of the start's weights before training, and learn."""
    _, model = done(folder, f"mebqat{options}")
    assert plan_of(model).quantizer == "lsq"
    steps = {name for name in model.state_dict() if ".quant." in name}
    assert len(steps) == 3 * 2 * 8  # three body layers, weights and activations, eight widths
    _, plain = done(folder, "mebqat")
    assert plan_of(plain).quantizer == "dorefa" and not any(".quant." in name for name in plain.state_dict())
    _, still = done(folder, f"mebqat{options}+steps=1+lr=0.0")
    data = datasets.load(SETUP.data, 1)
    fp, _ = load_model(folder / "start-fp-seed1.safetensors")
    start = untrained(data, "lsq") if "warm" in options else quantize(fp, "lsq", sample=calibration(data))
    assert same(still, start)
    moved = [n for n, p in model.named_parameters() if ".quant." in n and not torch.equal(p, start.get_parameter(n))]
    assert moved
