"""The method comparison: its numbers against independent arithmetic on the stored results, and its view."""

import copy
import json
import math
import time
import xml.etree.ElementTree as ET

import pytest

from mebqat_lite import paths
from mebqat_lite.course.widgets import method_comparison, svg
from mebqat_lite.course.widgets.comparison import (
    DELIVERED,
    METRICS,
    compute,
    describe,
    picture,
    start_backprops,
    title_of,
)

ROOT = paths.checkout()

FOLDER = ROOT / "benchmarks" / "accuracy"
STORED = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
DIGITS = STORED["digits-steps"]


def parsed(drawing: str) -> ET.Element:
    root = ET.fromstring(drawing)
    assert root.get("role") == "img" and root.find("{http://www.w3.org/2000/svg}title").text == root.get("aria-label")
    return root


def values(found, name):
    return {found.ticks[p.place]: p.mean for p in found.rows[name]}


@pytest.mark.parametrize("experiment", STORED)
@pytest.mark.parametrize(("metric", "table"), [("recalibrated", "accuracy"), ("native", "native")])
def test_accuracies_are_those_of_the_file(experiment, metric, table):
    result = STORED[experiment]
    stored = result[table]["accuracy"] if table == "native" else result[table]
    found = compute(result, metric)
    assert list(found.rows) == list(stored)
    for name, row in stored.items():
        want = {b: c["mean"] for b, c in row.items() if b in found.ticks and c["mean"] is not None}
        assert values(found, name) == want
        for p in found.rows[name]:
            half = row[found.ticks[p.place]]["ci95"]
            assert p.half == half or (half is None and math.isnan(p.half))


def test_off_its_list_a_method_with_norm_sets_has_no_value_of_its_own():
    assert "W3A3" in values(compute(DIGITS, "recalibrated"), "adabits")
    assert "W3A3" not in values(compute(DIGITS, "native"), "adabits")


def test_differences_to_qat_are_paired_for_the_first_rival_and_plain_for_the_others():
    assert DIGITS["rivals"] == ["mebqat_in_turn", "qat"]
    found = compute(DIGITS, "minus")
    assert "qat" not in found.rows
    for p in found.rows["mebqat_in_turn"]:
        cell = DIGITS["paired"]["test"][found.ticks[p.place]]
        assert (p.mean, p.half) == (cell["mean"], cell["ci95"])
    for pair, gap in values(found, "ptq_mse").items():
        assert gap == pytest.approx(
            DIGITS["accuracy"]["ptq_mse"][pair]["mean"] - DIGITS["accuracy"]["qat"][pair]["mean"]
        )
    assert all(math.isnan(p.half) for p in found.rows["ptq_mse"])


def test_without_dedicated_networks_there_is_no_difference_and_the_picture_says_so():
    found = compute(STORED["glyph-classes-trials"], "minus")
    assert not any(found.rows.values())
    assert "dedicated QAT was not trained here" in picture(found)


@pytest.mark.parametrize("experiment", [name for name, result in STORED.items() if result["break_even"]])
def test_totals_cross_where_the_comparison_counted_the_break_even(experiment):
    result = STORED[experiment]
    ours, other = result.get("rivals") or ("mebqat", "qat")
    found = compute(result, "backprops")
    joint, dedicated = values(found, ours), values(found, other)
    first = min(k for k in DELIVERED if dedicated[str(k)] > joint[str(k)])
    assert first == result["break_even"]
    count, each = result["costs"][other]["models"], dedicated["2"] - dedicated["1"]
    assert dedicated["1"] + (count - 1) * each == pytest.approx(result["costs"][other]["backprops"])


def test_the_start_is_what_an_untrained_method_costs():
    found = [r for r in STORED.values() if "ptq_mse" in r["costs"] and r["budget"] == "steps"]
    assert found  # with equal back-propagations it is trained as long as the others
    for result in found:
        assert start_backprops(result) == result["costs"]["ptq_mse"]["backprops"]


def test_ticks_are_left_out_but_never_the_last():
    assert compute(DIGITS, lowest=1, highest=2).ticks == compute(DIGITS).ticks[1:-2]
    few = STORED["glyph-classes-quantizers"]
    assert compute(few).ticks == ["W2A2", "W3A3", "W4A4", "W8A8", "FP"]
    assert compute(few, lowest=4, highest=4).ticks == ["FP"]
    assert compute(DIGITS, "backprops", lowest=4).ticks[0] == "5"


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="no metric 'speed'; there are recalibrated"):
        compute(DIGITS, "speed")


