"""Each row of the page that says what is supported."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from around import DATA, PART, Net, Own, X, Y, conv, follows, fresh_folder, made, normed, out
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import mebqat_lite as mq
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.deploy.onnx_export import export_onnx
from mebqat_lite.deploy.onnx_run import answers
from mebqat_lite.deploy.onnx_switch import export_switch
from mebqat_lite.measure.costs import bit_operations
from mebqat_lite.scale.speed import Fast
from mebqat_lite.switching.norms import is_recalibrated
from mebqat_lite.switching.state import plan_of, quantized_layers

PAGE = Path(__file__).parents[1] / "notebooks" / "SUPPORTED.md"
ROWS: dict[str, Callable[..., None]] = {}


def row(begins: str) -> Callable:
    """Register the check of the row whose first cell begins so, without its back-quotes."""

    def register(check: Callable) -> Callable:
        ROWS[begins] = check
        return check

    return register


# ---------------------------------------------------------------- layers


@row("nn.Conv1d, nn.Conv2d")
def layers():
    for options in ({}, {"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}):
        follows(made(nn.Sequential(conv(**options), nn.BatchNorm2d(4))), "middle.0")
    torch.manual_seed(0)
    for kind, shape in ((nn.Conv1d, (8, 4, 5)), (nn.Conv3d, (8, 4, 5, 5, 5)), (nn.Linear, (8, 4))):
        layer = kind(4, 4) if kind is nn.Linear else kind(4, 4, 3)
        x = torch.rand(shape)
        model = mq.quantize(nn.Sequential(layer), "lsq", sample=x, keep=[])
        with mq.at(model, "W2A2"), torch.no_grad():
            low = model(x)
        assert layer.quantized_weight(2).unique().numel() <= 4 and not torch.equal(low, model(x))


@row("a layer that runs twice")
def twice():
    follows(made(Own(lambda m, x: m.b(F.relu(m.a(x))), a=(one := conv()), b=one)), "middle.a")


@row("two layers that own one weight")
def tied():
    a, b = conv(), conv(seed=1)
    b.weight = a.weight
    follows(made(nn.Sequential(a, nn.ReLU(), b)), "middle.0", "middle.2")


@row("a layer called by keyword")
def keyword():
    follows(made(Own(lambda m, x: m.a(input=x), a=conv())), "middle.a")


@row("a subclass of such a layer")
def subclass():
    class MyConv(nn.Conv2d):
        """Another class."""

    for layer, why in (
        (MyConv(4, 4, 1), "MyConv is a layer class of its own"),
        (nn.utils.parametrizations.weight_norm(conv()), "its weights are computed"),
    ):
        model = made(nn.Sequential(layer, nn.ReLU(), conv()))
        assert f"float: {why}" in mq.summary(model)
        follows(model, "middle.2")


@row("a layer that the sample did not reach")
def unreached():
    model = made(Own(lambda m, x: m.a(x), a=conv(), b=conv()))
    assert "float: the sample did not reach it" in mq.summary(model)


@row("transposed convolutions")
def counted():
    class Attention(nn.MultiheadAttention):
        def forward(self, x):
            rows = x.flatten(2).transpose(1, 2)
            return super().forward(rows, rows, rows)[0].transpose(1, 2).reshape(x.shape)

    recurrent = Own(
        lambda m, x: m.gru(x.flatten(2).transpose(1, 2))[0].mT.reshape(x.shape), gru=nn.GRU(4, 4, batch_first=True)
    )
    for odd in (nn.ConvTranspose2d(4, 4, 1), recurrent, Attention(4, 2, batch_first=True)):
        model = made(nn.Sequential(odd, nn.ReLU(), conv()))
        assert "float: parameters of no convolution or linear layer" in mq.summary(model)
        with pytest.warns(UserWarning, match="costs leave out"):
            bit_operations(model, X[0], "W2A2")


@row("nn.TransformerEncoderLayer")
def encoder():
    torch.manual_seed(0)
    x = torch.rand(4, 5, 8)
    one = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    model = mq.quantize(one, "lsq", sample=x, keep=[])
    with torch.no_grad(), mq.at(model, "W2A2"):
        low = model(x)
    assert not torch.allclose(low, model(x), atol=1e-2)


@row("a weight that the model reads itself")
def bypassed():
    part = Own(lambda m, x: m.a(x) + F.conv2d(x, m.a.weight, padding=1), a=conv())
    with pytest.warns(UserWarning, match=r"without calling the layer \(middle.a\)"):
        mq.quantize(Net(part), "lsq", sample=X)


@row("an input that can be negative")
def signed():
    part = nn.Sequential(conv(), nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4))
    for quantizer in ("dorefa", "sat"):
        with pytest.warns(UserWarning, match="1 of 2 layer inputs that can be negative"):
            model = mq.quantize(Net(copy.deepcopy(part)), quantizer, sample=X)
        mq.set_bits(model, "W2A2")
        assert [quantized_layers(model)[name].bits.a for name in ("middle.0", "middle.2")] == [2, 32]
    for quantizer in ("lsq", "least_squares"):
        follows(made(copy.deepcopy(part), quantizer), "middle.0", "middle.2")


@row("sat where no norm follows")
def unnormed():
    with pytest.warns(UserWarning, match="quantize with lsq, or add norms"):
        mq.quantize(Net(conv()), "sat", sample=X)
    made(normed(conv()), "sat")


# ---------------------------------------------------------------- norms


@row("nn.BatchNorm1d, nn.BatchNorm2d")
def batch_norms():
    torch.manual_seed(0)
    for norm, shape in ((nn.BatchNorm1d, (8, 4)), (nn.BatchNorm2d, (8, 4, 3, 3)), (nn.BatchNorm3d, (8, 4, 3, 3, 3))):
        x = torch.rand(shape)
        kind = {2: nn.Linear, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
        layer = kind(4, 4) if kind is nn.Linear else kind(4, 4, 1)
        model = mq.quantize(nn.Sequential(layer, norm(4)).eval(), "lsq", sample=x, keep=[])
        mq.recalibrate(model, x, "W2A2")
        outs = []
        for policy in ("running", "batch", "recalibrated"):
            with torch.no_grad(), mq.at(model, "W2A2", policy):
                outs.append(model(x))
        assert torch.allclose(outs[1], outs[2], atol=1e-5) and not torch.allclose(outs[0], outs[1], atol=1e-3)
        mq.give_norm_sets(model, "W2A2")
        assert list(model[1].sets) == ["W2A2"]


@row("nn.LayerNorm, nn.GroupNorm")
def other_norms():
    for norm in (nn.LayerNorm((4, 6, 6)), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.RMSNorm((4, 6, 6))):
        follows(made(nn.Sequential(conv(), norm)), "middle.0")


@row("nn.SyncBatchNorm, a subclass")
def odd_norms():
    class MyNorm(nn.BatchNorm2d):
        """Another class."""

    for norm in (MyNorm, nn.SyncBatchNorm):
        with pytest.warns(UserWarning, match="1 norms of other classes"):
            model = mq.quantize(Net(conv(), norm).eval(), "lsq", sample=X)
        assert torch.equal(out(model, "W2A2", "batch"), out(model, "W2A2", "running"))


@row("a norm that evaluation does not reach")
def auxiliary():
    def net():
        return Net(
            Own(lambda m, x: m.a(x) + (m.norm(x) if m.training else 0), a=normed(conv()), norm=nn.BatchNorm2d(4))
        )

    model = mq.recalibrate(mq.quantize(net().eval(), "lsq", sample=X), X, "W2A2")
    assert is_recalibrated(model, "W2A2")
    with fresh_folder() as folder:
        mq.save_packed(model, folder / "aux.safetensors", "W2A2")
        packed, _ = mq.load_packed(folder / "aux.safetensors", net())
    assert torch.equal(out(packed, "W2A2", "recalibrated"), out(model, "W2A2", "recalibrated"))


@row("weights that change after recalibrate")
def stale():
    model = mq.recalibrate(made(), X, "W2A2")
    out(model, "W2A2", "recalibrated")
    with torch.no_grad():
        model.first.weight.mul_(2)
    with pytest.warns(UserWarning, match="call recalibrate again"):
        out(model, "W2A2", "recalibrated")


# ---------------------------------------------------------------- models and passes


@row("operations in place")
def in_place():
    def net(inplace):
        def run(m, x):
            y = m.a(x)
            return (x.neg_() if inplace and not m.training else -x) + y  # in training PyTorch itself refuses it

        return nn.Sequential(Scale(inplace), Net(Own(run, a=conv())))

    images = X.clone()
    plain, there = (mq.quantize(net(inplace).eval(), "lsq", sample=X) for inplace in (False, True))
    assert torch.equal(out(plain, "W2A2"), out(there, "W2A2"))
    runs = [mq.fit(m, DATA, "mebqat", steps=2, lr=0.01, progress=False).losses for m in (plain, there)]
    assert runs[0] == runs[1] and torch.equal(images, X)


class Scale(nn.Module):
    """Scales the images, in place or not."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.sub_(0.5).div_(0.25) if self.inplace else (x - 0.5) / 0.25


