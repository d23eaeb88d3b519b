"""The benchmarks run, and their page shows what was stored."""

import json
from pathlib import Path

import pytest

from benchmarks import steps
from benchmarks.__main__ import BENCHMARKS, block, main
from benchmarks.timing import ratio

FOLDER = Path(__file__).parent.parent / "benchmarks"


def test_the_page_shows_the_stored_results():
    stored = json.loads((FOLDER / "results.json").read_text())
    assert set(stored["measured"]) == set(BENCHMARKS)
    assert f"<!-- measured -->\n{block(stored)}\n<!-- /measured -->" in (FOLDER / "README.md").read_text()


def test_a_ratio_is_that_of_the_work_done():
    spent = []
    found = ratio(lambda: spent.append(sum(range(300_000))), lambda: sum(range(100_000)), runs=15)
    assert found["runs"] == 15 and len(spent) == 15 + 3
    assert 2 < found["ratio"] < 4 and found["spread"][0] <= found["ratio"] <= found["spread"][1]


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
