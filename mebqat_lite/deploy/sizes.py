"""What networks take on disk: real files, written and weighed."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from mebqat_lite.bits import FP, Bits, candidates
from mebqat_lite.deploy.packed import NESTED, save_packed
from mebqat_lite.measure.costs import saving
from mebqat_lite.switching.state import has_one_bit
from mebqat_lite.tensors import Images

if TYPE_CHECKING:
    import pandas as pd

WIDTHS = ("W1A1", "W2A2", "W3A3", "W4A4", "W5A5", "W6A6", "W7A7", "W8A8", "W16A16")


def file_sizes(model: nn.Module, calibration: Images | None = None) -> pd.DataFrame:
    """Bytes of files of a network at all its candidate pairs, as a frame with columns ``files bytes pairs``.

    Rows: ``FP32``, the network as it was trained; packed files of one pair; ``up to W8``, one file for all pairs with
    weights of up to 8 bits, from nested codes if the quantizer's nest; ``packed, each pair`` and ``FP32, each pair``:
    a file for every pair.

    Args:
        model: quantized; it keeps the norm statistics that are measured here.
        calibration: training images, if it lacks statistics of a pair.
    """
    import pandas as pd

    pairs = candidates(has_one_bit(model))
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
    """What one FP32 file saves in percent, against a file for each pair: FP32 files, and packed ones."""
    one = sizes.bytes["FP32"]
    return {baseline: saving(one, sizes.bytes[baseline]) for baseline in ("FP32, each pair", "packed, each pair")}
