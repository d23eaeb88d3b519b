"""The file of lesson 08 whose bit planes are dropped: codes and bytes against the package, and the widget."""

import numpy as np
import pytest
import torch
from digits import network
from hypothesis import given, settings
from hypothesis import strategies as st

import mebqat_lite as mq
from mebqat_lite.course.widgets.planes import PLANES, Stripped, bit_planes, compute, describe, drawn, say, shown, still
from mebqat_lite.deploy import codes, sizes

LAYER = "body.1.0"


@pytest.fixture(scope="module")
def data():
    return mq.datasets.digits()


@pytest.fixture(scope="module")
def networks(data):
    return {
        "MEBQAT in turn": Stripped(network("mebqat_in_turn"), data),
        "FP + PTQ-MSE": Stripped(network("ptq_mse"), data),
    }


@pytest.fixture(scope="module")
def file(networks):
    return networks["MEBQAT in turn"].file()


@pytest.fixture
def live(networks, file):
    return bit_planes(networks, file)


def test_the_planes_are_the_bits_that_a_file_holds(networks):
    for one in networks.values():
        whole = one.codes[LAYER][0]
        assert torch.equal(codes.unpack(codes.pack(whole, PLANES), whole.shape), whole)
        rows = np.unpackbits(codes.pack(whole, PLANES).numpy(), axis=1)[:, : whole.numel()]
        assert (one.planes(LAYER).numpy() == rows).all()


def test_all_planes_give_the_weights_of_eight_bits(networks):
    net = network("mebqat_in_turn")
    for name, layer in networks["MEBQAT in turn"].layers.items():
        right = net.get_submodule(name).quantized_weight(PLANES)
        assert torch.allclose(networks["MEBQAT in turn"].weights(name, PLANES), right, atol=1e-6), layer


@given(st.integers(1, PLANES), st.sampled_from(["MEBQAT in turn", "FP + PTQ-MSE"]))
@settings(max_examples=16, deadline=None)
def test_a_weight_is_the_middle_of_what_it_could_be(networks, kept, title):
    whole, step, zero = networks[title].codes[LAYER]
    low = whole >> (PLANES - kept) << (PLANES - kept)
    high = low + 2 ** (PLANES - kept) - 1
    middle = ((low + high) / 2 - zero) * step
    assert torch.allclose(networks[title].weights(LAYER, kept), middle, atol=1e-5)


def test_what_is_read_is_what_the_network_reads_with_these_weights(networks, data):
    net = network("mebqat_in_turn")
    with torch.no_grad():
        for name in networks["MEBQAT in turn"].layers:
            net.get_submodule(name).weight.copy_(networks["MEBQAT in turn"].weights(name, 2))
    mq.recalibrate(net, data.train.images, "W32A2")
    right = mq.accuracy(net, data.test, "W32A2", "recalibrated")
    assert networks["MEBQAT in turn"].read(2).accuracy == pytest.approx(right)


def test_the_network_that_is_given_stays_as_it_was(data):
    net = network("mebqat_in_turn")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Stripped(net, data).read(1)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("kept", [1, 3, 8])
def test_bytes_are_those_of_real_files(networks, file, kept, tmp_path, data):
    """Files of fewer bits differ from the whole one in their codes, and by some letters of the header."""
    mq.save_packed(network("mebqat_in_turn"), tmp_path / "f", f"W{kept}A{kept}", calibration=data.train.images)
    real, found = sizes.parts(tmp_path / "f"), compute(networks, file, kept)
    assert sum(real.values()) == (tmp_path / "f").stat().st_size
    assert abs(real.pop("header") - found.bytes["header"]) <= 16
    assert real == {name: count for name, count in found.bytes.items() if name != "header"}


def test_the_lesson_holds_on_the_shipped_networks(networks, file):
    whole, one = compute(networks, file, 8).accuracy, compute(networks, file, 1).accuracy
    assert min(whole.values()) > 98 and one["MEBQAT in turn"] > 90 > 35 > one["FP + PTQ-MSE"]


@pytest.mark.parametrize("kept", [0, 9])
def test_a_file_has_eight_planes(networks, file, kept):
    with pytest.raises(ValueError, match=f"of which 1 to 8 can be kept, not {kept}"):
        compute(networks, file, kept)


def test_one_image_of_each_class_is_shown(data):
    places = shown(data)
    assert data.test.labels[places].tolist() == list(range(10))
    assert all(label not in data.test.labels[:place] for label, place in enumerate(places))


# --- the picture -----------------------------------------------------------------------------------------------


def test_the_figure_shows_what_was_computed(networks, file):
    drawing, found = drawn(networks, file), compute(networks, file, 1)
    assert drawing.update(found) == say(found) == drawing.figure.get_label()
    stack, bar, rows = (part.axes[0] for part in drawing.figure.subfigs)
    assert stack.patches[0].get_x() == 1 and stack.patches[0].get_width() == 7
    assert {part.get_label(): part[0].get_width() for part in bar.containers} == found.bytes
    assert bar.patches[-1].get_x() + bar.patches[-1].get_width() == found.size
    wrong = sum("✗" in text.get_text() for text in rows.texts)
    answers = [(a, label) for row in found.answers.values() for a, label in zip(row, found.labels, strict=True)]
    assert wrong == sum(a != label for a, label in answers) > 0
    assert f"{found.size:,} bytes" in describe(found) and "one plane of 8" in describe(found)


def test_a_still_figure_carries_its_words(networks, file):
    assert still(networks, file, 2).get_label().startswith("2 of 8 planes, 5,454 bytes: MEBQAT in turn 98.3 %")


# --- the widget ------------------------------------------------------------------------------------------------


def test_the_slider_changes_picture_and_words(live):
    for kept in (2, 1, 8):
        before = live.pictures[0].value, live.words.value
        live.controls["kept"].value = kept
        assert live.pictures[0].value != before[0] and live.words.value != before[1] and live.error.value == ""
        assert live.result.kept == kept


def test_planes_are_kept_by_pointer_and_by_keys(live):
    touch = live.pictures[0]
    for number in range(PLANES):
        touch.point = [(number + 0.5) / PLANES, 0.5]
        assert live.result.kept == live.controls["kept"].value == number + 1
    touch.steps = [-6, 0]
    assert live.result.kept == 2
    touch.steps = [-16, 0]
    assert live.result.kept == 1 and live.error.value == ""
