"""Measure how many bytes networks take on disk, by writing real files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from mebqat_lite import files
from mebqat_lite.bits import FP, Bits
from mebqat_lite.deploy.packed import KIND, save_packed
from mebqat_lite.measure.costs import saving
from mebqat_lite.quantizers import NESTED
from mebqat_lite.switching.state import pairs_of
from mebqat_lite.tensors import Images

if TYPE_CHECKING:
    import pandas as pd

WIDTHS = ("W1A1", "W2A2", "W3A3", "W4A4", "W5A5", "W6A6", "W7A7", "W8A8", "W16A16")


def file_sizes(model: nn.Module, calibration: Images | None = None) -> pd.DataFrame:
    """Measure the sizes of files that hold a network at some or all of its candidate pairs.

    Args:
        model: a quantized model. It keeps the norm statistics that are measured here.
        calibration: training images, needed if the model lacks the norm statistics of a pair.

    Returns:
        A frame whose columns are the number of ``files``, their ``bytes``, and the number of ``pairs`` that they hold:

        - ``FP32``: one file with float weights.
        - ``W1A1`` to ``W16A16``: a packed file of that pair.
        - ``up to W8``: one packed file for all pairs with weights of up to 8 bits, nested if the quantizer allows it.
        - ``up to W8, each pair``: a packed file for each of these pairs.
        - ``packed, each pair`` and ``FP32, each pair``: a file for every candidate pair.
    """
    import pandas as pd

    pairs = pairs_of(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"

        def weigh(bits: Bits | Sequence[Bits], nested: bool = False) -> int:
            save_packed(model, path, bits, nested=nested, calibration=calibration)
            return path.stat().st_size

        each = {pair: weigh(pair) for pair in pairs}
        upper = [pair for pair in pairs if pair.w <= NESTED]
        rows = [("FP32", 1, each[FP], 1)]
        rows += [(str(pair), 1, size, 1) for pair, size in each.items() if str(pair) in WIDTHS]
        rows += [(f"up to W{NESTED}", 1, weigh(upper, nested=True), len(upper))]
        rows += [(f"up to W{NESTED}, each pair", len(upper), sum(each[pair] for pair in upper), len(upper))]
    rows += [("packed, each pair", len(pairs), sum(each.values()), len(pairs))]
    rows += [("FP32, each pair", len(pairs), len(pairs) * each[FP], len(pairs))]
    return pd.DataFrame(rows, columns=["file", "files", "bytes", "pairs"]).set_index("file")


def savings(sizes: pd.DataFrame) -> dict[str, float]:
    """Compute how many percent smaller one FP32 file is than a file for each pair, in FP32 and packed."""
    one = sizes.bytes["FP32"]
    return {baseline: saving(one, sizes.bytes[baseline]) for baseline in ("FP32, each pair", "packed, each pair")}


def parts(path: str | Path) -> dict[str, int]:
    """Count the bytes of a packed file by what they are for: codes, norm statistics, other floats, and the header."""
    tensors, _ = files.read(path, KIND)
    found = {"codes": 0, "norm statistics": 0, "other floats": 0}
    for name, tensor in tensors.items():
        kind = {"codes": "codes", "statistics": "norm statistics"}.get(name.partition("/")[0], "other floats")
        found[kind] += tensor.nbytes
    return found | {"header": Path(path).stat().st_size - sum(found.values())}
