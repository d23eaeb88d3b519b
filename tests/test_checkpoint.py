"""Checkpoints: what comes back is bit-identical, what is none is refused, nothing is unpickled or half written."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import mebqat_lite
from mebqat_lite import (
    CheckpointError,
    at,
    files,
    fit,
    give_norm_sets,
    load_model,
    models,
    quantize,
    recalibrate,
    save_model,
    set_norm_stats,
)
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.files import VERSION, read, write
from mebqat_lite.quantizers import QUANTIZERS
from mebqat_lite.switching.state import plan_of, quantized_layers, setting_of

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(2))
MAP = {"*": "W8A8", "body.1.0": "W2A4"}


def net(quantizer="dorefa", seed=0, **options):
    """A net whose statistics, gains and learned steps are not those of a new one."""
    torch.manual_seed(seed)
    model = quantize(models.digit_net(widths=(4, 4, 4, 4)), quantizer, sample=IMAGES, **options)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("stem.0.weight"):
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor))
    return model.eval()


def outputs(model, pairs, norm_stats="running"):
    with torch.no_grad():
        outs = []
        for bits in pairs:
            with at(model, bits, norm_stats):
                outs.append(model(IMAGES))
    return torch.stack(outs)


def gap(model, other, pairs, norm_stats="running"):
    """The largest difference of two models' outputs: 0 says that they are equal to the bit."""
    return (outputs(model, pairs, norm_stats) - outputs(other, pairs, norm_stats)).abs().max().item()


def saved(path):
    return save_model(net(), path / "a.safetensors")


# --- what comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", list(QUANTIZERS))
def test_outputs_come_back_to_the_bit(quantizer, tmp_path):
    model = net(quantizer)
    pairs = ["FP", "W2A2", "W4A8", "W8A32", MAP] + ["W1A1", "W1A32"] * QUANTIZERS[quantizer].one_bit
    save_model(model, tmp_path / "a", note="x", numbers=[1, 2.5])
    loaded, extra = load_model(tmp_path / "a")
    assert extra == {"note": "x", "numbers": [1, 2.5]}
    assert not loaded.training
    assert plan_of(loaded) == plan_of(model) and json.dumps(loaded.spec) == json.dumps(model.spec)
    assert gap(loaded, model, pairs) == 0
    assert gap(loaded, model, pairs, "batch") == 0
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    learns = [[p.requires_grad for p in m.parameters()] for m in (loaded, model)]
    assert learns[0] == learns[1]


@pytest.mark.parametrize("quantizer", ["dorefa", "lsq"])
def test_recalibrated_statistics_come_back(quantizer, tmp_path):
    model = net(quantizer)
    recalibrate(model, IMAGES, "W2A2,FP")
    recalibrate(model, IMAGES, MAP)
    set_norm_stats(model, "recalibrated")
    loaded, _ = load_model(save_model(model, tmp_path / "a"))
    assert setting_of(loaded).norm_stats == "recalibrated"
    pairs = ["W2A2", "FP", MAP]
    assert gap(loaded, model, pairs, None) == 0
    assert not torch.equal(outputs(loaded, pairs, None), outputs(model, pairs, "running"))


def test_norm_sets_come_back(tmp_path):
    model = give_norm_sets(net(), ["W2A2", "W4A4"])
    for i, norm in enumerate(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.constant_(norm.weight, 0.5 + 0.1 * i)
    loaded, _ = load_model(save_model(model, tmp_path / "a"))
    pairs = ["FP", "W2A2", "W4A4"]
    assert gap(loaded, model, pairs) == 0
    assert len(loaded.stem[1].sets) == 2


def test_layers_kept_by_name_come_back(tmp_path):
    model = net(keep=["body.1.0"])
    loaded, _ = load_model(save_model(model, tmp_path / "a"))
    assert set(quantized_layers(loaded)) == {"stem.0", "body.0.0", "body.2.0", "body.4"}
    assert gap(loaded, model, ["W2A2"]) == 0


@pytest.mark.parametrize("widths", [(4, 4, 4, 4), (16, 32, 32, 32)])
@pytest.mark.parametrize("quantizer", ["dorefa", "lsq"])
def test_a_trained_model_comes_back_to_the_bit(quantizer, widths, tmp_path):
    torch.manual_seed(0)
    model = models.digit_net(widths=widths)
    data = Data("made", Split(IMAGES, torch.arange(24) % 10), None, None, ())
    fit(model, data, steps=3, quantizer=quantizer, progress=False, device="cpu")
    loaded, _ = load_model(save_model(model, tmp_path / "a"))
    assert gap(loaded, model, ["FP", "W2A2", "W4A4"]) == 0


class Own(nn.Module):
    """A model of a user's own; two of its layers may share one weight."""

    def __init__(self, tied=False):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        if tied:
            self.c.weight = self.b.weight

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x.flatten(1)).relu()).relu()).relu())


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_one_s_own_comes_back(tied, tmp_path):
    model = quantize(Own(tied), sample=IMAGES).eval()
    path = save_model(model, tmp_path / "a")
    with pytest.raises(CheckpointError, match="a holds a model of your own: pass model= to load into"):
        load_model(path)
    loaded, _ = load_model(path, model=Own(tied))
    assert gap(loaded, model, ["FP", "W2A2"]) == 0


