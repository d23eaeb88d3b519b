"""The later lessons run to their end whatever a reader answers: nbval runs them without any answer, this test with."""

import os
from pathlib import Path

import nbformat
import pytest
from lesson_runs import runs_with_answers
from lessons import FOLDER, REBUILT

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent


@pytest.mark.parametrize("name", REBUILT[5:])
def test_a_lesson_runs_with_answers(name, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    runs_with_answers(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))
