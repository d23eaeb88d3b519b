"""Few-shot networks on the command line: trained, measured, and refused in one line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mebqat_lite import datasets, load_model, models, quantize, recalibrate, save_model
from mebqat_lite.cli import main
from mebqat_lite.datasets import Episodes
from mebqat_lite.learners import ProtoNet
from mebqat_lite.measure.fewshot import EVALUATION_SEED, episode_grid, episode_scores

EVALUATE = ["evaluate", "--checkpoint", "m.safetensors", "--bits", "W2A2,FP", "--episodes", "20"]


def train(kind, *options):
    command = ["train", "--recipe", f"tiny-{kind}", "--method", f"mebqat_{kind}", "--out", "m.safetensors"]
    assert main([*command, "--no-tensorboard", *options]) == 0


@pytest.fixture(scope="module")
def networks():
    """What the command left for each kind of network, trained when a test first asks for it."""
    return {}


@pytest.fixture
def trained(elsewhere, networks):
    """Puts a trained network of a kind into the folder, and returns the command that measures it."""

    def put(kind):
        model = elsewhere / "m.safetensors"
        if kind in networks:
            model.write_bytes(networks[kind])
        else:
            train(kind)
            networks[kind] = model.read_bytes()
        return EVALUATE

    return put


def written(folder, name="r.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("norm", ["recalibrated", "support"])
def test_a_prototypical_network_is_trained_and_measured(capsys, elsewhere, norm):
    train("pn", "--data", "glyphs", "--steps", "2", "--set", "ways=4")
    command = [*EVALUATE, "--norm", norm]
    assert "2 steps, 6 back-propagations" in capsys.readouterr().out
    asked = ["--ways", "5", "--shots", "1", "--queries", "1"]
    assert main([*command, *asked, "--json", "r.json", "--save", "r.csv"]) == 0
    printed, record = capsys.readouterr().out, written(elsewhere)
    model, extra = load_model(elsewhere / "m.safetensors")
    assert extra["method"] == "mebqat_pn" and extra["setup"]["recipe"]["ways"] == 4
    data = datasets.glyphs()
    recalibrate(model, data.train.images[:2048], "W2A2,FP")
    frame = episode_grid(
        model, ProtoNet("labels"), Episodes(data.test, 5, 1, 1, EVALUATION_SEED), "W2A2,FP", count=20, norm_stats=norm
    )
    assert record["norm_stats"] == norm and record["seconds"] > 0
    for bits, row in frame.iterrows():
        assert record["accuracy"]["m"][bits] == {"mean": row["mean"], "ci95": pytest.approx(row["ci95"]), "n": 20}
        assert row["ci95"] > 0
        assert f"{row['mean']:.1f}" in next(line for line in printed.splitlines() if line.startswith(bits))
    assert f"norm statistics: {norm}; 20 episodes of glyphs, 5-way 1-shot, 1 queries a class" in printed
    assert (elsewhere / "r.csv").read_text().count("\n") == 3


def test_training_again_continues_and_ends_the_same(capsys, elsewhere):
    train("maml")
    first = load_model(elsewhere / "m.safetensors")[0].state_dict()
    train("maml")
    again = load_model(elsewhere / "m.safetensors")[0].state_dict()
    assert all(torch.equal(first[name], t) for name, t in again.items())
    assert capsys.readouterr().out.count("2 steps, 4 back-propagations") == 2


@pytest.mark.parametrize("norm", ["recalibrated", "support", "batch"])
def test_a_maml_network_is_measured(capsys, elsewhere, norm, trained):
    command = trained("maml")
    assert main([*command, "--norm", norm, "--episodes", "3", "--json", "r.json"]) == 0
    assert [cell["n"] for cell in written(elsewhere)["accuracy"]["m"].values()] == [3, 3]


def test_without_a_number_of_episodes_600_are_measured(capsys, elsewhere, trained):
    command = trained("pn")
    assert main([*command[:-2], "--json", "r.json"]) == 0
    assert {cell["n"] for cell in written(elsewhere)["accuracy"]["m"].values()} == {600}


def pictures(folder, classes=6, count=4, size=(20, 24), mode="RGB"):
    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(count):
            noise = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).convert(mode).save(place / f"{number}.png")


@pytest.mark.parametrize("norm", ["recalibrated", "support"])
def test_a_folder_of_class_folders_is_measured_whole_in_the_network_s_size(capsys, elsewhere, norm, trained):
    pictures(elsewhere / "own pictures")
    command, place = trained("pn"), elsewhere / "own pictures"
    capsys.readouterr()
    assert main([*command, "--data", f"folder:{place}", "--ways", "6", "--norm", norm, "--json", "r.json"]) == 0
    assert "20 episodes of" in (printed := capsys.readouterr().out) and "6-way 1-shot" in printed
    cells = written(elsewhere)["accuracy"]["m"]
    assert list(cells) == ["W2A2", "FP"] and all(c["ci95"] is not None and c["n"] == 20 for c in cells.values())
    data = datasets.load(f"classes:{place},size=28,channels=1,whole=1")
    assert data.test.images.shape == (24, 1, 28, 28)
    model, _ = load_model(elsewhere / "m.safetensors")
    recalibrate(model, datasets.glyphs().train.images[:2048], "W2A2,FP")  # of what it was trained on
    asked = Episodes(data.test, 6, 1, 1, EVALUATION_SEED)
    scores = episode_scores(model, ProtoNet(), asked, "W2A2,FP", count=20, norm_stats=norm)
    assert [cell["mean"] for cell in cells.values()] == pytest.approx(scores.mean(1).tolist())


def classifier(folder):
    torch.manual_seed(0)
    model = quantize(models.digit_net(widths=(4, 4, 4, 4)), sample=torch.rand(8, 1, 8, 8))
    save_model(model, folder / "digits.safetensors", data="digits", seed=0, method="mebqat")


def refused(capsys, command, message):
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
    assert printed.err.startswith("mebqat-lite: ") and printed.err.count("\n") == 1 and len(printed.err) < 300


@pytest.mark.parametrize("option", [("--ways", "5"), ("--shots", "1"), ("--episodes", "9"), ("--norm", "support")])
def test_a_classifier_of_fixed_classes_has_no_ways(capsys, elsewhere, option):
    classifier(elsewhere)
    refused(capsys, ["evaluate", "--checkpoint", "digits.safetensors", *option], "classifier of fixed classes")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("maml", ["--ways", "20"], "classifier has 5 outputs, and the episodes 20 ways: ask for 5 ways"),
        ("pn", ["--ways", "5000"], "5000 ways need as many classes, and there are"),
        ("pn", ["--shots", "20"], "20 shots and 1 queries need 21 images of each class"),
        ("pn", ["--ways", "1"], "ways must be a whole number of at least 2, not 1"),
        ("pn", ["--data", "folder:gone"], "gone"),
    ],
)
def test_what_a_few_shot_network_cannot_be_asked_is_one_line(capsys, elsewhere, kind, options, message, trained):
    refused(capsys, [*trained(kind), "--norm", "support", *options], message)


def test_a_pair_per_layer_is_refused_for_new_classes(capsys, elsewhere, trained):
    trained("pn")
    command = ["evaluate", "--checkpoint", "m.safetensors", "--layers", "*=W8A8"]
    refused(capsys, command, "--layers is for classifiers of fixed classes; give --bits")


@pytest.mark.parametrize("option", ["--shots", "--queries", "--ways", "--episodes"])
def test_none_of_what_is_counted_is_refused(capsys, elsewhere, option, trained):
    """Zero is a number that was asked for, not the absence of one."""
    command = [*trained("pn"), option, "0"]
    capsys.readouterr()
    assert main(command) == 2 and capsys.readouterr().err.count("\n") == 1
