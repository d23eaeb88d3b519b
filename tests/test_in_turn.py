"""MEBQAT in turn: the pairs of a step of MEBQAT, each in a step of its own."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mebqat_lite as mq
from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.methods import METHODS
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import InTurn, Sampled

prop = settings(deadline=None, max_examples=100, derandomize=True)
ENDS = [FP, Bits(1, 1), Bits(2, 2), Bits(8, 8)]
X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PART = Split(X, torch.arange(24) % 3)
DATA = Data("made", PART, PART, PART, ("a", "b", "c"))


def net(quantizer="dorefa"):
    torch.manual_seed(0)
    return mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4), classes=3), quantizer, sample=X)


@prop
@given(st.integers(0, 5), st.integers(0, 4), st.integers(0, 2**32))
def test_a_round_has_the_pairs_of_a_step_and_guaranteed_ones_alternate_with_drawn_ones(free, fixed, seed):
    sure = ENDS[:fixed]
    pool = [pair for pair in candidates() if pair not in sure]
    m = max(1, free + fixed)
    together, turns = Sampled(pool, m, sure, seed=seed), InTurn(pool, m, sure, seed=seed)
    for _ in range(3):
        [step] = together.draw()
        round_ = [turns.draw() for _ in range(m)]
        assert all(len(tasks) == len(tasks[0]) == 1 for tasks in round_)
        visited = [tasks[0][0] for tasks in round_]
        assert sorted(map(str, visited)) == sorted(map(str, step))
        both = min(fixed, m - fixed)
        assert [pair in sure for pair in visited[: 2 * both]] == [True, False] * both


def test_the_default_order_is_full_precision_a_drawn_pair_the_lowest_pair_and_a_drawn_pair():
    sampler = METHODS["mebqat_in_turn"].sampler(net(), Recipe())
    visited = [sampler.draw()[0][0] for _ in range(8)]
    assert visited[0::4] == [FP, FP] and visited[2::4] == [Bits(1, 1)] * 2
    assert all(pair in candidates() for pair in visited)


@prop
@given(st.integers(0, 30), st.integers(0, 2**32), st.booleans())
def test_it_goes_on_from_every_position(steps, seed, per_layer):
    def make():
        return InTurn(candidates(), 5, ENDS[:2], seed=seed, layers=["a", "b"] if per_layer else [])

    sampler, other = make(), make()
    for _ in range(steps):
        sampler.draw()
    other.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert [sampler.draw() for _ in range(12)] == [other.draw() for _ in range(12)]


@pytest.mark.parametrize("stopped", [1, 2, 3, 5])
def test_an_interrupted_run_ends_as_an_unbroken_one(stopped, tmp_path):
    whole, parts = net(), net()
    options = {"lr": 0.01, "batch_size": 8, "progress": False}
    run = mq.fit(whole, DATA, "mebqat_in_turn", steps=7, **options)
    assert (run.costs.steps, run.costs.backprops) == (7, 7)

    class Stopped(Exception):
        """The run is interrupted."""

    def stop(record):
        if record["step"] == stopped + 1:
            raise Stopped

    with pytest.raises(Stopped):
        mq.fit(parts, DATA, "mebqat_in_turn", steps=7, path=tmp_path / "run", save_every=1, log=stop, **options)
    parts = net()
    mq.fit(parts, DATA, "mebqat_in_turn", steps=7, path=tmp_path / "run", **options)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())


def test_it_learns_from_labels_only():
    assert {METHODS[name].teacher for name in ("mebqat_in_turn", "mebqat_pn_in_turn")} == {"labels"}


@pytest.mark.parametrize(
    ("method", "options", "least"),
    [("mebqat", {"m": 1}, 2), ("mebqat_in_turn", {"m": 1}, 2), ("mebqat_pn", {"m": 1, "sandwich": True}, 2)],
)
def test_fewer_pairs_than_each_step_must_visit_are_refused(method, options, least):
    with pytest.raises(ValueError, match=rf"each step visits FP and W1A1: m, .* must be at least {least}, not 1"):
        METHODS[method].sampler(net(), Recipe(**options))
