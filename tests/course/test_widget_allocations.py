"""Bits for each layer in lesson 08: measured accuracies and costs, the picture, and the button that works once."""

import itertools

import pytest
import torch
from digits import network

import mebqat_lite as mq
from mebqat_lite.course.widgets import allocations as room
from mebqat_lite.course.widgets.allocations import WIDTHS, compute, describe, layer_bits, picture, say, search, still
from mebqat_lite.measure.evaluate import scores

FILES = {"MEBQAT in turn": "mebqat_in_turn", "FP + PTQ-MSE": "ptq_mse"}
REST = 4644


@pytest.fixture(scope="module")
def data():
    return mq.datasets.digits()


@pytest.fixture(scope="module")
def networks():
    return {title: network(name) for title, name in FILES.items()}


@pytest.fixture(scope="module")
def found(networks, data):
    before = {title: {n: v.clone() for n, v in net.state_dict().items()} for title, net in networks.items()}
    result = search(networks, data)
    for title, net in networks.items():  # measuring leaves nothing behind
        assert net.state_dict().keys() == before[title].keys()
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in before[title].items())
    return result


@pytest.fixture
def live(found):
    return layer_bits(found, REST)


def test_all_allocations_are_measured_with_statistics_of_their_own(found, data):
    assert list(found.costs) == list(itertools.product(WIDTHS, repeat=3))
    for title, choice in itertools.product(FILES, [(1, 2, 1), (4, 1, 3)]):
        setting = dict(zip(found.layers, (f"W{bits}A4" for bits in choice), strict=True))
        net = network(FILES[title])
        mq.recalibrate(net, data.train.images[: room.MEASURED], setting)
        right = mq.accuracy(net, data.val, setting, "recalibrated")
        assert found.accuracy[title][choice] == pytest.approx(right)


def test_costs_are_those_of_the_planes_and_of_the_package(found, networks, data):
    planes = [-(-count // 8) for count in found.layers.values()]
    net = networks["MEBQAT in turn"]
    for choice in [(1, 1, 1), (3, 2, 1), (4, 4, 4)]:
        result = compute(found, REST, choice)
        size = sum(bits * plane for bits, plane in zip(choice, planes, strict=True))
        assert (result.costs["bytes"], result.costs["file"]) == (size, size + REST)
        assert result.costs["bitops of all"] == mq.costs.bit_operations(
            net, data.val.images[0], room.setting(net, choice)
        )
        assert 0 < result.costs["bitops"] < result.costs["bitops of all"]


def test_the_lesson_holds_on_the_shipped_networks(found):
    ours, rounded = found.accuracy.values()
    assert max(ours.values()) - min(ours.values()) < 5
    same_bytes = [(1, 2, 1), (1, 1, 2), (3, 1, 1)]
    assert len({found.costs[choice]["bytes"] for choice in same_bytes}) == 1
    assert max(rounded[c] for c in same_bytes) - min(rounded[c] for c in same_bytes) > 15


def test_other_widths_are_refused(found):
    with pytest.raises(ValueError, match=r"choose 3 of the widths 1, 2, 3, 4, not \(8, 1, 1\)"):
        compute(found, REST, (8, 1, 1))


# --- the picture -----------------------------------------------------------------------------------------------


def test_the_figure_shows_what_was_computed(found):
    drawing, result = picture(found), compute(found, REST, (3, 2, 1))
    assert drawing.update(result) == say(result) == drawing.figure.get_label()
    board, cloud = drawing.figure.axes
    filled = [cell.get_facecolor() != board.patches[-1].get_facecolor() for cell in board.patches]
    assert filled == [width <= bits for bits in (3, 2, 1) for width in WIDTHS]
    marks = [(line.get_xdata()[0], line.get_ydata()[0]) for line in cloud.lines if line.get_markersize() == 13]
    assert sorted(marks) == sorted((result.costs["bytes"], value) for value in result.accuracy.values())
    clouds = [line for line in cloud.lines if len(line.get_xdata()) == 64]
    assert sorted(list(line.get_ydata()) for line in clouds) == sorted(
        list(r.values()) for r in found.accuracy.values()
    )
    assert f"{result.costs['bitops']:,} in these layers" in describe(result)


@pytest.mark.parametrize("choice", [(1, 2, 1), (3, 2, 1), (4, 4, 4)])
def test_the_numbers_at_the_marks_do_not_collide(found, choice):
    figure = still(found, REST, choice)
    figure.draw_without_rendering()
    numbers = [text for text in figure.axes[1].texts if text.get_text()]
    marks = [line for line in figure.axes[1].lines if line.get_markersize() > 10]
    boxes = [text.get_window_extent() for text in numbers]
    assert len(boxes) == len(marks) == 2 and not boxes[0].overlaps(boxes[1])
    for text, line in zip(numbers, marks, strict=True):
        assert text.get_color() == line.get_color()
        x, y = figure.axes[1].transData.transform(line.get_xydata()[0])
        assert not text.get_window_extent().contains(x, y)


def test_a_still_figure_carries_its_words(found):
    words = still(found, REST, (1, 1, 1)).get_label()
    assert words.startswith("weight bits 1 1 1, 405 bytes of codes: MEBQAT in turn")


# --- the widget ------------------------------------------------------------------------------------------------


def test_every_control_changes_picture_and_words(live):
    for control in live.controls.values():
        before = live.pictures[0].value, live.words.value
        control.value = 4
        assert live.pictures[0].value != before[0] and live.words.value != before[1] and live.error.value == ""
    assert live.result.choice == (4, 4, 4)


def test_bits_are_chosen_by_pointer_and_by_keys(live):
    touch = live.pictures[0]
    touch.point = [3.5 / 4, 1 - 1.5 / 3]
    assert live.result.choice == (2, 4, 2)
    touch.steps = [-2, 0]  # all steps so far: two to the left
    assert live.result.choice == (2, 2, 2)
    touch.steps = [-3, -1]  # one layer down and one step to the left
    assert live.result.choice == (2, 2, 1)
    touch.steps = [-3, 8]  # up beyond the first layer
    touch.steps = [-4, 8]
    assert live.result.choice == (1, 2, 1) and live.error.value == ""


def test_a_choice_is_confirmed_once_on_the_test_images(live, data, networks):
    live.controls["layer 1"].value = 3
    live.confirming.click()
    right = scores(networks["FP + PTQ-MSE"], data.test, [room.setting(networks["FP + PTQ-MSE"], (3, 2, 2))],
                   calibration=data.train.images[: room.MEASURED])  # fmt: skip
    assert f"{right[0]:.1f} % of the test images" in live.confirmed.value and "bits 3 2 2" in live.confirmed.value
    assert live.confirming.disabled and live.error.value == ""
    before = live.confirmed.value
    live.controls["layer 1"].value = 1
    live.confirming.click()
    assert live.confirmed.value == before
