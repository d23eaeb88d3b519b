"""What is written where: only over a regular file of the same kind, and never by two runs at once."""

import multiprocessing
import os
import re
import signal
import socket
import threading
import time

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from interrupted_runs import DATA, FAST, net
from safetensors.torch import save

import mebqat_lite as mq
from mebqat_lite import CheckpointError, files
from mebqat_lite.datasets.base import Split
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.experiments import frozen
from mebqat_lite.experiments.compare import compare
from mebqat_lite.experiments.setups import Setup
from mebqat_lite.loop import Loop
from mebqat_lite.measure import plots
from mebqat_lite.measure.results import write_frame

# ---------------------------------------------------------------- only regular files are replaced


def a_link(path):
    path.with_name("target").write_text("kept")
    path.symlink_to(path.with_name("target"))


def a_broken_link(path):
    path.symlink_to(path.with_name("gone"))


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a whole path may be too long for a socket


IRREGULAR = {  # what lies there, and the words for it
    "link": (a_link, "a link to .*target"),
    "broken link": (a_broken_link, "a link to .*gone"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "pipe": (os.mkfifo, "a device, a pipe or a socket"),
    "socket": (a_socket, "a device, a pipe or a socket"),
}


def figure():
    made, axes = plt.subplots()
    axes.plot([1, 2])
    return made


WRITERS = {
    "model": lambda path: mq.save_model(net(), path),
    "json": lambda path: files.write_json(path, {"a": 1}),
    "table": lambda path: write_frame(path.rename(path.with_suffix(".csv")), pd.DataFrame({"a": [1]})),
    "figure": lambda path: plots.save(figure(), path),
    "checkpoint": lambda path: mq.fit(net(), DATA, "fp", FAST, path=path, progress=False),
}


@pytest.mark.parametrize("writer", list(WRITERS))
@pytest.mark.parametrize("what", list(IRREGULAR))
def test_what_is_no_regular_file_stays(writer, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out"
    make, words = IRREGULAR[what]
    make(path)
    before = path.lstat().st_mode
    with pytest.raises(FileExistsError, match=f"out.* is {words}, which is not overwritten: give the name of another"):
        WRITERS[writer](path)
    (path,) = tmp_path.glob("out*")
    assert path.lstat().st_mode == before and not list(tmp_path.glob(".*"))
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "kept"


def test_a_device_is_not_replaced():
    with pytest.raises(FileExistsError, match="/dev/null is a device, a pipe or a socket"):
        files.write_json("/dev/null", {})
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_a_folder_behind_a_link_is_written_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_json(tmp_path / "link" / "a.json", {"a": 1})
    assert (tmp_path / "real" / "a.json").is_file()


def test_a_part_that_a_killed_process_left_is_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        patch.setattr(files.os, "unlink", lambda *_: None)
        mq.save_model(net(), tmp_path / "a.safetensors")
    (part,) = tmp_path.iterdir()
    assert re.fullmatch(r"\.a\.safetensors\..+\.part", part.name)
    with pytest.raises(ValueError, match="no few-shot checkpoint among these"):
        frozen.sheet([tmp_path])
    with pytest.raises(FileNotFoundError):
        mq.load_model(tmp_path / "a.safetensors")
    mq.load_model(mq.save_model(net(), tmp_path / "a.safetensors"))


# ---------------------------------------------------------------- a checkpoint is replaced by its kind only


def write_training(path):
    mq.fit(net(), DATA, "fp", FAST, path=path, progress=False)


def write_onnx(path):
    pytest.importorskip("onnxscript")
    export_onnx(net("lsq"), path, "W4A4", (1, 8, 8), calibration=DATA.train.images)


CHECKPOINTS = {
    "model": WRITERS["model"],
    "packed": lambda path: mq.save_packed(net("lsq"), path, "W2A2", calibration=DATA.train.images),
    "training": write_training,
}
OTHERS = CHECKPOINTS | {
    "json": WRITERS["json"],
    "figure": WRITERS["figure"],
    "onnx": write_onnx,
    "text": lambda path: files.replace(path, b"a,b\n1,2\n"),
}


@pytest.mark.parametrize("there", list(CHECKPOINTS))
@pytest.mark.parametrize("new", list(OTHERS))
def test_a_checkpoint_is_replaced_by_its_own_kind_only(there, new, tmp_path):
    path = tmp_path / "out"
    CHECKPOINTS[there](path)
    before = path.read_bytes()
    if new == there:
        OTHERS[new](path)
        return
    with pytest.raises(FileExistsError, match=f"out is a {there} checkpoint, which is not overwritten: give the name"):
        OTHERS[new](path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_other_files_and_other_programs_checkpoints_are_replaced(tmp_path):
    path = tmp_path / "out"
    deep = save({}, metadata={"mebqat_lite": "[" * 100_000})
    for content in (b"", b"a,b\n", b'{"kind": "model"}', b"\x02\0\0\0\0\0\0\0{}", deep):
        path.write_bytes(content)
        mq.save_model(net(), path)
        assert mq.load_model(path)
        path.unlink()


# ---------------------------------------------------------------- one run at a time


def test_a_second_run_stops_and_names_the_first(tmp_path):
    path, refused = tmp_path / "run", []

    def second(_):
        if not refused:
            for method, where in (("fp", path), ("mebqat", tmp_path / "." / "run")):
                with pytest.raises(BlockingIOError) as caught:
                    mq.fit(net(), DATA, method, FAST, path=where, progress=False)
                refused.append(str(caught.value))
            mq.fit(net(), DATA, "fp", FAST, path=tmp_path / "other", progress=False)

    mq.fit(net(), DATA, "fp", FAST, path=path, progress=False, log=second)
    owner = rf"another run writes .*run \(process {os.getpid()} on .+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\)"
    assert len(refused) == 2 and all(re.match(f"{owner}: wait until it has ended", text) for text in refused)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "run"]
    assert files.read(path, "training")[1]["run"]["method"] == "fp"
    mq.fit(net(), DATA, "fp", FAST, path=path, progress=False)  # the same run again, when the first has ended


def test_the_first_run_s_warm_up_holds_the_name_of_the_whole_run(tmp_path):
    refused = []

    def second(_):
        with pytest.raises(BlockingIOError, match=r"another run writes .*run "):
            mq.fit(net(), DATA, "fp", FAST, path=tmp_path / "run", progress=False)
        refused.append(1)

    mq.fit(net(), DATA, "mebqat", FAST, warm_steps=2, path=tmp_path / "run", progress=False, log=second)
    assert len(refused) == 2 + FAST.steps


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_run_that_fails_frees_its_name(tmp_path, error):
    def fail(_):
        raise error

    with pytest.raises(error):
        mq.fit(net(), DATA, "fp", FAST, path=tmp_path / "run", progress=False, log=fail)
    assert not list(tmp_path.iterdir())
    other = Loop(net(), Split(*DATA.train), "fp", FAST)  # hooks of the failed run are gone: a new one can begin
    other.close()
    mq.fit(net(), DATA, "fp", FAST, path=tmp_path / "run", progress=False)


def hold(path):
    with files.locked(path):
        path.with_name("held").touch()
        time.sleep(60)


def test_a_killed_run_stops_nobody(tmp_path):
    path = tmp_path / "run"
    process = multiprocessing.get_context("spawn").Process(target=hold, args=[path])
    process.start()
    while not (tmp_path / "held").exists() and process.is_alive():
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match=f"process {process.pid} on "):
        mq.fit(net(), DATA, "fp", FAST, path=path, progress=False)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / ".run.lock").is_file()
    mq.fit(net(), DATA, "fp", FAST, path=path, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["held", "run"]


def test_of_many_who_ask_one_at_a_time_holds(tmp_path):
    inside, most, refused = [], [], []

    def work():
        for _ in range(40):
            try:
                with files.locked(tmp_path / "run"):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
            except BlockingIOError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) + len(refused) == 320 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["Windows", "a network drive"])
def test_without_locks_nothing_is_held(where, tmp_path, monkeypatch):
    if where == "Windows":
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with files.locked(tmp_path / "run"), files.locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_two_comparisons_in_one_folder_are_refused(tmp_path):
    how = {"seeds": 1, "folder": tmp_path, "engine": "serial", "progress": False}
    with (
        files.locked(tmp_path),
        pytest.raises(BlockingIOError, match=rf"another run writes {tmp_path} \(process {os.getpid()} on "),
    ):
        compare(Setup(), ["fp"], **how)
    assert not list(tmp_path.iterdir())


def test_a_model_is_no_training_checkpoint_to_go_on_from(tmp_path):
    path = mq.save_model(net(), tmp_path / "a")
    with pytest.raises((CheckpointError, FileExistsError), match="a is a model checkpoint"):
        mq.fit(net(), DATA, "fp", FAST, path=path, progress=False)
    assert torch.equal(mq.load_model(path)[0].state_dict()["stem.0.weight"], net().state_dict()["stem.0.weight"])
