"""The table of `summary`, its bytes against arithmetic, and what `quantize` finds out about a model."""

import math
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import mebqat_lite as mq
from mebqat_lite.measure.summary import HEADER, packed_bytes
from mebqat_lite.switching.state import frozen_weights, plan_of, quantized_layers, setting_of


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Net(nn.Module):
    """A fork, a signed input, a subclass, an unused layer, odd sizes: every line that a table can have."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 5, 1), nn.Conv2d(3, 5, 3, padding=1)
        self.flat, self.own, self.last = nn.Conv2d(5, 3, 1, bias=False), Doubling(3, 3), nn.Linear(3, 7)
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = self.flat(self.left(x) - self.right(x))
        return self.last(F.relu(self.own(x.mean((2, 3)))))


SHAPES = {"first": (27, 3), "left": (15, 5), "right": (135, 5), "flat": (15, 0), "last": (21, 7)}  # weights, biases
SHAPES |= {"own": (9, 3), "spare": (4, 2)}
EDGES = {"first": "first layer", "last": "last layer"}
FLOAT = {"own": "float: Doubling is a layer class of its own", "spare": "float: the sample did not reach it"}


def sample(count=8):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def net(quantizer="dorefa", **options):
    torch.manual_seed(0)
    return mq.quantize(Net(), quantizer, sample=sample(), **options)


def table(model):
    """{layer: {column: cell}} by the header's offsets, and the lines after the layers."""
    lines = mq.summary(model).splitlines()
    starts = [lines[0].index(column) for column in HEADER]
    rows = [line for line in lines[1:] if "layers quantized;" not in line and not line.startswith("WARNING")]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    cells = [dict(zip(HEADER, (row[a:b].strip() for a, b in spans), strict=True)) for row in rows]
    return {cell["layer"]: cell for cell in cells}, lines[1 + len(rows) :]


def packed(bits):
    """Bytes of weights packed at ``bits``, rounded up for each layer, and of 4-byte biases."""
    return {name: math.ceil(SHAPES[name][0] * b / 8) + 4 * SHAPES[name][1] for name, b in bits.items()}


CASES = [
    ("dorefa", "W3A4", {"left": 3, "right": 3, "flat": 3}),
    ("dorefa", "FP", {}),
    ("dorefa", "W16A16", {"left": 16, "right": 16, "flat": 16}),
    ("dorefa", {"*": "W5A5", "left": "W1A1", "flat": "FP"}, {"left": 1, "right": 5, "flat": 32}),
    ("lsq", "W2A8", {"left": 2, "right": 2, "flat": 2}),
    ("sat", "W3A4", {"first": 8, "left": 3, "right": 3, "flat": 3, "last": 8}),
    ("sat", "FP", {}),
    ("least_squares", "W7A7", {"left": 7, "right": 7, "flat": 7}),
]


@pytest.mark.parametrize(("quantizer", "bits", "widths"), CASES, ids=str)
def test_bytes_are_those_of_weights_packed_at_the_bits_in_force(quantizer, bits, widths):
    model = net(quantizer)
    with mq.at(model, bits):
        rows, rest = table(model)
        widths = {name: widths.get(name, 32) for name in SHAPES}
        expected = packed(widths)
        assert {name: int(row["bytes"].replace(",", "")) for name, row in rows.items()} == expected
        assert {name: row["weights"] for name, row in rows.items()} == {
            name: "FP" if width == 32 else str(width) for name, width in widths.items()
        }
        assert packed_bytes(model) == sum(expected.values())
        assert rest[0] == f"3 of 7 layers quantized; {sum(expected.values()):,} bytes at {setting_of(model).key}"
        warned = [re.match(r"WARNING: (.*?)( \(|:)", line)[1] for line in rest[1:]]
        signed, unnormed = ["1 of 3 layer inputs that can be negative"], ["1 layers without a norm behind them"]
        assert warned == {"dorefa": signed, "sat": signed + unnormed}.get(quantizer, [])


