"""Random networks go through everything: at FP they are the float network, and a file gives the same network back."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_modules import CLASSES, SIDE, chosen, network
from torch import nn

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.switching.state import quantized_layers

X = torch.rand(12, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
PART = Split(X, torch.arange(12) % CLASSES)
DATA = Data("made", PART, PART, PART, ("a", "b", "c"))
PER_CHANNEL = ("least_squares", "dorefa_corrected", "lsq_corrected")  # one scale for each row of weights
QUANTIZERS = st.sampled_from(["dorefa", "sat", "lsq", "double_rounding", *PER_CHANNEL])
TRAINED = st.sampled_from(["dorefa", "sat", "lsq", "double_rounding", *PER_CHANNEL])
PAIRS = "W2A2,W3A8,FP"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def examples(count):
    return settings(derandomize=True, deadline=None, max_examples=count)


def quantized(made, quantizer):
    return mq.quantize(network(*made).eval(), quantizer, sample=X)


def outputs(model, bits, norm_stats="recalibrated"):
    with torch.no_grad(), mq.at(model, bits, norm_stats):
        return model(X.clone())


@given(chosen, QUANTIZERS)
@examples(60)
def test_at_full_precision_it_is_the_float_network_before_and_after_a_switch(made, quantizer):
    plain = network(*made).eval()
    with torch.no_grad():
        expected = plain(X.clone())
    model = quantized(made, quantizer)
    before = copy.deepcopy(model.state_dict())
    edges = "W32A32" if quantizer != "sat" else "FP"
    assert torch.equal(outputs(model, edges, "running"), expected)
    low = outputs(model, "W2A2", "running")
    assert torch.equal(outputs(model, "FP", "running"), expected)
    assert torch.equal(outputs(model, "W2A2", "running"), low) and low.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(mq.restore_float(model)(X.clone()), expected)


@given(chosen, QUANTIZERS)
@examples(60)
def test_at_two_bits_a_layer_has_four_weights_and_four_inputs(made, quantizer):
    model = quantized(made, quantizer)
    inputs: dict[str, list] = {}
    layers = {name: layer for name, layer in quantized_layers(model).items() if layer.site.role == "body"}
    for layer in layers.values():  # what reaches the convolution itself, after its input was quantized
        apply = layer.apply_weight
        layer.apply_weight = lambda x, w, layer=layer, apply=apply: (
            inputs.setdefault(layer.site.name, []).append((x, w)) or apply(x, w)
        )
    outputs(model, "W2A2", "running")
    assert set(inputs) == set(layers)
    for name, passes in inputs.items():
        layer = layers[name]
        for x, w in passes:
            rows = w.flatten(1) if quantizer in PER_CHANNEL else w.reshape(1, -1)
            assert all(row.unique().numel() <= 4 for row in rows)
            signed = layer.site.signed and not layer.quantizer.signed_inputs
            assert signed or x.unique().numel() <= 4
        if layer.site.signed and not layer.quantizer.signed_inputs:
            assert name in " ".join(mq.switching.audit.audit(model)) or "more" in mq.summary(model)


@given(chosen, TRAINED, st.sampled_from(["mebqat", "qat", "adabits"]))
@examples(25)
def test_it_is_trained_the_same_twice_and_kept_in_a_file(made, quantizer, method):
    losses, models = [], []
    for _ in range(2):
        models.append(network(*made))
        options = {"bits": "W2A2"} if method == "qat" else {"bits": PAIRS} if method == "adabits" else {}
        run = mq.fit(
            models[-1], DATA, method, quantizer=quantizer, steps=2, batch_size=6, lr=0.01, progress=False, **options
        )
        losses.append(run.losses)
    assert losses[0] == losses[1]
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]) and value.isfinite().all(), name


@given(made=chosen, quantizer=QUANTIZERS)
@examples(40)
def test_files_give_the_same_network_back(tmp_path_factory, made, quantizer):
    folder = tmp_path_factory.mktemp("files")
    model = mq.recalibrate(quantized(made, quantizer), X, PAIRS)
    expected = {bits: outputs(model, bits) for bits in PAIRS.split(",")}
    loaded, _ = mq.load_model(mq.save_model(model, folder / "model.safetensors"), network(*made))
    for bits, logits in expected.items():
        assert torch.equal(outputs(loaded, bits), logits)
    mq.save_packed(model, folder / "packed.safetensors", "W2A2,W3A8")
    packed, _ = mq.load_packed(folder / "packed.safetensors", network(*made))
    for bits in ("W2A2", "W3A8"):
        assert torch.equal(outputs(packed, bits), expected[bits])


@pytest.mark.slow
@given(made=chosen, quantizer=QUANTIZERS)
@examples(12)
def test_onnx_files_answer_like_the_network_or_are_refused_in_one_sentence(tmp_path_factory, made, quantizer):
    onnx_run = pytest.importorskip("mebqat_lite.deploy.onnx_run")
    from mebqat_lite.deploy.onnx_export import export_onnx

    model = quantized(made, quantizer)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(model, path, "W3A8", X.shape[1:], calibration=X)
    logits = onnx_run.answers(path, X)
    torch.testing.assert_close(logits, outputs(model, "W3A8"), rtol=0, atol=0.5)  # a rounding flip moves a step
    assert (logits - outputs(model, "W3A8")).abs().median() < 1e-4


def test_the_blocks_are_those_that_the_networks_are_made_of():
    from random_modules import BLOCKS

    for name in BLOCKS:
        model = network([name], 0).eval()
        assert isinstance(model, nn.Sequential) and model(X.clone()).shape == (12, CLASSES)
