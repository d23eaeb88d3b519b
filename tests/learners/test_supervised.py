"""The supervised learner against a plain network with fake quantization by hand, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mebqat_lite import give_norm_sets, models, quantize
from mebqat_lite.bits import FP, Bits, parse_all
from mebqat_lite.datasets.base import Split
from mebqat_lite.learners import Supervised
from mebqat_lite.learners.supervised import _shared_stem
from mebqat_lite.switching.convert import restore_float
from mebqat_lite.switching.state import at, set_norm_stats, setting_of
from mebqat_lite.switching.stem import is_shareable

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SETS = ["FP,W1A1,W2A2,W4A8", "W8A4,FP", "W2A2", "W3A5,W1A32,W2A2", "FP", "W4A4,W4A4,W4A2"]


@pytest.fixture
def task():
    g = torch.Generator().manual_seed(5)
    images = torch.rand(12, 1, 8, 8, generator=g, dtype=torch.float64)
    return Split(images, torch.randint(10, (12,), generator=g))


def net(quantizer="dorefa", seed=0, **options):
    """A digit net in float64, in training mode, whose norms have gains and shifts that matter.

    Its pool takes means: maxima of few-bit sums have ties, which two ways of adding break differently.
    """
    torch.manual_seed(seed)
    model = models.digit_net(widths=(4, 4, 4, 4)).double()
    model.body[0][2] = nn.AvgPool2d(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.6)
    return quantize(model, quantizer, sample=torch.rand(16, 1, 8, 8), **options).train()


class Plain(nn.Module):
    """The same layers, without the names ``stem`` and ``body``: nothing can be shared."""

    def __init__(self, model):
        super().__init__()
        self.first, self.rest = model.stem, model.body

    def forward(self, x):
        return self.rest(self.first(x))


def plain_of(quantizer):
    source = net(quantizer)
    model = Plain(restore_float(net(quantizer)))
    quantize(model, quantizer, sample=torch.rand(16, 1, 8, 8)).train()
    state = source.state_dict()
    model.load_state_dict({n.replace("stem.", "first.").replace("body.", "rest."): t for n, t in state.items()})
    return source, model


# --- the reference: functions and detach tricks only --------------------------------------------------------


def straight(value, quantized):
    return value + (quantized - value).detach()


def hand_weight(w, bits):
    if bits == 32:
        return w
    scale = w.detach().abs().mean()
    if bits == 1:
        return straight(w, torch.where(w >= 0, scale, -scale))
    n = 2**bits - 1
    v = (w.tanh() / w.tanh().abs().amax() + 1) / 2
    return scale * (2 * straight(v, (v * n).round() / n) - 1)


def hand_input(x, bits):
    if bits == 32:
        return x
    clipped, n = x.clamp(0, 1), 2**bits - 1
    return straight(clipped, (clipped * n).round() / n)


def hand_logits(p, x, bits):
    """Digit net on batch statistics: first and last layer float, three convolutions quantized."""
    h = x
    for conv, norm, pool in [
        ("stem.0", "stem.1", False),
        ("body.0.0", "body.0.1", True),
        ("body.1.0", "body.1.1", False),
        ("body.2.0", "body.2.1", False),
    ]:
        w = p[f"{conv}.weight"]
        if conv != "stem.0":
            h, w = hand_input(h, bits.a), hand_weight(w, bits.w)
        h = F.conv2d(h, w, padding=1)
        h = F.batch_norm(h, None, None, p[f"{norm}.weight"], p[f"{norm}.bias"], True)
        h = F.relu(F.avg_pool2d(h, 2) if pool else h)
    return F.linear(h.mean((2, 3)), p["body.4.weight"], p["body.4.bias"])


def hand_losses(p, start, task, pairs, teacher, alone):
    with torch.no_grad():
        softs = {"labels": [None] * len(pairs), "next": [None]}
        softs["fp"] = [hand_logits(p, task.images, FP).softmax(1)] * len(pairs)
        softs["start"] = [hand_logits(start, task.images, FP).softmax(1)] * len(pairs)
        softs["next"] += [hand_logits(p, task.images, bits).softmax(1) for bits in pairs[:-1]]
    losses = []
    for bits, soft in zip(pairs, softs[teacher], strict=True):
        log = hand_logits(p, task.images, bits).log_softmax(1)
        hard = -log[torch.arange(len(log)), task.labels].mean()
        taught = bits != FP and soft is not None
        losses.append((0 if alone and taught else hard) - ((soft * log).sum(1).mean() if taught else 0))
    return losses


@pytest.mark.parametrize("pairs", SETS)
@pytest.mark.parametrize("teacher", ["fp", "labels", "start", "next", "fp alone", "next alone"])
def test_losses_and_gradients_are_those_of_a_plain_network(task, teacher, pairs):
    teacher, alone = teacher.split()[0], teacher.endswith("alone")
    model, learner = net(), Supervised(teacher, alone)
    learner.begin(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():  # the network moves on, its start does not
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    ours = []
    for bits, loss in learner.losses(model, task, parse_all(pairs)):
        loss.backward()
        ours.append((bits, loss.item()))

    p = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    losses = hand_losses(p, start, task, [bits for bits, _ in ours], teacher, alone)
    assert [loss for _, loss in ours] == pytest.approx([loss.item() for loss in losses], rel=1e-10)
    torch.stack(losses).sum().backward()
    for name, parameter in model.named_parameters():
        wanted = p[name].grad / (len(losses) if name.startswith("stem") else 1)  # the stem's is already the mean
        torch.testing.assert_close(parameter.grad, wanted, **CLOSE)


@pytest.mark.parametrize("quantizer", ["dorefa", "lsq"])
@pytest.mark.parametrize("pairs", ["FP,W2A2,W4A4,W8A8", "W2A2,W3A4", "W5A3"])
def test_shared_stem_is_the_mean_over_whole_passes(task, quantizer, pairs):
    shared, plain = plain_of(quantizer)
    pairs = parse_all(pairs)
    for model in (shared, plain):
        for _, loss in Supervised().losses(model, task, pairs):
            loss.backward()
    theirs = {n.replace("first.", "stem.").replace("rest.", "body."): p for n, p in plain.named_parameters()}
    for name, parameter in shared.named_parameters():
        wanted = theirs[name].grad
        if wanted is None:
            assert parameter.grad is None, name
            continue
        wanted = wanted / len(pairs) if name.startswith("stem") else wanted
        torch.testing.assert_close(parameter.grad, wanted, **CLOSE)
    for mine, other in zip(shared.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def test_highest_bits_come_first(task):
    pairs = parse_all("W2A8,W1A32,FP,W8A2,W2A32,W16A16")
    order = []
    for bits, loss in Supervised("labels").losses(net(), task, pairs):
        loss.backward()
        order.append(str(bits))
    assert order == ["FP", "W16A16", "W8A2", "W2A32", "W2A8", "W1A32"]


def test_full_precision_learns_from_labels_only(task):
    values = set()
    for teacher in ("fp", "start", "labels", "next"):
        learner = Supervised(teacher)
        learner.begin(net(seed=9))
        for bits, loss in learner.losses(net(), task, parse_all("FP,FP,W2A2")):
            loss.backward()
            values |= {loss.item()} if bits == FP else set()
    assert values == {F.cross_entropy(net()(task.images), task.labels).item()}


def test_start_teacher_is_a_frozen_copy(task):
    model, learner = net(), Supervised("start")
    learner.begin(model)
    before = copy.deepcopy(learner.frozen.state_dict())
    for _, loss in learner.losses(model, task, [Bits(2, 2)]):
        loss.backward()
    assert all(p.grad is None for p in learner.frozen.parameters())
    assert all(torch.equal(before[n], t) for n, t in learner.frozen.state_dict().items())
    assert not learner.frozen.training and learner.frozen is not model


@pytest.mark.parametrize(
    ("teacher", "pairs", "passes", "frozen"),
    [
        ("fp", "W2A2", 2, 0),
        ("fp", "W2A2,W3A3,W4A4", 4, 0),
        ("fp", "FP,W2A2,W3A3", 3, 0),
        ("fp", "FP", 1, 0),
        ("labels", "W2A2,W3A3", 2, 0),
        ("next", "FP,W2A2,W3A3", 3, 0),
        ("start", "W2A2", 1, 1),
        ("start", "FP,W2A2,W3A3", 3, 1),
        ("start", "FP", 1, 0),
    ],
)
def test_teacher_is_run_once_a_task_and_only_if_needed(task, teacher, pairs, passes, frozen):
    model, learner = net(), Supervised(teacher)
    learner.begin(model)
    counts = {"model": 0, "frozen": 0}

    def counting(name):
        return lambda *_: counts.update({name: counts[name] + 1})

    model.body[-1].register_forward_hook(counting("model"))
    if learner.frozen is not None:
        learner.frozen.body[-1].register_forward_hook(counting("frozen"))
    for times in (1, 2):
        for _, loss in learner.losses(model, task, parse_all(pairs)):
            loss.backward()
        assert counts == {"model": times * passes, "frozen": times * frozen}


@pytest.mark.parametrize("pairs", ["FP,W4A4,W1A1", "W4A4,W1A1", "W2A2"])
@pytest.mark.parametrize("teacher", ["fp", "start", "labels", "next"])
def test_running_statistics_are_those_of_the_highest_pair(task, teacher, pairs):
    model, once, learner = net(), net(), Supervised(teacher)
    learner.begin(model)
    for _, loss in learner.losses(model, task, parse_all(pairs)):
        loss.backward()
    with at(once, max(parse_all(pairs))):
        once(task.images)
    for (name, buffer), other in zip(model.named_buffers(), once.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, **CLOSE, msg=name)
    assert model.body[0][1].num_batches_tracked == 1
    assert setting_of(model).track_running


def test_a_task_given_up_leaves_the_model_tracking(task):
    model = net()
    losses = Supervised().losses(model, task, parse_all("FP,W2A2,W4A4"))
    next(losses)
    next(losses)
    losses.close()  # what the training loop's error does
    assert setting_of(model).track_running


@pytest.mark.parametrize("bits", ["FP", "W2A2"])
def test_bits_and_policy_in_force_are_left_as_they_were(task, bits):
    model = net()
    set_norm_stats(model, "batch")
    with at(model, bits):
        for _, loss in Supervised().losses(model, task, parse_all("FP,W4A4")):
            loss.backward()
        assert str(setting_of(model).bits) == bits
    assert setting_of(model).norm_stats == "batch"


def test_a_stem_that_does_not_learn_is_left_alone(task):
    model, free = net(), net()
    model.stem.requires_grad_(False)
    for network in (model, free):
        for _, loss in Supervised().losses(network, task, parse_all("FP,W2A2")):
            loss.backward()
    assert all(p.grad is None for p in model.stem.parameters())
    for mine, other in zip(model.body.parameters(), free.body.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **CLOSE)


@pytest.mark.parametrize("name", ["digit_net", "conv4", "preact_resnet20"])
def test_what_the_stem_computes_is_held_once(name):
    """The pairs read the memory in which the stem wrote its output."""
    channels = 3 if name == "preact_resnet20" else 1
    images = torch.rand(4, channels, 32, 32)
    model = quantize(models.build(name), "dorefa", sample=images).train()
    stem, _, features = _shared_stem(model, images)
    assert features.is_leaf and features.requires_grad and stem.requires_grad
    assert features.data_ptr() == stem.data_ptr() and torch.equal(features, model.stem(images))


def test_what_is_shareable():
    assert is_shareable(net("dorefa").stem)
    assert is_shareable(net("lsq").stem)
    assert not is_shareable(net("sat").stem)  # its first layer has 8-bit weights
    assert not is_shareable(net("dorefa", keep=["body.4"]).stem)
    assert not is_shareable(give_norm_sets(net(), ["W2A2", "W4A4"]).stem)


@pytest.mark.parametrize("kind", ["sat", "norm sets"])
def test_a_stem_that_differs_by_pair_gets_every_pair_s_gradient(task, kind):
    """Not shared: the stem's gradient is the sum of the pairs', which the loop divides by their count."""
    model = net("sat") if kind == "sat" else give_norm_sets(net(), ["W2A2", "W4A4"]).double()
    single = copy.deepcopy(model)
    for _, loss in Supervised("labels").losses(model, task, parse_all("W2A2,W4A4")):
        loss.backward()
    for bits in parse_all("W4A4,W2A2"):
        with at(single, bits):
            F.cross_entropy(single(task.images), task.labels).backward()
    for mine, other in zip(model.stem.parameters(), single.stem.parameters(), strict=True):
        if other.grad is None:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, other.grad, **CLOSE)


def test_unknown_teacher_lists_the_known():
    with pytest.raises(ValueError, match=r"no teacher 'boss'; choose one of labels, fp"):
        Supervised("boss")
