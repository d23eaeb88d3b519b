"""Is the release whole? ``python tests/release.py`` builds it, installs it elsewhere, and runs it there.

Both archives are made of the last commit: the source archive, and the wheel out of the source archive. The wheel is
installed into a new environment, which finds all other packages in the present one, so that PyTorch is not downloaded
again. This shows that the archives are whole, and that what is installed needs no repository. It does not show that
the dependencies can be downloaded, nor that those of the package are enough without those of the tests.

If all checks pass, both archives lie in the folder ``dist``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

import yaml

import mebqat_lite
from mebqat_lite.cli.doctor import Problem, attempt

ROOT = Path(__file__).resolve().parent.parent
BIN = "Scripts" if os.name == "nt" else "bin"
LEFT = {"data/demo.png"}  # the README's picture, which an index does not show
PNG = b"\x89PNG\r\n\x1a\n"

# ---------------------------------------------------------------- what must agree


def agreed(version: str, citation: str, changes: str) -> str:
    """The version and the date of the release, such as ``0.2.0 - 2026-11-27``.

    Args:
        version: of the package.
        citation: the text of CITATION.cff.
        changes: the text of CHANGELOG.md. Changes that are not released yet stand under ``## Unreleased``.

    Raises:
        Problem: they name different versions or dates.
    """
    newest = next(iter(re.findall(r"(?m)^## (?!Unreleased)(.*)", changes)), "nothing")
    cited = yaml.safe_load(citation)
    cited = f"{cited['version']} - {cited['date-released']}"
    if newest != cited or newest.partition(" - ")[0] != version:
        raise Problem(f"mebqat_lite.__version__ is {version}, CITATION.cff says {cited}, CHANGELOG.md {newest}")
    return newest


def differences(names: Iterable[str], sources: Iterable[str]) -> list[str]:
    """What a wheel lacks, and what it has beyond the repository.

    Args:
        names: the files of the wheel.
        sources: the files of the repository, relative to its root.
    """
    held = {name for name in names if ".dist-info/" not in name}
    wanted = {name for name in sources if name.startswith("mebqat_lite/")}
    wanted |= {f"mebqat_lite/_{name}" for name in sources if name.startswith("data/") and name not in LEFT}
    lacks = [f"{name} is not in it" for name in sorted(wanted - held)]
    return lacks + [f"{name} is not of the repository" for name in sorted(held - wanted)]


def links_to_files(page: str) -> list[str]:
    """The targets of the links of a page that lead to files beside it: a package index has none."""
    return re.findall(r"\]\((?!https://|#)([^)]+)\)", page)


# ---------------------------------------------------------------- how it is done


def run(*command: str | Path, folder: Path = ROOT, environment: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; a Problem with its last words if it fails."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Problem(f"exit status {done.returncode}: {(done.stderr or done.stdout)[-400:]}")
    return done.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of ``source`` without network, and return its path."""
    pip = (sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-q")
    run(*pip, "-w", folder)
    return wheel_of(folder)


def wheel_of(folder: Path) -> Path:
    """The one wheel in a folder."""
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Problem(f"there are {len(wheels)} wheels, not one")
    return wheels[0]


def installed(folder: Path, program: str, *words: str) -> str:
    """Run a program of the new environment in an empty folder, at a home of its own; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MEBQAT_DATA")}
    environment |= {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "home")}
    environment["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))  # parts of JupyterLab that no import finds
    return run(folder / "environment" / BIN / program, *words, folder=folder / "empty", environment=environment)


# ---------------------------------------------------------------- the checks


def commit(folder: Path) -> str:
    """Everything is committed."""
    if changed := run("git", "status", "--porcelain").splitlines():
        raise Problem(f"{len(changed)} changed or new, such as {changed[0][3:]}")
    return run("git", "log", "-1", "--format=%h %s")


def version(folder: Path) -> str:
    """The package, its citation and its list of changes name one version and one date."""
    citation, changes = (ROOT.joinpath(name).read_text(encoding="utf-8") for name in ("CITATION.cff", "CHANGELOG.md"))
    if "## Unreleased" in changes:
        raise Problem("CHANGELOG.md has changes under Unreleased")
    return agreed(mebqat_lite.__version__, citation, changes)


def archives(folder: Path) -> str:
    """Both archives can be built."""
    run("git", "archive", "-o", folder / "commit.tar", "HEAD")
    shutil.unpack_archive(folder / "commit.tar", folder / "commit", filter="data")
    code = "import setuptools.build_meta as backend, sys; backend.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, folder / "dist", folder=folder / "commit")
    [source] = (folder / "dist").glob("*.tar.gz")
    shutil.unpack_archive(source, folder / "source", filter="data")
    wheel = build_wheel(folder / "source" / source.name.removesuffix(".tar.gz"), folder / "dist")
    return ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in (source, wheel))


def contents(folder: Path) -> str:
    """The wheel has the package with the files of its widgets, all shipped files, and nothing else."""
    names = zipfile.ZipFile(wheel_of(folder / "dist")).namelist()
    if found := differences(names, run("git", "ls-files", "-z").split("\0")):
        raise Problem(f"{len(found)} files differ, such as: {found[0]}")
    data = sum(name.startswith("mebqat_lite/_data/") for name in names)
    return f"{len(names)} files, {data} of them shipped data"


def metadata(folder: Path) -> str:
    """The wheel describes itself as pyproject.toml does, and its page can be shown by a package index."""
    wheel = wheel_of(folder / "dist")
    [name] = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    said = importlib.metadata.PathDistribution(zipfile.Path(wheel, name.removesuffix("METADATA"))).metadata
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = [line for line in said.get_all("Requires-Dist", []) if "extra ==" not in line]
    ours = (project["name"], mebqat_lite.__version__, project["requires-python"], project["dependencies"])
    if (theirs := (said["Name"], said["Version"], said["Requires-Python"], needs)) != ours:
        raise Problem(f"it says {theirs}, and not {ours}")
    if links := links_to_files(said.get_payload()):
        raise Problem(f"{len(links)} links of its page lead nowhere, such as {links[0]}")
    if importlib.util.find_spec("twine"):
        run(sys.executable, "-m", "twine", "check", "--strict", *(folder / "dist").iterdir())
    return f"{said['Name']} {said['Version']}, {len(needs)} dependencies, a page without dead links"


def installation(folder: Path) -> str:
    """The wheel can be installed, and is what is imported."""
    environment = folder / "environment"
    venv.create(environment, symlinks=os.name != "nt")
    python = environment / BIN / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q")
    run(*pip, wheel_of(folder / "dist"))
    [site] = environment.rglob("site-packages")
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "others.pth").write_text("\n".join(others))  # only now: pip would take a package there for installed
    (folder / "empty").mkdir()
    (folder / "home").mkdir()
    found = Path(installed(folder, "python", "-c", "import mebqat_lite; print(mebqat_lite.__file__)").strip())
    if not found.is_relative_to(site):
        raise Problem(f"what is imported is {found}")
    return f"imported from {found.parent.relative_to(folder)}"


def usage(folder: Path) -> str:
    """The command is there."""
    return installed(folder, "mebqat-lite", "--help").splitlines()[0]


def doctor(folder: Path) -> str:
    """The installation finds all that it needs."""
    return f"{len(installed(folder, 'mebqat-lite', 'doctor').splitlines())} checks"


def demo(folder: Path) -> str:
    """The main job runs, and writes its results where it was started."""
    installed(folder, "mebqat-lite", "demo", "--seeds", "1")
    outcome = json.loads((folder / "empty" / "results" / "demo.json").read_text())
    if not (folder / "empty" / "results" / "demo.png").read_bytes().startswith(PNG):
        raise Problem("its figure is no PNG file")
    accuracy = outcome["accuracy"]["mebqat_in_turn"]
    return ", ".join(f"{pair} {accuracy[pair]['mean']:.1f} %" for pair in ("W1A1", "FP")) + ", one seed"


CHECKS = (
    (commit, "git commit, or git stash"),
    (version, "give all of them one version and one date"),
    (archives, "build it by hand, in a fresh clone: python -m pip wheel --no-deps ."),
    (contents, "mend the patterns in pyproject.toml"),
    (metadata, "mend pyproject.toml, or what setup.py makes of the README"),
    (installation, "mend what comes before"),
    (usage, "mend what comes before"),
    (doctor, "mebqat-lite doctor"),
    (demo, "mebqat-lite demo --seeds 1 --traceback"),
)


def main() -> int:
    """Print a line for each check and a summary; 0 if all passed, and then both archives lie in ``dist``."""
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for look, cure in CHECKS:
            check = attempt(look.__name__, lambda look=look: look(folder), cure)
            print(str(check).replace(f"{folder}{os.sep}", ""), flush=True)
            failed += [] if check.ok else [check.name]
        if not failed:
            shutil.copytree(folder / "dist", ROOT / "dist", dirs_exist_ok=True)
    words = f"not ready: {', '.join(failed)}" if failed else "ready: both archives are in the folder dist"
    print(f"\nThe release is {words}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
