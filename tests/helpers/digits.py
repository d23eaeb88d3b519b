"""The shipped networks that read digits."""

from torch import nn

from mebqat_lite import load_model
from mebqat_lite.paths import shipped


def network(name: str) -> nn.Module:
    """Load one by the end of its file's name, such as ``mebqat_in_turn``, in evaluation mode."""
    return load_model(shipped("checkpoints", f"digits-{name}.safetensors"))[0].eval()
