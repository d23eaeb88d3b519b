"""Evaluation against an independent loop: one pair, all pairs, several seeds, every norm policy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from mebqat_lite import accuracy, candidates, datasets, give_norm_sets, grid, models, quantize, recalibrate
from mebqat_lite.datasets.base import Split
from mebqat_lite.measure.intervals import interval, t_quantile
from mebqat_lite.switching.batchnorm import MissingStatisticsError
from mebqat_lite.switching.state import at, plan_of, quantized_layers, set_norm_stats, setting_of

SOME = "FP,W2A2,W4A8,W8A3"
MAP = {"*": "W8A8", "body.1.0": "W2A2"}


@pytest.fixture(scope="module")
def images():
    return datasets.digits().train.images[:96]


def net(images, quantizer="dorefa", seed=0):
    """A net whose statistics and gains make its answers vary with the bits."""
    torch.manual_seed(seed)
    model = quantize(models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=images)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.01, 0.2)
            nn.init.uniform_(module.bias, -0.3, 0.6)
    return model.eval()


def split_for(model, images):
    """Labels that the float network gets right three times out of four: accuracies then differ by pair."""
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[::4] = (labels[::4] + 1) % 10
    return Split(images, labels)


def by_hand(model, split, bits, norm_stats, batch_size=1024):
    hits = 0
    with torch.no_grad(), at(model, bits, norm_stats):
        for start in range(0, len(split.labels), batch_size):
            logits = model(split.images[start : start + batch_size])
            hits += sum(int(row.argmax()) == int(y) for row, y in zip(logits, split.labels[start:], strict=False))
    return 100 * hits / len(split.labels)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 96, 1000])
@pytest.mark.parametrize("norm_stats", ["running", "batch", "recalibrated"])
@pytest.mark.parametrize("bits", ["FP", "W2A2", MAP], ids=str)
def test_accuracy_is_that_of_a_plain_loop(images, bits, norm_stats, batch_size):
    model = net(images)
    split = split_for(model, images)
    recalibrate(model, images[:50], bits)
    wanted = by_hand(model, split, bits, norm_stats, batch_size)
    assert accuracy(model, split, bits, norm_stats, batch_size) == wanted


def test_a_grid_takes_maps_among_its_pairs(images):
    model = net(images)
    split = split_for(model, images)
    assert grid(model, split, MAP, norm_stats="batch")["mean"].tolist() == [accuracy(model, split, MAP, "batch")]
    for nothing in ([], ""):
        with pytest.raises(ValueError, match="no bitwidth pair given"):
            grid(model, split, nothing, norm_stats="batch")
    frame = grid(model, split, [MAP, "W2A4"], norm_stats="batch")
    assert frame["mean"].tolist() == [accuracy(model, split, bits, "batch") for bits in (MAP, "W2A4")]
    assert frame.index[0] == "*=W8A8,body.1.0=W2A2" and frame[["w", "a"]].to_numpy().tolist() == [[8, 8], [2, 4]]


@pytest.mark.parametrize(("apart", "runs"), [(False, 2), (True, 6)])
def test_the_stem_runs_once_for_all_pairs_unless_its_statistics_differ(images, apart, runs):
    model = net(images)
    split, pairs, calls = split_for(model, images), ["W2A2", "W4A4", "FP"], []
    recalibrate(model, images[:40], pairs)
    if apart:
        recalibrate(model, images[40:], "W4A4")
    wanted = [by_hand(model, split, bits, "recalibrated") for bits in pairs]
    hook = model.stem.register_forward_hook(lambda *_: calls.append(1))
    assert grid(model, split, pairs, norm_stats="recalibrated", batch_size=48)["mean"].tolist() == wanted
    hook.remove()
    assert len(calls) == runs  # 2 batches, for all pairs or for each


@pytest.mark.parametrize("norm_stats", ["running", "batch", "recalibrated"])
def test_grid_is_accuracy_pair_by_pair(images, norm_stats):
    model = net(images)
    split = split_for(model, images)
    calibration = images[:40] if norm_stats == "recalibrated" else None
    frame = grid(model, split, norm_stats=norm_stats, calibration=calibration, batch_size=40)
    assert list(frame.index) == [str(b) for b in candidates()] and len(frame) == 75
    assert list(frame.columns) == ["w", "a", "mean", "ci95", "n"]
    assert frame.attrs["norm_stats"] == norm_stats
    assert [(int(w), int(a)) for w, a in zip(frame.w, frame.a, strict=True)] == [(b.w, b.a) for b in candidates()]
    wanted = [accuracy(model, split, bits, norm_stats, 40) for bits in candidates()]
    assert frame["mean"].tolist() == wanted
    assert wanted[::7] == [by_hand(model, split, bits, norm_stats, 40) for bits in candidates()[::7]]
    assert len(set(wanted)) > 5 and frame["ci95"].isna().all() and set(frame["n"]) == {1}


@pytest.mark.parametrize(
    ("quantizer", "count"), [("dorefa", 75), ("lsq", 73), ("sat", 73), ("least_squares", 75), ("double_rounding", 64)]
)
def test_pairs_are_the_quantizer_s(images, quantizer, count):
    model = net(images, quantizer)
    split = split_for(model, images[:32])
    frame = grid(model, split)
    assert len(frame) == count and frame.attrs["norm_stats"] == "running"
    assert frame["mean"].tolist()[::5] == [by_hand(model, split, bits, "running") for bits in frame.index[::5]]


def test_several_seeds_give_t_intervals(images):
    nets = [net(images, seed=seed) for seed in range(4)]
    splits = [split_for(model, images[seed:]) for seed, model in enumerate(nets)]
    calibrations = [images[10 * seed :][:30] for seed in range(4)]
    frame = grid(nets, splits, SOME, norm_stats="recalibrated", calibration=calibrations)
    for bits, row in frame.iterrows():
        runs = [by_hand(m, s, bits, "recalibrated") for m, s in zip(nets, splits, strict=True)]
        half = scipy.stats.t.ppf(0.975, 3) * np.std(runs, ddof=1) / math.sqrt(4)
        assert row["mean"] == pytest.approx(np.mean(runs), rel=1e-12)
        assert row["ci95"] == pytest.approx(half, rel=1e-12) and row["n"] == 4
    assert frame["ci95"].min() > 0
    one_split = grid(nets, splits[0], "W2A2", norm_stats="batch")
    runs = [by_hand(m, splits[0], "W2A2", "batch") for m in nets]
    assert one_split.loc["W2A2", "mean"] == pytest.approx(np.mean(runs), rel=1e-12)


def test_intervals_by_table():
    assert [round(t_quantile(n), 3) for n in (1, 2, 4, 9)] == [12.706, 4.303, 2.776, 2.262]
    assert interval([1.0, 2.0, 3.0]) == {"mean": 2.0, "ci95": pytest.approx(4.30265273 / 3**0.5), "n": 3}
    one = interval([7.0])
    assert (one["mean"], one["n"]) == (7.0, 1) and math.isnan(one["ci95"])


def test_policy_is_the_one_the_model_was_left_with(images):
    model = net(images)
    split = split_for(model, images)
    set_norm_stats(model, "batch")
    frame = grid(model, split, SOME)
    assert frame.attrs["norm_stats"] == "batch"
    assert frame["mean"].tolist() == [by_hand(model, split, bits, "batch") for bits in frame.index]
    assert accuracy(model, split, "W2A2") == by_hand(model, split, "W2A2", "batch")


def test_one_calibration_set_serves_all_models(images):
    nets = [net(images, seed=seed) for seed in range(2)]
    split, options = split_for(nets[0], images), {"norm_stats": "recalibrated"}
    together = grid(nets, split, SOME, calibration=images[:40], **options)
    apart = [grid(model, split, SOME, calibration=images[:40], **options)["mean"] for model in nets]
    assert together["mean"].tolist() == pytest.approx(((apart[0] + apart[1]) / 2).tolist(), rel=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_calibration_may_be_a_split(images, count):
    """`Images` may be an ``(images, labels)`` pair, which is not one calibration set for each of two models."""
    nets = [net(images, seed=seed) for seed in range(count)]
    split, options = split_for(nets[0], images), {"norm_stats": "recalibrated"}
    wanted = grid(nets, split, SOME, calibration=images, **options)
    assert grid(nets, split, SOME, calibration=split, **options)["mean"].tolist() == wanted["mean"].tolist()


def test_counts_must_match(images):
    nets = [net(images), net(images)]
    split = split_for(nets[0], images)
    with pytest.raises(ValueError, match="2 models, 3 splits, 2 calibration sets: give one each"):
        grid(nets, [split] * 3, SOME)
    with pytest.raises(ValueError, match="2 models, 2 splits, 1 calibration sets: give one each"):
        grid(nets, split, SOME, calibration=[images])


@pytest.mark.parametrize("norm_stats", ["running", "batch"])
def test_off_list_pairs_are_nan(images, norm_stats):
    model = give_norm_sets(net(images), ["W2A2", "W4A4"])
    split = split_for(model, images)
    frame = grid(model, split, norm_stats=norm_stats)
    known = frame["mean"].dropna()
    assert list(known.index) == ["W2A2", "W4A4", "FP"]
    assert known.tolist() == [by_hand(model, split, bits, norm_stats) for bits in known.index]
    assert math.isnan(accuracy(model, split, "W3A3", norm_stats))
    assert accuracy(model, split, "W2A2", norm_stats) == known["W2A2"]


def test_the_order_of_pairs_does_not_matter(images):
    """Not for pairs measured on other images either; a pair without statistics is an error with its cure."""
    model = net(images)
    split = split_for(model, images)
    recalibrate(model, images[:30], "W2A2")
    recalibrate(model, 3 * images[60:], "W4A4")
    with pytest.raises(MissingStatisticsError, match=r'call recalibrate\(model, images, "W8A8"\) first'):
        grid(model, split, ["W2A2", "W8A8"], norm_stats="recalibrated")
    for pairs in (["W2A2", "W4A4"], ["W4A4", "W2A2"]):
        means = grid(model, split, pairs, norm_stats="recalibrated")["mean"]
        for bits in pairs:
            assert means[bits] == by_hand(model, split, bits, "recalibrated"), pairs


@pytest.mark.parametrize("norm_stats", ["running", "batch", "recalibrated"])
def test_images_stored_as_bytes_are_measured_like_floats(images, norm_stats):
    """A split may hold bytes from 0 to 255 (CIFAR-10 does); a network reads them as floats in [0, 1]."""
    model, stored = net(images), (images * 255).round().to(torch.uint8)
    as_floats = split_for(model, stored.float() / 255)
    frames = []
    for split in (as_floats, Split(stored, as_floats.labels)):
        calibration = split.images[:40] if norm_stats == "recalibrated" else None
        frames.append(grid(model, split, SOME, norm_stats=norm_stats, calibration=calibration))
        assert accuracy(model, split, "W2A2", norm_stats) == frames[0].loc["W2A2", "mean"]
    assert frames[0]["mean"].tolist() == frames[1]["mean"].tolist()
    plans = [plan_of(quantize(net(images), "lsq", sample=sample)) for sample in (stored, as_floats.images)]
    assert plans[0] == plans[1]


class Negate(nn.Module):
    def forward(self, x):
        return x.neg_()


class InPlace(models.StemAndBody):
    """Its body begins by changing its input in place, as an activation with ``inplace=True`` would."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.body = nn.Sequential(Negate(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))


