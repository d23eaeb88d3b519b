"""The episode viewer's numbers against independent arithmetic, and the widget without a browser."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import mebqat_lite as mq
from mebqat_lite.course.widgets import episode_viewer, svg
from mebqat_lite.course.widgets.episodes import (
    ASKED,
    MOST_STEPS,
    POLICIES,
    SHIPPED,
    EpisodeViewer,
    adapted,
    ask,
    compute,
    describe,
    embedded,
    picture,
    plane,
    trajectory,
)
from mebqat_lite.datasets.base import Data
from mebqat_lite.datasets.episodes import Episode, Episodes
from mebqat_lite.learners import ProtoNet
from mebqat_lite.learners.maml import FOMAML


@pytest.fixture(scope="module")
def data() -> Data:
    return mq.datasets.glyphs()


@pytest.fixture(scope="module")
def episode(data) -> Episode:
    return Episodes(data.test, ways=5, shots=2, queries=3, seed=1)[0]


@pytest.fixture(scope="module")
def nets(data) -> dict[str, torch.nn.Module]:
    """Small networks: their first and only training is that of the norms' shift, so that it is not all zero."""
    torch.manual_seed(0)
    found = {}
    for name, classes in (("ProtoNet", None), ("FOMAML", 5)):
        net = mq.models.conv4(channels=8, classes=classes)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.bias, std=0.1)
        found[name] = mq.quantize(net, "lsq", sample=data.train.images[:64]).eval()
    return found


def title_of(html: str) -> str:
    root = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and title is not None and title.text == root.get("aria-label")
    return title.text


