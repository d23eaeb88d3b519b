"""The house: which room knows which, how much a reader of training meets, and that nothing lies about unused."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import mebqat_lite

PACKAGE = Path(mebqat_lite.__file__).parent
ROOT = PACKAGE.parent
HEAVY = {"pandas", "matplotlib", "sklearn", "ipywidgets", "scipy", "joblib", "IPython", "onnx", "lightning_fabric"}

# A room is a module of the root, or a wing (a folder). Each line says which other rooms a room knows, from the bottom
# to the top. A new arrow belongs here first, with a thought on whether it should be.
KNOWS = {
    "paths": "",
    "bits": "",
    "tensors": "",
    "files": "",
    "quantizers": "bits",
    "switching": "bits quantizers tensors",
    "models": "switching",
    "datasets": "files paths tensors",
    "learners": "bits datasets quantizers switching tensors",
    "samplers": "bits",
    "recipe": "bits",
    "methods": "bits datasets learners recipe samplers switching",
    "optim": "quantizers recipe switching",
    "checkpoint": "bits files models quantizers switching tensors",
    "loop": "bits datasets files methods models optim recipe switching tensors",
    "resume": "checkpoint files loop recipe switching",
    "train": "datasets loop methods optim recipe resume switching tensors",
    "measure": "bits datasets files learners methods quantizers recipe switching tensors",
    "deploy": "bits checkpoint datasets files learners measure methods paths quantizers switching tensors",
    "scale": "bits datasets learners loop quantizers switching tensors",
    "experiments": "bits checkpoint datasets files learners loop measure methods models paths quantizers recipe "
    "samplers switching tensors train",
    "__init__": "bits checkpoint datasets deploy files loop measure methods models quantizers recipe samplers scale "
    "switching train",
    "course": "__init__ bits checkpoint datasets deploy experiments files learners measure methods models paths "
    "quantizers recipe switching tensors",
    "cli": "bits checkpoint course datasets deploy experiments files measure methods paths quantizers scale train",
    "__main__": "cli",
}
WINGS = {
    "quantizers",
    "learners",
    "switching",
    "datasets",
    "measure",
    "deploy",
    "scale",
    "experiments",
    "course",
    "cli",
}
UPPER = {"measure", "deploy", "scale", "experiments", "course", "cli"}  # what the core never knows


def sources() -> dict[str, Path]:
    """Each module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if ".ipynb_checkpoints" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = path
    return found


MODULES = sources()


def room(module: str) -> str:
    return module.partition(".")[0]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """All modules of this package that a module imports, also inside functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module}: write imports from the top"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            if name.partition(".")[0] == "mebqat_lite":
                inner = name.removeprefix("mebqat_lite").removeprefix(".")
                while inner and inner not in MODULES:  # a name in a module
                    inner = inner.rpartition(".")[0]
                found.add(inner or "__init__")
    return frozenset(found - {module})


# ---------------------------------------------------------------- who knows whom


def test_this_test_sees_imports():
    assert {"bits", "quantizers", "tensors", "switching.layers"} <= imports("switching.convert")
    assert {"bits", "measure.costs", "train", "checkpoint"} <= imports("__init__")
    assert "datasets.base" in imports("datasets.digits") and len(MODULES) > 100


def test_every_room_knows_what_the_table_says():
    known: dict[str, set[str]] = {room(module): set() for module in MODULES}
    for module in MODULES:
        known[room(module)] |= {room(target) for target in imports(module)} - {room(module)}
    assert known == {name: set(line.split()) for name, line in KNOWS.items()}


def test_rooms_know_rooms_below_them_only():
    order = list(KNOWS)
    for name, line in KNOWS.items():
        assert all(order.index(other) < order.index(name) for other in line.split()), name
    for name in order[: order.index("train") + 1]:
        assert not UPPER & set(KNOWS[name].split())


def test_no_module_knows_itself_by_way_of_others():
    graph = {module: {target for target in imports(module) if target != room(module)} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_every_folder_is_a_wing():
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in MODULES.values() if path.parent != PACKAGE}
    assert folders == WINGS


def loaded(code: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.slow
def test_importing_the_package_loads_nothing_heavy():
    unavoidable = loaded("import torch, torchvision, tqdm.auto, safetensors.torch")
    assert HEAVY & (loaded("import mebqat_lite") - unavoidable) == set()
