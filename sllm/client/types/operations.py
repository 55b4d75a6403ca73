"""What operators have the cluster do, and what they see of it.

Times are seconds: durations, and moments since the Unix epoch.
"""

from dataclasses import dataclass

from sllm.client.types.deployments import Instance
from sllm.client.types.enums import PlacementAction, Tier
from sllm.client.types.events import Receipt
from sllm.client.types.nodes import Node


@dataclass(frozen=True, slots=True)
class StartEstimate:
    """What the estimate of a start consists of; the parts follow one another."""

    making_room: float
    """Until others have made room."""
    queue: float
    """Until the bytes ahead on the slowest link have crossed it."""
    transfer: float
    """Until the missing bytes have crossed the slowest link."""
    init: float
    """From weights in place to a ready instance."""


@dataclass(frozen=True, slots=True)
class PlacementCandidate:
    """One node as a place for a new instance."""

    node_id: str
    """Which node."""
    from_tier: Tier
    """The highest tier that holds the whole checkpoint; REMOTE if none does."""
    estimate: float | None
    """Until an instance would be ready there. None: not known."""
    parts: StartEstimate | None
    """What the estimate consists of. None: not known."""
    victims: tuple[str, ...]
    """Idle instances that would end first."""
    migrated: tuple[str, ...]
    """Running instances that would be migrated away first."""
    evicted_bytes: int
    """Bytes of idle checkpoints that the node would drop from the tier of its weights."""
    rejected: str
    """Why it cannot be taken. Empty: it can."""
    verdict: str
    """Why it is the chosen one, or why not."""


@dataclass(frozen=True, slots=True)
class Placement:
    """What placement would decide now for one more request, and why."""

    action: PlacementAction
    """What would be done."""
    node_id: str
    """Where. Empty for WAIT."""
    instance_id: str
    """For REUSE and JOIN."""
    estimate: float | None
    """Until an instance is ready. None: nobody knows, or WAIT."""
    why: str
    """In words."""
    candidates: tuple[PlacementCandidate, ...]
    """Every node: the chosen one first, then those that could be taken, then the others."""
    engine: str = ""
    """Engine that the deployment runs on."""


@dataclass(frozen=True, slots=True)
class Prefetched:
    """A checkpoint that was brought up."""

    node_id: str
    """Where it is."""
    tier: Tier
    """On which tier."""
    digest: str
    """Its content digest."""
    pinned_until: float
    """Until when it is kept from eviction."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A checkpoint that stays on a tier of a node."""

    deployment: str
    """Whose checkpoint."""
    tier: Tier
    """Where."""
    node_id: str
    """Where."""
    pinned_until: float | None
    """When the pin ends by itself. None: it does not."""
    held: bool | None = None
    """Whether its node holds the checkpoint there, as it says itself. None: only `pins` tells."""


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """What a node that is being drained still runs."""

    running_requests: int
    """Requests that run there."""
    instances: int
    """Instances that have not ended."""


@dataclass(frozen=True, slots=True)
class InstanceLoad:
    """An instance, and what the router has it do."""

    instance: Instance
    """The instance."""
    in_flight: int
    """Requests that the router has given to it and that have not ended."""
    generated_tokens: int
    """Tokens that have come from it so far."""


@dataclass(frozen=True, slots=True)
class DeploymentLoad:
    """What a deployment has to do, and with what."""

    deployment: str
    """Its name."""
    queued_requests: int
    """Requests that wait."""
    ready_instances: int
    """Instances that are ready."""
    starting_instances: int
    """Instances that are on their way."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The whole cluster at one moment."""

    revision: int
    """Later moments have higher ones, until the control plane is started anew."""
    nodes: tuple[Node, ...]
    """In order of their ids."""
    instances: tuple[InstanceLoad, ...]
    """In order of their ids."""
    deployments: tuple[DeploymentLoad, ...]
    """In order of their names."""


@dataclass(frozen=True, slots=True)
class RequestReceipt:
    """Where the time of a request went that has ended."""

    request_id: str
    """Id of the request."""
    deployment: str
    """Name of its deployment."""
    receipt: Receipt
    """Where the time to its first token went."""
