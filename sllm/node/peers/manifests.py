"""What another node says that a checkpoint consists of, held against what is known of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.format.manifest_file import decode_manifest
from sllm.checkpoint.format.plain_files import MAX_SMALL_BYTES
from sllm.checkpoint.importing.import_plan import ImportPlan
from sllm.checkpoint.importing.journal import ChunkKey
from sllm.errors import SllmError

_ANOTHER = Path("manifest.json of another node")


@dataclass(frozen=True, slots=True)
class CopyTerms:
    """What a checkpoint that is copied must be."""

    chunk_bytes: int
    """Of its chunks: the pool's."""
    most_bytes: int
    """What it may take on the disk."""
    is_wanted: Callable[[str], bool]
    """Whether a small file of this name belongs to it: nothing else is written."""


def manifest_of(encoded: bytes, digest: str, plan: ImportPlan, chunk_bytes: int) -> Manifest | None:
    """A manifest, if it is of the checkpoint that a plan leads to. None: it is of another one.

    Args:
        encoded: as another node has sent it.
        digest: of the checkpoint, as the control plane has named it. Empty: nobody knows it.
        plan: what is to be imported.
        chunk_bytes: in chunks of which size: the digests of others are of no use.
    """
    try:
        manifest = decode_manifest(encoded, _ANOTHER)
    except SllmError:
        return None
    sizes = tuple(entry.size for entry in manifest.partitions)
    same = manifest.tensors == plan.tensors and sizes == plan.layout.partition_sizes
    same = same and all(entry.chunk_size == chunk_bytes for entry in manifest.partitions)
    return manifest if same and digest in ("", manifest.digest) else None


def manifest_to_copy(encoded: bytes, digest: str, terms: CopyTerms) -> Manifest:
    """The manifest of a checkpoint that is to be copied by it.

    Args:
        encoded: as another node has sent it.
        digest: of the checkpoint.
        terms: what it must be.

    Raises:
        ValueError: it is of another checkpoint, or of none that can be taken in here.
    """
    try:
        manifest = decode_manifest(encoded, _ANOTHER)
    except SllmError as error:
        raise ValueError(error.message) from error
    chunks = {entry.chunk_size for entry in manifest.partitions}
    names = [file.name for file in manifest.files]
    if manifest.digest != digest or chunks != {terms.chunk_bytes}:
        raise ValueError("its manifest is of another checkpoint, or of other chunks")
    if manifest.disk_bytes > terms.most_bytes or not all(map(terms.is_wanted, names)):
        raise ValueError("it is larger than what was made here could be, or has other files")
    if any(file.size > MAX_SMALL_BYTES for file in manifest.files):
        raise ValueError("it has files that are not small: each is held in memory as a whole")
    return manifest


def digests_of(manifest: Manifest) -> Mapping[ChunkKey, str]:
    """Of all chunks."""
    return {
        (partition, index): digest
        for partition, entry in enumerate(manifest.partitions)
        for index, digest in enumerate(entry.digests)
    }
