"""Engines: the same numbers from all, workers that die, and what an engine cannot be."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import sweep_tasks
from sweep_tasks import contents, count, run, serial, task, timeless, times

from mebqat_lite import paths
from mebqat_lite.cli import main
from mebqat_lite.experiments import engines
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.engines import EngineError, opened
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.experiments.sweeps import Sweep

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


def test_the_engine_that_the_page_shows_runs(monkeypatch, tmp_path):
    page = (paths.checkout() / "benchmarks" / "README.md").read_text(encoding="utf-8")
    [block] = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ENGINES" in text]
    monkeypatch.setattr(engines, "ENGINES", dict(engines.ENGINES))
    exec(compile(block, "benchmarks/README.md", "exec"), {})
    with opened("mine", 1) as stream:
        assert Sweep(stream).run([task(tmp_path, "a")]) == {"a": 1.5}


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


@pytest.mark.slow
def test_no_worker_goes_on_for_a_sweep_that_was_killed(tmp_path):
    process = subprocess.Popen([sys.executable, sweep_tasks.__file__, str(tmp_path)], start_new_session=True)
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
