"""Mixed precision and compiled passes train what plain passes train."""

import functools

import pytest
import torch
from interrupted_runs import DATA, FAST, assert_same, net, result
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from mebqat_lite import CheckpointError, fit, quantize, quantizers
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.quantizers import Site
from mebqat_lite.scale.speed import Fast


def trained(path=None, method="mebqat", model=None, fast=None, data=DATA, **options):
    model = model or net()
    passes = Fast(**fast) if fast else None
    run = fit(model, data, method, FAST, path=path, progress=False, device="cpu", passes=passes, **options)
    return result(run, model)


def test_mixed_precision_runs_the_layers_in_bfloat16_and_keeps_the_weights(monkeypatch):
    seen, linear, models = [], torch.nn.functional.linear, [net(), net()]

    def watched(x, *rest):
        out = linear(x, *rest)
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    plain = trained(model=models[0])
    assert set(seen) == {torch.float32}
    seen.clear()
    mixed = trained(model=models[1], fast={"amp": True})
    assert set(seen) == {torch.bfloat16}
    assert {t.dtype for t in mixed[1].values()} == {t.dtype for t in plain[1].values()}
    assert mixed[0]["costs"] == plain[0]["costs"] and mixed[0]["losses"] != plain[0]["losses"]
    assert mixed[0]["losses"] == pytest.approx(plain[0]["losses"], rel=0.05)


def test_mixed_precision_trains_all_that_plain_precision_trains():
    """Also the last layer, whose weights the teacher casts first, without a gradient."""
    before = net().state_dict()
    for amp in (False, True):
        _, state = trained(method="qat", bits="W2A2", teacher="fp", fast={"amp": amp}, steps=1, weight_decay=0)
        moved = {name for name, t in state.items() if not torch.equal(t, before[name])}
        assert {name for name, _ in net().named_parameters()} <= moved


def eagerly(monkeypatch):
    """Compile without a code generator: the same numbers as without compiling, but the last digit, in a second."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def test_no_mask_is_viewed_as_another_type_in_a_compiled_pass(monkeypatch):
    """Up to PyTorch 2.11 at least, Inductor cannot view a tensor of bool as bytes."""
    names = set()

    def remember(graph, inputs):
        names.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=remember)
    clip = torch.compile(lambda x: quantizers.get("dorefa")[1].activation(x, 2, {}, Site("layer")), backend=backend)
    clip(torch.rand(4, requires_grad=True)).sum().backward()
    assert "aten.hardtanh_backward.default" in names
    assert not {name for name in names if "view" in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dorefa", "lsq", "double_rounding", "least_squares", "dorefa_corrected", "lsq_corrected"]
)
def test_compiled_weights_and_their_gradients_are_those_of_the_quantizer(name, monkeypatch):
    eagerly(monkeypatch)
    layer = quantize(net(), name, sample=DATA.train.images[:32]).get_submodule("body.1.0")
    out = []
    for wrap in (lambda f: f, torch.compile):
        layer.zero_grad()
        value = wrap(lambda w: layer.quantizer.weight(w, 2, layer.quant, layer.site))(layer.weight)
        (value * torch.arange(value.numel()).reshape(value.shape).sin()).sum().backward()
        out.append([value.detach(), *(p.grad for p in layer.parameters() if p.grad is not None)])
    torch.testing.assert_close(*out)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mebqat", "qat"])
def test_compiled_passes_train_the_same_network(method, monkeypatch):
    eagerly(monkeypatch)
    options = {"bits": "W2A2", "teacher": "start"} if method == "qat" else {"m": 2}
    torch._dynamo.utils.counters.clear()
    exact = Data("exact", Split(DATA.train.images.double(), DATA.train.labels), None, None, DATA.classes)
    model, plain = net().double(), net().double()
    compiled = trained(method=method, model=model, data=exact, fast={"compiled": True}, **options)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(compiled, trained(method=method, model=plain, data=exact, **options), rtol=0, atol=1e-12)
    assert not any("forward" in vars(module) for module in model.modules())
    assert 2 <= graphs <= 5  # stem, and body at each pair: no step of the four compiles what another one has


@pytest.mark.parametrize("option", ["amp", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_run_is_continued_with_the_same_options(option, tmp_path, monkeypatch):
    eagerly(monkeypatch)
    whole, path = trained(fast={option: True}, m=2), tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(record):
        if record["step"] == 4:
            raise Stop

    with pytest.raises(Stop):
        trained(path, save_every=2, log=stop, fast={option: True}, m=2)
    word = {"amp": "amp", "compiled": "compile"}[option]
    with pytest.raises(CheckpointError, match=f"trained with {word}, this run is with plain passes"):
        trained(path, m=2)
    assert_same(trained(path, fast={option: True}, m=2), whole)
