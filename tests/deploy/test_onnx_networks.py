"""ONNX files of networks with batch norm: of the package, of torchvision, of few shots."""

import numpy as np
import pytest
import torch
import torchvision
from dyadic import SHAPE, dyadic, images

import mebqat_lite as mq
from mebqat_lite import datasets, models, paths
from mebqat_lite.checkpoint import load_model
from mebqat_lite.deploy.onnx_export import export_few_shot, export_onnx
from mebqat_lite.deploy.onnx_run import agreement, answers, latency, session
from mebqat_lite.measure.saved import episodes_for
from mebqat_lite.switching.batchnorm import MissingNormSetError
from mebqat_lite.switching.convert import quantize
from mebqat_lite.switching.norms import give_norm_sets, is_recalibrated
from mebqat_lite.switching.state import at, norm_layers

slow = pytest.mark.slow  # an export takes a second


# --- batch norm ----------------------------------------------------------------------------------------------------


@pytest.fixture
def normed():
    torch.manual_seed(0)
    return quantize(models.digit_net(widths=(4, 4, 4, 4)), "lsq", sample=torch.rand(8, 1, 8, 8)).eval()


@slow
def test_statistics_are_measured_if_images_are_given_and_not_otherwise(tmp_path, normed):
    path, sample = tmp_path / "net.onnx", torch.rand(64, 1, 8, 8)
    with pytest.raises(ValueError, match=r"no recalibrated norm statistics for W2A2: give calibration="):
        export_onnx(normed, path, "W2A2", (1, 8, 8))
    assert not path.exists()
    for bits in ("W2A2", "W32A2"):
        export_onnx(normed.train(), path, bits, (1, 8, 8), calibration=sample)
        assert is_recalibrated(normed, bits)
        for plain in (True, False):
            found = agreement(path, normed, sample[:8], bits, plain=plain)
            assert found.share == 100 and found.disagreements == [] and found.largest_difference < 1e-5
    running = export_onnx(normed, tmp_path / "running.onnx", "W2A2", (1, 8, 8), norm_stats="running").path
    assert agreement(running, normed, sample[:8], "W2A2", "running").largest_difference < 1e-5
    assert agreement(running, normed, sample[:8], "W2A2").largest_difference > 0.01


@slow
def test_a_pair_without_a_norm_set_is_refused(tmp_path, normed):
    give_norm_sets(normed, "W2A2,W4A4")
    for how in ({"calibration": torch.rand(8, 1, 8, 8)}, {"norm_stats": "running"}):
        with pytest.raises(
            MissingNormSetError, match="no norm set for W3A3: this model has sets for FP, W2A2, W4A4 only"
        ):
            export_onnx(normed, tmp_path / "net.onnx", "W3A3", (1, 8, 8), **how)
    export_onnx(normed, tmp_path / "net.onnx", "W4A4", (1, 8, 8), norm_stats="running")


# --- networks of the package, of a user, of few shots --------------------------------------------------------------


@pytest.mark.parametrize("bits", [pytest.param("W1A1", marks=slow), "W4A4", pytest.param("FP", marks=slow)])
def test_a_shipped_network_answers_as_in_pytorch(tmp_path, bits):
    model, extra = load_model(paths.shipped("checkpoints", "digits-wide-mebqat.safetensors"))
    test = datasets.load(extra["data"], extra["seed"]).test
    export_onnx(model, tmp_path / "net.onnx", bits, test.images.shape[1:])
    found = agreement(tmp_path / "net.onnx", model, test.images, bits)
    assert found.images == 540 and found.share >= 99.9 and "same class for" in str(found)