@row("several inputs, or a dictionary")
def several():
    class Two(Net):
        def forward(self, batch, scale):
            return super().forward(batch["x"] * scale)

    def run(model):
        return model({"x": X}, scale=2.0)

    model = mq.quantize(Two(normed(conv())).eval(), "lsq", sample=run)
    mq.recalibrate(model, run, "W2A2")
    with torch.no_grad(), mq.at(model, "W2A2", "recalibrated"):
        assert run(model).shape == (16, 3)
    with pytest.raises(TypeError, match=r"give lambda model: model\(\*\*batch\)"):
        mq.quantize(Two(conv()), sample={"x": X})


@row("outputs that are no logits")
def no_logits():
    class Pair(Net):
        def forward(self, x):
            return super().forward(x), x

    for use in (lambda m: mq.fit(m, DATA, "mebqat", steps=1, progress=False), lambda m: mq.accuracy(m, PART, "W2A2")):
        with pytest.raises(TypeError, match="the network gives a tuple, not logits"):
            use(mq.quantize(Pair(normed(conv())), "lsq", sample=X))


@row("buffers that are made")
def buffers():
    def run(m, x):
        if "seen" not in m._buffers:
            m.register_buffer("seen", torch.ones(1))
        return m.a(x) * m.seen

    part = Own(run, a=conv())
    part.setting = part.plan = part.site = part.quant = "mine"
    made(part)
    assert "seen" not in part._buffers and (part.setting, part.plan, part.site, part.quant) == ("mine",) * 4


