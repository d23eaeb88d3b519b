"""The benchmarks run, and their page shows what was stored."""

import json
from pathlib import Path

import pytest

from benchmarks import steps, timing
from benchmarks.__main__ import BENCHMARKS, block, main

FOLDER = Path(__file__).parent.parent / "benchmarks"


def test_the_page_shows_the_stored_results():
    stored = json.loads((FOLDER / "results.json").read_text())
    assert set(stored["measured"]) == set(BENCHMARKS)
    assert f"<!-- measured -->\n{block(stored)}\n<!-- /measured -->" in (FOLDER / "README.md").read_text()


def test_a_ratio_is_the_median_of_pairs_after_a_warm_up(monkeypatch):
    times = {"ours": iter([2, 4, 9, 3, 6]), "plain": iter([1, 1, 3, 1, 1])}  # ratios 2 4 3 3 6
    calls = []
    monkeypatch.setattr(timing, "seconds", lambda work: float(next(times[work()])))
    found = timing.ratio(lambda: calls.append(1) or "ours", lambda: "plain", runs=5, warmup=2)
    assert (found["ratio"], found["runs"], found["seconds"], len(calls)) == (3, 5, [4, 1], 2 + 5)
    assert 2 <= found["spread"][0] <= 3 <= found["spread"][1] <= 6


@pytest.mark.parametrize("name", steps.CASES)
def test_both_sides_take_the_same_batch_and_update_the_network(name):
    case = steps.CASES[name]
    assert steps.batch(case).images.shape == case.shape
    if name == "digits":
        steps.mebqat_step(case)()
        steps.plain_step(case)()


def test_an_unknown_benchmark_is_answered_with_the_known(capsys):
    assert main(["speed"]) == 2
    assert "mebqat_step/digits" in capsys.readouterr().err