def test_a_body_that_works_in_place_is_measured_right(images):
    torch.manual_seed(0)
    model = quantize(InPlace(), sample=images).eval()
    split = split_for(model, images)
    frame = grid(model, split, "W2A2,W3A3,W8A8,FP")
    assert frame["mean"].tolist() == [by_hand(model, split, bits, "running") for bits in frame.index]


def state_of(model):
    setting = setting_of(model)
    kept = [name for name, layer in quantized_layers(model).items() if "kept" in layer.__dict__]
    return setting.bits, setting.per_layer, setting.norm_stats, setting.keep_weights, kept, model.training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bits", ["FP", "W2A4", MAP], ids=str)
def test_the_model_is_left_as_it_was(images, bits, training):
    model = net(images, "lsq").train(training)
    split = split_for(net(images, "lsq"), images)
    with at(model, bits, "batch"):
        before, weights = state_of(model), {n: t.clone() for n, t in model.state_dict().items()}
        assert before[3:] == (False, [], training)
        grid(model, split, SOME, norm_stats="running")
        accuracy(model, split, "W2A2")
        assert state_of(model) == before
        with pytest.raises(ValueError, match="no 1-bit values"):
            grid(model, split, "W2A2,W1A1")
        assert state_of(model) == before
        now = model.state_dict()
        assert now.keys() == weights.keys() and all(torch.equal(now[n], t) for n, t in weights.items())
    recalibrate(model, images, "W2A2")
    assert model.training == training


def test_weights_that_change_between_two_grids_count(images):
    model, other = net(images), net(images, seed=7)
    split = split_for(model, images)
    grid(model, split, "W2A2")
    model.load_state_dict(other.state_dict())
    assert grid(model, split, "W2A2")["mean"].tolist() == [by_hand(other, split, "W2A2", "running")]


def test_gradients_are_possible_again_after_a_grid(images):
    model = net(images)
    grid(model, split_for(model, images), "W2A2")
    with at(model, "W2A2"):
        model(images[:4]).sum().backward()
    assert model.body[1][0].weight.grad is not None
