"""What the tier store says of itself and of the work under way."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from sllm.node.tiers.checkpoints import SourceRecord


class Tier(IntEnum):
    """A place on or behind a node that holds chunks; the numbers are those of the protocol."""

    REMOTE = 1
    SSD = 2
    DRAM = 3
    DEVICE = 4


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
class Wish:
    """What a caller wants of a checkpoint."""

    tier: Tier
    """To have it on: SSD or DRAM."""
    priority: Priority = Priority.DEMAND
    pack: bool = False
    """Whether it is converted although it could be read where it lies."""
    sink: Sink | None = None
    """Gets the chunks of a read that begins for this wish; not those of one that is joined."""


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
class Copy:
    """A checkpoint on a tier."""

    digest: str
    tier: Tier
    size_bytes: int
    """Bytes of its partitions."""
    resident_bytes: int
    """Those that the tier holds now; fewer while it is being loaded."""
    sources: tuple[str, ...]
    """URLs that are known to lead to it."""
    leased: bool
    """Whether it is in use or being loaded, and so cannot be evicted."""


@dataclass(frozen=True, slots=True)
class TierUsage:
    """How full a tier is."""

    tier: Tier
    capacity_bytes: int
    used_bytes: int
    """Reservations for loads under way included."""
    problem: str = ""
    """Why it takes nothing new at present; empty: it does."""


@dataclass(frozen=True, slots=True)
class Link:
    """What was observed of the way from one tier to the next."""

    from_tier: Tier
    to_tier: Tier
    bytes_per_second: float
    queued_bytes: int
    """Bytes of transfers under way or waiting."""
    in_flight_bytes: int
    """Of these, bytes of the chunks that are being moved at this moment."""


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