@pytest.mark.parametrize("experiment", STORED)
def test_pictures_are_well_formed(experiment):
    result = STORED[experiment]
    for metric in METRICS:
        for count in (0, 1, 2, None):
            names = None if count is None else list(result["accuracy"])[:count]
            found = compute(result, metric, names)
            drawing = picture(found, experiment)
            assert METRICS[metric] in parsed(drawing).get("aria-label") and "nan" not in drawing.lower()
            assert drawing == picture(compute(result, metric, names), experiment)
            assert experiment in describe(found, result, experiment)


def test_intervals_are_drawn_and_missing_ones_are_not():
    cells = {"accuracy": {"mebqat": {"W2A2": {"mean": 90.0, "ci95": 2.0, "n": 3}}}, "budget": "steps"}
    bars = picture(compute(cells)).count("<line")
    cells["accuracy"]["mebqat"]["W2A2"]["ci95"] = None
    assert bars - picture(compute(cells)).count("<line") >= 3


def test_styles_differ():
    names = list(DIGITS["accuracy"])
    looks = [(style.dash, style.shape, style.colour) for style in svg.styles(names).values()]
    assert len(set(looks)) == len(names)
    assert title_of("mebqat+teacher='next'") == "MEBQAT, teacher='next'"


# ---------------------------------------------------------------- the widget


@pytest.fixture
def live():
    return method_comparison({"equal steps": DIGITS, "CIFAR": STORED["cifar"], "new classes": STORED["glyphs-pn"]})


def test_every_control_changes_the_picture(live):
    moves = [
        ("lowest", 1),
        ("lowest", 2),
        ("lowest", 1),
        ("highest", 1),
        ("highest", 2),
        ("ptq_naive", True),
        ("qat", False),
    ]
    moves += [("metric", name) for name in ("native", "minus", "backprops", "recalibrated")]
    moves += [("experiment", "CIFAR"), ("experiment", "new classes"), ("experiment", "equal steps")]
    for name, value in moves:
        before = live.picture.value
        live.controls[name].value = value
        assert live.picture.value != before and live.error.value == "", name
        parsed(live.picture.value[: live.picture.value.index("</svg>") + 6])


def test_every_position_has_a_picture_of_its_own_in_every_experiment(live):
    for experiment in live.results:
        for metric in METRICS:
            live.controls["experiment"].value, live.controls["metric"].value = experiment, metric
            seen = set()
            for n in range(5):
                live.controls["highest"].value = n
                seen.add(live.picture.value)
            assert len(seen) == 5 and live.error.value == ""


def test_methods_without_a_part_are_hidden(live):
    assert live.shown["any_precision_hard"].layout.display is None
    live.controls["experiment"].value = "CIFAR"
    assert live.shown["any_precision_hard"].layout.display == "none" and live.shown["qat"].layout.display is None


def test_variants_are_hidden_until_they_are_asked_for_except_the_rivals(live):
    assert live.shown["mebqat_in_turn"].value and not live.shown["mebqat_in_turn+lr=0.02"].value
    tuned = method_comparison({"glyph classes": STORED["glyph-classes"]})
    shown = [name for name, check in tuned.shown.items() if check.value]
    assert shown == ["mebqat_in_turn+lr=0.05", "qat+lr=0.05", "ptq_mse"]


def test_no_method_is_a_message(live):
    for check in live.shown.values():
        check.value = False
    assert "choose at least one method" in live.picture.value and live.error.value == ""


def test_without_results_it_is_refused_and_a_broken_one_is_an_error_in_place(live):
    with pytest.raises(ValueError, match="no comparison"):
        method_comparison({})
    broken = copy.deepcopy(DIGITS)
    del broken["native"]
    wrong = method_comparison({"broken": broken})
    wrong.controls["metric"].value = "native"
    assert "KeyError" in wrong.error.value and wrong.picture.value == ""


def test_it_answers_under_the_hand(live):
    times = []
    for n in range(20):
        start = time.process_time()
        live.controls["lowest"].value = (n + 1) % 5
        times.append(time.process_time() - start)
    assert sorted(times)[10] < 0.04
