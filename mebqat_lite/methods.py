"""Methods as data: a method is a sampler times a learner, and what happens before and after the training.

A row for each sampler, a column for each learner::

    |                          | supervised                    | FOMAML                        | ProtoNet              |
    |--------------------------|-------------------------------|-------------------------------|-----------------------|
    | always full precision    | ``fp``                        | ``fomaml``                    | ``pn``                |
    | and then quantized       | ``ptq_naive``, ``ptq_mse``    | ``fomaml_ptq_mse``, ``_lsq``  | ``pn_ptq_mse``        |
    | always one (w, a)        | ``qat``                       | ``fomaml_qat``                | ``pn_qat``            |
    | a listed set, every step | ``adabits``, ``any_precision_hard``, ``_soft``, ``_recursive`` | |               |
    | M sampled, every step    | ``mebqat``                    | ``mebqat_maml``               | ``mebqat_pn``         |
    | the same, one each step  | ``mebqat_in_turn``            | ``mebqat_maml_in_turn``       | ``mebqat_pn_in_turn`` |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from mebqat_lite.bits import FP, Bits, parse_all
from mebqat_lite.datasets.augment import Augment
from mebqat_lite.datasets.base import Data, Split
from mebqat_lite.datasets.batches import Batches
from mebqat_lite.datasets.episodes import Episodes
from mebqat_lite.learners import Learner, ProtoNet, Supervised
from mebqat_lite.learners.maml import FOMAML
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import Dealt, InTurn, Listed, Sampled
from mebqat_lite.switching.convert import give_clips, requantize
from mebqat_lite.switching.norms import forget_stats, give_norm_sets
from mebqat_lite.switching.state import has_norm_sets, norm_layers, pairs_of, plan_of, quantized_layers

LISTED = ("W1A1", "W2A2", "W4A4", "W8A8", "FP")
# The options of a recipe that `fit` itself reads.
LOOP = {"steps", "epochs", "warm_steps", "lr", "weight_decay", "schedule", "clip", "seed", "quantizer"}
Sampler = Listed | Sampled


class Source(Protocol):
    """What gives the training loop its tasks: batches or episodes."""

    def task(self, step: int, index: int = 0) -> Any:
        """Return the batch or the episode of task ``index`` of a step.

        It depends on these two numbers alone, so that a resumed run gets the same tasks.
        """
        ...


def _batches(train: Split, recipe: Recipe) -> Source:
    augment = Augment(recipe.pad, recipe.flip) if recipe.pad or recipe.flip else None
    return Batches(train, recipe.batch_size, recipe.seed, augment)


def _episodes(train: Split, recipe: Recipe) -> Source:
    """Make one episode per step, which is learned at several pairs."""
    return Episodes(train, recipe.ways, recipe.shots, recipe.queries, recipe.seed)


def _many_episodes(train: Split, recipe: Recipe) -> Source:
    """Make several episodes per step, each of which is learned at its own pair."""
    return Episodes(train, recipe.ways, recipe.shots, recipe.queries, recipe.seed, recipe.tasks)


@dataclass(frozen=True)
class Method:
    """An entry of `METHODS`: a sampler, a learner, and what happens before and after the training."""

    title: str
    sampler: Callable[[nn.Module, Recipe], Sampler]
    learner: Callable[[Recipe, str], Learner]  # takes the recipe and the name of the teacher
    prepare: Callable[[nn.Module, Sampler], object] = lambda model, sampler: None
    finish: Callable[[nn.Module, Data], object] = lambda model, data: None
    quantizer: str = ""  # that it always quantizes its FP network with in the end, whatever the recipe says
    trains: bool = True  # whether it trains at other pairs than FP
    base: str = "fp"  # the full-precision method that a warm-up trains with
    source: Callable[[Split, Recipe], Source] = _batches

    @property
    def learns_new_classes(self) -> bool:
        """Whether the method is evaluated on episodes of classes that it was not trained on."""
        return self.base != "fp"

    norm_stats: str = "batch"  # the norm policy that it is evaluated with by default
    teacher: str = "fp"  # of the quantized pairs, see `learners.supervised.Supervised`


def calibration(data: Data) -> Tensor:
    """Choose the training images that `quantize` runs, in one batch, to measure the inputs of the layers.

    There are at most 512 of them, and fewer if the images are large, but at least 16.
    """
    pixels = data.train.images[0].numel()
    return data.train.images[: max(16, min(512, 2**19 // pixels))]


def set_steps(model: nn.Module, quantizer: str, data: Data, base: str = "fp") -> None:
    """Quantize the model with ``quantizer`` again, so that its learned steps start from the trained weights.

    The steps also depend on the inputs of the layers, which are measured on training images. ``base="fomaml"`` does
    this with batch statistics, because a network trained by MAML has no running statistics. Recalibrated statistics
    are dropped, because they belong to the old steps.
    """
    forget_stats(model)
    mode = model.training
    model.train(mode or base == "fomaml")
    requantize(model, quantizer, calibration(data))
    model.train(mode)


def _lowest(model: nn.Module, recipe: Recipe) -> list[Bits]:
    """Return the lowest pair that a method may visit: W1A1, or W2A2 without 1 bit, or none if that is excluded."""
    return [pair for pair in (Bits(1, 1), Bits(2, 2)) if pair in _pool(model, recipe)][:1]


def _pool(model: nn.Module, recipe: Recipe) -> list[Bits]:
    """Return the pairs that a method may draw."""
    return [b for b in pairs_of(model) if not {b.w, b.a} & set(recipe.exclude)]


def _sampled(model: nn.Module, recipe: Recipe) -> Sampled:
    """Make MEBQAT's sampler, which visits FP and W1A1 in every step (ECCV 2022, section 3.2).

    Where the quantizer has no 1 bit, W2A2 takes the place of W1A1 if ``recipe.sandwich`` is set.
    """
    lowest = [b for b in _lowest(model, recipe) if b.w == 1 or recipe.sandwich]
    return Sampled(_pool(model, recipe), recipe.m, [FP, *lowest], **_draws(model, recipe))


def _draws(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Return the options of a sampler: its seed, and the layers that draw a pair each, none without ``per_layer``."""
    body = [name for name, layer in quantized_layers(model).items() if layer.site.role == "body"]
    return {"seed": recipe.seed, "layers": body if recipe.per_layer else []}


