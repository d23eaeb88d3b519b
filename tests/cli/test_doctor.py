"""Every check passes on a machine that runs the tests, and names its cure when the thing is broken."""

import os
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from mebqat_lite import paths
from mebqat_lite.cli import doctor

ROOT = paths.checkout()

NAMES = ["Python", "PyTorch", "device", "JupyterLab", "digits", "data", "disk"]


def raises(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def failed(name: str) -> doctor.Check:
    """The named check, which must be the only one that failed."""
    broken = [check for check in doctor.checks() if not check.ok]
    assert [check.name for check in broken] == [name], broken
    assert broken[0].cure and str(broken[0]).startswith(f"[FAIL] {name}: ")
    return broken[0]


def test_all_is_well_here(capsys):
    assert doctor.main() == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"[OK] {name}" for name in NAMES]


@pytest.mark.parametrize("folder", [".", "notebooks"])
def test_text_holds_no_path_of_this_machine(capsys, monkeypatch, folder):
    monkeypatch.delenv("MEBQAT_DATA", raising=False)
    monkeypatch.chdir(ROOT / folder)
    doctor.main()
    text = capsys.readouterr().out
    assert str(ROOT) not in text and str(Path.home()) not in text
    data = "data" if folder == "." else "../data"
    assert f"in {data}, downloads to {data}" in text


def test_main_reports_a_failure(capsys, monkeypatch):
    good, bad = ("one", lambda: "fine", "none"), ("two", raises(ValueError("bad")), "mend it")
    monkeypatch.setattr(doctor, "CHECKS", [good, bad])
    assert doctor.main() == 1
    assert capsys.readouterr().out == "[OK] one: fine\n[FAIL] two: ValueError: bad -> mend it\n"


def test_an_unexpected_error_is_one_line_without_paths(monkeypatch):
    error = OSError(f"{ROOT / 'x.so'}:\n  undefined symbol, see {Path.home() / 'log'}")
    monkeypatch.setattr(doctor, "CHECKS", [("lib", raises(error), "mend it")])
    monkeypatch.chdir(ROOT / "tests")
    detail = doctor.checks()[0].detail
    assert "\n" not in detail and str(ROOT) not in detail and "../x.so" in detail


def test_tidy_survives_a_folder_that_is_gone(monkeypatch):
    monkeypatch.setattr(Path, "cwd", raises(FileNotFoundError()))
    assert doctor.tidy("a\n b") == "a b"


def test_old_python(monkeypatch):
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (99, 0))
    assert "3.11" in failed("Python").cure


def test_mismatched_torchvision(monkeypatch):
    error = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr("torchvision.ops.nms", raises(error))
    check = failed("PyTorch")
    assert "nms does not exist" in check.detail and "torch torchvision" in check.cure


def test_torchvision_that_answers_wrongly(monkeypatch):
    import torch

    monkeypatch.setattr("torchvision.ops.nms", lambda *args: torch.tensor([0, 1]))
    assert "[0, 1]" in failed("PyTorch").detail


def test_a_gpu_that_cannot_compute(monkeypatch):
    monkeypatch.setattr("torch.ones", raises(RuntimeError("no kernel image is available")))
    check = failed("device")
    assert "no kernel image" in check.detail and "CUDA_VISIBLE_DEVICES" in check.cure


@pytest.mark.parametrize("package", ["jupyterlab", "ipywidgets", "jupyterlab_widgets"])
def test_missing_lab(monkeypatch, package):
    real = metadata.version

    def version(name):
        if name == package:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    check = failed("JupyterLab")
    assert check.detail == f"{package} is not installed"
    assert check.cure == 'pip install "mebqat_lite[lab]"'


def test_missing_widget_manager(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_labextensions", lambda: [tmp_path])
    assert "blank" in failed("JupyterLab").detail


def test_broken_digits(monkeypatch):
    monkeypatch.setattr("sklearn.datasets.load_digits", raises(ImportError("no scipy")))
    check = failed("digits")
    assert check.detail == "ImportError: no scipy" and "scikit-learn" in check.cure


def test_nothing_shipped(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "shipped", tmp_path.joinpath)
    check = failed("data")
    assert "missing or empty" in check.detail and "reinstall" in check.cure


def test_downloads_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", raises(PermissionError(13, "Permission denied")))
    check = failed("data")
    assert check.detail.endswith("cannot be written (Permission denied)") and "MEBQAT_DATA" in check.cure


def test_downloads_that_are_a_file(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEBQAT_DATA", str(tmp_path / "file"))
    assert "cannot be written" in failed("data").detail


def test_a_folder_for_downloads_may_be_new(monkeypatch, tmp_path):
    monkeypatch.setenv("MEBQAT_DATA", str(tmp_path / "new" / "folder"))
    assert all(check.ok for check in doctor.checks())
    assert not (tmp_path / "new").exists()


def test_full_disk(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage(9e9, 8.7e9, 3e8))
    check = failed("disk")
    assert "0.3 GB free" in check.detail and "1 GB" in check.cure


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "ipywidgets"])
def test_the_doctor_starts_when_a_library_cannot_be_imported(tmp_path, library):
    broken = "raise RuntimeError('operator torchvision::nms does not exist')\n"
    (tmp_path / f"{library}.py").write_text(broken)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", "import sys; from mebqat_lite.cli.doctor import main; sys.exit(main())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "[OK] Python" in done.stdout, done.stderr
    if library == "torchvision":
        assert "[FAIL] PyTorch: RuntimeError: operator torchvision::nms does not exist" in done.stdout
