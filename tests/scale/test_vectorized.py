"""Vectorized tasks against the serial loop, in float64: in float32 a rounding flip grows within some inner steps."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mebqat_lite import give_norm_sets, models, quantize
from mebqat_lite.bits import FP, Bits, parse_all
from mebqat_lite.datasets.episodes import Episode
from mebqat_lite.learners import ProtoNet
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.optim import GradientMean
from mebqat_lite.quantizers import TINY, integer_range, step_clip
from mebqat_lite.scale import vectorized
from mebqat_lite.scale.vectorized import faster, query_losses, uses
from mebqat_lite.switching.state import at, quantized_layers, set_bits, set_norm_stats, setting_of

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
MIXED = "FP,W2A2,W4A8,W8A3,W16A16,W2A32,W32A4,W2A2"


def net(quantizer="lsq", seed=0, **options):
    """A small Conv-4 whose pools take means: maxima of few-bit sums have ties, which two ways of adding break
    differently. Its norms have gains and shifts that matter.
    """
    torch.manual_seed(seed)
    model = models.conv4(channels=4, image_size=16, classes=3, **options).double()
    for block in (model.stem, *model.body[:3]):
        block[2] = nn.AvgPool2d(2)
    return prepared(model, quantizer)


class Branches(nn.Module):
    """Two layers that read one tensor, which has negative values: one leads, one follows."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.wide, self.slim = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2)
        self.relu, self.head = nn.ReLU(), nn.Linear(4 * 16, 3)

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.head(self.relu(self.wide(x) + self.slim(x)).flatten(1))


def branches(seed=0):
    torch.manual_seed(seed)
    return prepared(Branches().double(), "lsq")


def prepared(model, quantizer):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.6)
    return quantize(model, quantizer, sample=torch.rand(16, 1, 16, 16)).train()


def episodes(count, seed=3, ways=3, shots=2, queries=4):
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(count, ways, shots + queries, 1, 16, 16, generator=g, dtype=torch.float64)
    return [Episode(task[:, :shots], task[:, shots:]) for task in images]


def mean_gradients(model, losses, counts=None):
    """Each parameter's gradient after the training loop's mean, and the losses."""
    means, values = GradientMean(p for p in model.parameters() if p.requires_grad), []
    for loss in losses:
        loss.sum().backward()
        values.append(loss.detach().reshape(-1))
    if counts is not None:
        means.uses.update(counts)
    means.average()
    means.close()
    return {n: p.grad for n, p in model.named_parameters()}, torch.cat(values)


def serial_losses(model, learner, tasks, pairs):
    for task, pair in zip(tasks, pairs, strict=True):
        yield from (loss for _, loss in learner.losses(model, task, [pair]))


def assert_as_serial(model, pairs, learner=None):
    learner, pairs = learner or FOMAML(inner_steps=5, inner_lr=0.1), parse_all(pairs)
    tasks, other = episodes(len(pairs)), copy.deepcopy(model)
    wanted, values = mean_gradients(other, serial_losses(other, learner, tasks, pairs))
    found, ours = mean_gradients(model, [query_losses(model, learner, tasks, pairs)], uses(model, pairs))
    torch.testing.assert_close(ours, values, **CLOSE)
    for name, gradient in wanted.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, **CLOSE, msg=name)
    for (name, buffer), wanted_buffer in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted_buffer, **CLOSE, msg=name)
    return found


@pytest.mark.parametrize("pairs", [MIXED, "W2A4,W2A4,W2A4", "W3A5", "FP", "FP,FP,FP", "W2A32,W4A32", "W32A2,W32A2"])
def test_losses_and_mean_gradients_are_those_of_serial_tasks(pairs):
    assert_as_serial(net(), pairs)


def test_no_activation_is_channels_last(monkeypatch):
    """On CUDA, cuDNN's batch norm copies its input in its own layout, which vmap cannot do for channels-last ones."""
    layouts, batch_norm = [], F.batch_norm

    def spied(x, *args, **options):
        layouts.append(x.stride(1) < x.stride(3))
        return batch_norm(x, *args, **options)

    monkeypatch.setattr(F, "batch_norm", spied)
    query_losses(models.channels_last(net()), FOMAML(inner_steps=2), episodes(2), parse_all("FP,W2A2"))
    assert layouts
    assert not any(layouts)


def test_only_the_steps_in_use_get_a_gradient():
    found = assert_as_serial(net(), MIXED)
    used = {name.rsplit(".", 1)[1] for name, gradient in found.items() if ".quant." in name and gradient is not None}
    assert used == {"w2", "w4", "w8", "w16", "a2", "a3", "a4", "a8", "a16"}
    assert all(gradient is not None for name, gradient in found.items() if ".quant." not in name)


