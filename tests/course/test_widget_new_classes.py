"""The challenge of twenty classes and the plane of lesson 06, on made images and small networks."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mebqat_lite as mq
from mebqat_lite.course.widgets import class_plane, new_classes
from mebqat_lite.course.widgets.class_plane import ratio
from mebqat_lite.course.widgets.new_classes import (
    CHALLENGES,
    PAIRS,
    SHIPPED,
    WAYS,
    Embedded,
    challenge,
    compute,
    describe,
    picture,
    shipped_networks,
    spoken,
    still,
)
from mebqat_lite.measure import fewshot

FIRST, SECOND = "PN + PTQ-MSE", "MEBQAT-PN"


@pytest.fixture(scope="module")
def split():
    torch.manual_seed(0)
    return mq.datasets.Split(torch.rand(24 * 4, 1, 28, 28), torch.arange(24).repeat(4))


@pytest.fixture(scope="module")
def embedded(split):
    networks = {}
    for seed, title in enumerate((FIRST, SECOND)):
        torch.manual_seed(seed)
        model = mq.models.conv4(channels=4, classes=None)
        networks[title] = mq.quantize(model, "lsq", sample=split.images[:32]).eval()
    return Embedded(networks, split, split.images[:48])


def test_answers_are_those_of_the_learner(embedded):
    """Of another route: the package's learner adapts to the examples and answers the queries."""
    result = compute(embedded, "W3A3", 5)
    task = embedded.challenges[5]
    for title, model in embedded.networks.items():
        learned = mq.learners.ProtoNet().adapt(model, task.support, "W3A3", "recalibrated")
        assert torch.equal(result.answers[title], learned(task.query.flatten(0, 1)).argmax(1))
        assert result.right(title) == int((result.answers[title] == task.labels).sum())
        assert result.share(title) == 100 * result.right(title) / WAYS


def test_scores_are_those_of_the_measurement(embedded):
    scores = embedded.scores(SECOND, "W2A2")
    model, proto = embedded.ready(SECOND, "W2A2"), mq.learners.ProtoNet()
    rule = {"count": CHALLENGES, "norm_stats": "recalibrated"}
    assert torch.equal(scores, fewshot.episode_scores(model, proto, embedded.challenges, "W2A2", **rule)[0])
    assert scores[7] == compute(embedded, "W2A2", 7).share(SECOND)


def test_embeddings_are_computed_once(embedded, monkeypatch):
    known = embedded.at(FIRST, "FP")
    monkeypatch.setattr(fewshot, "embeddings", lambda *args: pytest.fail("it is computed again"))
    assert embedded.at(FIRST, mq.FP) is known


def test_one_query_in_ten_is_farther_than_usual(embedded):
    far = []
    for number in range(CHALLENGES):
        task = embedded.challenges[number]
        with torch.no_grad(), mq.at(embedded.ready(FIRST, "W4A4"), "W4A4", "recalibrated"):
            both = embedded.networks[FIRST](torch.cat([task.support[:, 0], task.query[:, 0]]))
        far.append((both[:WAYS] - both[WAYS:]).norm(dim=1))
    share = float((torch.cat(far) > embedded.usual(FIRST, "W4A4")).float().mean())
    assert share == pytest.approx(0.1, abs=0.002)


