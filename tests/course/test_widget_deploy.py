"""Lesson 08's widget: real files against independent arithmetic, its pictures, and the widget without a browser."""

import asyncio
import importlib
import math
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

import mebqat_lite as mq
from mebqat_lite.bits import FP, Bits
from mebqat_lite.course.widgets import deployment
from mebqat_lite.course.widgets.deploy import BATCHES, FORMS, PAIRS, Row, compute, describe, interleaved, picture
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.deploy.onnx_run import Latency
from mebqat_lite.switching.state import quantized_layers

DEPLOY = importlib.import_module("mebqat_lite.course.widgets.deploy")


def time_over_fp(ratio, batch=1):
    return Latency(ratio=ratio, quartiles=(ratio - 0.1, ratio + 0.1), milliseconds=(ratio, 1.0), batch=batch, runs=20)


def row(pair):
    bits = min(pair.w, 10)
    latency = {batch: {"packed": time_over_fp(1 + bits / batch), "onnx": time_over_fp(2.5)} for batch in BATCHES}
    size = {"packed": 1000 + 100 * bits, "onnx": 2000 + 200 * bits}
    accuracy = {"packed": 90 + bits / 2, "onnx": 90 + bits / 2}
    return Row(pair, size, 0 if pair == FP else 100 * bits, "INT4", accuracy, latency)


ROWS = {pair: row(pair) for pair in PAIRS}


