"""The command ``mebqat-lite export``, which turns a checkpoint into a file of integers or into ONNX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mebqat_lite import datasets, methods
from mebqat_lite.bits import Bits
from mebqat_lite.checkpoint import load_model
from mebqat_lite.deploy.packed import KIND, save_packed
from mebqat_lite.files import check_output
from mebqat_lite.measure.saved import give_statistics, learns_new_classes, trained_for
from mebqat_lite.paths import results
from mebqat_lite.quantizers import NESTED
from mebqat_lite.switching.state import MapOrBits, pairs_of, parse_settings

FORMATS = ("packed", "nested", "onnx")
SWITCH = "switch"  # instead of a pair: an ONNX file whose bits are inputs
COMPARED = 1024  # test images on which such a file is compared at every pair


def export(
    checkpoint: Path,
    to: str,
    bits: str | Mapping[str, str] | None = None,
    out: Path | None = None,
    untrained: bool = False,
) -> tuple[list[Path], list[str]]:
    """Write a checkpoint in another form.

    Args:
        checkpoint: a file of `checkpoint.save_model` whose description says how the network was trained.
        to: ``packed`` (integers of exactly the bits asked for), ``nested`` (one set of 8-bit integers for all weights
            of up to 8 bits, if the quantizer allows it) or ``onnx`` (one pair, for ONNX Runtime).
        bits: the pairs, or a map of layers to pairs. ``onnx`` takes exactly one of them, or the word ``switch``: then
            the bits are inputs of the file, which runs at all pairs that the network was trained for. Only ``nested``
            has a default: all pairs with weights of up to 8 bits that the network was trained for.
        out: the file to write, by default in ``results``. A network that learns new classes becomes two ONNX files,
            and ``out`` is their folder; with ``switch`` it becomes one, which computes its features.
        untrained: whether to write pairs that the network was never trained for; with ``switch``, all candidates.

    Returns:
        The files that were written, and lines of text about them.

    Raises:
        ValueError: an argument does not fit, the checkpoint does not say how it was trained, or it is a MAML network,
            whose weights are different for each set of classes.
        FileExistsError: ``out`` is a checkpoint of another kind, such as ``checkpoint`` itself, or no regular file.
    """
    if to not in FORMATS:
        raise ValueError(f"no format {to!r}; choose one of {', '.join(FORMATS)}")
    if out is not None and to != "onnx":
        check_output(out, KIND)
    model, extra = load_model(checkpoint)
    _check_fixed(checkpoint.name, extra)
    switch = to == "onnx" and bits == SWITCH
    pairs = _switch_pairs(model, extra, untrained) if switch else _pairs(model, extra, to, bits)
    if not untrained:
        _check_trained(checkpoint.name, model, extra, pairs)
    give_statistics(model, extra, pairs)
    pair_names = "-".join("layers" if isinstance(pair, Mapping) else str(pair).lower() for pair in pairs)
    name = "nested" if to == "nested" else SWITCH if switch else pair_names
    out = (
        out
        or results() / f"{checkpoint.name.removesuffix('.safetensors')}-{name}{'' if to == 'onnx' else '.safetensors'}"
    )
    if switch:
        return _onnx_switch(model, extra, pairs, out)
    if to == "onnx":
        return _onnx(model, extra, pairs[0], out)
    is_nested = save_packed(model, out, pairs, nested=to == "nested", extra=extra)
    return [out], [_about(is_nested)] if to == "nested" else []


def _pairs(
    model: nn.Module, extra: Mapping[str, Any], to: str, bits: str | Mapping[str, str] | None
) -> list[MapOrBits]:
    """Return the pairs to write, which are those asked for or the default of ``nested``."""
    if bits is None and to != "nested":
        raise ValueError(f"--to {to} needs --bits, as W4A4")
    if bits is None:
        return [pair for pair in trained_for(model, extra) if pair.w <= NESTED]
    pairs = parse_settings(bits)
    if to == "onnx" and len(pairs) != 1:
        raise ValueError(
            f"an ONNX file holds one pair, not {len(pairs)}: export each into a file of its own, "
            f"or all into one by --bits {SWITCH}"
        )
    return pairs


def _switch_pairs(model: nn.Module, extra: Mapping[str, Any], untrained: bool) -> list[MapOrBits]:
    """Return the pairs of a file whose bits are inputs, unless no such file can be written for the quantizer."""
    from mebqat_lite.deploy.onnx_switch import check_quantizer

    check_quantizer(model)
    return [*(pairs_of(model) if untrained else trained_for(model, extra))]


def _check_fixed(name: str, extra: Mapping[str, Any]) -> None:
    """Refuse checkpoints that do not say how they were trained, and networks that adapt their weights to each task."""
    if not {"method", "setup", "data"} <= set(extra):
        raise ValueError(f"{name} does not say how it was trained; from Python: mebqat_lite.save_packed(model, ...)")
    if methods.get(extra["method"]).base == "fomaml":
        raise ValueError(f"{name} adapts its weights to each set of classes ({extra['method']}): it has none to export")


def _check_trained(name: str, model: nn.Module, extra: Mapping[str, Any], settings: Iterable[MapOrBits]) -> None:
    """Refuse pairs that the network was never trained for, also those of single layers."""
    known = trained_for(model, extra)
    pairs = [Bits.parse(pair) for one in settings for pair in (one.values() if isinstance(one, Mapping) else [one])]
    if never := [str(pair) for pair in dict.fromkeys(pairs) if pair not in known]:
        shown = ", ".join(str(pair) for pair in known[:6]) + ", ..." * (len(known) > 6)
        raise ValueError(
            f"{name} was never trained for {', '.join(never)} ({extra['method']}: {shown}): choose one of these, or "
            "--untrained"
        )


def _about(is_nested: bool) -> str:
    """Say whether the codes of a nested file really nest, and what that means for its size."""
    if is_nested:
        return "The codes nest: each width's are cut from the 8-bit codes, which alone are stored."
    return (
        "This quantizer's codes do not nest: fewer bits cannot be cut from more. A set a width is stored, "
        "which may take more bytes than the float weights. Those of sat and double_rounding nest."
    )


def _onnx(model: nn.Module, extra: Mapping[str, Any], pair: MapOrBits, out: Path) -> tuple[list[Path], list[str]]:
    """Write an ONNX file and compare it with the network on all test images.

    A network that learns new classes is written as two files, and these are not compared.
    """
    from mebqat_lite.deploy import onnx_export, onnx_run

    data = datasets.load(extra["data"], extra.get("seed", 0))
    shape, out = tuple(data.train.images.shape[1:]), out.with_name(out.name.removesuffix(".onnx"))
    if learns_new_classes(extra):
        both = onnx_export.export_few_shot(model, out, pair, shape)
        return [one.path for one in both], [str(one) for one in both]
    written = onnx_export.export_onnx(model, f"{out}.onnx", pair, shape)
    found = onnx_run.agreement(written.path, model, data.test.images, pair)
    values = f"outputs differ by up to {found.largest_difference:.2g} from PyTorch's"
    about = values if data.test.has_values else found
    return [written.path], [str(written), f"ONNX Runtime: {about}"]


def _onnx_switch(
    model: nn.Module, extra: Mapping[str, Any], pairs: list[Any], out: Path
) -> tuple[list[Path], list[str]]:
    """Write an ONNX file whose bits are inputs, and compare it with the network at every pair on test images."""
    from mebqat_lite.deploy.onnx_switch import agreements, export_switch

    test = datasets.load(extra["data"], extra.get("seed", 0)).test
    is_class = not (test.has_values or learns_new_classes(extra))
    path, output = f"{out.with_name(out.name.removesuffix('.onnx'))}.onnx", "logits" if is_class else "values"
    written = export_switch(model, path, pairs, tuple(test.images.shape[1:]), output=output)
    found = agreements(written.path, model, test.images[:COMPARED], is_class)
    return [written.path], [str(written), f"ONNX Runtime, {found}"]