@row("gradient checkpointing")
def repeated():
    part = Own(lambda m, x: checkpoint(m.a, x, use_reentrant=False), a=normed(conv()))
    model, plain = made(part), made(Own(lambda m, x: m.a(x), a=normed(conv())))
    runs = [mq.fit(m, DATA, "qat", bits="W2A2", steps=2, lr=0.01, progress=False).losses for m in (model, plain)]
    assert runs[0] == runs[1]
    with mq.at(model, "W2A2"):
        loss = F.cross_entropy(model(X), Y)
    with pytest.raises(RuntimeError, match="call backward for each pair inside"):
        loss.backward()


@row("two threads or asyncio tasks, one of them")
def threads():
    from concurrent.futures import ThreadPoolExecutor

    model = made()
    with mq.at(model, "W2A2"), ThreadPoolExecutor(1) as pool, pytest.raises(RuntimeError, match=r"copy\.deepcopy"):
        pool.submit(out, model, "FP").result()


@row("several quantized models in one module")
def ensemble():
    both = nn.ModuleDict({"a": made(), "b": made()})
    with pytest.raises(ValueError, match=r"several quantized models \(a, b\): switch each"):
        mq.set_bits(both, "W2A2")


@row("torch.inference_mode")
def inference():
    model = Net(normed(conv())).eval()
    with torch.inference_mode():
        mq.recalibrate(mq.quantize(model, "lsq", sample=X), X, "W2A2")
        assert mq.grid(model, PART, "W2A2,FP", norm_stats="batch")["mean"].notna().all()
        assert 0 <= mq.accuracy(model, PART, "W2A2", "recalibrated") <= 100
    assert mq.fit(model, DATA, "mebqat", steps=1, progress=False).costs.steps == 1


