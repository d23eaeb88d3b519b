"""Whose statistics batch norm uses: running, of the batch, recalibrated for a bitwidth, or of a pair's own set."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mebqat_lite as mq
from mebqat_lite.switching.batchnorm import MissingNormSetError, MissingStatisticsError
from mebqat_lite.switching.norms import is_recalibrated
from mebqat_lite.switching.state import norm_layers, setting_of

F64 = torch.float64
POLICIES = ("running", "batch", "recalibrated")


class Mlp(nn.Module):
    """One batch norm, of the one-dimensional kind."""

    def __init__(self):
        super().__init__()
        self.first, self.mid, self.norm, self.last = (
            nn.Linear(6, 8),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.last(F.relu(self.norm(self.mid(F.relu(self.first(x))))))


def images(count, seed=0, dtype=F64):
    return torch.randn(count, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def rows(count, seed=0, dtype=F64):
    return torch.randn(count, 6, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def net(dtype=F64):
    """A digit net whose running statistics, gains and shifts are far from those of a fresh one."""
    torch.manual_seed(0)
    model = mq.models.digit_net(widths=(4, 8, 8, 8)).to(dtype)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0.3, 0.3)
            norm.running_mean.normal_(0, 0.3), norm.running_var.uniform_(0.2, 2)
    return mq.quantize(model, sample=images(16)).eval()


def mlp(dtype=F64):
    torch.manual_seed(0)
    return mq.quantize(Mlp().to(dtype), sample=rows(16)).eval()


def state(model, part=""):
    return {key: value.clone() for key, value in model.state_dict().items() if part in key}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def at(model, bits, policy, x):
    with torch.no_grad(), mq.at(model, bits, policy):
        return model(x)


@pytest.mark.parametrize("bits", ["W2A2", "W4A8", "FP", {"*": "W8A8", "body.0.0": "W2A2"}], ids=str)
def test_recalibrated_equals_batch_statistics_on_the_same_images(bits):
    model, x = net(), images(40)
    before, mode = state(model), (str(setting_of(model).bits), setting_of(model).norm_stats)
    assert mq.recalibrate(model, x, bits) is model
    torch.testing.assert_close(at(model, bits, "recalibrated", x), at(model, bits, "batch", x), rtol=1e-9, atol=1e-9)
    now = state(model)
    assert same({key: now[key] for key in before}, before), "weights and running statistics stay"
    assert len(now) == len(before) + len(norm_layers(model)) and all("stats_" in key for key in now.keys() - before)
    assert (str(setting_of(model).bits), setting_of(model).norm_stats) == mode == ("FP", "running")


def test_several_batches_are_pooled_as_one_sample():
    """Unequal batches: the moments of all inputs together, not the mean of the batches' moments."""
    model, seen = mlp(), []
    parts = [rows(5, 1), 3 + rows(11, 2), 0.1 * rows(2, 3)]
    hook = model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    mq.recalibrate(model, parts, "W3A4")
    hook.remove()
    pooled = torch.cat(seen)
    assert len(pooled) == 18
    expected = torch.stack([pooled.mean(0), pooled.var(0, correction=0)])
    torch.testing.assert_close(model.norm._buffers["stats_W3A4"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda x: (x, torch.zeros(len(x))), lambda x: [x], lambda x: [(x, torch.zeros(len(x)))]]
)
def test_recalibrate_takes_images_with_labels_and_loaders(make):
    one, two = mq.recalibrate(mlp(), rows(9), "W2A2"), mq.recalibrate(mlp(), make(rows(9)), "W2A2")
    assert same(state(one), state(two))


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
def test_recalibrated_variance_is_accurate_in_float32_far_from_zero(mean):
    """A mean of squares less the squared mean would lose all digits here, or fall below zero and give NaN."""
    model = mq.quantize(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), sample=torch.rand(4, 2), keep=[])
    model[0].weight.data, model[0].bias.data = torch.eye(2), torch.zeros(2)
    parts = [torch.stack([mean + 0.1 * x, x * 0 + mean], 1) for x in rows(300)[:, 0].float().split(70)]
    mq.recalibrate(model, parts, "FP")
    expected = torch.cat(parts).double().var(0, correction=0)
    torch.testing.assert_close(model[1]._buffers["stats_FP"][1].double(), expected, rtol=1e-4, atol=1e-6)
    assert at(model, "FP", "recalibrated", parts[0]).isfinite().all()


@pytest.mark.parametrize("bits", ["W2A2", "FP"])
@pytest.mark.parametrize("policy", ["recalibrated", "running"])
def test_a_single_image_is_classified_as_in_a_big_batch(policy, bits):
    model, x = mq.recalibrate(net(), images(64), bits), images(200, seed=1)
    alone = torch.cat([at(model, bits, policy, image[None]) for image in x[:8]])
    torch.testing.assert_close(alone, at(model, bits, policy, x)[:8], rtol=0, atol=1e-6)
    assert (at(model, bits, "batch", x[:8]) - at(model, bits, "batch", x)[:8]).abs().max() > 1e-3


