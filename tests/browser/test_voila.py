"""A lesson as a page of its own, by Voila: its widgets follow the keyboard there too."""

import pytest
from test_lessons import move_everything

from benchmarks.lab import READY, SECONDS

pytestmark = pytest.mark.browser
# Voila's page asks a host on the network for its mathematics; without one the formulas stay as they are written.
# And extensions of JupyterLab that are not made for Voila's page say so: those of nbgrader and of the classic notebook.
NOISE = (r"^Failed to load resource: net::", r"(?is)shared module.*/labextensions/@jupyter(-notebook)?/")


def test_a_lesson_runs_without_its_code(voila, page):
    page.goto(voila, timeout=120 * SECONDS)
    mark, playground = page.locator(".mq-widget").first, page.locator(".mq-widget").last
    for widget in (mark, playground):
        widget.wait_for(timeout=120 * SECONDS)
        page.wait_for_function(READY, arg=widget.element_handle())
        assert len(move_everything(page, widget)) > 5
    assert playground.locator(".noUi-handle").count() == 2
    assert page.locator(".jp-CodeCell .jp-InputArea-editor").count() == 0  # the code is not shown
    assert page.locator(".mq-error").count() == 0