@pytest.fixture(scope="module")
def tiny():
    """A network of three classes and data for it: (model, data)."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    parts = [
        Split(torch.rand(n, 1, 8, 8, generator=generator), torch.randint(0, 3, (n,), generator=generator))
        for n in (60, 9, 80)
    ]
    model = mq.models.digit_net(widths=(4, 5, 6, 7), classes=3)
    return mq.quantize(model, "dorefa", sample=parts[0].images).eval(), Data("tiny", *parts, ("a", "b", "c"))


@pytest.fixture
def two_pairs(monkeypatch):
    """Only FP and W3A3: an export takes a second."""
    pairs = [FP, Bits(3, 3)]
    monkeypatch.setattr(DEPLOY, "PAIRS", pairs)
    return pairs


def title_of(html: str) -> str:
    root = ET.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert root.get("role") == "img" and title.text == root.get("aria-label")
    return title.text


# --- measuring -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bytes_and_accuracies_are_those_of_real_files(tiny, two_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, data = tiny
    found = {one.bits: one for one in DEPLOY.measure(model, data)}
    assert list(found) == two_pairs and not [*tmp_path.rglob("*.onnx")]
    for pair, one in found.items():
        mq.save_packed(model, tmp_path / "own", pair)
        assert one.bytes["packed"] == (tmp_path / "own").stat().st_size
        with torch.no_grad(), mq.at(model, pair, "recalibrated"):
            right = (model(data.test.images).argmax(1) == data.test.labels).sum()
        assert one.accuracy == {"packed": pytest.approx(100 * right / 80), "onnx": pytest.approx(100 * right / 80)}
        assert all(one.latency[batch][form].batch == batch for batch in BATCHES for form in FORMS)
    planes = [3 * math.ceil(layer.weight.numel() / 8) for layer in quantized_layers(model).values()]
    assert found[Bits(3, 3)].codes == sum(planes) and found[FP].codes == 0
    assert (found[Bits(3, 3)].kind, found[FP].kind) == ("INT4", "FLOAT")  # odd numbers from -7 to 7
    assert found[Bits(3, 3)].bytes["onnx"] < found[FP].bytes["onnx"]


def test_times_are_taken_in_turns_and_compared_turn_by_turn(monkeypatch):
    calls = []
    spent = {"ours": iter([9.0] * 6 + [3.0, 30.0, 6.0, 4.0]), "other": iter([9.0] * 6 + [1.0, 10.0, 2.0, 1.0])}

    def milliseconds(run, images):
        run(images)
        return next(spent[calls[-1]])

    monkeypatch.setattr(DEPLOY, "_milliseconds", milliseconds)
    found = interleaved(lambda x: calls.append("ours"), lambda x: calls.append("other"), torch.zeros(7, 1), runs=4)
    assert calls == ["ours", "other", "other", "ours"] * 5
    assert found.ratio == 3 and found.quartiles == (3, 3.25)  # of 3, 3, 3, 4: not 5 / 1.5, the ratio of the medians
    assert found.milliseconds == (5, 1.5) and found.batch == 7


# --- what is shown ---------------------------------------------------------------------------------------------


def test_the_picture_says_what_was_measured():
    result = compute(ROWS, Bits(4, 4), 64)
    words = title_of(picture(result))
    assert words.startswith("W4A4, batch 64: packed 1,400 bytes, accuracy 92.0 %, time 1.06 of FP; onnx 2,800 bytes")
    assert result.full is ROWS[FP] and result.saved("packed") == pytest.approx(30)
    assert result.saved("onnx") == pytest.approx(30)
    assert "400 of the packed file" in describe(result) and "INT4" in describe(result)
    assert [one.bits for one in result.rows] == [*PAIRS[1:], FP]  # FP is drawn last


def test_what_is_not_measured_yet_is_said():
    result = compute({FP: ROWS[FP]}, Bits(4, 4))
    assert "not measured yet (1 of 9 pairs are)" in title_of(picture(result))
    assert "not measured yet" in describe(result)
    with pytest.raises(ValueError, match="W4A4 is not measured yet"):
        result.saved("packed")
    title_of(picture(compute({}, FP)))


@pytest.mark.parametrize(("pair", "batch"), [(Bits(2, 4), 64), (Bits(4, 4), 2)])
def test_what_is_not_on_offer_is_refused(pair, batch):
    with pytest.raises(ValueError, match=r"choose one of FP, W1A1.*batch"):
        compute(ROWS, pair, batch)


def test_outliers_of_a_busy_machine_do_not_flatten_the_picture():
    slow = Latency(ratio=80.0, quartiles=(70.0, 90.0), milliseconds=(80.0, 1.0), batch=64, runs=20)
    busy = ROWS | {Bits(1, 1): replace(ROWS[Bits(1, 1)], latency={64: dict.fromkeys(FORMS, slow)})}
    busy = {pair: replace(one, latency={64: one.latency[64]}) for pair, one in busy.items()}
    assert ">80<" not in picture(compute(busy, FP)) and "time 80.00 of FP" in title_of(picture(compute(busy, PAIRS[1])))


# --- the widget ------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """Instead of measuring, the rows above; counts how often it was asked."""
    asked = []

    def measure(model, data):
        asked.append(model)
        yield from ROWS.values()

    monkeypatch.setattr(DEPLOY, "measure", measure)
    return asked


def test_every_position_of_every_control_gives_another_picture_and_measures_nothing(measured):
    live = deployment(None, None)
    assert live.progress.layout.display == "none" and live.progress.value == len(PAIRS)
    seen = {live.picture.value}
    moves = [("bits", pair) for pair in PAIRS if pair != live.controls["bits"].value] + [("batch", 1)]
    for name, value in moves:
        live.controls[name].value = value
        assert live.picture.value not in seen and live.error.value == ""
        title_of(live.picture.value)
        seen.add(live.picture.value)
    assert measured == [None]


def test_it_measures_in_turns_and_finish_does_the_rest(measured):
    async def scene():
        live = deployment(None, None)
        at_first = len(live.rows)
        rows = live.finish()
        return at_first, rows, live.picture.value, live.progress.layout.display

    at_first, rows, picture_now, display = asyncio.run(scene())
    assert at_first == 0 and rows == ROWS and display == "none"
    assert "W2A2, batch 64: packed" in title_of(picture_now)


def test_an_error_while_measuring_is_shown(monkeypatch):
    def measure(model, data):
        yield ROWS[FP]
        raise RuntimeError("ONNX Runtime is missing")

    monkeypatch.setattr(DEPLOY, "measure", measure)
    live = deployment(None, None)
    assert "RuntimeError: ONNX Runtime is missing" in live.error.value and live.rows == {FP: ROWS[FP]}