def test_policies_differ_where_they_must_and_training_uses_the_batch_whatever_the_policy():
    model, x = mq.recalibrate(net(), images(64), "W2A2,W4A4"), images(32, seed=1)
    outs = [at(model, bits, policy, x) for bits in ("W2A2", "W4A4") for policy in POLICIES]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(outs) for b in outs[:i])
    batch, running = outs[1], state(model, "running")
    model.train()
    assert all(torch.equal(at(model, "W2A2", policy, x), batch) for policy in POLICIES)
    assert not same(state(model, "running"), running)


def test_each_setting_keeps_its_own_statistics_also_a_map_of_layers():
    model, layers = net(), {"*": "W8A8", "body.0.0": "W2A2", "body.1.0": (4, 4)}
    for bits in (["W2A2", (4, 4)], (8, 8), layers):
        mq.recalibrate(model, images(16), bits)
    key = "stats_W8A8,body/0/0=W2A2,body/1/0=W4A4"
    names = {"stats_W2A2", "stats_W4A4", "stats_W8A8", key}
    assert all(
        {name for name in norm._buffers if name.startswith("stats")} == names for norm in norm_layers(model).values()
    )
    assert is_recalibrated(model, key.removeprefix("stats_")) and not is_recalibrated(model, "FP")
    stats = [model.body[1][1]._buffers[name] for name in sorted(names)]
    assert all(not torch.equal(a, b) for i, a in enumerate(stats) for b in stats[:i])
    x = images(4, seed=2)
    expected = at(model, layers, "recalibrated", x)
    assert torch.equal(at(model, dict(reversed(layers.items())), "recalibrated", x), expected), "order is no matter"
    del model.body[1][1]._buffers["stats_W8A8"]
    assert is_recalibrated(model, "W2A2") and not is_recalibrated(model, "W8A8"), "one norm lacks it"


@pytest.mark.parametrize("bits", ["W2A4", "FP", {"*": "W8A8", "body.0.0": "W2A2"}], ids=str)
def test_missing_statistics_are_an_error_whose_cure_cures(bits):
    model = mq.recalibrate(net(), images(8), "W8A8")
    with pytest.raises(MissingNormSetError, match=r"^no recalibrated statistics for ") as error:
        at(model, bits, "recalibrated", images(2))
    cure = re.search(r"call (recalibrate\(model, images, .*\)) first$", str(error.value))
    eval(cure[1], {"recalibrate": mq.recalibrate, "model": model, "images": images(8)})
    assert at(model, bits, "recalibrated", images(2)).isfinite().all()


def test_an_unknown_policy_is_answered_with_the_known_ones():
    model = net()
    for use in (lambda: mq.set_norm_stats(model, "median"), lambda: at(model, "FP", "median", images(2))):
        with pytest.raises(ValueError, match=r"^no norm policy 'median'; choose one of running, batch, recalibrated$"):
            use()
    assert setting_of(model).norm_stats == "running"


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_statistics_travel_with_a_state_dict_into_another_model(dtype):
    """Also into a model of another floating type, as every other tensor does; those of before are dropped."""
    model, other = mq.recalibrate(net(), images(64), "W2A2"), net().to(dtype)
    mq.recalibrate(other, images(8), "W4A4")
    names = list(model.state_dict())
    assert other.load_state_dict(model.state_dict(), strict=True) == ([], []) and list(model.state_dict()) == names
    x = images(16, seed=1)
    out = at(other, "W2A2", "recalibrated", x.to(dtype))
    if dtype is F64:
        assert torch.equal(out, at(model, "W2A2", "recalibrated", x))
    assert {value.dtype for value in state(other, "stats_").values()} == {dtype}
    for norm in norm_layers(model).values():
        norm._buffers["stats_W2A2"].zero_()
    assert torch.equal(at(other, "W2A2", "recalibrated", x.to(dtype)), out), "the models share storage"
    with pytest.raises(MissingStatisticsError, match="no recalibrated statistics for W4A4"):
        at(other, "W4A4", "recalibrated", images(4).to(dtype))


def test_a_norm_that_is_not_executed_does_not_matter():
    model = Mlp().double()
    model.spare = nn.BatchNorm1d(8)
    model = mq.quantize(model.eval(), sample=rows(4))
    mq.recalibrate(model, rows(16), "W2A2")
    assert at(model, "W2A2", "recalibrated", rows(2)).isfinite().all()


