"""Nodes as they were last reported: their tiers, what these hold, their links and accelerators.

Times are seconds: durations, and moments since the Unix epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sllm.client.types.enums import Tier


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
class WeightForm:
    """How an engine, as it was installed where this was made, reads weights."""

    name: str
    """The same for all that read them so."""
    engine: str
    """By its name."""
    ranks: int
    """Processes that read them, each a part of its own."""
    versions: Mapping[str, str] = field(hash=False)
    """Of the engine's libraries, by name."""
    kernels: str
    """What multiplies, and on which processor."""
    dtype: str
    """Name of the torch dtype in which the model is run."""


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
    made_of: str = ""
    """Digest of the checkpoint that it was made of, as an engine reads its weights. Empty: it is as
    published."""
    made_for: str = ""
    """What reads it so: the engine's name and, of N ranks, `:tp=N`. Empty: it is as published."""
    form: WeightForm | None = None
    """The same in full. None: it is as published, or its node does not say."""


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
class NodeMemory:
    """Memory that a node may take, and what its instances take of it for themselves."""

    total_bytes: int
    """All that the node may take: of its machine, or as its cgroup limits it."""
    capacity_bytes: int
    """What instances may take together, beside the pool of weights and their KV caches."""
    used_bytes: int
    """What they take, as measured or expected."""
    instance_bytes: int
    """What is expected of an instance where none has been measured."""
    max_instances: int
    """Instances at most, whatever they take. 0: no bound."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine of a node."""

    name: str
    """Which: "vllm" or "transformers"."""
    ready: bool
    """Whether starts have its workers at once. While a node comes up they wait for seconds."""


@dataclass(frozen=True, slots=True)
class UnmadeForm:
    """A checkpoint that a node has not made ready: starts there take it as it is published."""

    digest: str
    """Of the checkpoint."""
    made_for: str
    """What it was to be for: the engine's name and, of N ranks, `:tp=N`."""
    problem: str
    """Why it was not."""


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
    memory: NodeMemory | None = None
    """What its instances take. None: the node does not tell."""
    engines: tuple[Engine, ...] = ()
    """What instances can run on there, the one that it prefers first."""
    max_tensor_parallel: int = 1
    """Devices that one instance may run on together there."""
    zone: str = ""
    """Part of the cluster that it is in. Empty: nobody has said."""
    unmade_forms: tuple[UnmadeForm, ...] = ()
    """Checkpoints that were started there and not made ready for their engine, lately."""
