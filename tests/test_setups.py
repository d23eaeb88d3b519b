"""What the README says that a set-up weighs."""

import importlib.metadata as metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(extras: list[str]) -> list[Requirement]:
    """The requirements of the core and of extras, references to other extras resolved."""
    lines, todo = list(PROJECT["dependencies"]), list(extras)
    while todo:
        for line in PROJECT["optional-dependencies"][todo.pop()]:
            own = re.fullmatch(r"mebqat_lite\[(.+)\]", line)
            todo += own[1].split(",") if own else []
            lines += [] if own else [line]
    return [Requirement(line) for line in lines]


def installed(todo: list[Requirement]) -> dict[str, metadata.Distribution]:
    """All libraries that come with requirements, by name; what is not installed here is left out."""
    seen, found = set(), {}
    while todo:
        one = todo.pop()
        for extra in {"", *one.extras} - {extra for name, extra in seen if name == one.name}:
            seen.add((one.name, extra))
            try:
                found[one.name.lower().replace("_", "-")] = library = metadata.distribution(one.name)
            except metadata.PackageNotFoundError:
                continue
            more = map(Requirement, library.requires or [])
            todo += [r for r in more if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def gigabytes(libraries: dict[str, metadata.Distribution]) -> float:
    paths = [path.locate() for library in libraries.values() for path in library.files or []]
    return sum(path.stat().st_size for path in paths if path.exists()) / 1e9


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the README's sizes are those of Linux")
@pytest.mark.parametrize(("target", "extras"), [("demo", []), ("lab", ["lab"]), ("check", ["lab", "test"])])
def test_the_readme_says_what_each_set_up_weighs(target, extras):
    libraries = installed(needed(extras))
    if not any(name.startswith("nvidia-") for name in libraries):
        pytest.skip("PyTorch without CUDA is installed here")
    [said] = re.findall(
        rf"(?m)^\| `make {target}` .*\| ([\d.]+) GB \|$", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert abs(gigabytes(libraries) - float(said)) < 0.1 * float(said)


@pytest.mark.slow
def test_the_readme_says_what_pytorch_without_cuda_saves():
    """What is left of the core without CUDA's libraries: PyTorch itself weighs 0.7 GB then instead of 1.2 GB."""
    libraries = installed(needed([]))
    if not any(name.startswith("nvidia-") for name in libraries):
        pytest.skip("PyTorch without CUDA is installed here")
    cuda = re.compile(r"nvidia-|cuda-|triton|torch$")
    rest = gigabytes({name: library for name, library in libraries.items() if not cuda.match(name)})
    assert "1.3 GB are enough" in (ROOT / "README.md").read_text(encoding="utf-8") and rest + 0.7 < 1.4
