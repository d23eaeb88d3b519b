"""Few-shot networks measured: episodes shared by all pairs, intervals, enrolment, the command line, comparisons."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from mebqat_lite import METHODS, Recipe, datasets, files, load_model, models, quantize, recalibrate, save_model
from mebqat_lite.bits import Bits, candidates
from mebqat_lite.cli import main
from mebqat_lite.datasets import Episodes, Split
from mebqat_lite.experiments.collect import base_of
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.jobs import within
from mebqat_lite.experiments.setups import SETUPS, Setup
from mebqat_lite.learners import ProtoNet, Supervised
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.measure.fewshot import EVALUATION_SEED, enrolment, episode_grid, episode_scores, paired_difference
from mebqat_lite.measure.saved import episodes_for, few_shot, give_statistics, learns_new_classes
from mebqat_lite.switching.norms import is_recalibrated
from mebqat_lite.switching.state import at, set_norm_stats, setting_of

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = "FP,W2A2,W4A8"


def split(classes=6, seed=0):
    """Twelve images a class: noise around a picture of the class, so that episodes are neither hopeless nor easy."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(12)
    centres = torch.rand(classes, 1, 16, 16, generator=g)
    return Split((0.4 * centres[labels] + 0.6 * torch.rand(len(labels), 1, 16, 16, generator=g)), labels)


SPLIT = split()


def net(classes=None, seed=0):
    torch.manual_seed(seed)
    model = quantize(models.conv4(channels=4, image_size=16, classes=classes), "lsq", sample=SPLIT.images)
    return recalibrate(model.eval(), SPLIT.images, PAIRS)


def episodes(ways=3, shots=2, queries=4, seed=0):
    return Episodes(SPLIT, ways, shots, queries, seed)


LEARNERS = {"proto": (ProtoNet, None), "fomaml": (FOMAML, 3), "quantize adapted": (QuantizeAdapted, 3)}


def one_by_one(model, learner, asked, pair, policy, count):
    scores = []
    for number in range(count):
        episode = asked[number]
        logits = learner.adapt(model, episode.support, pair, policy)(episode.query.flatten(0, 1))
        scores.append(100 * float((logits.argmax(1) == episode.labels).double().mean()))
    return torch.tensor(scores, dtype=torch.float64)


# --- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["recalibrated", "running"])
def test_embedding_all_images_once_gives_what_adapting_to_each_episode_does(policy):
    model, asked = net(), episodes()
    scores = episode_scores(model, ProtoNet(), asked, PAIRS, count=25, norm_stats=policy)
    assert scores.shape == (3, 25) and scores.dtype == torch.float64 and len(scores.unique()) > 3
    for row, pair in zip(scores, PAIRS.split(","), strict=True):
        assert torch.equal(row, one_by_one(model, ProtoNet(), asked, pair, policy, 25))


@pytest.mark.parametrize("policy", ["support", "batch"])
@pytest.mark.parametrize("name", list(LEARNERS))
def test_scores_are_those_of_adapting_to_each_episode(name, policy):
    kind, classes = LEARNERS[name]
    model, asked = net(classes), episodes()
    pairs, count = ("FP,W2A2", 2) if kind is QuantizeAdapted else (PAIRS, 5)
    scores = episode_scores(model, kind(), asked, pairs, count=count, norm_stats=policy)
    for row, pair in zip(scores, pairs.split(","), strict=True):
        assert torch.equal(row, one_by_one(model, kind(), asked, pair, policy, count))


@pytest.mark.parametrize("name", list(LEARNERS))
def test_a_network_with_stored_statistics_is_measured_with_them(name):
    kind, classes = LEARNERS[name]
    scores = episode_scores(net(classes), kind(), episodes(), PAIRS, count=3, norm_stats="recalibrated")
    assert ((scores >= 0) & (scores <= 100)).all()


