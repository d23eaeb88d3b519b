"""The plane of embeddings in lesson 05: the answers are those of plain distances, and the places are a projection."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex

from mebqat_lite import learners
from mebqat_lite.course.widgets import embedding_plane
from mebqat_lite.course.widgets.embedding_plane import FLAT, QUERIES, SEED, WAYS, compute, picture, plane
from mebqat_lite.datasets.base import Split
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.measure.looks import BLACK, PALE

INDEX = torch.arange(40).view(5, 8)


def prototype_logits(support, query):
    return learners.prototype_logits(query, support.mean(1))


def clouds(seed: int, apart: float = 2.0, features: int = 6) -> torch.Tensor:
    """Eight points of each of five classes."""
    rng = torch.Generator().manual_seed(seed)
    centres = apart * torch.randn(5, 1, features, generator=rng)
    return (centres + torch.randn(5, 8, features, generator=rng)).flatten(0, 1)


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_answers_are_the_nearest_means_in_all_dimensions(seed, shots):
    points = clouds(seed)
    found, both = compute(points, INDEX, shots, prototype_logits), points.view(5, 8, -1)
    for n in range(5):
        for k, query in enumerate(both[n, shots:]):
            distances = [float((query - both[m, :shots].mean(0)).norm()) for m in range(5)]
            assert int(found.answers[n, k]) == int(np.argmin(distances))
    assert found.right == sum(int((found.answers[n] == n).sum()) for n in range(5))


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_places_fill_the_panel_and_prototypes_lie_in_the_middle_of_their_support(seed, shots):
    found = compute(clouds(seed), INDEX, shots, prototype_logits)
    points = torch.cat([found.support.flatten(0, 1), found.queries.flatten(0, 1), found.prototypes])
    shares = points.abs().amax(0) / torch.tensor([1, FLAT])
    assert float(shares.max()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(found.prototypes, found.support.mean(1), atol=1e-5)


@given(st.integers(0, 2**31))
def test_in_a_plane_of_two_dimensions_nothing_is_lost(seed):
    points = clouds(seed, features=2).double()
    flat, share = plane(points)
    apart, before = (one[:, None] - one for one in (flat, points))
    assert share == pytest.approx(100) and torch.allclose(apart.norm(dim=2), before.norm(dim=2))


@given(st.integers(0, 2**31))
def test_no_other_axes_hold_more_of_the_variance(seed):
    points = clouds(seed).double()
    share = plane(points)[1]
    middle = points - points.mean(0)
    axes = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    assert 0 < 100 * float((middle @ axes).square().sum() / middle.square().sum()) <= share + 1e-9


def test_lines_lead_to_the_answer_and_wrong_ones_are_black():
    points = clouds(1, apart=0.5)
    found = compute(points, INDEX, 3, prototype_logits)
    drawing = picture({"one": points})
    drawing.update({"one": found})
    [lines] = drawing.figure.axes[0].collections
    wrong = (found.answers != torch.arange(5)[:, None]).flatten()
    assert 0 < int(wrong.sum()) < 25
    assert [to_hex(color).upper() for color in lines.get_color()] == [BLACK if bad else PALE for bad in wrong]
    for segment, query, answer in zip(
        lines.get_segments(), found.queries.flatten(0, 1), found.answers.flatten(), strict=True
    ):
        assert np.allclose(segment, torch.stack([query, found.prototypes[answer]]))
    plt.close(drawing.figure)


# --- the widget ----------------------------------------------------------------------------------------------------


LABELS = torch.arange(7).repeat_interleave(12)
SPLIT = Split(torch.zeros(84, 1, 2, 2), LABELS)
NEAR = torch.randn(84, 4, generator=torch.Generator().manual_seed(0))
FAR = NEAR + 50 * torch.nn.functional.one_hot(LABELS, 7)[:, :4] + 80 * LABELS[:, None]
EMBEDDINGS = {"untrained": NEAR, "trained": FAR}


@pytest.fixture
def live():
    return embedding_plane(EMBEDDINGS, SPLIT, prototype_logits)


def test_both_panels_show_the_same_episode(live):
    for shots, number in ((3, 0), (1, 7), (5, 19)):
        live.controls["shots"].value, live.controls["number"].value = shots, number
        index = Episodes(SPLIT, WAYS, shots, QUERIES, SEED).index(number)
        for title, embeddings in EMBEDDINGS.items():
            assert live.result[title].right == compute(embeddings, index, shots, prototype_logits).right
            assert f"<b>{title}</b>: {live.result[title].right} of 25 right" in live.words.value
    assert live.result["trained"].right == 25 > live.result["untrained"].right
    assert f"Chance is {QUERIES}." in live.words.value and live.error.value == ""


def test_a_function_that_fails_is_told_in_place():
    def broken(support, query):
        raise RuntimeError("no logits")

    live = embedding_plane(EMBEDDINGS, SPLIT, broken)
    assert "RuntimeError: no logits" in live.error.value and live.pictures[0].value == b""


def test_only_the_moving_parts_are_drawn_for_another_episode(live, monkeypatch):
    monkeypatch.setattr(live.drawings[0]._canvas, "draw", lambda *args: pytest.fail("the whole figure is drawn again"))
    live.controls["number"].value = 5
    assert live.error.value == ""


def test_the_still_figure_shows_the_same_as_the_widget(live):
    live.controls["number"].value = 2
    figure = live.still()
    assert (
        figure.get_label()
        == live.pictures[0].alt
        == (f"untrained: {live.result['untrained'].right} of 25 queries right; trained: 25 of 25 queries right")
    )
    plt.close(figure)
