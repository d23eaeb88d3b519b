"""The package installs by pip, conda and make; a wheel carries what is shipped and nothing else."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
import release
import yaml

import mebqat_lite
from mebqat_lite.cli import selftest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch", "playwright": "playwright-python"}
CONDA_NAMES |= {"lightning-fabric": "lightning"}  # the latter as a part of it


def text(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def floors(requirements: list[str]) -> dict[str, str]:
    """Name -> least version, the project's references to its own extras resolved."""
    found = {}
    for requirement in requirements:
        if own := re.fullmatch(r"mebqat_lite\[(.+)\]", requirement):
            for extra in own[1].split(","):
                found |= floors(PROJECT["optional-dependencies"][extra])
            continue
        name, version = requirement.partition(";")[0].split(">=")
        found[name] = version
    return found


# ---------------------------------------------------------------- requirements


def test_every_requirement_is_a_floor_and_no_more():
    extras = PROJECT["optional-dependencies"]
    conda = [line for line in yaml.safe_load(text("environment.yml"))["dependencies"] if isinstance(line, str)]
    for requirement in chain(PROJECT["dependencies"], *extras.values(), conda):
        if requirement != "pip" and not requirement.startswith("mebqat_lite["):
            python = r"(; python_version < '[\d.]+')?"  # for what comes late for a new Python
            assert re.fullmatch(rf"[A-Za-z_-]+>=[\d.]+{python}", requirement), requirement
    assert PROJECT["requires-python"] == ">=3.11"


def test_conda_environment_is_in_step():
    environment = yaml.safe_load(text("environment.yml"))
    *packages, pip = environment["dependencies"]
    wanted = floors([*PROJECT["dependencies"], "mebqat_lite[lab,test]"])
    wanted = {CONDA_NAMES.get(name, name): version for name, version in wanted.items()}
    assert environment["name"] == "mebqat_lite" and environment["channels"] == ["conda-forge"]
    assert pip == {"pip": ["-e ."]}
    packages.remove("pip")
    assert floors(packages) == {"python": PROJECT["requires-python"].removeprefix(">=")} | wanted


def test_the_extra_all_is_all():
    extras = PROJECT["optional-dependencies"]
    everything = floors([line for name, lines in extras.items() if name != "all" for line in lines])
    assert floors(extras["all"]) == everything


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Its ``dist`` has a wheel, built from a copy (a build writes beside its sources) with downloads among the data."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT / "mebqat_lite", source / "mebqat_lite", ignore=LITTER)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in SHIPPED + DOWNLOADED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("data")
    release.build_wheel(source, folder / "dist")
    return folder


LITTER = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
SHIPPED = ["README.md", "a.json", "glyphs.npz", "glyph_classes.npz", "checkpoints/a.safetensors"]
SHIPPED = [f"data/{name}" for name in SHIPPED]
DOWNLOADED = [f"data/{name}" for name in ("cifar10/batch.bin", "cifar10/meta.json", "set.zip", "checkpoints/half.part")]


@pytest.mark.slow
def test_wheel_carries_the_package_and_what_is_shipped_and_no_downloads(folder):
    package = (path.relative_to(ROOT).as_posix() for path in (ROOT / "mebqat_lite").rglob("*.*"))
    sources = [name for name in package if not {"__pycache__", ".ipynb_checkpoints"} & set(name.split("/"))]
    names = zipfile.ZipFile(release.wheel_of(folder / "dist")).namelist()
    assert len(names) > 150 and release.differences(names, [*sources, *SHIPPED]) == []


@pytest.mark.slow
def test_wheel_describes_itself_and_an_index_can_show_its_page(folder):
    assert release.metadata(folder).startswith(f"mebqat_lite {mebqat_lite.__version__}, ")
    assert release.links_to_files(text("README.md"))  # which setup.py has taken out
    wheel = zipfile.ZipFile(release.wheel_of(folder / "dist"))
    [page] = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    assert set(re.findall(r"\]\(https://.*?\)", page)) == set(re.findall(r"\]\(https://.*?\)", text("README.md")))