@pytest.mark.parametrize("policy", ["recalibrated", "support"])
@pytest.mark.parametrize("name", ["proto", "fomaml"])
def test_all_pairs_are_asked_the_same_episodes_each_drawn_once(name, policy, monkeypatch):
    kind, classes = LEARNERS[name]
    model, asked, drawn = net(classes), episodes(), []
    index = asked.index
    monkeypatch.setattr(asked, "index", lambda number: drawn.append(number) or index(number))
    scores = episode_scores(model, kind(), asked, "W2A2,W2A2,FP", count=6, norm_stats=policy)
    assert drawn == list(range(6))
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])
    alone = episode_scores(model, kind(), episodes(), ["FP"], count=6, norm_stats=policy)
    assert torch.equal(alone[0], scores[2])
    fewer = episode_scores(model, kind(), episodes(), "W2A2,FP", count=4, norm_stats=policy)
    assert torch.equal(fewer, scores[1:, :4])
    other = episode_scores(model, kind(), episodes(seed=1), ["FP"], count=6, norm_stats=policy)
    assert not torch.equal(other, alone)


def test_a_pair_per_layer_is_measured():
    model, mixed = net(), {"*": "W8A8", "body.1.0": "W2A2"}
    scores = episode_scores(model, ProtoNet(), episodes(), [mixed, "W8A8"], count=20, norm_stats="support")
    assert torch.equal(scores[0], one_by_one(model, ProtoNet(), episodes(), mixed, "support", 20))
    assert not torch.equal(scores[0], scores[1])


def test_bytes_are_measured_as_the_floats_that_they_are():
    stored = (SPLIT.images * 255).round().to(torch.uint8)
    both = [Episodes(Split(images, SPLIT.labels), 3, 2, 4) for images in (stored, stored / 255)]
    for policy in ("recalibrated", "support"):
        scores = [episode_scores(net(), ProtoNet(), e, PAIRS, count=8, norm_stats=policy) for e in both]
        assert torch.equal(*scores)


def test_a_network_in_float64_is_measured_in_float64():
    scores = [
        episode_scores(net().double(), ProtoNet(), episodes(), "FP", count=8, norm_stats=policy)
        for policy in ("recalibrated", "support")
    ]
    assert all(row.shape == (1, 8) for row in scores)


@pytest.mark.parametrize("policy", ["recalibrated", "support", "batch"])
@pytest.mark.parametrize("name", ["proto", "fomaml"])
def test_measuring_leaves_the_model_as_it_was(name, policy):
    kind, classes = LEARNERS[name]
    model = net(classes).train()
    set_norm_stats(model, "batch")
    state = {n: t.clone() for n, t in model.state_dict().items()}
    episode_scores(model, kind(), episodes(), PAIRS, count=2, norm_stats=policy)
    now = model.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[n], t) for n, t in state.items())
    assert model.training and setting_of(model).norm_stats == "batch" and str(setting_of(model).bits) == "FP"


@pytest.mark.parametrize("policy", ["measure", "Support", "none", ""])
def test_an_unknown_norm_policy_lists_those_for_episodes(policy):
    with pytest.raises(ValueError, match=rf"no norm policy '{policy}' for episodes; choose one of support, batch"):
        episode_scores(net(), ProtoNet(), episodes(), PAIRS, norm_stats=policy)


@pytest.mark.parametrize("kind", [FOMAML, QuantizeAdapted])
@pytest.mark.parametrize("ways", [2, 5])
def test_a_classifier_is_asked_its_own_number_of_ways(kind, ways):
    with pytest.raises(ValueError, match=rf"has 3 outputs, and the episodes {ways} ways: ask for 3 ways"):
        episode_scores(net(3), kind(), episodes(ways=ways), PAIRS, count=2)


def test_a_prototypical_network_is_asked_any_number_of_ways():
    for ways in (2, 6):
        assert episode_scores(net(), ProtoNet(), episodes(ways=ways), "FP", count=2).shape == (1, 2)


