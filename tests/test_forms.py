"""Forms of one network that must agree, or must differ: ReLUs left out, clips and steps of a kind, lent norm sets."""

import copy
import ctypes
import functools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mebqat_lite as mq
from mebqat_lite import tensors
from mebqat_lite.bits import FP, WIDTHS, Bits, candidates, nearest, nearest_pair, parse_all
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.measure.evaluate import agreement, grid
from mebqat_lite.methods import METHODS
from mebqat_lite.models import GlobalMean, _conv
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.convert import give_clips, restore_float
from mebqat_lite.switching.inputs import InputReLU
from mebqat_lite.switching.state import norm_layers, quantized_layers, setting_of

F64 = torch.float64
prop = settings(deadline=None, max_examples=100, derandomize=True)


def images(count, channels=1, side=8, seed=0):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cnn8_like():
    """The layers of CNN-8 in its order, dropout included, small."""
    stem = _conv(3, 4, size=3, padding=0, pool=True)  # 8 -> 6 -> 3
    head = [nn.Dropout(0.5), _conv(4, 6, padding=0), nn.Flatten(), nn.Linear(6, 10)]
    return nn.Sequential(stem, _conv(4, 4), _conv(4, 4), *head)


FLOAT_NETS = {
    "digit_net": lambda: mq.models.digit_net(widths=(4, 8, 8, 8)),
    "resnet": lambda: mq.models.preact_resnet20(width=0.25),
    "cnn8_like": cnn8_like,
}
MAPS = {  # one reader, of two where there are two, keeps its activations
    "digit_net": {"*": "W2A2", "body.1.0": "W2A32"},
    "resnet": {"*": "W2A2", "body.3.skip.0": "W2A32"},
    "cnn8_like": {"*": "W2A2", "2.0": "W2A32"},
}
SOURCES = {name: images(8, 1 if name == "digit_net" else 3) for name in FLOAT_NETS}


def net(name="digit_net", quantizer="dorefa"):
    """In float64, with gains and shifts so uneven that half of what a ReLU sees is below zero."""
    return copy.deepcopy(built(name, quantizer))


@functools.cache
def built(name, quantizer):
    torch.manual_seed(0)
    model = FLOAT_NETS[name]().to(F64)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.3)
    return mq.quantize(model.eval(), quantizer, sample=SOURCES[name])


def relus(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, InputReLU)}


def connected(model):
    return {name: module.__dict__["readers"] for name, module in relus(model).items() if "readers" in module.__dict__}


def pass_through(model, x, bits):
    """Logits and gradients of all parameters in training mode, dropout drawn anew from one seed."""
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(1)
    with mq.at(model, bits):
        logits = model(x)
    logits.mul(torch.linspace(-1, 2, logits.numel(), dtype=F64).view_as(logits)).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


def negatives(model, x, bits):
    """Which InputReLUs let numbers below zero through."""
    found = {}
    hooks = [
        relu.register_forward_hook(lambda _m, _a, out, name=name: found.update({name: bool((out < 0).any())}))
        for name, relu in relus(model).items()
    ]
    with torch.no_grad(), mq.at(model.eval(), bits, "batch"):
        model(x)
    for hook in hooks:
        hook.remove()
    return {name for name, below in found.items() if below}


# --- a ReLU that its readers make needless ------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["FP", "W2A2", "W1A32", "map"])
@pytest.mark.parametrize("quantizer", ["dorefa", "sat", "lsq", "least_squares"])
@pytest.mark.parametrize("name", FLOAT_NETS)
def test_a_skipped_relu_changes_neither_logits_nor_gradients(name, quantizer, bits):
    if bits == "W1A32" and not QUANTIZERS[quantizer].one_bit:
        pytest.skip(f"{quantizer} has no 1 bit")
    model, x, bits = net(name, quantizer), SOURCES[name], MAPS[name] if bits == "map" else bits
    plain = copy.deepcopy(model)
    for relu in relus(plain).values():
        relu.__dict__.pop("readers", None)
    assert connected(model) and not connected(plain)
    (mine, gradients), (theirs, expected) = pass_through(model, x, bits), pass_through(plain, x, bits)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert any(grad is not None and grad.abs().sum() > 0 for grad in expected.values())
    for parameter, grad in expected.items():
        assert (grad is None) == (gradients[parameter] is None), parameter
        if grad is not None:
            torch.testing.assert_close(gradients[parameter], grad, rtol=1e-12, atol=1e-12, msg=parameter)


