"""Networks that are adapted at full precision and quantized then."""

import pytest
import torch
from few_shot import CLOSE, DATA, FAST, TRAIN, episode, frozen_running, net, small

from mebqat_lite import fit
from mebqat_lite.bits import FP
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.switching.state import at, quantized_layers


@pytest.mark.parametrize("policy", ["support", "batch"])
def test_quantizing_what_was_adapted_changes_nothing_at_full_precision(policy):
    model, task = net(3), episode()
    logits = [
        learner.adapt(model, task.support, FP, policy)(task.query.flatten(0, 1))
        for learner in (QuantizeAdapted(3, 0.1), FOMAML(3, 0.1))
    ]
    torch.testing.assert_close(*logits, **CLOSE)


def test_quantizing_what_was_adapted_puts_each_channel_on_a_two_bit_grid():
    model, task = net(3), episode()
    learner = QuantizeAdapted(3, 0.1)
    two, full = (learner.adapt(model, task.support, bits)(task.query.flatten(0, 1)) for bits in ("W2A2", FP))
    assert not torch.allclose(two, full)
    copied = learner.kept[3]
    with at(frozen_running(model), FP):
        fast = FOMAML(3, 0.1).inner_loop(model, task.support, 3)
    for name, layer in quantized_layers(copied).items():
        torch.testing.assert_close(layer.weight, fast[f"{name}.weight"].detach(), **CLOSE)
        assert not torch.equal(layer.weight, model.get_parameter(f"{name}.weight"))
        quantized, steps = layer.quantized_weight(2), layer.quant["w2"]
        assert steps.shape == (4, 1, 1, 1) and len(steps.unique()) == 4
        codes = quantized / steps
        torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-9)
        assert codes.min() >= -2 and codes.max() <= 1 and not torch.equal(quantized, layer.weight)


def inputs_of(model, sample):
    """Mean |x| of what the quantized layers read where norms take the statistics of the batch."""
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].abs().mean().item()}))
        for name, layer in quantized_layers(model).items()
    ]
    with torch.no_grad(), at(model.eval(), FP, "batch"):
        model(sample)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("method", ["fomaml_ptq_lsq", "mebqat_maml"])
def test_steps_set_after_full_precision_training_fit_what_normalised_layers_read(method):
    """MAML leaves running statistics at 0 and 1, so steps measured under them are those of another network."""
    model = small(3)
    warm = {"warm_steps": 2, "steps": 1, "lr": 1e-9} if method == "mebqat_maml" else {}
    fit(model, DATA, method, FAST.with_options(**warm), progress=False, device="cpu")
    for name, mean in inputs_of(model, TRAIN.images).items():
        assert 0.5 < float(model.get_submodule(name).quant["a2"].detach()) / (2 * mean / 3**0.5) < 2, name


def test_steps_of_what_was_adapted_fit_what_normalised_layers_read():
    model, task, learner = small(3).eval(), episode(), QuantizeAdapted(2, 0.1)
    learner.adapt(model, task.support.float(), "W2A2")
    copied = learner.kept[3]
    for name, mean in inputs_of(copied, task.support.flatten(0, 1).float()).items():
        assert 0.25 < float(copied.get_submodule(name).quant["a2"].detach()) / mean < 4, name


def test_the_bitwidths_of_an_episode_share_what_was_adapted(monkeypatch):
    model, task, learner, calls = net(3), episode(), QuantizeAdapted(2, 0.1), []
    loop = learner.inner_loop
    monkeypatch.setattr(learner, "inner_loop", lambda *args: calls.append(args) or loop(*args))
    for bits in ("FP", "W2A2", "W4A4"):
        learner.adapt(model, task.support, bits)
    assert len(calls) == 1
    learner.adapt(model, episode(seed=50).support, "W2A2")
    assert len(calls) == 2


def test_another_network_on_the_same_support_is_adapted_for_itself():
    task, learner = episode(), QuantizeAdapted(2, 0.1)
    learner.adapt(net(3), task.support, "W2A2")
    after = learner.adapt(net(3, seed=5), task.support, "W2A2")(task.query.flatten(0, 1))
    alone = QuantizeAdapted(2, 0.1).adapt(net(3, seed=5), task.support, "W2A2")(task.query.flatten(0, 1))
    assert torch.equal(after, alone)
