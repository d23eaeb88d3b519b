"""mebqat_lite: learn, by doing, how one neural network can serve every bitwidth.

import mebqat_lite as mq
data = mq.datasets.digits()
model = mq.quantize(mq.models.digit_net(), "dorefa", sample=data.train.images)
mq.fit(model, data, method="mebqat")
with mq.at(model, "W2A4"):
    logits = model(data.test.images)
mq.grid(model, data.test)
"""

from mebqat_lite import bits, costs, datasets, methods, models, ptq, quantizers, results
from mebqat_lite.bits import FP, Bits, Listed, Sampled, candidates
from mebqat_lite.checkpoint import CheckpointError, load_model, save_model
from mebqat_lite.convert import quantize, restore_float
from mebqat_lite.evaluate import accuracy, grid, sensitivity
from mebqat_lite.methods import METHODS, Recipe
from mebqat_lite.norms import give_norm_sets, recalibrate
from mebqat_lite.packed import load_packed, save_packed
from mebqat_lite.state import NotQuantizedError, at, set_bits, set_norm_stats
from mebqat_lite.summary import summary
from mebqat_lite.train import Run, TrainingError, fit

__version__ = "0.1.0"

__all__ = [
    "FP",
    "METHODS",
    "Bits",
    "CheckpointError",
    "Listed",
    "NotQuantizedError",
    "Recipe",
    "Run",
    "Sampled",
    "TrainingError",
    "accuracy",
    "at",
    "bits",
    "candidates",
    "costs",
    "datasets",
    "fit",
    "give_norm_sets",
    "grid",
    "load_model",
    "load_packed",
    "methods",
    "models",
    "ptq",
    "quantize",
    "quantizers",
    "recalibrate",
    "restore_float",
    "results",
    "save_model",
    "save_packed",
    "sensitivity",
    "set_bits",
    "set_norm_stats",
    "summary",
]
