"""Which bytes of a source fill which chunk of a checkpoint, planned before a byte moves.

Every chunk can be filled by itself, so chunks are read side by side, and an import that broke off
goes on with those that are missing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from sllm.checkpoint.format.dtypes import tensor_bytes
from sllm.checkpoint.format.layout import Layout
from sllm.checkpoint.format.manifest import TensorEntry
from sllm.checkpoint.format.safetensors_header import TensorHeader

PIECE_BYTES = 8 << 20
"""Read at once, at most: a cancelled import ends after as much, and progress is told as often."""

_MAX_GAP_BYTES = 64 << 10
"""Small tensors that lie no farther apart in the source are read at once."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole elements of a tensor on their way into a chunk."""

    tensor: TensorHeader
    dtype: str
    """What they become; that of `tensor` if they stay as they are."""
    start: int
    """Bytes from the start of the source's file."""
    size: int
    """Bytes, as the source stores them."""
    offset: int
    """Bytes from the start of the chunk to where they go."""
    chunk_size: int
    """Bytes that they take there."""

    @property
    def end(self) -> int:
        """Bytes from the start of the source's file to the piece's end."""
        return self.start + self.size

    @property
    def converted(self) -> bool:
        """Whether they become something else."""
        return self.dtype != self.tensor.dtype


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """What one chunk is filled with. Bytes that no piece fills are zeros."""

    partition: int
    index: int
    """Of the chunk in its partition."""
    offset: int
    """Bytes from the start of the partition."""
    size: int
    """Bytes."""
    pieces: tuple[Piece, ...]

    @property
    def source_bytes(self) -> int:
        """Bytes of the source that go into it."""
        return sum(piece.size for piece in self.pieces)


def plan_chunks(layout: Layout, chunk_bytes: int) -> Iterator[ChunkPlan]:
    """The chunks of all partitions, in order.

    Args:
        layout: what lies where.
        chunk_bytes: those of every chunk but a partition's last.
    """
    placed = list(zip(layout.sources, layout.tensors, strict=True))
    of_partition = {
        index: list(pairs) for index, pairs in groupby(placed, lambda pair: pair[1].partition)
    }
    for partition, size in enumerate(layout.partition_sizes):
        waiting = of_partition.get(partition, [])
        first = 0
        for offset in range(0, size, chunk_bytes):
            end = min(offset + chunk_bytes, size)
            while first < len(waiting) and _end(waiting[first][1]) <= offset:
                first += 1
            pieces = tuple(_pieces(waiting[first:], offset, end))
            yield ChunkPlan(partition, offset // chunk_bytes, offset, end - offset, pieces)


def _end(entry: TensorEntry) -> int:
    return entry.offset + entry.size


def _pieces(
    placed: Sequence[tuple[TensorHeader, TensorEntry]], offset: int, end: int
) -> Iterator[Piece]:
    """What of these tensors lies between two offsets of their partition."""
    for source, entry in placed:
        if entry.offset >= end:
            return
        begin = max(entry.offset, offset)
        yield from _cut(source, entry, begin, min(_end(entry), end), offset)


def _cut(
    source: TensorHeader, entry: TensorEntry, begin: int, end: int, chunk: int
) -> Iterator[Piece]:
    """Elements do not straddle chunks: both alignments are multiples of their size."""
    stored, served = _element_bytes(source, entry)
    step = PIECE_BYTES // stored * served
    for at in range(begin, end, step):
        size = min(step, end - at)
        start = source.offset + (at - entry.offset) // served * stored
        yield Piece(source, entry.dtype, start, size // served * stored, at - chunk, size)


def _element_bytes(source: TensorHeader, entry: TensorEntry) -> tuple[int, int]:
    """Of what is not converted, any byte may be the last one."""
    if source.dtype == entry.dtype:
        return 1, 1
    return tensor_bytes(source.dtype, ()), tensor_bytes(entry.dtype, ())


def runs(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Pieces that are worth reading at once, since they lie close together in the source."""
    run: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: (piece.tensor.file, piece.start)):
        if run and not _belongs(piece, run):
            yield tuple(run)
            run = []
        run.append(piece)
    if run:
        yield tuple(run)


def _belongs(piece: Piece, run: Sequence[Piece]) -> bool:
    same_file = piece.tensor.file == run[-1].tensor.file
    close = piece.start - run[-1].end <= _MAX_GAP_BYTES
    return same_file and close and piece.end - run[0].start <= PIECE_BYTES
