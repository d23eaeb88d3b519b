"""The methods that learn new classes: what they draw, train and hold, and that they resume."""

import pytest
import torch
from few_shot import DATA, FAST, TRAIN, small

from mebqat_lite import METHODS, fit
from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.loop import Loop
from mebqat_lite.switching.state import norm_layers, quantized_layers

W2A2 = Bits(2, 2)


# --- methods ----------------------------------------------------------------------------------------------------


PN = [name for name, method in METHODS.items() if method.base == "pn"]
MAML = [name for name, method in METHODS.items() if method.base == "fomaml"]


def recipe_of(name, **options):
    return FAST.with_options(**({"bits": "W2A2"} if name.endswith("_qat") else {}), **options)


def network_of(name, quantizer="lsq"):
    return small(3 if name in MAML else None, quantizer)


def draws(name, quantizer="lsq", count=200, **options):
    sampler = METHODS[name].sampler(network_of(name, quantizer), recipe_of(name, **options))
    return [sampler.draw() for _ in range(count)]


def test_the_table_has_eleven_methods_that_learn_new_classes():
    assert PN == ["pn", "pn_ptq_mse", "pn_qat", "mebqat_pn", "mebqat_pn_in_turn"]
    assert MAML == ["fomaml", "fomaml_ptq_mse", "fomaml_ptq_lsq", "fomaml_qat", "mebqat_maml", "mebqat_maml_in_turn"]
    assert [name for name, method in METHODS.items() if method.learns_new_classes] == PN + MAML


@pytest.mark.parametrize("quantizer", ["lsq", "dorefa"])
@pytest.mark.parametrize("name", PN + MAML)
def test_every_few_shot_method_trains(name, quantizer):
    model = network_of(name, quantizer)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".quant." not in n}
    run = fit(model, DATA, name, recipe_of(name), progress=False, device="cpu")
    passes = 3 if name == "mebqat_pn" or (name in MAML and "in_turn" not in name) else 1
    assert (run.costs.steps, run.costs.backprops, len(run.losses)) == (2, 2 * passes, 2)
    now = dict(model.named_parameters())
    assert not model.training and all(torch.isfinite(p).all() for p in now.values())
    assert not torch.equal(now["stem.0.weight"], before["stem.0.weight"])
    for norm in norm_layers(model).values():
        assert torch.equal(norm.weight, torch.ones(4)) == (name in MAML)
        assert not torch.equal(norm.bias, torch.zeros(4))
    learner = METHODS[name].learner(recipe_of(name), "labels")
    support = TRAIN.images[:6].unflatten(0, (3, 2))
    for bits in ("FP", "W2A2"):
        assert torch.isfinite(learner.adapt(model, support, bits)(TRAIN.images[6:9])).all()


@pytest.mark.parametrize("name", MAML)
def test_gains_of_maml_are_one_and_no_optimizer_holds_them(name):
    model = network_of(name)
    loop = Loop(model, TRAIN, name, recipe_of(name, weight_decay=0.5))
    held = {id(p) for group in loop.optimizer.param_groups for p in group["params"]}
    for norm in norm_layers(model).values():
        assert id(norm.weight) not in held and id(norm.bias) in held and not norm.weight.requires_grad
    loop.step(), loop.close()
    assert all(torch.equal(norm.weight, torch.ones(4)) for norm in norm_layers(model).values())


@pytest.mark.parametrize("name", ["pn", "pn_ptq_mse"])
def test_a_prototypical_network_draws_full_precision(name):
    assert draws(name, count=3) == [[[FP]]] * 3


@pytest.mark.parametrize("name", ["fomaml", "fomaml_ptq_mse", "fomaml_ptq_lsq"])
def test_fomaml_draws_full_precision_for_each_task(name):
    assert draws(name, count=3) == [[[FP]] * 3] * 3 and draws(name, count=1, tasks=5) == [[[FP]] * 5]


def test_qat_draws_its_pair():
    assert draws("pn_qat", count=3) == [[[W2A2]]] * 3
    assert draws("fomaml_qat", count=3, tasks=4) == [[[W2A2]] * 4] * 3


@pytest.mark.parametrize("name", ["pn_qat", "fomaml_qat"])
def test_qat_without_a_pair_is_refused(name):
    with pytest.raises(ValueError, match="exactly one pair"):
        fit(network_of(name), DATA, name, FAST, progress=False)


@pytest.mark.parametrize(("quantizer", "lowest", "size"), [("lsq", W2A2, 73), ("dorefa", Bits(1, 1), 75)])
def test_mebqat_pn_draws_m_pairs_with_both_ends_or_all_uniform(quantizer, lowest, size):
    steps = draws("mebqat_pn", quantizer, m=4)
    assert all(len(step) == 1 and len(step[0]) == 4 and step[0][:2] == [FP, lowest] for step in steps)
    free = [pair for step in steps for pair in step[0][2:]]
    uniform = [pair for step in draws("mebqat_pn", quantizer, 1500, m=4, sandwich=False) for pair in step[0]]
    assert len(set(free)) > 60 and set(uniform) == set(candidates(quantizer == "dorefa")) and len(set(uniform)) == size
    assert max(map(uniform.count, set(uniform))) < 2 * 6000 / size  # no pair is guaranteed: each is expected 80 times


