"""Bitwidth pairs, the candidates, and the samplers that choose pairs."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite.bits import FP, Bits, candidates, parse_all
from mebqat_lite.samplers import Listed, Sampled

widths = st.integers(1, 32)
pairs = st.builds(Bits, widths, widths)
prop = settings(deadline=None, max_examples=200, derandomize=True)


def legal(w, a):
    """The rule of the paper, written as its three exclusions."""
    return not (w == 32 and a < 32) and not (w == 1 and a not in (1, 32)) and not (a == 1 and w > 1)


GRID = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32]
LEGAL = [(w, a) for w in GRID for a in GRID if legal(w, a)]


# --- pairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["W2A4", "w2a4", "W2a4", " W2A4 ", "\tw2A4\n", (2, 4), [2, 4], Bits(2, 4)])
def test_every_accepted_form_of_a_pair_reads_the_same(text):
    assert Bits.parse(text) == Bits(2, 4)
    assert (Bits.parse(text).w, Bits.parse(text).a) == (2, 4)


@pytest.mark.parametrize("text", ["FP", "fp", " Fp ", "W32A32", "w32a32", (32, 32), [32, 32], FP])
def test_every_accepted_form_of_full_precision_reads_the_same(text):
    assert Bits.parse(text) == FP == Bits(32, 32)


NO_PAIR = [0, 33, 2, True, False, 2.0, None, "four", "", "W2", "A4", "A4W2", "W2A4A4", "W-2A4", "W2.0A4", "W2 A4"]
NO_PAIR += ["FP32", "2,4", "W2A4,W4A4", "WA", (2,), (2, 4, 8), (), [2], [2, 4, 8], {"w": 2, "a": 4}, object]


@pytest.mark.parametrize("text", NO_PAIR, ids=repr)
def test_what_is_no_pair_says_how_to_write_one(text):
    with pytest.raises(ValueError) as error:
        Bits.parse(text)
    assert str(error.value) == f"{text!r} is no bitwidth pair; write W2A4, (2, 4) or FP"


BAD_WIDTHS = [("W0A4", "weight", 0), ("W33A4", "weight", 33), ("W2A0", "activation", 0), ("W2A33", "activation", 33)]
BAD_WIDTHS += [((0, 4), "weight", 0), ((2, 33), "activation", 33), ((-1, 4), "weight", -1), ((4, -2), "activation", -2)]
BAD_WIDTHS += [((True, 4), "weight", True), ((2, False), "activation", False), ((2.0, 4), "weight", 2.0)]
BAD_WIDTHS += [((2, None), "activation", None), (("2", 4), "weight", "2"), ((2, float("nan")), "activation", "nan")]


@pytest.mark.parametrize(("text", "kind", "value"), BAD_WIDTHS, ids=repr)
def test_a_width_that_is_none_is_named_with_its_kind_and_the_range(text, kind, value):
    with pytest.raises(ValueError, match=rf"^{kind} bits must be a whole number from 1 to 32, not ") as error:
        Bits.parse(text)
    assert str(error.value).endswith("; write W2A4, (2, 4) or FP")
    assert f"not {value!r};" in str(error.value) or value == "nan"


@prop
@given(pairs)
def test_str_and_parse_are_inverse(pair):
    assert Bits.parse(str(pair)) == pair
    assert Bits.parse(str(pair).lower()) == pair
    assert str(pair) == ("FP" if pair == Bits(32, 32) else f"W{pair.w}A{pair.a}")


@prop
@given(st.integers(), st.integers())
def test_a_pair_exists_exactly_within_1_to_32(w, a):
    if 1 <= w <= 32 and 1 <= a <= 32:
        assert (Bits(w, a).w, Bits(w, a).a) == (w, a)
    else:
        with pytest.raises(ValueError):
            Bits(w, a)


@prop
@given(pairs, pairs)
def test_pairs_order_by_weights_then_activations_and_hash_by_value(one, two):
    assert (one < two) == ((one.w, one.a) < (two.w, two.a))
    assert one <= FP
    assert (one == two) == (hash(one) == hash(two) and (one.w, one.a) == (two.w, two.a))


def test_a_pair_cannot_be_changed():
    with pytest.raises(AttributeError):
        Bits(2, 4).w = 3


# --- candidates --------------------------------------------------------------------------------------------------


def test_there_are_75_candidates_in_rising_order():
    found = [(b.w, b.a) for b in candidates()]
    assert len(found) == 75
    assert found == sorted(LEGAL) == LEGAL


def test_there_are_73_candidates_without_one_bit():
    found = [(b.w, b.a) for b in candidates(one_bit=False)]
    assert len(found) == 73
    assert found == [(w, a) for w, a in LEGAL if w > 1 and a > 1]
    assert set(candidates()) - set(candidates(one_bit=False)) == {Bits(1, 1), Bits(1, 32)}


@prop
@given(pairs)
def test_is_candidate_agrees_with_the_list(pair):
    assert pair.is_candidate == ((pair.w, pair.a) in LEGAL)


def test_all_candidates_packed_take_493_bits_a_weight():
    """DESIGN: 75 packed models take 493 bits a weight; one FP32 model saves 93.5 % of that, of 75 such 98.7 %."""
    bits = sum(w for w, _ in LEGAL)
    assert bits == sum(b.w for b in candidates())
    assert round(100 * (1 - 32 / 493), 1) == 93.5
    assert bits == 493


def test_candidates_gives_a_new_list_each_time():
    candidates().clear()
    assert len(candidates()) == 75


# --- several pairs -----------------------------------------------------------------------------------------------


def test_parse_all_reads_strings_and_anything_that_holds_pairs():
    expected = [Bits(2, 2), Bits(4, 4), FP]
    for source in ("W2A2,W4A4,FP", " w2a2 , w4a4,fp,", ["W2A2", (4, 4), FP], (Bits(2, 2), "W4A4", "FP")):
        assert parse_all(source) == expected
    assert parse_all(iter(["W2A2", "W4A4", "FP"])) == expected


@pytest.mark.parametrize("source", ["", " , ", [], ()])
def test_no_pair_at_all_is_an_error(source):
    with pytest.raises(ValueError, match="no bitwidth pair given; write for example W2A2,W4A4,FP"):
        parse_all(source)


def test_one_bad_pair_among_good_ones_is_named():
    with pytest.raises(ValueError, match="'W4' is no bitwidth pair"):
        parse_all("W2A2,W4,FP")


# --- samplers ----------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match="2 guaranteed pairs do not fit in m = 1 pairs a task"):
        Sampled(candidates(), 1, [FP, Bits(1, 1)])
    assert Sampled(candidates(), 2, [FP, Bits(1, 1)]).draw() == [[FP, Bits(1, 1)]]


def test_an_empty_pool_is_refused():
    with pytest.raises(ValueError, match="the pool of a sampler must hold at least one pair"):
        Sampled([], 4, [FP])
