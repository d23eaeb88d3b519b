"""MEBQAT in thirty lines, the functions of lesson 04's exercises: a step is that of the package's loop."""

import ast
import copy
import inspect
import textwrap

import pytest
import torch

import mebqat_lite as mq
from mebqat_lite.course.exercises import lesson_04
from mebqat_lite.loop import Loop
from mebqat_lite.optim import groups

METHODS = {"mebqat": False, "mebqat_in_turn": True}  # whether a step visits one pair
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.01),
}


@pytest.fixture(scope="module")
def data():
    return mq.datasets.digits()


def network(data, pool=torch.nn.MaxPool2d):
    torch.manual_seed(0)
    net = mq.models.digit_net()
    net.body[0][2] = pool(2)
    return mq.quantize(net, "dorefa", sample=data.train.images[:64])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [10.0, 1e-3])
def test_a_step_by_hand_is_that_of_the_package(data, method, optimizer, clip, monkeypatch):
    # At few bits many values are equal, and which of them a maximum takes is decided by the noise of float64.
    model = network(data, torch.nn.AvgPool2d).double()
    loop = Loop(model, data.train, method, mq.Recipe(steps=6, schedule="constant", clip=clip))
    mine = copy.deepcopy(model)
    loop.optimizer = OPTIMIZERS[optimizer](groups(model))
    for group in loop.optimizer.param_groups:  # `Loop.step` sets the rate of its recipe
        group["scale"] = group["lr"] / loop.recipe.lr
    own, draw, drawn = OPTIMIZERS[optimizer](mine.parameters()), loop.sampler.draw, []
    monkeypatch.setattr(loop.sampler, "draw", lambda: drawn.append(draw()) or drawn[-1])
    clip_to = torch.nn.utils.clip_grad_value_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_value_", lambda parameters, limit: clip_to(parameters, clip))
    for step in range(6):
        loop.step()
        loss = lesson_04._mebqat_step(mine, loop.source.task(step), drawn[-1][0], lesson_04._mebqat_loss, own)
        assert loss == pytest.approx(loop.run.losses[-1], rel=1e-9)
        for a, b in zip(model.parameters(), mine.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    loop.close()
    assert all(len(pairs) == (1 if METHODS[method] else 4) for [pairs] in drawn)


def test_they_are_thirty_lines():
    """Without signatures and docstrings, as the lesson counts them."""
    functions = [exercise.reference for exercise in lesson_04.EXERCISES] + [lesson_04.train]
    count = 0
    for function in functions:
        source = textwrap.dedent(inspect.getsource(function))
        [first, *rest] = ast.parse(source).body[0].body
        assert ast.unparse(first).startswith(("'", '"'))
        count += rest[-1].end_lineno - rest[0].lineno + 1
    assert count <= 30


@pytest.mark.parametrize("in_turn", [False, True])
def test_train_calls_what_it_is_given(data, in_turn):
    drawn, visited = [], []

    def sample(*args):
        drawn.append(lesson_04._sample_pairs(*args))
        return drawn[-1]

    def step(model, batch, pairs, loss, optimizer):
        visited.append(pairs)
        assert batch[0].shape == (128, 1, 8, 8) and loss is mine
        optimizer.step()
        return float(len(visited))

    def mine(*args): ...

    steps = list(lesson_04.train(network(data), data.train, 8, sample, mine, step, in_turn=in_turn))
    assert [loss for _, loss in steps] == [1.0, 2, 3, 4, 5, 6, 7, 8] and [pairs for pairs, _ in steps] == visited
    if not in_turn:
        assert visited == [sorted(pairs, reverse=True) for pairs in drawn] and len(drawn) == 8
        assert all(pairs[:2] == [mq.FP, mq.Bits(1, 1)] for pairs in drawn)
    else:
        assert len(drawn) == 2 and visited[4:] == [[drawn[1][i]] for i in (0, 2, 1, 3)]


def test_train_visits_what_it_is_told(data):
    pool, ends = [mq.Bits(2, 2), mq.Bits(4, 4), mq.FP], [mq.Bits(4, 4)]
    where = {"pool": pool, "m": 3, "guaranteed": ends}
    visited = [pairs for pairs, _ in lesson_04.train(network(data), data.train, 12, **where)]
    assert all(len(pairs) == 3 and ends[0] in pairs and pairs == sorted(pairs, reverse=True) for pairs in visited)
    assert {pair for pairs in visited for pair in pairs} == {*pool}
    again = [pairs for pairs, _ in lesson_04.train(network(data), data.train, 12, **where, seed=1)]
    assert again != visited


@pytest.mark.slow
@pytest.mark.parametrize(("in_turn", "steps"), [(False, 300), (True, 1200)])
def test_it_trains_the_digits(data, in_turn, steps):
    model = network(data)
    mq.fit(model, data, "fp", steps=300, progress=False, device="cpu")
    losses = [loss for _, loss in lesson_04.train(model, data.train, steps, in_turn=in_turn)]
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])
    found = mq.grid(model.eval(), data.test, "W1A1,W2A2,FP", calibration=data.train.images)["mean"]
    assert found["W1A1"] > 80 and found["W2A2"] > 90 and found["FP"] > 90
