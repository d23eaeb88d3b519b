"""Labels that are values go through training, checkpoints and files as classes do."""

import copy

import pytest
import torch
from painted import painted, painter, points

import mebqat_lite as mq
from mebqat_lite import datasets, models
from mebqat_lite.datasets.base import Data, DataError, Split
from mebqat_lite.deploy import onnx_run
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.scale.speed import Fast
from mebqat_lite.switching.state import at

SHORT = {"batch_size": 32, "progress": False, "device": "cpu"}
PAIRS = ("W1A1", "W2A2", "W4A4", "FP")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fp", {}),
        ("mebqat", {}),
        ("mebqat", {"teacher": "next"}),
        ("mebqat_in_turn", {}),
        ("qat", {"bits": "W2A2"}),
        ("qat", {"bits": "W2A2", "warm_steps": 60, "teacher": "start"}),
        ("adabits", {}),
        ("any_precision_soft", {}),
        ("any_precision_recursive", {}),
    ],
)
def test_every_supervised_method_learns_values(method, options):
    data, model = painted(), painter()
    pair = "FP" if method == "fp" else "W2A2"
    before = mq.grid(model, data.test, pair, calibration=data.train.images)["mean"]
    mq.fit(model, data, method, steps=60, lr=0.02, **options, **SHORT)
    after = mq.grid(model, data.test, pair, calibration=data.train.images)["mean"]
    assert (after > before + 5).all()  # dB


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_values_of_another_type_are_learned_in_that_of_the_network(dtype):
    data, plain = painted(dtype=dtype), painted(dtype=dtype)
    plain = Data("points", plain.train._replace(labels=plain.train.labels.float()), None, None, plain.classes)
    runs = [mq.fit(painter(), one, "mebqat", steps=3, **SHORT) for one in (data, plain)]
    assert runs[0].losses == runs[1].losses


def test_images_may_have_values_too():
    """A network that tells from an image of 8 x 8 its brightness and its upper half's."""
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) ** 3
    means = torch.stack([images.mean((1, 2, 3)), images[:, :, :4].mean((1, 2, 3))], 1)
    data = Data("brightness", Split(images, means), None, None, ("all", "upper"))
    torch.manual_seed(0)
    model = mq.quantize(models.digit_net(widths=(4, 4, 4, 4), classes=2), sample=images)
    run = mq.fit(model, data, "mebqat", steps=60, lr=0.02, **SHORT)
    assert run.losses[-1] < 0.2 * run.losses[0]
    frame = mq.grid(model, data.train, PAIRS, calibration=images)
    assert frame.attrs["measure"] == "PSNR (dB)" and (frame["mean"] > 5).all()


def test_mixed_precision_learns_values():
    run = mq.fit(painter(), painted(), "mebqat", steps=60, lr=0.02, passes=Fast(amp=True), **SHORT)
    assert sum(run.losses[-10:]) < 0.7 * sum(run.losses[:10])


@pytest.mark.parametrize("method", ["mebqat", "mebqat_in_turn", "qat"])
def test_a_resumed_run_is_equal_to_the_bit(tmp_path, method):
    options = {
        "lr": 0.02,
        "save_every": 4,
        **({"bits": "W2A2", "teacher": "start"} if method == "qat" else {}),
        **SHORT,
    }
    whole = painter()
    run = mq.fit(whole, painted(), method, steps=9, **options)

    class Stop(BaseException):
        pass

    def stop(record):
        if record["step"] == 6:
            raise Stop

    with pytest.raises(Stop):
        mq.fit(painter(), painted(), method, steps=9, path=tmp_path / "run", log=stop, **options)
    again = painter(seed=1)
    resumed = mq.fit(again, painted(), method, steps=9, path=tmp_path / "run", **options)
    assert resumed.losses == run.losses
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in whole.state_dict().items())


