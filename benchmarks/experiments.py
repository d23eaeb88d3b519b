"""The accuracy experiments: each is one call of `compare`, so its methods share data, split, start, seeds and budget.

All but two keep to equal back-propagations for each network, the FP network that PTQ rounds included. Dedicated
networks choose their learning rate on validation data where ``qat_lrs`` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mebqat_lite.bits import candidates
from mebqat_lite.experiments.setups import Setup, get
from mebqat_lite.recipe import Recipe

ALL = tuple(str(pair) for pair in candidates())
ALL_FROM_2 = tuple(str(pair) for pair in candidates(one_bit=False))
SOME = ("W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "FP")
SHOWN = (*SOME[:-1], "W2A8", "W8A2", "FP")  # eight pairs, from low to high and mixed
FEW = ("W2A2", "W3A3", "W4A4", "W8A8", "W2A8", "W8A2", "W5A5", "FP")
LOW = ("W1A1", "W2A2", "W4A4")
TWELVE = ("W2A2", "W3A3", "W4A4", "W5A5", "W6A6", "W8A8", "W2A4", "W2A8", "W4A2", "W4A8", "W8A2", "W8A4")
RATES = (0.01, 0.02, 0.03, 0.05)
PRECISION = tuple(f"any_precision_{teacher}" for teacher in ("hard", "soft", "recursive"))


@dataclass(frozen=True)
class Experiment:
    """An experiment: its title ``why``, and the arguments of `compare`."""

    why: str
    setup: Setup
    names: Sequence[str]
    pairs: Sequence[str] = ALL
    listed: Sequence[str] = LOW
    seeds: int | Sequence[int] = 5
    budget: str = "backprops"
    qat_lrs: Sequence[float] = ()
    parts: Sequence[str] = ("val", "test")  # the parts that the page shows: only ``val`` if a choice is made
    options: str = ""  # options that the command on the page needs besides the name


def variants(method: str, changes: Sequence[str]) -> list[str]:
    """Name a method as it is, and with each change alone."""
    return [method, *(f"{method}+{change}" for change in changes)]


DIGITS = Experiment(
    "Digits: all methods, equal back-propagations for each network",
    get("digits"),
    ("mebqat_in_turn", "mebqat", "adabits", *PRECISION, "qat", "ptq_mse", "ptq_naive"),
    listed=SOME[:-1],
    qat_lrs=(0.003, 0.01, 0.03),
)
WIDE = replace(get("digits-wide").with_options(steps=1200), method="mebqat_in_turn")
CLASSES = get("glyph-classes")
CORRECTED = "mebqat_in_turn+quantizer=dorefa_corrected"
OURS = "mebqat_in_turn+lr=0.05"
CHANGES = ("warm_steps=0", "warm_steps=150", "teacher=fp", "weight_decay=0.0", "m=8", "exclude=(3,5,7)")
CIFAR = Setup(
    "cifar10,count=5000,val=500,test=2000",
    "conv4",
    {"channels": 16},
    Recipe(warm_steps=1000, steps=2400, batch_size=64, lr=1e-2, pad=4, flip=True),
    method="mebqat_in_turn",
)
FASTER = "lr=0.02"
PN, MAML = get("glyphs-pn"), replace(get("glyphs-maml"), episodes=600)

EXPERIMENTS: dict[str, Experiment] = {
    "digits-backprops": DIGITS,
    "digits-steps": replace(DIGITS, why="Digits: all methods, equal steps", budget="steps"),
    "digits-total": replace(
        DIGITS,
        why="Digits: equal total back-propagations for five delivered pairs",
        budget="total",
        names=("mebqat_in_turn", "mebqat", "qat"),
    ),
    "digits-wide": replace(
        DIGITS,
        why="Digits, the wide net (16-32-32-32), which has room for every pair",
        setup=WIDE,
        names=("mebqat_in_turn", "mebqat", "qat", "ptq_mse"),
        qat_lrs=(),
    ),
    "glyph-classes-rates": Experiment(
        "Glyph classes: which learning rate for which method; seeds that serve only for this",
        CLASSES,
        [
            *(f"{name}+lr={rate}" for name in ("mebqat_in_turn", CORRECTED, "mebqat") for rate in RATES),
            *(f"{name}+lr={rate}" for rate in RATES for name in ("qat", "ptq_mse")),
        ],
        SHOWN,
        seeds=(10, 11, 12),
        parts=("val",),
    ),
    "glyph-classes": Experiment(
        "Glyph classes: one network for all pairs beside one for each and beside rounding",
        CLASSES,
        [
            *(f"{name}+lr=0.05" for name in ("mebqat_in_turn", CORRECTED, "mebqat", "qat")),
            *("ptq_mse", "ptq_naive"),
            *(f"{OURS}+steps={steps}" for steps in (2700, 5700)),  # twice and four times the training in all
        ],
    ),
    "glyph-classes-trials": Experiment(
        "Glyph classes: what helps MEBQAT in turn", CLASSES, variants(OURS, CHANGES), SHOWN, parts=("val",)
    ),
    "glyph-classes-quantizers": Experiment(
        "Glyph classes: MEBQAT in turn with other quantizers, from 2 bits on",
        CLASSES,
        variants(OURS, ("quantizer=lsq", "quantizer=double_rounding")),
        SHOWN[1:],
        LOW[1:],
        parts=("val",),
    ),
    "cifar": Experiment(
        "CIFAR-10, 5,000 images, Conv4-16: all methods",
        CIFAR,
        [
            *(name for method in ("mebqat_in_turn", "mebqat") for name in variants(method, (FASTER,))),
            *("adabits", "any_precision_recursive", "qat", "ptq_mse", "ptq_naive"),
        ],
        qat_lrs=(0.01, 0.02),
    ),
    "cifar-trials": Experiment(
        "CIFAR-10, 5,000 images, Conv4-16: what helps MEBQAT",
        CIFAR,
        [
            *variants("mebqat_in_turn", ("warm_steps=0", "teacher='fp'", "exclude=(3,5,7)")),
            *variants(CORRECTED, (FASTER,)),
            *variants("mebqat", ("teacher='next'", "teacher='labels'")),
        ],
        seeds=3,
        parts=("val",),
    ),
    "cifar-quantizers": Experiment(
        "CIFAR-10, 5,000 images, Conv4-16: MEBQAT in turn with other quantizers, from 2 bits on",
        CIFAR,
        variants(
            "mebqat_in_turn",
            [
                "quantizer=double_rounding",
                *(f"quantizer={name}{change}" for name in ("lsq", "sat") for change in ("", "+sandwich=False")),
            ],
        ),
        SHOWN[1:],
        LOW[1:],
        seeds=3,
        parts=("val",),
    ),
    "cifar-preact_resnet20": Experiment(
        "CIFAR-10, 5,000 images, the paper's PreActResNet-20 at width 0.25",
        replace(CIFAR, model="preact_resnet20", options={"width": 0.25}),
        ("mebqat_in_turn", "mebqat", "adabits", "any_precision_recursive", "qat", "ptq_mse"),
        seeds=3,
    ),
    "glyphs-pn": Experiment(
        "New classes: PN, 20-way 1-shot on glyphs",
        PN,
        ("mebqat_pn_in_turn", "mebqat_pn", "pn_qat", "pn", "pn_ptq_mse"),
        FEW,
        TWELVE,
        seeds=3,
    ),
    "glyphs-pn-dedicated": Experiment(
        "New classes: PN, a network of its own for each of the 72 pairs",
        PN,
        ("mebqat_pn_in_turn", "mebqat_pn", "pn_qat", "pn_ptq_mse"),
        FEW,
        [pair for pair in ALL_FROM_2 if pair != "FP"],
        seeds=1,
    ),
    "glyphs-pn-quantizers": Experiment(
        "New classes: PN in turn with other quantizers",
        PN,
        variants("mebqat_pn_in_turn", [f"quantizer={name}" for name in ("double_rounding", "dorefa", "lsq_corrected")]),
        FEW,
        seeds=3,
        parts=("val",),
    ),
    "glyphs-maml": Experiment(
        "New classes: MAML, 5-way 1-shot on glyphs",
        MAML,
        (
            "mebqat_maml",
            "mebqat_maml_in_turn",
            "mebqat_maml+teacher='fp'",
            *("fomaml_qat", "fomaml", "fomaml_ptq_lsq", "fomaml_ptq_mse"),
        ),
        ("W2A2", "FP"),
        ("W2A2",),
        seeds=3,
    ),
    "omniglot-pn": Experiment(
        "New classes: PN, 20-way 1-shot, six alphabets of Omniglot, Korean and Sanskrit held out",
        replace(PN, data="omniglot"),
        ("mebqat_pn_in_turn", "mebqat_pn", "pn_qat", "pn_ptq_mse"),
        FEW,
        ("W2A2", "W4A4"),
        parts=("test",),
        options=" --data 'omniglot:FOLDER,test=Korean+Sanskrit,val=()'",
    ),
}
