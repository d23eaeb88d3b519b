"""ONNX files: integers of the right type, answers to the last digit, and clear words where that cannot be."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from dyadic import SHAPE, Net, dyadic, images
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_graph import SIGNED, _integers
from mebqat_lite.deploy.onnx_run import answers, session
from mebqat_lite.quantizers import QUANTIZERS, Quantizer, unit_activation
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.state import NotQuantizedError, at, setting_of

slow = pytest.mark.slow  # an export takes a second
KINDS = {number: name for name, number in TensorProto.DataType.items()}


BODY = ("chain", "one", "other", "hidden")


def bit_equal(net, bits, path, plain=False):
    with at(net, bits), torch.no_grad():
        return torch.equal(net(images()), answers(path, images(), plain))


def graph_of(path):
    onnx.checker.check_model(str(path), full_check=True)
    return onnx.load(path).graph


def stored_types(path):
    return {t.name: KINDS[t.data_type] for t in graph_of(path).initializer if t.name.endswith(".weight_codes")}


# --- integers ------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(SIGNED), count=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_integers_come_back_from_their_bytes(kind, count, seed):
    name, width = kind
    low, high = -(2 ** (width - 1)), 2 ** (width - 1)
    codes = np.random.default_rng(seed).integers(low, high, (count, 3))
    stored = _integers("x", codes, name)
    assert np.array_equal(numpy_helper.to_array(stored).astype(np.int64), codes)
    assert len(stored.raw_data) == -(-codes.size * width // 8)


@slow
@pytest.mark.parametrize(
    ("quantizer", "bits", "weights", "inputs", "clips", "note"),
    [
        ("lsq", "W2A2", "INT4", "UINT8", True, "INT2 needs opset 25"),
        ("lsq", "W3A5", "INT4", "UINT8", True, "ONNX has no INT3"),
        ("lsq", "W4A4", "INT4", "UINT8", True, ""),
        ("lsq", "W8A8", "INT8", "UINT8", False, ""),  # the type clips
        ("lsq", "W16A16", "INT16", "UINT16", False, ""),
        ("lsq", "W4A32", "INT4", "FLOAT", False, ""),
        ("lsq", "W32A4", "FLOAT", "UINT8", True, ""),
        ("lsq_shared", "W8A8", "INT8", "UINT16", True, ""),  # whose inputs reach 256
    ],
)
def test_answers_are_equal_to_the_last_digit(tmp_path, quantizer, bits, weights, inputs, clips, note):
    net = dyadic(quantizer)
    done = export_onnx(net, tmp_path / "net.onnx", bits, SHAPE)
    assert bit_equal(net, bits, done.path, plain=True) and bit_equal(net, bits, done.path, plain=False)
    assert [(s.layer, s.weights, s.inputs) for s in done.layers] == [(name, weights, inputs) for name in BODY]
    assert done.layers[0].note == note and bool(done.widened) == bool(note)
    assert set(stored_types(done.path).values()) == {weights} - {"FLOAT"}
    assert done.bytes == done.path.stat().st_size and bits in str(done)
    kinds = Counter(node.op_type for node in graph_of(done.path).node)
    assert kinds["QuantizeLinear"] == (0 if inputs == "FLOAT" else 3)  # one and other read the same tensor
    assert kinds["Clip"] == 3 * clips


@slow
def test_signed_inputs_lie_in_int8(tmp_path):
    net = dyadic(signed=True)
    done = export_onnx(net, tmp_path / "net.onnx", "W4A4", SHAPE)
    assert {s.inputs for s in done.layers} == {"INT8"} and bit_equal(net, "W4A4", done.path)


@slow
def test_a_map_of_layers_gives_each_its_own(tmp_path):
    net = dyadic()
    bits = {"*": "W8A8", "other": "W4A3", "hidden": "FP"}
    done = export_onnx(net, tmp_path / "net.onnx", bits, SHAPE)
    assert [(s.layer, s.weights, s.inputs) for s in done.layers] == [
        ("chain", "INT8", "UINT8"),
        ("one", "INT8", "UINT8"),
        ("other", "INT4", "UINT8"),
        ("hidden", "FLOAT", "FLOAT"),
    ]
    assert bit_equal(net, bits, done.path)


# --- a zero that is a half-integer ---------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize(
    ("quantizer", "bits", "compact", "kind", "note"),
    [
        ("dorefa", "W1A1", False, "INT4", "INT2 needs opset 25"),
        ("dorefa", "W3A2", False, "INT4", "the odd numbers from -7 to 7"),
        ("dorefa", "W8A2", False, "INT16", "the odd numbers from -255 to 255"),
        ("dorefa", "W4A2", True, "INT4", ""),
        ("sat_centred", "W8A2", False, "INT16", "the odd numbers from -255 to 255"),
        ("sat_centred", "W8A2", True, "INT8", ""),
        ("sat", "W8A2", False, "INT8", ""),
        ("least_squares", "W2A2", False, "INT4", "INT2 needs opset 25"),  # a step for each channel
        ("dorefa_fp_tanh", "FP", False, "FLOAT", ""),
        ("dorefa_corrected", "W1A1", False, "INT4", "INT2 needs opset 25"),  # a step and a zero for each channel
        ("dorefa_corrected", "W4A2", False, "INT4", ""),
        ("sat_corrected", "W8A2", False, "INT8", ""),
        ("lsq_corrected", "W3A2", True, "INT4", "ONNX has no INT3"),
    ],
)
def test_half_integers_take_a_wider_type_or_are_added(tmp_path, quantizer, bits, compact, kind, note):
    """At few activation bits: two sums that differ in the last digit then hardly ever round apart."""
    net = quantize(Net(), quantizer, sample=images()).eval()
    done = export_onnx(net, tmp_path / "net.onnx", bits, SHAPE, compact=compact)
    edges = ("first", "last") if quantizer.startswith("sat") else ()  # which keep 8 bits there
    assert {s.layer: s.weights for s in done.layers} == dict.fromkeys((*BODY, *edges), kind)
    assert note in done.layers[bool(edges)].note and bool(done.widened) == bool(note)
    with at(net, bits), torch.no_grad():
        wanted = net(images())
    for plain in (True, False):
        torch.testing.assert_close(answers(done.path, images(), plain), wanted, rtol=1e-5, atol=1e-6)


@slow
def test_both_forms_hold_exactly_the_weights(tmp_path):
    """Read by the reference evaluator of the package onnx, not by a runtime that may rearrange."""
    net = quantize(Net(), "dorefa", sample=images()).eval()
    for compact in (False, True):
        model = onnx.load(export_onnx(net, tmp_path / "net.onnx", "W4A2", SHAPE, compact=compact).path)
        model.graph.output.append(helper.make_tensor_value_info("one.weight", TensorProto.FLOAT, None))
        found = onnx.reference.ReferenceEvaluator(model).run(["one.weight"], {"images": images(1).numpy()})[0]
        with torch.no_grad():
            assert np.array_equal(found, net.one.quantized_weight(4).numpy())


# --- two bits in INT2 ----------------------------------------------------------------------------------------------


needs_int2 = pytest.mark.skipif(onnx.defs.onnx_opset_version() < 25, reason="this onnx has no INT2")


@needs_int2
@slow
def test_two_bits_lie_in_int2_but_not_before_a_matrix_product(tmp_path):
    net = dyadic()
    done = export_onnx(net, tmp_path / "net.onnx", "W2A2", SHAPE, opset=25)
    assert stored_types(done.path) == {
        "chain.weight_codes": "INT2",
        "one.weight_codes": "INT2",
        "other.weight_codes": "INT2",
        "hidden.weight_codes": "INT4",
    }
    assert "no INT2 before a matrix product" in done.widened["hidden"] and list(done.widened) == ["hidden"]
    assert bit_equal(net, "W2A2", done.path, plain=True) and bit_equal(net, "W2A2", done.path, plain=False)


def save_product(path, codes, kind, opset):
    """images @ codes, with a step of 1 for each column."""
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "step"], ["w"], axis=1),
        helper.make_node("MatMul", ["images", "w"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in zip(("images", "logits"), codes.shape, strict=True)
    ]
    steps = numpy_helper.from_array(np.ones(codes.shape[1], np.float32), "step")
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], [_integers("codes", codes, kind), steps])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=12), path)


# --- the file ------------------------------------------------------------------------------------------------------


@slow
def test_the_batch_may_have_any_size_and_the_file_says_what_it_is(tmp_path, capfd):
    net = dyadic().train()
    before, mode = {name: t.clone() for name, t in net.state_dict().items()}, setting_of(net).bits
    path = export_onnx(net, tmp_path / "net.onnx", "W4A4", SHAPE).path
    assert capfd.readouterr() == ("", "") and list(tmp_path.iterdir()) == [path]
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert net.training and setting_of(net).bits == mode and "forward" not in vars(net.one)
    run = session(path)
    assert [(i.name, i.shape) for i in run.get_inputs()] == [("images", ["batch", *SHAPE])]
    assert [o.name for o in run.get_outputs()] == ["logits"]
    assert [len(answers(path, images(count))) for count in (1, 3)] == [1, 3]
    meta = {"format": "mebqat_lite", "bits": "W4A4", "quantizer": "lsq", "norm_stats": "recalibrated"}
    assert run.get_modelmeta().custom_metadata_map == meta
    content = path.read_bytes()
    assert not any(word in content for word in (b".py", str(Path(sys.prefix)).encode(), b"stack_trace"))


@slow
def test_a_layer_that_never_runs_is_left_out(tmp_path):
    class Auxiliary(Net):
        def forward(self, x):
            return super().forward(x) if self.training else self.last(self.first(x).mean((2, 3)) @ torch.ones(4, 10))

    net = quantize(Auxiliary(), "lsq", sample=images()).eval()
    done = export_onnx(net, tmp_path / "net.onnx", "W4A4", SHAPE)
    assert done.layers == [] and not any("hidden" in tensor.name for tensor in graph_of(done.path).initializer)


def test_a_failed_export_leaves_the_old_file(tmp_path):
    (tmp_path / "net.onnx").write_text("old")
    with pytest.raises(RuntimeError, match=r"^Given groups=1"):
        export_onnx(dyadic(), tmp_path / "net.onnx", "W4A4", (1, 6, 6))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("net.onnx", "old")]


# --- what cannot be ------------------------------------------------------------------------------------------------


class Silent(Quantizer):
    def weight(self, w, bits, params, site):
        return w.round(decimals=1)

    def activation(self, x, bits, params, site):
        return unit_activation(x, bits)


def test_what_cannot_be_is_said(tmp_path, monkeypatch):
    path, net = tmp_path / "net.onnx", dyadic()
    monkeypatch.setitem(QUANTIZERS, "silent", Silent())
    cases = [
        (lambda: export_onnx(net, path, "W4A4", SHAPE, opset=20), ValueError, "opset 21 or later, not 20"),
        (
            lambda: export_onnx(net, path, "W4A4", SHAPE, opset=99),
            RuntimeError,
            "knows opsets up to .* not 99: pip install -U",
        ),
        (lambda: export_onnx(net, path, "W9A4", SHAPE), ValueError, "lsq does not define W9A4"),
        (lambda: export_onnx(net, path, "W4A4", SHAPE, norm_stats="batch"), ValueError, "recalibrated or running"),
        (lambda: export_onnx(Net(), path, "W4A4", SHAPE), NotQuantizedError, "call quantize"),
        (
            lambda: export_onnx(dyadic_as("silent"), path, "W4A4", SHAPE),
            ValueError,
            "define activation_grid|weight_grid",
        ),
        (lambda: export_onnx(dyadic_as("dorefa"), path, "W4A20", SHAPE), ValueError, "take at most 16 bits"),
        (lambda: export_onnx(dyadic_as("dorefa").double(), path, "W4A4", SHAPE), ValueError, "call model.float"),
        (lambda: session(path), FileNotFoundError, "no file net.onnx"),
    ]
    for act, kind, words in cases:
        with pytest.raises(kind, match=words):
            act()
    assert list(tmp_path.iterdir()) == []


def dyadic_as(quantizer):
    return quantize(Net(), quantizer, sample=images()).eval()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript.optimizer", "onnxruntime"])
def test_a_missing_package_is_named_with_the_cure(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RuntimeError, match=r'pip install "mebqat_lite\[export\]"') as error:
        session(tmp_path) if missing == "onnxruntime" else export_onnx(dyadic(), tmp_path / "x", "W4A4", SHAPE)
    assert missing.partition(".")[0] in str(error.value)


def test_a_file_that_the_runtime_is_too_old_for(tmp_path):
    save_product(tmp_path / "m.onnx", np.ones((4, 4), np.int64), "INT4", opset=99)
    with pytest.raises(RuntimeError, match=r"cannot run m.onnx .*pip install -U .*or export with opset=21"):
        session(tmp_path / "m.onnx")