def test_a_supervised_learner_learns_no_new_classes():
    with pytest.raises(TypeError, match="Supervised learns no new classes; take ProtoNet or FOMAML"):
        episode_scores(net(), Supervised(), episodes(), PAIRS)


def test_missing_statistics_say_what_to_do():
    with pytest.raises(KeyError, match=r"no recalibrated statistics for W3A3; call recalibrate"):
        episode_scores(net(), ProtoNet(), episodes(), "W3A3", count=2, norm_stats="recalibrated")


# --- tables -----------------------------------------------------------------------------------------------------


def test_a_grid_has_the_mean_and_the_t_interval_over_episodes():
    scores = episode_scores(net(), ProtoNet(), episodes(), PAIRS, count=12, norm_stats="recalibrated")
    frame = episode_grid(net(), ProtoNet(), episodes(), PAIRS, count=12, norm_stats="recalibrated")
    assert list(frame.columns) == ["w", "a", "mean", "ci95", "n"] and list(frame.index) == PAIRS.split(",")
    assert frame.attrs["norm_stats"] == "recalibrated"
    for row, (bits, found) in zip(scores.numpy(), frame.iterrows(), strict=True):
        low, high = scipy.stats.t.interval(0.95, 11, row.mean(), scipy.stats.sem(row))
        assert found["mean"] == pytest.approx(row.mean()) and found["ci95"] == pytest.approx((high - low) / 2)
        assert found["n"] == 12 and (found["w"], found["a"]) == (Bits.parse(bits).w, Bits.parse(bits).a)


def test_a_grid_measures_all_candidates_by_default():
    frame = episode_grid(net(), ProtoNet(), episodes(), count=2)
    assert list(frame.index) == [str(b) for b in candidates(one_bit=False)] and frame.attrs["norm_stats"] == "support"


def test_paired_differences_are_those_of_a_paired_t_test():
    ours, other = torch.tensor([90.0, 70, 85, 60, 75]), torch.tensor([80.0, 72, 70, 55, 75])
    found = paired_difference(ours, other)
    test = scipy.stats.ttest_rel(ours.numpy(), other.numpy())
    low, high = test.confidence_interval(0.95)
    assert found == {"mean": pytest.approx(5.6), "ci95": pytest.approx((high - low) / 2), "n": 5}
    assert found["ci95"] < scipy.stats.sem(ours.numpy()) * scipy.stats.t.ppf(0.975, 4)  # pairing pays


def test_enrolment_asks_at_one_pair_what_was_enrolled_at_another():
    model, asked, names = net(), episodes(), PAIRS.split(",")
    frame = enrolment(model, asked, PAIRS, count=20)
    assert list(frame.index) == list(frame.columns) == names
    assert (frame.index.name, frame.columns.name) == ("support", "query")
    own = episode_scores(model, ProtoNet(), asked, PAIRS, count=20, norm_stats="recalibrated").mean(1)
    assert [frame.loc[name, name] for name in names] == pytest.approx(own.tolist())
    assert frame.loc["FP", "W2A2"] not in (frame.loc["W2A2", "W2A2"], frame.loc["FP", "FP"], frame.loc["W2A2", "FP"])


def test_enrolment_is_prototypes_at_one_pair_and_distances_at_another():
    model, asked, hits = net(), episodes(), []
    for number in range(10):
        episode = asked[number]
        with torch.no_grad(), at(model, "FP", "recalibrated"):
            prototypes = model(episode.support.flatten(0, 1)).unflatten(0, (3, 2)).mean(1)
        with torch.no_grad(), at(model, "W2A2", "recalibrated"):
            answers = torch.cdist(model(episode.query.flatten(0, 1)), prototypes).argmin(1)
        hits.append(float((answers == episode.labels).double().mean()))
    frame = enrolment(model, asked, "W2A2,FP", count=10)
    assert frame.loc["FP", "W2A2"] == pytest.approx(100 * np.mean(hits))


