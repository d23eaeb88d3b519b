"""The diagrams say what is in the model, in the drawn pairs and in `METHODS`."""

import itertools
import re

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text
from torch import nn

import mebqat_lite as mq
from mebqat_lite.bits import FP, WIDTHS, Bits
from mebqat_lite.measure import diagrams, looks, plots
from mebqat_lite.samplers import InTurn, Sampled
from mebqat_lite.switching.state import quantized_layers


@pytest.fixture(autouse=True)
def closing():
    yield
    plt.close("all")


def words(figure: plt.Figure) -> list[str]:
    """All words of a figure, each line of its own joined."""
    return [text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_text()]


def net(quantizer: str = "dorefa", **options) -> nn.Module:
    return mq.quantize(mq.models.digit_net(**options), quantizer, sample=torch.rand(8, 1, 8, 8))


def chain(*layers: nn.Module, sample: torch.Tensor) -> nn.Module:
    return mq.quantize(nn.Sequential(*layers), "dorefa", sample=sample)


# ---------------------------------------------------------------- a network


@pytest.mark.parametrize(("bits", "w", "a"), [("W2A4", "2 bits", "4 bits"), ("W1A1", "1 bit", "1 bit")])
def test_a_network_shows_both_widths_in_each_quantized_layer(bits, w, a):
    model = net()
    said = words(diagrams.network(model, bits))
    inside = [layer for layer in quantized_layers(model).values() if layer.site.role == "body"]
    assert said.count(f"Q(w) {w}") == said.count(f"Q(x) {a}") == len(inside) == 3
    assert said.count("float") == 2 and said[0] == bits


def test_a_network_shows_the_sizes_of_its_layers_and_what_is_between_them():
    said = words(diagrams.network(net(widths=(3, 5, 7, 9), classes=4), "W2A2"))
    layers = [word for word in said if "→" in word]
    assert layers == ["conv 3×3 1 → 3", "conv 3×3 3 → 5", "conv 3×3 5 → 7", "conv 3×3 7 → 9", "linear 9 → 4"]
    between = {word: said.count(word) for word in ("norm", "ReLU", "pool", "mean")}
    assert between == {"norm": 4, "ReLU": 4, "pool": 1, "mean": 1}


def test_parts_stand_in_the_order_of_the_model_from_left_to_right():
    model = net()
    figure = diagrams.network(model, "W2A4")
    boxes = sorted((box for box in figure.findobj(FancyBboxPatch) if box.get_height() > 1), key=lambda box: box.get_x())
    groups = diagrams.parts_of(model)
    assert [part.words.split("\n")[0] for part in groups[1]] == ["conv 3×3", "norm", "pool", "ReLU"]
    assert len(boxes) == sum(len(group) for group in groups) + 3  # and Q(x) of three layers
    assert all(left.get_x() + left.get_width() < right.get_x() for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("bits", ["FP", "W32A4", "W4A32"])
def test_full_precision_is_not_rounded(bits):
    pair, model = Bits.parse(bits), net()
    said = " ".join(words(diagrams.network(model, pair)))
    assert len(re.findall(r"Q\(w\) \d", said)) == 3 * (pair.w < 32)
    assert len(re.findall(r"Q\(x\) \d", said)) == 3 * (pair.a < 32)


def test_edges_with_8_bits_are_shown_as_the_quantizer_has_them():
    said = words(diagrams.network(net("sat"), "W2A4"))
    assert said.count("Q(w) 8 bits") == 2 and said.count("Q(w) 2 bits") == 3 and "float" not in said


def test_inputs_that_stay_float_have_no_box():
    x = torch.randn(16, 4)
    signed = chain(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), sample=x)
    said = words(diagrams.network(signed, "W2A2"))
    assert said.count("Q(w) 2 bits") == 1 and "Q(x) 2 bits" not in said


def test_the_present_bits_are_the_default_and_stay():
    model = net()
    with mq.at(model, "W3A5"):
        assert words(diagrams.network(model))[0] == "W3A5"
        diagrams.network(model, "W1A1")
        assert words(diagrams.network(model))[0] == "W3A5"


def test_a_long_network_has_several_rows_on_the_page():
    layers = [layer for _ in range(9) for layer in (nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU())]
    figure = diagrams.network(chain(*layers, sample=torch.rand(4, 2, 6, 6)), "W2A2")
    boxes = [box for box in figure.findobj(FancyBboxPatch) if box.get_height() > 1]
    assert len({round(box.get_y(), 3) for box in boxes}) == 3 and len(boxes) == 27 + 7
    assert max(box.get_x() + box.get_width() for box in boxes) < looks.PAGE


