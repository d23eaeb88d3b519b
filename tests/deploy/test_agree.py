"""What is written is compared with the network first: a faulty writer leaves no file."""

import dataclasses

import pytest
import torch
from shared import IMAGES, SHAPE, Chain, Twice, made
from torch import nn

from mebqat_lite import at, load_packed, save_packed
from mebqat_lite.deploy import onnx_export, onnx_graph, packed
from mebqat_lite.deploy.agree import DisagreementError, check_close
from mebqat_lite.deploy.onnx_run import agreement
from mebqat_lite.switching.state import plan_of

slow = pytest.mark.slow  # an export takes a second or two


def wrong_step(found):
    """Weights of 'two' that are twice as large."""
    return lambda layer, *rest: dataclasses.replace(
        found(layer, *rest), step=found(layer, *rest).step * (2 if layer.site.name == "two" else 1)
    )


def wrong_inputs(found):
    """Inputs of 'two' that are rounded to steps three percent larger."""
    return lambda layer, bits: dataclasses.replace(
        found(layer, bits), step=found(layer, bits).step * (1.03 if layer.site.name == "two" else 1)
    )


def no_bias(found):
    """A bias of 'two' that is taken out of the product and not added."""

    def dropped(graph, node, layer):
        added, bias = found(graph, node, layer), torch.zeros_like(layer.bias)
        if layer.site.name == "two":
            graph.initializer[-1].raw_data = bias.numpy().tobytes()
        return added

    return dropped


def missing(found):
    """A layer that stays float in the graph."""

    def without_two(graph, layers):
        return found(graph, {name: layer for name, layer in layers.items() if name != "two"})

    return without_two


@slow
@pytest.mark.parametrize(
    ("where", "name", "fault", "words"),
    [
        (onnx_export, "weights_of", wrong_step, "the quantized input of three differs by up to"),
        (onnx_export, "inputs_of", wrong_inputs, "the quantized input of two differs by up to"),
        (onnx_graph, "_detach_bias", no_bias, "the quantized input of three differs by up to"),
        (onnx_export, "quantize_graph", missing, "the layer two runs more often in the network"),
    ],
)
@pytest.mark.parametrize("bits", ["W3A3", "W8A8"])
def test_a_graph_that_computes_something_else_is_not_written(where, name, fault, words, bits, tmp_path, monkeypatch):
    model = made(lambda: Chain(tied=()), bits=bits)
    (tmp_path / "net.onnx").write_text("old")
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    with pytest.raises(DisagreementError, match=f"{words}.*nothing was written"):
        onnx_export.export_onnx(model, tmp_path / "net.onnx", bits, SHAPE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("net.onnx", "old")]
    assert not any("forward" in vars(module) for module in model.modules())


@slow
def test_a_layer_that_runs_twice_needs_two_nodes(tmp_path, monkeypatch):
    found = onnx_graph._multiplying
    monkeypatch.setattr(onnx_graph, "_multiplying", lambda graph, weight: found(graph, weight)[:1])
    with pytest.raises(DisagreementError, match="the layer a runs more often in the network"):
        onnx_export.export_onnx(made(Twice), tmp_path / "net.onnx", "W3A3", SHAPE)


def wrong_codes(monkeypatch):
    """One bit of each layer is another."""
    found = packed.pack

    def flipped(codes, bits):
        planes = found(codes, bits)
        planes[0, 0] ^= 128
        return planes

    monkeypatch.setattr(packed, "pack", flipped)
    return "the weights of a come back as others at W3A3"


def wrong_statistics(monkeypatch):
    """Variances that are two percent larger."""
    found = packed._statistics
    scale = torch.tensor([1, 1.02])[:, None]
    monkeypatch.setattr(packed, "_statistics", lambda *args: {k: t * scale for k, t in found(*args).items()})
    return "the quantized input of a differs by up to"


def wrong_activation_steps(monkeypatch):
    """Steps of activations that are three percent larger."""
    found = packed._rest
    monkeypatch.setattr(
        packed, "_rest", lambda *args: {k: t * (1.03 if ".a3" in k else 1) for k, t in found(*args).items()}
    )
    return "the quantized input of a differs by up to"


@pytest.mark.parametrize("fault", [wrong_codes, wrong_statistics, wrong_activation_steps])
def test_a_packed_file_that_comes_back_as_another_network_is_not_written(fault, tmp_path, monkeypatch):
    model = made(Twice)
    words = fault(monkeypatch)
    with pytest.raises(DisagreementError, match=f"{words}.*nothing was written"):
        save_packed(model, tmp_path / "p", "W3A3", calibration=IMAGES)
    assert list(tmp_path.iterdir()) == []


class Reads(Chain):
    """A network that reads the weight of a layer by itself, too."""

    def forward(self, x):
        return super().forward(x) + self.one.weight.sum()


class Transposes(Twice):
    """A network that runs a layer backward with the layer's own weights."""

    def forward(self, x):
        x = self.a(self.first(x).relu()).relu()
        return self.last(nn.functional.conv_transpose2d(x, self.a.weight).mean((2, 3)))


@pytest.mark.parametrize("build", [lambda: Reads(tied=()), Reads, Transposes])
def test_weights_that_a_network_reads_itself_are_in_the_packed_file(build, tmp_path):
    model = made(build)
    save_packed(model, tmp_path / "p", "W3A3", calibration=IMAGES)
    with torch.no_grad(), at(model, "W3A3", "recalibrated"):
        assert torch.equal(load_packed(tmp_path / "p", build())[0](IMAGES), model(IMAGES))


@slow
def test_weights_that_nothing_says_are_read_are_missed(tmp_path):
    model = made(lambda: Reads(tied=()))
    plan_of(model).bypassed.clear()
    with pytest.raises(DisagreementError, match="the output differs by up to nan"):
        save_packed(model, tmp_path / "p", "W3A3", calibration=IMAGES)
    with pytest.raises(DisagreementError, match="the output 'logits' differs by up to"):
        onnx_export.export_onnx(model, tmp_path / "net.onnx", "W3A3", SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_few_values_may_fall_to_the_other_level_and_no_more():
    ours = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for count, is_close in ((10, True), (11, False)):
        theirs = ours.clone()
        theirs[:count] += 0.3
        if is_close:
            check_close("x", ours, theirs)
        else:
            with pytest.raises(DisagreementError, match=r"^x differs by up to 0\.3 "):
                check_close("x", ours, theirs)
    for theirs in (ours[:-1], ours.clone().fill_(torch.nan)):
        with pytest.raises(DisagreementError, match="x differs by up to"):
            check_close("x", ours, theirs)


class Constant(Chain):
    """A network with a layer whose input is always the same, as a bias of positions has."""

    def __init__(self):
        super().__init__(tied=())
        self.position, self.mix = nn.Linear(3, 8), nn.Linear(8, 6)
        self.register_buffer("table", torch.rand(1, 3))

    def forward(self, x):
        x = self.two(self.one(self.first(x).relu()).relu()).relu()
        return self.last(x.mean((2, 3)) * self.mix(self.position(self.table).relu()).sigmoid())


@slow
@pytest.mark.parametrize("bits", ["W3A3", "W8A8", {"*": "W8A8", "mix": "FP"}])
def test_what_a_graph_holds_as_a_constant_is_no_obstacle(bits, tmp_path):
    model = made(Constant, bits=bits)
    done = onnx_export.export_onnx(model, tmp_path / "net.onnx", bits, SHAPE)
    assert agreement(done.path, model, IMAGES, bits).largest_difference < 1e-5
