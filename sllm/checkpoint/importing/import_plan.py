"""What an import will do, known from the source's headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import xxhash

from sllm.checkpoint.format.dtypes import BY_TORCH_NAME, CONVERTIBLE
from sllm.checkpoint.format.layout import PARTITION_BYTES, Layout, plan_layout
from sllm.checkpoint.format.manifest import Manifest, TensorEntry
from sllm.checkpoint.format.safetensors_header import TensorHeader
from sllm.checkpoint.importing.journal import ChunkKey
from sllm.checkpoint.sources.sources import SourceFiles
from sllm.errors import InvalidArgument, InvalidSource


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What will lie where."""

    files: SourceFiles
    dtype: str | None
    """Torch's name for what plain floating tensors become; None: they stay as they are."""
    layout: Layout
    """Of a source that was packed already, each partition is one tensor of bytes."""

    @property
    def packed(self) -> Manifest | None:
        """The manifest, if the source has one: it stays what it is."""
        return self.files.packed

    @property
    def disk_bytes(self) -> int:
        """Bytes that the checkpoint will take, but for its manifest."""
        return self.layout.size_bytes + sum(path.stat().st_size for path in self.files.files)

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """As they are served, and where they will lie."""
        return self.packed.tensors if self.packed else self.layout.tensors

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all of them, in the dtypes in which they are served."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def expected_digests(self) -> Mapping[ChunkKey, str]:
        """Of the chunks of a source that was packed; of others nothing is known before."""
        partitions = self.packed.partitions if self.packed else ()
        return {
            (partition, index): digest
            for partition, entry in enumerate(partitions)
            for index, digest in enumerate(entry.digests)
        }

    def describe(self, chunk_bytes: int) -> str:
        """A digest of everything that decides what is in which chunk."""
        # By the files' names: where small files and headers are fetched to is not always the same.
        sources = [(one.name, one.file.name, one.offset, one.size) for one in self.layout.sources]
        entries = (self.layout.tensors, self.layout.partition_sizes, chunk_bytes)
        described = repr((self.files.fingerprint, sources, entries))
        return xxhash.xxh3_128_hexdigest(described.encode())

    def check_chunk_size(self, chunk_bytes: int) -> None:
        """Makes sure that the chunks of a source that was packed have this size.

        Raises:
            InvalidSource: they have not, and their digests would not be of use.
        """
        for entry in self.packed.partitions if self.packed else ():
            if entry.chunk_size != chunk_bytes:
                raise InvalidSource(
                    f"{self.files.origin.url} was packed in chunks of {entry.chunk_size} bytes, "
                    f"and those here have {chunk_bytes}: pack it again, or give its safetensors"
                )


def plan_import(
    files: SourceFiles, dtype: str | None, partition_bytes: int = PARTITION_BYTES
) -> ImportPlan:
    """Decides where every tensor goes.

    Args:
        files: the source's.
        dtype: torch's name of what plain floating tensors are converted to; None: nothing is.
        partition_bytes: bound of a partition of several tensors.

    Raises:
        InvalidArgument: the dtype is not one that weights can be converted to.
        InvalidSource: the source was packed in other dtypes.
    """
    if dtype is not None and dtype not in BY_TORCH_NAME:
        known = ", ".join(BY_TORCH_NAME)
        raise InvalidArgument(f"weights cannot be converted to dtype {dtype!r}; use one of {known}")
    target = BY_TORCH_NAME[dtype] if dtype else None
    if files.packed is not None:
        _check_dtypes(files, target)
        return ImportPlan(files, None, _partitions_as_they_are(files.packed, files))
    return ImportPlan(files, dtype, plan_layout(files.tensors, target, partition_bytes))


def _check_dtypes(files: SourceFiles, target: str | None) -> None:
    others = {tensor.dtype for tensor in files.tensors} & CONVERTIBLE - {target}
    if target and others:
        raise InvalidSource(
            f"{files.origin.url} was packed as {', '.join(sorted(others))}, and is not converted "
            f"to {target} any more: pack it in that dtype, or deploy it without one"
        )


def _partitions_as_they_are(packed: Manifest, files: SourceFiles) -> Layout:
    sizes = tuple(entry.size for entry in packed.partitions)
    names = [entry.file for entry in packed.partitions]
    return Layout(
        sources=tuple(
            TensorHeader(name, "U8", (size,), file, offset=0, size=size)
            for name, size, file in zip(names, sizes, files.weights, strict=True)
        ),
        tensors=tuple(
            TensorEntry(name, "U8", (size,), index, offset=0, size=size)
            for index, (name, size) in enumerate(zip(names, sizes, strict=True))
        ),
        partition_sizes=sizes,
    )
