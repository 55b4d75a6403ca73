"""Models as a worker finds them: small files in a directory, weights in the pool."""

from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.node.tiers.pool import Pool

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """A checkpoint whose weights are in the pool."""

    directory: Path
    manifest: Manifest
    chunks: tuple[tuple[int, ...], ...]
    """For each partition, its chunks."""

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(one.size for one in self.manifest.tensors)


def stage(model: Path, destination: Path, pool: Pool, dtype: str | None = None) -> Staged:
    """Imports a model and reads its weights into the pool."""
    manifest = import_checkpoint(
        plan_import(inspect(LocalSource(model)), dtype),
        destination,
        chunk_bytes=pool.chunk_bytes,
        progress=lambda read, total: None,
        cancelled=lambda: False,
    )
    files = [destination / entry.file for entry in manifest.partitions]
    return Staged(destination, manifest, tuple(_read(file, pool) for file in files))


def _read(file: Path, pool: Pool) -> tuple[int, ...]:
    chunks = pool.try_allocate(-(-file.stat().st_size // pool.chunk_bytes))
    assert chunks is not None, "the pool is too small for the test"
    with file.open("rb") as content:
        for chunk in chunks:
            content.readinto(pool.view(chunk))
    return chunks