# --- from a checkpoint ------------------------------------------------------------------------------------------


def test_the_episodes_that_everybody_is_measured_on_do_not_depend_on_the_recipe_s_seed():
    recipe = Recipe(ways=3, shots=2, queries=4, seed=9)
    learner, asked = few_shot(METHODS["mebqat_pn"], SPLIT, recipe)
    assert isinstance(learner, ProtoNet)
    assert torch.equal(asked.index(5), episodes(seed=EVALUATION_SEED).index(5))
    learner, _ = few_shot(METHODS["fomaml_ptq_mse"], SPLIT, recipe.with_options(test_steps=8, inner_lr=0.3))
    assert isinstance(learner, QuantizeAdapted) and (learner.test_steps, learner.inner_lr) == (8, 0.3)


def test_which_checkpoints_learn_new_classes():
    assert learns_new_classes({"method": "mebqat_pn"}) and learns_new_classes({"method": "fomaml_ptq_mse"})
    assert not any(map(learns_new_classes, ({"method": "mebqat"}, {"method": "of another time"}, {})))


def described(method="mebqat_pn", **options):
    recipe = {"ways": 5, "shots": 1, "queries": 3, **options}
    return {"method": method, "data": "glyphs", "seed": 0, "setup": {"recipe": recipe}}


def test_episodes_are_as_in_training_unless_asked_otherwise():
    _, asked, name = episodes_for(net(), described(), shots=4)
    assert (asked.ways, asked.shots, asked.queries, asked.seed, name) == (5, 4, 3, EVALUATION_SEED, "glyphs")
    data = datasets.glyphs()
    assert torch.equal(asked.split.labels, data.test.labels)
    assert torch.equal(episodes_for(net(), described(), part="val")[1].split.labels, data.val.labels)


def test_only_missing_statistics_are_measured(monkeypatch):
    model, calls = net(), []
    stored = {n: t.clone() for n, t in model.state_dict().items()}
    data = datasets.Data("made", SPLIT, SPLIT, SPLIT, tuple("abcdef"))
    monkeypatch.setattr(datasets, "load", lambda *args: calls.append(args) or data)
    give_statistics(model, described(), "FP,W2A2")
    assert calls == []
    give_statistics(model, described(), "W2A2,W3A5")
    assert calls == [("glyphs", 0)] and is_recalibrated(model, "W3A5")
    now, wanted = model.state_dict(), recalibrate(net(), SPLIT.images, "W3A5").state_dict()
    assert all(torch.equal(now[n], t) for n, t in stored.items())
    assert now.keys() == wanted.keys() and all(torch.equal(now[n], t) for n, t in wanted.items())


# --- the command line -------------------------------------------------------------------------------------------


FEW = Recipe(steps=2, ways=5, shots=1, queries=1, tasks=2, inner_steps=1, quantizer="lsq", m=3)
TINY = {
    "tiny-pn": Setup("glyphs", "conv4", {"channels": 4, "classes": None}, FEW),
    "tiny-maml": Setup("glyphs", "conv4", {"channels": 4, "classes": 5}, FEW, norm_stats="support"),
}