@pytest.mark.slow
def test_installed_wheel_finds_its_data_away_from_the_checkout(folder):
    release.installation(folder)
    code = "from mebqat_lite.paths import shipped, downloads; print(shipped()); print(downloads())"
    shipped, downloads = map(Path, release.installed(folder, "python", "-c", code).splitlines())
    assert shipped.is_relative_to(folder / "environment") and (shipped / "a.json").is_file()
    assert downloads.is_relative_to(folder / "home")


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("data/README.md", False),
        ("data/checksums.json", False),
        ("data/glyphs.npz", False),
        ("data/glyph_classes.npz", False),
        ("data/checkpoints/digits.safetensors", False),
        ("data/cifar-10-batches-py/batch_1", True),
        ("data/train_32x32.mat", True),
        ("data/omniglot/meta.json", True),
        ("site/assets.json", False),
        ("site/assets/mathjax.js", True),
        ("results/run.json", True),
        (".venv/bin/python", True),
    ],
)
def test_git_tracks_what_is_shipped_only(tmp_path, path, ignored):
    if shutil.which("git") is None:
        pytest.skip("no git here")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    done = subprocess.run(["git", "-C", str(tmp_path), "check-ignore", "-q", path], check=False)
    assert (done.returncode == 0) == ignored


# ---------------------------------------------------------------- citation


def test_citation_names_the_paper_and_this_version():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
    assert release.agreed(mebqat_lite.__version__, text("CITATION.cff"), text("CHANGELOG.md"))
    (paper,) = citation["references"]
    assert paper["title"].startswith("Bitwidth-Adaptive Quantization-Aware Neural Network Training")
    assert [author["family-names"] for author in paper["authors"]] == ["Youn", "Song", "Kim", "Bahk"]
    assert paper["url"].endswith("2207.10188") and paper["year"] == 2022


# ---------------------------------------------------------------- make and CI

FAKE = """#!/bin/sh
# Stands for a Python: `-c` and `-m pip` exit with the given status, `-m venv` copies this script.
case "$1 $2" in
  -c*) exit {status} ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") exit {pip} ;;
esac
"""
NAMES = ("python3.13", "python3.12", "python3.11", "python3")
posix = pytest.mark.skipif(
    os.name != "posix" or shutil.which("make") is None, reason="the Makefile is for Linux and macOS"
)