@row("a batch of one")
def one():
    model = mq.recalibrate(made(), X, "W2A2")
    single = Split(X[:1], Y[:1])
    assert mq.accuracy(model, single, "W2A2", "recalibrated") in (0, 100)
    assert mq.accuracy(model, single, "W2A2", "batch") in (0, 100)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="one value per channel, which has no variance"):
        mq.accuracy(mq.quantize(flat, "lsq", sample=X, keep=[]), single, "W2A2", "batch")


# ---------------------------------------------------------------- wrappers


def trained_and_kept(wrap: Callable, kept: Callable) -> None:
    model = wrap(made())
    assert len(quantized_layers(model)) == 1 and "1 of 3 layers quantized" in mq.summary(model)
    assert not torch.equal(out(model, "W2A2"), out(model, "FP"))
    mq.fit(model, DATA, "mebqat", steps=1, progress=False)
    with fresh_folder() as folder:
        loaded, _ = mq.load_model(mq.save_model(model, folder / "m.safetensors"), kept(Net(normed(conv()))))
    assert torch.equal(out(loaded, "W2A2"), out(model, "W2A2"))


@row("nn.Sequential or a module of your own")
def sequential():
    for wrap in (lambda m: nn.Sequential(Scale(False), m), lambda m: Own(lambda own, x: own.net(x), net=m)):
        trained_and_kept(wrap, wrap)


@row("nn.DataParallel, AveragedModel")
def parallel():
    for wrap in (nn.DataParallel, AveragedModel):
        trained_and_kept(wrap, lambda net: net)


@row("torch.compile(model)")
def compiled():
    model = made()
    wrapped = torch.compile(model, backend="eager")
    assert torch.equal(out(wrapped, "W2A2"), out(model, "W2A2"))
    with fresh_folder() as folder:
        loaded, _ = mq.load_model(mq.save_model(wrapped, folder / "m.safetensors"), Net(normed(conv())))
    assert torch.equal(out(loaded, "W2A2"), out(model, "W2A2"))


# ---------------------------------------------------------------- number types


def typed(dtype: torch.dtype) -> nn.Module:
    model = Net(normed(conv())).eval().to(dtype)
    return mq.recalibrate(mq.quantize(model, "lsq", sample=X), X, "W2A2")


def measured_and_kept(dtype: torch.dtype) -> nn.Module:
    model = typed(dtype)
    found = mq.accuracy(model, PART, "W2A2", "recalibrated")
    with fresh_folder() as folder:
        loaded, _ = mq.load_model(mq.save_model(model, folder / "m.safetensors"), Net(normed(conv())))
        mq.save_packed(model, folder / "p.safetensors", "W2A2")
        packed, _ = mq.load_packed(folder / "p.safetensors", Net(normed(conv())))
    for other in (loaded, packed):
        assert other.last.weight.dtype == dtype and mq.accuracy(other, PART, "W2A2", "recalibrated") == found
    return model


@row("float32")
def single():
    model = measured_and_kept(torch.float32)
    mq.fit(model, DATA, "mebqat", steps=1, progress=False)


@row("float64")
def double():
    model = measured_and_kept(torch.float64)
    mq.fit(model, DATA, "mebqat", steps=1, progress=False)
    assert model.last.weight.dtype == torch.float64
    with fresh_folder() as folder, pytest.raises(ValueError, match="float32"):
        export_onnx(model, folder / "m.onnx", "W2A2", X.shape[1:], calibration=X)


@row("bfloat16, float16")
def half():
    for dtype in (torch.bfloat16, torch.float16):
        model = measured_and_kept(dtype)
        with pytest.raises(ValueError, match=r"Fast\(amp=True\)"):
            mq.fit(model, DATA, "mebqat", steps=1, progress=False)
    mq.fit(typed(torch.float32), DATA, "mebqat", steps=1, progress=False, passes=Fast(amp=True))


