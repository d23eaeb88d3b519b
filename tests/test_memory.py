"""A step of MEBQAT with four pairs takes at most 1.4 times the memory of one plain training step of its network."""

import pytest

from benchmarks.__main__ import BENCHMARKS

LARGE = ["cnn8", "preact_resnet20_w1", "pn_conv4_32"]


@pytest.mark.parametrize("name", ["digits", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_step_at_four_pairs_takes_little_more_memory_than_a_plain_one(name):
    assert BENCHMARKS[f"memory/{name}"]()["ratio"] <= 1.4
