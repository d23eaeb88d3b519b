"""mebqat_lite: learn, by doing, how one neural network can serve every bitwidth.

In short::

    import mebqat_lite as mq

    data = mq.datasets.digits()
    model = mq.quantize(mq.models.digit_net(), "dorefa", sample=data.train.images)
    mq.fit(model, data, method="mebqat", device="cpu")  # train it for all bitwidths at once
    with mq.at(model, "W2A4"):  # 2-bit weights, 4-bit activations
        logits = model(data.test.images)
    mq.grid(model, data.test)  # the accuracy at all 75 bitwidth pairs
"""

from mebqat_lite import bits, datasets, methods, models, quantizers
from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.checkpoint import load_model, save_model
from mebqat_lite.deploy.packed import load_packed, save_packed
from mebqat_lite.files import CheckpointError
from mebqat_lite.loop import Run, TrainingError
from mebqat_lite.measure import allocate, costs, results
from mebqat_lite.measure.allocate import sensitivity
from mebqat_lite.measure.evaluate import accuracy, grid, score
from mebqat_lite.measure.summary import summary
from mebqat_lite.methods import METHODS
from mebqat_lite.quantizers import ptq
from mebqat_lite.recipe import Recipe
from mebqat_lite.samplers import Listed, Sampled
from mebqat_lite.scale import speed as _speed  # noqa: F401  (registers the default passes on CUDA)
from mebqat_lite.switching.convert import quantize, restore_float
from mebqat_lite.switching.norms import give_norm_sets, recalibrate
from mebqat_lite.switching.state import NotQuantizedError, at, set_bits, set_norm_stats
from mebqat_lite.train import fit
from mebqat_lite.version import __version__ as __version__

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
    "allocate",
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
    "score",
    "sensitivity",
    "set_bits",
    "set_norm_stats",
    "summary",
]