def test_a_failed_recalibration_leaves_nothing_behind():
    clean, model = mlp(), mlp()
    with pytest.raises(RuntimeError):
        mq.recalibrate(model, [5 + rows(9), rows(9)[:, :2]], "W2A2")
    assert str(setting_of(model).bits) == "FP" and setting_of(model).norm_stats == "running"
    assert same(state(mq.recalibrate(clean, rows(16), "W2A2")), state(mq.recalibrate(model, rows(16), "W2A2")))


def test_recalibrate_leaves_the_mode_of_every_module():
    model, twin = mlp().train(), mq.recalibrate(mlp(), rows(12), "W2A2")
    model.norm.eval()
    mq.recalibrate(model, rows(12), "W2A2")
    assert [m.training for m in (model, model.norm, model.mid)] == [True, False, True]
    mq.recalibrate(model.train(), rows(12), "W2A2")
    assert model.training and model.norm.training and same(state(model), state(twin))


def test_recalibrate_takes_any_number_of_images_from_two():
    """513 are one more than a batch holds: a lone image would have no variance."""
    for count in (2, 513, 1025):
        mq.recalibrate(mlp(), rows(count), "W4A4")


@pytest.mark.parametrize("make", [net, mlp])
def test_each_pair_of_a_norm_set_has_its_own_affine_and_running_statistics(make):
    """Started from the float layer's; training one pair leaves the others and FP as they were."""
    model = make(torch.float32)
    x, fp = (images if make is net else rows)(32, dtype=torch.float32), state(model, "running") | state(model, "weight")
    before = at(model, "W2A2", "running", x)
    assert mq.give_norm_sets(model, ["W2A2", (4, 4), mq.FP]) is model
    assert all(list(norm.sets) == ["W2A2", "W4A4"] for norm in norm_layers(model).values())
    assert torch.equal(at(model, "W2A2", "running", x), before)
    others = state(model, "sets.W4A4") | fp
    model.train()
    with mq.at(model, "W2A2"):
        model(x).square().mean().backward()
    for norm in norm_layers(model).values():
        assert norm.weight.grad is None and norm.sets["W4A4"].weight.grad is None
        assert norm.sets["W2A2"].weight.grad.abs().sum() > 0 and norm.sets["W2A2"].bias.grad.abs().sum() > 0
        norm.sets["W2A2"].weight.data.mul_(2)
        assert not torch.equal(norm.sets["W2A2"].running_var, norm.running_var)
    now = state(model.eval())
    assert same({key: now[key] for key in others}, others)
    assert not torch.equal(at(model, "W2A2", "running", x), before)
    with mq.at(model, "FP"):
        model.train()(x)
    assert not same(state(model, "running"), {key: now[key] for key in state(model, "running")})
    assert same(state(model, "sets."), {key: value for key, value in now.items() if "sets." in key})


@pytest.mark.parametrize("bits", ["W8A8", {"*": "W2A2", "body.0.0": "W4A4"}, {"body.0.0": "W4A4"}], ids=str)
@pytest.mark.parametrize("policy", [*POLICIES, "measure"])
def test_a_pair_off_the_list_is_refused_under_norm_sets(policy, bits):
    model = mq.give_norm_sets(net(torch.float32), ["W2A2", "W4A4"])
    with pytest.raises(MissingNormSetError, match=r"^no norm set for .+: this model has sets for FP, W2A2, W4A4 only$"):
        at(model, bits, policy, images(2, dtype=torch.float32))


@pytest.mark.parametrize(("dtype", "pairs"), [(torch.float32, ["W2A2"]), (F64, ["W2A2"]), (torch.float32, "W2A2,FP")])
def test_norm_sets_have_the_models_dtype_and_are_recalibrated_with_their_own_gain_and_shift(dtype, pairs):
    model, twin, x = mq.give_norm_sets(net(dtype), pairs), net(dtype), images(32, dtype=dtype)
    for mine, theirs in zip(norm_layers(model).values(), norm_layers(twin).values(), strict=True):
        for norm in (mine.sets["W2A2"], theirs):  # the twin has the same numbers in its float layers
            norm.bias.data.add_(0.3), norm.weight.data.mul_(-1)
    expected, tolerance = at(twin, "W2A2", "batch", x), 1e-9 if dtype is F64 else 1e-4
    mq.recalibrate(model, x, "W2A2")
    for policy in ("batch", "recalibrated"):
        torch.testing.assert_close(at(model, "W2A2", policy, x), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sets", [(), ("W2A2",)])
def test_running_statistics_stay_where_a_training_pass_does_not_track_them(sets):
    model, x = net(torch.float32), images(16, dtype=torch.float32)
    mq.give_norm_sets(model, sets) if sets else None
    expected = at(model, "W2A2", "batch", x)
    before = state(model.train())
    setting_of(model).track_running = False
    for policy in POLICIES:
        assert torch.equal(at(model, "W2A2", policy, x), expected), "training uses the batch"
        at(model, "FP", policy, x)
    assert same(state(model), before)
    setting_of(model).track_running = True
    at(model, "W2A2", None, x)
    assert not same(state(model), before)


@pytest.mark.parametrize("options", [{"affine": False}, {"affine": False, "track_running_stats": False}], ids=str)
def test_norms_without_gain_or_without_statistics_have_sets_and_recalibrate_too(options):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.BatchNorm1d(4, **options), nn.ReLU(), nn.Linear(4, 2))
    model = mq.quantize(model.eval(), sample=rows(8).float())
    x = rows(16).float()
    mq.recalibrate(mq.give_norm_sets(model, ["W2A2"]), x, "W2A2")
    torch.testing.assert_close(
        at(model, "W2A2", "recalibrated", x), at(model, "W2A2", "batch", x), rtol=1e-5, atol=1e-5
    )


