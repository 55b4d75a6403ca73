"""What operators have the cluster do, and what they see of it.

Times are seconds: durations, and moments since the Unix epoch.
"""

from dataclasses import dataclass

from sllm.client.types.deployments import Instance, LearnedKeepTimes, TunedConcurrency
from sllm.client.types.enums import PlacementAction, Tier
from sllm.client.types.events import Progress
from sllm.client.types.nodes import Node
from sllm.client.types.receipts import Receipt


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
    distance: float = 0.0
    """What the way to the node's zone costs those who wait."""
    saved: float = 0.0
    """What the node saves them, since it keeps what was computed of their prompts: the estimate is
    less by this."""


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
    ready_made: bool | None = None
    """Whether tier and estimate are those of weights that were made ready for the engine, which a
    start there would take. None: an earlier control plane, which counts both forms as one."""


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
    learned: LearnedKeepTimes | None = None
    """For how long an instance would stay. None: as long as keep_alive says."""
    tuned: TunedConcurrency | None = None
    """What its instances have been tuned to. None: nothing was seen yet, or it has no target."""


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
    loading: Progress | None = None
    """While it starts: how far it is, as its node has told last. None: it has told nothing yet."""
    moving_to: tuple[str, ...] = ()
    """Ids of the instances to which generations of it are being migrated."""


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A request that the router has had, and how it has gone."""

    request_id: str
    """Its id."""
    deployment: str
    """Name of its deployment."""
    ended_at: float
    """When it has ended."""
    duration: float
    """Seconds from the router's taking it."""
    outcome: str
    """"OK", "GAVE_WAY" (a batch's, which waits again), or the reason of the error."""
    generated_tokens: int
    """Tokens that have come of it."""
    receipt: Receipt | None
    """Where the time to its first token went. None: it has not come to its end."""


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
    ended_requests: tuple[EndedRequest, ...] = ()
    """The latest that have ended, 64 at most, in the order in which they have."""


@dataclass(frozen=True, slots=True)
class RequestReceipt:
    """Where the time of a request went that has ended."""

    request_id: str
    """Id of the request."""
    deployment: str
    """Name of its deployment."""
    receipt: Receipt
    """Where the time to its first token went."""
