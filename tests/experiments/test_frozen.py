"""The frozen benchmark: its episodes do not change, and its sheet is what was measured."""

import json

import pytest
import torch

from mebqat_lite import cli, models, quantize
from mebqat_lite.checkpoint import save_model
from mebqat_lite.datasets import Data, Split, glyphs
from mebqat_lite.experiments import frozen
from mebqat_lite.measure.fewshot import episode_scores
from mebqat_lite.measure.saved import few_shot
from mebqat_lite.methods import METHODS
from mebqat_lite.recipe import Recipe
from mebqat_lite.switching.norms import recalibrate
from mebqat_lite.switching.state import pairs_of

PAIRS = ["W2A2", "W3A8", "FP"]
RECIPE = Recipe(ways=3, queries=2, quantizer="lsq")


def characters():
    """Nine classes of 4 x 4 blocks with noise, 6 images each."""
    draw = torch.Generator().manual_seed(0)
    shapes = torch.rand(9, 1, 1, 16, 16, generator=draw).expand(9, 6, 1, 16, 16)
    images = (shapes + 0.3 * torch.rand(9, 6, 1, 16, 16, generator=draw)).flatten(0, 1)
    split = Split(images, torch.arange(9).repeat_interleave(6))
    return Data("made", split, split, split, tuple("abcdefghi"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of MEBQAT-PN, one network for W2A2, and one that is none of few shots."""
    folder, data = tmp_path_factory.mktemp("checkpoints"), characters()
    for name, method, seed, bits in (("a", "mebqat_pn", 0, ""), ("b", "mebqat_pn", 1, ""), ("c", "pn_qat", 0, "W2A2")):
        torch.manual_seed(seed)
        model = quantize(models.conv4(channels=4, image_size=16), "lsq", sample=data.train.images)
        described = {"setup": {"recipe": vars(RECIPE)}, "data": "made", "seed": seed, "bits": bits, "variant": method}
        save_model(model, folder / f"{name}.safetensors", method=method, **described)
    save_model(quantize(models.digit_net(), sample=torch.rand(4, 1, 8, 8)), folder / "digits.safetensors", seed=0)
    return folder


@pytest.fixture(autouse=True)
def made(monkeypatch):
    monkeypatch.setitem(frozen.datasets.DATASETS, "made", lambda seed=0: characters())
    monkeypatch.setitem(frozen.SETS, "made-3way", frozen.Frozen("made", 3, 1, 2))


@pytest.fixture
def found(folder, made):
    return frozen.sheet([folder], "made-3way", bits=PAIRS, count=20, progress=False)


@pytest.mark.parametrize("name", frozen.CHECKSUMS)
def test_the_episodes_of_the_embedded_data_are_frozen(name):
    assert frozen.SETS[name].episodes("test").fingerprint(600) == frozen.CHECKSUMS[name]
    assert set(frozen.SETS[name].episodes("val").split.labels.tolist()) <= set(glyphs().val.labels.tolist())


def test_rows_are_methods_and_hold_the_mean_over_seeds(found, folder):
    assert set(found["accuracy"]) == {"mebqat_pn", "pn_qat"} and list(found["accuracy"]["pn_qat"]) == ["W2A2"]
    data, runs = characters(), []
    for name in "ab":
        model, _ = frozen.load_model(folder / f"{name}.safetensors")
        recalibrate(model, data.train.images, PAIRS)
        learner, _ = few_shot(METHODS["mebqat_pn"], data.test, RECIPE)
        how = {"count": 20, "norm_stats": "recalibrated"}
        runs.append(episode_scores(model, learner, frozen.SETS["made-3way"].episodes("test"), PAIRS, **how))
    both = torch.stack(runs)  # (seeds, pairs, episodes)
    for index, pair in enumerate(PAIRS):
        cell = found["accuracy"]["mebqat_pn"][pair]
        assert cell["mean"] == pytest.approx(float(both[:, index].mean())) and cell["n"] == 2
        of_episodes = both[:, index].mean(0)
        assert cell["ci95_episodes"] == pytest.approx(2.093 * float(of_episodes.std()) / 20**0.5, rel=1e-3)
        assert cell["ci95"] == pytest.approx(12.706 * float(both[:, index].mean(1).std()) / 2**0.5, rel=1e-3)
    assert found["means"]["mebqat_pn"]["all"]["mean"] == pytest.approx(float(both.mean()))
    assert found["means"]["mebqat_pn"]["odd_widths"]["mean"] == pytest.approx(float(both[:, 1].mean()))


def test_regret_is_what_a_row_loses_where_a_network_was_trained_for_the_pair(found):
    gap = found["accuracy"]["pn_qat"]["W2A2"]["mean"] - found["accuracy"]["mebqat_pn"]["W2A2"]["mean"]
    wanted = {"mean": pytest.approx(gap), "worst": pytest.approx(gap), "pair": "W2A2", "pairs": ["W2A2"]}
    assert found["regret"] == {"mebqat_pn": wanted}


def test_what_the_command_line_trained_is_measured_too(folder, tmp_path):
    """`train` names a network's one pair in its recipe, and has neither ``bits`` nor ``variant``."""
    for name, method, bits in (("own", "pn_qat", ("W2A2",)), ("all", "mebqat_pn", ())):
        model, _ = frozen.load_model(folder / "a.safetensors")
        described = {"setup": {"recipe": vars(RECIPE) | {"bits": bits}}, "data": "made", "seed": 0}
        save_model(model, tmp_path / f"{name}.safetensors", method=method, **described)
    found = frozen.sheet([tmp_path], "made-3way", bits=PAIRS, count=5, progress=False)
    assert {row: list(cells) for row, cells in found["accuracy"].items()} == {"pn_qat": ["W2A2"], "mebqat_pn": PAIRS}


def test_a_network_is_measured_at_the_pairs_that_its_quantizer_defines(tmp_path):
    model = quantize(models.conv4(channels=4, image_size=16), "double_rounding", sample=characters().train.images)
    described = {"setup": {"recipe": vars(RECIPE)}, "data": "made", "seed": 0}
    save_model(model, tmp_path / "d.safetensors", method="mebqat_pn", **described)
    found = frozen.sheet([tmp_path], "made-3way", bits=["W2A2", "W16A16", "FP"], count=5, progress=False)
    assert list(found["accuracy"]["mebqat_pn"]) == ["W2A2", "FP"]
    whole = frozen.sheet([tmp_path], "made-3way", count=1, progress=False)
    assert set(whole["accuracy"]["mebqat_pn"]) == {str(pair) for pair in pairs_of(model)} and len(pairs_of(model)) == 64


def test_enrolling_at_a_pair_and_asking_at_it_is_the_accuracy_there(folder):
    found = frozen.sheet([folder / "a.safetensors"], "made-3way", bits=PAIRS, count=20, progress=False)
    matrix = found["enrolment"]["mebqat_pn"]
    assert list(matrix) == list(frozen.ENROLLED)
    for pair in ("W2A2", "FP"):
        assert matrix[pair][pair] == pytest.approx(found["accuracy"]["mebqat_pn"][pair]["mean"])


def test_the_sheet_is_written_and_printed(folder, tmp_path, capsys):
    options = ["--set", "made-3way", "--bits", "W2A2,FP", "--episodes", "5", "--out", str(tmp_path)]
    assert cli.main(["benchmark", str(folder), *options]) == 0
    printed, stored = capsys.readouterr().out, json.loads((tmp_path / "benchmark.json").read_text())
    assert printed.startswith(
        f"made-3way: 3-way 1-shot, 2 queries a class, test classes, 5 episodes, checksum {stored['set']['checksum']}"
    )
    assert (
        "regret against QAT at 1 pairs" in printed and f"{stored['accuracy']['pn_qat']['W2A2']['mean']:.1f}" in printed
    )
    for name in ("benchmark.txt", "bitops.png", "enrolment-mebqat_pn.png"):
        assert (tmp_path / name).stat().st_size > 300
    assert cli.main(["benchmark", str(folder / "digits.safetensors"), *options]) == 2
    assert "no few-shot checkpoint" in capsys.readouterr().err
    assert cli.main(["benchmark", str(folder), "--set", "mnist"]) == 2
    assert "there are glyphs-20way" in capsys.readouterr().err
