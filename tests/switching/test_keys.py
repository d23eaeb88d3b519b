"""A bit setting has one key, however it is written: what runs alike shares its norm statistics."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mebqat_lite as mq
from mebqat_lite.switching.norms import is_recalibrated, stored_stats
from mebqat_lite.switching.state import key_of, quantized_layers, setting_of

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LAYERS = ["body.0.0", "body.1.0", "body.2.0"]
PAIRS = st.sampled_from(["W2A2", "W3A3", "W4A4", "FP"])


def net(quantizer="dorefa", **options):
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=IMAGES, **options).eval()


MODELS = {name: net(name) for name in ("dorefa", "sat")}


def bits_of(model, setting):
    """The bits at which each layer runs."""
    with mq.at(model, setting):
        return {name: layer.bits for name, layer in quantized_layers(model).items()}


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["dorefa", "sat"]), st.lists(st.dictionaries(st.sampled_from([*LAYERS, "*"]), PAIRS), max_size=2)
)
def test_settings_have_the_same_key_if_and_only_if_every_layer_runs_alike(quantizer, maps):
    model, maps = MODELS[quantizer], [*maps, {}, {}][:2]
    ran = [bits_of(model, one) for one in maps]
    assert (key_of(model, maps[0]) == key_of(model, maps[1])) == (ran[0] == ran[1])


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*LAYERS, "*"]), PAIRS))
def test_each_layer_runs_at_what_the_map_says(one):
    model, rest = MODELS["dorefa"], one.get("*", "FP")
    assert bits_of(model, one) == {layer: mq.Bits.parse(one.get(layer, rest)) for layer in LAYERS}


@pytest.mark.parametrize("quantizer", ["dorefa", "sat", "lsq"])
def test_the_statistics_of_a_pair_are_those_of_a_map_of_all_layers_to_it(quantizer):
    model, maps = net(quantizer), [dict.fromkeys([*LAYERS, "*"], "W3A3"), {"*": "W3A3"}]
    mq.recalibrate(model, IMAGES, "W3A3")
    before = stored_stats(model)
    for one in maps:
        assert key_of(model, one) == "W3A3" and is_recalibrated(model, key_of(model, one))
        with torch.no_grad(), mq.at(model, one, "recalibrated"):
            assert setting_of(model).code == '"W3A3"' and model(IMAGES[:2]).isfinite().all()
    mq.recalibrate(model, IMAGES, [*maps, "W3A3"])  # measured once, not three times
    assert stored_stats(model).keys() == before.keys()
    assert all(torch.equal(before[name], stats) for name, stats in stored_stats(model).items())


def test_edge_layers_with_8_bits_are_told_from_those_at_full_precision():
    model = MODELS["sat"]
    inner = dict.fromkeys(LAYERS, "W3A3")
    assert key_of(model, {"*": "W3A3", **inner}) == key_of(model, {"*": "W2A2", **inner}) == "W3A3"
    assert key_of(model, inner) != "W3A3"  # nothing is said of the edges, so they stay at full precision


def test_a_norm_set_serves_a_map_of_all_layers_to_its_pair():
    model = mq.give_norm_sets(net(), "W2A2")
    with torch.no_grad(), mq.at(model, dict.fromkeys(LAYERS, "W2A2"), "batch"):
        out = model(IMAGES)
    with torch.no_grad(), mq.at(model, "W2A2", "batch"):
        assert torch.equal(model(IMAGES), out)
