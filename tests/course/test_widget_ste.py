"""The training widget: its training against plain PyTorch, its picture, and the view without a browser."""

import io
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from PIL import Image

from mebqat_lite import at, datasets, load_model, quantize, quantizers
from mebqat_lite.course.exercises.lesson_02 import ste_round
from mebqat_lite.course.widgets import ste
from mebqat_lite.course.widgets.ste import HIDDEN, Trace, View, compute, losses, picture, place, say, still
from mebqat_lite.paths import shipped


class Flat(quantizers.DoReFa):
    """DoReFa with the gradient of `torch.round`."""

    def weight(self, w, bits, params, site):
        return super().weight(w, bits, params, site).detach() + 0 * w

    def activation(self, x, bits, params, site):
        return super().activation(x, bits, params, site).detach() + 0 * x


@pytest.fixture(autouse=True)
def names(monkeypatch):
    monkeypatch.setitem(quantizers.QUANTIZERS, "flat", Flat())


@pytest.fixture(scope="module")
def data():
    found = datasets.digits()
    few = datasets.base.Split(found.train.images[:200], found.train.labels[:200])
    return datasets.base.Data("digits", few, found.val, found.test, found.classes)


@pytest.fixture(scope="module")
def net():
    return load_model(shipped("checkpoints", "digits-fp.safetensors"))[0]


@pytest.fixture
def short(monkeypatch):
    """Few steps, so that a widget trains at once."""
    monkeypatch.setattr(ste, "STEPS", 5)


ROUNDINGS = {"plain": "flat", "STE": "dorefa"}


# ---------------------------------------------------------------- the training


@pytest.mark.parametrize("bits", [1, 2])
def test_it_trains_the_hidden_weights_as_plain_pytorch_does(net, data, bits):
    trace = compute(net, "dorefa", bits, data, steps=3)
    mine = quantize(load_model(shipped("checkpoints", "digits-fp.safetensors"))[0], "dorefa", sample=data.train.images)
    weights = [mine.get_submodule(name).weight for name in HIDDEN]
    optimizer, seen = torch.optim.Adam(weights, lr=0.01), []
    for step in range(4):
        mine.train()
        with at(mine, f"W{bits}A{bits}"):
            loss = F.cross_entropy(mine(data.train.images), data.train.labels)
        seen.append(loss.item())
        if step < 3:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert trace.losses == pytest.approx(seen, rel=1e-4) and trace.steps == 3
    assert torch.allclose(trace.places[-1], place(weights[1]), atol=1e-4)


def test_without_a_gradient_no_weight_and_no_loss_moves(net, data):
    trace = compute(net, "flat", 2, data, steps=5)
    assert (trace.places == trace.places[0]).all() and {*trace.losses} == {trace.losses[0]}
    assert trace.changed(5) == 0 and trace.right[0] == trace.right[5]


def test_with_the_estimator_the_loss_falls_and_weights_change_their_level(net, data):
    trace = compute(net, "dorefa", 2, data, steps=10)
    assert trace.losses[-1] < trace.losses[0] / 2 and trace.changed(10) > trace.changed(5) > 0
    assert sorted(trace.right) == [0, 5, 10]


