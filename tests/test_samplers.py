"""Samplers: which pairs a step trains."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.samplers import Listed, Sampled

prop = settings(deadline=None, max_examples=200, derandomize=True)


def test_listed_gives_the_same_pairs_to_every_task_of_every_step():
    sampler = Listed("W2A2,FP", tasks=3)
    for _ in range(3):
        assert sampler.draw() == [[Bits(2, 2), FP]] * 3
    assert Listed(["W2A2"]).draw() == [[Bits(2, 2)]]


def test_changing_what_listed_gave_changes_no_later_step():
    sampler = Listed("W2A2,FP", tasks=2)
    first = sampler.draw()
    first[0].clear()
    assert first[1] == [Bits(2, 2), FP], "the tasks of a step share one list"
    assert sampler.draw() == [[Bits(2, 2), FP]] * 2


def test_listed_has_no_state():
    sampler = Listed("FP")
    assert sampler.state_dict() == {}
    sampler.load_state_dict({})
    assert sampler.draw() == [[FP]]


@prop
@given(st.integers(0, 6), st.integers(0, 4), st.integers(1, 16), st.integers(0, 2**32))
def test_sampled_gives_each_task_the_guaranteed_pairs_first_and_m_in_all(free, fixed, tasks, seed):
    guaranteed = [FP, Bits(1, 1), Bits(2, 2), Bits(8, 8)][:fixed]
    pool = [b for b in candidates() if b not in guaranteed]
    steps = Sampled(pool, free + fixed, guaranteed, tasks, seed)
    for _ in range(2):
        drawn = steps.draw()
        assert len(drawn) == tasks
        assert all(task[:fixed] == guaranteed and len(task) == free + fixed for task in drawn)
        assert all(pair in pool for task in drawn for pair in task[fixed:])


def chi_square(counts, cells, total):
    """Sum of (observed - expected)^2 / expected over equally likely cells."""
    expected = total / cells
    return sum((counts.get(cell, 0) - expected) ** 2 / expected for cell in range(cells))


def test_free_draws_are_uniform_over_the_pool_and_independent_of_the_guaranteed_pairs():
    """75 cells, 30,000 draws: chi-square (74) is below 139 but once in 1e5 seeds; one missing pair adds 400."""
    pool, m = candidates(), 4
    sampler = Sampled(pool, m, [FP, Bits(1, 1)], tasks=1, seed=1)
    free = [pair for _ in range(15_000) for pair in sampler.draw()[0][2:]]
    counts = Counter(pool.index(pair) for pair in free)
    assert len(free) == 30_000
    assert 30 < chi_square(counts, 75, 30_000) < 139


def test_the_draws_of_one_task_and_of_neighbouring_tasks_are_independent():
    """All 9 x 9 joint outcomes of two draws are equally likely: chi-square (80) below 147 (once in 1e5 seeds)."""
    pool = candidates()[:9]
    sampler = Sampled(pool, 2, tasks=2, seed=2)
    steps = [sampler.draw() for _ in range(8_100)]
    within = Counter(9 * pool.index(step[0][0]) + pool.index(step[0][1]) for step in steps)
    between = Counter(9 * pool.index(step[0][0]) + pool.index(step[1][0]) for step in steps)
    later = Counter(9 * pool.index(a[1][1]) + pool.index(b[0][0]) for a, b in pairwise(steps))
    for counts in (within, between, later):
        assert 35 < chi_square(counts, 81, counts.total()) < 147


def test_a_seed_repeats_and_another_seed_differs():
    def draws(seed):
        sampler = Sampled(candidates(), 4, tasks=2, seed=seed)
        return [sampler.draw() for _ in range(10)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_samplers_do_not_share_a_generator():
    one, two = Sampled(candidates(), seed=5), Sampled(candidates(), seed=5)
    expected = [one.draw() for _ in range(5)]
    assert [two.draw() for _ in range(5)] == expected


@prop
@given(st.integers(0, 7), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**20))
def test_a_sampler_restored_from_json_continues_identically(steps, m, tasks, seed):
    pool = candidates()
    sampler = Sampled(pool, m, tasks=tasks, seed=seed)
    for _ in range(steps):
        sampler.draw()
    text = json.dumps(sampler.state_dict())
    expected = [sampler.draw() for _ in range(6)]
    restored = Sampled(pool, m, tasks=tasks, seed=seed + 1)
    restored.load_state_dict(json.loads(text))
    assert [restored.draw() for _ in range(6)] == expected
    assert json.loads(text) != sampler.state_dict(), "the state that was taken moves with the sampler"


def test_changing_the_pool_of_the_caller_changes_no_draw():
    pool, guaranteed = candidates(), [FP]
    sampler = Sampled(pool, 4, guaranteed, seed=6)
    expected = [Sampled(candidates(), 4, [FP], seed=6).draw() for _ in range(1)]
    pool.clear()
    guaranteed.clear()
    assert [sampler.draw()] == expected
    sampler.draw()[0].clear()
    assert sampler.draw()[0][0] == FP


def test_too_many_guaranteed_pairs_are_refused_and_as_many_as_m_are_not():
    with pytest.raises(ValueError, match="each step visits FP and W1A1: m, with MAML tasks, must be at least 2, not 1"):
        Sampled(candidates(), 1, [FP, Bits(1, 1)])
    assert Sampled(candidates(), 2, [FP, Bits(1, 1)]).draw() == [[FP, Bits(1, 1)]]


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="the pool of a sampler must hold at least one pair"):
        Sampled([], 4, [FP])
