"""Brings the chunks of one import to where they belong: into memory, and to the disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import xxhash

from sllm.checkpoint.files.direct_io import DirectFile
from sllm.checkpoint.files.memory import ChunkMemory
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.importing.chunk_plan import ChunkPlan
from sllm.checkpoint.importing.chunk_workers import ChunkWorkers
from sllm.checkpoint.importing.exchange import Exchange, Turn
from sllm.checkpoint.importing.filling import fill
from sllm.checkpoint.importing.journal import ChunkKey, Journal
from sllm.checkpoint.sources.weight_reader import WeightReader
from sllm.errors import Cancelled, CheckpointCorrupt


class Tally:
    """How far an import is, and whether to go on. For any number of threads."""

    def __init__(
        self,
        total_bytes: int,
        progress: Callable[[int, int], object],
        cancelled: Callable[[], bool],
    ) -> None:
        self.cancelled = cancelled
        self._total_bytes = total_bytes
        self._progress = progress
        self._read_bytes = 0
        self._lock = Lock()

    def add(self, count: int) -> None:
        """Counts bytes that were read.

        Raises:
            Cancelled: the import is to end.
        """
        with self._lock:
            self._read_bytes += count
            self._progress(self._read_bytes, self._total_bytes)
        self.check()

    def check(self) -> None:
        """Raises Cancelled if the import is to end."""
        if self.cancelled():
            raise Cancelled("the import was cancelled")


@dataclass(frozen=True, slots=True)
class ChunkFiller:
    """What the chunks of one import have in common."""

    reader: WeightReader
    files: Sequence[DirectFile]
    """The checkpoint's partitions; none if chunks are to stay in memory alone."""
    journal: Journal
    memory: ChunkMemory | None
    """Where chunks are filled, and left; None: in the workers' memory."""
    workers: ChunkWorkers
    tally: Tally
    expected: Mapping[ChunkKey, str]
    """Digests of those chunks of which they are known before."""
    url: str
    """The source's."""

    def bring(self, chunk: ChunkPlan) -> str:
        """Fills a chunk and writes it, unless it is there already; returns its digest.

        Raises:
            Cancelled: the import is to end.
            CheckpointCorrupt, SourceUnavailable: as `WeightReader` says.
            OSError: the disk is full, or fails.
        """
        self.tally.check()
        with self._memory_for(chunk) as memory:
            return self._bring(chunk, memory) or self._keep(
                chunk, memory, self._fill(chunk, memory)
            )

    def bring_next(self, chunks: Sequence[ChunkPlan], exchange: Exchange) -> tuple[int, str]:
        """As `bring`, of whichever chunk's turn it is, from whoever gives it; says which it was."""
        while True:
            turn = exchange.take(self.tally.check)
            try:
                digest = self._bring_by(turn, chunks[turn.chunk], exchange)
            except BaseException:
                exchange.failed(turn)
                raise
            if digest is not None:
                exchange.arrived(turn, digest)
                return turn.chunk, digest
            exchange.failed(turn)

    def bring_again(
        self, chunks: Sequence[ChunkPlan], number: int, exchange: Exchange
    ) -> tuple[int, str]:
        """Brings a chunk from the source that others have given; as `bring_next` otherwise."""
        self.tally.check()
        chunk = chunks[number]
        with self._memory_for(chunk) as memory:
            digest = self._keep(chunk, memory, self._read(chunk, memory))
        exchange.corrected(number, digest)
        return number, digest

    def _bring_by(self, turn: Turn, chunk: ChunkPlan, exchange: Exchange) -> str | None:
        with self._memory_for(chunk) as memory:
            if (digest := self._bring(chunk, memory)) is not None:
                return digest
            if turn.giver is None:
                return self._keep(chunk, memory, self._fill(chunk, memory))
            if (digest := exchange.fetch(turn, memory, self.tally.check)) is None:
                return None
            self.tally.add(chunk.source_bytes)
            return self._keep(chunk, memory, digest)

    @contextmanager
    def _memory_for(self, chunk: ChunkPlan) -> Iterator[memoryview]:
        if self.memory is not None:
            yield self.memory(chunk.partition, chunk.index)[: chunk.size]
            return
        with self.workers.buffer() as buffer:
            yield buffer[: chunk.size]

    def _bring(self, chunk: ChunkPlan, memory: memoryview) -> str | None:
        """What an earlier process has written of a chunk. None: nothing that is of use."""
        known = self.journal.done.get((chunk.partition, chunk.index))
        if known is None or not self._is_on_disk(chunk, memory, known):
            return None
        self.tally.add(chunk.source_bytes)
        return known

    def _keep(self, chunk: ChunkPlan, memory: memoryview, digest: str) -> str:
        if self.files:
            self.files[chunk.partition].write_from(memory, chunk.offset)
            self.journal.add((chunk.partition, chunk.index), digest)
        return digest

    def _fill(self, chunk: ChunkPlan, memory: memoryview) -> str:
        """A chunk that arrives damaged is read once more: what lies there may be whole."""
        expected = self.expected.get((chunk.partition, chunk.index))
        fill(memory, chunk, self.reader, self.tally.add)
        digest = xxhash.xxh3_128_hexdigest(memory)
        if expected is not None and digest != expected:
            digest = self._read(chunk, memory)
        if expected is not None and digest != expected:
            problem = f"the chunk of {chunk.size} bytes has the digest {digest}, not {expected}"
            file = chunk.pieces[0].tensor.file.name
            raise corrupt(f"{self.url}/{file}", problem, chunk.offset)
        return digest

    def _read(self, chunk: ChunkPlan, memory: memoryview) -> str:
        """As `_fill`, of bytes that are counted: progress would run past the total."""
        fill(memory, chunk, self.reader, lambda count: self.tally.check())
        return xxhash.xxh3_128_hexdigest(memory)

    def _is_on_disk(self, chunk: ChunkPlan, memory: memoryview, digest: str) -> bool:
        """Reads a chunk that an earlier process wrote; False if it is not what it should be."""
        try:
            self.files[chunk.partition].read_into(memory, chunk.offset)
        except CheckpointCorrupt:
            return False
        return xxhash.xxh3_128_hexdigest(memory) == digest
