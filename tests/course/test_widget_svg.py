"""Drawings: well-formed, with an alternative text, and their pixels."""

import base64
import math
import struct
import xml.etree.ElementTree as ET
import zlib

import pytest
import torch
from drawings import alternative_text

from mebqat_lite.course.widgets import svg
from mebqat_lite.measure import looks


def test_a_figure_is_well_formed_and_has_an_alternative_text():
    plot = svg.Plot((10, 10, 100, 50), (0, 1), (0, 1))
    plot.axes('x < "y" & z (%)', "y", [(0, "0"), (1, "1")], [(0.5, "<half>")])
    plot.line([0, 0.5, 1], [0, math.nan, 1], svg.Style(svg.BLUE, "3 2", "star"))
    drawing = svg.figure(120, 90, 'all of <it> & "more"', *plot.parts)
    assert alternative_text(drawing) == 'all of <it> & "more"'
    assert 'fill="#fff"' in drawing and "nan" not in drawing


def test_numbers_are_rounded_and_have_no_negative_zero():
    assert [svg.num(v) for v in (1 / 3, -0.001, 2.0, 1234.567, 100)] == ["0.33", "0", "2", "1234.57", "100"]


def test_points_outside_an_area_are_drawn_on_its_border():
    plot = svg.Plot((10, 20, 100, 50), (0, 1), (0, 1))
    assert plot.at(0.5, 0.5) == (60, 45)
    assert plot.at(-3, 9) == (10, 20) and plot.at(2, -math.inf) == (110, 70)


@pytest.mark.parametrize("shape", ["circle", *svg.OUTLINES])
def test_every_marker_shape_is_one_element(shape):
    ET.fromstring(svg.marker(1, 2, svg.Style(svg.BLACK, shape=shape), hollow=True))


def test_a_gray_image_holds_its_pixels():
    pixels = torch.arange(6).reshape(2, 3).div(5).tolist()
    link = ET.fromstring(svg.gray_image(0, 0, 30, pixels)).get("href")
    png = base64.b64decode(link.removeprefix("data:image/png;base64,"))
    length = struct.unpack(">I", png[33:37])[0]
    assert struct.unpack(">II", png[16:24]) == (3, 2) and png[37:41] == b"IDAT"
    assert zlib.decompress(png[41 : 41 + length]) == bytes([0, 255, 204, 153, 0, 102, 51, 0])


@pytest.mark.parametrize(
    "names", [list(looks.LOOKS), ["FP + PTQ-MSE", "QAT for W4A4", "MEBQAT"], ["mebqat_pn", "other"]]
)
def test_methods_look_as_in_all_figures(names):
    for name, style in svg.styles(names).items():
        look = looks.looks(names)[name]
        assert (style.colour, style.shape, style.width) == (look["color"], look["marker"], look["linewidth"])
        assert style.face == look.get("markerfacecolor", "")
        dashes = [float(part) / 2 for part in style.dash.split()]
        assert dashes == ([] if look["linestyle"] == "-" else list(look["linestyle"][1]))
        drawn = ET.fromstring(svg.marker(5, 5, style))
        assert drawn.get("fill") == (style.face or style.colour)
        assert drawn.get("stroke") == (style.colour if style.face else None)


@pytest.mark.parametrize("shape", [shape for shape in svg.OUTLINES if shape != "circle"])
def test_markers_have_size_one_around_their_point(shape):
    xs, ys = zip(*svg.OUTLINES[shape], strict=True)
    for places in (xs, ys):
        assert min(places) < -0.4 and max(places) > 0.4 and max(map(abs, places)) < 1.5
