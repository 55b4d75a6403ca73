"""Whether a checkpoint is a model, or what adapts one."""

from collections.abc import Iterable
from pathlib import Path

from sllm.checkpoint.sources.file_names import ADAPTER_CONFIG, CONFIG

_PREFIX = "base_model."
"""Of the names of all that PEFT saves."""


def is_adapter(directory: Path, names: Iterable[str]) -> bool:
    """Whether it adapts a model; a model may have settings of adapters beside its own.

    Args:
        directory: has the small files.
        names: of the tensors.
    """
    if not (directory / ADAPTER_CONFIG).exists():
        return False
    return not (directory / CONFIG).exists() or all(name.startswith(_PREFIX) for name in names)