def test_a_float_model_is_refused():
    with pytest.raises(mq.NotQuantizedError, match="call quantize"):
        diagrams.network(mq.models.digit_net())


# ---------------------------------------------------------------- many or one


def test_bytes_are_counted_from_the_weights():
    found = diagrams.stored(net())
    body, edges, channels = 9 * (6 * 12 + 2 * 12 * 12), 9 * 6 + 12 * 10, 6 + 3 * 12
    norms = 4 * 4 * channels + 8 * 4  # gain, shift, mean and variance of a channel; a counter in each norm
    assert found.one == 4 * (body + edges + 10) + norms and len(found.dedicated) == 75
    for pair, size in found.dedicated.items():
        assert size == body * pair.w // 8 + 4 * (edges + 10) + norms, pair
    assert found.statistics == 75 * 2 * 4 * channels


def test_statistics_that_were_measured_are_not_counted_twice():
    model = net()
    fresh = diagrams.stored(model)
    mq.recalibrate(model, torch.rand(16, 1, 8, 8), "W2A2,W4A4")
    assert diagrams.stored(model) == fresh


@pytest.mark.parametrize("widths", [(6, 12, 12, 12), (2, 30, 30, 2)])
def test_areas_are_true_to_the_bytes(widths):
    model = net(widths=widths)
    found = diagrams.stored(model)
    figure = diagrams.many_or_one(model)
    squares = [box for box in figure.axes[0].patches if type(box) is Rectangle]
    sizes = [*found.dedicated.values(), sum(found.dedicated.values()), found.one, found.statistics]
    assert len(squares) == len(sizes) == 78
    scale = [box.get_width() * box.get_height() / size for box, size in zip(squares, sizes, strict=True)]
    assert scale == pytest.approx([scale[0]] * 78) and all(box.get_width() == box.get_height() for box in squares)
    assert all(box.get_x() > 0 and box.get_x() + box.get_width() < looks.PAGE for box in squares)
    said = " ".join(words(figure))
    for size in (sum(found.dedicated.values()), found.one, found.statistics):
        assert f"{size / 1e3:,.1f} kB" in said and f"{size / 1e3:,.1f} kB" in figure.get_label()


def test_a_box_stands_at_the_bits_of_its_pair():
    model = net()
    axes = diagrams.many_or_one(model).axes[0]
    labels = [text for text in axes.texts if text.get_text() in {*map(str, WIDTHS), "FP"}]
    rows, columns = labels[::2], labels[1::2]
    assert [text.get_text() for text in rows] == [text.get_text() for text in columns] == [*map(str, WIDTHS[:-1]), "FP"]
    boxes = [box for box in axes.patches if type(box) is Rectangle]
    for pair, box in zip(diagrams.stored(model).dedicated, boxes, strict=False):
        assert box.get_x() + box.get_width() / 2 == pytest.approx(columns[WIDTHS.index(pair.a)].get_position()[0])
        assert box.get_y() + box.get_height() / 2 == pytest.approx(rows[WIDTHS.index(pair.w)].get_position()[1])
    assert {"weight bits", "activation bits"} <= {text.get_text() for text in axes.texts}


def test_a_quantizer_without_one_bit_has_fewer_boxes():
    assert "73 networks, one for each pair" in words(diagrams.many_or_one(net("lsq")))


# ---------------------------------------------------------------- a step


@pytest.mark.parametrize(("m", "seed"), [(4, 0), (2, 1), (6, 7)])
def test_a_step_shows_the_pairs_that_were_drawn(m, seed):
    always = [FP, Bits(1, 1)]
    pairs = Sampled(mq.candidates(), m, always, seed=seed).draw()[0]
    sampler = InTurn(mq.candidates(), m, always, seed=seed)
    turns = [sampler.draw()[0][0] for _ in range(m)]
    said = words(diagrams.step(pairs, turns))
    named = [word for word in said if re.fullmatch(r"FP|W\d+A\d+", word)]
    assert named == [*map(str, pairs), *map(str, turns)]
    assert said.count("forward, backward") == 2 * m and said.count("one update") == said.count("mean of gradients") == 1
    assert [word for word in said if word.startswith("update")] == [f"update {number + 1}" for number in range(m)]


