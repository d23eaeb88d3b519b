"""The drawing pad of lesson 06: strokes to pixels, the answer against plain arithmetic, the widget without a page."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mebqat_lite as mq
from mebqat_lite.course.widgets.drawing import (
    EMPTY,
    LENGTH,
    NAMES,
    SHIPPED,
    SHOTS,
    WAYS,
    DrawYourOwn,
    Network,
    Pad,
    box_of,
    compute,
    cut_to,
    draw_your_own,
    even,
    image_of,
    render,
)
from mebqat_lite.learners import ProtoNet
from mebqat_lite.learners.maml import FOMAML

CROSS = [[0.1, 0.1, 0.9, 0.9], [0.9, 0.1, 0.1, 0.9]]
CIRCLE = [[0.5 + 0.4 * f(2 * math.pi * i / 30) for i in range(31) for f in (math.cos, math.sin)]]
BAR = [[0.5, 0.1, 0.5, 0.4, 0.5, 0.9]]


# ---------------------------------------------------------------- strokes


@pytest.mark.parametrize("strokes", [CROSS, CIRCLE, BAR, [*CROSS, *BAR]])
def test_strokes_are_drawn_as_the_glyphs_are(strokes):
    """The distance of each pixel to each segment, once more in numpy and by a formula instead of dense points."""
    lines = [np.array(line).reshape(-1, 2) for line in strokes]
    every = np.concatenate(lines)
    low, high = every.min(0), every.max(0)
    y, x = np.mgrid[:28, :28] + 0.5
    pixels, far = np.stack([x, y], -1), np.full((28, 28), np.inf)
    for line in lines:
        moved = (line - (low + high) / 2) * LENGTH / (high - low).max() + 14
        for a, b in itertools.pairwise(moved):
            share = ((pixels - a) @ (b - a) / max((b - a) @ (b - a), 1e-12)).clip(0, 1)
            far = np.minimum(far, np.linalg.norm(pixels - a - share[..., None] * (b - a), axis=-1))
    ink = np.clip(0.75 + 0.5 - far, 0, 1)
    image = render(strokes)
    assert image.shape == (1, 28, 28) and set((3 * image).unique().tolist()) <= {0, 1, 2, 3}
    assert np.abs(image[0].numpy() - ink).max() < 1 / 6 + 0.02  # four levels, and points 0.2 pixels apart


def test_place_and_size_of_a_drawing_do_not_matter():
    small = [[0.7 + 0.2 * v for v in line] for line in CROSS]
    assert torch.equal(render(small), render(CROSS))


def test_strokes_are_about_as_heavy_as_the_glyphs():
    ink = mq.datasets.glyphs().train.images[:500].float().div(255).sum((1, 2, 3))
    assert ink.quantile(0.05) < render(CROSS).sum() < ink.quantile(0.95)


def test_a_dot_is_a_dot_and_nothing_is_black():
    assert render([]).sum() == 0 and render([[]]).sum() == 0
    dot = render([[0.2, 0.9]])[0]
    assert dot[13:15, 13:15].min() > 0 and dot.sum() < 8


def test_a_box_holds_strokes_or_pixels():
    image = mq.datasets.glyphs().test.images[0].float() / 255
    assert torch.equal(image_of(box_of(image)), image)
    assert torch.equal(image_of({"strokes": CROSS, "pixels": ""}), render(CROSS))
    assert image_of(EMPTY) is None
    for wrong in ("012", "4" * 784):
        with pytest.raises(ValueError, match="784 digits"):
            image_of({"strokes": [], "pixels": wrong})


# ---------------------------------------------------------------- the answer


@pytest.fixture(scope="module")
def data():
    return mq.datasets.glyphs()


def network(kind: str, images: torch.Tensor) -> Network:
    torch.manual_seed(0)
    model = mq.models.conv4(channels=4, classes=None if kind == "pn" else 5)
    mq.quantize(model, "lsq", sample=images)
    return Network(kind, model, ProtoNet() if kind == "pn" else FOMAML(2, 0.1), images)


@pytest.fixture(scope="module")
def networks(data):
    images = data.train.images[:40]
    return {kind: network(kind, images) for kind in ("pn", "maml")}


def support_of(data, counts):
    images = data.test.images[: sum(counts)].float() / 255
    return dict(zip(NAMES, images.split(list(counts)), strict=False))


@pytest.mark.parametrize("bits", ["W2A2", "W4A8", "FP", "W32A3"])
@pytest.mark.parametrize("counts", [(1, 1), (3, 1, 2), (1, 2, 3, 3, 3)])
def test_prototypes_are_means_at_the_pair_whatever_the_number_of_examples(data, networks, bits, counts):
    net, support, query = networks["pn"], support_of(data, counts), data.test.images[99].float() / 255
    result = compute(net, support, query, bits)
    with torch.no_grad(), mq.at(net.model.eval(), bits, "recalibrated"):
        centres = [torch.stack([net.model(i[None])[0] for i in images]).mean(0) for images in support.values()]
        far = torch.stack([(net.model(query[None])[0] - c).square().sum() for c in centres])
    assert result.scores == pytest.approx((100 * (-far.double()).softmax(0)).tolist(), abs=0.01)
    assert result.answer == list(support)[int(far.argmin())] and result.names == list(support)
    assert str(result.bits) == bits and result.milliseconds > 0


@pytest.mark.parametrize("ways", [2, 3, 5])
def test_fomaml_learns_as_many_classes_as_are_drawn(data, networks, ways):
    net, support = networks["maml"], support_of(data, [2] * ways)
    weights = {name: value.clone() for name, value in net.model.state_dict().items()}
    result = compute(net, support, data.test.images[99].float() / 255, "W3A3")
    assert len(result.scores) == ways and sum(result.scores) == pytest.approx(100)
    assert all(torch.equal(value, net.model.state_dict()[name]) for name, value in weights.items())


def test_a_cut_classifier_gives_the_first_outputs(data, networks):
    model, images = networks["maml"].model.eval(), data.test.images[:3].float() / 255
    cut = cut_to(model, 3).eval()
    assert cut_to(model, 5) is model
    with torch.no_grad(), mq.at(model, "W4A4", "batch"), mq.at(cut, "W4A4", "batch"):
        assert torch.allclose(cut(images), model(images)[:, :3])


def test_one_class_and_six_are_refused(networks):
    for ways, words in ((1, "two classes at least"), (6, "tells 5 classes apart, not 6")):
        with pytest.raises(ValueError, match=words):
            cut_to(networks["maml"].model, ways)


def test_examples_of_a_class_count_alike():
    a, b = torch.rand(2, 1, 28, 28), torch.rand(3, 1, 28, 28)
    made = even([a, b])
    assert made.shape == (2, 6, 1, 28, 28)
    assert torch.allclose(made.mean(1), torch.stack([a.mean(0), b.mean(0)]))


# ---------------------------------------------------------------- the widget


@pytest.fixture
def live(data, networks):
    return DrawYourOwn(networks, data.test)


def title(live) -> str:
    html = live.picture.value
    root = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    found = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and found.text == root.get("aria-label")
    return found.text


def test_it_starts_with_characters_and_every_control_changes_the_picture(live):
    assert re.search(r"pn at W2A2 answers [A-E] \(\d+ %\); it is class [A-E]", title(live))
    for name, value in (("w", 4), ("a", 32), ("method", "maml"), ("w", 32), ("a", 3)):
        before = live.picture.value
        live.controls[name].value = value
        assert live.picture.value != before and live.error.value == ""
    assert title(live).startswith("maml at W32A3") and "none of the pairs" in live.picture.value


def test_it_has_the_class_and_no_picture_before_its_own(live):
    assert "mq-widget" in live._dom_classes
    assert isinstance(live.children[0], Pad)
    source = Path(mq.__file__).parent.joinpath("course", "widgets", "drawing.js").read_text(encoding="utf-8")
    assert "<svg" not in source.lower() and "data-lm-suppress-shortcuts" in source


def test_drawing_asks_for_what_is_missing_and_then_answers(data, networks):
    live = DrawYourOwn(networks, data.test, filled=False)
    assert "there are none" in title(live)
    draw(live, 0, CROSS)
    assert "there is 1" in title(live)
    draw(live, SHOTS, CIRCLE)
    assert "question mark" in title(live)
    draw(live, WAYS * SHOTS, [[0.2, 0.1, 0.8, 0.9], [0.8, 0.15, 0.1, 0.9]])
    assert re.search(r"pn at W2A2 answers [AB] \(\d+ %\)$", title(live))
    support, query, truth = live.read()
    assert list(support) == ["A", "B"] and query.shape == (1, 28, 28) and truth == ""


def draw(live, index, strokes):
    """What the page sends when a stroke ends."""
    boxes = list(live.pad.boxes)
    boxes[index] = {"strokes": strokes, "pixels": ""}
    live.pad.boxes = boxes


def test_undo_takes_back_strokes_and_buttons(live):
    start = live.pad.boxes
    draw(live, 1, CROSS)
    live.actions["clear all"].click()
    assert "there are none" in title(live)
    live.actions["undo"].click()
    assert live.pad.boxes[1]["strokes"] == CROSS
    live.pad._handle_custom_msg("undo", [])
    assert live.pad.boxes == start
    live.actions["undo"].click()
    assert live.pad.boxes == start and live.error.value == ""


def test_a_new_query_is_another_character_or_an_empty_box(live):
    first = live.pad.boxes
    live.actions["new query"].click()
    assert live.pad.boxes[:-1] == first[:-1] and live.pad.boxes[-1] != first[-1]
    assert live.pad.boxes[-1]["truth"] in NAMES
    draw(live, 0, CROSS)
    live.actions["new query"].click()
    assert live.pad.boxes[-1] == EMPTY and "question mark" in title(live)


def test_example_characters_are_of_one_class_each_and_change(live, data):
    first = live.pad.boxes
    live.actions["example characters"].click()
    assert live.pad.boxes != first and "wrong" not in live.error.value
    stored = {image.numpy().tobytes(): int(label) for image, label in zip(*data.test, strict=True)}
    found = [stored[(image_of(box) * 255).round().byte().numpy().tobytes()] for box in live.pad.boxes if box["pixels"]]
    assert len(found) == WAYS + 1 and len(set(found[:WAYS])) == WAYS
    assert found[-1] == found[NAMES.index(live.pad.boxes[-1]["truth"])]


def test_an_error_is_shown_in_place(live):
    draw(live, 0, CROSS)
    boxes = list(live.pad.boxes)
    boxes[1] = {"strokes": [], "pixels": "7"}
    live.pad.boxes = boxes
    assert "ValueError: a box holds 784 digits" in live.error.value
    live.actions["undo"].click()
    assert live.error.value == ""


def test_a_wrong_answer_is_framed(live):
    *_, truth = live.read()
    for _ in range(20):
        if f"answers {truth}" not in title(live):
            break
        live.actions["new query"].click()
        *_, truth = live.read()
    else:
        pytest.skip("this untrained network was right 20 times")
    assert f"wrong: it is class {truth}" in live.picture.value


def test_the_shipped_networks_are_there_and_work():
    live = draw_your_own()
    assert list(live.networks) == list(SHIPPED)
    for method in SHIPPED:
        live.controls["method"].value = method
        assert live.error.value == "" and title(live).startswith(f"{method} at W2A2")
    modules = [m for net in live.networks.values() for m in net.model.modules()]
    assert not any(module.training for module in modules if isinstance(module, nn.Conv2d))
