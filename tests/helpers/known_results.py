"""Results with an interval, without one, and without a number."""

import json
import math

import pytest

from mebqat_lite.files import write_json

NAN = math.nan
ACCURACY = {
    "qat": {"W2A2": {"mean": 98.04, "ci95": 0.26, "n": 3}},
    "mebqat": {
        "W1A1": {"mean": 9.96, "ci95": 12.345, "n": 3},
        "W2A2": {"mean": 100.0, "ci95": NAN, "n": 1},
        "FP": {"mean": NAN, "ci95": NAN, "n": 3},
    },
}
TITLES = {"qat": "QAT"}
PAIRS = ["W1A1", "W2A2", "FP"]


def read_back(value, path):
    return json.loads(write_json(path, value).read_text(), parse_constant=pytest.fail)