def test_the_network_that_it_starts_from_is_not_changed(net, data):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    compute(net, "dorefa", 1, data, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@given(st.integers(1, 4), st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_levels_and_thresholds_are_those_of_the_quantizer(bits, places):
    trace = Trace("dorefa", bits, torch.tensor([places], dtype=torch.float64), (0.0,), {0: 0.0})
    count = 2**bits - 1
    levels = [2 * code / count - 1 for code in range(count + 1)]
    thresholds = [(low + high) / 2 for low, high in itertools.pairwise(levels)]
    for found, x in zip(trace.codes(0).tolist(), places, strict=True):
        assert abs(levels[int(found)] - x) == pytest.approx(min(abs(level - x) for level in levels), abs=1e-12)
    near = [min(abs(x - threshold) for threshold in thresholds) * count / 2 for x in places]
    if all(abs(distance - ste.NEAR) > 1e-9 for distance in near):
        assert trace.near(0) == sum(distance < ste.NEAR for distance in near)


def test_places_are_those_that_dorefa_rounds():
    w = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    out = quantizers.get("dorefa")[1].weight(w, 3, {}, quantizers.Site("w")).flatten()
    codes = ((place(w) + 1) / 2 * 7).round()
    assert torch.allclose(out, w.abs().mean() * (2 * codes / 7 - 1), atol=1e-6)


def test_the_exercise_is_the_rounding_of_the_package():
    assert ste_round.package is quantizers.unit_activation


# ---------------------------------------------------------------- the picture


def made(bits: int, seed: int) -> Trace:
    rng = torch.Generator().manual_seed(seed)
    places = torch.rand(11, 90, generator=rng) * 2 - 1
    return Trace("dorefa", bits, places, tuple(torch.rand(11, generator=rng).tolist()), {0: 20.0, 5: 50.0, 10: 70.0})


def view(bits: int, step: int, title: str = "STE", both: bool = True) -> View:
    curves = {"plain": made(bits, 1), "STE": made(bits, 2)}
    return View(title, curves[title], step, curves if both else {title: curves[title]})


def drawn(*views: View) -> np.ndarray:
    """The pixels after moves, drawn anew as a whole."""
    drawing = picture(("plain", "STE"))
    for one in views:
        drawing.update(one)
    canvas = FigureCanvasAgg(drawing.figure)
    canvas.draw()
    plt.close(drawing.figure)
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def test_the_picture_shows_the_last_view_whatever_was_shown_before():
    last = view(2, 4, both=False)
    assert np.array_equal(drawn(view(4, 10, "plain"), last), drawn(last))
    assert not np.array_equal(drawn(view(2, 5, both=False)), drawn(last))


def test_a_weight_is_green_once_it_has_a_new_level():
    one, drawing = view(2, 10), picture(("plain", "STE"))
    drawing.update(one)
    lines = [part for part in drawing.moving if isinstance(part, LineCollection)]
    [paths] = [part for part in lines if len(part.get_segments()) == ste.SHOWN]
    some = torch.linspace(0, 89, ste.SHOWN).long()
    is_new = (one.trace.codes(10) != one.trace.codes(0))[some]
    colors = {tuple(color) for color, new in zip(paths.get_colors().tolist(), is_new.tolist(), strict=True) if new}
    others = {tuple(color) for color, new in zip(paths.get_colors().tolist(), is_new.tolist(), strict=True) if not new}
    assert len(colors) == len(others) == 1 and colors != others
    plt.close(drawing.figure)


def test_the_words_have_the_numbers_of_the_step():
    one = view(2, 7)
    words = say(one)
    assert words.startswith(f"W2A2, STE, step 7: loss {one.trace.losses[7]:.2f}, 50.0 % of the validation images right")
    assert f"{one.trace.changed(7)} of 90 weights have a new level, {one.trace.near(7)} lie at a threshold" in words


def test_still_figures_say_what_they_show():
    curves = {"plain": made(2, 1), "STE": made(2, 2)}
    assert still(curves).get_label() == say(View("STE", curves["STE"], 10, curves))
    figure = losses(curves)
    assert f"STE from {curves['STE'].losses[0]:.2f} to {curves['STE'].losses[-1]:.2f}" in figure.get_label()
    assert figure.axes[0].get_ylim()[0] == 0
    plt.close("all")


# ---------------------------------------------------------------- the widget


def test_it_trains_what_is_chosen_and_shows_the_end(net, data, short):
    live = ste.straight_through(ROUNDINGS, net, data)
    assert live.result.title == "STE" and live.result.step == live.controls["step"].value == 5
    live.controls["bits"].value = 1
    assert live.result.trace.bits == 1 and live.result.trace.steps == 5
    live.controls["rounding"].value = "plain"
    assert live.result.trace.quantizer == "flat" and {*live.result.curves} == {"plain", "STE"}
    assert live.error.value == ""


def test_the_step_can_be_moved_back_and_nothing_trains_again(net, data, short, monkeypatch):
    live = ste.straight_through(ROUNDINGS, net, data)
    before, known = live.pictures[0].value, live.result.trace
    monkeypatch.setattr(ste, "train", None)
    live.controls["step"].value = 2
    assert live.result.step == 2 and live.result.trace is known and live.pictures[0].value != before
    live.controls["step"].value = 5
    assert live.result.step == 5 and live.pictures[0].value == before and live.error.value == ""


def test_the_live_picture_is_the_still_one(net, data, short):
    live = ste.straight_through(ROUNDINGS, net, data)
    live.controls["step"].value = 3
    shown = np.asarray(Image.open(io.BytesIO(live.pictures[0].value)))
    drawing = picture(tuple(ROUNDINGS))
    drawing.update(live.result)
    canvas = FigureCanvasAgg(drawing.figure)
    canvas.draw()
    assert np.array_equal(shown, np.asarray(canvas.buffer_rgba())[:, :, :3])
    plt.close(drawing.figure)


def test_a_training_ends_when_something_else_is_chosen(net, data, short):
    live = ste.straight_through(ROUNDINGS, net, data)
    work = live.training(("plain", 3))
    live.chosen = ("plain", 3)
    next(work)
    live.chosen = ("STE", 3)
    assert list(work) == [] and live.trainings["plain", 3].steps == 0


def test_an_error_in_training_is_shown_in_place(net, data, short):
    live = ste.straight_through({"STE": "dorefa", "mine": "no such quantizer"}, net, data)
    assert "no quantizer" in live.error.value and not live.pictures[0].value
    live.controls["rounding"].value = "STE"
    assert live.error.value == "" and live.result.trace.steps == 5
