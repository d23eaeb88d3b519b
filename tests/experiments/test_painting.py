"""Networks of coordinates paint at several bitwidths: what is shown is what is measured."""

import math

import pytest
from painted import painted, painter

import mebqat_lite as mq
from mebqat_lite import datasets, paths
from mebqat_lite.experiments.painting import paint

FILES = {name: paths.shipped("checkpoints", f"paint-{name}.safetensors") for name in ("mebqat_in_turn", "ptq_naive")}


@pytest.mark.parametrize("pairs", [["W1A1", "FP"], "W2A2,W3A8", ["W16A16"]])
def test_each_picture_has_the_psnr_that_stands_under_it(pairs):
    pictures, measured = paint(FILES, pairs)
    names = pairs.split(",") if isinstance(pairs, str) else pairs
    wanted = datasets.picture(datasets.paint().test.labels)
    for title in FILES:
        assert list(pictures[title]) == list(measured[title]) == names
        for pair, picture in pictures[title].items():
            assert picture.shape == (64, 64, 3) and picture.min() >= 0 and picture.max() <= 1
            error = float(((wanted.numpy() - picture) ** 2).mean())
            assert 0 <= -10 * math.log10(error) - measured[title][pair] < 4  # clipping brings colours nearer


def test_they_paint_their_own_photograph(tmp_path, monkeypatch):
    """The data and the seed are those in the file, and statistics in it do not matter."""
    seen = []
    monkeypatch.setattr(datasets, "load", lambda name, seed: seen.append((name, seed)) or painted())
    monkeypatch.setattr(datasets, "picture", lambda colours: colours)
    path = mq.save_model(painter(), tmp_path / "net.safetensors", data="paint", seed=7)
    pictures, measured = paint({"one": path}, ["W2A2"])
    frame = mq.grid(painter(), painted().test, "W2A2", calibration=painted().train.images)
    assert seen == [("paint", 7)] and measured == {"one": {"W2A2": pytest.approx(frame["mean"].item())}}
    assert pictures["one"]["W2A2"].shape == painted().test.labels.shape