def test_the_picture_marks_each_wrong_answer(embedded, split):
    result = compute(embedded, "W2A2", 0)
    figure = still(result, split)
    sheet, words = figure.axes[1].images[0].get_array(), spoken(result)
    height, width = (length // parts for length, parts in zip(sheet.shape[:2], (4, WAYS), strict=True))
    corners = np.asarray(sheet)[::height, ::width]  # the margin of each image: orange where the answer is wrong
    is_orange = torch.from_numpy((corners != 1).any(-1))
    assert not is_orange[:2].any()
    for row, title in zip(is_orange[2:], (FIRST, SECOND), strict=True):
        assert torch.equal(~row, result.answers[title] == torch.arange(WAYS))
        assert f"{title} {result.right(title)}" in words
    assert figure.get_label() == words
    plt.close(figure)


def test_the_marks_stand_at_the_scores(embedded, split):
    result, drawing = compute(embedded, "W4A4", 3), picture(split, [FIRST, SECOND])
    drawing.update(result)
    lines = [line.get_xdata() for line in drawing.figure.axes[0].lines]
    bar, mean, here = lines[3:]  # of the second method
    scores = result.scores[SECOND]
    assert mean[0] == pytest.approx(float(scores.mean())) == pytest.approx(sum(bar) / 2) and here[0] == result.share(
        SECOND
    )
    plt.close(drawing.figure)


def test_the_words_give_the_paired_difference(embedded):
    result = compute(embedded, "W2A2", 0)
    gap = fewshot.paired_difference(result.scores[SECOND], result.scores[FIRST])
    assert f"{SECOND} is {gap['mean']:+.1f} ±{gap['ci95']:.1f} points from {FIRST}" in describe(result)


def test_the_widgets_follow_their_controls(embedded):
    for live in (challenge(embedded), class_plane.class_plane(embedded, [FIRST, SECOND])):
        seen = set()
        for bits in PAIRS:
            live.controls["bits"].value = bits
            live.controls["number"].value = PAIRS.index(bits)
            seen.add(live.pictures[0].value)
            assert live.error.value == "" and bits in live.pictures[0].alt
        assert len(seen) == len(PAIRS)
        picture = np.asarray(Image.open(io.BytesIO(live.pictures[0].value)))
        assert picture.std() > 10


@given(st.integers(0, 2**20), st.floats(0.1, 10))
def test_the_ratio_has_no_unit_and_falls_with_noise(seed, scale):
    torch.manual_seed(seed)
    labels = torch.arange(5).repeat(6)
    centres, noise = 2 * torch.randn(5, 3)[labels], torch.randn(30, 3)
    assert ratio(scale * (centres + noise) + 1, labels) == pytest.approx(ratio(centres + noise, labels), rel=1e-3)
    centred = noise - torch.stack([noise[labels == label].mean(0) for label in labels])
    assert ratio(centres + 2 * centred, labels) == pytest.approx(ratio(centres + centred, labels) / 4, rel=1e-3)


def test_the_ratio_is_that_of_the_variances():
    labels = torch.tensor([0, 0, 1, 1])
    assert ratio(torch.tensor([[0.0, 1.0], [2.0, 1.0], [6.0, 1.0], [8.0, 1.0]]), labels) == pytest.approx(9 / 1)


def test_the_plane_is_that_of_most_variance_at_full_precision(embedded):
    result = class_plane.compute(embedded, "FP", 2, [FIRST])
    labels, chosen = embedded.split.labels, []
    for label in labels[embedded.challenges.index(2)[: class_plane.SHOWN, 0]]:
        chosen.append(embedded.at(FIRST, "FP")[labels == label])
    out = torch.cat(chosen)
    values = torch.linalg.svdvals(out - out.mean(0)).square()
    points = result.points[FIRST].flatten(0, 1)
    assert points.mean(0).abs().max() < 1e-4
    kept = float(points.var(0, correction=0).sum())  # in units of all variance
    assert kept == pytest.approx(float(values[:2].sum() / values.sum()), rel=1e-3)
    assert result.ratios[FIRST] == ratio(embedded.at(FIRST, "FP"), labels)


def test_the_still_plane_says_what_it_shows(embedded):
    result = class_plane.compute(embedded, "W2A2", 0, [FIRST, SECOND])
    figure = class_plane.still(result)
    assert f"{FIRST} {result.ratios[FIRST]:.2f}" in figure.get_label()
    assert [cell.get_title() for cell in figure.axes] == [FIRST, SECOND]
    assert [text.get_text() for text in figure.texts] == [class_plane.NOTE]
    assert all("W2A2, all classes" in cell.texts[0].get_text() for cell in figure.axes)
    plt.close(figure)


@pytest.mark.slow
def test_the_shipped_networks_tell_the_story_of_the_lesson():
    glyphs = mq.datasets.load("glyphs")
    embedded = Embedded(shipped_networks(glyphs), glyphs.val, glyphs.train.images[: new_classes.CALIBRATION])
    assert list(embedded.networks) == list(SHIPPED)
    ptq, *_, ours = SHIPPED
    gap = fewshot.paired_difference(embedded.scores(ours, "W2A2"), embedded.scores(ptq, "W2A2"))
    assert gap["mean"] - gap["ci95"] > 5
    labels = glyphs.val.labels
    kept = {t: ratio(embedded.at(t, "W2A2"), labels) / ratio(embedded.at(t, "FP"), labels) for t in (ptq, ours)}
    assert kept[ptq] < 0.8 < kept[ours]
