"""How many threads an engine computes with."""

from typing import Final

from sllm import machine

_SMALL_BYTES: Final = 32 << 20
"""Of weights. Steps of a model that small are over before threads have helped one another, and
wait for each other where processors are short."""


def threads_for(weight_bytes: int, ranks: int = 1) -> int:
    """Threads that a model's steps are divided among in each rank: its part of all, or one."""
    return 1 if weight_bytes // ranks <= _SMALL_BYTES else max(1, machine.processors() // ranks)
