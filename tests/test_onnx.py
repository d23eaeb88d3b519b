"""ONNX files: integers of the right type, the answers of PyTorch, and clear words where that cannot be."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import mebqat_lite as mq
from benchmarks import deploy
from mebqat_lite import datasets, models, paths
from mebqat_lite.checkpoint import load_model
from mebqat_lite.deploy.onnx_export import export_few_shot, export_onnx
from mebqat_lite.deploy.onnx_graph import SIGNED, _integers
from mebqat_lite.deploy.onnx_run import agreement, answers, latency, session
from mebqat_lite.measure.saved import episodes_for
from mebqat_lite.quantizers import DoReFa, Quantizer, register, unit_activation
from mebqat_lite.switching.batchnorm import MissingNormSetError
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import give_norm_sets, is_recalibrated
from mebqat_lite.switching.state import NotQuantizedError, at, norm_layers, setting_of

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (2, 6, 6)
KINDS = {number: name for name, number in TensorProto.DataType.items()}


def images(count=12, shape=SHAPE):
    """Multiples of 1/16: sums of few of them, times other small fractions of two, are exact in float32."""
    return torch.randint(0, 17, (count, *shape), generator=torch.Generator().manual_seed(1)) / 16


class Net(nn.Module):
    """Biases, a chain of convolutions, a tensor that two layers read, a linear layer that is quantized; no norms."""

    def __init__(self, signed=False):
        super().__init__()
        self.first, self.chain = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1)
        self.one, self.other = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, bias=False)
        self.hidden, self.last = nn.Linear(24, 10), nn.Linear(10, 5)
        self.act = nn.Identity() if signed else nn.ReLU()

    def forward(self, x):
        x = self.act(self.chain(self.act(self.first(x))))
        x = self.act(self.other(x) + self.one(x)).flatten(1)
        return self.last(self.act(self.hidden(x)))


BODY = ("chain", "one", "other", "hidden")


def dyadic(quantizer="lsq", signed=False):
    """A `Net` whose numbers are all fractions of a power of two: PyTorch and ONNX Runtime have nothing to round but
    what they quantize, and must agree to the last digit, ties included.
    """
    torch.manual_seed(0)
    net = quantize(Net(signed), quantizer, sample=images()).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".quant." in name:  # a step, or a clip: 255 steps, which 15 and 3 divide
                parameter.fill_(255 / 64 if "alpha" in name else 0.125)
            elif name.endswith("bias"):
                parameter.copy_((parameter * 2**9).round() / 2**9)
            else:
                parameter.copy_((parameter * 16).round() / 16)
    return net


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


def test_signed_inputs_lie_in_int8(tmp_path):
    net = dyadic(signed=True)
    done = export_onnx(net, tmp_path / "net.onnx", "W4A4", SHAPE)
    assert {s.inputs for s in done.layers} == {"INT8"} and bit_equal(net, "W4A4", done.path)


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


# --- batch norm ----------------------------------------------------------------------------------------------------


@pytest.fixture
def normed():
    torch.manual_seed(0)
    return quantize(models.digit_net(widths=(4, 4, 4, 4)), "lsq", sample=torch.rand(8, 1, 8, 8)).eval()


def test_statistics_are_measured_if_images_are_given_and_not_otherwise(tmp_path, normed):
    path, sample = tmp_path / "net.onnx", torch.rand(64, 1, 8, 8)
    with pytest.raises(ValueError, match=r"no recalibrated norm statistics for W2A2: give calibration="):
        export_onnx(normed, path, "W2A2", (1, 8, 8))
    assert not path.exists()
    for bits in ("W2A2", "W32A2"):
        export_onnx(normed.train(), path, bits, (1, 8, 8), calibration=sample)
        assert is_recalibrated(normed, bits)
        for plain in (True, False):
            found = agreement(path, normed, sample[:8], bits, plain=plain)
            assert found.share == 100 and found.disagreements == [] and found.largest_difference < 1e-5
    running = export_onnx(normed, tmp_path / "running.onnx", "W2A2", (1, 8, 8), norm_stats="running").path
    assert agreement(running, normed, sample[:8], "W2A2", "running").largest_difference < 1e-5
    assert agreement(running, normed, sample[:8], "W2A2").largest_difference > 0.01


def test_a_pair_without_a_norm_set_is_refused(tmp_path, normed):
    give_norm_sets(normed, "W2A2,W4A4")
    for how in ({"calibration": torch.rand(8, 1, 8, 8)}, {"norm_stats": "running"}):
        with pytest.raises(
            MissingNormSetError, match="no norm set for W3A3: this model has sets for FP, W2A2, W4A4 only"
        ):
            export_onnx(normed, tmp_path / "net.onnx", "W3A3", (1, 8, 8), **how)
    export_onnx(normed, tmp_path / "net.onnx", "W4A4", (1, 8, 8), norm_stats="running")


# --- networks of the package, of a user, of few shots --------------------------------------------------------------


@pytest.mark.parametrize("bits", ["W1A1", "W4A4", "FP"])
def test_a_shipped_network_answers_as_in_pytorch(tmp_path, bits):
    model, extra = load_model(paths.shipped("checkpoints", "digits-mebqat.safetensors"))
    test = datasets.load(extra["data"], extra["seed"]).test
    export_onnx(model, tmp_path / "net.onnx", bits, test.images.shape[1:])
    found = agreement(tmp_path / "net.onnx", model, test.images, bits)
    assert found.images == 540 and found.share >= 99.9 and "same class for" in str(found)


def test_disagreements_are_listed_and_latencies_compared(tmp_path):
    net = dyadic()
    path = export_onnx(net, tmp_path / "net.onnx", "W4A4", SHAPE).path
    with torch.no_grad():
        net.last.bias[2] += 100
    chosen = answers(path, images()).argmax(1)
    found = agreement(path, net, images(), "W4A4")
    apart = [(index, 2, int(there)) for index, there in enumerate(chosen) if there != 2]
    assert found.disagreements == apart and found.share == pytest.approx(100 * (1 - len(apart) / 12))
    assert f"image {apart[0][0]}: PyTorch 2, ONNX {apart[0][2]}" in str(found)
    timed = latency(path, path, images(3), runs=5, warmup=1)
    assert (timed.batch, timed.runs) == (3, 5) and timed.quartiles[0] <= timed.ratio <= timed.quartiles[1]
    assert min(timed.milliseconds) > 0 and "at batch 3" in str(timed)


@pytest.mark.parametrize("bits", ["W4A4", "W8A8"])
def test_a_torchvision_network(tmp_path, bits):
    """With fractions of two throughout, so that its answers too must be equal to the last digit."""
    torch.manual_seed(0)
    x = images(3, (3, 64, 64))
    net = mq.quantize(torchvision.models.resnet18(num_classes=10), "lsq", sample=x).eval()
    with torch.no_grad():
        for norm in norm_layers(net).values():
            norm.eps = 0.0
        for name, parameter in net.named_parameters():
            if ".quant." in name:
                width = int(name.rpartition(".")[2][1:])
                parameter.fill_(2.0 ** -(width if ".w" in name else width // 2 + 1))
            elif parameter.dim() > 1:
                parameter.copy_((parameter * 32).round() / 32)
            else:
                parameter.copy_((parameter * 2**9).round() / 2**9)
    done = export_onnx(net, tmp_path / "net.onnx", bits, x.shape[1:], norm_stats="running")
    with at(net, bits), torch.no_grad():
        ours = net(x)
    assert torch.equal(answers(done.path, x), ours) and float(ours.std(0).max()) > 0.01
    assert len(done.layers) == 19 and {s.weights for s in done.layers} == {f"INT{bits[1]}"}


def test_a_prototypical_network_learns_classes_in_the_runtime(tmp_path):
    model, extra = load_model(paths.shipped("checkpoints", "glyphs-mebqat_pn.safetensors"))
    learner, episodes, _ = episodes_for(model, extra, shots=2, ways=7)
    enroll, classify = export_few_shot(model, tmp_path, "W2A2", (1, 28, 28))
    assert {path.name for path in tmp_path.iterdir()} == {"enroll.onnx", "classify.onnx"}
    assert [s.layer for s in enroll.layers] == [s.layer for s in classify.layers] == ["body.0.0", "body.1.0"]
    for number in range(3):
        support, query = episodes[number].support, episodes[number].query.flatten(0, 1)
        [prototypes] = session(enroll.path).run(None, {"support": support.numpy()})
        feed = {"images": query.numpy(), "prototypes": prototypes}
        classes, distances = session(classify.path).run(None, feed)
        logits = learner.adapt(model, support, "W2A2", "recalibrated")(query)
        assert prototypes.shape[0] == 7 and distances.shape == (len(query), 7)
        assert np.array_equal(classes, logits.argmax(1).numpy())
        assert np.array_equal(classes, distances.argmin(1))


def test_weights_that_are_no_layers_own_go_into_both_files(tmp_path):
    """At full precision dorefa_fp_tanh multiplies with tanh of the weights: once, not once a file."""
    x = torch.rand(6, 1, 16, 16)
    model = quantize(models.conv4(channels=4, image_size=16), "dorefa_fp_tanh", sample=x).eval()
    files = export_few_shot(model, tmp_path, "FP", (1, 16, 16), norm_stats="running")
    enroll, classify = (session(done.path) for done in files)
    [prototypes] = enroll.run(None, {"support": x[:4].unflatten(0, (2, 2)).numpy()})
    distances = classify.run(None, {"images": x[4:].numpy(), "prototypes": prototypes})[1]
    with torch.no_grad():
        out = model(x)
    wanted = torch.cdist(out[4:], out[:4].unflatten(0, (2, 2)).mean(1)).square()
    torch.testing.assert_close(torch.from_numpy(distances), wanted, rtol=1e-4, atol=1e-5)


# --- what cannot be ------------------------------------------------------------------------------------------------


class Silent(Quantizer):
    def weight(self, w, bits, params, site):
        return w.round(decimals=1)

    def activation(self, x, bits, params, site):
        return unit_activation(x, bits)


def test_what_cannot_be_is_said(tmp_path, monkeypatch):
    path, net = tmp_path / "net.onnx", dyadic()
    monkeypatch.setattr("mebqat_lite.quantizers.QUANTIZERS", {"dorefa": DoReFa()})
    register("silent", Silent())
    cases = [
        (lambda: export_onnx(net, path, "W4A4", SHAPE, opset=20), ValueError, "opset 21 or later, not 20"),
        (
            lambda: export_onnx(net, path, "W4A4", SHAPE, opset=99),
            RuntimeError,
            "knows opsets up to .* not 99: pip install -U",
        ),
        (lambda: export_onnx(net, path, "W9A4", SHAPE), ValueError, "no step for 9 bits"),
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


# --- the benchmark -------------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_measured_and_all_of_it_agrees():
    stored = json.loads((deploy.FOLDER / "deploy.json").read_text())
    page = (deploy.FOLDER / "README.md").read_text()
    assert f"<!-- deploy -->\n{deploy.block(stored)}\n<!-- /deploy -->" in page
    found = stored["onnx"]["found"]
    shipped = {file.stem for file in paths.shipped("checkpoints").glob("digits-*.safetensors")}
    assert set(found["agreement"]) == shipped and found["agreement"]["digits-mebqat"]["pairs"] == 75
    assert min(row["lowest"] for row in found["agreement"].values()) >= 99.9
    assert min(found["few_shot"]["share"].values()) >= 99.9
    for row in found["files"]:  # smaller and no faster, least so if weights are unpacked at load
        ratios = {key: cell["ratio"] for key, cell in row["times"].items()}
        assert 1 < ratios["1"] < 1.5 < ratios["1 plain"] and 1 < ratios["64"] < 1.5 < ratios["64 plain"]
        assert row["bytes"][0] < 0.6 * row["bytes"][1]


def test_a_section_is_measured_shown_and_kept_beside_the_others(tmp_path, monkeypatch, capsys):
    assert deploy.main(["speed"]) == 2 and "there are packed, onnx" in capsys.readouterr().err
    found = deploy.agreements("digits-qat_w2a2", tmp_path)
    assert found == {"pairs": 1, "images": 540, "lowest": 100.0, "disagreements": {}}
    monkeypatch.setattr(deploy, "FOLDER", tmp_path)
    monkeypatch.setattr(deploy, "SECTIONS", {"a": (dict, lambda found: "A"), "b": (dict, lambda found: "B")})
    (tmp_path / "README.md").write_text("before\n<!-- deploy -->\nold\n<!-- /deploy -->\nafter\n")
    assert deploy.main(["a", "--store"]) == deploy.main(["b", "--store"]) == 0
    stored, text = json.loads((tmp_path / "deploy.json").read_text()), (tmp_path / "README.md").read_text()
    assert (
        set(stored) == {"a", "b"}
        and text == f"before\n<!-- deploy -->\n{deploy.block(stored)}\n<!-- /deploy -->\nafter\n"
    )
    assert deploy.block(stored).count("```text") == 2
