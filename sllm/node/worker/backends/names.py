"""The engines by name. Imports none of them: the agent asks here as well."""

from importlib.util import find_spec
from typing import Final

TRANSFORMERS: Final = "transformers"
VLLM: Final = "vllm"
ENGINES: Final = (VLLM, TRANSFORMERS)
"""All that there are, the one that is preferred first."""


def installed() -> tuple[str, ...]:
    """Those that can be imported here."""
    return tuple(name for name in ENGINES if find_spec(name) is not None)
