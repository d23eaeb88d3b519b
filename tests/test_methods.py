"""Methods that list their pairs, augmentation in the loop, and networks built for a dataset."""

import math

import pytest
import torch

from mebqat_lite import METHODS, Recipe, accuracy, fit, grid, models, quantize, recalibrate, resume, sensitivity
from mebqat_lite.bits import FP, WIDTHS, Bits, height
from mebqat_lite.datasets import Data, Split
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.loop import Loop
from mebqat_lite.methods import calibration
from mebqat_lite.switching.state import at, norm_layers

TRAIN = Split(torch.rand(48, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 10)
DATA = Data("made", TRAIN, TRAIN, TRAIN, tuple("0123456789"))
LISTED = ["adabits", "any_precision_hard", "any_precision_soft", "any_precision_recursive"]


def net(quantizer="dorefa"):
    torch.manual_seed(0)
    return quantize(models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=TRAIN.images)


@pytest.mark.parametrize(("quantizer", "lowest"), [("dorefa", "W1A1"), ("lsq", "W2A2"), ("sat", "W2A2")])
def test_listed_methods_visit_their_pairs_each_step(quantizer, lowest):
    sampler = METHODS["adabits"].sampler(net(quantizer), Recipe())
    assert sampler.draw() == [sampler.pairs] and str(sampler.pairs[0]) == lowest and sampler.pairs[-1] == FP
    own = METHODS["adabits"].sampler(net(quantizer), Recipe(bits="W3A3,FP"))
    assert own.draw() == [[Bits(3, 3), FP]]


@pytest.mark.parametrize("method", LISTED)
def test_each_listed_pair_has_norms_of_its_own_and_others_have_none(method):
    model = net()
    run = fit(model, DATA, method, steps=3, batch_size=16, bits="W2A2,W4A4,FP", progress=False)
    assert run.costs.backprops == run.costs.forwards == 9
    for norm in norm_layers(model).values():
        means = [norm.running_mean, norm.sets["W2A2"].running_mean, norm.sets["W4A4"].running_mean]
        assert list(norm.sets) == ["W2A2", "W4A4"]
        first = norm is model.stem[1]  # a full-precision stem sees the same at every pair
        assert first or not any(torch.equal(a, b) for i, a in enumerate(means) for b in means[:i])
    means = grid(model, TRAIN, "W2A2,W3A3,W4A4,FP")["mean"]
    assert math.isnan(means["W3A3"]) and means.drop("W3A3").notna().all()


@pytest.mark.parametrize("method", LISTED)
def test_listed_methods_resume_to_the_same(method, tmp_path):
    options = {"bits": "W2A2,W4A4,FP", "batch_size": 16, "progress": False, "steps": 6}
    whole, parts = net(), net()
    fit(whole, DATA, method, **options)
    recipe = Recipe(bits=options["bits"], batch_size=16, steps=6)
    loop = Loop(parts, TRAIN, method, recipe)
    for _ in range(4):
        loop.step()
    resume.save(loop, tmp_path / "run")
    loop.close()
    again = net()
    fit(again, DATA, method, path=tmp_path / "run", **options)
    mine, other = again.state_dict(), whole.state_dict()
    assert list(mine) == list(other) and all(torch.equal(mine[name], other[name]) for name in mine)


def losses(method, **options):
    """The first step's losses by pair, and the logits at each pair, with the whole network at hand."""
    model = net().double()
    loop = Loop(model, Split(TRAIN.images.double(), TRAIN.labels), method, Recipe(batch_size=48, **options))
    task = loop.source.task(0)
    found = {str(bits): loss.item() for bits, loss in loop.learner.losses(model, task, loop.sampler.draw()[0])}
    logits = {}
    for bits in found:
        with at(model, bits), torch.no_grad():
            logits[bits] = model(task.images)
    loop.close()
    return found, logits, task.labels


def cross_entropy(logits, target):
    return float(-(target * logits.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("method", LISTED)
def test_who_teaches_whom(method):
    found, logits, labels = losses(method, bits="W2A2,W4A4,W8A8,FP")
    hard = torch.nn.functional.one_hot(labels, 10).double()
    above = {"W2A2": "W4A4", "W4A4": "W8A8", "W8A8": "FP"}
    for bits, loss in found.items():
        target = hard
        if bits != "FP" and method == "any_precision_soft":
            target = logits["FP"].softmax(1)
        if bits != "FP" and method == "any_precision_recursive":
            target = logits[above[bits]].softmax(1)
        assert loss == pytest.approx(cross_entropy(logits[bits], target), rel=1e-10)


def test_sandwich_guarantees_the_lowest_pair_where_there_is_no_one_bit():
    for quantizer, sandwich, second in (("lsq", True, "W2A2"), ("sat", True, "W2A2"), ("dorefa", False, "W1A1")):
        drawn = METHODS["mebqat"].sampler(net(quantizer), Recipe(sandwich=sandwich)).draw()[0]
        assert [str(bits) for bits in drawn[:2]] == ["FP", second] and len(drawn) == 4
    plain = METHODS["mebqat"].sampler(net("lsq"), Recipe(sandwich=False))
    assert plain.guaranteed == [FP]


def test_augmented_batches_are_crops_and_flips_of_the_same_images_and_functions_of_the_step():
    loop = Loop(net(), TRAIN, "fp", Recipe(batch_size=16, pad=2, flip=True))
    plain = Loop(net(), TRAIN, "fp", Recipe(batch_size=16))
    first, again, other = loop.source.task(0), loop.source.task(0), loop.source.task(3)
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert torch.equal(first.labels, plain.source.task(0).labels) and not torch.equal(
        first.images, plain.source.task(0).images
    )
    padded = torch.nn.functional.pad(plain.source.task(0).images, (2, 2, 2, 2))
    for image, source in zip(first.images, padded, strict=True):
        crops = [source[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
        assert any(torch.equal(image, crop) or torch.equal(image, crop.flip(2)) for crop in crops)
    loop.close(), plain.close()


def test_a_network_is_built_for_the_classes_and_channels_of_its_data():
    images = Split(torch.rand(4, 3, 16, 16), torch.arange(4))
    data = Data("colour", images, images, images, ("a", "b", "c", "d"))
    assert Setup(model="digit_net").build(data)(images.images).shape == (4, 4)
    assert Setup(model="conv4", options={"channels": 8}).build(data)(images.images).shape == (4, 4)
    wide = Setup(model="preact_resnet20", options={"width": 1, "classes": 7})
    assert wide.build(data)(images.images).shape == (4, 7)
    with pytest.raises(ValueError, match="no model 'vgg'"):
        Setup(model="vgg").build(data)


def test_a_pair_per_layer_is_drawn_trained_and_resumed(tmp_path):
    options = {"steps": 6, "batch_size": 16, "per_layer": True, "progress": False}
    sampler = METHODS["mebqat"].sampler(net(), Recipe(per_layer=True))
    pairs = [pair for _ in range(40) for pair in sampler.draw()[0]]
    free = [pair for pair in pairs if isinstance(pair, dict)]
    assert len(free) == 80 and all(list(pair) == ["body.0.0", "body.1.0", "body.2.0"] for pair in free)
    assert len({str(pair["body.1.0"]) for pair in free}) > 30 and any(len(set(pair.values())) > 1 for pair in free)
    whole, again = net(), net()
    run = fit(whole, DATA, "mebqat", **options)
    assert run.costs.backprops == 24
    loop = Loop(net(), TRAIN, "mebqat", Recipe(steps=6, batch_size=16, per_layer=True))
    for _ in range(3):
        loop.step()
    resume.save(loop, tmp_path / "run"), loop.close()
    fit(again, DATA, "mebqat", path=tmp_path / "run", **options)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


def test_steps_are_ordered_by_mean_bits():
    mixed = {"a": Bits(2, 2), "b": Bits(8, 8)}
    assert sorted([Bits(4, 4), mixed, FP, Bits(6, 2)], key=height) == [Bits(4, 4), mixed, Bits(6, 2), FP]


def test_sensitivity_lowers_one_layer_at_a_time():
    model = net()
    fit(model, DATA, "fp", steps=10, batch_size=16, progress=False)
    frame = sensitivity(model, TRAIN, "W1A1", rest="W8A8", norm_stats="recalibrated", calibration=TRAIN.images)
    assert frame.index.tolist() == [(layer, "W1A1") for layer in ("body.0.0", "body.1.0", "body.2.0")]
    recalibrate(model, TRAIN.images, "W8A8")
    whole = accuracy(model, TRAIN, "W8A8", "recalibrated")
    for (layer, _), row in frame.iterrows():
        alone = {"*": "W8A8", layer: "W1A1"}
        recalibrate(model, TRAIN.images, alone)
        assert row["accuracy"] == accuracy(model, TRAIN, alone, "recalibrated")
        assert row["loss"] == pytest.approx(whole - row["accuracy"])
    assert frame["accuracy"].nunique() > 1


@pytest.mark.parametrize(("shape", "count"), [((600, 1, 8, 8), 512), ((600, 3, 32, 32), 170), ((600, 3, 256, 256), 16)])
def test_fewer_calibration_images_where_they_are_large(shape, count):
    images = torch.empty(1, *shape[1:], dtype=torch.uint8).expand(shape)
    data = Data("made", Split(images, torch.zeros(600)), TRAIN, TRAIN, ("a",))
    assert len(calibration(data)) == count


def test_who_teaches_few_shot_networks():
    """MEBQAT-PN imitates its own full precision; the others learn from the labels."""
    teachers = {name: METHODS[name].teacher for name in ("pn", "pn_qat", "mebqat_pn", "mebqat_maml")}
    assert teachers == {"pn": "labels", "pn_qat": "labels", "mebqat_pn": "fp", "mebqat_maml": "labels"}


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
