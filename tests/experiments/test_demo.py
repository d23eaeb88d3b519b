"""The demo: the whole job with three seeds, what it writes and what it says.

The network and the methods are the demo's own; a fraction of its steps, with half of its images each, and fewer images
to test on, show the same in a fraction of the time. `claims.py --slow` runs the demo itself.
"""

import contextlib
import io
import json
import math
from dataclasses import replace

import matplotlib
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest

from mebqat_lite.experiments import demo
from mebqat_lite.experiments.jobs import PAIRS
from mebqat_lite.experiments.setups import get
from mebqat_lite.files import read, write_json
from mebqat_lite.measure import looks
from mebqat_lite.paths import shipped
from mebqat_lite.recipe import Recipe

SEEDS = 3
START, STEPS = 100, 70
RECIPE = Recipe(warm_steps=START, steps=4 * STEPS, batch_size=64)
SETUP = replace(get("digits"), data="digits,test=60", recipe=RECIPE)
SHIPPED = json.loads(shipped("demo.json").read_text())  # of the demo itself
CHANNELS = 6 + 12 + 12 + 12  # of all convolutions
LINES = {
    "ptq_mse": "FP + PTQ-MSE",
    "qat": "QAT",
    "mebqat": "MEBQAT",
    "mebqat_in_turn": "MEBQAT in turn",
}
PAINTERS = ("FP, rounded", "FP + PTQ-MSE", "QAT for W4A4", "MEBQAT in turn")
PAINTED = ("W1A1", "W2A2", "W4A4", "W8A8", "FP")
ORIGIN = "Digits: trained in this demo. Paintings: by shipped networks, one for each row."


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder, the text and the outcome of one demo."""
    matplotlib.use("Agg")
    folder, text = tmp_path_factory.mktemp("results"), io.StringIO()
    with contextlib.redirect_stdout(text), pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "get", {"digits": SETUP}.get)
        outcome = demo.run(SEEDS, 1, folder, progress=False)
    return folder, text.getvalue(), outcome


@pytest.fixture(scope="module")
def written(ran):
    return json.loads((ran[0] / "demo.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.slow
def test_schema(written, ran):
    assert {"accuracy", "norm_stats", "costs", "seconds"} <= set(written)
    assert written["norm_stats"] == "recalibrated" and 0 < written["seconds"] < 600
    for tables in (written["accuracy"], written["validation"]):
        assert list(tables) == list(LINES)
        for method, row in tables.items():
            assert list(row) == ["W1A1", "W2A2"] if method == "qat" else list(PAIRS)
            for cell in row.values():
                assert set(cell) == {"mean", "ci95", "n"} and cell["n"] == SEEDS
                assert 0 <= cell["mean"] <= 100 and cell["ci95"] >= 0
    assert written["accuracy"] == ran[2]["accuracy"]


@pytest.mark.slow
def test_costs_equal_their_formulas(written):
    for outcome, start, steps in ((written, START, STEPS), (SHIPPED, 300, 300)):
        check_costs(outcome["costs"], outcome["counted"], start, steps)


def check_costs(costs, counted, start, steps, listed=2):
    """Each network has as many back-propagations as the others, and one forward pass for each of them."""
    total = start + 4 * steps
    for name in LINES:
        models = listed if name == "qat" else 1
        passes = start + models * 4 * steps  # the networks of QAT share their start
        assert [costs[name][k] for k in ("backprops", "forwards", "models")] == [passes, passes, models]
    assert {name: costs[name]["steps"] for name in ("ptq_mse", "mebqat_in_turn")} == {
        "ptq_mse": total,
        "mebqat_in_turn": total,
    }
    assert costs["mebqat"]["steps"] == start + steps and costs["qat"]["steps"] == start + listed * 4 * steps
    assert (counted["pairs"], counted["step_backprops"], counted["all_pairs_step_backprops"]) == (75, 4, 75)
    assert counted["statistics_bytes"] == 75 * 2 * 4 * CHANNELS
    assert counted["model_bytes"] == counted["float_bytes"] == costs["mebqat"]["bytes"]
    assert (
        round(100 * (1 - counted["model_bytes"] / (75 * counted["float_bytes"])), 1) == 98.7 == round(100 - 100 / 75, 1)
    )


@pytest.mark.slow
def test_text_tells_costs_table_and_what_is_next(ran, written):
    folder, text, _ = ran
    words = " ".join(text.split())
    assert "98.7 % less" in words and "94.7 % fewer" in words
    rows = {title: next(line for line in text.splitlines() if line.startswith(title + " ")) for title in LINES.values()}
    header = next(line for line in text.splitlines() if line.split() == list(PAIRS))
    for method, title in LINES.items():
        cells = rows[title].removeprefix(title).replace(" ±", "±").split()
        assert len(cells) == len(header.split())
        for bits, cell in zip(PAIRS, cells, strict=True):
            stated = written["accuracy"][method].get(bits)
            assert cell == ("-" if stated is None else f"{stated['mean']:.1f}±{stated['ci95']:.1f}")
    assert rows["QAT"].split().count("-") == 4  # W3A3, W4A4, W8A8 and FP were not trained
    assert str(folder / "demo.json") in text and str(folder / "demo.png") in text
    assert "notebooks/00_start_here.ipynb" in text and "make lab" in text
    for bits, gap in written["paired"]["test"].items():
        assert f"{bits} {gap['mean']:+.1f} ±{gap['ci95']:.1f}" in words
    counts = [f"{written['costs'][name]['backprops']:,}" for name in ("qat", "mebqat_in_turn")]
    assert all(count in words for count in counts)
    assert "2,700" in demo.findings(SHIPPED) and "1,500" in demo.findings(SHIPPED)


@pytest.mark.slow
def test_the_paintings_are_measured_told_and_shown(ran, written):
    for outcome in (written, SHIPPED):
        assert list(outcome["painted"]) == list(PAINTERS)
        assert all(list(row) == list(PAINTED) for row in outcome["painted"].values())
    assert f"{ORIGIN} PSNR in dB:" in ran[1].splitlines()
    painted = ran[1].split(ORIGIN)[1]
    for title, row in written["painted"].items():
        line = next(line for line in painted.splitlines() if line.startswith(title + " "))
        assert line.removeprefix(title).split() == [f"{psnr:.1f}" for psnr in row.values()]
        stated = read(shipped("checkpoints", f"{demo.PAINTERS[title]}.safetensors"), "model")[1]["extra"]["accuracy"]
        assert row == pytest.approx({pair: stated["test"][pair] for pair in PAINTED}, abs=0.05)
    image = matplotlib.image.imread(ran[0] / "demo.png")[..., :3]
    right = image[:, image.shape[1] // 2 :]
    orange = (right[..., 0] > 0.8) & (right[..., 1] > 0.4) & (right[..., 1] < 0.75) & (right[..., 2] < 0.5)
    assert orange.mean() > 0.03  # the flower


@pytest.mark.slow
def test_one_network_serves_the_lowest_bits_where_rounding_fails(written):
    for outcome in (written, SHIPPED):
        ours, rounded = (outcome["validation"][name] for name in ("mebqat_in_turn", "ptq_mse"))
        assert ours["W1A1"]["mean"] - ours["W1A1"]["ci95"] > rounded["W1A1"]["mean"] + rounded["W1A1"]["ci95"]
        assert ours["W2A2"]["mean"] > rounded["W2A2"]["mean"]
        gaps = outcome["paired"]["val"]  # to QAT
        assert list(gaps) == ["W1A1", "W2A2"] and all(gap["n"] == SEEDS for gap in gaps.values())


@pytest.mark.slow
def test_paired_differences_are_those_of_the_saved_models(ran, written):
    for part in ("val", "test"):
        for bits, gap in written["paired"][part].items():
            runs = []
            for seed in range(SEEDS):
                names = (f"mebqat_in_turn-seed{seed}", f"qat_{bits.lower()}-seed{seed}")
                files = [read(ran[0] / "demo" / f"{name}.safetensors", "model")[1]["extra"] for name in names]
                ours, other = (extra["accuracy"][part][bits] for extra in files)
                runs.append(ours - other)
            assert gap["mean"] == pytest.approx(np.mean(runs), abs=1e-10)


@pytest.mark.slow
def test_picture_is_not_blank(ran):
    image = matplotlib.image.imread(ran[0] / "demo.png")[..., :3]
    assert image.shape[0] > 400 and image.shape[1] > 700
    for method in LINES:  # each method's colour is there
        colour = np.array(matplotlib.colors.to_rgb(looks.LOOKS[method]["color"]))
        assert (np.abs(image - colour).max(-1) < 0.02).sum() > 100, method
    assert (image.min(-1) > 0.98).mean() > 0.5  # on white


# --- what needs no training ------------------------------------------------------------------------------------


def outcome(seeds):
    half = 0.5 if seeds > 1 else math.nan
    cell = {"mean": 98.0, "ci95": half, "n": seeds}
    names = ("steps", "forwards", "backprops", "models", "bytes")
    return {
        "accuracy": {name: dict.fromkeys(PAIRS, cell) for name in LINES},
        "paired": {"test": {"W2A2": {"mean": -0.25, "ci95": half, "n": seeds}}},
        "costs": {name: dict.fromkeys(names, 100) for name in LINES},
        "counted": {
            "model_bytes": 1000,
            "float_bytes": 1000,
            "statistics_bytes": 10,
            "pairs": 75,
            "step_backprops": 4,
            "all_pairs_step_backprops": 75,
        },
        "norm_stats": "recalibrated",
        "painted": {title: dict(zip(PAINTED, (14.46, 20.0, 33.76, 50.94, 52.26), strict=True)) for title in PAINTERS},
        "break_even": 5,
        "seconds": 1.0,
        "seeds": seeds,
    }


@pytest.mark.parametrize("seeds", [1, 3])
def test_findings_of_results_read_back_are_the_same(seeds, tmp_path):
    fresh = demo.findings(outcome(seeds))
    again = json.loads(write_json(tmp_path / "r.json", outcome(seeds)).read_text())
    assert demo.findings(again) == fresh
    assert "nan" not in fresh and "W2A2 -0.2" in fresh
    assert fresh.splitlines()[-4:][0].split() == ["FP,", "rounded", "14.5", "20.0", "33.8", "50.9", "52.3"]


@pytest.mark.parametrize(("seeds", "title"), [(1, "Digits: 1 seed, test images"), (3, "Digits: 3 seeds, test images")])
def test_the_figure_has_the_curves_beside_the_paintings(seeds, title):
    pictures = {name: dict.fromkeys(PAINTED, np.zeros((4, 4, 3))) for name in PAINTERS}
    figure = demo.draw(outcome(seeds), pictures)
    figure.canvas.draw()
    left, right = figure.subfigs
    assert [axes.get_title() for axes in left.axes] == [title] and len(right.axes) == 20
    assert [axes.get_title() for axes in right.axes[:5]] == list(PAINTED)
    assert [axes.get_ylabel() for axes in right.axes[::5]] == list(PAINTERS)
    assert [axes.get_xlabel() for axes in right.axes[:5]] == ["14.5 dB", "20.0 dB", "33.8 dB", "50.9 dB", "52.3 dB"]
    assert figure.get_supxlabel() == ORIGIN
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    note = figure._supxlabel.get_window_extent()
    apart = [one for number, one in enumerate(boxes) for other in [*boxes[number + 1 :], note] if one.overlaps(other)]
    assert not apart
    matplotlib.pyplot.close(figure)


def finished(folder):
    """A folder as a demo leaves it."""
    (folder / "demo").mkdir(parents=True)
    (folder / "demo" / "mebqat-seed0.safetensors").write_text("a network")
    (folder / "demo.png").write_text("picture")
    write_json(folder / "demo.json", outcome(3))
    return folder


def test_shipping_copies_the_results_and_leaves_the_networks_alone(tmp_path):
    folder, target = finished(tmp_path / "results"), tmp_path / "away" / "data"
    kept = target / "checkpoints" / "digits-mebqat.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text("shipped")
    assert demo.ship(folder, target) == ["demo.json", "demo.png"]
    shipped = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*.*")}
    assert shipped.pop("demo.json") == (folder / "demo.json").read_text()
    assert shipped == {"demo.png": "picture", "checkpoints/digits-mebqat.safetensors": "shipped"}


@pytest.mark.parametrize("times", [1, 2])
def test_shipping_puts_the_findings_into_the_readme(times, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- demo -->\nold\n<!-- /demo -->\nafter\n")
    folder = finished(tmp_path / "results")
    for _ in range(times):
        demo.ship(folder, tmp_path / "data")
    text = readme.read_text()
    assert text.startswith("before\n<!-- demo -->\n") and text.endswith("<!-- /demo -->\nafter\n")
    assert text.count(demo.findings(outcome(3))) == 1 and "old" not in text


def test_shipping_leaves_another_readme_alone(tmp_path):
    (tmp_path / "README.md").write_text("of something else\n")
    demo.ship(finished(tmp_path / "results"), tmp_path / "models")
    assert (tmp_path / "README.md").read_text() == "of something else\n"