@row("whole numbers, such as tokens")
def whole():
    torch.manual_seed(0)
    tokens = torch.randint(9, (16, 5))
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3))
    mq.quantize(model, "lsq", sample=tokens, keep=[])
    split = Split(tokens, Y)
    mq.fit(model, Data("made", split, split, split, ("a", "b", "c")), "mebqat", steps=1, progress=False)
    mq.recalibrate(model, tokens, "W2A2")
    assert mq.grid(model, Split(tokens, Y), "W2A2,FP")["mean"].notna().all()


@row("the pairs of a quantizer")
def defined():
    for quantizer, count in {"dorefa": 75, "least_squares": 75, "lsq": 73, "sat": 73, "double_rounding": 64}.items():
        assert len(mq.quantizers.QUANTIZERS[quantizer].pairs()) == count
    with pytest.raises(ValueError, match="double_rounding does not define W16A16"):
        mq.set_bits(made(quantizer="double_rounding"), "W16A16")


@row("dorefa_corrected, sat_corrected, lsq_corrected")
def corrected():
    for layer in (made(quantizer=f"{name}_corrected").get_submodule("middle.0") for name in ("dorefa", "sat", "lsq")):
        w, q = layer.weight.flatten(1), layer.quantized_weight(4).flatten(1)
        assert torch.allclose(q.mean(1), w.mean(1), atol=1e-5) and torch.allclose(q.std(1), w.std(1), atol=1e-5)


# ---------------------------------------------------------------- files


@row("save_model, load_model")
def kept():
    for quantizer in mq.quantizers.QUANTIZERS:
        model = made(quantizer=quantizer)
        with fresh_folder() as folder:
            path = mq.save_model(model, folder / "m.safetensors")
            with pytest.raises(mq.CheckpointError, match="pass model= to load into"):
                mq.load_model(path)
            loaded, _ = mq.load_model(path, Net(normed(conv())))
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
        assert plan_of(loaded) == plan_of(model)


@row("save_packed, load_packed")
def packed():
    for quantizer in mq.quantizers.QUANTIZERS:
        model = made(quantizer=quantizer)
        with fresh_folder() as folder:
            mq.save_packed(model, folder / "p.safetensors", "W2A2,W4A4", calibration=X)
            small, _ = mq.load_packed(folder / "p.safetensors", Net(normed(conv())))
        assert torch.equal(out(small, "W2A2", "recalibrated"), out(model, "W2A2", "recalibrated"))


@row("export_onnx")
def onnx():
    for quantizer in ("dorefa", "lsq", "least_squares", "dorefa_corrected", "double_rounding"):
        model = made(quantizer=quantizer)
        with fresh_folder() as folder:
            export_onnx(model, folder / "m.onnx", "W4A4", X.shape[1:], calibration=X)
            found = answers(folder / "m.onnx", X)
        assert (found - out(model, "W4A4", "recalibrated")).abs().median() < 1e-4


@row("export_switch")
def switch():
    for quantizer in ("dorefa", "lsq", "least_squares"):
        model = made(quantizer=quantizer)
        with fresh_folder() as folder:
            export_switch(model, folder / "m.onnx", "W2A2,W4A4,FP", X.shape[1:], calibration=X)
            for pair in ("W2A2", "W4A4", "FP"):
                found = answers(folder / "m.onnx", X, bits=pair)
                assert (found - out(model, pair, "recalibrated")).abs().median() < 1e-4


def first_cells() -> list[str]:
    lines = re.findall(r"(?m)^\| (.+?) \| .+ \|$", PAGE.read_text(encoding="utf-8"))
    return [line.replace("`", "") for line in lines if line != "what"]


def test_each_row_of_the_page_has_its_check():
    cells = first_cells()
    assert len(cells) == len(set(cells)) == len(ROWS)
    for cell in cells:
        assert sum(cell.startswith(begins) for begins in ROWS) == 1, cell


@pytest.mark.parametrize("begins", list(ROWS))
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_the_page_is_true(begins):
    ROWS[begins]()
