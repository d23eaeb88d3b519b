"""The time that widgets take: measured in miniature, and what is said of it."""

import contextlib
import json

import pytest

from benchmarks import lab, widgets


@pytest.mark.browser
def test_each_control_is_pressed_and_the_times_are_stored(browser, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lab, "chromium", lambda: contextlib.nullcontext(browser))
    monkeypatch.setattr(widgets, "FOLDER", tmp_path)
    (tmp_path / "README.md").write_text("<!-- widgets -->\n<!-- /widgets -->\n")
    widgets.main(["playground", "--moves", "2", "--store"])
    stored = json.loads((tmp_path / "widgets.json").read_text())
    row = stored["measured"]["playground"]
    assert row["moves"] == 2 * 3 and row["target_ms"] == widgets.DRAWN  # two sliders, and the clip in the picture
    assert 1 < row["median_ms"] <= row["p95_ms"] < 5000 and "cores" in stored["machine"]
    assert widgets.line("playground", row) in capsys.readouterr().out
    assert (
        tmp_path / "README.md"
    ).read_text() == f"<!-- widgets -->\n```text\n{widgets.block(stored)}\n```\n<!-- /widgets -->\n"


def test_times_are_summed_up_by_median_and_95th_percentile():
    assert lab.summarize([float(n) for n in range(1, 100)]) == {"moves": 99, "median_ms": 50.0, "p95_ms": 95.0}
    assert lab.summarize([7.0]) == {"moves": 1, "median_ms": 7.0, "p95_ms": 7.0}


def test_a_line_says_whether_the_target_was_met():
    row = {"moves": 10, "median_ms": 60.0, "p95_ms": 80.0, "target_ms": 80}
    assert widgets.line("pad", row).endswith("median 60 ms, p95 80 ms, within the target of 80 ms (10 moves)")
    assert "over the target" in widgets.line("pad", {**row, "p95_ms": 80.1})


def test_an_unknown_widget_is_refused(capsys):
    with pytest.raises(SystemExit):
        widgets.main(["nothing"])
    assert "there is no widget nothing; choose from playground" in capsys.readouterr().err


def test_a_machine_without_chromium_is_told(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(RuntimeError, match="apt-get install chromium"):
        widgets.main(["playground"])