@pytest.mark.parametrize(("quantizer", "flat"), [("dorefa", "FP"), ("sat", "FP"), ("lsq", "4"), ("least_squares", "4")])
def test_each_line_says_what_is_done_and_why(quantizer, flat):
    model = net(quantizer)
    with mq.at(model, "W3A4"):
        rows, _ = table(model)
    assert list(rows) == ["first", "left", "right", "flat", "last", "own", "spare"], "as executed, then the skipped"
    edge = "8-bit weights: " if quantizer == "sat" else "float: "
    assert {name: rows[name]["why"] for name in EDGES} == {name: edge + why for name, why in EDGES.items()}
    assert {name: rows[name]["why"] for name in FLOAT} == FLOAT
    assert rows["left"]["why"] == "quantized"
    assert rows["right"]["why"] == "quantized; reads the input that left quantizes"
    assert rows["flat"]["why"] == ("quantized; inputs stay FP, they are signed" if flat == "FP" else "quantized")
    inputs = {"left": "4", "right": "4", "flat": flat}
    assert {name: row["inputs"] for name, row in rows.items()} == {name: inputs.get(name, "FP") for name in rows}
    kinds = {"own": "Doubling", "last": "Linear", "spare": "Linear"}
    assert {name: row["kind"] for name, row in rows.items()} == {name: kinds.get(name, "Conv2d") for name in rows}
    signs = {"first": "yes", "flat": "yes", "own": "", "spare": ""}
    assert {name: row["signed"] for name, row in rows.items()} == {name: signs.get(name, "no") for name in rows}


def test_keep_names_the_layers_that_stay_full_precision_instead_of_first_and_last():
    model = net(keep=["left", "last"])
    rows, rest = table(model)
    assert {name: rows[name]["why"] for name in ("left", "last")} == {
        "left": "float: kept by name",
        "last": "float: last layer",
    }
    assert list(quantized_layers(model)) == ["first", "right", "flat"] and rest[0].startswith("3 of 7")
    assert type(model.left) is nn.Conv2d and rows["right"]["why"] == "quantized", "a kept layer quantizes no input"
    assert len(quantized_layers(net(keep=[]))) == 5
    with pytest.raises(ValueError, match=r"^keep names \['fist'\], but the layers are \['first', 'left', 'right', "):
        net(keep=["fist", "left"])


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Flatten()), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())]
)
def test_a_model_without_a_layer_to_quantize_warns_and_runs_as_before(model):
    x = torch.rand(2, 4)
    expected = model(x)
    with pytest.warns(UserWarning, match="quantize found no layer to quantize: see summary"):
        mq.quantize(model, sample=x)
    text = mq.summary(model)
    assert text.endswith("WARNING: no layer to quantize: see summary(model) for the reasons")
    assert text.splitlines()[-2].startswith("0 of ")
    with mq.at(model, "W2A2"):
        assert torch.equal(model(x), expected)


def test_a_model_with_layers_to_quantize_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "WARNING" not in mq.summary(net("lsq"))
        mq.quantize(nn.Conv1d(2, 2, 3), "lsq", sample=torch.rand(2, 2, 8), keep=[])


def test_a_convolution_alone_may_be_the_model():
    x = torch.rand(2, 2, 8)
    conv = mq.quantize(nn.Conv1d(2, 2, 3), "lsq", sample=x, keep=[])
    with mq.at(conv, "W2A4"):
        assert conv.quantized_weight(2).unique().numel() <= 4 and conv(x).shape == (2, 2, 6)
        assert packed_bytes(conv) == 12 * 2 / 8 + 8


def test_layers_with_computed_weights_are_left_alone_and_counted():
    """A weight-normalised convolution is of a class of its own; its 4 weights and 2 biases take 24 bytes."""
    normalised = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1))
    model = nn.Sequential(nn.Conv2d(1, 2, 1), normalised, nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1))
    rows, _ = table(mq.quantize(model, sample=torch.rand(2, 1, 4, 4)))
    assert (rows["1"]["bytes"], rows["1"]["weights"]) == ("24", "FP") and "float" in rows["1"]["why"]


def test_mobilenet_has_18_signed_inputs_of_52_convolutions_and_dorefa_and_sat_leave_them_full_precision():
    model, x = torchvision.models.mobilenet_v2(weights=None), torch.randn(2, 3, 64, 64)
    for quantizer, inputs in (("dorefa", "FP"), ("sat", "FP"), ("lsq", "4")):
        mq.set_bits(mq.quantize(model, quantizer, sample=x), "W2A4")
        rows, rest = table(model)
        convs = {name: row for name, row in rows.items() if row["kind"] == "Conv2d"}
        signed = [name for name, row in convs.items() if row["signed"] == "yes"]
        assert (len(convs), len(signed)) == (52, 18) and signed[0] == "features.0.0"
        assert {convs[name]["inputs"] for name in signed[1:]} == {inputs}
        assert {row["inputs"] for name, row in convs.items() if name not in signed} == {"4"}
        assert rest[0].startswith("51 of 53 layers quantized")


