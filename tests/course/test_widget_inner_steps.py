"""The inner steps of lesson 05: where probabilities stand between the corners, and how many queries are right."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mebqat_lite.course.widgets import inner_steps
from mebqat_lite.course.widgets.inner_steps import compute, corners, picture


def paths(seed: int = 0, steps: int = 6, sure: float = 3.0) -> torch.Tensor:
    """Probabilities of 25 queries of five classes, which drift towards their classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.nn.functional.one_hot(torch.arange(5).repeat_interleave(5), 5)
    drift = torch.linspace(0, sure, steps + 1)[:, None, None] * labels
    return (torch.randn(steps + 1, 25, 5, generator=rng) + drift).softmax(2)


@given(st.integers(3, 9))
def test_corners_lie_on_a_circle_as_far_apart_as_can_be(ways):
    places = corners(ways).double()
    assert torch.allclose(places.norm(dim=1), torch.ones(ways).double(), atol=1e-6)
    assert torch.allclose(places.sum(0), torch.zeros(2).double(), atol=1e-5)
    sides = (places - places.roll(1, 0)).norm(dim=1)
    assert torch.allclose(sides, sides[:1].expand(ways), atol=1e-5)


@pytest.mark.parametrize("sure", range(5))
def test_a_sure_answer_stands_in_its_corner_and_an_even_one_in_the_middle(sure):
    certain, even = torch.eye(5)[sure].expand(1, 25, 5), torch.full((1, 25, 5), 0.2)
    assert torch.allclose(compute(certain, 0).places[0], corners(5)[sure].expand(25, 2))
    assert compute(certain, 0).right == 5
    assert torch.allclose(compute(even, 0).places, torch.zeros(1, 25, 2), atol=1e-6)


@given(st.integers(0, 2**31), st.integers(0, 6))
def test_places_lie_within_the_polygon_and_right_ones_are_counted(seed, steps):
    probabilities = paths(seed)
    found = compute(probabilities, steps)
    assert found.steps == steps and len(found.places) == steps + 1
    assert float(found.places.norm(dim=2).max()) <= 1 + 1e-6
    best = [int(row.argmax()) == number // 5 for number, row in enumerate(probabilities[steps])]
    assert found.right == sum(best)


@pytest.mark.parametrize("steps", [-1, 7])
def test_steps_that_are_not_there_are_refused(steps):
    with pytest.raises(ValueError, match=f"{steps} steps were asked for, and there are 0 to 6"):
        compute(paths(), steps)


def test_the_slider_shows_the_paths_up_to_its_step():
    starts = {"random start": paths(1, sure=0.5), "FOMAML": paths(2)}
    live = inner_steps(starts)
    assert live.controls["steps"].value == 6
    for steps in (0, 1, 4):
        live.controls["steps"].value = steps
        first, second = (compute(path, steps).right for path in starts.values())
        count = "1 step" if steps == 1 else f"{steps} steps"
        assert live.pictures[0].alt == (
            f"after {count}: random start {first} of 25 queries right, FOMAML {second} of 25 queries right"
        )
        [lines] = live.drawings[0].figure.axes[1].collections
        for segment, place in zip(lines.get_segments(), compute(paths(2), steps).places.unbind(1), strict=True):
            assert np.allclose(segment, place)
    assert live.error.value == ""


def test_starts_on_different_episodes_are_refused():
    with pytest.raises(ValueError, match="the starts differ in their steps or queries"):
        inner_steps({"one": paths(), "two": paths(steps=3)})


def test_a_mark_stands_at_the_end_of_each_path():
    drawing = picture({"one": paths()}, 25)
    drawing.update({"one": compute(paths(), 6)})
    axes = drawing.figure.axes[0]
    ends = [line for line in axes.lines if len(line.get_xdata()) == 5]
    places = compute(paths(), 6).places[-1].view(5, 5, 2)
    for line, wanted in zip(ends, places, strict=True):
        assert np.allclose(np.stack(line.get_data(), 1), wanted)
    plt.close(drawing.figure)


def test_the_still_figure_shows_the_same_as_the_widget():
    live = inner_steps({"FOMAML": paths()})
    live.controls["steps"].value = 2
    figure = live.still()
    assert figure.get_label() == live.pictures[0].alt
    plt.close(figure)
