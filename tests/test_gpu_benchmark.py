"""The benchmark for a GPU: its miniature on the CPU, what happens to sections that fail, and the limit of time."""

import json
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu, steps
from mebqat_lite.bits import parse_all
from mebqat_lite.experiments.setups import get
from mebqat_lite.train import fit

SPEED = {f"speed/digit_net{more}" for more in ("", "+amp", "+compile", "+amp+compile")}
SECTIONS = SPEED | {"memory/digit_net", "maml", "accuracy"}


def measured(path, *words):
    assert gpu.main(["--miniature", "--out", str(path), *words]) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the miniature writes."""
    return measured(tmp_path_factory.mktemp("gpu") / "gpu.json")


def test_the_miniature_has_every_section(found):
    assert set(found["sections"]) == SECTIONS and found["miniature"]
    assert not [name for name, record in found["sections"].items() if {"error", "skipped"} & set(record)]
    assert found["environment"]["torch"] == torch.__version__ and "cores" in found["environment"]["machine"]
    assert list(found["sections"])[-2:] == ["speed/digit_net+compile", "speed/digit_net+amp+compile"]


def test_speed_is_said_in_images_that_go_forward_and_backward(found):
    for name in SPEED:
        for method in ("mebqat", "mebqat_in_turn"):
            row = found["sections"][name][method]
            assert row["runs"] == 2 and row["images_per_second"] == pytest.approx(
                [4 * 4 / seconds for seconds in row["seconds"]], rel=1e-2
            )
    assert found["sections"]["maml"]["vectorized over serial, 2 tasks"]["ratio"] > 0
    memory = found["sections"]["memory/digit_net"]
    assert all(row["ratio"] == round(row["bytes"][0] / row["bytes"][1], 3) for row in list(memory.values())[:2])


@pytest.mark.parametrize(("method", "updates"), [("mebqat", 1), ("mebqat_in_turn", 4)])
def test_both_rounds_go_four_times_through_the_same_batch(method, updates):
    bench, loops = gpu.miniature(60), []
    make = steps.loop
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "loop", lambda *args: loops.append(make(*args)) or loops[-1])
        ours, plain = bench.rounds(bench.cases["digit_net"], method)
    ours(), ours(), plain()
    [loop] = loops
    assert (loop.run.costs.steps, loop.run.costs.backprops) == (2 * updates, 8)
    drawn = [pair for _ in range(updates) for [pairs] in [loop.sampler.draw()] for pair in pairs]
    assert set(drawn) == set(parse_all("FP,W1A1,W4A4,W8A8")) and len(drawn) == 4


def test_the_accuracy_says_what_was_trained_on_what(found):
    row = found["sections"]["accuracy"]
    assert list(row["accuracy"]) == ["W2A2", "W4A4", "W6A6", "W8A8", "FP"]  # double_rounding has no W1A1
    assert all(0 <= mean <= 100 for mean in row["accuracy"].values())
    assert (row["steps"], row["jpeg_copy"], row["images"]) == (1, False, {"train": 20, "test": 20})
    assert row["title"].endswith("1 steps on random images")


def test_the_full_benchmark_is_the_set_up_and_both_networks_in_batches_of_256():
    bench = gpu.full(540, 30, "cifar10")
    names = ("preact_resnet20_w1", "resnet20")
    speed = [f"speed/{name}{more}" for more in ("", "+amp", "+compile", "+amp+compile") for name in names]
    assert list(bench.sections()) == [*speed[:4], *(f"memory/{name}" for name in names), "maml", "accuracy", *speed[4:]]
    assert {case.shape for case in bench.cases.values()} == {(256, 3, 32, 32)}
    assert (bench.device, bench.tasks, bench.few_shot.channels, bench.few_shot.ways) == ("cuda", 16, 64, 5)
    assert bench.setup == get("cifar10-resnet20").with_options(epochs=30)


@pytest.mark.parametrize(
    ("data", "words", "is_copy"),
    [
        ("folder:photos", "30 epochs on a JPEG copy, which must not stand beside", True),
        ("folder:/data/cifar10_jpeg,size=32", "30 epochs on a JPEG copy, which must not", True),
        ("cifar10", "mebqat_in_turn: 30 epochs on the binary CIFAR-10", False),
    ],
)
def test_jpeg_copies_are_marked(data, words, is_copy, monkeypatch):
    def briefly(model, data, method, recipe, **how):
        return fit(model, data, method, recipe.with_options(steps=1), **how)

    bench = gpu.full(540, 30, data)
    assert bench.data.args == (data,)
    monkeypatch.setattr(gpu, "fit", briefly)
    made = replace(bench, device="cpu", data=gpu.random_data)
    record = made.accuracy()
    assert words in record["title"] and (record["jpeg_copy"], record["data"]) == (is_copy, data.partition(":")[0])
    assert words in gpu.text("accuracy", record) and record["epochs"] == 30


@pytest.mark.parametrize(
    "error", [RuntimeError("no kernel\nat all"), torch.OutOfMemoryError("2 GiB"), AssertionError()]
)
def test_a_section_that_fails_is_named_and_the_others_go_on(error, tmp_path, monkeypatch, capsys):
    def fails(*args):
        raise error

    monkeypatch.setattr(gpu.Bench, "memory", fails)
    monkeypatch.setattr(gpu.Bench, "speed", lambda *args, **how: {})
    monkeypatch.setattr(gpu.Bench, "accuracy", lambda bench: {"title": "a", "accuracy": {}})
    sections = measured(tmp_path / "gpu.json")["sections"]
    said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    assert sections["memory/digit_net"]["error"] == said and set(sections) == SECTIONS
    assert [name for name, record in sections.items() if "error" in record] == ["memory/digit_net"]
    assert f"memory/digit_net: error: {said}\n" in capsys.readouterr().out and "ratio" in str(sections["maml"])


def test_no_time_skips_every_section(tmp_path, capsys):
    sections = measured(tmp_path / "gpu.json", "--seconds", "0")["sections"]
    assert set(sections) == SECTIONS
    assert {record["skipped"] for record in sections.values()} == {"the limit of 0 seconds was reached"}
    assert capsys.readouterr().out.count("skipped: the limit of 0 seconds was reached\n") == len(SECTIONS)


@pytest.mark.parametrize("section", ["maml", "accuracy"])
def test_the_limit_ends_a_section_and_skips_what_is_left(section, tmp_path, monkeypatch):
    """The first call after the limit is not made: not of a timed step, and not of a training step."""
    bench = gpu.miniature(60)
    before = getattr(gpu.Bench, section)

    def late(self):
        self.clock.started -= 60
        return before(self)

    monkeypatch.setattr(gpu.Bench, "speed", lambda *args, **how: {})
    monkeypatch.setattr(gpu.Bench, section, late)
    sections = gpu.run(bench, tmp_path / "gpu.json")["sections"]
    names = list(sections)
    skipped = [name for name in names if "skipped" in sections[name]]
    assert skipped == names[names.index(section) :]


def test_what_was_measured_is_kept_when_the_run_is_killed(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu.Bench, "maml", killed)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "gpu.json")
    kept = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert set(kept) == {"speed/digit_net", "speed/digit_net+amp", "memory/digit_net"}


def test_without_a_gpu_it_refuses_in_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert gpu.main([]) == 2
    said = capsys.readouterr().err
    assert said == "there is no GPU here: run this on a machine with one, or try it with --miniature\n"
    assert not list(tmp_path.iterdir())


def test_a_gpu_is_waited_for_and_its_peak_is_counted_beyond_what_was_there(monkeypatch):
    bench, calls = replace(gpu.miniature(60), device="cuda"), []
    for name, value in {"memory_allocated": 100, "max_memory_allocated": 350}.items():
        monkeypatch.setattr(torch.cuda, name, lambda name=name, value=value: calls.append(name) or value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert bench.peak(bench.waiting(lambda: calls.append("step"), 2)) == 250
    round_ = ["step", "step", "synchronize"]
    assert calls == [*round_, "reset_peak_memory_stats", "memory_allocated", *round_, "max_memory_allocated"]
    about = gpu.environment("cuda")
    assert about["device"] == "NVIDIA H100" and {"cuda", "driver", "torch", "tf32_convolutions"} <= set(about)


def test_the_clock_counts_from_its_start():
    gpu.Clock(60).check()
    with pytest.raises(gpu.OutOfTime, match="the limit of 60 seconds was reached"):
        gpu.Clock(60, time.perf_counter() - 61).check()
