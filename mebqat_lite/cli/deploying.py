"""The command that prepares a model for use elsewhere: export."""

from __future__ import annotations

import argparse
from pathlib import Path

from mebqat_lite.cli.shared import Commands


def add_export(commands: Commands) -> None:
    """Define ``mebqat-lite export``."""
    command = commands.add_parser("export", help="write a checkpoint as a file of integers, or for ONNX Runtime")
    command.add_argument("--checkpoint", type=Path, required=True)
    command.add_argument("--to", required=True, help="packed, nested or onnx")
    command.add_argument(
        "--bits", help="bitwidth pair, as W4A4, or several; default for nested: all trained pairs up to W8"
    )
    command.add_argument("--untrained", action="store_true", help="allow pairs that the model was never trained for")
    command.add_argument(
        "--out", type=Path, help="file to write; default: in results, named after the checkpoint and the pair"
    )
    command.set_defaults(run=run_export)


def run_export(arguments: argparse.Namespace) -> int:
    """Write a checkpoint in another form, and say how large it is."""
    from mebqat_lite.deploy.export import export

    paths, notes = export(arguments.checkpoint, arguments.to, arguments.bits, arguments.out, arguments.untrained)
    for note in notes:
        print(note)
    written = ", ".join(f"{path} ({path.stat().st_size:,} bytes)" for path in paths)
    print(f"Written: {written}. {arguments.checkpoint.name} has {arguments.checkpoint.stat().st_size:,} bytes.")
    if arguments.to != "onnx":
        print(f"Next: mebqat-lite evaluate --checkpoint {paths[0]}")
    return 0
