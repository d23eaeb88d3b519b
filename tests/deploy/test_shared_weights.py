"""Packed and ONNX files of networks whose layers share weights, have several names, or are not reached."""

import pytest
import torch
from safetensors import safe_open
from shared import IMAGES, SHAPE, Auxiliary, Chain, Lookup, Twice, made

from mebqat_lite import at, load_model, load_packed, save_model, save_packed
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import agreement
from mebqat_lite.switching.norms import is_recalibrated
from mebqat_lite.switching.state import plan_of

slow = pytest.mark.slow  # an export takes a second
NETWORKS = {
    "two layers": (Chain, {}),
    "three layers": (lambda: Chain(tied=("two", "three")), {}),
    "one of them kept": (Chain, {"keep": ["first", "one", "last"]}),
    "the other one kept": (Chain, {"keep": ["first", "two", "last"]}),
    "a layer under two names": (Twice, {}),
    "an embedding and a layer": (Lookup, {}),
    "an embedding and the last layer": (Lookup, {"keep": ["first", "head"]}),
    "norms that are not reached": (Auxiliary, {}),
}


def logits(model, bits="W3A3"):
    with torch.no_grad(), at(model, bits, "recalibrated"):
        return model(IMAGES)


@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_shared_weights_give_the_logits_of_the_model(name, tmp_path):
    build, options = NETWORKS[name]
    model = made(build, **options)
    wanted = logits(model)
    save_model(model, tmp_path / "m")
    assert torch.equal(logits(load_model(tmp_path / "m", build())[0]), wanted)
    save_packed(model, tmp_path / "p", "W3A3")
    packed, _ = load_packed(tmp_path / "p", build())
    assert torch.equal(packed(IMAGES), wanted)
    save_packed(packed, tmp_path / "q", "W3A3")
    assert torch.equal(load_packed(tmp_path / "q", build())[0](IMAGES), wanted)


ONNX = [pytest.param(name, q, marks=slow) for name in NETWORKS for q in ("lsq", "dorefa")]


@pytest.mark.parametrize(("name", "quantizer"), ONNX)
def test_onnx_files_of_shared_weights_answer_as_the_model(name, quantizer, tmp_path):
    build, options = NETWORKS[name]
    model = made(build, quantizer, "W3A3", **options)
    done = export_onnx(model, tmp_path / "net.onnx", "W3A3", SHAPE)
    found = agreement(done.path, model, IMAGES, "W3A3")
    assert found.share == 100 and found.largest_difference < 1e-5
    reached = [site for site in plan_of(model).sites if site.role == "body"]
    body = [site.name for site in reached if not site.name.startswith(("aux", "never"))]
    assert [stored.layer for stored in done.layers if stored.weights == "INT4"] == body


def test_shared_weights_stay_shared_in_the_model(tmp_path):
    model = made(Chain)
    export_onnx(model, tmp_path / "net.onnx", "W3A3", SHAPE)
    assert model.two.weight is model.one.weight and "forward" not in vars(model.two)


def test_a_file_of_a_layer_with_two_names_holds_it_once(tmp_path):
    save_packed(made(Twice), tmp_path / "p", "W3A3")
    with safe_open(tmp_path / "p", "pt") as file:
        names = {key for key in file.keys() if "first" not in key and "last" not in key}  # noqa: SIM118
    kept = {"model/a.bias", "model/a.quant.a3", "model/n.weight", "model/n.bias"}
    assert names == {"codes/a/3", "steps/a", "statistics/n", *kept}


def test_norms_that_are_not_reached_have_no_statistics_and_need_none(tmp_path):
    model = made(Auxiliary)
    assert is_recalibrated(model, "W3A3") and not is_recalibrated(model, "W2A2")
    with pytest.raises(ValueError, match="no recalibrated norm statistics for W2A2: give calibration="):
        save_packed(model, tmp_path / "p", "W2A2")
    save_packed(model, tmp_path / "p", ["W2A2", "W3A3"], calibration=IMAGES)
    packed, _ = load_packed(tmp_path / "p", Auxiliary())
    assert all(torch.equal(logits(packed, bits), logits(model, bits)) for bits in ("W2A2", "W3A3"))
