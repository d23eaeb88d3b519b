"""Learners decide how a task is learned: a learner is the second half of a method.

`base` defines what a learner is, `adapting` holds what the few-shot learners share, and each other file is one learner.
To add one, write a file like `protonet` and an entry of `mebqat_lite.methods.METHODS`.
"""

from mebqat_lite.learners.adapting import call_with, put_weights, run_adapted, support_stats
from mebqat_lite.learners.base import Learner, Predictor
from mebqat_lite.learners.maml import FOMAML, adaptable, updated
from mebqat_lite.learners.objectives import Classes, Values, cross_entropies, objective
from mebqat_lite.learners.protonet import ProtoNet, prototype_logits
from mebqat_lite.learners.quantize_adapted import QuantizeAdapted
from mebqat_lite.learners.supervised import TEACHERS, Supervised

__all__ = [
    "FOMAML",
    "TEACHERS",
    "Classes",
    "Learner",
    "Predictor",
    "ProtoNet",
    "QuantizeAdapted",
    "Supervised",
    "Values",
    "adaptable",
    "call_with",
    "cross_entropies",
    "objective",
    "prototype_logits",
    "put_weights",
    "run_adapted",
    "support_stats",
    "updated",
]