@pytest.mark.parametrize("quantizer", ["dorefa", "sat", "lsq", "least_squares"])
@pytest.mark.parametrize("name", FLOAT_NETS)
def test_a_relu_is_skipped_where_all_its_readers_clip_and_nowhere_else(name, quantizer):
    model, x = net(name, quantizer), SOURCES[name]
    body = {site.name for site in model.plan.sites if site.role == "body"}
    readers = {relu: names for relu, names in model.plan.readers.items() if names and set(names) <= body}
    readers.pop("stem.2", None)  # a stem may run once for all pairs, FP among them
    assert len(readers) == {"digit_net": 2, "resnet": 18, "cnn8_like": 3}[name]
    assert negatives(model, x, "W2A2") == set(readers)
    assert negatives(model, x, "FP") == set()
    assert negatives(model, x, "W2A32") == set()
    (kept,) = set(MAPS[name]) - {"*"}
    assert negatives(model, x, MAPS[name]) == {relu for relu, names in readers.items() if kept not in names}


def test_where_a_relu_has_two_readers_both_must_clip():
    model = net("resnet")
    assert model.plan.readers["body.3.relu1"] == ["body.3.skip.0", "body.3.conv1"]
    for kept in model.plan.readers["body.3.relu1"]:
        below = negatives(model, SOURCES["resnet"], {"*": "W2A2", kept: "W2A32"})
        assert "body.3.relu1" not in below and "body.3.relu2" in below


def test_the_edges_are_not_readers_that_clip():
    """The last convolution's ReLU goes into a mean; a kept layer stays a float layer, which sees no negatives."""
    model = net()
    assert "body.2.2" not in negatives(model, SOURCES["digit_net"], "W2A2")
    kept = mq.quantize(model, sample=SOURCES["digit_net"], keep=["stem.0", "body.1.0", "body.4"])
    assert negatives(kept, SOURCES["digit_net"], "W2A2") == {"body.1.2"}


class Shared(nn.Module):
    """One convolution reads two ReLUs; one ReLU is called twice; one ReLU has one reader."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.once, self.other, self.last = (
            nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(5)
        )
        self.one, self.two, self.again, self.single = (InputReLU() for _ in range(4))

    def forward(self, x):
        h = self.first(x)
        h = self.twice(self.one(h)) + self.twice(self.two(h - 0.1))
        h = self.once(self.again(h)) + self.other(self.again(h + 0.1))
        return self.last(self.single(h)).mean((2, 3))


def test_a_relu_called_twice_or_read_by_a_layer_that_runs_twice_is_never_skipped():
    torch.manual_seed(0)
    x = images(8) - 0.5
    model = mq.quantize(Shared().to(F64).eval(), sample=x, keep=["first"])
    assert set(quantized_layers(model)) == {"twice", "once", "other", "last"}
    assert model.plan.readers == {"single": ["last"]}
    assert negatives(model, x, "W2A2") == {"single"}


def test_restore_float_gives_the_relus_back():
    model = net()
    assert connected(model)
    restore_float(model)
    assert not connected(model)
    out = relus(model)["body.1.2"](torch.tensor([-1.0, 2.0]))
    assert out.tolist() == [0, 2]


def test_a_copy_s_relus_ask_the_copy_s_layers():
    model = net()
    twin = copy.deepcopy(model)
    for relu, readers in connected(twin).items():
        mine = [quantized_layers(twin)[reader.site.name] for reader in readers]
        assert all(a is b for a, b in zip(readers, mine, strict=True)), relu
    setting_of(model).bits = Bits(2, 2)
    assert negatives(twin, SOURCES["digit_net"], "FP") == set()


@pytest.mark.parametrize("name", ["digit_net", "resnet"])
def test_a_checkpoint_keeps_who_reads_which_relu(name, tmp_path):
    model = net(name)
    mq.save_model(model, tmp_path / "m.safetensors")
    loaded, _ = mq.load_model(tmp_path / "m.safetensors")
    assert loaded.plan.readers == model.plan.readers
    below = negatives(model, SOURCES[name], "W2A2")
    assert below and negatives(loaded, SOURCES[name], "W2A2") == below


# --- quantizers and their options ----------------------------------------------------------------------------------


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


TRAIN = Split(images(64, seed=1).float(), torch.arange(64) % 10)
DATA = Data("made", TRAIN, TRAIN, TRAIN, tuple("0123456789"))


def trained(quantizer, method="qat", **options):
    """A small float32 net before and after two steps."""
    torch.manual_seed(0)
    model = mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=TRAIN.images)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = {"steps": 2, "batch_size": 32, "progress": False, "device": "cpu", **options}
    mq.fit(model, DATA, method, **options)
    return model, before


def learned(model, before):
    """Names of the quantizer's parameters that moved."""
    named = [(name, p) for name, p in model.named_parameters() if ".quant." in name]
    return {name for name, p in named if not torch.equal(p, before[name])}


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


# --- clips of single bitwidths -------------------------------------------------------------------------------------


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


# --- the nearest width and pair ------------------------------------------------------------------------------------

