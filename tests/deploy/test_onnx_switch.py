"""One ONNX file whose bits are inputs: the weights of PyTorch at every pair, its answers, and what is refused."""

import onnx
import pytest
import torch
from dyadic import SHAPE, Net, dyadic, images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mebqat_lite import datasets, models, paths
from mebqat_lite.bits import FULL, Bits
from mebqat_lite.checkpoint import load_model, save_model
from mebqat_lite.cli import main
from mebqat_lite.deploy import onnx_switch, switched
from mebqat_lite.deploy.agree import DisagreementError
from mebqat_lite.deploy.codes import weight_codes
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import answers, feed, session, values
from mebqat_lite.deploy.onnx_switch import agreements, export_switch
from mebqat_lite.deploy.switched import Switched
from mebqat_lite.measure.saved import give_statistics
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.switching.batchnorm import MissingNormSetError
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import give_norm_sets
from mebqat_lite.switching.state import NotQuantizedError, at, pairs_of, quantized_layers

pytestmark = pytest.mark.filterwarnings("ignore:quantize found")  # of networks without norms, or with signed inputs
slow = pytest.mark.slow  # an export takes a second or two
SUPPORTED = ("dorefa", "dorefa_fp_tanh", "lsq", "least_squares")
# The operators of which all float kernels are in ONNX Runtime for browsers.
PLAIN = {"Add", "BatchNormalization", "Cast", "Clip", "Conv", "Div", "Equal", "Flatten", "Gather", "Gemm"}
PLAIN |= {"GreaterOrEqual", "Identity", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "ReduceMean", "Relu"}
PLAIN |= {"Reshape", "Round", "Sub", "Transpose", "Where"} | {"Sin", "Cos", "Concat"}  # the waves of the painting


def shipped(name):
    """A network of the package with the statistics of all its pairs, and its test images."""
    model, extra = load_model(paths.shipped("checkpoints", f"{name}.safetensors"))
    give_statistics(model, extra, pairs_of(model))
    return model, datasets.load(extra["data"], extra["seed"]).test


@pytest.fixture(scope="module")
def few_pairs(tmp_path_factory):
    """A file of `dyadic` that several tests read."""
    return export_switch(dyadic(), tmp_path_factory.mktemp("few") / "net.onnx", "W2A2,W4A3,W8A8,W4A32,FP", SHAPE).path


def same_codes(path, model):
    """Whether the file's weights are the codes of PyTorch, at every pair that changes them."""
    graph, image = onnx.load(path), images(1, [d.dim_value for d in first_input(path)[1:]])
    names = {layer: key for key, (layer, what) in onnx_switch._seen(graph).items() if what == "weight"}
    layers = {name: layer for name, layer in quantized_layers(model).items() if layer.site.role == "body"}
    assert set(names) == set(layers)
    for pair in each_width(model):
        found = values(graph, list(names.values()), {"images": image, **feed(pair)})
        for name, layer in layers.items():
            theirs = found[names[name]]
            if pair.w == FULL:
                assert torch.equal(theirs, layer.quantized_weight(FULL))
                continue
            codes, step, zero = weight_codes(layer, pair.w)
            assert torch.equal((theirs / step + zero).round().int(), codes)
            assert torch.equal(theirs, layer.quantized_weight(pair.w)), (name, pair)


def each_width(model):
    """A pair for each number of bits that weights may have."""
    return [*{pair.w: pair for pair in pairs_of(model)}.values()]


def first_input(path):
    return onnx.load(path).graph.input[0].type.tensor_type.shape.dim


# --- answers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "most_bytes"),
    [
        ("digits-mebqat", 540, 80_000),
        pytest.param("digits-ptq_mse", 540, 70_000, marks=slow),
        pytest.param("paint-mebqat", 400, 480_000, marks=slow),
        pytest.param("glyphs-mebqat_pn", 20, 200_000, marks=slow),
    ],
)
def test_a_shipped_network_answers_at_all_its_pairs(tmp_path, name, count, most_bytes):
    model, test = shipped(name)
    done = export_switch(model, tmp_path / "net.onnx", pairs_of(model), test.images.shape[1:])
    found = agreements(done.path, model, test.images[:count])
    assert len(found.each) == len(pairs_of(model)) and found.same_class >= 99.9 and found.close >= 99
    assert done.bytes == done.path.stat().st_size <= most_bytes
    assert all(f"rounding flips at {pair}: images" in str(found) for pair, one in found.each.items() if one.apart)
    same_codes(done.path, model)
    kinds = {node.op_type for node in onnx.load(done.path).graph.node}
    assert kinds <= PLAIN and not {"Tanh", "QuantizeLinear"} & kinds


