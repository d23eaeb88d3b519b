"""Results: one schema of JSON and the table drawn from it, fresh or read back; grids as files."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from known_results import ACCURACY, NAN, PAIRS, TITLES, read_back

from mebqat_lite import files
from mebqat_lite.files import write_json
from mebqat_lite.measure.results import cells, table, write_frame


def test_json_has_null_where_there_is_no_number(tmp_path):
    value = {"a": (1, 2.5, NAN), "b": {"c": [math.inf, -math.inf, "x", None, True]}, 3: np.float64(0.1), "n": {}}
    assert read_back(value, tmp_path / "new" / "r.json") == {
        "a": [1, 2.5, None],
        "b": {"c": [None, None, "x", None, True]},
        "3": 0.1,
        "n": {},
    }
    assert (tmp_path / "new" / "r.json").read_text().endswith("}\n")


def test_numbers_survive_to_the_last_bit(tmp_path):
    values = [1 / 3, 98.14814814814815, 1e-300, 0.1 + 0.2]
    assert read_back({"v": values}, tmp_path / "r.json")["v"] == values


def test_a_failed_write_leaves_the_old_results(tmp_path, monkeypatch):
    path = write_json(tmp_path / "r.json", {"a": 1})

    def full(*_):
        raise OSError("full")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_a_frame_becomes_cells():
    rows = [{"bits": "W2A2", "w": 2, "a": 2, "mean": 90.5, "ci95": NAN, "n": 1}]
    got = cells(pd.DataFrame(rows).set_index("bits"))
    assert list(got) == ["W2A2"] and list(got["W2A2"]) == ["mean", "ci95", "n"]
    assert (got["W2A2"]["mean"], got["W2A2"]["n"]) == (90.5, 1) and math.isnan(got["W2A2"]["ci95"])


TABLE = """\
               W1A1       W2A2  FP
QAT               -  98.0 ±0.3   -
mebqat  10.0 ±12.3       100.0   -"""


def test_table():
    lines = [line.split() for line in table(ACCURACY, PAIRS, TITLES).splitlines()]
    assert lines == [line.split() for line in TABLE.splitlines()]


def test_table_is_aligned():
    rows = table(ACCURACY, PAIRS, TITLES).splitlines()
    ends = [row.index(word) + len(word) for row, word in zip(rows, ["W2A2", "±0.3", "100.0"], strict=True)]
    assert len(set(ends)) == 1 and len({len(row) for row in rows}) == 1
    assert rows[1].startswith("QAT ") and rows[2].startswith("mebqat ")  # without a title the name


def test_table_without_titles_and_with_other_pairs():
    assert table({"qat": ACCURACY["qat"]}, ["W8A8"]).split() == ["W8A8", "qat", "-"]


def test_table_of_results_read_back_is_the_same(tmp_path):
    again = read_back(ACCURACY, tmp_path / "r.json")
    assert table(again, PAIRS, TITLES) == table(ACCURACY, PAIRS, TITLES)


def test_a_grid_is_written_as_csv_or_parquet_or_refused(tmp_path, monkeypatch):
    frame = pd.DataFrame({"bits": ["W2A2", "FP"], "mean": [97.25, 1 / 3]}).set_index("bits")
    again = pd.read_csv(write_frame(tmp_path / "new" / "g.csv", frame), index_col="bits")
    assert again.equals(frame)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda self: self.to_json().encode())  # its package may be absent
    assert write_frame(tmp_path / "g.parquet", frame).read_bytes() == frame.to_json().encode()
    monkeypatch.setattr(pd.DataFrame, "to_parquet", absent)
    with pytest.raises(
        ValueError, match=r"^h\.parquet: parquet needs a package: pip install pyarrow; or write a \.csv$"
    ):
        write_frame(tmp_path / "h.parquet", frame)
    with pytest.raises(ValueError, match=r"^g\.xls: a grid is written as \.csv or \.parquet$"):
        write_frame(tmp_path / "g.xls", frame)


def absent(*_):
    raise ImportError("no pyarrow")
