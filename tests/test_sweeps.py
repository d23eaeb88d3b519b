"""Sweeps: one result file a job, resumed after a kill, failures that cost nobody else; the same numbers anywhere."""

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mebqat_lite.cli import main
from mebqat_lite.experiments import engines, sweeps
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.engines import EngineError, Task, opened, perform
from mebqat_lite.experiments.jobs import Job, Outcome
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.experiments.sweeps import Sweep, SweepError, key
from mebqat_lite.loop import Costs
from mebqat_lite.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


# --- what tasks do here ----------------------------------------------------------------------------------------------


def times(path):
    """How often a task has been run: a line each in a file, whatever process it was in."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def work(count, value, bad=0, how="raise"):
    """A value, and a line in ``count``; the first ``bad`` times not."""
    with count.open("a") as file:
        file.write("x\n")
    if times(count) <= bad:
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError(f"no {value} today")
    return value


def task(folder, name, value=1.5, part=0, leaves=(), **how):
    call = functools.partial(work, folder / f"{name}.count", value, **how)
    return Task(folder / f"{name}.json", call, key(name, part), tuple(leaves))


def serial(tasks):
    return map(perform, tasks)


def count(folder):
    return {path.stem: times(path) for path in sorted(folder.glob("*.count"))}


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


SETUP = Setup(options={"widths": (4, 4, 4, 4)}, recipe=Recipe(steps=4, warm_steps=5, batch_size=32, lr=0.03))


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
    assert sweep.failed["never"].startswith("ArithmeticError: no 1.5 today (test_sweeps.py, line ")
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


# --- engines, started for real ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dask():
    """The address of a cluster of two processes, whose scheduler tries nothing again by itself."""
    config, distributed = pytest.importorskip("dask").config, pytest.importorskip("distributed")
    with (
        config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL"
        ) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture(params=["serial", "loky", "dask"])
def engine(request):
    """The options of an engine."""
    address = request.getfixturevalue(request.param) if request.param == "dask" else ""
    return {"engine": request.param, "workers": 2, "address": address}


NAMES, PAIRS = ["mebqat", "adabits", "qat", "ptq_mse"], ["W2A2", "W3A3", "FP"]


def run(folder, **options):
    fixed = {"pairs": PAIRS, "listed": ["W2A2", "W4A4"], "seeds": 1, "progress": False, "engine": "serial"}
    return compare(SETUP, NAMES, folder=folder, **{**fixed, **options})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole comparison in this process."""
    folder = tmp_path_factory.mktemp("done")
    return folder, run(folder)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*-seed*")}


def timeless(outcome):
    return json.dumps({name: value for name, value in outcome.items() if name != "seconds"})


@pytest.mark.slow
def test_every_engine_finds_the_same_to_the_last_byte(engine, done, tmp_path):
    folder, wanted = done
    assert timeless(run(tmp_path, **engine)) == timeless(wanted)
    assert contents(tmp_path) == contents(folder) and len(contents(folder)) == 2 * 6
    assert "NaN" in timeless(wanted)  # adabits has no norm set of W3A3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loky", "dask"], indirect=True)  # serial: the job's process is this one
def test_a_worker_that_dies_costs_no_other_job(engine, tmp_path):
    bad = {"never": 9, "once": 1}
    names = ["a", "never", "b", "once", "c"]
    tasks = [task(tmp_path, name, name, bad=bad.get(name, 0), how="die") for name in names]
    with opened(**engine) as stream:
        sweep = Sweep(stream)
        assert sweep.run(tasks) == {name: name for name in names if name != "never"}
    assert list(sweep.failed) == ["never"] and "its worker gave no answer" in sweep.failed["never"]
    assert count(tmp_path)["never"] == 2


@pytest.mark.slow
def test_dask_starts_a_cluster_of_its_own(tmp_path):
    pytest.importorskip("distributed")
    with opened("dask", 1) as stream:
        assert Sweep(stream).run([task(tmp_path, "a")]) == {"a": 1.5}


def test_another_engine_is_one_function(monkeypatch, tmp_path):
    asked = []

    @contextlib.contextmanager
    def mine(workers, address):
        asked.append((workers, address))
        yield serial

    monkeypatch.setitem(engines.ENGINES, "mine", mine)
    with opened("mine", 3, "there") as stream:
        assert Sweep(stream).run([task(tmp_path, "a")]) == {"a": 1.5}
    assert asked == [(3, "there")]


def test_a_cluster_without_workers_is_not_waited_for_for_ever(monkeypatch):
    import distributed

    monkeypatch.setattr(engines, "JOIN", 1)
    with distributed.LocalCluster(
        n_workers=0, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL"
    ) as cluster:
        address = cluster.scheduler_address
        with pytest.raises(EngineError, match=f"no worker joined {address} in 1 s"), opened("dask", address=address):
            pass


