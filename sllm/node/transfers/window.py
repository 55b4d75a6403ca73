"""A checkpoint that passes through a few chunks of the pool, since the whole has no room there."""

from collections.abc import Callable
from threading import Lock

from sllm.checkpoint.files.memory import ChunkMemory
from sllm.checkpoint.format.manifest import Manifest
from sllm.node.tiers.dram import DramTier
from sllm.node.transfers.work import Sink

WINDOW_CHUNKS = 32
"""Chunks of the pool that a window uses over and over, at most: enough that neither the disk nor
the way up from the pool waits for the other."""


class Window:
    """Which chunk of the pool each chunk of the checkpoint is in, while it is in one.

    Any thread may call it: the queue takes and reads, the sink lets go.
    """

    def __init__(
        self,
        dram: DramTier,
        manifest: Manifest,
        chunks: tuple[int, ...],
        sink: Sink,
        wake: Callable[[], None],
    ) -> None:
        """Begins with all chunks free.

        Args:
            dram: the pool's owner.
            manifest: of the checkpoint.
            chunks: of the pool, reserved for this.
            sink: takes what has arrived further up.
            wake: called when a chunk is free again.
        """
        self._dram = dram
        self._free = list(chunks)
        self._held: dict[int, int] = {}
        self._starts = _starts(manifest)
        self._sink = sink
        self._wake = wake
        self._lock = Lock()

    def take(self, index: int) -> bool:
        """Takes a chunk of the pool for one of the checkpoint, if any is free."""
        with self._lock:
            if not self._free:
                return False
            self._held[index] = self._free.pop()
            return True

    def memory(self) -> ChunkMemory:
        """The memory of chunks that were taken."""

        def of(partition: int, index: int) -> memoryview:
            place = self._held[self._starts[partition] + index]
            self._dram.pool.touch(place)
            return self._dram.pool.view(place)

        return of

    def landed(self, index: int) -> None:
        """Hands a chunk on; its place is free again when it has been copied."""
        self._sink.landed(index, self._held[index], lambda: self._let_go(index))

    def _let_go(self, index: int) -> None:
        with self._lock:
            self._free.append(self._held.pop(index))
        self._wake()


def _starts(manifest: Manifest) -> list[int]:
    """For each partition the index of its first chunk, counted over all of them."""
    starts, count = [], 0
    for entry in manifest.partitions:
        starts.append(count)
        count += entry.chunk_count
    return starts