# --- the numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("norm_stats", POLICIES)
def test_protonet_answers_are_those_of_plain_distances(nets, episode, norm_stats, asked):
    result = compute(nets["ProtoNet"], episode, "ProtoNet", norm_stats, asked)
    size = {"all together": 15, "class by class": 3, "one by one": 1}[asked]
    predict = ProtoNet().adapt(nets["ProtoNet"], episode.support, mq.FP, norm_stats)
    want = [int(a) for batch in episode.query.flatten(0, 1).split(size) for a in predict(batch).argmax(1)]
    assert result.answers.flatten().tolist() == want
    assert result.correct == sum(answer == i // 3 for i, answer in enumerate(want))
    assert not result.accuracy and result.points.shape == (5 + 15, 2)


def test_embeddings_under_batch_are_those_of_one_training_pass(nets, episode):
    net = nets["ProtoNet"]
    centres, queries = embedded(net, episode, "batch")
    images = torch.cat([episode.support.flatten(0, 1), episode.query.flatten(0, 1)])
    net.train()
    mq.switching.state.setting_of(net).track_running = False
    try:
        out = net(images).detach()
    finally:
        mq.switching.state.setting_of(net).track_running = True
        net.eval()
    assert torch.allclose(queries, out[10:], atol=1e-3)
    assert torch.allclose(centres, out[:10].view(5, 2, -1).mean(1), atol=1e-3)


def test_the_plane_is_that_of_numpy_and_turns_no_distance_longer():
    rng = torch.Generator().manual_seed(0)
    centres, queries = torch.randn(3, 6, generator=rng), torch.randn(9, 6, generator=rng) * torch.arange(1, 7)
    points, share = plane(centres, queries)
    both = torch.cat([centres, queries]).double().numpy()
    values, axes = np.linalg.eigh(np.cov(both.T))
    want = (both - both.mean(0)) @ axes[:, ::-1][:, :2]
    assert np.allclose(np.abs(points.numpy()), np.abs(want), atol=1e-4)
    assert share == pytest.approx(100 * values[-2:].sum() / values.sum(), abs=1e-3)
    assert (torch.pdist(points) <= torch.pdist(torch.cat([centres, queries])) + 1e-4).all()
    assert torch.equal(points, plane(centres, queries)[0])


def test_fomaml_stages_are_those_of_plain_sgd(nets, episode):
    net = nets["FOMAML"]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stages = adapted(net, episode.support, 3)
    layers = r"(stem|body\.\d)\.0\.weight|body\.4\.(weight|bias)"  # neither batch norms nor quantizer steps
    moving = {n: p.detach().clone() for n, p in net.named_parameters() if re.fullmatch(layers, n)}
    assert len(moving) == 6
    images, labels = episode.support.flatten(0, 1), torch.arange(5).repeat_interleave(2)
    for stage in stages[1:]:
        leaves = {n: p.requires_grad_() for n, p in moving.items()}
        with mq.at(net, "FP", "batch"):
            loss = F.cross_entropy(functional_call(net, leaves, images), labels)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        moving = {n: (p - 0.1 * g).detach() for (n, p), g in zip(leaves.items(), grads, strict=True)}
        state = stage.state_dict()
        assert max(float((state[n] - p).abs().max()) for n, p in moving.items()) < 1e-5
    assert stages[0] is net and all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("norm_stats", POLICIES)
def test_fomaml_answers_are_those_of_the_learner(nets, episode, norm_stats):
    for steps in (1, 5):
        result = compute(nets["FOMAML"], episode, "FOMAML", norm_stats, steps=steps)
        predict = FOMAML(inner_steps=steps).adapt(nets["FOMAML"], episode.support, mq.FP, norm_stats)
        assert result.answers.flatten().tolist() == predict(episode.query.flatten(0, 1)).argmax(1).tolist()
        assert result.accuracy["query"][steps] == pytest.approx(100 * result.correct / 15)
        assert all(len(curve) == MOST_STEPS + 1 for curve in result.accuracy.values())


def test_what_is_known_gives_the_same_as_adapting_again(nets, episode):
    known = trajectory(nets["FOMAML"], episode, "support")
    for asked in ASKED:
        once = compute(nets["FOMAML"], episode, "FOMAML", "support", asked, 2, known)
        again = compute(nets["FOMAML"], episode, "FOMAML", "support", asked, 2)
        assert torch.equal(once.answers, again.answers) and once.accuracy == again.accuracy


@pytest.mark.parametrize("learner", SHIPPED)
def test_under_support_statistics_it_does_not_matter_who_shares_a_batch(nets, episode, learner):
    answers = [compute(nets[learner], episode, learner, "support", asked).answers for asked in ASKED]
    assert all(torch.equal(answer, answers[0]) for answer in answers)


def test_batches_are_what_they_are_called():
    seen = []

    def predict(images):
        seen.append(len(images))
        return F.one_hot(images.flatten(1)[:, 0].long(), 4).float()

    query = torch.arange(4.0).repeat_interleave(3).view(4, 3, 1, 1, 1)
    for asked, sizes in zip(ASKED, ([12], [3] * 4, [1] * 12), strict=True):
        seen.clear()
        assert ask(predict, query, asked).tolist() == [[n] * 3 for n in range(4)] and seen == sizes


# --- the picture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", SHIPPED)
def test_wrong_answers_are_marked_and_the_picture_says_its_state(nets, episode, learner):
    result = compute(nets[learner], episode, learner, "batch", "one by one", 3)
    drawing = picture(result, 7)
    title = title_of(drawing)
    assert title.startswith(f"{learner} on episode 7, 2 shot, batch statistics, asked one by one")
    assert f"{result.correct} of 15 queries right" in title and ("3 inner steps" in title) == (learner == "FOMAML")
    rects = ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}rect")
    frames = [rect for rect in rects if rect.get("stroke-width") == "3"]
    assert len(frames) == 15 - result.correct > 0 and {frame.get("stroke") for frame in frames} == {svg.VERMILION}
    assert len(list(ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}image"))) == 5 * (2 + 3)
    assert "nan" not in drawing and drawing == picture(result, 7)
    assert "normalized with its neighbours" in describe(result)


def test_every_control_changes_the_picture(nets, data):
    live = EpisodeViewer(nets, data)
    moves = [("steps", 0), ("number", 3), ("shots", 3), ("asked", "one by one"), ("norm_stats", "support")]
    moves += [("learner", "ProtoNet"), ("number", 4), ("shots", 1), ("asked", "class by class")]
    moves += [("norm_stats", "batch")]
    for name, value in moves:
        before = title_of(live.picture.value)
        live.controls[name].value = value
        assert title_of(live.picture.value) != before and live.error.value == ""
        assert live.controls["steps"].disabled == (live.controls["learner"].value == "ProtoNet")


def test_only_a_new_episode_is_adapted_to(nets, data, monkeypatch):
    live = EpisodeViewer(nets, data)
    first = live.kept
    live.controls["steps"].value = 2
    live.controls["asked"].value = "one by one"
    assert live.kept is first
    live.controls["number"].value = 2
    assert live.kept is not first


def test_the_shipped_networks_know_new_classes_and_fomaml_its_neighbours(data):
    live = episode_viewer()
    assert live.error.value == ""
    right = dict.fromkeys([("ProtoNet", ASKED[0]), ("FOMAML", ASKED[0]), ("FOMAML", ASKED[1])], 0)
    for number in range(4):
        shown = Episodes(data.test, 5, 1, 4, 0)[number]
        for learner, asked in right:
            right[learner, asked] += compute(live.models[learner], shown, learner, "batch", asked).correct
    assert right["ProtoNet", ASKED[0]] > 68 and right["FOMAML", ASKED[0]] > 60 > 55 > right["FOMAML", ASKED[1]]
