"""Files of networks in wrappers have the names of the network inside, and load into either."""

import pytest
import torch
from shared import IMAGES, SHAPE, Auxiliary, made
from torch import nn

from mebqat_lite import at, load_model, load_packed, quantize, recalibrate, save_model, save_packed
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import agreement
from mebqat_lite.files import read


def compiled(model):
    return torch.compile(model, backend="eager")


class Scaled(nn.Module):
    """A step before the network that has no weights."""

    def forward(self, x):
        return (x - 0.5) / 0.25


WRAPPERS = {
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "parallel and compiled": lambda model: nn.DataParallel(compiled(model)),
}


def logits(model):
    with torch.no_grad(), at(model, "W3A3", "recalibrated"):
        return model(IMAGES)


def check_files(model, fresh, folder):
    """All three files of ``model`` give its logits, loaded into what ``fresh`` builds."""
    wanted = logits(model.eval())
    save_model(model, folder / "m")
    assert torch.equal(logits(load_model(folder / "m", fresh())[0]), wanted)
    save_packed(model, folder / "p", "W3A3", calibration=IMAGES)
    assert torch.equal(load_packed(folder / "p", fresh())[0](IMAGES), wanted)
    done = export_onnx(model, folder / "net.onnx", "W3A3", SHAPE)
    assert agreement(done.path, model, IMAGES, "W3A3").largest_difference < 1e-5


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_network_in_a_wrapper_has_files_of_its_own_names(name, tmp_path):
    check_files(WRAPPERS[name](made(Auxiliary)), Auxiliary, tmp_path)
    for file, kind in (("m", "model"), ("p", "packed")):
        tensors, meta = read(tmp_path / file, kind)
        names = [*tensors, *(site["name"] for site in meta["model"]["plan"]["sites"])]
        assert not any("_orig_mod" in tensor or tensor.startswith(("module.", "model/module.")) for tensor in names)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_is_quantized_and_loaded_into(name, tmp_path):
    torch.manual_seed(0)
    model = quantize(WRAPPERS[name](Auxiliary()), "lsq", sample=IMAGES, keep=["first", "last"])
    check_files(recalibrate(model, IMAGES, "W3A3"), lambda: WRAPPERS[name](Auxiliary()), tmp_path)


@pytest.mark.slow
def test_a_network_in_a_larger_one_is_saved_with_it(tmp_path):
    torch.manual_seed(0)
    build = lambda: nn.Sequential(Scaled(), Auxiliary())  # noqa: E731
    model = nn.Sequential(Scaled(), quantize(Auxiliary(), "lsq", sample=Scaled()(IMAGES)))
    check_files(recalibrate(model, IMAGES, "W3A3"), build, tmp_path)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("part", ["one", "aux.0"])
def test_a_compiled_part_is_refused_with_the_cure(part, before, tmp_path):
    def build(how):
        model = Auxiliary() if before else made(Auxiliary)
        parent, _, name = part.rpartition(".")
        setattr(model.get_submodule(parent), name, how(model.get_submodule(part)))
        return recalibrate(quantize(model, "lsq", sample=IMAGES), IMAGES, "W3A3") if before else model

    model, words = build(compiled), rf"^{part} went through torch.compile, .* call {part}.compile\(\) instead$"
    for save in (lambda: save_model(model, tmp_path / "m"), lambda: save_packed(model, tmp_path / "p", "W3A3")):
        with pytest.raises(ValueError, match=words):
            save()
    assert list(tmp_path.iterdir()) == []
    model = build(lambda module: module.compile(backend="eager") or module)
    save_model(model, tmp_path / "m")
    assert torch.equal(logits(load_model(tmp_path / "m", Auxiliary())[0]), logits(model.eval()))
