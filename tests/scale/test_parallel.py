"""Two processes that share each batch: the gradients of one, runs that resume, one writer, and errors of one of them.

The processes are real and talk by gloo on the CPU; they are started once, by the fixture `found`.
"""

import json
import sys

import pytest
import torch
import two_processes
from two_processes import (
    DATA,
    NORMS,
    REFUSED,
    RESUMED,
    RUNS,
    STEPS,
    assert_close,
    loop_of,
    net,
    run,
    run_of,
    state,
    step,
    through_norm,
)

from mebqat_lite import files, fit
from mebqat_lite.files import CheckpointError
from mebqat_lite.scale.speed import Fast
from mebqat_lite.switching.state import norm_layers

SAME = [name for name in RUNS if name != "dropout"]  # as one process


# --- what they found -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The tensors and the words of both processes."""
    folder = tmp_path_factory.mktemp("two")
    ended = run(sys.executable, two_processes.__file__, str(folder), cwd=folder)
    assert ended.returncode == 0, ended.stderr
    tensors = [files.read(folder / f"{rank}.tensors", "found")[0] for rank in (0, 1)]
    return folder, tensors, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def part(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@pytest.mark.slow
def test_there_are_two_processes_on_the_cpu(found):
    for rank, said in enumerate(found[2]):
        assert (said["rank"], said["count"], said["device"]) == (rank, 2, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_a_step_has_the_gradients_of_one_process(found, name):
    alone = step(loop_of(name))
    assert sum(n.startswith("grad/") for n in alone) > 5
    for tensors in found[1]:
        assert_close(part(tensors, f"step/{name}/"), alone)


@pytest.mark.slow
def test_running_statistics_moved_and_are_those_of_the_whole_batch(found):
    before = state(net())
    moved = part(found[1][0], "step/mebqat dorefa/state/")
    names = [f"{norm}.running_var" for norm in norm_layers(net())]
    assert len(names) == 4 and not any(torch.equal(moved[name], before[name]) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_a_run_ends_as_that_of_one_process(found, name):
    alone = run_of(name)
    assert len(alone["losses"]) == STEPS
    for tensors in found[1]:
        assert_close(part(tensors, f"run/{name}/"), alone)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_every_batch_norm_is_that_of_the_whole_batch(found, name):
    alone = through_norm(name)
    parts = [part(tensors, f"norm/{name}/") for tensors in found[1]]
    both = {n: torch.cat([p[n] for p in parts]) if n in ("out", "x") else parts[0][n] for n in parts[0]}
    assert_close(both, alone, 1e-12)


@pytest.mark.slow
def test_both_processes_have_the_same_bits(found):
    first, second = found[1]
    shared = [n for n in first if not n.startswith("norm/")]
    assert len(shared) > 100 and [n for n in shared if not torch.equal(first[n], second[n])] == []


@pytest.mark.slow
def test_all_start_from_the_values_of_the_first(found):
    assert_close(part(found[1][1], "copied/"), state(net(seed=0)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_as_the_unbroken_one(found, name):
    for tensors in found[1]:
        assert_close(part(tensors, f"resumed/{name}/"), part(tensors, f"run/{name}/"), 0)


@pytest.mark.slow
def test_dropout_differs_between_processes(found):
    """With one mask for both the states that a checkpoint keeps would be the same."""
    states = part(files.read(found[0] / "dropout", "training")[0], "random/")
    assert states.keys() == {"cpu", "cpu/1"} and not torch.equal(states["cpu"], states["cpu/1"])


@pytest.mark.slow
def test_one_process_writes_and_logs(found):
    runs = [name for name in RESUMED for _ in range(3)]  # at steps 2, 4 and 6
    assert [said["written"] for said in found[2]] == [[*runs, "warm.fp", "warm"], []]
    assert [said["steps"] for said in found[2]] == [[1, 2, 3, 4, 5], []]


@pytest.mark.slow
def test_a_run_is_not_resumed_on_another_number_of_devices(found):
    words = "trained with 2 devices, this run is with plain passes: take the same"
    with pytest.raises(CheckpointError, match=words):
        run_of("dropout", path=found[0] / "dropout")


def test_a_checkpoint_from_before_there_were_devices_is_resumed(tmp_path):
    path = tmp_path / "a.training"
    options = {"steps": 2, "batch_size": 16, "path": path, "progress": False}
    fit(net(), DATA, **options)
    tensors, meta = files.read(path, "training")
    assert meta["speed"] == {} and "random/cpu" in tensors
    for older in ({"amp": False, "compile": False, "vectorized": False, "devices": 1}, {"amp": False}):
        files.write(path, tensors, {**meta, "speed": older})
        fit(net(), DATA, **options)


@pytest.mark.slow
def test_a_bad_image_of_one_process_stops_both_before_the_update(found):
    for said in found[2]:
        assert "the loss is nan at step 2, FP: lower lr" in said["bad"]["message"] and said["bad"]["differ"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shared_is_refused(found, name):
    for said in found[2]:
        assert REFUSED[name][2] in said["refused"][name]


@pytest.mark.slow
def test_a_checkpoint_that_one_machine_does_not_see_is_refused(found):
    for rank, said in enumerate(found[2]):
        assert f"only-{rank} must be where all processes read it" in said["refused"]["a file of one"]


@pytest.mark.slow
def test_a_file_that_another_run_writes_is_refused_in_both(found):
    for said in found[2]:
        assert "another run writes" in said["refused"]["a file of another run"]


@pytest.mark.slow
def test_a_writer_that_fails_fails_in_both(found):
    assert all("No space left on device" in said["full"] for said in found[2])


@pytest.mark.slow
def test_a_process_that_fails_alone_does_not_leave_the_other_waiting(found):
    first, second = (said["alone"] for said in found[2])
    assert second == "rank 1 of 2: ZeroDivisionError: division by zero"
    assert first.startswith("rank 0 of 2: ")


@pytest.mark.slow
def test_nothing_of_the_processes_stays_on_the_model(found):
    assert not any(said["hook"] for said in found[2])


# --- the command line --------------------------------------------------------------------------------------------


def test_a_fabric_that_was_not_launched_is_refused():
    from lightning_fabric import Fabric

    with pytest.raises(ValueError, match=r"call fabric\.launch\(\) before fit"):
        fit(net(), DATA, passes=Fast(fabric=Fabric(accelerator="cpu", devices=2, strategy="ddp")))