def test_signed_inputs_and_a_layer_that_follows():
    model = branches()
    sites = {name: layer.site for name, layer in quantized_layers(model).items()}
    assert all(site.signed and site.leader == "wide" for site in sites.values()) and len(sites) == 2
    found = assert_as_serial(model, MIXED)
    assert found["wide.quant.a4"] is not None and found["slim.quant.a4"] is None
    assert model.wide.shared_input.left is None


@pytest.mark.parametrize(
    "form", ["no steps", "one step", "large steps", "channels last", "fixed", "evaluating", "averaging"]
)
def test_other_forms_are_serial_too(form):
    model = net()
    learner = {"no steps": FOMAML(0), "one step": FOMAML(1), "large steps": FOMAML(3, 2.0)}.get(form)
    if form == "channels last":
        models.channels_last(model)
    if form == "fixed":  # as methods of MAML fix gains; and a step that is not learned
        for name, p in model.named_parameters():
            p.requires_grad_(not name.endswith((".1.weight", "0.0.quant.w2", "0.0.quant.a2")))
    if form == "evaluating":
        set_norm_stats(model.eval(), "batch")
    if form == "averaging":
        model.body[0][1].momentum = None
    assert_as_serial(model, MIXED, learner)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("signed", [False, True])
def test_the_clip_is_step_clip_also_on_its_edges(bits, signed):
    low, high = integer_range(bits, signed)
    codes = torch.tensor([low - 1, low, low + 0.4, 0, high - 0.4, high, high + 3, -1e9, 1e9], dtype=torch.float64)
    found = []
    for clip in (step_clip, vectorized._TensorStepClip.apply):
        step = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
        x = (codes * 0.25).requires_grad_()
        numbers = (low, high, 0.3) if clip is step_clip else map(codes.new_tensor, (low, high, 0.3))
        out = clip(x, step, *numbers)
        found.append((out, *torch.autograd.grad((out * codes.cos()).sum(), (x, step))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_of_its_step_is_summed_value_by_value(bits):
    """In float32 as in float64: the difference of two sums of 100,000 values would lose up to three of a thousand."""
    low, high = integer_range(bits, signed=False)
    codes, found = torch.linspace(0.01, high - 0.01, 100_003, dtype=torch.float64), []
    x = (codes * 0.01171875).float().double()  # a step whose multiples float32 holds
    up = (1 + x.cos()).float().double()
    for dtype in (torch.float32, torch.float64):
        step = torch.tensor(0.01171875, dtype=dtype, requires_grad=True)
        out = vectorized._TensorStepClip.apply(x.to(dtype), step, *(step.new_tensor(n) for n in (low, high, 1)))
        found.append(float(torch.autograd.grad(out, step, up.to(dtype))[0]))
    single_values = 8 * torch.finfo(torch.float32).eps * float((up * codes).square().sum().sqrt())
    assert found[0] == pytest.approx(found[1], abs=single_values, rel=0)


def test_steps_stay_positive_in_the_inner_loop():
    """Steps that an update would push below zero are clamped, and give theta no gradient."""
    model, learner, (task,) = net(), FOMAML(3, 1.0), episodes(1)
    with torch.no_grad():
        for layer in quantized_layers(model).values():
            for step in layer.quant.values():
                step.mul_(0.1)
    with at(model, "W2A2", "batch"):
        fast = learner.inner_loop(model, task.support, learner.inner_steps)
    clamped = [name for name, value in fast.items() if ".quant." in name and value == TINY]
    assert clamped
    found = assert_as_serial(model, "W2A2,W4A4,FP", learner)
    assert all(found[name] == 0 for name in clamped)


def test_uses_count_the_tasks_of_each_parameter():
    model, pairs = branches(), parse_all("FP,W2A4,W2A8,W4A4")
    counts = {name: uses(model, pairs)[p] for name, p in model.named_parameters()}
    assert {n: c for n, c in counts.items() if ".quant." not in n and c != 4} == {}
    assert {n: c for n, c in counts.items() if ".quant." in n and c} == {
        "wide.quant.w2": 2,
        "wide.quant.w4": 1,
        "wide.quant.a4": 2,
        "wide.quant.a8": 1,
        "slim.quant.w2": 2,
        "slim.quant.w4": 1,
    }


def state_of(model):
    setting = {name: value for name, value in vars(setting_of(model)).items() if name != "guard"}
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    lent = [layer.quantizer for layer in quantized_layers(model).values()]
    return setting, tensors, modes, lent, [p.grad for p in model.parameters()], torch.get_rng_state()


def assert_state(model, before):
    for index, (now, then) in enumerate(zip(state_of(model), before, strict=True)):
        if index == 1:
            assert all(torch.equal(now[name], then[name]) for name in now.keys() | then.keys())
        elif index == 4:
            assert all(mine is other for mine, other in zip(now, then, strict=True))
        elif index == 5:
            assert torch.equal(now, then)
        else:
            assert now == then


@pytest.fixture
def used():
    """A model that is at a map of pairs, partly in evaluation mode, with gradients."""
    model = net()
    set_bits(model, {"*": "W4A4", "body.0.0": "W2A2"})
    set_norm_stats(model, "batch")
    model.body[1].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


def test_the_model_is_left_as_it_was(used):
    before = state_of(used)
    query_losses(used, FOMAML(2), episodes(2), parse_all("W32A4,W2A2"))
    assert not any(module._forward_pre_hooks for module in used.modules())
    assert_state(used, before)


def test_an_error_in_a_pass_leaves_the_model_as_it_was(used):
    before = state_of(used)
    with pytest.raises(RuntimeError):
        query_losses(used, FOMAML(2), [Episode(*(t[..., :3] for t in e)) for e in episodes(2)], parse_all("FP,W2A2"))
    assert_state(used, before)


@pytest.mark.parametrize("quantizer", ["dorefa", "sat", "lsq_shared", "lsq_untrained", "lsq_authors"])
def test_other_quantizers_are_left_to_serial_tasks(quantizer):
    with pytest.raises(ValueError, match=r"another quantizer than lsq.*serial tasks"):
        query_losses(net(quantizer), FOMAML(), episodes(1), [FP])


@pytest.mark.parametrize(
    ("learner", "pair", "reason"),
    [
        (FOMAML(second_order=True), FP, "second order"),
        (FOMAML(teacher="fp"), FP, "a teacher"),
        (ProtoNet("labels"), FP, "another learner than FOMAML"),
        (FOMAML(), {"body.0.0": Bits(2, 2)}, "a map of pairs per layer"),
    ],
)
def test_other_learning_is_left_to_serial_tasks(learner, pair, reason):
    model = net()
    with pytest.raises(ValueError, match=f"^{reason}: not vectorized; serial tasks"):
        query_losses(model, learner, episodes(1), [pair])
    assert not faster(model, learner, episodes(1), [pair])


def test_other_norms_precision_and_dropout_are_left_to_serial_tasks():
    with pytest.raises(ValueError, match=r"norm sets per pair.*serial tasks"):
        query_losses(give_norm_sets(net(), "W2A2"), FOMAML(), episodes(1), [FP])
    with pytest.raises(ValueError, match=r"stored norm statistics.*serial tasks"):
        query_losses(net().eval(), FOMAML(), episodes(1), [FP])
    model = net()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"mixed precision.*serial tasks"):
        query_losses(model, FOMAML(), episodes(1), [FP])
    model.body.append(nn.Dropout(0.5))
    with pytest.raises(ValueError, match=r"dropout.*serial tasks"):
        query_losses(model, FOMAML(), episodes(1), [FP])


def test_tasks_that_do_not_fit_are_refused():
    model, learner = net(), FOMAML()
    for tasks, pairs in [(episodes(2), [FP]), ([], [])]:
        with pytest.raises(ValueError, match="each task needs an episode and a pair"):
            query_losses(model, learner, tasks, pairs)
    with pytest.raises(ValueError, match="the same ways"):
        query_losses(model, learner, [*episodes(1), *episodes(1, ways=2)], [FP, FP])
    for pair, words in [("W1A1", "^lsq defines no 1-bit"), ("W9A4", "^lsq does not define W9A4")]:
        with pytest.raises(ValueError, match=words):
            query_losses(model, learner, episodes(1), parse_all(pair))


def test_measuring_leaves_everything_as_it_was(used):
    before, called = state_of(used), []
    hooks = [p.register_post_accumulate_grad_hook(called.append) for p in used.parameters()]
    assert faster(used, FOMAML(1), episodes(2), parse_all("FP,W2A2"), repeats=1) in (True, False)
    assert_state(used, before)
    assert len(hooks) and not called  # the training loop's counts of uses


@pytest.mark.parametrize(("seconds", "wanted"), [((1.0, 2.0), False), ((2.0, 1.0), True)])
def test_the_faster_way_is_chosen(monkeypatch, seconds, wanted):
    def taken(device, work, *arguments):
        return seconds[work is vectorized._vectorized_gradients]

    monkeypatch.setattr(vectorized, "_seconds", taken)
    assert faster(net(), FOMAML(), episodes(1), [FP]) is wanted


def test_too_little_memory_means_serial(monkeypatch):
    def taken(device, work, *arguments):
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(vectorized, "_seconds", taken)
    assert not faster(net(), FOMAML(), episodes(1), [FP])
