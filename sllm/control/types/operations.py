"""What operators have the cluster do: what they ask, and what they are told."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from sllm.control.cluster.tiers import Tier
from sllm.control.types.status import Learned, Tuned

DEFAULT_TTL: Final = 600.0
"""Seconds for which a checkpoint is kept if the caller does not say."""


@dataclass(frozen=True, slots=True)
class PrefetchAsk:
    """What a caller wants to be brought up."""

    deployment: str
    """Its checkpoint is meant. Empty: `source` says which."""
    source: str
    """URL. Empty: `deployment` says which."""
    dtype: str
    """With `source`, as in EngineConfig."""
    tier: Tier
    node_id: str
    """Empty: where an instance would start soonest."""
    ttl: float = DEFAULT_TTL
    """Seconds for which it is kept, from when it is there."""
    tenant: str | None = None
    """Whose operator asks. None: an admin, who acts for any."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where it is brought."""

    node_id: str


@dataclass(frozen=True, slots=True)
class Prefetched:
    """It is there."""

    node_id: str
    tier: Tier
    digest: str
    expires_at: float
    """Seconds since the epoch until when it is kept."""


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """What a node still runs."""

    running_requests: int
    instances: int

    @property
    def done(self) -> bool:
        """Whether it runs nothing."""
        return not self.running_requests and not self.instances


class ActionKind(IntEnum):
    """What placement would do; the numbers are those of the protocol."""

    REUSE = 1
    JOIN = 2
    """Wait for an instance that is on its way."""
    START = 3
    MIGRATE_THEN_START = 4
    WAIT = 5


@dataclass(frozen=True, slots=True)
class EstimateParts:
    """What an estimate consists of, in seconds; the parts follow one another."""

    making_room: float
    queue: float
    """Until what is ahead on the slowest link has crossed it."""
    transfer: float
    """Until what is missing has crossed it."""
    init: float
    """From weights in place to a ready instance."""
    distance: float = 0.0
    """What the way to the node's zone costs those who wait."""
    saved: float = 0.0
    """What the node saves them, since it keeps what was computed of their prompts: it is less by
    this."""


@dataclass(frozen=True, slots=True)
class ExplainedNode:
    """One node as a place for a new instance."""

    node_id: str
    from_tier: Tier
    """The highest that holds the whole checkpoint; REMOTE if none does."""
    ready_made: bool
    """Whether it counts in the form that it was made ready in for the engine."""
    estimate: float | None
    """Seconds. None: not known."""
    parts: EstimateParts | None
    """None: not known."""
    victims: tuple[str, ...]
    """Idle instances that would end first."""
    migrated: tuple[str, ...]
    """Running instances that would be migrated away first."""
    evicted_bytes: int
    """Of idle checkpoints, which the node would drop from the tier of its weights."""
    rejected: str
    """Why it cannot be taken. Empty: it can."""
    fetch_way: float = 0.0
    """Seconds that the way to other nodes costs, where it would have the checkpoint from them."""
    verdict: str = ""
    """Why it is the chosen one, or why not, for people."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What placement would decide for one more request, and why."""

    kind: ActionKind
    node_id: str
    """Empty for WAIT."""
    instance_id: str
    """For REUSE and JOIN."""
    estimate: float | None
    """Seconds until an instance is ready. None: nobody knows, or WAIT."""
    why: str
    """For people."""
    candidates: tuple[ExplainedNode, ...]
    """The chosen one first, then those that could be taken, then those that could not."""
    engine: str = ""
    """That the deployment runs on."""
    learned: Learned | None = None
    """For how long an instance would stay. None: as long as its policy says."""
    tuned: Tuned | None = None
    """What its instances have been tuned to. None: nothing was seen yet, or it has no target."""
