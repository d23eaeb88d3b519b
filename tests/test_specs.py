"""A file says all options of its network, and a file from when ``digit_net`` was wide still is of the wide one."""

import pytest
import torch
from torch import nn

from mebqat_lite import (
    CheckpointError,
    fit,
    load_model,
    load_packed,
    models,
    quantize,
    recalibrate,
    save_model,
    save_packed,
)
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.deploy.onnx_export import export_onnx

WIDE = (16, 32, 32, 32)
FORMS = {
    "model": (save_model, load_model),
    "packed": (lambda model, path: save_packed(model, path, "W2A2"), load_packed),
}


def pictures(channels=1):
    return torch.rand(24, channels, 8, 8, generator=torch.Generator().manual_seed(3))


def measured(model, images):
    """The model with a quantizer, and with statistics that are not those of a new one."""
    return recalibrate(quantize(model, "dorefa", sample=images), images, "W2A2").eval()


def as_before(model, **options):
    """The model with the spec that it had when a spec held only the options that were given."""
    model.spec = models.Spec(name="digit_net", options=options)
    return model


def written(model, path, form):
    FORMS[form][0](model, path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options", [{}, {"classes": 10, "in_channels": 1}, {"classes": 3}, {"in_channels": 3}], ids=str
)
def test_a_file_without_widths_is_of_the_wide_digit_net(options, form, tmp_path):
    images = pictures(options.get("in_channels", 1))
    model = measured(models.digit_net(widths=WIDE, **options), images)
    new, _ = FORMS[form][1](written(model, tmp_path / "new", form))
    old, _ = FORMS[form][1](written(as_before(model, **options), tmp_path / "old", form))
    assert old.spec == new.spec and old.spec["options"]["widths"] == list(WIDE)
    assert torch.equal(old(images), new(images))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("widths", [(4, 5, 6, 7), (6, 12, 12, 12)], ids=str)
def test_a_file_of_that_time_keeps_the_widths_that_it_says(widths, form, tmp_path):
    model = measured(models.digit_net(widths=widths), pictures())
    old, _ = FORMS[form][1](written(as_before(model, widths=widths), tmp_path / "old", form))
    assert [m.out_channels for m in old.modules() if isinstance(m, nn.Conv2d)] == list(widths)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [{}, {"classes": 10}, {"width": 5}], ids=str)
def test_a_default_that_changes_later_changes_no_file(given, form, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "MODELS", dict(models.MODELS))

    def register(default):
        @models.architecture
        def tiny(width=default, classes=10):
            first, middle, last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, classes)
            return nn.Sequential(nn.Flatten(), first, nn.ReLU(), middle, nn.ReLU(), last)

    register(5)
    path = written(measured(models.build("tiny", **given), pictures()), tmp_path / "tiny", form)
    register(9)
    model, _ = FORMS[form][1](path)
    assert model.spec == {"name": "tiny", "options": {"width": 5, "classes": 10}}
    assert model(pictures()).shape == (24, 10) and models.build("tiny").spec["options"]["width"] == 9


def test_a_network_of_one_s_own_keeps_its_own_spec(tmp_path):
    layers = [nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 10)]
    model = measured(nn.Sequential(*layers), pictures())
    model.spec = {"name": "digit_net", "options": {}}  # no `models.Spec`
    with pytest.raises(CheckpointError, match="holds a model of your own: pass model= to load into"):
        load_model(save_model(model, tmp_path / "own"))


@pytest.mark.slow  # it exports twice
def test_old_and_new_files_become_the_same_onnx_file(tmp_path):
    model, found = measured(models.digit_net_wide(), pictures()), []
    for name, spec in (("new", model.spec), ("old", models.Spec(name="digit_net", options={}))):
        model.spec = spec
        again, _ = load_model(save_model(model, tmp_path / name))
        found.append(export_onnx(again, tmp_path / f"{name}.onnx", "W2A2", (1, 8, 8)).path.read_bytes())
    assert found[0] == found[1]


def test_a_training_goes_on_with_the_wide_net_and_not_with_another(tmp_path):
    """A training checkpoint holds no spec: it fits the network of its sizes, however that was asked for."""
    data = Data("made", Split(pictures(), torch.arange(24) % 10), None, None, ())

    def train(model, path=None, log=None):
        torch.manual_seed(0)
        how = {"steps": 4, "warm_steps": 0, "batch_size": 8, "device": "cpu", "progress": False}
        fit(model, data, "mebqat", path=path, save_every=1, log=log, **how)
        return model.state_dict()

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    torch.manual_seed(1)
    whole = train(models.digit_net_wide())
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        train(models.digit_net(widths=WIDE), tmp_path / "run", stop)
    with pytest.raises(CheckpointError, match=r"run does not fit this model: size mismatch for stem\.0\.weight"):
        train(models.digit_net(), tmp_path / "run")
    again = train(models.digit_net_wide(), tmp_path / "run")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