def _ends(model: nn.Module, recipe: Recipe) -> list[Bits]:
    """Return the pairs that a few-shot method visits in every step: FP and the lowest pair with ``recipe.sandwich``.

    In the paper there are none.
    """
    return [FP, *_lowest(model, recipe)] if recipe.sandwich else []


def _sampled_pn(model: nn.Module, recipe: Recipe) -> Sampled:
    return Sampled(_pool(model, recipe), recipe.m, _ends(model, recipe), **_draws(model, recipe))


def _in_turn(sampler: Callable[[nn.Module, Recipe], Sampled]) -> Callable[[nn.Module, Recipe], Sampler]:
    """Visit the pairs of a step of another method one after the other, each in a step of its own."""

    def make(model: nn.Module, recipe: Recipe) -> Sampler:
        of = sampler(model, recipe)
        return InTurn(of.pool, of.m, of.guaranteed, seed=recipe.seed, layers=of.layers)

    return make


def _dealt(model: nn.Module, recipe: Recipe) -> Dealt:
    return Dealt(_pool(model, recipe), recipe.tasks, _ends(model, recipe), **_draws(model, recipe))


def _listed(model: nn.Module, recipe: Recipe) -> Listed:
    """List the recipe's pairs; by default W1A1 (if the quantizer has 1 bit), W2A2, W4A4, W8A8 and FP."""
    return Listed(recipe.bits or [b for b in parse_all(LISTED) if b in pairs_of(model)])


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
    """Visit the same pair in each task of a MAML step."""
    return lambda model, recipe: Listed(sampler(model, recipe).pairs, recipe.tasks)


def _rounds(quantizer: str = "", base: str = "fp") -> dict[str, Any]:
    """Make the options of a method that trains at full precision, and is then quantized, by default as the model is.

    Learned steps start from the weights that were trained; those of before this training belong to other weights.
    """

    def finish(model: nn.Module, data: Data) -> None:
        learned = any(len(layer.quant) for layer in quantized_layers(model).values())
        if quantizer or (learned and not has_norm_sets(model)):  # norm sets would be lost
            set_steps(model, quantizer or plan_of(model).quantizer, data, base)

    return {"trains": False, "quantizer": quantizer, "finish": finish}


def _fix_gains(model: nn.Module, sampler: Sampler) -> None:
    """Exclude the gain of batch norm from training: in MAML batch norm only has a shift, and the gain stays 1."""
    for norm in norm_layers(model).values():
        norm.weight.requires_grad_(False)


def _supervised(recipe: Recipe, teacher: str) -> Learner:
    return Supervised(teacher)


def _teacher_alone(recipe: Recipe, teacher: str) -> Learner:
    """Make Any-Precision's learner, where a quantized pair learns from its teacher and not from the labels."""
    return Supervised(teacher, alone=True)


def _proto_net(recipe: Recipe, teacher: str) -> Learner:
    return ProtoNet(teacher)


def _fomaml(recipe: Recipe, teacher: str) -> Learner:
    return FOMAML(recipe.inner_steps, recipe.inner_lr, recipe.second_order, teacher, recipe.test_steps)


