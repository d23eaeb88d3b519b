"""Lesson 03's cost calculator: its numbers against independent arithmetic, and the widget without a browser."""

import re
import xml.etree.ElementTree as ET

import pytest

import mebqat_lite as mq
from mebqat_lite.course.widgets import cost_calculator
from mebqat_lite.course.widgets.costs import NETWORKS, compute, describe, picture
from mebqat_lite.measure.summary import packed_bytes


def title_of(html: str) -> str:
    root = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and title.text == root.get("aria-label")
    return title.text


@pytest.mark.parametrize("network", NETWORKS)
def test_the_headline_savings_come_out_at_75_pairs_and_4_a_step(network):
    savings = compute(75, 4, network).savings
    assert f"{savings['storage']:.1f} {savings['work']:.1f} {savings['packed weights']:.1f}" == "98.7 94.7 93.5"


def test_bytes_are_those_that_a_model_counts():
    data = mq.datasets.digits()
    model = mq.quantize(mq.models.digit_net_wide(), "dorefa", sample=data.train.images[:32])
    layers, norms = 0, 4 * (16 + 32 + 32 + 32) * 4 + 4 * 8  # gain, shift, mean, variance; and four counters
    for pair in mq.candidates():
        with mq.at(model, pair):
            layers += packed_bytes(model)
    result = compute(75, 4, "digit_net_wide")
    assert result.one == mq.costs.stored_bytes(model) == 95_880
    assert result.dedicated == 75 * 95_880
    assert result.packed == pytest.approx(layers + 75 * norms)
    mq.recalibrate(model, data.train.images[:32], mq.candidates())
    assert result.with_stats == mq.costs.stored_bytes(model)


def test_the_packed_weights_are_493_bits_against_32():
    bits = sum(w * sum(b.w == w for b in mq.candidates()) for w in range(33))
    assert bits == 493
    for n in (1, 7, 75):
        assert compute(n).savings["packed weights"] == pytest.approx(100 - 3200 / (n * 493 / 75))


@pytest.mark.parametrize("m", range(1, 9))
def test_it_breaks_even_where_the_saving_turns_positive(m):
    pays = [n for n in range(1, 76) if compute(n, m).savings["work"] > 1e-9]
    assert compute(9, m).break_even == pays[0] == m + 1
    assert compute(m, m).savings["work"] == 0


def test_a_loss_is_shown_as_one():
    result = compute(2, 4)
    assert result.savings["work"] == -100 and result.savings["packed"] < 0
    assert "-100.0 %" in describe(result) and "back-propagations saved -100.0 %" in title_of(picture(result))


@pytest.mark.parametrize(("pairs", "m"), [(0, 4), (76, 4), (5, 0)])
def test_counts_that_make_no_sense_are_refused(pairs, m):
    with pytest.raises(ValueError, match="1 to 75 pairs"):
        compute(pairs, m)


def test_every_position_of_every_control_gives_another_picture():
    live = cost_calculator()
    seen = {live.picture.value}
    moves = [("pairs", n) for n in range(1, 76) if n != live.controls["pairs"].value]
    moves += [("m", m) for m in (1, 2, 3, 5, 6, 7, 8)]
    for name, value in [*moves, *(("network", name) for name in [*NETWORKS][1:])]:
        live.controls[name].value = value
        assert live.picture.value not in seen and live.error.value == ""
        assert not re.search(r"nan|inf\b", title_of(live.picture.value))
        seen.add(live.picture.value)
