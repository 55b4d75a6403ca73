"""Bytes of a checkpoint on disk, read in pieces of any size, each of which is checked.

A checkpoint has digests of its chunks. Whoever needs less than a chunk would have to read all of it
each time; so that what is first read of a chunk reads it whole, against its digest, and notes the
digests of the blocks that it consists of. From then on blocks are read alone, against those.
"""

import ctypes
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.format.manifest import BLOCK_BYTES, PartitionEntry, corrupt
from sllm.checkpoint.reading.chunk_reader import open_file
from sllm.node.worker.experts.memory import Span

PIECE_BYTES: Final = 4 << 20
"""Most that is read at once: each thread has so much memory for it. A multiple of the block's."""
_DIGESTED_BYTES: Final = 64 << 10
"""Of a block that has a digest of its own."""


class ChunkPart(NamedTuple):
    """A part of one chunk."""

    partition: int
    chunk: int
    begin: int
    """Bytes from the start of the partition."""
    end: int
    """One past the last."""


class CheckedReader:
    """Reads parts of a checkpoint to where they belong. Any number of threads may use it."""

    def __init__(
        self,
        directory: Path,
        partitions: Sequence[PartitionEntry],
        address_of: Callable[[int, int], int],
    ) -> None:
        """Opens the partitions' files.

        Args:
            directory: has them.
            partitions: what they hold.
            address_of: where in memory a byte belongs, by its partition and offset.

        Raises:
            CheckpointCorrupt: one is not there.
            CheckpointUnreadable: one cannot be opened now.
        """
        self._partitions = partitions
        self._address_of = address_of
        self._local = threading.local()
        self._blocks: dict[tuple[int, int], array[int]] = {}
        """Digests of a chunk's blocks, once it was read whole."""
        with ExitStack() as files:
            self._files: list[DirectFile] = [
                files.enter_context(open_file(directory / entry.file)) for entry in partitions
            ]
            self._open = files.pop_all()

    def bring(self, parts: Sequence[ChunkPart]) -> None:
        """Reads parts of one chunk to their places.

        Raises:
            CheckpointCorrupt: it is not what was written; names file and offset.
            CheckpointUnreadable: it cannot be read now.
        """
        chunk = parts[0].partition, parts[0].chunk
        if (known := self._blocks.get(chunk)) is None:
            self._blocks[chunk] = self._bring_whole(chunk, parts)
            return
        for part in parts:
            self._bring_blocks(part, known)

    def close(self) -> None:
        """Closes the files. Nobody may be reading."""
        self._open.close()

    def _bring_whole(self, chunk: tuple[int, int], parts: Sequence[ChunkPart]) -> "array[int]":
        """Reads a whole chunk for the sake of parts of it; gives the digests of its blocks."""
        partition, index = chunk
        entry, file = self._partitions[partition], self._files[partition]
        begin = index * entry.chunk_size
        end = min(begin + entry.chunk_size, entry.size)
        whole, blocks = xxhash.xxh3_128(), array("Q")
        for offset, piece in self._pieces(file, begin, end):
            whole.update(piece)
            blocks.extend(_digests(piece))
            for part in parts:
                self._copy(part, offset, piece)
        expected = entry.digests[index] if entry.digests else whole.hexdigest()
        if whole.hexdigest() != expected:
            problem = f"the chunk has the digest {whole.hexdigest()} instead of {expected}"
            raise corrupt(file.path, problem, begin)
        return blocks

    def _bring_blocks(self, part: ChunkPart, known: "array[int]") -> None:
        entry, file = self._partitions[part.partition], self._files[part.partition]
        start = part.chunk * entry.chunk_size
        begin = start + _rounded_down(part.begin - start)
        end = min(start + _rounded_up(part.end - start), start + entry.chunk_size, entry.size)
        # Whole blocks of it go straight to their place; what it shares with others by way of here.
        inner = start + _rounded_up(part.begin - start)
        outer = max(inner, start + _rounded_down(part.end - start))
        if outer > inner and (place := self._place(part.partition, inner, outer)) is not None:
            for offset, piece in self._pieces(file, inner, outer, place):
                self._check(file, start, offset, piece, known)
            ends = (begin, inner), (outer, end)
        else:
            ends = (begin, end), (end, end)
        for some in ends:
            for offset, piece in self._pieces(file, *some):
                self._check(file, start, offset, piece, known)
                self._copy(part, offset, piece)

    def _check(
        self, file: DirectFile, start: int, offset: int, piece: memoryview, known: "array[int]"
    ) -> None:
        for block, found in enumerate(_digests(piece), (offset - start) // _DIGESTED_BYTES):
            if found != known[block]:
                where = start + block * _DIGESTED_BYTES
                raise corrupt(file.path, "is not what it was when it was first read", where)

    def _pieces(
        self, file: DirectFile, begin: int, end: int, place: memoryview | None = None
    ) -> Iterator[tuple[int, memoryview]]:
        """The bytes of a file, piece by piece: at `place`, or in memory that the next one takes."""
        for offset in range(begin, end, PIECE_BYTES):
            size = min(PIECE_BYTES, end - offset)
            memory = self._own_memory() if place is None else place[offset - begin :]
            file.read_into(memory[: -(-size // BLOCK_BYTES) * BLOCK_BYTES], offset, size)
            yield offset, memory[:size]

    def _place(self, partition: int, begin: int, end: int) -> memoryview | None:
        """Where these bytes belong. None: the disk cannot write there, which wants whole blocks."""
        address = self._address_of(partition, begin)
        if address % BLOCK_BYTES:
            return None
        return memoryview((ctypes.c_char * (end - begin)).from_address(address)).cast("B")

    def _copy(self, part: ChunkPart, offset: int, piece: memoryview) -> None:
        """Copies what a piece has of a part to its place; others may run meanwhile."""
        begin, end = max(part.begin, offset), min(part.end, offset + len(piece))
        if begin < end:
            source = ctypes.addressof(ctypes.c_char.from_buffer(piece, begin - offset))
            ctypes.memmove(self._address_of(part.partition, begin), source, end - begin)

    def _own_memory(self) -> memoryview:
        """This thread's, in whole blocks."""
        memory: memoryview | None = getattr(self._local, "memory", None)
        if memory is None:
            raw = bytearray(PIECE_BYTES + BLOCK_BYTES)
            skip = -ctypes.addressof(ctypes.c_char.from_buffer(raw)) % BLOCK_BYTES
            memory = self._local.memory = memoryview(raw)[skip : skip + PIECE_BYTES]
        return memory


def _rounded_down(size: int) -> int:
    return size // _DIGESTED_BYTES * _DIGESTED_BYTES


def _rounded_up(size: int) -> int:
    return -(-size // _DIGESTED_BYTES) * _DIGESTED_BYTES


def _digests(piece: memoryview) -> Iterator[int]:
    for begin in range(0, len(piece), _DIGESTED_BYTES):
        yield xxhash.xxh3_64_intdigest(piece[begin : begin + _DIGESTED_BYTES])


def by_chunk(
    spans: Iterable[Span], partitions: Sequence[PartitionEntry]
) -> Mapping[tuple[int, int], list[ChunkPart]]:
    """Spans cut where chunks end, by partition and chunk."""
    found: dict[tuple[int, int], list[ChunkPart]] = {}
    for span in spans:
        size = partitions[span.partition].chunk_size
        for chunk in range(span.begin // size, -(-span.end // size)):
            begin, end = max(span.begin, chunk * size), min(span.end, (chunk + 1) * size)
            part = ChunkPart(span.partition, chunk, begin, end)
            found.setdefault((span.partition, chunk), []).append(part)
    return found
