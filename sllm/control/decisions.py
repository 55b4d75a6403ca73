"""What placement is asked, and what it may answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sllm.control.cost import Checkpoint
from sllm.control.deployments import Deployment
from sllm.control.topology import Instance

LEAST_KV_TOKENS = 512
"""A node is too small if its whole KV budget holds fewer tokens than this and the context."""


@dataclass(frozen=True, eq=False)
class Need:
    """What a deployment needs of a node. Made once per deployment and compared by identity."""

    deployment: str
    checkpoint: Checkpoint
    kv_bytes: int
    """KV cache that an instance should have; it gets less on a node that has less."""
    least_kv_bytes: int
    """KV cache without which a node is too small."""
    max_concurrency: int = 64


def need_of(deployment: Deployment) -> Need:
    """What an instance of `deployment` needs."""
    model, spec = deployment.model, deployment.spec
    least_tokens = min(deployment.kv_tokens, model.context_tokens, LEAST_KV_TOKENS)
    return Need(
        deployment=spec.name,
        checkpoint=Checkpoint(spec.source, model.size_bytes, model.digest),
        kv_bytes=deployment.kv_tokens * model.kv_bytes_per_token,
        least_kv_bytes=least_tokens * model.kv_bytes_per_token,
        max_concurrency=spec.engine.max_concurrency,
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """One more instance that is wanted, or a slot in one."""

    need: Need
    waiting: int = 1
    """Requests that wait. 0: an instance is wanted without any (min_replicas)."""
    impatient: bool = False
    """Whether the oldest of them has waited long enough for others to be drained."""
    failed: frozenset[str] = frozenset()
    """Nodes where a start has failed for those who wait."""
    closed: Mapping[str, str] = field(default_factory=dict)
    """Other nodes that must not be taken, and why."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node, as placement saw it."""

    node_id: str
    estimate: float | None
    """Seconds. None: not known, or rejected."""
    victims: tuple[str, ...] = ()
    """Idle instances that would be ended there."""
    rejected: str | None = None
    """Why it cannot be taken. None: it can."""
    too_small: bool = False
    """Whether it would be rejected even if it were empty."""


class Blocked(Enum):
    """Why waiting alone does not help."""

    NO_NODES = "the cluster has no node"
    TOO_SMALL = "every node is too small"
    FAILED = "a start has failed on every node that is large enough"
    KEPT = "all room is held by instances that min_replicas keeps"


@dataclass(frozen=True, slots=True)
class Reuse:
    """Take a free slot of an instance that is ready."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class Start:
    """Start an instance, once the idle `victims` have ended."""

    node_id: str
    kv_bytes: int
    estimate: float | None
    """Seconds. None: not known."""
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done now."""

    why: str
    drain: tuple[str, ...] = ()
    """Busy instances that should take no new requests and end."""
    node_id: str | None = None
    """Where room is being made; nobody younger should take it."""
    blocked: Blocked | None = None
