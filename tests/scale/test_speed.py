"""Faster passes are asked for in one place; what was left open is decided once a run."""

import pytest
import torch

from mebqat_lite import files, fit, models, quantize
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.loop import AUTOMATIC, Loop, Passes
from mebqat_lite.recipe import Recipe
from mebqat_lite.scale import speed
from mebqat_lite.scale.speed import Fast
from mebqat_lite.train import _automatic

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES, EACH = 6, 4
IMAGES = torch.rand(CLASSES * EACH, 1, 28, 28, generator=torch.Generator().manual_seed(0))
TRAIN = Split(IMAGES, torch.arange(CLASSES).repeat_interleave(EACH))
DATA = Data("noise", TRAIN, None, None, tuple("abcdef"))
TINY = Recipe(steps=2, ways=2, shots=1, queries=2, tasks=2, inner_steps=1, quantizer="lsq", bits="W2A4")


def net():
    torch.manual_seed(0)
    return quantize(models.conv4(channels=4, classes=2), "lsq", sample=IMAGES)


@pytest.mark.parametrize("name", ["amp", "compiled", "vectorized", "fabric"])
def test_what_fit_took_by_itself_is_said_to_be_a_way_of_passes(name):
    with pytest.raises(
        TypeError, match=rf"^fit takes {name} as passes=Fast\({name}=True\); Fast is in mebqat_lite\.scale"
    ):
        fit(net(), DATA, "fomaml", TINY, progress=False, **{name: True})


def test_another_unknown_option_is_still_unknown():
    with pytest.raises(TypeError, match="no option"):
        fit(net(), DATA, "fomaml", TINY, progress=False, stepz=3)


def test_cuda_chooses_by_itself_and_the_cpu_is_plain():
    assert {"cuda": Fast} == AUTOMATIC
    assert type(_automatic("cuda:0")) is Fast and _automatic("cuda").asked is None
    assert type(_automatic("cpu")) is Passes and type(_automatic(torch.device("cpu"))) is Passes


def test_plain_and_unasked_fast_passes_train_the_same():
    ends = []
    for passes in (None, Passes(), Fast()):
        model = net()
        run = fit(model, DATA, "mebqat_maml", TINY, device="cpu", progress=False, passes=passes)
        ends.append([run.losses, vars(run.costs), *(p.detach().tolist() for p in model.parameters())])
    assert ends[0] == ends[1] == ends[2]
    assert Passes().settings == Fast().settings == {}


def test_what_is_measured_is_measured_for_each_run_anew(monkeypatch):
    """A warm-up at FP is a run of its own: what is faster there may not be possible in the next one."""
    asked = []
    monkeypatch.setattr(speed, "place", lambda model: (torch.device("cuda"), torch.float32))
    monkeypatch.setattr(speed, "faster", lambda model, learner, episodes, pairs: asked.append(pairs) or len(asked) == 1)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.enable_grad())
    passes = Fast()
    for vectorized in (True, False):
        loop = Loop(net(), TRAIN, "fomaml", TINY, passes)
        loop.step()
        loop.step()
        loop.close()
        assert passes.vectorized is vectorized and passes.settings == ({"vectorized": True} if vectorized else {})
    assert len(asked) == 2


def test_measuring_counts_no_pass_and_draws_no_pair(monkeypatch):
    plain, measured = (Loop(net(), TRAIN, "mebqat_maml", TINY, passes) for passes in (Passes(), Fast()))
    monkeypatch.setattr(speed, "faster", lambda model, *_: bool(model(IMAGES[:2]).numel() < 0))
    monkeypatch.setattr(speed, "place", lambda model: (torch.device("cuda"), torch.float32))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.enable_grad())
    for loop in (plain, measured):
        loop.step()
        loop.close()
    assert plain.run.costs == measured.run.costs and plain.run.losses == measured.run.losses


def test_a_run_that_was_vectorized_goes_on_vectorized_unless_plain_passes_are_asked_for(tmp_path):
    path, options = tmp_path / "run", {"device": "cpu", "progress": False, "path": tmp_path / "run"}
    fit(net(), DATA, "fomaml", TINY, passes=Fast(vectorized=True), **options)
    assert files.read(path, "training")[1]["speed"] == {"vectorized": True}
    fit(net(), DATA, "fomaml", TINY, passes=Fast(), **options)
    for passes in (Passes(), Fast(vectorized=False)):
        with pytest.raises(files.CheckpointError, match="trained with vectorized, this run is with plain passes"):
            fit(net(), DATA, "fomaml", TINY, passes=passes, **options)


def test_what_cannot_be_vectorized_says_so_before_any_step(tmp_path):
    for passes, reason in (
        (Fast(vectorized=True, amp=True), "vectorized tasks do not go with amp"),
        (Fast(vectorized=True), "another learner than FOMAML"),
    ):
        method, model = ("fomaml", net()) if "amp" in reason else ("fp", net())
        before = {name: t.clone() for name, t in model.state_dict().items()}
        with pytest.raises(ValueError, match=reason):
            fit(model, DATA, method, TINY, device="cpu", progress=False, passes=passes)
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
