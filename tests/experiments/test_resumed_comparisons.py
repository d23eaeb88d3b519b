"""Comparisons that go on where they were: after a kill, a change, a failed job or start."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from sweep_tasks import NAMES, PAIRS, SETUP, contents, run, timeless

from mebqat_lite.cli import main
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.sweeps import SweepError


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
        f"setup = setups.Setup({SETUP.data!r}, options={SETUP.options}, recipe=recipe.{SETUP.recipe!r})\n"
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


def test_a_job_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys):
    words = "compare --steps 8 --warm-steps 1 --batch-size 16 --methods mebqat+lr=1e35,ptq_naive --pairs FP --seeds 1"
    command = [*words.split(), "--jobs", "1", "--out", str(tmp_path), "--retries", "0"]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("mebqat-lite: 1 of 3 jobs failed: mebqat+lr-1e35-seed0: TrainingError: the loss is")
    assert line.endswith(f"what the others found is kept in {tmp_path}; the same command goes on with what is missing")
    assert results(tmp_path) == {"start-fp-seed0", "ptq_naive-seed0"} and not (tmp_path / "compare.json").exists()


def test_jobs_whose_start_failed_are_reported_as_such(tmp_path):
    """Seed 1's start cannot be written; seed 0 is not touched by that."""
    (tmp_path / "start-fp-seed1.safetensors").mkdir()
    with pytest.raises(SweepError) as caught:
        run(tmp_path, seeds=2, retries=0)
    text = str(caught.value)
    assert text.startswith("6 of 12 jobs failed: start-fp-seed1: FileExistsError")
    lost = "mebqat-seed1, adabits-seed1, qat_w2a2-seed1, qat_w4a4-seed1, ptq_mse-seed1"
    assert f"{lost}: the network that they start from failed" in text
    assert len(results(tmp_path)) == 6 and "seed0" not in text
