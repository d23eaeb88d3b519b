"""Methods as data: a method is a sampler x a learner, and what happens before and after.

|                          | supervised                    | FOMAML                        | ProtoNet              |
|--------------------------|-------------------------------|-------------------------------|-----------------------|
| always full precision    | ``fp``                        | ``fomaml``                    | ``pn``                |
| and then quantized       | ``ptq_naive``, ``ptq_mse``    | ``fomaml_ptq_mse``, ``_lsq``  | ``pn_ptq_mse``        |
| always one (w, a)        | ``qat``                       | ``fomaml_qat``                | ``pn_qat``            |
| a listed set, every step | ``adabits``, ``any_precision_hard``, ``_soft``, ``_recursive`` | |               |
| M sampled, every step    | ``mebqat``                    | ``mebqat_maml``               | ``mebqat_pn``         |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.datasets.augment import Augment
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.datasets.batches import Batches
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import Learner, ProtoNet, Supervised
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import Dealt, Listed, Sampled
from mebqat_lite.switching.convert import give_clips, requantize
from mebqat_lite.switching.norms import forget_stats, give_norm_sets
from mebqat_lite.switching.state import has_one_bit, norm_layers, quantized_layers

LISTED = ("W1A1", "W2A2", "W4A4", "W8A8", "FP")
Sampler = Listed | Sampled


class Source(Protocol):
    """Where a training loop takes its tasks from."""

    def task(self, step: int, index: int = 0) -> Any:
        """The batch or the episode of one task of a step: a function of the two numbers alone."""
        ...


def _batches(train: Split, recipe: Recipe) -> Source:
    augment = Augment(recipe.pad, recipe.flip) if recipe.pad or recipe.flip else None
    return Batches(train, recipe.batch_size, recipe.seed, augment)


def _episodes(train: Split, recipe: Recipe) -> Source:
    """One episode a step, seen at several pairs."""
    return Episodes(train, recipe.ways, recipe.shots, recipe.queries, recipe.seed)


def _many_episodes(train: Split, recipe: Recipe) -> Source:
    """Several episodes a step, each at a pair of its own."""
    return Episodes(train, recipe.ways, recipe.shots, recipe.queries, recipe.seed, recipe.tasks)


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    title: str
    sampler: Callable[[nn.Module, Recipe], Sampler]
    learner: Callable[[Recipe, str], Learner]  # from the recipe and the teacher's name
    prepare: Callable[[nn.Module, Sampler], object] = lambda model, sampler: None
    finish: Callable[[nn.Module, Data], object] = lambda model, data: None
    trains: bool = True  # beyond full precision
    base: str = "fp"  # the full-precision method that it may start from
    source: Callable[[Split, Recipe], Source] = _batches

    @property
    def learns_new_classes(self) -> bool:
        """Whether it is measured on episodes of classes that it was not trained on."""
        return self.base != "fp"

    norm_stats: str = "batch"  # the policy it is meant to be evaluated under
    teacher: str = "fp"
    warm_teacher: str = ""  # for a run that starts from a trained FP network, if another one


def calibration(data: Data) -> Tensor:
    """The training images that calibrate steps, run as one batch: at most 512, fewer where they are large."""
    pixels = data.train.images[0].numel()
    return data.train.images[: max(16, min(512, 2**19 // pixels))]


def set_steps(model: nn.Module, quantizer: str, data: Data, base: str = "fp") -> None:
    """Choose learned steps anew, from trained weights and from what the layers read on training images.

    A network trained by MAML has no running statistics: its layers read what they read under those of a batch.
    Statistics that were recalibrated with the steps before are dropped.
    """
    forget_stats(model)
    mode = model.training
    model.train(mode or base == "fomaml")
    requantize(model, quantizer, calibration(data))
    model.train(mode)


def _lowest(model: nn.Module, recipe: Recipe) -> list[Bits]:
    """The lowest pair that a method may visit: W1A1, or W2A2 where there is no 1 bit; none if it is excluded."""
    if has_one_bit(model) and 1 not in recipe.exclude:
        return [Bits(1, 1)]
    return [] if 2 in recipe.exclude else [Bits(2, 2)]


def _pool(model: nn.Module, recipe: Recipe) -> list[Bits]:
    """The pairs that a method may draw."""
    one_bit = has_one_bit(model) and 1 not in recipe.exclude
    return [b for b in candidates(one_bit) if not {b.w, b.a} & set(recipe.exclude)]


def _sampled(model: nn.Module, recipe: Recipe) -> Sampler:
    """FP and W1A1 are guaranteed (ECCV 2022, section 3.2); where there is no 1 bit W2A2 is, with ``sandwich``."""
    lowest = [b for b in _lowest(model, recipe) if b.w == 1 or recipe.sandwich]
    body = [name for name, layer in quantized_layers(model).items() if layer.site.role == "body"]
    layers = body if recipe.per_layer else []
    return Sampled(_pool(model, recipe), recipe.m, [FP, *lowest][: recipe.m], seed=recipe.seed, layers=layers)


def _ends(model: nn.Module, recipe: Recipe) -> list[Bits]:
    """What a few-shot method always visits: both ends with ``sandwich``, nothing in the paper."""
    return [FP, *_lowest(model, recipe)] if recipe.sandwich else []


def _sampled_pn(model: nn.Module, recipe: Recipe) -> Sampler:
    return Sampled(_pool(model, recipe), recipe.m, _ends(model, recipe)[: recipe.m], seed=recipe.seed)


def _dealt(model: nn.Module, recipe: Recipe) -> Sampler:
    ends = _ends(model, recipe)[: recipe.tasks]
    return Dealt(_pool(model, recipe), recipe.tasks, ends, seed=recipe.seed)


def _listed(model: nn.Module, recipe: Recipe) -> Listed:
    """The recipe's pairs; by default W1A1 (where there is 1 bit), W2A2, W4A4, W8A8 and FP."""
    return Listed(recipe.bits or LISTED[0 if has_one_bit(model) else 1 :])


