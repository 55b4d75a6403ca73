"""Checkpoints made for loading: what they consist of, and how they are written and read.

The functions are a library of their own, and need no cluster:

    from sllm import checkpoint

    checkpoint.save(model.state_dict(), "/models/mine")  # tensors to disk, whole or not at all
    tensors = checkpoint.load("/models/mine")  # all of them, past the page cache
    with checkpoint.open("/models/mine") as opened:  # some of them
        norm = opened["model.norm.weight"]

    checkpoint.pack("/models/safetensors", "/models/packed", dtype="bfloat16")
    checkpoint.verify("/models/packed")  # reads and checks every byte

They are imported when they are first used: the node agent reads checkpoints as well, and does
without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sllm.checkpoint.format.manifest import FileEntry, PartitionEntry, TensorEntry
    from sllm.checkpoint.importing.packing import pack
    from sllm.checkpoint.reading.inspection import Inspection, inspect
    from sllm.checkpoint.reading.loading import load
    from sllm.checkpoint.reading.opening import OpenCheckpoint
    from sllm.checkpoint.reading.opening import open_checkpoint as open
    from sllm.checkpoint.reading.verification import verify
    from sllm.checkpoint.saving.saving import save

_WHEN_USED = {
    "FileEntry": ("format.manifest", "FileEntry"),
    "Inspection": ("reading.inspection", "Inspection"),
    "OpenCheckpoint": ("reading.opening", "OpenCheckpoint"),
    "PartitionEntry": ("format.manifest", "PartitionEntry"),
    "TensorEntry": ("format.manifest", "TensorEntry"),
    "inspect": ("reading.inspection", "inspect"),
    "load": ("reading.loading", "load"),
    "open": ("reading.opening", "open_checkpoint"),
    "pack": ("importing.packing", "pack"),
    "save": ("saving.saving", "save"),
    "verify": ("reading.verification", "verify"),
}

__all__ = [
    "FileEntry",
    "Inspection",
    "OpenCheckpoint",
    "PartitionEntry",
    "TensorEntry",
    "inspect",
    "load",
    "open",
    "pack",
    "save",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _WHEN_USED:
        raise AttributeError(f"module 'sllm.checkpoint' has no attribute {name!r}")
    module, attribute = _WHEN_USED[name]
    return getattr(importlib.import_module(f"sllm.checkpoint.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