def _quantizes_adapted(recipe: Recipe, teacher: str) -> Learner:
    return QuantizeAdapted(recipe.inner_steps, recipe.inner_lr, recipe.second_order, teacher, recipe.test_steps)


def _switchable(title: str, learner: Callable[[Recipe, str], Learner], teacher: str) -> Method:
    """Make a method that visits every listed pair in every step.

    Each pair has its own norm statistics, gain and shift, and with sat its own clip.
    """
    return Method(title, _listed, learner, _switches, norm_stats="running", teacher=teacher)


def _float(title: str, quantizer: str = "", norm_stats: str = "recalibrated") -> Method:
    """Make a method that trains at full precision, and is then quantized."""
    return Method(title, _full_precision, _supervised, **_rounds(quantizer), norm_stats=norm_stats)


def _pn(title: str, sampler: Callable[[nn.Module, Recipe], Sampler], **options: Any) -> Method:
    return Method(title, sampler, _proto_net, **{"base": "pn", "source": _episodes, "teacher": "labels", **options})


def _maml(title: str, sampler: Callable[[nn.Module, Recipe], Sampler], **options: Any) -> Method:
    common = {"learner": _fomaml, "base": "fomaml", "source": _many_episodes, "teacher": "labels"}
    return Method(title, sampler, prepare=_fix_gains, **{**common, **options})


METHODS: dict[str, Method] = {
    "fp": _float("full precision", norm_stats="running"),
    "ptq_naive": _float("FP + PTQ naive"),
    "ptq_mse": _float("FP + PTQ-MSE", "least_squares"),
    # QAT never trains FP, so its weights at FP get worse and worse and would be a bad teacher.
    "qat": Method("QAT", _one_pair, _supervised, norm_stats="running", teacher="labels"),
    "mebqat": Method("MEBQAT", _sampled, _supervised),
    # The same pairs, but an update after each of them (ours, not the paper's).
    "mebqat_in_turn": Method("MEBQAT in turn", _in_turn(_sampled), _supervised, teacher="labels"),
    "adabits": _switchable("AdaBits", _supervised, "labels"),
    "any_precision_hard": _switchable("Any-Precision, hard", _supervised, "labels"),
    "any_precision_soft": _switchable("Any-Precision, soft", _teacher_alone, "fp"),
    "any_precision_recursive": _switchable("Any-Precision, recursive", _teacher_alone, "next"),
    "pn": _pn("PN", _full_precision, **_rounds()),
    "pn_ptq_mse": _pn("PN + PTQ-MSE", _full_precision, **_rounds("least_squares")),
    "pn_qat": _pn("PN + QAT", _one_pair),
    "mebqat_pn": _pn("MEBQAT-PN", _sampled_pn, teacher="fp"),
    "mebqat_pn_in_turn": _pn("MEBQAT-PN in turn", _in_turn(_sampled_pn)),
    "fomaml": _maml("FOMAML", _each_task(_full_precision), **_rounds(base="fomaml")),
    "fomaml_ptq_mse": _maml(
        "FOMAML, adapted, then PTQ-MSE",
        _each_task(_full_precision),
        learner=_quantizes_adapted,
        quantizer="least_squares",
        trains=False,
    ),
    "fomaml_ptq_lsq": _maml("FOMAML, quantized, then adapted", _each_task(_full_precision), **_rounds("lsq", "fomaml")),
    "fomaml_qat": _maml("FOMAML + QAT", _each_task(_one_pair)),
    "mebqat_maml": _maml("MEBQAT-MAML", _dealt),
    "mebqat_maml_in_turn": _maml("MEBQAT-MAML in turn", _in_turn(_dealt)),
}


def parts(method: Method, model: nn.Module, train: Split, recipe: Recipe) -> tuple[Sampler, Learner, Source]:
    """Make the sampler, the learner and the source of tasks that train ``model`` with a method."""
    learner = method.learner(recipe, recipe.teacher or method.teacher)
    return method.sampler(model, recipe), learner, method.source(train, recipe)


class Watched:
    """A recipe that remembers which of its options were looked up."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.seen = recipe, set(LOOP)

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self.recipe, name)


def reads(method: Method, model: nn.Module, train: Split, recipe: Recipe) -> set[str]:
    """Find the options of a recipe that a method reads when it trains ``model``; the others have no effect.

    Raises:
        ValueError: the method cannot work with this model, data or recipe.
    """
    watched: Any = Watched(recipe)
    parts(method, model, train, watched)
    seen = watched.seen | ({"milestones", "gamma"} if recipe.schedule == "milestones" else set())
    seen |= {"batch_size"} if recipe.epochs else set()
    seen -= set() if method.trains else {"teacher", "warm_steps"}
    return seen - {"quantizer"} if method.quantizer else seen


def get(name: str) -> Method:
    """Return a method by name; an unknown name is a ValueError that lists the known ones."""
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]
