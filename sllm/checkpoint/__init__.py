"""Checkpoints made for loading: what they consist of, and how they are written and read.

The functions are a library of their own, and need no cluster. They are imported when they are
first used: the node agent reads checkpoints as well, and does without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sllm.checkpoint.inspection import Inspection, inspect
    from sllm.checkpoint.loading import load
    from sllm.checkpoint.manifest import FileEntry, PartitionEntry, TensorEntry
    from sllm.checkpoint.opening import OpenCheckpoint
    from sllm.checkpoint.opening import open_checkpoint as open
    from sllm.checkpoint.packing import pack
    from sllm.checkpoint.saving import save
    from sllm.checkpoint.verification import verify

_WHEN_USED = {
    "FileEntry": ("manifest", "FileEntry"),
    "Inspection": ("inspection", "Inspection"),
    "OpenCheckpoint": ("opening", "OpenCheckpoint"),
    "PartitionEntry": ("manifest", "PartitionEntry"),
    "TensorEntry": ("manifest", "TensorEntry"),
    "inspect": ("inspection", "inspect"),
    "load": ("loading", "load"),
    "open": ("opening", "open_checkpoint"),
    "pack": ("packing", "pack"),
    "save": ("saving", "save"),
    "verify": ("verification", "verify"),
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