def test_several_settings_at_once_are_those_one_by_one_and_the_stem_runs_once_a_batch():
    settings = ["W2A2", {"*": "W8A8", "body.1.0": "W2A4"}, "FP", "W4A2"]
    together, alone, calls = net(), net(), []
    hook = together.stem.register_forward_hook(lambda *_: calls.append(1))
    mq.recalibrate(together, [images(24), images(16, seed=1)], settings)
    hook.remove()
    for setting in settings:
        mq.recalibrate(alone, [images(24), images(16, seed=1)], setting)
    assert len(calls) == 2
    found, wanted = together.state_dict(), alone.state_dict()
    assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert sum("stats_" in name for name in found) == len(settings) * len(norm_layers(together))


def test_statistics_do_not_outlive_the_weights_and_steps_that_they_were_measured_with():
    data = mq.datasets.digits()
    model = mq.quantize(mq.models.digit_net(widths=(4, 4, 4, 4)), "lsq", sample=data.train.images[:16])
    for change in (
        lambda: mq.fit(model, data, "mebqat", steps=1, progress=False),
        lambda: mq.methods.set_steps(model, "least_squares", data),
    ):
        mq.recalibrate(model, data.train.images[:64], "W2A2,FP")
        change()
        assert not is_recalibrated(model, "W2A2") and not is_recalibrated(model, "FP")
        with pytest.raises(MissingStatisticsError), mq.at(model, "W2A2", "recalibrated"):
            model(data.test.images[:4])


# --- narrow types -----------------------------------------------------------------------------------------------


def read_by_norms(model, run):
    """What each batch norm reads while ``run`` is called, in float64."""
    seen, hooks = {}, []
    for name, norm in norm_layers(model).items():

        def see(_, args, name=name):
            seen.setdefault(name, args[0].double())

        hooks.append(norm.register_forward_pre_hook(see))
    run()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float32, True), (torch.bfloat16, False)])
def test_recalibrated_statistics_of_narrow_inputs_are_float32_and_right(dtype, autocast, affine):
    """Under autocast, and of a network that is bfloat16 itself; at the mean of 3 of some channels bfloat16 has 1/64."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, affine=affine), nn.ReLU()]
    float_model = nn.Sequential(*body, nn.Flatten(), nn.Linear(128, 3))
    nn.init.normal_(float_model[2].bias, 3)
    model, x = mq.quantize(float_model.to(dtype).eval(), "lsq", sample=images(16).float()), images(64).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        [read] = read_by_norms(model, lambda: mq.recalibrate(model, x.float(), "W4A4")).values()
        out = at(model, "W4A4", "recalibrated", x[:16])
        batch = at(model, "W4A4", "batch", x)[:16]
    [stats] = state(model, "stats_").values()
    assert stats.dtype == torch.float32
    var, mean = torch.var_mean(read, (0, 2, 3), correction=0)
    torch.testing.assert_close(stats.double(), torch.stack([mean, var]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out, batch, rtol=0, atol=8 * torch.finfo(torch.bfloat16).eps)
    model.load_state_dict(state(model))
    assert state(model, "stats_")["3.stats_W4A4"].dtype == torch.float32


def test_a_network_is_recalibrated_in_one_type_and_used_in_another():
    """Float32 statistics serve the network as bfloat16, under autocast, and as float64."""
    model, x = net(torch.float32), images(32, dtype=torch.float32)
    mq.recalibrate(model, x, "W4A4")
    right = at(model, "W4A4", "recalibrated", x)
    with torch.autocast("cpu", torch.bfloat16):
        found = [at(model, "W4A4", "recalibrated", x).float()]
    for dtype in (F64, torch.bfloat16):
        found.append(at(model.to(dtype), "W4A4", "recalibrated", x.to(dtype)).float())
    for out in found:
        assert (out - right).abs().mean() < 0.1 * right.std()
