"""The map of all pairs: its numbers against independent arithmetic, and the widget without a browser."""

import math
import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

import mebqat_lite as mq
from mebqat_lite.course.widgets import heat_map, pair_map, svg
from mebqat_lite.course.widgets.heat_map import compute, describe, picture
from mebqat_lite.datasets.base import Split
from mebqat_lite.measure import looks, plots

NAME = "{http://www.w3.org/2000/svg}"
LIMITS = (0, 100)


@pytest.fixture(scope="module")
def data():
    digits = mq.datasets.digits()
    train, test = (Split(part.images[:90], part.labels[:90]) for part in (digits.train, digits.test))
    return replace(digits, train=train, test=test)


@pytest.fixture(scope="module")
def network(data):
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(), "dorefa", sample=data.train.images).eval()


@pytest.fixture(scope="module")
def frame(network, data):
    return mq.grid(network, data.test, norm_stats="recalibrated", calibration=data.train.images)


def svg_of(html: str) -> ET.Element:
    return ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])


def title_of(html: str) -> str:
    root = svg_of(html)
    assert root.get("role") == "img" and root.find(f"{NAME}title").text == root.get("aria-label")
    return root.get("aria-label")


def words_of(html: str) -> list[str]:
    return [node.text for node in svg_of(html).iter(f"{NAME}text")]


def test_the_map_holds_the_frame_and_its_mean_and_lowest_pair(network, frame, data):
    result = compute("net", network, frame, data, "W2A4")
    means = dict(zip(frame.index.map(str), frame["mean"].tolist(), strict=True))
    assert {str(bits): value for bits, value in result.cells.items()} == means and len(means) == 75
    assert result.mean == pytest.approx(math.fsum(means.values()) / 75)
    worst, value = result.lowest
    assert value == min(means.values()) == means[str(worst)]


@pytest.mark.parametrize("bits", ["W1A1", "W2A4", "W8A16", "FP"])
def test_the_pair_that_is_run_gives_the_number_of_its_cell(network, frame, data, bits):
    here = compute("net", network, frame, data, bits).here
    with torch.no_grad(), mq.at(network, bits, "recalibrated"):
        answers = network(data.test.images).argmax(1)
    assert here.accuracy == pytest.approx(frame.loc[bits, "mean"])
    assert here.accuracy == pytest.approx(100 * float((answers == data.test.labels).float().mean()))
    assert here.predictions == answers[:10].tolist()


def test_packed_bytes_are_those_of_the_layers(network, frame, data):
    here = compute("net", network, frame, data, "W2A4").here
    body = [network.get_submodule(f"body.{i}.0").weight.numel() for i in range(3)]
    ends = sum(p.numel() for part in (network.stem[0], network.body[4]) for p in part.parameters())
    assert here.packed == sum(body) * 2 // 8 + 4 * ends
    assert here.packed_fp == 4 * (sum(body) + ends)


def test_a_map_of_another_policy_is_refused(network, data):
    batch = mq.grid(network, data.test, "FP", norm_stats="batch")
    with pytest.raises(ValueError, match="recalibrated norm statistics, not batch"):
        compute("net", network, batch, data, "FP")
    with pytest.raises(ValueError, match="same titles"):
        pair_map({"net": network}, {"other": batch}, data)


def test_the_picture_shows_every_number_once_in_its_place(network, frame, data):
    result = compute("net", network, frame, data, "W2A4")
    drawing = picture(result, LIMITS, data.test)
    shown = sorted(word for word in words_of(drawing) if re.fullmatch(r"\d+\.\d", word))
    assert shown == sorted(f"{value:.1f}" for value in frame["mean"])
    corners = {heat_map._corner(bits) for bits in result.cells}
    assert len(corners) == 75
    (x1, y1), (x2, y2) = (heat_map._corner(mq.Bits.parse(bits)) for bits in ("W1A1", "FP"))
    assert x1 < x2 and y1 > y2  # activations to the right, weights upwards
    assert drawing == picture(compute("net", network, frame, data, "W2A4"), LIMITS, data.test)


