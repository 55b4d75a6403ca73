"""What exists in a cluster, as its listings tell it, and what is said to its models.

Times are seconds: durations, and moments since the Unix epoch.
"""

from dataclasses import dataclass
from typing import TypedDict

from sllm.client.types.enums import DeploymentState, InstanceState, MigrationOutcome, Tier
from sllm.client.types.events import Progress


class ChatMessage(TypedDict):
    """One message of a conversation."""

    role: str
    """As the model's chat template knows it, commonly "system", "user" or "assistant"."""
    content: str
    """What was said."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a model needs from a node, read from its files."""

    architecture: str
    """The first entry of the configuration's `architectures`."""
    size_bytes: int
    """Bytes of the tensors, in the dtype in which they are served."""
    context_tokens: int
    """Tokens that the model's positions allow."""
    kv_bytes_per_token: int
    """Bytes of KV cache for one token."""
    digest: str
    """The checkpoint's content digest, once it has been imported somewhere. Empty before."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What should exist: a name, a source, an engine, a scaling policy."""

    name: str
    """Unique in the cluster."""
    source: str
    """URL of the checkpoint."""
    state: DeploymentState
    """Where its checkpoint is on its way."""
    message: str
    """For FAILED: what went wrong and what to do."""
    engine: str
    """Name of the engine. Empty: the default one."""
    dtype: str
    """torch dtype that weights are converted to when imported. Empty: as they are stored."""
    kv_cache_tokens: int | None
    """Tokens that one instance's KV cache can hold. None: the default."""
    max_concurrency: int | None
    """Requests that one instance works on at once. None: the default."""
    pack: bool
    """Whether local safetensors are packed on each node, and not read where they lie."""
    min_replicas: int
    """Instances kept even without requests."""
    max_replicas: int
    """Instances at most."""
    keep_alive: float
    """Seconds that an idle instance stays."""
    target_concurrency: int | None
    """Requests that an instance should have before another one is started. None: as many as it
    works on at once."""
    model: Model
    """What the model needs from a node."""
    created_at: float
    """When it was deployed."""
    ready_instances: int
    """Instances that are ready now."""
    queued_requests: int
    """Requests that wait in the router."""
    loading: Progress | None
    """While PREPARING: how far the checkpoint has come."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a deployment on one node."""

    instance_id: str
    """Unique in the cluster."""
    deployment: str
    """Name of the deployment."""
    node_id: str
    """Node that it runs on."""
    state: InstanceState
    """Where it is in its life."""
    running_requests: int
    """Requests that the worker has taken and not finished."""
    kv_bytes: int
    """Bytes of the node's KV budget that it holds."""
    digest: str
    """Content digest of the checkpoint that it serves."""
    started_at: float
    """When its start began."""
    worker_pid: int
    """Process id of the worker on its node. 0 while there is none."""


@dataclass(frozen=True, slots=True)
class RequestMigration:
    """What has come of one generation that was to move."""

    request_id: str
    """Its request."""
    outcome: MigrationOutcome
    """Whether it has moved."""
    rounds: int = 0
    """In which its tokens were sent while it went on."""
    tokens: int = 0
    """Of prompt and generation."""
    duration: float = 0.0
    """Seconds from the first round until it went on at the destination."""
    cutover: float = 0.0
    """Seconds from its stop at the source until it went on at the destination."""
    gap: int = 0
    """Of `tokens`, those that were sent after the last round: the destination computed them while
    it stood still."""
    reason: str = ""
    """The error's reason for which it has stayed, if it has."""
    message: str = ""
    """What that error says."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What has come of a migration."""

    node_id: str
    """Destination."""
    instance_id: str
    """The instance there."""
    started: bool
    """Whether the instance was started for it."""
    requests: tuple[RequestMigration, ...]
    """Every generation that was to move."""
    estimate: float | None = None
    """Seconds that moving them was expected to take, once the instance was ready. None: nothing
    had moved, nor any prompt been computed, from which it could have been learned."""

    @property
    def duration(self) -> float:
        """Seconds that moving them has taken."""
        return max((one.duration for one in self.requests), default=0.0)


@dataclass(frozen=True, slots=True)
class TierUsage:
    """One tier of one node."""

    tier: Tier
    """Which tier."""
    capacity_bytes: int
    """Bytes that it can hold."""
    used_bytes: int
    """Bytes that it holds."""
    problem: str = ""
    """Why it takes nothing new at present, and what to do. Empty: it does."""

    @property
    def free_bytes(self) -> int:
        """Bytes that it could still take."""
        return self.capacity_bytes - self.used_bytes


@dataclass(frozen=True, slots=True)
class CheckpointCopy:
    """A checkpoint on one tier of one node."""

    digest: str
    """Content digest of the checkpoint."""
    tier: Tier
    """Where it is."""
    size_bytes: int
    """Bytes of the whole checkpoint."""
    resident_bytes: int
    """Bytes of it that the tier holds now."""
    sources: tuple[str, ...]
    """Sources that are known to lead to it."""
    leased: bool
    """Whether something holds it in place: an instance, a load under way, or a pin."""
    pinned: bool = False
    """Whether a pin or a prefetch keeps it on the tier."""
    pinned_until: float | None = None
    """When the last of these ends by itself. None: never, if it is pinned."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a node has observed of the way from one of its tiers to the next."""

    from_tier: Tier
    """Where bytes come from."""
    to_tier: Tier
    """Where they go."""
    bytes_per_second: float
    """Observed bandwidth."""
    queued_bytes: int
    """Bytes of transfers under way or waiting."""
    in_flight_bytes: int
    """Of these, bytes of the chunks that were being moved at that moment."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator of a node."""

    index: int
    """In CUDA's order on the node."""
    name: str
    """Of its model."""
    uuid: str
    """As CUDA_VISIBLE_DEVICES takes it."""
    total_bytes: int
    """Of its memory."""
    free_bytes: int
    """Of its memory, as measured last, whoever uses the rest."""
    weights_capacity_bytes: int
    """What checkpoints may take of it. KV caches have what they leave."""
    weights_used_bytes: int
    """What they have taken."""
    kv_capacity_bytes: int
    """What the KV caches of its instances may take at most."""
    kv_used_bytes: int
    """What they have been given."""
    reserved_bytes: int = 0
    """What is kept for weights of starts whose loads have not begun."""
    idle_bytes: int = 0
    """Of the weights, what no instance uses: it goes when room is needed."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster."""

    node_id: str
    """Unique in the cluster."""
    address: str
    """host:port of its gRPC server."""
    host: str
    """Host name."""
    tiers: tuple[TierUsage, ...]
    """What its tiers can hold, and do."""
    kv_capacity_bytes: int
    """Memory for the KV caches of all instances together."""
    kv_used_bytes: int
    """How much of it instances hold."""
    copies: tuple[CheckpointCopy, ...]
    """Checkpoints that it holds."""
    links: tuple[Link, ...]
    """Bandwidths that it has observed."""
    init_time: float | None
    """Seconds from weights in the pool to an instance that is ready, as last observed."""
    connected_at: float
    """When it joined."""
    draining: bool = False
    """Whether it gets no new work, and what runs there ends."""
    devices: tuple[Device, ...] = ()
    """Its accelerators. None: its processors read weights in the pool."""