@slow
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(quantizer=st.sampled_from(SUPPORTED), signed=st.booleans(), seed=st.integers(0, 2**16))
def test_weights_of_random_networks_are_equal_to_the_last_digit(tmp_path, quantizer, signed, seed):
    """At each width of the weights; the graph is compared layer by layer before there is a file."""
    torch.manual_seed(seed)
    net = quantize(Net(signed), quantizer, sample=images()).eval()
    with torch.no_grad():
        net.one.weight.view(-1)[:3] = torch.tensor([0.0, -0.0, -1e-12])  # whose signs one bit needs
    same_codes(export_switch(net, tmp_path / "net.onnx", each_width(net), SHAPE).path, net)


@settings(max_examples=20, deadline=None)
@given(quantizer=st.sampled_from(SUPPORTED), signed=st.booleans(), seed=st.integers(0, 2**16), data=st.data())
def test_the_network_with_tables_computes_what_the_network_computes(quantizer, signed, seed, data):
    """In PyTorch, to the last digit, before anything is exported."""
    torch.manual_seed(seed)
    net = quantize(Net(signed), quantizer, sample=images()).eval()
    listed = sorted(data.draw(st.sets(st.sampled_from(pairs_of(net)), min_size=1)))
    tables = Switched(net, listed)
    with torch.no_grad():
        for pair in listed:
            with at(net, pair):
                wanted = net(images())
            torch.testing.assert_close(tables(images(), *feed(pair).values())[0], wanted, rtol=0, atol=0)


@slow
def test_fractions_of_two_give_equal_answers_at_any_batch(few_pairs):
    net, path = dyadic(), few_pairs
    for pair in ("W2A2", "W4A3", "w8a8", (4, 32), "FP"):
        for count in (1, 5):
            with at(net, pair), torch.no_grad():
                assert torch.equal(answers(path, images(count), bits=pair), net(images(count)))
    run = session(path)
    shown = [(one.name, one.type, one.shape) for one in run.get_inputs()]
    assert shown[0] == ("images", "tensor(float)", ["batch", *SHAPE])
    assert shown[1:] == [(f"{kind}_bits", "tensor(int32)", []) for kind in ("weight", "activation")]
    meta = {"format": "mebqat_lite", "quantizer": "lsq", "norm_stats": "recalibrated"}
    assert run.get_modelmeta().custom_metadata_map == meta | {"pairs": "W2A2,W4A3,W4A32,W8A8,FP"}
    assert [path.name for path in few_pairs.parent.iterdir()] == ["net.onnx"]


@slow
def test_each_pair_has_its_own_norm_set(tmp_path):
    sample = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net = quantize(models.digit_net(widths=(4, 4, 4, 4)), "dorefa", sample=sample).eval()
    give_norm_sets(net, "W2A2,W4A4")
    with torch.no_grad():
        net.body[0][1].sets["W2A2"].bias.fill_(0.5)
    with pytest.raises(ValueError, match=r"no recalibrated norm statistics for W2A2, W4A4, FP: give calibration="):
        export_switch(net, tmp_path / "net.onnx", "W2A2,W4A4,FP", (1, 8, 8))
    with pytest.raises(MissingNormSetError, match="no norm set for W3A3"):
        export_switch(net, tmp_path / "net.onnx", "W2A2,W3A3", (1, 8, 8), calibration=sample)
    assert list(tmp_path.iterdir()) == []
    path = export_switch(net, tmp_path / "net.onnx", "W2A2,W4A4,FP", (1, 8, 8), calibration=sample).path
    assert agreements(path, net, sample).close == 100


# --- what is refused -----------------------------------------------------------------------------------------------