def test_the_text_for_who_does_not_see_the_picture_says_all(network, frame, data):
    result = compute("a < b", network, frame, data, "W1A1")
    text = title_of(picture(result, LIMITS, data.test))
    wrong = sum(a != b for a, b in zip(result.here.predictions, result.here.labels, strict=True))
    assert text.startswith(f"a < b at W1A1: accuracy {result.here.accuracy:.1f} %; mean over 75 pairs")
    assert text.endswith(f"{wrong} of the 10 images wrong")
    words = describe(result)
    assert "a &lt; b" in words and "fake quantization saves no time" in words and "bytes" in words and " ms " in words


def test_colours_run_from_dark_to_light_and_stay_at_the_ends():
    first, last = (to_hex(matplotlib.colormaps["cividis"](share)) for share in (0.0, 1.0))
    assert [heat_map._colour(v, (50, 100)) for v in (0, 50, 100, 101)] == [first, first, last, last]
    shades = [int(heat_map._colour(v, LIMITS)[3:5], 16) for v in range(101)]  # green, most of the lightness
    assert shades == sorted(shades)


def test_numbers_can_be_read_on_their_cells(network, frame, data):
    def light(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for value in range(101):
        fill = heat_map._colour(value, LIMITS)
        high, low = sorted((light(looks.ink(to_rgb(fill))), light(fill)), reverse=True)
        assert (high + 0.05) / (low + 0.05) > 4


def test_every_control_changes_the_picture(network, frame, data):
    live = pair_map({"one": network, "two": network}, {"one": frame, "two": frame}, data)
    for name, value in [("w", 4), ("a", 1), ("w", 32), ("a", 32), ("method", "one"), ("w", 1), ("a", 3)]:
        before = live.picture.value
        live.controls[name].value = value
        assert live.error.value == "" and title_of(live.picture.value) != title_of(before)
    assert "W1A3 is not one of the 75 pairs" in live.picture.value
    dashed = [rect for rect in svg_of(live.picture.value).iter(f"{NAME}rect") if rect.get("stroke-dasharray")]
    assert len(dashed) == 1 and dashed[0].get("stroke") == svg.BLACK


def test_a_pair_that_is_missing_leaves_an_empty_cell(network, frame, data):
    holed = frame.copy()
    holed.loc["W1A1", "mean"] = math.nan
    result = compute("net", network, holed, data, "FP")
    numbers = [word for word in words_of(picture(result, LIMITS, data.test)) if re.fullmatch(r"\d+\.\d", word)]
    assert len(numbers) == 74 and math.isfinite(result.mean) and result.lowest[0] != mq.Bits(1, 1)


def test_it_answers_the_hand(network, frame, data):
    live = pair_map({"net": network}, {"net": frame}, mq.datasets.digits())
    started = time.process_time()
    for width in (1, 2, 3, 4, 8, 16, 32):
        live.controls["w"].value = width
    assert (time.process_time() - started) / 7 < 0.5  # far above what it takes: machines differ


def test_the_static_tables_hold_every_number_on_one_scale():
    first, second = [[0.5, math.nan], [-1.0, 1.0]], [[0.0, 0.25], [0.75, -0.5]]
    panels = {"one": first, "two": torch.tensor(second), "three": first}
    figure = plots.tables(panels, ["a", "b"], ["c", "d"], label="cosine", decimals=2, xlabel="x", ylabel="y")
    drawn = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in drawn] == list(panels) and len(figure.axes) == 4  # and the colours
    assert [text.get_text() for text in drawn[0].texts] == ["0.50", "-1.00", "1.00"]
    assert [text.get_text() for text in drawn[1].texts] == ["0.00", "0.25", "0.75", "-0.50"]
    assert {axes.images[0].get_clim() for axes in drawn} == {(-1.0, 1.0)}
    assert [axes.get_xlabel() for axes in drawn] == ["", "x", "x"]
    plt.close(figure)
