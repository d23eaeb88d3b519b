"""Names of code in pages, lessons and docstrings lead to something that is there."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

import mebqat_lite

PACKAGE = Path(mebqat_lite.__file__).parent
ROOT = PACKAGE.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "data/README.md")]
PAGES += [*ROOT.glob("notebooks/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("notebooks/assignments/*.md")]
LESSONS = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/assignments/source/*/*.ipynb")]
# `learners.ProtoNet`, `mq.at`, `scale.speed.Fast`; not a file, a tensor's attribute or an option.
NAME = re.compile(r"(?<!`)`((?:mq\.|mebqat_lite\.)?[a-z_]+\d*(?:\.[A-Za-z_]\w*)+)(?:\(.*?\))?`(?!`)")
FILES = ("py", "md", "json", "png", "ipynb", "toml", "npz", "csv", "parquet", "html", "safetensors", "txt", "run")


def modules() -> dict[str, list[str]]:
    """The modules by the last part of their name: ``{"speed": ["scale.speed"], ...}``."""
    found: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if parts and ".ipynb_checkpoints" not in parts:
            found.setdefault(parts[-1], []).append(".".join(parts))
    return found


MODULES = modules()
# Modules of before there were wings: who still writes these names sends a reader astray.
GONE = ["benchmark", "maml", "packing", "recipes", "runs"]


def leads_somewhere(name: str) -> bool:
    """Whether a dotted name is a module's, or that of something in it; a name of something else is not looked at."""
    parts = name.split(".")
    if parts[0] in ("mq", "mebqat_lite"):
        starts, parts = [""], parts[1:]
    elif parts[0] in GONE and parts[0] not in MODULES:
        return False
    elif parts[0] in MODULES:
        starts = [module.rpartition(parts[0])[0] for module in MODULES[parts[0]]]
    else:
        return True
    return any(resolves(f"{start}{'.'.join(parts)}") for start in starts)


def resolves(name: str) -> bool:
    """Whether a dotted name is there, and where it says; ``setting.bits`` may be that of a `setting.Setting`."""
    parts = ["mebqat_lite", *name.split(".")]
    for count in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        owners = [module, getattr(module, parts[count - 1].capitalize(), None)]
        return any(has(owner, parts[count:], module.__name__) for owner in owners if owner is not None)
    return False


def has(owner: object, parts: list[str], module: str) -> bool:
    for part in parts:
        fields = {**getattr(owner, "__annotations__", {}), **getattr(owner, "__dataclass_fields__", {})}
        if not hasattr(owner, part):
            return part in fields
        owner = getattr(owner, part)
    return getattr(owner, "__module__", None) is None or str(owner.__module__).startswith(module) or is_data(owner)


def is_data(owner: object) -> bool:
    """Whether it is a value, which does not know where it was made."""
    return not isinstance(owner, type) and not callable(owner)


def names(text: str) -> set[str]:
    return {name for name in NAME.findall(text) if name.rpartition(".")[2] not in FILES}


def test_this_test_sees_names():
    assert names("`mq.at`, `learners.ProtoNet.adapt(model)`, `train.py` and `x.shape`") == {
        *("mq.at", "learners.ProtoNet.adapt", "x.shape")
    }
    for right in ("mq.at", "protonet.ProtoNet", "scale.speed.Fast", "setting.Setting.bits", "x.shape"):
        assert leads_somewhere(right), right
    for wrong in ("mq.att", "learners.ProtoNets", "recipes.SETUPS", "train.Loop", "mebqat_lite.switching.state.atom"):
        assert not leads_somewhere(wrong), wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_pages(path):
    assert [name for name in sorted(names(path.read_text(encoding="utf-8"))) if not leads_somewhere(name)] == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_names_in_lessons(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert [name for name in sorted(names(text)) if not leads_somewhere(name)] == []


def test_names_in_docstrings_and_comments():
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
        found += re.findall(r"#.*", text)
        if bad := [name for name in sorted(names("\n".join(found))) if not leads_somewhere(name)]:
            wrong[str(path.relative_to(ROOT))] = bad
    assert wrong == {}


@pytest.mark.parametrize("path", [*PAGES, *LESSONS], ids=lambda path: str(path.relative_to(ROOT)))
def test_test_files_that_pages_name_are_there(path):
    named = re.findall(r"tests/[\w/]+\.(?:py|toml)", path.read_text(encoding="utf-8"))
    named = [name for name in named if "NN" not in name]  # which stands for a lesson's number
    assert [name for name in named if not (ROOT / name).exists()] == []