some_widths = st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=6)
some_pairs = st.lists(st.sampled_from(candidates()), min_size=1, max_size=6)


def ratio(a, b):
    """How many times the one is the other: 2^|log2(a / b)|, exactly."""
    return Fraction(max(a, b), min(a, b))


def distance(one, two):
    return ratio(one.w, two.w) * ratio(one.a, two.a)


@prop
@given(st.integers(1, 32), some_widths)
def test_the_nearest_width_is_a_member_and_none_is_nearer_or_as_near_and_wider(width, widths):
    found = nearest(width, widths)
    assert found in widths
    assert all((ratio(found, width), -found) <= (ratio(other, width), -other) for other in widths)
    assert nearest(width, reversed(widths)) == found and (width not in widths or found == width)


@prop
@given(st.sampled_from(candidates()), some_pairs)
def test_the_nearest_pair_is_a_member_none_is_nearer_and_the_order_is_no_matter(pair, pairs):
    found = nearest_pair(pair, pairs)
    assert found in pairs and all(distance(found, pair) <= distance(other, pair) for other in pairs)
    assert nearest_pair(pair, reversed(pairs)) == found and (pair not in pairs or found == pair)


@prop
@given(st.sampled_from(WIDTHS), some_widths)
def test_the_nearest_of_equal_pairs_is_the_nearest_width(width, widths):
    """With equal bits for weights and activations the two functions are one, ties at powers of two included."""
    assert nearest_pair(Bits(width, width), [Bits(w, w) for w in widths]) == Bits(*[nearest(width, widths)] * 2)


@pytest.mark.parametrize(
    ("pair", "pairs", "wanted"),
    [
        ("W4A4", "W2A2,W8A8", "W8A8"),
        ("W4A4", "W2A8,W8A2", "W8A2"),
        ("W2A8", "W2A2,W8A8", "W8A8"),
        pytest.param("W2A5", "W2A2,W5A5", "W5A5"),
    ],
)
def test_of_two_pairs_as_near_the_wider_is_taken(pair, pairs, wanted):
    one, two = parse_all(pairs)
    assert distance(one, Bits.parse(pair)) == distance(two, Bits.parse(pair))
    assert str(nearest_pair(Bits.parse(pair), [one, two])) == wanted


# --- widths that a method never visits -----------------------------------------------------------------------------


def draws(quantizer="dorefa", count=500, **options):
    sampler = METHODS["mebqat"].sampler(net(quantizer=quantizer), Recipe(**options))
    return [sampler.draw()[0] for _ in range(count)]


def widths_of(steps):
    pairs = [pair for step in steps for pair in step]
    layers = [list(pair.values()) if isinstance(pair, dict) else [pair] for pair in pairs]
    return {width for layer in layers for b in layer for width in (b.w, b.a)}


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("exclude", [(3, 5, 7), (1,), (2,), (1, 16)])
def test_an_excluded_width_is_never_drawn_and_all_others_are(exclude, per_layer):
    assert widths_of(draws(exclude=exclude, per_layer=per_layer)) == set(WIDTHS) - set(exclude)
    assert widths_of(draws("lsq", exclude=exclude, per_layer=per_layer)) == set(WIDTHS) - {1} - set(exclude)


def test_without_one_bit_w1a1_is_not_guaranteed():
    assert {tuple(map(str, step[:2])) for step in draws(exclude=(3,), count=20)} == {("FP", "W1A1")}
    steps = draws(exclude=(1,), sandwich=False, count=200)
    assert {step[0] for step in steps} == {FP} and len({step[1] for step in steps}) > 20
    sandwich = draws(exclude=(1,), sandwich=True, count=20)
    assert {tuple(map(str, step[:2])) for step in sandwich} == {("FP", "W2A2")}


def test_sandwich_does_not_bring_an_excluded_width_back():
    assert 2 not in widths_of(draws("lsq", exclude=(2,), sandwich=True, count=3))


@pytest.mark.parametrize("exclude", [(32,), (3, 32), (9,), (0,), ("3",), WIDTHS[:-1]])
def test_widths_that_cannot_be_excluded_are_answered_with_those_that_can(exclude):
    with pytest.raises(ValueError, match=r"^exclude must hold some of the widths \(1, 2, 3, 4, 5, 6, 7, 8, 16\)"):
        Recipe(exclude=exclude)


# --- lent norm sets ------------------------------------------------------------------------------------------------


def with_sets():
    """Norm sets for W2A2 and W8A8 whose numbers are far from each other and from the float layers'."""
    model = mq.give_norm_sets(net(), ["W2A2", "W8A8"])
    for place, norm in enumerate(norm_layers(model).values()):
        for shift, own in enumerate(norm.sets.values(), 1):
            with torch.no_grad():
                own.weight.mul_(1 + shift / 3), own.bias.add_((-1) ** place * shift / 4)
    return model


