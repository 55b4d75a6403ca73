"""What a model's configuration says of the dtype of its weights."""

import json
from pathlib import Path
from typing import Any

from sllm.checkpoint.format import strict_json
from sllm.checkpoint.format.manifest import corrupt

_DTYPE_KEYS = ("dtype", "torch_dtype")


def with_dtype(config: bytes, dtype: str, path: Path) -> bytes:
    """A model's configuration after its weights were converted to `dtype`.

    Raises:
        CheckpointCorrupt: the configuration is not a JSON object; names `path`.
    """
    try:
        parsed = strict_json.parse(config)
    except ValueError as error:
        raise corrupt(path, f"cannot be parsed: {error}") from error
    if not isinstance(parsed, dict):
        raise corrupt(path, "is not a JSON object")
    if not any(key in parsed for key in _DTYPE_KEYS):
        parsed["dtype"] = dtype
    return json.dumps(_replace_dtypes(parsed, dtype), indent=2, ensure_ascii=False).encode()


def _replace_dtypes(value: Any, dtype: str) -> Any:
    """Parts of a model (`text_config` and the like) have dtypes of their own."""
    if not isinstance(value, dict):
        return value
    return {
        key: dtype if key in _DTYPE_KEYS and inner is not None else _replace_dtypes(inner, dtype)
        for key, inner in value.items()
    }
