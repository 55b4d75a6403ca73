"""What placement is asked, and what it may answer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.zones import ANYWHERE, Origins


@dataclass(frozen=True, slots=True)
class Demand:
    """One more instance that is wanted, or a slot in one."""

    need: Need
    waiting: int = 1
    """Requests that wait. 0: an instance is wanted without any (min_replicas)."""
    slot_wait: float = math.inf
    """Seconds until all of them are expected to have a slot in the instances that are there or on
    their way. Infinite: nobody knows, or more instances are wanted in any case."""
    impatient: bool = False
    """Whether the oldest of them has waited long enough for others to be drained."""
    failed: frozenset[str] = frozenset()
    """Nodes where a start has failed for those who wait."""
    closed: Mapping[str, str] = field(default_factory=dict)
    """Other nodes that must not be taken, and why."""
    draining: frozenset[str] = frozenset()
    """Nodes that get no new work."""
    resident: frozenset[str] = frozenset()
    """Instances that keep their room for now, because they have just got it back."""
    owed: frozenset[str] | None = None
    """Deployments whose instances may be drained for it, by the shares of tenants. None: all."""
    gives_way: frozenset[str] = frozenset()
    """Idle instances of its own deployment that may end for the one that replaces them."""
    may_migrate: bool = False
    """Whether running instances of other deployments may be migrated away to make room."""
    background: bool = False
    """Whether nobody waits for what it is wanted for: then it takes what others leave."""
    origins: Origins = ANYWHERE
    """Where those who wait are."""
    kept: Mapping[str, float] = field(default_factory=dict)
    """By node, the seconds that it saves them, on average: it keeps what was computed of their
    prompts. Others save nothing."""

    def distance(self, node: NodeView) -> float:
        """Seconds of their way to a node, less what it saves them there."""
        return self.origins.seconds(node.facts.zone) - self.kept.get(node.node_id, 0.0)


@dataclass(frozen=True, slots=True)
class Move:
    """A running instance that makes room by going on elsewhere, with all its requests."""

    instance_id: str
    deployment: str
    to_node: str
    into: str | None
    """An instance that is there already. None: one is started there."""
    kv_bytes: int
    """KV cache that the one that is started gets."""
    requests: tuple[str, ...]
    """Ids of the requests that go with it."""
    start_seconds: float
    """Until the destination is ready."""
    transfer_seconds: float
    """From then on, until the last of its requests goes on there."""
    victims: tuple[str, ...] = ()
    """Idle instances that have to end at the destination first."""

    @property
    def seconds(self) -> float:
        """Until its room is free."""
        return self.start_seconds + self.transfer_seconds


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node, as placement saw it."""

    node_id: str
    estimate: float | None
    """Seconds, those for making room and for the way there included. None: not known, or
    rejected."""
    distance: float
    """Of these, the seconds of `Demand.distance`."""
    victims: tuple[str, ...] = ()
    """Idle instances that would be ended there."""
    moves: tuple[Move, ...] = ()
    """Running instances that would be migrated away from there."""
    rejected: str | None = None
    """Why it cannot be taken. None: it can."""
    unfit: bool = False
    """Whether it would be rejected even if it were empty."""


class Blocked(Enum):
    """Why waiting alone does not help."""

    NO_NODES = "the cluster has no node"
    NO_ENGINE = "no node has its engine"
    TOO_SMALL = "every node is too small"
    FAILED = "a start has failed on every node that is large enough"
    DRAINING = "every node that is large enough is being drained"
    KEPT = "all room is held by instances that min_replicas keeps"


@dataclass(frozen=True, slots=True)
class Reuse:
    """Take a free slot of an instance that is ready."""

    instance: Instance
    distance: float = 0.0
    """Seconds of `Demand.distance`."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start an instance, once the idle `victims` have ended."""

    node_id: str
    kv_bytes: int
    estimate: float | None
    """Seconds. None: not known."""
    victims: tuple[str, ...] = ()
    distance: float = 0.0
    """Seconds of `Demand.distance`, which are none of the estimate."""


@dataclass(frozen=True, slots=True)
class MigrateThenStart:
    """Migrate running instances away, all at once, end the idle `victims`, and then start."""

    node_id: str
    kv_bytes: int
    estimate: float
    """Seconds of the longest move, and then of the start."""
    moves: tuple[Move, ...]
    """At least one; no two go to the same node."""
    victims: tuple[str, ...] = ()
    """Idle instances on the node itself."""
    distance: float = 0.0
    """As `Start` has it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now."""

    why: str
    drain: tuple[str, ...] = ()
    """Busy instances that should take no new requests and end."""
    node_id: str | None = None
    """Where room is being made; nobody younger should take it."""
    blocked: Blocked | None = None


Action = Reuse | Start | MigrateThenStart | Wait
"""What placement may decide."""