def made(seed=0):
    """Different classes in each part, and another split for each seed."""
    return datasets.Data("made", *(split(seed=3 * seed + part) for part in range(3)), tuple("abcdef"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEBQAT_DATA", str(tmp_path / "downloads"))
    monkeypatch.setitem(datasets.DATASETS, "made", made)
    for name, setup in TINY.items():
        monkeypatch.setitem(SETUPS, name, setup)
    return tmp_path


def trained(kind="pn", *options):
    command = ["train", "--recipe", f"tiny-{kind}", "--method", f"mebqat_{kind}", "--out", "m.safetensors"]
    assert main([*command, "--no-tensorboard", *options]) == 0
    return ["evaluate", "--checkpoint", "m.safetensors", "--bits", "W2A2,FP", "--episodes", "20"]


def written(folder, name="r.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("norm", ["recalibrated", "support"])
def test_a_prototypical_network_is_trained_and_measured(capsys, elsewhere, norm):
    command = [*trained("pn", "--data", "glyphs", "--steps", "2", "--set", "ways=4"), "--norm", norm]
    assert "2 steps, 6 back-propagations" in capsys.readouterr().out
    asked = ["--ways", "5", "--shots", "1", "--queries", "1"]
    assert main([*command, *asked, "--json", "r.json", "--save", "r.csv"]) == 0
    printed, record = capsys.readouterr().out, written(elsewhere)
    model, extra = load_model(elsewhere / "m.safetensors")
    assert extra["method"] == "mebqat_pn" and extra["setup"]["recipe"]["ways"] == 4
    data = datasets.glyphs()
    recalibrate(model, data.train.images[:2048], "W2A2,FP")
    frame = episode_grid(
        model, ProtoNet("labels"), Episodes(data.test, 5, 1, 1, EVALUATION_SEED), "W2A2,FP", count=20, norm_stats=norm
    )
    assert record["norm_stats"] == norm and record["seconds"] > 0
    for bits, row in frame.iterrows():
        assert record["accuracy"]["m"][bits] == {"mean": row["mean"], "ci95": pytest.approx(row["ci95"]), "n": 20}
        assert row["ci95"] > 0
        assert f"{row['mean']:.1f}" in next(line for line in printed.splitlines() if line.startswith(bits))
    assert f"norm statistics: {norm}; 20 episodes of glyphs, 5-way 1-shot, 1 queries a class" in printed
    assert (elsewhere / "r.csv").read_text().count("\n") == 3


def test_training_again_continues_and_ends_the_same(capsys, elsewhere):
    trained("maml")
    first = load_model(elsewhere / "m.safetensors")[0].state_dict()
    trained("maml")
    again = load_model(elsewhere / "m.safetensors")[0].state_dict()
    assert all(torch.equal(first[name], t) for name, t in again.items())
    assert capsys.readouterr().out.count("2 steps, 4 back-propagations") == 2


@pytest.mark.parametrize("norm", ["recalibrated", "support", "batch"])
def test_a_maml_network_is_measured(capsys, elsewhere, norm):
    command = trained("maml")
    assert main([*command, "--norm", norm, "--episodes", "3", "--json", "r.json"]) == 0
    assert [cell["n"] for cell in written(elsewhere)["accuracy"]["m"].values()] == [3, 3]


def test_without_a_number_of_episodes_600_are_measured(capsys, elsewhere):
    command = trained("pn")
    assert main([*command[:-2], "--json", "r.json"]) == 0
    assert {cell["n"] for cell in written(elsewhere)["accuracy"]["m"].values()} == {600}


def pictures(folder, classes=6, count=4, size=(20, 24), mode="RGB"):
    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(count):
            noise = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).convert(mode).save(place / f"{number}.png")


@pytest.mark.parametrize("norm", ["recalibrated", "support"])
def test_a_folder_of_class_folders_is_measured_whole_in_the_network_s_size(capsys, elsewhere, norm):
    pictures(elsewhere / "own pictures")
    command, place = trained("pn"), elsewhere / "own pictures"
    capsys.readouterr()
    assert main([*command, "--data", f"folder:{place}", "--ways", "6", "--norm", norm, "--json", "r.json"]) == 0
    assert "20 episodes of" in (printed := capsys.readouterr().out) and "6-way 1-shot" in printed
    cells = written(elsewhere)["accuracy"]["m"]
    assert list(cells) == ["W2A2", "FP"] and all(c["ci95"] is not None and c["n"] == 20 for c in cells.values())
    data = datasets.load(f"classes:{place},size=28,channels=1,whole=1")
    assert data.test.images.shape == (24, 1, 28, 28)
    model, _ = load_model(elsewhere / "m.safetensors")
    recalibrate(model, datasets.glyphs().train.images[:2048], "W2A2,FP")  # of what it was trained on
    asked = Episodes(data.test, 6, 1, 1, EVALUATION_SEED)
    scores = episode_scores(model, ProtoNet(), asked, "W2A2,FP", count=20, norm_stats=norm)
    assert [cell["mean"] for cell in cells.values()] == pytest.approx(scores.mean(1).tolist())


def classifier(folder):
    torch.manual_seed(0)
    model = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
    save_model(model, folder / "digits.safetensors", data="digits", seed=0, method="mebqat")


def refused(capsys, command, message):
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
    assert printed.err.startswith("mebqat-lite: ") and printed.err.count("\n") == 1 and len(printed.err) < 300


@pytest.mark.parametrize("option", [("--ways", "5"), ("--shots", "1"), ("--episodes", "9"), ("--norm", "support")])
def test_a_classifier_of_fixed_classes_has_no_ways(capsys, elsewhere, option):
    classifier(elsewhere)
    refused(capsys, ["evaluate", "--checkpoint", "digits.safetensors", *option], "classifier of fixed classes")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("maml", ["--ways", "20"], "classifier has 5 outputs, and the episodes 20 ways: ask for 5 ways"),
        ("pn", ["--ways", "5000"], "5000 ways need as many classes, and there are"),
        ("pn", ["--shots", "20"], "20 shots and 1 queries need 21 images of each class"),
        ("pn", ["--ways", "1"], "ways must be a whole number of at least 2, not 1"),
        ("pn", ["--data", "folder:gone"], "gone"),
    ],
)
def test_what_a_few_shot_network_cannot_be_asked_is_one_line(capsys, elsewhere, kind, options, message):
    refused(capsys, [*trained(kind), "--norm", "support", *options], message)


