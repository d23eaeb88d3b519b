"""Quantizers: pairs of fake-quantization functions, one for weights and one for activations, with their gradients.

`functions` has the pure functions, `base` says what a quantizer is and keeps the registry. Each other file defines one
family and registers it by name. A new quantizer is a file like `dorefa`, and a line below.
"""

from mebqat_lite.quantizers.base import QUANTIZERS, Params, Quantizer, Site, check_listed, get, register
from mebqat_lite.quantizers.functions import (
    TINY,
    codes,
    inner_product,
    integer_range,
    pact_activation,
    q_b,
    sign_weight,
    step_clip,
    tanh_weight,
    unit_activation,
    unit_grid,
)

# isort: off
# Messages list the names in the order of these lines.
from mebqat_lite.quantizers.dorefa import DoReFa
from mebqat_lite.quantizers.sat import SAT
from mebqat_lite.quantizers.lsq import LSQ
from mebqat_lite.quantizers.authors import AuthorsLSQ, SharedLSQ, UntrainedLSQ
from mebqat_lite.quantizers.ptq import LeastSquares
# isort: on

__all__ = [
    "LSQ",
    "QUANTIZERS",
    "SAT",
    "TINY",
    "AuthorsLSQ",
    "DoReFa",
    "LeastSquares",
    "Params",
    "Quantizer",
    "SharedLSQ",
    "Site",
    "UntrainedLSQ",
    "check_listed",
    "codes",
    "get",
    "inner_product",
    "integer_range",
    "pact_activation",
    "q_b",
    "register",
    "sign_weight",
    "step_clip",
    "tanh_weight",
    "unit_activation",
    "unit_grid",
]