def test_edge_layers_of_sat_have_8_bit_weights_and_are_float_in_an_fp_task():
    model, x = net("sat"), sample()
    w = model.first.weight
    code = (128 * (w.tanh() / w.tanh().abs().max() + 1)).floor().clamp(max=255) / 128 - 1  # floor form, no mean|w|
    for bits in ("W2A4", "W16A16", "FP", {"left": "W2A2"}):
        with mq.at(model, bits):
            fp = bits == "FP" or isinstance(bits, dict)
            assert [model.first.bits, model.last.bits] == [mq.FP if fp else mq.Bits(8, 32)] * 2
            expected = F.conv2d(x, w if fp else code, model.first.bias)
            torch.testing.assert_close(model.first(x), expected, rtol=0, atol=1e-6)


def test_layers_that_the_sample_did_not_reach_are_listed_in_the_models_order():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    model.spare = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    assert list(plan_of(mq.quantize(model, sample=torch.rand(1, 2))).skipped) == [f"spare.{i}" for i in range(8)]


def test_first_and_last_are_as_executed_whatever_the_order_of_definition():
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("last", "mid", "first")})
    model.forward = lambda x: model["last"](model["mid"](model["first"](x)))
    roles = {site.name: site.role for site in plan_of(mq.quantize(model, sample=torch.rand(1, 2))).sites}
    assert roles == {"first": "first", "mid": "body", "last": "last"}


def test_the_last_layer_is_the_one_that_is_executed_last_also_if_it_ran_before():
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("first", "head", "mid")})
    model.forward = lambda x: model["head"](model["mid"](model["head"](model["first"](x))))
    roles = {site.name: site.role for site in plan_of(mq.quantize(model, sample=torch.rand(1, 2))).sites}
    assert roles == {"first": "first", "head": "last", "mid": "body"}


SPLITS = {
    "one tensor": lambda x: x,
    "with labels": lambda x: (x, torch.zeros(len(x))),
    "loader": lambda x: [x[:600], x[600:]],
    "loader of pairs": lambda x: [(part, torch.zeros(len(part))) for part in x.split(250)],
}


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_measured_does_not_depend_on_how_the_sample_is_batched(split):
    """Of 601 images the last alone is large and signed: signs, means of |x| and shared inputs as of one batch."""
    x = torch.cat([sample(600).abs(), -50 * sample(1).abs()])
    torch.manual_seed(0)
    model = Net().double()
    inputs = {}
    names = ("first", "left", "flat", "last")
    watch = [lambda _m, args, name=name: inputs.update({name: args[0]}) for name in names]
    hooks = [model.get_submodule(name).register_forward_pre_hook(see) for name, see in zip(names, watch, strict=True)]
    model(x.double())
    for hook in hooks:
        hook.remove()
    found = {site.name: site for site in plan_of(mq.quantize(model, "lsq", sample=SPLITS[split](x))).sites}
    for name, seen in inputs.items():
        assert found[name].mean_abs == pytest.approx(float(seen.detach().abs().mean()), rel=1e-9)
        assert found[name].signed == bool((seen < 0).any())
    assert [site.leader for site in found.values()] == ["first", "left", "left", "flat", "last"]


def test_a_model_that_is_not_quantized_is_told_the_cure():
    steps = [mq.summary, packed_bytes, plan_of, setting_of, lambda m: mq.set_bits(m, "FP")]
    steps += [lambda m: mq.at(m, "W2A4").__enter__(), lambda m: frozen_weights(m).__enter__()]
    steps += [lambda m: mq.set_norm_stats(m, "batch"), lambda m: mq.recalibrate(m, sample(), "FP")]
    steps += [lambda m: mq.give_norm_sets(m, ["W2A2"])]
    for step in steps:
        with pytest.raises(
            mq.NotQuantizedError, match=r"^this Net has no .* call quantize\(model, sample=images\) first$"
        ):
            step(Net())