def test_a_pair_per_layer_is_refused_for_new_classes(capsys, elsewhere):
    trained("pn")
    command = ["evaluate", "--checkpoint", "m.safetensors", "--layers", "*=W8A8"]
    refused(capsys, command, "--layers is for classifiers of fixed classes; give --bits")


@pytest.mark.parametrize("option", ["--shots", "--queries", "--ways", "--episodes"])
def test_none_of_what_is_counted_is_refused(capsys, elsewhere, option):
    """Zero is a number that was asked for, not the absence of one."""
    command = [*trained("pn"), option, "0"]
    capsys.readouterr()
    assert main(command) == 2 and capsys.readouterr().err.count("\n") == 1


# --- comparisons ------------------------------------------------------------------------------------------------


def compared(folder, names, setup="tiny-pn", **options):
    fixed = {"pairs": ("W2A2", "FP"), "listed": ("W2A2",), "seeds": 1, "workers": 1, "progress": False}
    return compare(replace(TINY[setup], data="made", episodes=4), names, folder=folder, **{**fixed, **options})


def test_few_shot_methods_are_compared(elsewhere):
    names = ["pn", "pn_ptq_mse", "pn_qat", "mebqat_pn"]
    found = compared(elsewhere / "c", names)
    assert found["rivals"] == ("mebqat_pn", "pn_qat") and list(found["accuracy"]) == names
    assert {"accuracy", "validation", "paired", "means", "native", "costs", "break_even", "setup"} <= set(found)
    assert {name: list(row) for name, row in found["accuracy"].items()} == {
        name: ["W2A2"] if name == "pn_qat" else ["W2A2", "FP"] for name in names
    }
    for part, key in (("test", "accuracy"), ("val", "validation")):
        gap = found[key]["mebqat_pn"]["W2A2"]["mean"] - found[key]["pn_qat"]["W2A2"]["mean"]
        assert found["paired"][part]["W2A2"]["mean"] == pytest.approx(gap)
    backprops = {name: cost["backprops"] for name, cost in found["costs"].items()}
    assert backprops == {"pn": 2, "pn_ptq_mse": 2, "pn_qat": 2, "mebqat_pn": 6}  # all start cold: no warm steps
    assert found["alone"] == {name: {} for name in names} and found["native"]["norm_stats"]["pn"] == "batch"
    assert found["break_even"] == 4


