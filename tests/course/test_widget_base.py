"""The package without ipywidgets, which only the widgets need."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_package_needs_no_ipywidgets_until_a_widget_is_asked_for():
    code = "import sys, mebqat_lite; assert 'ipywidgets' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys; sys.modules['ipywidgets'] = None; import mebqat_lite.course.widgets"
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 1 and 'pip install "mebqat_lite[lab]"' in run.stderr.splitlines()[-1]
