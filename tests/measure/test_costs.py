"""Costs: passes counted by the loop against formulas, bytes against the files that hold them."""

import itertools
import json
import struct
import warnings

import pytest
import torch
from torch import nn

from mebqat_lite import candidates, datasets, fit, loop, models, quantize, recalibrate, save_model
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.loop import Costs
from mebqat_lite.measure.costs import bit_operations, saving, stored_bytes
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.state import quantized_layers


@pytest.fixture(scope="module")
def data():
    train = datasets.digits().train
    return Data("tiny", Split(train.images[:64], train.labels[:64]), None, None, tuple("0123456789"))


def net(data, quantizer="dorefa"):
    torch.manual_seed(0)
    return quantize(models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=data.train.images)


@pytest.mark.parametrize(
    ("method", "options", "steps", "forwards", "backprops"),
    [
        ("fp", {}, 5, 1, 1),
        ("qat", {"bits": "W2A2"}, 5, 1, 1),
        ("qat", {"bits": "W2A2", "teacher": "start"}, 5, 2, 1),
        ("qat", {"bits": "W2A2", "teacher": "fp"}, 5, 2, 1),
        ("qat", {"bits": "W2A2", "teacher": "labels"}, 5, 1, 1),
        ("mebqat", {}, 30, 4, 4),
        ("mebqat", {"teacher": "start"}, 5, 5, 4),
        ("mebqat", {"m": 7}, 5, 7, 7),
        ("mebqat", {"m": 2}, 5, 2, 2),
    ],
)
def test_passes_are_counted_with_teachers(data, method, options, steps, forwards, backprops):
    model = net(data)
    run = fit(model, data, method, steps=steps, batch_size=8, progress=False, **options)
    assert run.costs == Costs(steps, steps * forwards, steps * backprops)
    assert len(run.losses) == steps and run.seconds > 0
    model(data.train.images)
    assert run.costs.forwards == steps * forwards  # nothing counts after the run


def test_sat_counts_whole_passes_where_no_stem_is_shared(data):
    run = fit(net(data, "sat"), data, steps=3, batch_size=8, progress=False)
    assert run.costs == Costs(3, 12, 12)


def test_a_warm_start_counts_both_parts(data):
    def costs(method, **options):
        return fit(net(data), data, method, steps=2, batch_size=8, progress=False, **options).costs

    assert costs("mebqat", warm_steps=3) == Costs(5, 3 + 8, 3 + 8)
    assert costs("mebqat", warm_steps=0) == Costs(2, 8, 8)
    assert costs("qat", bits="W2A2", warm_steps=3) == Costs(5, 3 + 2, 3 + 2)
    assert costs("qat", bits="W2A2", warm_steps=3, teacher="start") == Costs(5, 3 + 4, 3 + 2)
    assert costs("fp", recipe=Recipe(warm_steps=3)) == Costs(2, 2, 2)  # nothing to warm up


def test_seconds_count_both_parts(data, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(ticks))  # a step looks at the clock twice
    run = fit(net(data), data, "mebqat", steps=2, warm_steps=3, batch_size=8, progress=False)
    assert run.seconds == run.costs.steps == 5


def test_costs_add_field_by_field():
    assert Costs(1, 20, 300) + Costs(4, 50, 600) == Costs(5, 70, 900)
    assert sum([Costs(1, 2, 3)] * 3, Costs()) == Costs(3, 6, 9)


def test_the_headline_savings():
    assert round(saving(1, len(candidates())), 1) == 98.7
    assert round(saving(4, len(candidates())), 1) == 94.7
    assert (round(saving(1, 73), 1), round(saving(4, 73), 1)) == (98.6, 94.5)
    assert (saving(4, 4), saving(4, 2)) == (0, -100)


def test_bytes_of_a_float_model_by_hand():
    convolutions, gains = 9 * (1 * 2 + 2 * 3 + 3 * 4 + 4 * 5), 2 * (2 + 3 + 4 + 5)
    statistics = 2 * (2 + 3 + 4 + 5)  # mean and variance; each norm counts its batches in 8 bytes
    wanted = 4 * (convolutions + gains + statistics + 5 * 10 + 10) + 4 * 8
    model = models.digit_net(widths=(2, 3, 4, 5))
    assert stored_bytes(model) == wanted
    assert stored_bytes(model.double()) == 2 * (wanted - 32) + 32


@pytest.mark.parametrize("quantizer", ["dorefa", "lsq", "sat", "least_squares"])
def test_bytes_are_those_of_the_file(data, quantizer, tmp_path):
    model = net(data, quantizer)
    bare = stored_bytes(model)
    recalibrate(model, data.train.images, "W2A2,FP")
    recalibrate(model, data.train.images, {"*": "W8A8", "body.1.0": "W4A4"})  # a name with dots
    assert stored_bytes(model) == bare + 3 * 4 * (2 * 4) * 4  # settings, norms, mean and variance of 4, bytes
    assert stored_bytes(model, statistics=False) == bare
    path = save_model(model, tmp_path / "a.safetensors")
    content = path.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    tensors = {n: v for n, v in json.loads(content[8 : 8 + header]).items() if n != "__metadata__"}
    assert stored_bytes(model) == len(content) - 8 - header == sum(b - a for a, b in offsets(tensors))


def offsets(tensors):
    return [entry["data_offsets"] for entry in tensors.values()]


def test_learned_steps_cost_four_bytes_each(data):
    model = net(data, "lsq")
    steps = sum(len(layer.quant) for layer in quantized_layers(model).values())
    assert steps == 3 * 2 * 8  # layers, weights and activations, 2 to 8 and 16 bits
    assert stored_bytes(model) - stored_bytes(net(data)) == 4 * steps


def test_bit_operations_are_multiplications_times_bits():
    model = quantize(models.conv4(channels=4, image_size=16), "lsq", sample=torch.rand(2, 1, 16, 16))
    first, body = 4 * 9 * 256, [4 * 4 * 9 * side * side for side in (8, 4, 2)]  # no padding left out
    last = body[-1]  # the last convolution stays full precision
    image = torch.rand(1, 16, 16)
    assert bit_operations(model, image, "FP") == (first + sum(body)) * 1024
    assert bit_operations(model, image, "W2A4") == (first + last) * 1024 + sum(body[:-1]) * 8


@pytest.mark.parametrize("kind", ["a norm that sees one value", "tokens"])
def test_one_image_is_enough_to_count_bit_operations(kind):
    torch.manual_seed(0)
    if kind == "tokens":
        layers, x = [nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 4)], torch.randint(9, (8, 5))
    else:
        layers, x = [nn.Flatten(), nn.Linear(20, 4), nn.BatchNorm1d(4)], torch.rand(8, 5, 4)
    model = quantize(nn.Sequential(*layers), "lsq", sample=x, keep=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the embedding is left out
        assert bit_operations(model, x[0], "W2A4") == 20 * 4 * 2 * 4
