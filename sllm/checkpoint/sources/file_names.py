"""Which files of a directory belong to a model, told by their names."""

from fnmatch import fnmatch

from sllm.checkpoint.format.manifest_file import MANIFEST_FILE

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
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


def is_index(name: str) -> bool:
    """Whether this file says which tensor is in which shard."""
    return name.endswith(".safetensors.index.json")
