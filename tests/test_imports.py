"""What importing the package costs, and that its rooms only know the rooms below them."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import mebqat_lite

PACKAGE = Path(mebqat_lite.__file__).parent
HEAVY = ["pandas", "matplotlib", "sklearn", "ipywidgets", "scipy", "joblib", "IPython"]
# From the bottom to the top: a room imports earlier ones only. A room that is not here is above all of these.
ORDER = [
    "paths",
    "bits",
    "quantizers",
    "tensors",
    "layers",
    "state",
    "convert",
    "norms",
    "ptq",
    "models",
    "costs",
    "summary",
]
ORDER += [
    "checkpoint",
    "packing",
    "packed",
    "datasets",
    "learners",
    "maml",
    "vectorized",
    "methods",
    "optim",
    "parallel",
    "resume",
    "train",
    "launch",
    "evaluate",
    "fewshot",
    "recipes",
    "results",
    "runs",
    "plots",
    "jobs",
    "engines",
    "sweeps",
    "compare",
    "benchmark",
    "demo",
    "sizes",
    "onnx_graph",
    "onnx_export",
    "onnx_run",
    "export",
]
ORDER += ["doctor", "selftest", "__init__", "exercises", "classroom", "widgets", "cli"]


def loaded(code):
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    unavoidable = loaded("import torch, torchvision, tqdm.auto, safetensors.torch")
    assert set(HEAVY) & (loaded("import mebqat_lite") - unavoidable) == set()


def sources():
    return {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py") if ".ipynb_checkpoints" not in path.parts}


def module_name(relative):
    parts = list(relative.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


MODULES = {module_name(relative): path for relative, path in sources().items()}


def room(module):
    return module.partition(".")[0]


def targets(node, module, is_package):
    """The package's modules that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        here = ["mebqat_lite", *(module.split(".") if module != "__init__" else [])]
        keep = len(here) - node.level + is_package  # level 1 is the package that the module is in
        base = ".".join(here[:keep] if node.level else []) + ("." if node.level and node.module else "")
        base += node.module or ""
        names = [f"{base}.{alias.name}" for alias in node.names]
    for name in names:
        if name.partition(".")[0] == "mebqat_lite":
            inner = name.removeprefix("mebqat_lite").removeprefix(".")
            while inner and inner not in MODULES:  # a name in a module
                inner = inner.rpartition(".")[0]
            yield inner or "__init__"


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(module):
    """All that a module imports of this package, also inside functions, but not for types only."""
    path, found = MODULES[module], set()
    todo = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= set(targets(node, module, path.name == "__init__.py"))
        elif not is_type_checking(node):
            todo += ast.iter_child_nodes(node)
    return found - {module}


def test_this_test_sees_imports():
    assert {"bits", "layers", "quantizers", "tensors"} <= imports("convert")
    assert {"bits", "costs", "train", "checkpoint"} <= imports("__init__")
    assert "demo" in imports("cli") and "results" in imports("plots")  # inside a function; for one name
    assert "datasets.base" in imports("datasets.digits") and len(MODULES) > 25


def test_no_cycles():
    graph = {module: {target for target in imports(module) if target != room(module)} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


@pytest.mark.parametrize("module", sorted(MODULES))
def test_rooms_import_downwards(module):
    mine = room(module)
    if mine not in ORDER:
        return
    below = set(ORDER[: ORDER.index(mine)]) | {mine}
    upwards = {target for target in imports(module) if room(target) not in below}
    assert not upwards, f"{module} imports {sorted(upwards)} from above"


def test_the_order_names_rooms_that_exist():
    assert set(ORDER) <= {room(module) for module in MODULES} and len(set(ORDER)) == len(ORDER)
