"""Forms of one quantizer: DoReFa's full precision, and LSQ as its authors' code has it."""

import copy

import pytest
import torch
from uneven import F64, SOURCES, images, learned, net, trained

from mebqat_lite.switching.convert import restore_float
from mebqat_lite.switching.state import quantized_layers


def test_dorefa_fp_tanh_squashes_full_precision_weights_too_but_not_those_of_the_edges():
    model, plain, x = net(quantizer="dorefa_fp_tanh"), net(), SOURCES["digit_net"]
    assert set(quantized_layers(model)) == {"body.0.0", "body.1.0", "body.2.0"}
    layers = quantized_layers(model)
    expected = {}
    for name, layer in layers.items():
        w, t = layer.weight.detach(), layer.weight.detach().tanh()
        expected[name] = w.abs().mean() * t / t.abs().max()
        torch.testing.assert_close(layer.quantized_weight(32).detach(), expected[name], rtol=1e-12, atol=0)
        assert torch.equal(quantized_layers(plain)[name].quantized_weight(32), plain.get_submodule(name).weight)
    with torch.no_grad():
        out, (squashed, float_out) = model(x), (restore_float(copy.deepcopy(model)), plain(x))
        for name, weight in expected.items():
            squashed.get_submodule(name).weight.copy_(weight)
        torch.testing.assert_close(out, squashed(x), rtol=1e-12, atol=1e-12)
    assert (out - float_out).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["lsq_untrained", "lsq_authors"])
def test_untrained_steps_of_activations_stay_and_those_of_weights_learn(name):
    model, before = trained(name, bits="W2A2")
    steps = {n: p for n, p in model.named_parameters() if ".quant." in n}
    assert steps and {n.rpartition(".")[2][0] for n in steps} == {"a", "w"}
    assert all(p.requires_grad == (n.rpartition(".")[2][0] == "w") for n, p in steps.items())
    assert learned(model, before) == {n for n in steps if n.endswith(".w2")}


def test_lsq_learns_the_steps_of_activations_too():
    model, before = trained("lsq", bits="W2A2")
    assert learned(model, before) == {n for n, _ in model.named_parameters() if n.endswith((".w2", ".a2"))}


def test_lsq_authors_is_lsq_shared_untrained():
    layers = [quantized_layers(net(quantizer=name))["body.0.0"] for name in ("lsq_authors", "lsq_shared")]
    assert [set(layer.quant) for layer in layers] == [{"w2", "a2"}] * 2
    assert [layer.quant["a2"].requires_grad for layer in layers] == [False, True]
    x = 3 * images(4, 4, seed=2) - 1
    for bits in (2, 3, 5):
        outs = [layer.quantizer.activation(x, bits, layer.quant, layer.site) for layer in layers]
        assert torch.equal(*outs) and torch.equal(*(layer.quantized_weight(bits) for layer in layers))


@pytest.mark.parametrize("b", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("name", ["lsq_shared", "lsq_authors"])
def test_the_shared_step_has_one_level_of_activations_too_many(name, b):
    layer = quantized_layers(net(quantizer=name))["body.0.0"]
    x = torch.linspace(-1, 100 * float(layer.quant["a2"].detach()), 20_001, dtype=F64)[None]
    assert len(layer.quantizer.activation(x, b, layer.quant, layer.site).unique()) == 2**b + 1
