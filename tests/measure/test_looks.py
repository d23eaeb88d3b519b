"""Every method has one look, which can be told from the others: on white, in grey print and by the colour-blind."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

import mebqat_lite as mq
from mebqat_lite.measure import looks, plots
from mebqat_lite.measure.looks import LOOKS, SUPERVISED

PACKAGE = Path(mq.__file__).parent
# What who lacks one kind of cones sees, on linear red, green and blue (Machado, Oliveira and Fernandes, 2009).
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def lab(color: str, sight: str) -> np.ndarray:
    """A colour in CIELAB, as it is seen."""
    parts = np.array(to_rgb(color))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(SEEN[sight] @ linear, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(color: str) -> float:
    """The contrast of a colour on white (WCAG 2.2)."""
    return 1.05 / (looks.luminance(to_rgb(color)) + 0.05)


def seen(look: looks.Look) -> tuple[str, ...]:
    """What a reader sees of a look."""
    return tuple(str(look.get(key)) for key in ("color", "marker", "linestyle", "markerfacecolor"))


def test_colours_are_measured_right():
    assert lab("#FFFFFF", "all") == pytest.approx([100, 0, 0], abs=0.01)
    assert lab("#FF0000", "all") == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert contrast("#000000") == pytest.approx(21) and contrast("#777777") == pytest.approx(4.478, abs=0.001)
    red, green = (lab(color, "deuteranopia") for color in ("#B87333", "#7A8B32"))
    assert np.linalg.norm(red - green) < np.linalg.norm(lab("#B87333", "all") - lab("#7A8B32", "all")) / 2


def test_every_method_has_a_look_of_its_own():
    assert set(mq.METHODS) <= set(LOOKS)
    assert len(set(map(seen, LOOKS.values()))) == len(LOOKS)


@pytest.mark.parametrize("color", sorted({look["color"] for look in LOOKS.values()} | set(looks.SPARE_COLORS)))
def test_lines_are_seen_on_white(color):
    assert contrast(color) >= 3


@pytest.mark.parametrize("sight", SEEN)
def test_colours_differ_for_every_reader(sight):
    for one, other in itertools.combinations(SUPERVISED, 2):
        distance = np.linalg.norm(lab(LOOKS[one]["color"], sight) - lab(LOOKS[other]["color"], sight))
        assert distance > 9, (one, other)  # a difference of 2 is just seen


def test_markers_and_dashes_differ_in_grey_print():
    both = {"mebqat", "mebqat_in_turn", "fp"}  # solid lines, which their markers and their lightness tell apart
    for one, other in itertools.combinations(SUPERVISED, 2):
        first, second = LOOKS[one], LOOKS[other]
        assert first["marker"] != second["marker"], (one, other)
        assert {one, other} <= both or first["linestyle"] != second["linestyle"], (one, other)


def test_few_shot_methods_look_like_their_sisters():
    for name, sister in looks.SISTERS.items():
        own, other = LOOKS[name], LOOKS[sister]
        assert [own[key] == other[key] for key in ("color", "marker", "linewidth")] == [True] * 3
        assert mq.METHODS[name].learns_new_classes
    assert set(looks.SISTERS) == {name for name, method in mq.METHODS.items() if method.learns_new_classes}


@pytest.mark.parametrize("name", [name for name in looks.SISTERS if mq.METHODS[name].base == "fomaml"])
def test_a_line_of_fomaml_is_told_from_prototypical_networks_at_a_glance(name):
    own = LOOKS[name]
    assert own["fillstyle"] == "left" and own["markerfacecoloralt"] == looks.WHITE and own["markersize"] > 6
    supervised = {look["linestyle"] for look in SUPERVISED.values()}
    assert own["linestyle"] not in supervised | {LOOKS[other]["linestyle"] for other in ("pn", "mebqat_pn")}
    lines = looks.looks(["FOMAML, batch", "FOMAML, support", "PN, batch"])
    assert len({str(look["linestyle"]) for look in lines.values()}) == 3


# ---------------------------------------------------------------- whose look a curve has


@pytest.mark.parametrize("name", mq.METHODS)
def test_a_method_is_known_by_its_name_its_title_and_as_a_variant(name):
    title = mq.METHODS[name].title
    for words in (name, title, f"{name}+lr=0.05", f"{title}, own statistics", f"{title} (3 seeds)"):
        assert looks.method_of(words) == name
    assert looks.looks([f"{name}+lr=0.05", "clipping"])[f"{name}+lr=0.05"] == LOOKS[name]


def test_what_is_no_method_is_none():
    assert [looks.method_of(words) for words in ("", "clipping", "MEBQATs", "w", "a qat")] == [""] * 5
    assert looks.method_of("QAT for W4A4") == "qat_w4a4" and looks.method_of("PTQ-MSE, own") == "ptq_mse"


@given(st.lists(st.sampled_from([*LOOKS, "mebqat+m=2", "mebqat+m=8", "MEBQAT, own", "a", "b", "c", "d"]), unique=True))
def test_curves_of_a_figure_differ_and_methods_keep_their_colour(names):
    found = looks.looks(names)
    assert list(found) == names
    assert len(set(map(seen, found.values()))) == len(names)
    methods = {name: looks.method_of(name) for name in names}
    assert all(found[name]["color"] == LOOKS[method]["color"] for name, method in methods.items() if method)
    taken = {found[name]["color"] for name, method in methods.items() if method}
    assert not taken & {found[name]["color"] for name, method in methods.items() if not method}


@pytest.mark.parametrize("name", looks.FIXED)
def test_what_is_no_method_can_have_a_look_of_its_own_that_no_other_curve_of_the_figure_has(name):
    found = looks.looks(["a", name, "b", "c"])
    assert found[name] == looks.FIXED[name]
    assert found[name]["color"] not in {look["color"] for other, look in found.items() if other != name}
    axes = plots.lines([1, 2], {"a": [0, 1], name: [1, 0]}, xlabel="x", ylabel="y").axes[0]
    assert (axes.lines[1].get_color(), axes.lines[1].get_marker()) == (found[name]["color"], found[name]["marker"])


def test_combinations_differ_as_long_as_they_can():
    made = list(itertools.islice(looks.combinations("rgb", "-:x"), 9))
    assert made[:3] == [("r", "-"), ("g", ":"), ("b", "x")] and len(set(made)) == 9


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_letters_have_the_higher_contrast(color):
    light = looks.luminance(color)
    on_white, on_black = 1.05 / (light + 0.05), (light + 0.05) / 0.05
    assert looks.ink(color) == (looks.BLACK if on_black > on_white else looks.WHITE) or abs(on_black - on_white) < 0.05


# ---------------------------------------------------------------- nobody else picks colours

PICKED = re.compile(r"""["']#[0-9A-Fa-f]{6}["']|["'](?:C\d|tab:\w+|xkcd:[\w ]+)["']|colou?r=["']\w+["']""")
PAGES = {"feedback.py"}  # a page of HTML


def test_no_other_module_picks_a_colour():
    found = {}
    for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "benchmarks").rglob("*.py")]:
        if path.name not in PAGES | {"looks.py"} and ".ipynb_checkpoints" not in path.parts:
            found[str(path)] = PICKED.findall(path.read_text(encoding="utf-8"))
    assert len(found) > 100 and not {path: colors for path, colors in found.items() if colors}
    picked = ['"#0072B2"', 'color="red"', '"C3"']
    assert PICKED.findall('look = {"color": "#0072B2"}, plot(color="red"), "C3"') == picked


# ---------------------------------------------------------------- figures use it


@pytest.mark.parametrize("count", [1, 4, 7])
def test_every_curve_is_drawn(count):
    x = torch.linspace(0, 1, 5)
    curves = {f"curve {number}": x * number for number in range(count)}
    axes = plots.lines(x, curves, xlabel="x", ylabel="y").axes[0]
    drawn = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(axes.lines) == len(drawn) == count
    panel = plots.stacked(x, {"title": {"y": curves}}).axes[0]
    assert len(panel.lines) == count


def test_doubles_are_equally_far_apart_where_it_is_asked_for():
    x = [2, 4, 8, 64]
    for doubling in (True, False):
        axes = plots.lines(x, {"a": x}, xlabel="x", ylabel="y", doubling=doubling).axes[0]
        places = [axes.transData.transform((value, 2))[0] for value in x]
        assert bool(abs((places[3] - places[2]) / (places[1] - places[0]) - 3) < 0.01) is doubling
        axes.figure.canvas.draw()
        assert {"4", "8"} <= {label.get_text() for label in axes.get_xticklabels()} or not doubling


def test_every_method_is_drawn_over_its_cost():
    accuracy = {name: {"W2A2": {"mean": 50.0 + number}} for number, name in enumerate([*LOOKS, "other"])}
    axes = plots.accuracy_over_cost(accuracy, {"W2A2": 10}, {}).axes[0]
    assert [line.get_label() for line in axes.lines] == list(accuracy)
    assert [line.get_color() for line in axes.lines][:-1] == [look["color"] for look in LOOKS.values()]


def test_a_curve_has_gaps_where_nothing_is_known_and_is_left_out_where_nothing_is():
    curves = {"QAT": [1.0, None, 3.0], "your guess": [None, math.nan, None]}
    axes = plots.lines(["W1A1", "W2A2", "FP"], curves, xlabel="x", ylabel="y").axes[0]
    [line] = axes.get_lines()
    assert (line.get_label(), axes.get_legend()) == ("QAT", None)
    assert np.array_equal(line.get_ydata(), [1, math.nan, 3], equal_nan=True)


def test_a_name_has_the_colour_of_its_method():
    assert [looks.color_of(name) for name in ("mebqat", "MEBQAT", "clipping")] == [looks.BLUE, looks.BLUE, looks.BLACK]