@pytest.mark.parametrize(("bits", "lender"), [("W2A3", "W2A2"), ("W6A7", "W8A8"), ("W16A32", "FP"), ("W4A4", "W8A8")])
def test_a_lent_set_is_the_nearest_pair_s_gain_and_shift_with_own_statistics(bits, lender):
    model, x = with_sets(), images(60, seed=3)
    by_hand = copy.deepcopy(model)
    for norm in norm_layers(by_hand).values():
        if lender != "FP":
            norm.load_state_dict({**norm.state_dict(), **norm.sets[lender].state_dict()})
        norm.sets = nn.ModuleDict()
    with torch.no_grad(), mq.at(by_hand, bits, "batch"):
        logits = by_hand(x)  # statistics of these images at these bits, which are measured below
    split = Split(x, logits.argmax(1))
    found = grid(model, split, [bits], norm_stats="recalibrated", calibration=x, lend_sets=True)
    assert found.loc[bits, "mean"] == 100
    setting_of(model).lend_sets = True
    with torch.no_grad(), mq.at(model, bits, "recalibrated"):
        torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-9)
    for other in {"W2A2", "W8A8"} - {lender}:
        setting_of(model).lend_sets = False
        with torch.no_grad(), mq.at(model, other, "batch"):
            assert (model(x) - logits).abs().max() > 1e-3


@pytest.mark.parametrize("before", [False, True])
def test_a_grid_lends_only_while_it_runs_and_only_if_told_to(before):
    model, x = with_sets(), images(40)
    split, pairs = Split(x, torch.arange(40) % 10), ["W2A2", "W3A5", "W16A16", "FP"]
    setting_of(model).lend_sets = before
    lent = grid(model, split, pairs, norm_stats="recalibrated", calibration=x, lend_sets=True)
    assert lent["mean"].notna().all() and setting_of(model).lend_sets is before
    refused = grid(model, split, pairs, norm_stats="recalibrated", calibration=x)
    assert refused["mean"].isna().tolist() == [False, True, True, False] and setting_of(model).lend_sets is before
    listed = ["W2A2", "FP"]
    assert refused.loc[listed, "mean"].equals(lent.loc[listed, "mean"])
    with pytest.raises(RuntimeError, match="Expected 3D"):
        grid(model, split, pairs, calibration=torch.rand(4), lend_sets=not before)
    assert setting_of(model).lend_sets is before


# --- one image alone -----------------------------------------------------------------------------------------------


def brightness():
    """White images are class 1, black ones class 0, by a mean that batch norm has put between them."""
    layers = [nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), GlobalMean(), nn.Linear(1, 2)]
    model = nn.Sequential(*layers).to(F64).eval()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[3].weight.copy_(torch.tensor([[0.0], [1.0]])), model[3].bias.zero_()
    return model


@pytest.mark.filterwarnings("ignore:quantize found no layer")
def test_stored_statistics_classify_an_image_alone_as_among_others_and_those_of_the_batch_do_not():
    """Alone, an even image has no variance: its norm gives 0, and white becomes black: 3 of 8 images change."""
    x = torch.zeros(8, 1, 4, 4, dtype=F64)
    x[:3] = 1
    model = mq.quantize(brightness(), sample=x)
    mq.recalibrate(model, x, "FP")
    with torch.no_grad(), mq.at(model, "FP", "recalibrated"):
        assert model(x).argmax(1).tolist() == [1] * 3 + [0] * 5
    assert agreement(model, x, "FP") == 100
    assert agreement(model, x, "FP", "batch") == 100 * 5 / 8


@pytest.mark.parametrize("bits", ["W2A2", MAPS["digit_net"]], ids=str)
def test_agreement_leaves_the_model_as_it_was(bits):
    model, x = net().train(), images(30, seed=4)
    mq.recalibrate(model, images(60), bits)
    assert agreement(model, x, bits) == 100 and agreement(model, x, bits, "batch") < 100
    setting = setting_of(model)
    assert (model.training, setting.bits, setting.norm_stats, setting.keep_weights) == (True, FP, "running", False)


# --- memory --------------------------------------------------------------------------------------------------------


def test_keep_memory_says_whether_it_could_and_memory_is_there_as_before():
    done = tensors.keep_memory()
    assert isinstance(done, bool) and tensors.keep_memory() is done
    for size in (1, 1 << 10, 1 << 22, 1):  # also far above what the system is usually asked for directly
        block = torch.arange(size)
        assert int(block.sum()) == size * (size - 1) // 2


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_keep_memory_is_no_error_where_the_c_library_is_another(error, monkeypatch):
    def absent(_name):
        raise error("no such thing")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert tensors.keep_memory() is False
