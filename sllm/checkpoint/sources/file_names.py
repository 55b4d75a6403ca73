"""Which files of a directory belong to a model, told by their names."""

import re
from fnmatch import fnmatch
from pathlib import Path

from sllm.checkpoint.format.manifest_file import MANIFEST_FILE

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
"""Of PEFT: what an adapter adds to, and how."""
MODULES = "modules.json"
"""Of sentence-transformers: the parts of a model that embeds."""
POOLING_FILE = "1_Pooling/config.json"
"""Where sentence-transformers keeps how a model pools: the one directory within that counts."""
_POOLING = re.compile(r"[0-9]{1,2}_Pooling")
_CARRIED = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
"""Configuration, tokenizer, vocabulary, merges and chat templates, by the names in use."""


def matters(name: str) -> bool:
    """Whether a change of this file is a change of the source."""
    return name.endswith((".safetensors", INDEX)) or is_carried(name)


def is_carried(name: str) -> bool:
    """Whether this small file goes with the weights.

    Not what describes the files themselves, here or in a checkpoint, nor hidden files.
    """
    describes = name == MANIFEST_FILE or is_index(name)
    carried = any(fnmatch(name, pattern) for pattern in _CARRIED)
    return carried and not describes and not name.startswith(".")


def is_small(name: str) -> bool:
    """Whether this file goes with the weights, or tells of them: any but the weights themselves."""
    return is_carried(name) or is_index(name) or name == MANIFEST_FILE


def is_pooling(directory: str) -> bool:
    """Whether a directory within a model's is one of `POOLING_FILE`'s kind."""
    return _POOLING.fullmatch(directory) is not None


def carried_name(path: Path) -> str:
    """The name under which a small file goes with the weights, where all lie side by side."""
    return pooling_name(path.parent.name) if is_pooling(path.parent.name) else path.name


def pooling_name(directory: str) -> str:
    """That of the file of a directory that `is_pooling`."""
    return f"{directory}.{CONFIG}"


def is_index(name: str) -> bool:
    """Whether this file says which tensor is in which shard."""
    return name.endswith(".safetensors.index.json")
