"""The DRAM tier: which checkpoints are in the pool, and in which chunks; and what else is there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from sllm.checkpoint.files.memory import ChunkMemory
from sllm.clock import Clock
from sllm.node.tiers.checkpoints import Checkpoint, SourceRecord
from sllm.node.tiers.ledger import Holding, Ledger
from sllm.node.tiers.pool import Pool
from sllm.node.tiers.types import Tier

Chunks = tuple[tuple[int, ...], ...]
"""For each partition of a checkpoint, its chunks in the pool."""


@dataclass(frozen=True, slots=True, eq=False)
class DramCopy:
    """A complete checkpoint in the pool. It stands without a copy on SSD."""

    checkpoint: Checkpoint
    """Its small files are there for as long as the copy is."""
    chunks: Chunks
    holding: Holding


@dataclass(frozen=True, slots=True, eq=False)
class KeptChunk:
    """A chunk of the pool for pages of KV caches. It goes when a checkpoint needs the room."""

    chunk: int
    holding: Holding


class DramTier:
    """The tier's contents. Belongs to one thread."""

    def __init__(self, pool: Pool, clock: Clock | None = None) -> None:
        self.pool = pool
        self.ledger = Ledger(Tier.DRAM, pool.capacity_bytes, clock)
        self.copies: dict[str, DramCopy] = {}
        """By digest."""
        self.kept: dict[str, KeptChunk] = {}
        """What is no checkpoint, by names that are no digests."""

    @contextmanager
    def reserved(self, counts: Sequence[int]) -> Iterator[Chunks]:
        """Chunks to load a checkpoint into; they are free again afterwards unless they `land`.

        Args:
            counts: chunks of each of its partitions. Idle checkpoints make room for them.

        Raises:
            ModelTooLarge: the pool could not hold it even if it were empty.
            NoCapacity: too much is leased or being loaded now.
        """
        size = sum(counts) * self.pool.chunk_bytes
        for name in self.ledger.reserve(size):
            self._forget(name)
        chunks = self._allocate(counts)
        try:
            yield chunks
        finally:
            self.ledger.unreserve(size)
            # By identity: a copy that has landed owns these very chunks.
            if not any(copy.chunks is chunks for copy in self.copies.values()):
                self._free(chunks)

    def memory(self, chunks: Chunks) -> ChunkMemory:
        """The memory of reserved chunks. The thread that asks for one touches it."""

        def of(partition: int, index: int) -> memoryview:
            place = chunks[partition][index]
            self.pool.touch(place)
            return self.pool.view(place)

        return of

    def find(self, record: SourceRecord) -> DramCopy | None:
        """The copy that this source, in this state, leads to."""
        found = (copy for copy in self.copies.values() if record in copy.checkpoint.sources)
        return next(found, None)

    def land(self, checkpoint: Checkpoint, chunks: Chunks) -> DramCopy:
        """Adds a checkpoint that was loaded into reserved chunks.

        If the same content is here already, that copy stays, and the chunks are not needed.
        """
        digest = checkpoint.manifest.digest
        known = self.copies.get(digest)
        if known is not None:
            return known
        size = sum(map(len, chunks)) * self.pool.chunk_bytes
        copy = self.copies[digest] = DramCopy(checkpoint, chunks, self.ledger.add(digest, size))
        return copy

    def evict(self, digest: str) -> None:
        """Gives up a checkpoint's chunks; one that is not here is no error."""
        copy = self.copies.pop(digest, None)
        if copy is not None:
            self.ledger.remove(digest)
            self._free(copy.chunks)

    def keep(self, name: str) -> KeptChunk:
        """Takes a chunk for what can be computed again, at the expense of what is missed least.

        Raises:
            ModelTooLarge, NoCapacity: there is none to be had.
        """
        for victim in self.ledger.reserve(self.pool.chunk_bytes):
            self._forget(victim)
        self.ledger.unreserve(self.pool.chunk_bytes)
        ((chunk,),) = self._allocate((1,))
        holding = self.ledger.add(name, self.pool.chunk_bytes, recomputable=True)
        kept = self.kept[name] = KeptChunk(chunk, holding)
        return kept

    def drop(self, name: str) -> None:
        """Gives up a chunk that was kept; one that is not here is no error."""
        if name in self.kept:
            self.ledger.remove(name)
            self._forget(name)

    def _forget(self, name: str) -> None:
        """Frees the chunks of what the ledger has struck out."""
        if kept := self.kept.pop(name, None):
            self.pool.free((kept.chunk,))
        else:
            self._free(self.copies.pop(name).chunks)

    def check_integrity(self) -> None:
        """Raises AssertionError if the books and the pool differ."""
        self.pool.check_integrity()
        self.ledger.check_integrity(self.copies)
        assert self.pool.used_bytes == self.ledger.used, "the pool and the ledger differ"
        held = [c for copy in self.copies.values() for chunks in copy.chunks for c in chunks]
        held += [kept.chunk for kept in self.kept.values()]
        assert all(name in self.ledger for name in self.kept), "what is kept is not in the books"
        assert len(held) == len(set(held)), "two checkpoints share a chunk"
        for copy in self.copies.values():
            assert copy.checkpoint.directory.is_dir(), "the small files of a copy are gone"

    def _allocate(self, counts: Sequence[int]) -> Chunks:
        taken = self.pool.try_allocate(sum(counts))
        assert taken is not None, "the ledger promised more chunks than the pool has"
        rest = iter(taken)
        return tuple(tuple(islice(rest, count)) for count in counts)

    def _free(self, chunks: Chunks) -> None:
        for places in chunks:
            self.pool.free(places)