def _switches(model: nn.Module, sampler: Sampler) -> None:
    assert isinstance(sampler, Listed)
    give_norm_sets(model, sampler.pairs)
    give_clips(model, {pair.a for pair in sampler.pairs})


def _one_pair(model: nn.Module, recipe: Recipe) -> Listed:
    if len(recipe.bits) != 1:
        raise ValueError(f'qat trains exactly one pair: give bits="W2A2", not {recipe.bits or "none"}')
    return Listed(recipe.bits)


def _full_precision(model: nn.Module, recipe: Recipe) -> Listed:
    return Listed([FP])


def _each_task(sampler: Callable[[nn.Module, Recipe], Listed]) -> Callable[[nn.Module, Recipe], Sampler]:
    """The same pair for each of MAML's tasks."""
    return lambda model, recipe: Listed(sampler(model, recipe).pairs, recipe.tasks)


def _least_squares(model: nn.Module, data: Data) -> None:
    set_steps(model, "least_squares", data)


def _quantize_lsq(model: nn.Module, data: Data) -> None:
    set_steps(model, "lsq", data, "fomaml")


def _fix_gains(model: nn.Module, sampler: Sampler) -> None:
    """MAML's batch norms have a shift and no gain: it stays what it is, 1."""
    for norm in norm_layers(model).values():
        norm.weight.requires_grad_(False)


def _supervised(recipe: Recipe, teacher: str) -> Learner:
    return Supervised(teacher)


def _teacher_alone(recipe: Recipe, teacher: str) -> Learner:
    """Any-Precision's lower pairs learn from the next higher one, or from FP, and not from the labels."""
    return Supervised(teacher, alone=True)


