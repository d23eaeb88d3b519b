"""Sweeps: one result file a task, found again unless damaged, and failures that cost nobody else."""

import json
import math
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_tasks import SETUP, count, serial, task, times

from mebqat_lite.experiments import sweeps
from mebqat_lite.experiments.engines import Task, perform
from mebqat_lite.experiments.jobs import Job, Outcome
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.experiments.sweeps import Sweep
from mebqat_lite.loop import Costs

# --- results are found again -----------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path):
    tasks = [task(tmp_path, name, value) for name, value in (("b", 0.1 + 0.2), ("a", {"x": [1, None]}))]
    first = Sweep(serial).run(tasks)
    assert first == {"b": 0.1 + 0.2, "a": {"x": [1, None]}} and list(first) == ["b", "a"]
    told = []
    third = [*tasks, task(tmp_path, "c")]
    assert Sweep(serial, tell=lambda *what: told.append(what)).run(third) == {**first, "c": 1.5}
    assert count(tmp_path) == {"a": 1, "b": 1, "c": 1} and told[:2] == [(2, True), (True, False)]
    assert Sweep(serial, fresh=True).run(third) == {**first, "c": 1.5}
    assert count(tmp_path) == {"a": 2, "b": 2, "c": 2}


def test_a_result_of_another_key_is_replaced(tmp_path):
    Sweep(serial).run([task(tmp_path, "a", 1)])
    assert Sweep(serial).run([task(tmp_path, "a", 2, part=1)]) == {"a": 2}
    assert Sweep(serial).run([task(tmp_path, "a", 2, part=1)]) == {"a": 2}
    assert count(tmp_path) == {"a": 2}


def test_a_task_that_has_begun_invalidates_what_it_will_write_over(tmp_path):
    """Its model file may be half-way to another set-up's: who then asks for the old one gets no mixture."""
    Sweep(serial).run([task(tmp_path, "a", 1)])

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sweep(serial).run([replace(task(tmp_path, "a", 2, part=1), call=killed)])
    assert not task(tmp_path, "a").found() and not task(tmp_path, "a", part=1).found()


