"""Adapting to a support set, whatever the learner: which statistics, and what is left alone."""

import copy

import pytest
import torch
from few_shot import CLOSE, DATA, FAST, episode, images, net, small
from torch import nn

from mebqat_lite import fit, quantize, recalibrate
from mebqat_lite.datasets import Episodes
from mebqat_lite.learners import ProtoNet
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.measure.fewshot import episode_scores
from mebqat_lite.switching.state import at, norm_layers, setting_of

POLICIES = ("support", "batch", "recalibrated", "running")


LEARNERS = {"proto": ProtoNet(), "fomaml": FOMAML(2, 0.1), "maml": FOMAML(2, 0.1, second_order=True)}
HEADS = {"proto": None, "fomaml": 3, "maml": 3, "quantize adapted": 3}


def learner_of(name):
    return QuantizeAdapted(2, 0.1) if name == "quantize adapted" else LEARNERS[name]


def adapted(name, policy, bits, task=None, seed=0):
    """A network with statistics of its own for ``bits``, and its predictor for an episode."""
    model = net(HEADS[name], seed=seed)
    recalibrate(model, images(30, seed=5), ["FP", "W2A2"])
    return model, learner_of(name).adapt(model, (task or episode()).support, bits, policy)


@pytest.mark.parametrize("bits", ["FP", "W2A2"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", list(HEADS))
def test_one_query_changes_another_one_s_logits_under_batch_statistics_only(name, policy, bits):
    _, predict = adapted(name, policy, bits)
    query = episode().query.flatten(0, 1)
    before, other = predict(query), query.clone()
    other[5] = 1 - 2 * other[5]
    after, rest = predict(other), torch.arange(12) != 5
    assert not torch.equal(before[5], after[5])
    assert torch.equal(before[rest], after[rest]) == (policy != "batch")


@pytest.mark.parametrize("policy", ["support", "recalibrated", "running"])
@pytest.mark.parametrize("name", list(HEADS))
def test_a_single_query_is_answered_as_among_others(name, policy):
    _, predict = adapted(name, policy, "W2A2")
    query = episode().query.flatten(0, 1)
    together = predict(query)
    assert together.shape == (12, 3)
    for number in (0, 7):
        torch.testing.assert_close(predict(query[number : number + 1]), together[number : number + 1], **CLOSE)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", list(HEADS))
def test_adapting_again_leaves_what_was_adapted_before(name, policy):
    model, predict = adapted(name, policy, "W2A2")
    query = episode().query.flatten(0, 1)
    before = predict(query)
    other = learner_of(name).adapt(model, episode(seed=40).support, "W2A2", policy)(query)
    assert not torch.equal(other, before) and torch.equal(predict(query), before)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", ["eval", "mixed"])
@pytest.mark.parametrize("name", list(HEADS))
def test_adapting_changes_nothing_of_the_model_and_no_mode_matters(name, mode, policy, bits="W2A2"):
    task = episode()
    model = net(HEADS[name]).train(mode == "mixed")
    recalibrate(model, images(30, seed=5), ["FP", "W2A2"])
    if mode == "mixed":
        model.body[1].eval()
    own = dict.fromkeys(("quantizer", "guard", "measured_with"))  # these do not compare by their values
    with at(model, "W4A8", "batch"):
        setting = copy.deepcopy(vars(setting_of(model)) | own)
        state = {n: t.clone() for n, t in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        logits = learner_of(name).adapt(model, task.support, bits, policy)(task.query.flatten(0, 1))
        assert vars(setting_of(model)) | own == setting
        assert [module.training for module in model.modules()] == modes
    now = model.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[n], t) for n, t in state.items())
    assert all(p.grad is None and p.is_leaf and p.requires_grad for p in model.parameters())
    assert not any("moments" in norm.__dict__ for norm in norm_layers(model).values())
    assert not logits.requires_grad and torch.is_grad_enabled()
    _, predict = adapted(name, policy, bits)  # of a network in training mode at another setting
    assert torch.equal(logits, predict(task.query.flatten(0, 1)))


@pytest.mark.parametrize("name", ["fomaml", "quantize adapted"])
def test_adapting_works_where_gradients_are_off(name):
    task, model = episode(), net(3)
    wanted = learner_of(name).adapt(model, task.support, "W2A2")(task.query.flatten(0, 1))
    with torch.no_grad():
        logits = learner_of(name).adapt(model, task.support.clone(), "W2A2")(task.query.flatten(0, 1))
        assert not torch.is_grad_enabled()
    assert torch.equal(logits, wanted)


@pytest.mark.parametrize("trained", ["fomaml", "mebqat_maml"])
@pytest.mark.parametrize("learner", [FOMAML(2, 0.1), QuantizeAdapted(2, 0.1)])
def test_running_statistics_that_nothing_measured_are_refused(trained, learner):
    """MAML trains with those of each episode, so that the running ones stay at 0 and 1, of another network."""
    model, task = small(3), episode()
    fit(model, DATA, trained, FAST, progress=False, device="cpu")
    support, query = task.support.float(), task.query.flatten(0, 1).float()
    with pytest.raises(ValueError, match=r"never measured.*: take norm_stats support, batch or recalibrated$"):
        learner.adapt(model, support, "W2A2", "running")
    assert learner.adapt(model, support, "W2A2", "support")(query).isfinite().all()
    with pytest.raises(ValueError, match="never measured"):
        episode_scores(model, learner, Episodes(DATA.test, 3, 2, 2), "W2A2", count=1, norm_stats="running")
    with torch.no_grad():
        model.train()(DATA.train.images)  # measures them
    assert learner.adapt(model, support, "W2A2", "running")(query).isfinite().all()


def test_a_network_without_norms_has_no_statistics_to_miss():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 3))
    model, task = quantize(net.double(), "lsq", sample=images(8)), episode()
    predict = FOMAML(1, 0.01).adapt(model, task.support, "W2A2", "running")
    assert predict(task.query.flatten(0, 1)).shape == (12, 3)
