"""The painters of lesson 00: the pictures and the numbers of the pair at which the slider stands."""

import io

import numpy as np
import pytest
from PIL import Image

from mebqat_lite.course.widgets.paintings import compute, describe, paintings, picture, spoken
from mebqat_lite.measure import looks

PAIRS = ["W1A1", "W4A4", "W5A5", "FP"]
SHADES = {"FP + PTQ-MSE": 0.2, "MEBQAT in turn": 0.7}  # what each paints at W1A1; more at later pairs
PICTURES = {
    title: {pair: np.full((4, 4, 3), shade + 0.05 * number) for number, pair in enumerate(PAIRS)}
    for title, shade in SHADES.items()
}
PSNR = {
    "FP + PTQ-MSE": dict(zip(PAIRS, (9.0, 20.0, 30.0, 52.0), strict=True)),
    "MEBQAT in turn": dict(zip(PAIRS, (29.0, 31.0, 35.0, 36.0), strict=True)),
}


def shades(png: bytes) -> list[int]:
    """The grey of the middle of each picture, of the two that stand side by side."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    height, width = pixels.shape
    return [int(pixels[height // 2, place]) for place in (width // 4, 3 * width // 4)]


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_the_pictures_are_those_of_the_pair(number):
    live = paintings(PICTURES, PSNR)
    live.controls["pair"].value = PAIRS[number]
    wanted = [255 * (shade + 0.05 * number) for shade in SHADES.values()]
    assert shades(live.pictures[0].value) == pytest.approx(wanted, abs=1) and live.error.value == ""


def test_it_starts_at_the_phone_or_else_at_the_first_pair():
    assert paintings(PICTURES, PSNR).result.pair == "W4A4"
    some = {title: {pair: row[pair] for pair in PAIRS[2:]} for title, row in PICTURES.items()}
    assert paintings(some, PSNR).result.pair == "W5A5"


def test_the_words_name_the_nearest_and_the_farthest_picture():
    live = paintings(PICTURES, PSNR)
    assert (
        "nearest to the photograph: MEBQAT in turn, 31.0 dB; farthest from it: FP + PTQ-MSE, 20.0" in live.words.value
    )
    live.controls["pair"].value = "FP"
    assert "nearest to the photograph: FP + PTQ-MSE, 52.0 dB" in live.words.value
    assert live.pictures[0].alt == "full precision (the server): FP + PTQ-MSE 52.0 dB, MEBQAT in turn 36.0 dB"


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("W1A1", "1 bit (the sensor)"),
        ("W2A2", "2 bits (the watch)"),
        ("W5A5", "5 bits"),
        ("FP", "full precision (the server)"),
    ],
)
def test_a_pair_is_said_as_a_device(pair, words):
    assert spoken(pair) == words


def test_the_titles_have_the_colours_of_the_methods():
    drawing = picture([*SHADES, "another"], (4, 4))
    titles = {cell.title.get_text(): cell.title.get_color() for cell in drawing.figure.axes}
    assert titles == {**{name: looks.LOOKS[looks.method_of(name)]["color"] for name in SHADES}, "another": looks.BLACK}


def test_the_numbers_stand_under_their_pictures():
    drawing = picture(list(SHADES), (4, 4))
    drawing.update(found := compute(PICTURES, PSNR, "W5A5"))
    assert [cell.texts[0].get_text() for cell in drawing.figure.axes] == ["30.0 dB", "35.0 dB"]
    assert describe(found).count("dB") == 2
