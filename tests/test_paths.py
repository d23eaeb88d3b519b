"""Where files lie, from a checkout and from an installed wheel, on each platform."""

from pathlib import Path

import pytest

from mebqat_lite import paths

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The package as a wheel installs it: no pyproject.toml beside it, the shipped folder inside."""
    package = tmp_path / "site-packages" / "mebqat_lite"
    (package / "_data").mkdir(parents=True)
    monkeypatch.setattr(paths, "PACKAGE", package)
    monkeypatch.delenv("MEBQAT_DATA", raising=False)
    return package


def test_this_is_a_checkout():
    assert paths.checkout() == ROOT
    assert paths.shipped() == ROOT / "data"
    assert paths.shipped("README.md").is_file()


def test_shipped_joins_its_parts():
    assert paths.shipped("checkpoints", "a.safetensors") == ROOT / "data" / "checkpoints" / "a.safetensors"


def test_wheel_ships_inside_the_package(wheel):
    assert paths.checkout() is None
    assert paths.shipped("a.json") == wheel / "_data" / "a.json"


def test_a_project_file_among_installed_packages_is_no_checkout(wheel):
    (wheel.parent / "pyproject.toml").touch()
    assert paths.checkout() is None


def test_the_variable_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("MEBQAT_DATA", str(tmp_path))
    assert paths.downloads() == tmp_path


def test_the_variable_may_start_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MEBQAT_DATA", "~/sets")
    assert paths.downloads() == tmp_path / "sets"


@pytest.mark.parametrize("value", [None, ""])
def test_downloads_of_a_checkout(monkeypatch, value):
    monkeypatch.delenv("MEBQAT_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("MEBQAT_DATA", value)
    assert paths.downloads() == ROOT / "data"


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_downloads_of_a_wheel(wheel, monkeypatch, tmp_path, platform, variable, expected):
    monkeypatch.setattr(paths.sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if variable:
        monkeypatch.delenv(variable, raising=False)
    assert paths.downloads() == tmp_path / expected / "mebqat_lite"
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "chosen"))
        assert paths.downloads() == tmp_path / "chosen" / "mebqat_lite"


def test_results_lie_in_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert paths.results() == Path.cwd() / "results"
    assert not paths.results().exists(), "asking where must not make the folder"