@slow
def test_disagreements_are_listed_and_latencies_compared(tmp_path):
    net = dyadic()
    path = export_onnx(net, tmp_path / "net.onnx", "W4A4", SHAPE).path
    with torch.no_grad():
        net.last.bias[2] += 100
    chosen = answers(path, images()).argmax(1)
    found = agreement(path, net, images(), "W4A4")
    apart = [(index, 2, int(there)) for index, there in enumerate(chosen) if there != 2]
    assert found.disagreements == apart and found.share == pytest.approx(100 * (1 - len(apart) / 12))
    assert f"image {apart[0][0]}: PyTorch 2, ONNX {apart[0][2]}" in str(found)
    timed = latency(path, path, images(3), runs=5, warmup=1)
    assert (timed.batch, timed.runs) == (3, 5) and timed.quartiles[0] <= timed.ratio <= timed.quartiles[1]
    assert min(timed.milliseconds) > 0 and "at batch 3" in str(timed)


@slow
@pytest.mark.parametrize("bits", ["W4A4", "W8A8"])
def test_a_torchvision_network(tmp_path, bits):
    """With fractions of two throughout, so that its answers too must be equal to the last digit."""
    torch.manual_seed(0)
    x = images(3, (3, 64, 64))
    net = mq.quantize(torchvision.models.resnet18(num_classes=10), "lsq", sample=x).eval()
    with torch.no_grad():
        for norm in norm_layers(net).values():
            norm.eps = 0.0
        for name, parameter in net.named_parameters():
            if ".quant." in name:
                width = int(name.rpartition(".")[2][1:])
                parameter.fill_(2.0 ** -(width if ".w" in name else width // 2 + 1))
            elif parameter.dim() > 1:
                parameter.copy_((parameter * 32).round() / 32)
            else:
                parameter.copy_((parameter * 2**9).round() / 2**9)
    done = export_onnx(net, tmp_path / "net.onnx", bits, x.shape[1:], norm_stats="running")
    with at(net, bits), torch.no_grad():
        ours = net(x)
    assert torch.equal(answers(done.path, x), ours) and float(ours.std(0).max()) > 0.01
    assert len(done.layers) == 19 and {s.weights for s in done.layers} == {f"INT{bits[1]}"}


@slow
def test_a_prototypical_network_learns_classes_in_the_runtime(tmp_path):
    model, extra = load_model(paths.shipped("checkpoints", "glyphs-mebqat_pn.safetensors"))
    learner, episodes, _ = episodes_for(model, extra, shots=2, ways=7)
    enroll, classify = export_few_shot(model, tmp_path, "W2A2", (1, 28, 28))
    assert {path.name for path in tmp_path.iterdir()} == {"enroll.onnx", "classify.onnx"}
    assert [s.layer for s in enroll.layers] == [s.layer for s in classify.layers] == ["body.0.0", "body.1.0"]
    for number in range(3):
        support, query = episodes[number].support, episodes[number].query.flatten(0, 1)
        [prototypes] = session(enroll.path).run(None, {"support": support.numpy()})
        feed = {"images": query.numpy(), "prototypes": prototypes}
        classes, distances = session(classify.path).run(None, feed)
        logits = learner.adapt(model, support, "W2A2", "recalibrated")(query)
        assert prototypes.shape[0] == 7 and distances.shape == (len(query), 7)
        assert np.array_equal(classes, logits.argmax(1).numpy())
        assert np.array_equal(classes, distances.argmin(1))


@slow
def test_weights_that_are_no_layers_own_go_into_both_files(tmp_path):
    """At full precision dorefa_fp_tanh multiplies with tanh of the weights: once, not once a file."""
    x = torch.rand(6, 1, 16, 16)
    model = quantize(models.conv4(channels=4, image_size=16), "dorefa_fp_tanh", sample=x).eval()
    files = export_few_shot(model, tmp_path, "FP", (1, 16, 16), norm_stats="running")
    enroll, classify = (session(done.path) for done in files)
    [prototypes] = enroll.run(None, {"support": x[:4].unflatten(0, (2, 2)).numpy()})
    distances = classify.run(None, {"images": x[4:].numpy(), "prototypes": prototypes})[1]
    with torch.no_grad():
        out = model(x)
    wanted = torch.cdist(out[4:], out[:4].unflatten(0, (2, 2)).mean(1)).square()
    torch.testing.assert_close(torch.from_numpy(distances), wanted, rtol=1e-4, atol=1e-5)
