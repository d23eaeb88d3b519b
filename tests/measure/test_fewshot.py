"""Few-shot networks measured: episodes shared by all pairs, intervals, enrolment."""

import numpy as np
import pytest
import scipy.stats
import torch
from tiny_few_shot import PAIRS, SPLIT, episodes, net

from mebqat_lite.bits import Bits, candidates
from mebqat_lite.datasets import Episodes, Split
from mebqat_lite.learners import ProtoNet, Supervised
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.measure.fewshot import enrolment, episode_grid, episode_scores, paired_difference
from mebqat_lite.switching.state import at, set_norm_stats, setting_of

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