def test_a_checkpoint_is_not_continued_on_other_values(tmp_path):
    data = painted()
    mq.fit(painter(), data, steps=2, path=tmp_path / "run", **SHORT)
    other = Data("points", data.train._replace(labels=data.train.labels * 0.5), None, None, data.classes)
    with pytest.raises(mq.CheckpointError, match="run was trained on other images"):
        mq.fit(painter(), other, steps=2, path=tmp_path / "run", **SHORT)


@pytest.mark.parametrize("quantizer", ["dorefa", "lsq"])
def test_files_paint_what_the_network_paints(tmp_path, quantizer):
    data, model = painted(), painter(quantizer)
    pairs = PAIRS[quantizer == "lsq" :]
    mq.fit(model, data, "mebqat", steps=5, **SHORT)
    before = mq.grid(model, data.test, pairs, calibration=data.train.images)
    mq.save_model(model, tmp_path / "model.safetensors")
    loaded, _ = mq.load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded.stem[0].frequencies, model.stem[0].frequencies)
    assert mq.grid(loaded, data.test, pairs, calibration=data.train.images).equals(before)
    mq.save_packed(model, tmp_path / "packed.safetensors", pairs[:-1])
    packed, _ = mq.load_packed(tmp_path / "packed.safetensors")
    for pair in pairs[:-1]:
        with torch.no_grad(), at(model, pair, "recalibrated"), at(packed, pair, "recalibrated"):
            assert torch.equal(model(data.test.images), packed(data.test.images))
    assert mq.grid(packed, data.test, pairs[:-1], norm_stats="recalibrated").equals(before.iloc[:-1])


@pytest.mark.slow  # an export takes a second
@pytest.mark.parametrize("pair", ["W1A1", "W2A2", "FP"])
def test_onnx_paints_what_the_network_paints(tmp_path, pair):
    data, model = painted(), painter()
    mq.fit(model, data, "mebqat", steps=5, **SHORT)
    mq.recalibrate(model, data.train.images, [pair])
    written = export_onnx(model, tmp_path / "net.onnx", pair, (2,))
    assert onnx_run.agreement(written.path, model, data.test.images, pair).largest_difference < 1e-5


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_a_network_of_other_outputs_is_refused_by_training_and_measures(outputs):
    data, model = painted(), painter(outputs=outputs)
    before = copy.deepcopy(model.state_dict())
    words = f"labels have 3 values each, but this network has {outputs} outputs"
    with pytest.raises(DataError, match=words):
        mq.fit(model, data, "mebqat", steps=2, **SHORT)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(DataError, match=words):
        mq.grid(model, data.test, "FP", norm_stats="batch")


@pytest.mark.parametrize("method", ["mebqat_pn", "pn", "mebqat_maml"])
def test_methods_for_new_classes_refuse_values(method):
    with pytest.raises(DataError, match="an episode is for classes, but the labels of these data are values"):
        mq.fit(painter("lsq"), painted(), method, steps=1, progress=False, device="cpu", ways=2)


@pytest.mark.parametrize(("name", "value"), [("pad", 1), ("flip", True)])
def test_vectors_are_not_cropped_or_flipped(name, value):
    with pytest.raises(
        DataError, match=r"pad and flip are for images \(channels, height, width\), but these have the shape \(2,\)"
    ):
        mq.fit(painter(), painted(), steps=1, **{name: value}, **SHORT)


def test_values_that_are_not_finite_are_refused_before_any_step():
    split = points()
    labels = split.labels.clone()
    labels[3, 1] = torch.nan
    with pytest.raises(DataError, match="labels are not finite"):
        mq.fit(painter(), Data("points", Split(split.images, labels), None, None, tuple("rgb")), steps=1, **SHORT)
    with pytest.raises(DataError, match="labels are not finite"):
        mq.grid(painter(), Split(split.images, labels), "FP", norm_stats="batch")


def test_subsets_of_values_are_refused():
    with pytest.raises(DataError, match="a stratified subset is for classes"):
        datasets.subset(painted(), 10)
