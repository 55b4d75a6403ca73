"""What is said of migrations: what is asked for, and what comes of it."""

from dataclasses import dataclass
from enum import IntEnum

from sllm import errors
from sllm.control.cluster.instances import Instance
from sllm.control.types.status import Loading


class MigrationReason(IntEnum):
    """Why a generation has gone on elsewhere; the numbers are those of the protocol."""

    FAILOVER = 1
    OPERATOR = 2
    DRAIN = 3
    PLACEMENT = 4


class MoveWay(IntEnum):
    """How a KV cache comes to where its generation goes on; the numbers are the protocol's."""

    TOKENS = 1
    PAGES = 2


@dataclass(frozen=True, slots=True)
class CacheMove:
    """How one has come, and what was known of both ways. Seconds; None: not known."""

    way: MoveWay
    by_tokens: float | None
    by_pages: float | None
    page_tokens: int
    """Tokens that were not computed, as their pages were there."""
    page_bytes: int
    """Pages that have come."""
    took: float
    why: str


@dataclass(frozen=True, slots=True)
class Departure:
    """A generation has left an instance; its caller is told once it has gone on elsewhere."""

    instance: Instance
    reason: MigrationReason
    cache: CacheMove | None = None
    """How its KV cache has come there. None: it is computed, or nobody has told."""


@dataclass(frozen=True, slots=True)
class MigrationAsk:
    """Generations that are to go on elsewhere."""

    source: Instance
    reason: MigrationReason
    request_id: str | None = None
    """The one that is to move. None: all of the instance, which ends then."""
    to_node: str | None = None
    """None: where they can go on soonest."""
    way: MoveWay | None = None
    """How their KV caches are to come, where they can. None: by what is sooner."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where they are to go on."""

    node_id: str
    instance_id: str
    started: bool
    """Whether the instance is started for them."""
    estimate: float | None
    """Seconds that moving them is expected to take, once it is ready. None: not known yet."""


@dataclass(frozen=True, slots=True)
class Round:
    """The destination has computed what it was sent, while the source went on."""

    request_id: str
    number: int
    """From 1."""
    computed_tokens: int
    """Of prompt and generation."""
    gap_tokens: int
    """Generated meanwhile."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A generation goes on at the destination."""

    request_id: str
    rounds: int
    tokens: int
    """Of prompt and generation."""
    seconds: float
    """From the first round on."""
    cutover_seconds: float
    """From the source's stop to the destination's going on."""
    gap_tokens: int
    """Of `tokens`, those that were sent with the cutover, in no round before."""
    cache: CacheMove | None = None
    """How its KV cache has come. None: the node does not tell."""


@dataclass(frozen=True, slots=True)
class Stayed:
    """A generation stays where it is, and goes on there."""

    request_id: str
    error: errors.SllmError


@dataclass(frozen=True, slots=True)
class Ended:
    """A generation had ended before it could move."""

    request_id: str


Outcome = Moved | Stayed | Ended
"""The last that is said of one generation."""

News = Chosen | Loading | Round | Outcome
"""What a migration tells those who follow it."""
