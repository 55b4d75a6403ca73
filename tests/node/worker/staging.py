"""Models as a worker finds them: small files in a directory, weights in the pool."""

from dataclasses import dataclass, replace
from pathlib import Path

from sllm.checkpoint.format.form import WeightForm
from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.format.manifest_file import read_manifest
from sllm.checkpoint.importing.import_plan import plan_import
from sllm.checkpoint.importing.importer import import_checkpoint
from sllm.checkpoint.reading.tensors import tensors_over
from sllm.checkpoint.sources.sources import LocalSource, inspect
from sllm.node.tiers.pool import Pool
from sllm.node.worker.model.description import load_architecture
from sllm.node.worker.model.ready_module import make_module_ready
from sllm.node.worker.ready_made import contents

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Staged:
    """A checkpoint whose weights are in the pool."""

    directory: Path
    manifest: Manifest
    chunks: tuple[tuple[int, ...], ...]
    """For each partition, its chunks."""
    ready_made: Path | None = None
    """The directory of what the weights were made ready for, if they were."""
    chunk_bytes: int = CHUNK_BYTES

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
    return stage_packed(destination, manifest, pool)


def stage_packed(directory: Path, manifest: Manifest, pool: Pool) -> Staged:
    """Reads a checkpoint's weights into the pool."""
    files = [directory / entry.file for entry in manifest.partitions]
    chunks = tuple(_read(file, pool) for file in files)
    return Staged(directory, manifest, chunks, chunk_bytes=pool.chunk_bytes)


def stage_ready(staged: Staged, destination: Path, pool: Pool) -> Staged:
    """Makes weights ready for transformers, and reads what comes of it into the pool."""
    published = [
        memoryview(bytearray((staged.directory / entry.file).read_bytes()))
        for entry in staged.manifest.partitions
    ]
    architecture = load_architecture(staged.directory)
    weights = tensors_over(staged.manifest.tensors, published)
    ready = make_module_ready(architecture, weights)
    form = WeightForm("transformers-here", "transformers")
    contents.write(ready, destination, pool.chunk_bytes, form)
    manifest = read_manifest(destination)
    return replace(
        stage_packed(destination, manifest, pool),
        directory=staged.directory,
        ready_made=destination,
    )


def _read(file: Path, pool: Pool) -> tuple[int, ...]:
    chunks = pool.try_allocate(-(-file.stat().st_size // pool.chunk_bytes))
    assert chunks is not None, "the pool is too small for the test"
    with file.open("rb") as content:
        for chunk in chunks:
            content.readinto(pool.view(chunk))
    return chunks