# --- what is refused ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "gone.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint {path.name} in "):
            load_model(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    path = saved(tmp_path)
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"a\.safetensors"):
        load_model(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole"))


@given(share=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused(whole, share):
    content = whole.read_bytes()
    part = whole.with_name("part.safetensors")
    part.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"part\.safetensors is damaged or no safetensors file"):
        load_model(part)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 200, -1, -8])
def test_files_cut_at_their_seams_are_refused(whole, length):
    part = whole.with_name("part.safetensors")
    part.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(part)


@given(content=st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_random_bytes_are_refused(whole, content):
    path = whole.with_name("random")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="random is damaged or no safetensors file"):
        load_model(path)


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_nothing_is_unpickled(how, tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "trap.pt"
    path.write_bytes(pickle.dumps(Trap(sprung))) if how == "pickle" else torch.save({"a": Trap(sprung)}, path)
    for kind in ("model", "training"):
        with pytest.raises(CheckpointError, match=r"trap\.pt is damaged or no safetensors file"):
            read(path, kind)
    assert not sprung.exists()
    pickle.loads(path.read_bytes()) if how == "pickle" else torch.load(path, weights_only=False)
    assert sprung.exists()  # it would have


def test_foreign_files_are_refused(tmp_path):
    for metadata in (None, {"format": "pt"}, {"mebqat_lite": "[1]"}, {"mebqat_lite": "{}"}):
        save_file({"a": torch.ones(2)}, tmp_path / "a", metadata=metadata)
        with pytest.raises(CheckpointError, match="a was not written by mebqat_lite"):
            load_model(tmp_path / "a")
    save_file({"a": torch.ones(2)}, tmp_path / "a", metadata={"mebqat_lite": "{"})
    with pytest.raises(CheckpointError, match="a is damaged"):
        load_model(tmp_path / "a")


@pytest.mark.parametrize("meta", [{"format": "mebqat_lite"}, {"format": "mebqat_lite", "version": 1}])
def test_a_description_without_its_parts_is_refused(meta, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a", metadata={"mebqat_lite": json.dumps(meta)})
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "a")


def test_a_newer_version_is_refused(tmp_path):
    write(tmp_path / "a", {}, {"version": VERSION + 1, "kind": "model"})
    with pytest.raises(CheckpointError, match="a has format version 3, this package reads up to 2: update it"):
        load_model(tmp_path / "a")


def test_another_kind_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors is a model checkpoint, not a training one"):
        read(saved(tmp_path), "training")


@pytest.mark.parametrize(
    "other", [lambda: models.digit_net(), lambda: Own(), lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())]
)
def test_another_architecture_is_refused(other, tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors does not fit this model"):
        load_model(saved(tmp_path), model=other())


# --- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_the_old_file(call, error, tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(files.os, call, fail)
        save_model(net(seed=5), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    load_model(path)


def test_the_new_file_is_whole_before_it_takes_the_name(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before, seen, rename = path.read_bytes(), [], files.os.replace

    def watched(part, target):
        seen.append((Path(target).read_bytes(), Path(part).read_bytes(), Path(part).parent))
        rename(part, target)

    monkeypatch.setattr(files.os, "replace", watched)
    save_model(net(seed=5), path)
    assert seen == [(before, path.read_bytes(), tmp_path)] and path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made(tmp_path):
    load_model(save_model(net(), tmp_path / "new" / "folder" / "a.safetensors"))


def test_a_file_keeps_the_version_of_the_code_that_wrote_it(tmp_path):
    _, meta = read(write(tmp_path / "a.safetensors", {"x": torch.ones(1)}, {"kind": "trial"}), "trial")
    assert meta["versions"]["mebqat_lite"] == mebqat_lite.__version__
