"""Clips of single bitwidths."""

import pytest
import torch
from uneven import F64, SOURCES, learned, net, trained

import mebqat_lite as mq
from mebqat_lite.switching.convert import give_clips
from mebqat_lite.switching.state import quantized_layers


def with_clips():
    """A sat network with a clip of its own at 2, 4 and 16 bits, all different."""
    model = give_clips(net(quantizer="sat"), [2, 4, 16, 32])
    for layer in quantized_layers(model).values():
        for place, name in enumerate(layer.quant):
            layer.quant[name].data.fill_(1 + place)
    return model


def used_clips(model, bits):
    model.zero_grad(set_to_none=True)
    with mq.at(model, bits):
        model(20 * SOURCES["digit_net"]).square().sum().backward()
    return {name for name, p in model.named_parameters() if "alpha" in name and p.grad is not None}


def test_clips_of_single_bitwidths_start_from_the_common_one_and_are_given_once():
    model = net(quantizer="sat")
    for layer in quantized_layers(model).values():
        layer.quant["alpha"].data.fill_(3) if "alpha" in layer.quant else None
    give_clips(model, [4, 2, 32])
    body = [layer for layer in quantized_layers(model).values() if layer.site.role == "body"]
    assert len(body) == 3
    for layer in body:
        assert {name: p.item() for name, p in layer.quant.items()} == {"alpha": 3, "alpha2": 3, "alpha4": 3}
        layer.quant["alpha2"].data.fill_(5)
    give_clips(model, [2, 8])
    assert [{n: p.item() for n, p in layer.quant.items()} for layer in body] == [
        {"alpha": 3, "alpha2": 5, "alpha4": 3, "alpha8": 3}
    ] * 3
    assert [len(layer.quant) for layer in quantized_layers(model).values() if layer.site.role != "body"] == [0, 0]
    assert all(not layer.quant for layer in quantized_layers(give_clips(net(), [2])).values())  # nothing to clip


@pytest.mark.parametrize(("bits", "clip"), [(2, 2), (3, 4), (4, 4), (5, 4), (7, 4), (8, 16), (16, 16)])
def test_each_bitwidth_uses_its_own_clip_or_the_nearest_and_teaches_no_other(bits, clip):
    model = with_clips()
    assert used_clips(model, (8, bits)) == {f"body.{i}.0.quant.alpha{clip}" for i in range(3)}
    layer = quantized_layers(model)["body.1.0"]
    x = torch.linspace(-1, 9, 300, dtype=F64)[None]
    out = layer.quantizer.activation(x, bits, layer.quant, layer.site)
    assert out.max() == layer.quant[f"alpha{clip}"].detach()


def test_clips_survive_a_checkpoint(tmp_path):
    model, x = with_clips(), SOURCES["digit_net"]
    mq.save_model(model, tmp_path / "m.safetensors")
    loaded, _ = mq.load_model(tmp_path / "m.safetensors")
    mine, theirs = model.state_dict(), loaded.state_dict()
    assert sum(".quant.alpha" in name for name in mine) == 3 * 4
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for bits in ("W2A2", "W2A4", "W2A8"):
        with torch.no_grad(), mq.at(model, bits), mq.at(loaded, bits):
            assert torch.equal(model(x), loaded(x))
    assert used_clips(loaded, "W2A2") == {f"body.{i}.0.quant.alpha2" for i in range(3)}


def test_adabits_on_sat_trains_a_clip_for_each_bitwidth():
    model, before = trained("sat", "adabits", bits="W2A2,W2A8,FP", steps=3)
    for layer in quantized_layers(model).values():
        if layer.site.role == "body":
            assert set(layer.quant) == {"alpha", "alpha2", "alpha8"}
            values = [p.item() for p in layer.quant.values()]
            assert values[0] == 8 and len(set(values)) == 3
    assert all(float(value) == 8 for name, value in before.items() if "alpha" in name)


def test_mebqat_on_sat_trains_one_clip_for_all():
    model, before = trained("sat", "mebqat")
    assert learned(model, before) == {f"body.{i}.0.quant.alpha" for i in range(3)}
