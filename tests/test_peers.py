"""The comparison with brevitas: both sides quantize the same layers, and without it its rows are left out."""

import importlib.util
import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.__main__ import block
from mebqat_lite.switching.state import quantized_layers, setting_of

SMALL = {name: replace(case, shape=(4, *case.shape[1:]), runs=2) for name, case in peers.CASES.items()}
real = pytest.mark.skipif(importlib.util.find_spec("brevitas") is None, reason="brevitas is not installed")


class QuantConv2d(nn.Conv2d):
    """A convolution that remembers how it was asked to quantize."""

    def __init__(self, *shape, bias, **how):
        super().__init__(*shape, bias=bias)
        self.how = how


@pytest.fixture
def stand_in(monkeypatch):
    """A module that is imported as brevitas, whose layers quantize nothing."""
    for name, values in {"nn": {"QuantConv2d": QuantConv2d}, "quant": {"Uint8ActPerTensorFloat": "unsigned"}}.items():
        module = types.ModuleType(f"brevitas.{name}")
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, f"brevitas.{name}", module)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0")


@pytest.fixture
def without(monkeypatch):
    """Importing brevitas is an error, as where it is not installed."""
    monkeypatch.setitem(sys.modules, "brevitas", None)
    monkeypatch.setitem(sys.modules, "brevitas.nn", None)


def body(model):
    """The layers of a model of this package that its bits reach."""
    return {name: layer for name, layer in quantized_layers(model).items() if layer.site.role == "body"}


@pytest.mark.parametrize(("name", "count"), [("digits", 3), ("cnn8", 6)])
def test_both_sides_quantize_the_same_layers_to_the_same_bits(name, count, stand_in):
    case, model = SMALL[name], peers.theirs(SMALL[name])
    changed = {place: layer for place, layer in model.named_modules() if isinstance(layer, QuantConv2d)}
    plain = dict(case.build().named_modules())
    for quantizer in peers.OURS:
        own = peers.ours(case, quantizer)
        assert set(body(own)) == set(changed) and len(changed) == count
        assert str(setting_of(own).bits) == "W4A4" and not any(layer.site.signed for layer in body(own).values())
    for place, layer in changed.items():
        how = {"weight_bit_width": 4, "input_bit_width": 4, "input_quant": "unsigned", "input_collect_stats_steps": 1}
        assert layer.how == how
        shapes = ("weight", "bias", "stride", "padding", "dilation", "groups")
        for one in shapes:
            mine, other = getattr(layer, one), getattr(plain[place], one)
            assert mine.shape == other.shape if isinstance(mine, torch.Tensor) else mine == other, one


@real
@pytest.mark.parametrize("name", SMALL)
def test_brevitas_gives_weights_and_inputs_of_at_most_16_values(name):
    case = SMALL[name]
    model = peers.theirs(case).train()
    inputs, images = {}, torch.rand(4, *case.shape[1:])
    layers = {place: layer for place, layer in model.named_modules() if place in body(peers.ours(case, "lsq"))}
    for place, layer in layers.items():
        layer.input_quant.register_forward_hook(lambda _m, _x, out, place=place: inputs.update({place: out.value}))
    for _ in range(3):
        model(images)
    assert set(inputs) == set(layers)
    for place, layer in layers.items():
        assert 2 < layer.quant_weight().value.unique().numel() <= 16 and 2 < inputs[place].unique().numel() <= 16


def test_with_brevitas_there_is_a_row_for_each_side_and_network(stand_in, monkeypatch, capsys):
    monkeypatch.setattr(peers, "CASES", {"digits": SMALL["digits"]})
    found = peers.run()
    assert list(found["measured"]) == ["digits/dorefa", "digits/lsq", "digits/brevitas"]
    assert found["machine"].endswith(", brevitas 0.0") and found["pair"] == "W4A4"
    assert capsys.readouterr().out.count(" ms over ") == 3


def test_without_brevitas_its_rows_are_left_out_and_the_output_says_how_to_install_it(without, monkeypatch, capsys):
    monkeypatch.setattr(peers, "CASES", {"digits": SMALL["digits"]})
    peers.main([])
    said = capsys.readouterr().out
    assert said.count(" ms over ") == 2 and "digits/brevitas" not in said
    assert said.endswith(peers.MISSING + "\n") and "pip install --no-deps --target FOLDER brevitas" in said
    with pytest.raises(ImportError):
        peers.theirs(SMALL["digits"])


def test_the_page_shows_what_was_stored(without, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(peers, "CASES", {"digits": SMALL["digits"]})
    (tmp_path / "README.md").write_text("before\n<!-- peers -->\nold\n<!-- /peers -->\nafter\n")
    for _ in range(2):
        peers.main(["--store"])
    text, stored = (tmp_path / "README.md").read_text(), json.loads((tmp_path / "peers.json").read_text())
    assert text == f"before\n<!-- peers -->\n{block(stored)}\n<!-- /peers -->\nafter\n"
