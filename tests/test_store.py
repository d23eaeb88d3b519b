"""How a lesson is stored: with its tags, its hidden answers and words in the place of widgets; nbval reads the tags."""

import subprocess
import sys

import nbformat
import pytest

from notebooks.store import ANSWER, STATIC, joined, store

pytestmark = pytest.mark.slow
CHECKED = {"tags": ["nbval-check-output"]}
HIDDEN = {"jupyter": {"outputs_hidden": True}}
CELLS = [
    ("import ipywidgets\nfrom mebqat_lite.course import guess\n\nmy = guess.number('How many?', unit='%')", {}),
    ("print(guess.said(my, 31.4))", HIDDEN),
    ("print(2 + 2)", CHECKED),
    ("ipywidgets.VBox([ipywidgets.IntSlider()])", {}),
    ("my = None", HIDDEN),
    ("from mebqat_lite.course.exercises import lesson_01\n\nfake_quantize = lesson_01.fake_quantize.use()", {}),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small notebook that was stored twice."""
    path = tmp_path_factory.mktemp("store") / "lesson.ipynb"
    cells = [nbformat.v4.new_code_cell(source, metadata=metadata) for source, metadata in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert store(path) > 0 and store(path) > 0
    return path


@pytest.fixture
def cells(path):
    return nbformat.read(path, as_version=4).cells


def plain(cell) -> list[str]:
    """The text of each output."""
    return [output.text if "text" in output else output.data["text/plain"] for output in cell.outputs]


def test_cells_keep_their_metadata(cells):
    assert [cell.metadata for cell in cells] == [metadata for _, metadata in CELLS]


def test_guesses_and_exercises_are_left_unanswered(cells):
    assert plain(cells[0]) == ["How many?", "Run the notebook to answer with a guess."]
    assert plain(cells[5])[0].endswith("yours is not attempted yet.\n")


def test_the_first_line_of_a_hidden_answer_gives_nothing_away(cells):
    assert plain(cells[1]) == [ANSWER, "It is 31.4 %.\n"]
    assert plain(cells[4]) == []


def test_words_stand_in_the_place_of_a_widget(cells):
    assert plain(cells[3]) == [STATIC]


def test_a_text_that_came_in_parts_is_stored_as_one():
    texts = [("stdout", "QAT:"), ("stdout", " 98 %\n"), ("stderr", "careful\n"), ("stdout", "done\n")]
    parts = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in texts]
    figures = [nbformat.v4.new_output("display_data", {"image/png": name}) for name in "ab"]
    found = joined([*parts[:2], *figures, *parts[2:]])
    assert [output.get("text", "") for output in found] == ["QAT: 98 %\n", "", "", "careful\n", "done\n"]


def test_nbval_checks_the_cells_with_the_tag_and_no_others(path):
    """Two stored outputs are changed; only that of the cell with the tag, the third one, is missed."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs[-1].text, notebook.cells[2].outputs[-1].text = "It is 99 %.\n", "5\n"
    copy = path.with_name("copy.ipynb")
    nbformat.write(notebook, copy)
    command = ["pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider", str(copy)]
    run = subprocess.run([sys.executable, "-m", *command], check=False, capture_output=True, text=True, cwd=path.parent)
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "copy.ipynb::Cell 2" in failed[0] and "1 failed, 5 passed" in run.stdout, run.stdout