@slow
def test_a_pair_that_is_not_in_the_file_is_refused_by_the_runner_and_by_the_graph(tmp_path, few_pairs):
    path, x, known = few_pairs, images(2), "it has W2A2, W4A3, W4A32, W8A8, FP"
    with pytest.raises(ValueError, match=rf"net\.onnx was not written for W2A4; {known}"):
        answers(path, x, bits="W2A4")
    with pytest.raises(ValueError, match=rf"net\.onnx runs at several pairs: say at which, bits='W4A4'; {known}"):
        answers(path, x)
    run = session(path)
    for pair in (Bits(2, 4), Bits(32, 4), Bits(3, 3)):
        with pytest.raises(Exception, match=r"Gather node.*out of data bounds"):
            run.run(None, {name: value.numpy() for name, value in {"images": x, **feed(pair)}.items()})
    one = export_onnx(dyadic(), tmp_path / "one.onnx", "W4A3", SHAPE).path
    assert torch.equal(answers(one, x, bits="W4A3"), answers(path, x, bits="W4A3"))
    with pytest.raises(ValueError, match=r"one\.onnx is of W4A3: use it at these bits, not at W2A2"):
        answers(one, x, bits="W2A2")


@pytest.mark.parametrize("quantizer", sorted({*QUANTIZERS} - {*SUPPORTED}))
def test_other_quantizers_are_refused(tmp_path, quantizer):
    net = quantize(Net(), quantizer, sample=images()).eval()
    with pytest.raises(ValueError, match=f"quantizers {', '.join(SUPPORTED)}, not for {quantizer}: write a file for"):
        export_switch(net, tmp_path / "net.onnx", "W4A4", SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_said(tmp_path):
    for net, pairs, kind, words in [
        (dyadic(), "W1A1,W4A4", ValueError, "lsq defines no 1-bit values"),
        (dyadic().double(), "W4A4", ValueError, "call model.float"),
        (Net(), "W4A4", NotQuantizedError, "call quantize"),
    ]:
        with pytest.raises(kind, match=words):
            export_switch(net, tmp_path / "net.onnx", pairs, SHAPE)
    assert list(tmp_path.iterdir()) == []


@slow
def test_nothing_is_written_if_a_weight_or_an_input_differs(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_text("old")
    for where, words in [("_give_weights", "the weights of .* at W2A2"), ("_give_inputs", "the quantized input of")]:
        with monkeypatch.context() as patched:
            original = getattr(switched, where)
            patched.setattr(switched, where, lambda layer, widths, give=original: give(layer, [3, 4]))
            with pytest.raises(DisagreementError, match=words):
                export_switch(dyadic(), path, "W2A2,W4A4", SHAPE)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("net.onnx", "old")]


@slow
def test_another_model_is_not_explained_by_rounding(few_pairs):
    net = dyadic()
    with torch.no_grad():
        net.last.bias[2] += 1
    with pytest.raises(DisagreementError, match="at W2A2 the file gives answers that rounding does not explain"):
        agreements(few_pairs, net, images())


# --- the command ---------------------------------------------------------------------------------------------------


@slow
def test_the_command_writes_all_trained_pairs_and_says_how_large_the_file_is(tmp_path, capsys):
    checkpoint = "data/checkpoints/digits-wide-any_precision.safetensors"
    out = tmp_path / "x.onnx"
    command = ["export", "--checkpoint", checkpoint, "--to", "onnx", "--bits", "switch", "--out", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "dorefa at any of 5 pairs" in shown and f"Written: {out} ({out.stat().st_size:,} bytes)" in shown
    assert "5 pairs, 540 images each: same class for 100.00 %" in shown


def test_the_command_refuses_other_quantizers_before_it_measures(tmp_path, capsys):
    net = quantize(models.digit_net(), "sat", sample=torch.rand(8, 1, 8, 8))
    extra = {"method": "qat", "data": "digits", "setup": {"recipe": {"bits": ["W2A2"]}}}
    checkpoint = str(save_model(net, tmp_path / "sat.safetensors", **extra))
    assert main(["export", "--checkpoint", checkpoint, "--to", "onnx", "--bits", "switch"]) == 2
    assert f"can be written for the quantizers {', '.join(SUPPORTED)}, not for sat" in capsys.readouterr().err