@pytest.fixture
def make(tmp_path):
    """Runs make in an empty copy, where every Python is a stand-in: ``make("lab", recent=("python3",))``."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    tools = tmp_path / "tools"
    tools.mkdir()

    def run(*words: str, recent: tuple[str, ...] = NAMES, pip: int = 0) -> subprocess.CompletedProcess[str]:
        for name in NAMES:
            (tools / name).write_text(FAKE.format(status=0 if name in recent else 1, pip=pip))
            (tools / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        for variable in (
            "MAKEFLAGS",
            "MAKELEVEL",
            "PYTHON",
            "TORCH_INDEX",
            "ARGS",
        ):  # this may itself run under make
            environment.pop(variable, None)
        command = ["make", "-C", str(tmp_path), "UV=", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    run.folder = tmp_path
    return run


@posix
def test_make_alone_lists_the_targets(make):
    done = make()
    assert done.returncode == 0
    for target in ("demo", "lab", "test", "bench", "site", "site-assets", "release-check", "lint", "clean", "help"):
        assert re.search(rf"^  {target} +\S", done.stdout, re.M), target


@posix
@pytest.mark.parametrize(
    ("recent", "chosen"),
    [(NAMES, "python3.13"), (("python3.11", "python3"), "python3.11"), (("python3",), "python3")],
)
def test_make_takes_the_first_python_that_is_recent_enough(make, recent, chosen):
    done = make("-n", "demo", recent=recent)
    assert f'"{chosen}" -m venv .venv' in done.stdout
    assert '-m pip install -e "."' in done.stdout


@posix
@pytest.mark.parametrize(("target", "wanted"), [("demo", "."), ("lab", ".[lab]"), ("test", ".[lab,test]")])
def test_each_target_installs_what_it_needs_and_no_more(make, target, wanted):
    done = make("-n", target)
    assert re.findall(r'pip install -e "(.*)"', done.stdout) == [wanted]


@posix
def test_a_larger_set_up_serves_smaller_targets_and_not_the_other_way_round(make):
    assert make(".venv/.all").returncode == 0
    assert "pip install" not in make("-n", "demo", "lab", "test").stdout
    shutil.rmtree(make.folder / ".venv")
    assert make(".venv/.core").returncode == 0
    assert "pip install" not in make("-n", "demo").stdout and "[lab]" in make("-n", "lab").stdout


@posix
def test_pytorch_may_come_from_another_place(make):
    lines = make("-n", "demo", "TORCH_INDEX=https://example.org/cpu").stdout.splitlines()
    [first, second] = [line for line in lines if "pip install" in line]
    assert first.endswith('pip install torch torchvision --index-url "https://example.org/cpu"')
    assert second.endswith('pip install -e "."')


@posix
@pytest.mark.parametrize("words", [(), ("PYTHON=python3.12",), ("UV=uv", "PYTHON=python3.12")])
def test_make_refuses_an_old_python_in_one_line(make, tmp_path, words):
    done = make("demo", *words, recent=())
    assert done.returncode != 0
    message = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(message) == 1 and message[0].startswith("mebqat_lite needs Python 3.11 or newer")
    assert not (tmp_path / ".venv").exists()


@posix
def test_a_failed_installation_leaves_no_stamp_and_is_repeated(make, tmp_path):
    stamp = tmp_path / ".venv" / ".core"
    assert make(".venv/.core", pip=1).returncode != 0
    assert not stamp.exists()
    shutil.rmtree(tmp_path / ".venv")  # the stand-in there would fail for ever
    first = make(".venv/.core")
    assert first.returncode == 0 and stamp.exists() and "minutes" in first.stdout
    assert "up to date" in make(".venv/.core").stdout


@posix
def test_make_passes_options_on(make):
    done = make("-n", "demo", "bench", "ARGS=--seeds 5")
    assert "mebqat-lite demo --seeds 5" in done.stdout and "-m benchmarks --seeds 5" in done.stdout


@posix
def test_make_uses_uv_where_it_is(make):
    done = make("-n", "test", "UV=uv")
    assert '"uv" venv --seed' in done.stdout and '"uv" pip install' in done.stdout
    assert ".venv/bin/mebqat-lite test" in done.stdout


def test_ci_runs_make_test_and_wants_the_browser():
    script = ROOT / ".ci" / "run"
    assert os.name != "posix" or os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nmake test\n" in script.read_text() and "export MEBQAT_REQUIRE_BROWSER=1" in script.read_text()


# ---------------------------------------------------------------- mebqat-lite test


def test_stage_names_choose_and_the_rest_goes_to_pytest():
    chosen, options = selftest.split(["lint", "tests", "-x", "-k", "lint"])
    assert [stage.name for stage in chosen] == ["lint", "tests"] and options == ["-x", "-k", "lint"]
    assert selftest.split(["-x"]) == (list(selftest.STAGES), ["-x"])
    assert selftest.split(["lint", "quick"]) == ([selftest.STAGES[0], selftest.QUICK], [])


def test_the_quick_tests_are_a_part_of_all(make):
    everything = next(stage for stage in selftest.STAGES if stage.name == "tests")
    assert selftest.QUICK not in selftest.STAGES  # they would run twice
    assert selftest.QUICK.command[:-1] == everything.command[:-1] and "not slow" in selftest.QUICK.command[-1]
    assert "mebqat-lite test lint format types quick" in make("-n", "check").stdout


def test_all_stages_run_and_one_failure_fails_the_whole(monkeypatch, capsys):
    calls = []

    def run(command, cwd, env, check):
        calls.append((command, env.get("OMP_NUM_THREADS")))
        return subprocess.CompletedProcess(command, 1 if "mypy" in command else 0)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(selftest.subprocess, "run", run)
    assert selftest.main(["lint", "types", "tests", "browser", "-x"]) == 1
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split("(")[0].split() for line in lines] == [
        ["[OK]", "lint"],
        ["[FAIL]", "types"],
        ["[OK]", "tests"],
        ["[OK]", "browser"],
    ]
    assert [threads for _, threads in calls] == [None, None, "1", "1"]
    assert [command[-1] for command, _ in calls] == [".", "mebqat_lite", "-x", "-x"]
    assert all(command[:2] == [sys.executable, "-m"] for command, _ in calls)


@pytest.mark.parametrize(("options", "passed"), [([], False), (["-k", "bits"], True)])
def test_a_stage_without_tests_fails_unless_options_narrow_it(monkeypatch, options, passed):
    monkeypatch.setattr(
        selftest.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, selftest.NO_TESTS),
    )
    assert selftest.run(selftest.STAGES[-1], options)[0] is passed


def test_no_checkout_or_no_tools_is_one_clear_message(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "LIBRARIES", ["surely_not_installed"])
    assert selftest.main([]) == 2
    assert capsys.readouterr().err == (
        'Not installed: surely_not_installed. In the checkout: pip install -e ".[test]"\n'
    )
    monkeypatch.setattr(selftest.paths, "checkout", lambda: None)
    assert selftest.main([]) == 2
    assert "make test" in capsys.readouterr().err
