"""The drawing pad of lesson 06: strokes to pixels, the answers against plain arithmetic, the widget without a page."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import mebqat_lite as mq
from mebqat_lite.course.widgets.drawing import (
    EMPTY,
    LENGTH,
    NAMES,
    SHOTS,
    WAYS,
    Answers,
    box_of,
    compute,
    draw_your_own,
    even,
    image_of,
    picture,
    render,
    spoken,
    still,
)
from mebqat_lite.course.widgets.new_classes import PAIRS, Embedded

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


# ---------------------------------------------------------------- the answers

TITLES = ("PN + PTQ-MSE", "MEBQAT-PN")


@pytest.fixture(scope="module")
def data():
    return mq.datasets.glyphs()


@pytest.fixture(scope="module")
def embedded(data):
    images, networks = data.train.images[:40].float() / 255, {}
    for seed, title in enumerate(TITLES):
        torch.manual_seed(seed)
        networks[title] = mq.quantize(mq.models.conv4(channels=4, classes=None), "lsq", sample=images).eval()
    some = data.val.labels <= data.val.labels.unique()[23]
    few = mq.datasets.Split(data.val.images[some], data.val.labels[some])
    return Embedded(networks, few, images)


def support_of(data, counts):
    images = data.test.images[: sum(counts)].float() / 255
    return dict(zip(NAMES, images.split(list(counts)), strict=False))


@pytest.mark.parametrize("counts", [(1, 1), (3, 1, 2), (1, 2, 3, 3, 3)])
def test_distances_are_those_to_the_means_at_each_pair(data, embedded, counts):
    support, query = support_of(data, counts), data.test.images[99].float() / 255
    result = compute(embedded, support, query)
    assert result.names == list(support) and len(result.distances) == len(TITLES) * len(PAIRS)
    for (title, pair), row in result.distances.items():
        model = embedded.networks[title]
        with torch.no_grad(), mq.at(model, pair, "recalibrated"):
            centres = [torch.stack([model(i[None])[0] for i in images]).mean(0) for images in support.values()]
            far = torch.stack([(model(query[None])[0] - c).norm() for c in centres])
        assert row == pytest.approx((far / embedded.usual(title, pair)).tolist(), rel=1e-3)
        assert result.nearest(title, pair) == (list(support)[int(far.argmin())], min(row))


def test_what_is_far_from_all_is_none_of_these():
    made = Answers(["A", "B"], {("PN", "FP"): [1.2, 1.01], ("PN", "W2A2"): [1.2, 0.99]})
    assert made.answer("PN", "FP") == "none" and made.answer("PN", "W2A2") == "B"


def test_without_a_query_or_a_second_class_nothing_is_computed(data, embedded):
    query = data.test.images[99].float() / 255
    assert compute(embedded, support_of(data, (1, 1)), None).distances == {}
    assert compute(embedded, support_of(data, (2,)), query).distances == {}


def test_examples_of_a_class_count_alike():
    a, b = torch.rand(2, 1, 28, 28), torch.rand(3, 1, 28, 28)
    made = even([a, b])
    assert made.shape == (2, 6, 1, 28, 28)
    assert torch.allclose(made.mean(1), torch.stack([a.mean(0), b.mean(0)]))


def answers(truth: str = "", distance: float = 0.5) -> Answers:
    return Answers(["A", "B"], {(title, pair): [distance, 1.5] for title in TITLES for pair in PAIRS}, truth)


@pytest.mark.parametrize(
    ("shown", "color"),
    [(answers(), "#BFDCEC"), (answers("A"), "#BFDCEC"), (answers("B"), "#D55E00"), (answers("B", 1.1), "#E6E6E6")],
)
def test_a_wrong_answer_has_another_colour_than_a_right_one_or_none(shown, color):
    figure = still(shown)
    grid, bars = figure.axes
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    cells = grid.patches[: len(TITLES) * len(PAIRS)]
    assert all(cell.get_facecolor() == pytest.approx((red, green, blue, 1), abs=0.01) for cell in cells)
    assert [bar.get_width() for bar in bars.patches] == [min(shown.distances[TITLES[0], "FP"][0], 2), 1.5, 0, 0, 0]
    assert figure.get_label() == spoken(shown, (TITLES[0], "W2A2"))
    plt.close(figure)


def test_the_still_figure_shows_the_query_beside_the_answers_and_the_examples_beneath():
    support, query = {"A": torch.rand(2, 1, 28, 28), "B": torch.rand(1, 1, 28, 28)}, torch.rand(1, 28, 28)
    figure = still(answers(), support, query)
    _, _, *cells = figure.axes
    assert [cell.get_title() for cell in cells] == ["the query", "class A", "class A", "class B"]
    images = [query, *support["A"], *support["B"]]
    assert all(np.array_equal(cell.images[0].get_array(), image[0]) for cell, image in zip(cells, images, strict=True))
    boxes = [axes.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert boxes[2].x1 < boxes[0].x0 and all(box.y1 < boxes[0].y0 for box in boxes[3:])
    plt.close(figure)


def test_the_words_name_every_answer():
    words = spoken(answers("B", 1.1), (TITLES[1], "W4A4"))
    assert words.startswith("MEBQAT-PN at W4A4: none of these; it is class B. PN + PTQ-MSE 2: none, 3: none, 4: none")


# ---------------------------------------------------------------- the widget


@pytest.fixture
def live(embedded):
    return draw_your_own(embedded)


def title(live):
    return live.pictures[0].alt.partition(". ")[0]


def draw(live, index, strokes):
    """What the page sends when a stroke ends."""
    pad = live.query if index == "query" else live.classes
    boxes = list(pad.boxes)
    boxes[0 if index == "query" else index] = {"strokes": strokes, "pixels": ""}
    pad.boxes = boxes


def test_drawing_asks_for_what_is_missing_and_then_answers(embedded):
    live = draw_your_own(embedded)
    live.actions["clear all"].click()
    assert "there are none" in title(live)
    draw(live, 0, CROSS)
    assert "there is 1" in title(live)
    draw(live, SHOTS, CIRCLE)
    assert "as the query" in title(live) and live.words.value == ""
    draw(live, "query", CROSS)  # just as the example, and so at distance 0
    assert title(live) == f"{TITLES[0]} at W2A2: class A"
    support, query, truth = live.read()
    assert list(support) == ["A", "B"] and query.shape == (1, 28, 28) and truth == ""
    assert live.result[0].nearest(TITLES[0], "FP") == ("A", pytest.approx(0, abs=1e-3))


def test_the_explained_cell_follows_pointer_and_keys(live):
    live._choose(3, 1)
    assert live.chosen == (TITLES[1], "W8A8") and title(live).startswith("MEBQAT-PN at W8A8")
    for right, up, wanted in ((1, 0, "FP"), (1, 0, "FP"), (-2, 5, "W4A4")):
        live._step(right, up)
        assert live.chosen[1] == wanted
    assert live.chosen[0] == TITLES[0] and title(live).startswith("PN + PTQ-MSE at W4A4")
    assert live.pictures[0].area and live.error.value == ""


def test_choosing_a_cell_computes_nothing(live, monkeypatch):
    monkeypatch.setattr("mebqat_lite.course.widgets.drawing.compute", lambda *args: pytest.fail("computed"))
    live._step(1, 0)
    assert live.chosen[1] == "W3A3" and live.error.value == ""


def test_undo_takes_back_strokes_and_buttons(live):
    start = [pad.boxes for pad in live.pads]
    draw(live, 1, CROSS)
    live.actions["clear all"].click()
    assert "there are none" in title(live)
    live.actions["undo"].click()
    assert live.classes.boxes[1]["strokes"] == CROSS
    live.query._handle_custom_msg("undo", [])
    assert [pad.boxes for pad in live.pads] == start
    live.actions["undo"].click()
    assert [pad.boxes for pad in live.pads] == start and live.error.value == ""


def test_a_new_query_is_another_character_or_an_empty_box(live):
    first, [asked] = live.classes.boxes, live.query.boxes
    live.actions["new query"].click()
    assert live.classes.boxes == first and live.query.boxes != [asked]
    assert live.query.boxes[0]["truth"] in NAMES
    draw(live, 0, CROSS)
    live.actions["new query"].click()
    assert live.query.boxes == [EMPTY] and "as the query" in title(live)


def test_example_characters_are_of_one_class_each_and_change(live, embedded):
    first = live.classes.boxes
    live.actions["example characters"].click()
    assert live.classes.boxes != first and live.error.value == ""
    stored = {image.numpy().tobytes(): int(label) for image, label in zip(*embedded.split, strict=True)}
    boxes = [box for box in (*live.classes.boxes, *live.query.boxes) if box["pixels"]]
    found = [stored[(image_of(box) * 255).round().byte().numpy().tobytes()] for box in boxes]
    assert len(found) == WAYS + 1 and len(set(found[:WAYS])) == WAYS
    assert found[-1] == found[NAMES.index(live.query.boxes[0]["truth"])]


def test_filling_both_pads_computes_once(live, monkeypatch):
    calls = []
    monkeypatch.setattr("mebqat_lite.course.widgets.drawing.compute",
                        lambda *args: calls.append(1) or Answers([], {}))  # fmt: skip
    live.actions["example characters"].click()
    assert calls == [1]


def test_an_error_is_shown_in_place(live):
    boxes = list(live.classes.boxes)
    boxes[1] = {"strokes": [], "pixels": "7"}
    live.classes.boxes = boxes
    assert "ValueError: a box holds 784 digits" in live.error.value and live.pictures[0].value == b""
    live._step(1, 0)  # there is nothing to explain
    live.actions["undo"].click()
    assert live.error.value == "" and live.pictures[0].value


def test_the_picture_is_as_wide_as_its_place():
    drawing = picture(TITLES)
    assert drawing.width + 190 < 800  # the query stands beside it
    plt.close(drawing.figure)
