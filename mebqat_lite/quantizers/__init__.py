"""Quantizers: pairs of fake-quantization functions, one for weights and one for activations, with their gradients.

Fake quantization rounds float values to few levels, but keeps them as floats, so that a network can still be trained.
`functions` holds the pure functions; `base` defines what a quantizer is and keeps the registry. Each other file
defines one family of quantizers and registers it by name. To add one, write a file like `dorefa` and import it below.
"""

from mebqat_lite.quantizers.base import NESTED, QUANTIZERS, Params, Quantizer, Site, get, register
from mebqat_lite.quantizers.functions import (
    TINY,
    codes,
    fake_quantize,
    integer_range,
    pact_activation,
    q_b,
    sign_weight,
    step_clip,
    tanh_weight,
    unit_activation,
    unit_grid,
    unit_weight,
    wide,
)

# isort: off
# Error messages list the quantizers in the order of these imports.
from mebqat_lite.quantizers.dorefa import DoReFa
from mebqat_lite.quantizers.sat import SAT
from mebqat_lite.quantizers.lsq import LSQ
from mebqat_lite.quantizers.authors import AuthorsLSQ, SharedLSQ, UntrainedLSQ
from mebqat_lite.quantizers.double_rounding import DoubleRounding
from mebqat_lite.quantizers.ptq import LeastSquares
from mebqat_lite.quantizers.corrected import Corrected, corrected
# isort: on

__all__ = [
    "LSQ",
    "NESTED",
    "QUANTIZERS",
    "SAT",
    "TINY",
    "AuthorsLSQ",
    "Corrected",
    "DoReFa",
    "DoubleRounding",
    "LeastSquares",
    "Params",
    "Quantizer",
    "SharedLSQ",
    "Site",
    "UntrainedLSQ",
    "codes",
    "corrected",
    "fake_quantize",
    "get",
    "integer_range",
    "pact_activation",
    "q_b",
    "register",
    "sign_weight",
    "step_clip",
    "tanh_weight",
    "unit_activation",
    "unit_grid",
    "unit_weight",
    "wide",
]
