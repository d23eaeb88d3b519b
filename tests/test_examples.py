"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import mebqat_lite as mq

# The functions that users call have one each.
USED = {
    *("quantize", "fit", "at", "set_bits", "recalibrate", "grid", "accuracy", "summary", "candidates", "Bits.parse"),
    *("save_model", "load_model", "save_packed", "load_packed"),
}


def examples() -> list[doctest.DocTest]:
    """The docstrings of the package that hold an example; the lessons' exercises have tests of their own."""
    found, finder = [], doctest.DocTestFinder(exclude_empty=True)
    for module in pkgutil.walk_packages(mq.__path__, "mebqat_lite."):
        if not module.name.startswith(("mebqat_lite.course", "mebqat_lite.__main__")):
            found += [test for test in finder.find(importlib.import_module(module.name)) if test.examples]
    return found


EXAMPLES = {example.name.removeprefix("mebqat_lite."): example for example in examples()}


@pytest.fixture
def names(tmp_path):
    """What an example may use."""
    data = mq.datasets.load("digits,count=200,test=60")
    model = mq.quantize(mq.models.digit_net(), "dorefa", sample=data.train.images[:64])
    return {"mq": mq, "data": data, "images": data.train.images[:64], "model": model, "folder": tmp_path}


def test_what_users_call_has_an_example():
    assert {name for name in USED if not any(where.endswith(f".{name}") for where in EXAMPLES)} == set()


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run_and_print_what_they_say(name, names, capsys):
    example = EXAMPLES[name]
    example.globs = {**example.globs, **names}
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example).failed == 0, capsys.readouterr()
