"""What blocks of content may say: nothing of them is left out unsaid."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sllm.gateway.fields import only

_FIELDS: Final[Mapping[str, Sequence[str]]] = {
    "text": ("text", "cache_control"),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
    "tool_use": ("id", "name", "input", "cache_control"),
    "tool_result": ("tool_use_id", "content", "is_error", "cache_control"),
}
"""Of each type of block: what is served, and what is harmless (docs/http.md says which)."""


def check(blocks: Any, where: str) -> None:
    """Looks at blocks, and at those within results; what is no list of blocks has none.

    Raises:
        errors.InvalidArgument: One has a field that is not served; it is named.
    """
    if not isinstance(blocks, list):
        return
    for place, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, Mapping) else None
        if isinstance(kind, str) and kind in _FIELDS:
            only(block, f"{where}.{place}", "type", *_FIELDS[kind])
            check(block.get("content"), f"{where}.{place}.content")