def test_a_negative_number_of_retries_is_refused(tmp_path):
    with pytest.raises(ValueError, match="retries must not be negative: -1"):
        compare(Setup(), ["fp"], seeds=1, folder=tmp_path, retries=-1, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "spark"}, ValueError, "no engine 'spark'; choose one of serial, loky, dask"),
        ({"workers": 0}, ValueError, "at least 1 process, not 0"),
        ({"address": "tcp://127.0.0.1:9"}, EngineError, "only the engine dask takes an address"),
        ({"engine": "dask", "address": "tcp://127.0.0.1:9"}, EngineError, "nothing answers at tcp://127.0.0.1:9"),
        ({"engine": "ray"}, ValueError, "no engine 'ray': take dask, which runs on a cluster too"),
    ],
)
def test_what_an_engine_cannot_be_is_said_before_anything_runs(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run(tmp_path, **{"engine": "loky", **options})
    assert not list(tmp_path.iterdir())


def test_an_engine_that_is_not_installed_names_the_cure(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)  # what Python has for a module that is not there
    assert main(["compare", "--engine", "dask"]) == 2
    wanted = 'mebqat-lite: engine "dask" needs distributed: pip install "mebqat_lite[dask]"\n'
    assert capsys.readouterr().err.endswith(wanted)


# --- comparisons -----------------------------------------------------------------------------------------------------


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[a-z]*-seed*")}


def results(folder):
    """The names of the jobs that have a result."""
    found = set()
    for path in folder.glob("*-seed*.json"):
        with contextlib.suppress(ValueError):
            found |= {path.stem} if "value" in json.loads(path.read_text()) else set()
    return found


def test_a_comparison_reads_back_what_is_done_and_runs_what_is_missing(done, tmp_path, capfd):
    folder, wanted = done
    shutil.copytree(folder, tmp_path / "c")
    before = stamps(tmp_path / "c")
    (tmp_path / "c" / "qat_w2a2-seed0.json").write_text("{")
    (tmp_path / "c" / "mebqat-seed0.safetensors").unlink()
    assert timeless(run(tmp_path / "c", progress=True)) == timeless(wanted)
    assert "4 found done" in capfd.readouterr().err
    after = stamps(tmp_path / "c")
    again = {name for name in before if before[name] != after[name]}
    assert again == {f"{name}-seed0.{end}" for name in ("qat_w2a2", "mebqat") for end in ("json", "safetensors")}
    assert contents(tmp_path / "c") == contents(folder)
    before = stamps(tmp_path / "c")
    run(tmp_path / "c", fresh=True)
    assert not set(before.items()) & set(stamps(tmp_path / "c").items())


def test_another_set_up_in_the_same_folder_is_not_mixed_in(done, tmp_path):
    folder, _ = done
    shutil.copytree(folder, tmp_path / "c")
    other = SETUP.with_options(lr=0.02)
    options = {"pairs": ["FP"], "seeds": 1, "workers": 1, "progress": False}
    found = compare(other, ["mebqat"], folder=tmp_path / "c", **options)
    assert timeless(found) == timeless(compare(other, ["mebqat"], folder=tmp_path / "new", **options))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(done, tmp_path):
    """SIGKILL to all its processes, as soon as two jobs have their result; what is done then is not done again."""
    _, wanted = done
    code = (
        "from mebqat_lite import recipe\nfrom mebqat_lite.experiments import compare, setups\n"
        f"setup = setups.Setup(options={{'widths': (4, 4, 4, 4)}}, recipe=recipe.{SETUP.recipe!r})\n"
        f"compare.compare(setup, {NAMES}, pairs={PAIRS}, listed=['W2A2', 'W4A4'], seeds=1, workers=2,"
        f" folder={str(tmp_path)!r}, progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        while len(results(tmp_path)) < 2 and process.poll() is None:
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept, before = results(tmp_path), stamps(tmp_path)
    assert 2 <= len(kept) < 6
    assert timeless(run(tmp_path)) == timeless(wanted)
    after = stamps(tmp_path)
    same = {name for name in before if before[name] == after[name]}
    assert same >= {f"{name}.json" for name in kept}
    assert {name for name in after if name.endswith(".json")} - same == {
        f"{name}.json" for name in results(tmp_path) - kept
    }


def tick(path):
    while True:
        with path.open("a") as file:
            file.write("x\n")
        time.sleep(0.05)


@pytest.mark.slow
def test_no_worker_goes_on_for_a_sweep_that_was_killed(tmp_path):
    code = (
        "import functools, pathlib, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_sweeps import Sweep, Task, opened, tick\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "call = functools.partial(tick, folder / 'ticks')\n"
        "with opened('loky', 2) as stream:\n"
        "    Sweep(stream).run([Task(folder / 'a.json', call, 'k')])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        while not times(tmp_path / "ticks") and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        time.sleep(2)
        before = times(tmp_path / "ticks")
        time.sleep(0.5)
        assert times(tmp_path / "ticks") == before > 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_job_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys):
    words = "compare --steps 2 --warm-steps 1 --batch-size 16 --methods mebqat+lr=1e35,ptq_naive --pairs FP --seeds 1"
    command = [*words.split(), "--jobs", "1", "--out", str(tmp_path), "--retries", "0"]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mebqat-lite: 1 of 3 jobs failed: mebqat+lr-1e35-seed0: TrainingError: the loss is")
    assert line.endswith(f"what the others found is kept in {tmp_path}; the same command goes on with what is missing")
    assert results(tmp_path) == {"fp-seed0.start", "ptq_naive-seed0"} and not (tmp_path / "compare.json").exists()


def test_jobs_whose_start_failed_are_reported_as_such(tmp_path):
    """Seed 1's start cannot be written; seed 0 is not touched by that."""
    (tmp_path / "fp-seed1.safetensors").mkdir()
    with pytest.raises(SweepError) as caught:
        run(tmp_path, seeds=2, retries=0)
    text = str(caught.value)
    assert text.startswith("6 of 12 jobs failed: fp-seed1.start: IsADirectoryError")
    assert "mebqat-seed1, adabits-seed1, qat_w2a2-seed1, qat_w4a4-seed1, ptq_mse-seed1: the start of" in text
    assert len(results(tmp_path)) == 6 and "seed0" not in text
