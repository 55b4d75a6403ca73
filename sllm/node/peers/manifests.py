"""What another node says that a checkpoint consists of, held against what is known of it."""

from collections.abc import Mapping
from pathlib import Path

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.format.manifest_file import decode_manifest
from sllm.checkpoint.importing.import_plan import ImportPlan
from sllm.checkpoint.importing.journal import ChunkKey
from sllm.errors import SllmError


def manifest_of(encoded: bytes, digest: str, plan: ImportPlan, chunk_bytes: int) -> Manifest | None:
    """A manifest, if it is of the checkpoint that a plan leads to. None: it is of another one.

    Args:
        encoded: as another node has sent it.
        digest: of the checkpoint, as the control plane has named it. Empty: nobody knows it.
        plan: what is to be imported.
        chunk_bytes: in chunks of which size: the digests of others are of no use.
    """
    try:
        manifest = decode_manifest(encoded, Path("manifest.json of another node"))
    except SllmError:
        return None
    sizes = tuple(entry.size for entry in manifest.partitions)
    same = manifest.tensors == plan.tensors and sizes == plan.layout.partition_sizes
    same = same and all(entry.chunk_size == chunk_bytes for entry in manifest.partitions)
    return manifest if same and digest in ("", manifest.digest) else None


def digests_of(manifest: Manifest) -> Mapping[ChunkKey, str]:
    """Of all chunks."""
    return {
        (partition, index): digest
        for partition, entry in enumerate(manifest.partitions)
        for index, digest in enumerate(entry.digests)
    }