def test_a_result_without_its_model_does_not_count(tmp_path):
    model = tmp_path / "model"
    one = task(tmp_path, "a", leaves=[model])
    for there, wanted in ((False, 1), (False, 2), (True, 2), (True, 2)):
        model.touch() if there else model.unlink(missing_ok=True)
        Sweep(serial).run([one])
        assert times(tmp_path / "a.count") == wanted


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_result_is_a_missing_one(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Sweep(serial).run([task(folder, "a", [1.5, "x"])])
        whole = (folder / "a.json").read_bytes()
        cut = data.draw(st.integers(0, len(whole.strip()) - 1))
        (folder / "a.json").write_bytes(whole[:cut] + data.draw(st.sampled_from([b"", b"\xff", b"[]"])))
        assert not task(folder, "a").found()
        assert Sweep(serial).run([task(folder, "a", [1.5, "x"])]) == {"a": [1.5, "x"]}
        assert (folder / "a.json").read_bytes() == whole


def test_json_that_is_no_record_is_a_missing_result(tmp_path):
    for text in ("[]", "3", '"key"', "{}"):
        (tmp_path / "a.json").write_text(text)
        assert task(tmp_path, "a").read() == {}


def job_key(setup=SETUP, job=Job("mebqat", 0), pairs=("W2A2", "FP"), budget="steps", delivered=1):  # noqa: B008
    return sweeps._task(setup, job, pairs, budget, delivered, Path("x")).key


def test_a_key_knows_all_that_a_job_s_numbers_depend_on_and_nothing_else(monkeypatch):
    others = [job_key(SETUP.with_options(seed=1)), job_key(replace(SETUP, norm_stats="batch"))]
    others += [
        job_key(replace(SETUP, options={"widths": (4, 4, 4, 5)})),
        job_key(replace(SETUP, data="digits,count=90")),
    ]
    others += [job_key(job=Job("mebqat", 1)), job_key(job=Job("mebqat+m=3", 0)), job_key(pairs=["FP"])]
    others += [job_key(budget="total"), job_key(delivered=2), sweeps._start(SETUP, 0, "fp", Path("x")).key]
    qat = Job("qat", 0, "W2A2")
    others += [job_key(job=qat), job_key(job=replace(qat, lr=0.1))]
    monkeypatch.setattr(sweeps, "_code", lambda: "another version")
    others.append(job_key())
    monkeypatch.undo()
    assert len({job_key(), *others}) == 1 + len(others)
    assert job_key() == job_key(Setup(**vars(SETUP)), pairs=["W2A2", "FP"])
    assert job_key(job=qat) == job_key(job=qat, pairs=["W2A2"])  # is measured at its own pair


def test_an_outcome_comes_back_from_json_with_what_was_not_measured():
    row = {"W2A2": 100 / 3, "FP": math.nan}
    one = Outcome(Job("qat", 3, "W2A2", 0.1), {"val": {}, "test": row}, {"test": row}, {"FP": 99.5}, Costs(1, 2, 3), 44)
    again = Outcome.from_json(json.loads(json.dumps(asdict(one)).replace("NaN", "null")))
    assert repr(again) == repr(one) and again.job == one.job and again.costs == one.costs


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_is_tried_again_after_the_others_and_then_reported(tmp_path):
    tasks = [task(tmp_path, "never", bad=9), task(tmp_path, "a"), task(tmp_path, "once", bad=1), task(tmp_path, "b")]
    order = []
    sweep = Sweep(lambda tasks: (order.append(task.name) or perform(task) for task in tasks))
    assert sweep.run(tasks) == {"a": 1.5, "once": 1.5, "b": 1.5}
    assert order == ["never", "a", "once", "b", "never", "once"]
    assert list(sweep.failed) == ["never"]
    assert sweep.failed["never"].startswith("ArithmeticError: no 1.5 today (sweep_tasks.py, line ")
    stored = json.loads((tmp_path / "never.json").read_text())
    assert "in work" in stored["traceback"] and not tasks[0].found()
    assert Sweep(serial, retries=0).run(tasks[:2]) == {"a": 1.5}
    assert count(tmp_path) == {"a": 1, "b": 1, "never": 3, "once": 2}


def test_a_value_that_cannot_be_kept_is_a_failure(tmp_path):
    sweep = Sweep(serial, retries=0)
    assert sweep.run([task(tmp_path, "a", value={1, 2}), task(tmp_path, "b")]) == {"b": 1.5}
    assert "TypeError" in sweep.failed["a"]


def test_a_pool_that_does_nothing_is_given_up(tmp_path):
    pools = []

    def broken(tasks):
        pools.append(len(tasks))
        raise BrokenPipeError("no workers")

    sweep = Sweep(broken)
    assert sweep.run([task(tmp_path, "a"), task(tmp_path, "b")]) == {}
    assert pools == [2, 1, 1] and all("BrokenPipeError: no workers" in reason for reason in sweep.failed.values())


def test_a_pool_that_breaks_costs_a_try_of_what_it_was_at_only(tmp_path):
    """It breaks after it has run two tasks of which it tells one, at a third."""
    pools = []

    def breaks(tasks):
        pools.append([task.name for task in tasks])
        yield perform(tasks[0])
        perform(tasks[1])
        tasks[2].result.write_text(json.dumps({"key": tasks[2].key}))
        raise BrokenPipeError("gone")

    tasks = [task(tmp_path, name) for name in "abcdefg"]
    tasks[-1].result.write_text(json.dumps({"key": tasks[-1].key}))  # begun by a sweep that was killed
    sweep = Sweep(breaks, retries=0)
    assert list(sweep.run(tasks)) == ["a", "b", "d", "e", "g"]
    assert pools == [list("abcdefg"), list("defg"), ["g"]] and list(sweep.failed) == ["c", "f"]
    assert set(count(tmp_path).values()) == {1}


def test_what_was_lost_before_it_began_costs_no_try(tmp_path):
    """As where Dask had queued a task on a worker that another one killed."""
    asked = []

    def queued(tasks):
        asked.append([task.name for task in tasks])
        yield perform(tasks[0])
        yield from ((task.name, BrokenPipeError("gone")) for task in tasks[1:])

    sweep = Sweep(queued, retries=0)
    assert sweep.run([task(tmp_path, name) for name in "abc"]) == dict.fromkeys("abc", 1.5)
    assert asked == [["a", "b", "c"], ["b", "c"], ["c"]] and not sweep.failed


def test_jobs_of_one_process_wait_for_each_other(tmp_path):
    inside, seen = [], []

    def call():
        inside.append(1)
        seen.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    tasks = [Task(tmp_path / f"{i}.json", call, "k") for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        Sweep(lambda tasks: pool.map(perform, tasks)).run(tasks)
    assert seen == [1, 1, 1, 1]
