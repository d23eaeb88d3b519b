"""Few-shot networks from checkpoints: their episodes, and statistics that are missing."""

import torch
from tiny_few_shot import SPLIT, episodes, net

from mebqat_lite import METHODS, Recipe, datasets, recalibrate
from mebqat_lite.learners import ProtoNet
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.measure.fewshot import EVALUATION_SEED
from mebqat_lite.measure.saved import episodes_for, few_shot, give_statistics, learns_new_classes
from mebqat_lite.switching.norms import is_recalibrated


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
