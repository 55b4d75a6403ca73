"""What is wanted of a transfer, how far it is, and what it has taken."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from sllm.checkpoint.format.manifest import Manifest, TensorEntry
from sllm.checkpoint.sources.sources import SourceFiles
from sllm.node.peers.types import Peers
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.dram import Chunks
from sllm.node.tiers.first_use import ChunkOrder
from sllm.node.tiers.types import Tier


class Priority(IntEnum):
    """Whose chunks go first."""

    DEMAND = 0
    """Of a load that a request waits for."""
    PREFETCH = 1
    """Of one that is only expected to be of use."""


def nothing() -> None:
    """For whom it is enough that something is done."""


class Sink(Protocol):
    """Takes a read's chunks further up as they arrive in the pool."""

    def landed(self, index: int, chunk: int, copied: Callable[[], None] = nothing) -> None:
        """Takes a chunk, whose content was checked. In any thread.

        Args:
            index: of the chunk in the checkpoint, counted over all its partitions.
            chunk: in the pool. It stays as it is until `settle` returns.
            copied: called when it is not needed any more, in any thread.
        """
        ...

    async def settle(self) -> None:
        """Returns once no chunk that has landed is needed any more, however that comes."""
        ...


@dataclass(frozen=True, slots=True)
class Arrival:
    """A checkpoint that has begun to arrive in the pool."""

    manifest: Manifest
    directory: Path
    """Of the model's small files."""
    record: SourceRecord
    """The source that led to it."""
    chunks: Chunks
    """Where it will be."""
    at_once: frozenset[int]
    """Chunks without which nothing can be made of it, counted over all partitions."""


class EarlyUser(Protocol):
    """Uses chunks of a read before the others have arrived."""

    def order(self, manifest: Manifest, order: ChunkOrder) -> ChunkOrder:
        """In which order it wants a checkpoint's chunks, which are used in this one."""
        ...

    def begin(self, arrival: Arrival) -> bool:
        """Tells that a read begins, in the event loop; whether the user follows it."""
        ...

    def landed(self, index: int) -> None:
        """Tells that a chunk has arrived and was checked. In any thread.

        Args:
            index: of the chunk in the checkpoint, counted over all its partitions.
        """
        ...

    async def let_go(self, error: BaseException) -> None:
        """Tells that the read has failed; returns once nobody uses any of its chunks."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """What weights may have been made ready for."""

    name: str
    """See `sllm.node.instances.forms`."""
    gain_seconds: float = 0.0
    """What a start is sooner by it, once they are in memory."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants of a checkpoint."""

    tier: Tier
    """To have it on: SSD or DRAM."""
    priority: Priority = Priority.DEMAND
    pack: bool = False
    """Whether it is converted although it could be read where it lies."""
    sink: Sink | None = None
    """Gets the chunks of a read that begins for this wish; not those of one that is joined."""
    early: EarlyUser | None = None
    """Uses them, of such a read, before all are there."""
    peers: Peers | None = None
    """Other nodes to have it from."""


class LoadPhase(IntEnum):
    """What a load is doing; the numbers are those of the protocol."""

    IMPORT = 1
    """From the source to SSD; into the pool as well, if it is wanted there."""
    READ = 2
    """From SSD into the pool."""
    INIT = 3
    """Worker, module and engine."""
    COPY = 4
    """From the pool to the device."""
    FETCH = 5
    """From other nodes to SSD, beside an import. A step alone: the load's phase is the import."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is."""

    phase: LoadPhase
    from_tier: Tier
    """Where bytes come from in this phase."""
    loaded_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """A transfer that is done."""

    phase: LoadPhase
    start: float
    """Seconds, by the store's clock."""
    duration: float
    """Seconds."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    """A source, and what is known of its checkpoint."""

    directory: Path
    """Where the model's small files can be read now."""
    size_bytes: int
    """Bytes of its tensors, in the dtypes in which they are served."""
    digest: str | None
    """None: it was not imported yet."""
    record: SourceRecord
    """The source as it was found."""
    tensors: tuple[TensorEntry, ...] = ()
    """As they are served."""
    files: SourceFiles | None = None
    """What `directory` is there for as long as. None: it is a copy's."""
