"""Plans of imports, carried out. Here nothing takes torch, whose import takes seconds."""

from collections.abc import Callable
from pathlib import Path

from sllm.checkpoint.files.memory import ChunkMemory
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.import_plan import ImportPlan
from sllm.checkpoint.importing.importer import import_checkpoint

CHUNK = 8192
"""Small chunks: a few kilobytes of weights cross several."""


def never() -> bool:
    """For work that is not cancelled."""
    return False


def run_import(
    plan: ImportPlan,
    destination: Path,
    progress: Callable[[int, int], object] = lambda loaded, total: None,
    cancelled: Callable[[], bool] = never,
    memory: ChunkMemory | None = None,
) -> Manifest:
    """Carries a plan out, in small chunks."""
    return import_checkpoint(
        plan,
        destination,
        chunk_bytes=CHUNK,
        progress=progress,
        cancelled=cancelled,
        memory=memory,
    )
