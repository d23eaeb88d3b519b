"""What the widgets share: errors in place, changes while drawing, and the package without ipywidgets."""

import logging
import subprocess
import sys

import ipywidgets
import pytest

from mebqat_lite.course.widgets.base import Live


def test_an_exception_in_a_callback_is_shown_in_place_and_logged(caplog):
    slider = ipywidgets.IntSlider(1, 0, 5)
    live = Live({"n": slider}, lambda n: f"<svg>{6 // n}</svg>")
    with caplog.at_level(logging.ERROR):
        slider.value = 0
    assert 'class="mq-error"' in live.error.value and live.picture.value == ""
    assert "ZeroDivisionError: integer division or modulo by zero" in live.error.value
    assert caplog.records[0].exc_info[0] is ZeroDivisionError
    slider.value = 3
    assert live.error.value == "" and live.picture.value == "<svg>2</svg>"


def test_the_words_of_an_error_are_escaped():
    live = Live({}, lambda: {}["<b>"])
    assert "KeyError: &#x27;&lt;b&gt;&#x27;" in live.error.value


def test_a_change_made_while_drawing_is_drawn_once_afterwards():
    first, second, seen = ipywidgets.IntText(0), ipywidgets.IntText(0), []

    def render(a: int, b: int) -> str:
        second.value = first.value * 10
        seen.append((a, b))
        return f"{a} {b}"

    live = Live({"a": first, "b": second}, render)
    first.value = 2
    assert seen == [(0, 0), (2, 0), (2, 20)] and live.picture.value == "2 20"


@pytest.mark.slow
def test_the_package_needs_no_ipywidgets_until_a_widget_is_asked_for():
    code = "import sys, mebqat_lite; assert 'ipywidgets' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys; sys.modules['ipywidgets'] = None; import mebqat_lite.course.widgets"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1 and 'pip install "mebqat_lite[lab]"' in run.stderr.splitlines()[-1]