@pytest.mark.parametrize(("quantizer", "lowest", "size"), [("lsq", W2A2, 73), ("dorefa", Bits(1, 1), 75)])
def test_mebqat_maml_deals_one_pair_to_each_task(quantizer, lowest, size):
    steps = draws("mebqat_maml", quantizer, tasks=4, m=9)  # m is not its own
    assert all([len(pairs) for pairs in step] == [1] * 4 and step[:2] == [[FP], [lowest]] for step in steps)
    uniform = draws("mebqat_maml", quantizer, 1500, tasks=4, sandwich=False)
    assert all([len(pairs) for pairs in step] == [1] * 4 for step in uniform)
    pairs = [pairs[0] for step in uniform for pairs in step]
    assert set(pairs) == set(candidates(quantizer == "dorefa")) and len(set(pairs)) == size
    assert max(map(pairs.count, set(pairs))) < 2 * 6000 / size


@pytest.mark.parametrize("name", ["mebqat_pn", "mebqat_maml"])
@pytest.mark.parametrize("sandwich", [True, False])
@pytest.mark.parametrize("quantizer", ["lsq", "dorefa"])
def test_excluded_widths_are_never_drawn(name, sandwich, quantizer):
    options = {"exclude": (1, 2, 5), "sandwich": sandwich, "m": 4, "tasks": 4}
    pairs = [pair for step in draws(name, quantizer, **options) for task in step for pair in task]
    assert not {width for pair in pairs for width in (pair.w, pair.a)} & {1, 2, 5}
    assert (pairs.count(FP) >= 200) == sandwich


@pytest.mark.parametrize(("name", "count"), [("mebqat_pn", 1), ("mebqat_maml", 3)])
def test_a_step_has_an_episode_for_each_task_and_never_the_same_again(name, count, monkeypatch):
    loop = Loop(network_of(name), TRAIN, name, recipe_of(name))
    asked, index = [], loop.source.index
    monkeypatch.setattr(loop.source, "index", lambda number: asked.append(number) or index(number))
    for _ in range(3):
        loop.step()
    loop.close()
    assert asked == list(range(3 * count))


def test_the_recipe_reaches_the_learner():
    recipe = FAST.with_options(inner_steps=7, inner_lr=0.25, second_order=True, test_steps=9)
    for name in MAML:
        learner = METHODS[name].learner(recipe, "fp")
        found = (learner.inner_steps, learner.inner_lr, learner.second_order, learner.teacher, learner.test_steps)
        assert found == (7, 0.25, True, "fp", 9)
        assert isinstance(learner, QuantizeAdapted) == (name == "fomaml_ptq_mse")
    assert METHODS["fomaml"].learner(FAST, "labels").test_steps == FAST.inner_steps
    assert METHODS["mebqat_pn"].learner(recipe, "fp").teacher == "fp"


# --- interrupted runs -------------------------------------------------------------------------------------------


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize(("name", "passes"), [("mebqat_pn", 4), ("mebqat_maml", 3)])
def test_an_interrupted_few_shot_run_ends_as_if_it_had_not_been(name, passes, tmp_path, monkeypatch):
    recipe = recipe_of(name, steps=9, sandwich=False, schedule="cosine")

    def train(path=None, seed=0):
        model = network_of(name)
        with torch.no_grad():
            for p in model.parameters():  # a continued run starts from other weights, which must not matter
                p *= 1 + seed / 10
        return fit(model, DATA, name, recipe, path=path, save_every=2, progress=False, device="cpu"), model

    whole, backward = train(), torch.Tensor.backward
    for seed, steps in enumerate((3, 0, 4), start=1):  # whole steps before; 2, 2 and 6 of them are saved
        left = [steps * passes + 2]

        def interrupted(self, *args, left=left, **kwargs):
            left[0] -= 1
            if not left[0]:
                raise Interrupted
            return backward(self, *args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(torch.Tensor, "backward", interrupted)
            train(tmp_path / "run", seed=0 if seed == 1 else seed)
    run, model = train(tmp_path / "run", seed=8)
    assert run.losses == whole[0].losses and run.costs == whole[0].costs
    mine, other = model.state_dict(), whole[1].state_dict()
    assert list(mine) == list(other) and [n for n in mine if not torch.equal(mine[n], other[n])] == []


# --- a pair for each layer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mebqat_pn", "mebqat_pn_in_turn", "mebqat_maml", "mebqat_maml_in_turn"])
def test_few_shot_methods_draw_a_pair_per_layer(name):
    body = [layer for layer, m in quantized_layers(network_of(name)).items() if m.site.role == "body"]
    pairs = [pair for step in draws(name, per_layer=True, count=60) for task in step for pair in task]
    mixed = [pair for pair in pairs if isinstance(pair, dict)]
    assert len(mixed) >= 20 and all(list(pair) == body for pair in mixed)
    assert any(len(set(pair.values())) > 1 for pair in mixed)
    assert not any(isinstance(pair, dict) for step in draws(name, count=20) for task in step for pair in task)
    run = fit(network_of(name), DATA, name, recipe_of(name, per_layer=True), progress=False, device="cpu")
    assert len(run.losses) == 2