def test_a_step_says_what_it_learns_from():
    figure = diagrams.step([FP, Bits(2, 2)], what="episode")
    assert {"one episode", "episode 1", "episode 2"} <= {*words(figure)}
    assert "one episode" in figure.get_label() and "batch" not in figure.get_label()


def test_a_step_names_both_methods_in_their_colours():
    figure = diagrams.step([FP, Bits(2, 2)])
    heads = {text.get_text(): text.get_color() for text in figure.findobj(Text)}
    for name in ("mebqat", "mebqat_in_turn"):
        assert heads[mq.METHODS[name].title] == looks.LOOKS[name]["color"]


def test_pairs_of_layers_are_called_so():
    pairs = Sampled(mq.candidates(), 3, [FP], layers=["a", "b"]).draw()[0]
    assert words(diagrams.step(pairs)).count("a pair for each layer") == 4


# ---------------------------------------------------------------- the table


def test_the_table_holds_every_method_once():
    names = [name for names in diagrams.cells().values() for name in names]
    assert sorted(names) == sorted(mq.METHODS)
    said = " ".join(words(diagrams.table()))
    assert all(title in said for title in (method.title for method in mq.METHODS.values()))


def test_methods_stand_in_the_row_of_their_sampler_and_the_column_of_their_learner():
    found = {name: cell for cell, names in diagrams.cells().items() for name in names}
    rows = {
        "float": "fp ptq_naive ptq_mse pn pn_ptq_mse fomaml fomaml_ptq_mse fomaml_ptq_lsq",
        "one": "qat pn_qat fomaml_qat",
        "listed": "adabits any_precision_hard any_precision_soft any_precision_recursive",
        "drawn": "mebqat mebqat_pn mebqat_maml",
        "turn": "mebqat_in_turn mebqat_pn_in_turn mebqat_maml_in_turn",
    }
    right = {name: row for row, names in rows.items() for name in names.split()}
    assert {name: row for name, (row, _) in found.items()} == right
    columns = {"fp": "supervised learning", "pn": "prototypical networks", "fomaml": "FOMAML"}
    assert {name: how for name, (_, how) in found.items()} == {n: columns[m.base] for n, m in mq.METHODS.items()}


def test_each_method_of_the_table_has_its_line_and_marker():
    axes = diagrams.table().axes[0]
    lines = [line for line in axes.lines if line.get_marker() != "None"]
    drawn = [(line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in lines]
    own = [looks.LOOKS[name] for name in mq.METHODS]
    assert sorted(drawn) == sorted((o["color"], o["marker"], o.get("markerfacecolor", o["color"])) for o in own)


def test_methods_that_were_not_met_are_pale():
    met = ["fp", "qat", "mebqat_in_turn"]
    axes = diagrams.table(met).axes[0]
    lines = [line for line in axes.lines if line.get_marker() != "None"]
    assert {line.get_marker() for line in lines if line.get_alpha() == 1} == {
        looks.LOOKS[name]["marker"] for name in met
    }
    entries = [text for text in axes.texts if text.get_fontweight() != "bold"]
    black = {text.get_text() for text in entries if text.get_color() == looks.BLACK}
    titles = {name: method.title for name, method in mq.METHODS.items() if len(method.title) < 19}
    assert {name for name, title in titles.items() if title in black} == set(met)


def test_a_new_method_finds_its_cell(monkeypatch):
    monkeypatch.setitem(mq.METHODS, "new", mq.METHODS["mebqat_pn"])
    assert "new" in diagrams.cells()["drawn", "prototypical networks"]
    assert words(diagrams.table()).count("MEBQAT-PN") == 2


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("draw", [
    lambda: diagrams.network(net(), "W2A4"), lambda: diagrams.many_or_one(net()),
    lambda: diagrams.step([FP, Bits(2, 2)]), diagrams.table,
], ids=["network", "many_or_one", "step", "table"])  # fmt: skip
def test_a_diagram_fits_the_page_can_be_read_and_tells_what_it_shows(draw, monkeypatch):
    figure = draw()
    figure.canvas.draw()
    letters = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in letters) >= looks.SMALLEST
    boxes = [text.get_window_extent() for text in letters]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    apart = [(one, other) for i, one in enumerate(boxes) for other in boxes[i + 1 :] if one.overlaps(other)]
    assert not apart
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.show(figure)
    assert shown[0].width == looks.PIXELS and len(shown[0].alt.split()) > 12