def _proto_net(recipe: Recipe, teacher: str) -> Learner:
    return ProtoNet(teacher)


def _fomaml(recipe: Recipe, teacher: str) -> Learner:
    return FOMAML(recipe.inner_steps, recipe.inner_lr, recipe.second_order, teacher, recipe.test_steps)


def _quantizes_adapted(recipe: Recipe, teacher: str) -> Learner:
    return QuantizeAdapted(recipe.inner_steps, recipe.inner_lr, recipe.second_order, teacher, recipe.test_steps)


def _switchable(title: str, learner: Callable[[Recipe, str], Learner], teacher: str) -> Method:
    """Every listed pair in every step, each with norm statistics, gain, shift and (sat) clips of its own."""
    return Method(title, _listed, learner, _switches, norm_stats="running", teacher=teacher)


def _ptq(title: str, finish: Callable[[nn.Module, Data], object] = lambda model, data: None) -> Method:
    return Method(title, _full_precision, _supervised, finish=finish, trains=False, norm_stats="recalibrated")


def _pn(title: str, sampler: Callable[[nn.Module, Recipe], Sampler], **options: Any) -> Method:
    return Method(title, sampler, _proto_net, **{"base": "pn", "source": _episodes, "teacher": "labels", **options})


def _maml(title: str, sampler: Callable[[nn.Module, Recipe], Sampler], **options: Any) -> Method:
    common = {"learner": _fomaml, "base": "fomaml", "source": _many_episodes, "teacher": "labels"}
    return Method(title, sampler, prepare=_fix_gains, **{**common, **options})


METHODS: dict[str, Method] = {
    "fp": Method("full precision", _full_precision, _supervised, trains=False, norm_stats="running"),
    "ptq_naive": _ptq("FP + PTQ naive"),
    "ptq_mse": _ptq("FP + PTQ-MSE", _least_squares),
    # A run that never trains FP has no use for its own FP as a teacher: it drifts away and teaches nonsense. It learns
    # from the network that it started from, if that was trained, else from the labels.
    "qat": Method("QAT", _one_pair, _supervised, norm_stats="running", teacher="labels", warm_teacher="start"),
    "mebqat": Method("MEBQAT", _sampled, _supervised),
    "adabits": _switchable("AdaBits", _supervised, "labels"),
    "any_precision_hard": _switchable("Any-Precision, hard", _supervised, "labels"),
    "any_precision_soft": _switchable("Any-Precision, soft", _teacher_alone, "fp"),
    "any_precision_recursive": _switchable("Any-Precision, recursive", _teacher_alone, "next"),
    "pn": _pn("PN", _full_precision, trains=False),
    "pn_ptq_mse": _pn("PN + PTQ-MSE", _full_precision, trains=False, finish=_least_squares),
    "pn_qat": _pn("PN + QAT", _one_pair, warm_teacher="start"),
    "mebqat_pn": _pn("MEBQAT-PN", _sampled_pn, teacher="fp"),
    "fomaml": _maml("FOMAML", _each_task(_full_precision), trains=False),
    "fomaml_ptq_mse": _maml(
        "FOMAML, adapted, then PTQ-MSE", _each_task(_full_precision), trains=False, learner=_quantizes_adapted
    ),
    "fomaml_ptq_lsq": _maml(
        "FOMAML, quantized, then adapted", _each_task(_full_precision), trains=False, finish=_quantize_lsq
    ),
    "fomaml_qat": _maml("FOMAML + QAT", _each_task(_one_pair)),
    "mebqat_maml": _maml("MEBQAT-MAML", _dealt),
}


def teacher_of(method: Method, recipe: Recipe, warm: bool) -> str:
    """Who teaches: whom the recipe names, else the method's own, which may differ after a warm start."""
    return recipe.teacher or (method.warm_teacher if warm else "") or method.teacher


def get(name: str) -> Method:
    """A method by name; an unknown one is a ValueError that lists the known ones."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