def test_the_accuracy_that_a_compared_model_states_is_that_of_its_file(elsewhere):
    compared(elsewhere / "c", ["mebqat_pn"])
    model, extra = load_model(elsewhere / "c" / "mebqat_pn-seed0.safetensors")
    learner, asked, _ = episodes_for(model, extra)
    stated = extra["accuracy"]["test"]
    scores = episode_scores(model, learner, asked, list(stated), count=4, norm_stats="recalibrated")
    assert list(stated) == ["W2A2", "FP"] and scores.mean(1).tolist() == pytest.approx(list(stated.values()))
    start = files.read(elsewhere / "c" / "pn-seed0.safetensors", "model")[1]["extra"]
    assert start["method"] == "pn" and learns_new_classes(start)


@pytest.mark.parametrize("policy", ["support", "recalibrated"])
def test_maml_methods_are_compared(elsewhere, policy, monkeypatch):
    monkeypatch.setitem(TINY, "tiny-maml", replace(TINY["tiny-maml"], norm_stats=policy))
    names = ["fomaml_ptq_mse", "fomaml_ptq_lsq", "fomaml_qat", "mebqat_maml"]
    found = compared(elsewhere / "c", names, "tiny-maml")
    assert found["rivals"] == ("mebqat_maml", "fomaml_qat") and list(found["paired"]["test"]) == ["W2A2"]
    assert found["costs"]["mebqat_maml"]["backprops"] == 4 and found["norm_stats"] == policy


@pytest.mark.parametrize("names", [["mebqat", "mebqat_pn"], ["pn_qat", "mebqat_maml"], ["fp", "fomaml"]])
def test_methods_of_two_kinds_cannot_be_compared(elsewhere, names):
    with pytest.raises(ValueError, match=r"these methods start from .*: compare methods that share their start"):
        compared(elsewhere / "c", names)
    assert not (elsewhere / "c").exists()


def test_the_method_that_all_start_from():
    assert [base_of(names) for names in (["mebqat"], ["mebqat_pn+m=2", "pn"], ["fomaml_qat"])] == ["fp", "pn", "fomaml"]


@pytest.mark.parametrize(("base", "m", "tasks", "steps"), [("pn", 4, 9, 40), ("fomaml", 9, 4, 40), ("fp", 4, 9, 40)])
def test_a_budget_of_back_propagations_is_that_of_the_method_that_samples(base, m, tasks, steps):
    recipe = Recipe(steps=30, m=m, tasks=tasks)
    assert within("backprops", recipe, 3, 5, base).steps == steps
    assert within("total", recipe, 3, 5, base).steps == steps // 5
    assert within("steps", recipe, 3, 5, base) is recipe


def test_a_part_that_is_empty_is_not_measured(elsewhere, monkeypatch):
    whole = made()
    bare = replace(whole, val=whole.val.select(torch.tensor([], dtype=torch.int64)))
    monkeypatch.setitem(datasets.DATASETS, "made", lambda seed=0: bare)
    found = compared(elsewhere / "c", ["pn", "mebqat_pn"])
    assert found["validation"] == {"pn": {}, "mebqat_pn": {}}
    assert set(found["accuracy"]["mebqat_pn"]) == {"W2A2", "FP"}


def test_a_network_of_a_middle_pair_has_no_row_at_the_ends(elsewhere):
    found = compared(elsewhere / "c", ["pn_qat"], pairs=("W3A3",), listed=("W3A3",))
    assert list(found["accuracy"]["pn_qat"]) == ["W3A3"] and found["native"]["accuracy"] == {"pn_qat": {}}
