"""The fleet at one moment: immutable views of nodes, what they hold and what they run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, TypeVar

from sllm.control.cluster.devices import Device
from sllm.control.cluster.init_times import NO_INITS, Inits
from sllm.control.cluster.needs import Need
from sllm.control.cluster.running import MigrationCost, Running
from sllm.control.cluster.use import Use


class Tier(IntEnum):
    """A place on or behind a node that holds chunks; the numbers are those of the protocol."""

    REMOTE = 1
    SSD = 2
    DRAM = 3
    DEVICE = 4


_TIERS = tuple(Tier)


class InstanceState(IntEnum):
    """Where an instance is in its life, which only goes forward."""

    STARTING = 1
    READY = 2
    DRAINING = 3
    GONE = 4


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a deployment on one node."""

    instance_id: str
    deployment: str
    node_id: str
    state: InstanceState
    kv_bytes: int
    """Share of the node's KV budget."""
    digest: str = ""
    """Checkpoint that it serves. Empty: not yet known."""
    running: int = 0
    """Requests under way, as last reported."""
    started_at: float = 0.0
    """Seconds since the epoch."""
    worker_pid: int = 0
    unread: tuple[str, ...] = ()
    """Ids of requests that go on although nobody reads them."""
    device: int | None = None
    """Index of the device that it runs on. None: not yet chosen, or the pool is the device."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An instance that was decided on; its start has not ended yet."""

    instance: Instance
    checkpoint: str
    """Key of its checkpoint: the digest, or the source while no digest is known."""
    size_bytes: int
    """Of its weights, for which room is kept."""


@dataclass(frozen=True, slots=True)
class Hold:
    """What keeps a checkpoint on a tier although nothing uses it."""

    hold_id: str
    """Unique on its node."""
    expires_at: float | None = None
    """Seconds since the epoch. None: it is released."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A checkpoint on one tier of a node."""

    digest: str
    tier: Tier
    size_bytes: int
    resident_bytes: int
    """Bytes of it that the tier holds now."""
    sources: tuple[str, ...] = ()
    leased: bool = False
    """Whether an instance, a load under way or a hold keeps it in place."""
    holds: tuple[Hold, ...] = ()
    """Pins and prefetches, which stay when instances end."""

    @property
    def whole(self) -> bool:
        """Whether nothing of it is missing."""
        return self.resident_bytes >= self.size_bytes


class Copies(dict[tuple[str, Tier], Copy]):
    """A node's copies by digest and tier. Never changed once it is made: views share it."""

    @classmethod
    def of(cls, copies: Iterable[Copy]) -> "Copies":
        """Those that have any bytes."""
        return cls({(one.digest, one.tier): one for one in copies if one.resident_bytes})

    @cached_property
    def leased(self) -> tuple[Copy, ...]:
        """Those that are held in place."""
        return tuple(copy for copy in self.values() if copy.leased)

    @cached_property
    def digests(self) -> Mapping[str, str]:
        """The digest to which each source leads here."""
        return {source: copy.digest for copy in self.values() for source in copy.sources}


@dataclass(frozen=True, slots=True)
class TierUsage:
    """How full a tier is."""

    capacity_bytes: int
    used_bytes: int
    problem: str = ""
    """Why it takes nothing new at present; empty: it does."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a node has observed of the way from one tier to the next."""

    bytes_per_second: float
    """0: nothing has crossed it yet."""
    queued_bytes: int = 0
    """Bytes of transfers under way or waiting."""
    in_flight_bytes: int = 0
    """Of these, bytes of the chunks that are being moved."""


LinkKey = tuple[Tier, Tier]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node without what it holds and runs."""

    node_id: str
    address: str
    """host:port of its gRPC server."""
    host: str = ""
    tiers: Mapping[Tier, TierUsage] = field(default_factory=dict)
    links: Mapping[LinkKey, Link] = field(default_factory=dict)
    kv_capacity: int = 0
    """Bytes for the KV caches of all instances together."""
    init_time: float | None = None
    """Seconds that a start takes besides the load, over all models. None: not yet observed."""
    inits: Inits = NO_INITS
    """The same for each model."""
    leaving: bool = False
    """Whether it is about to go down, and what it runs is to go on elsewhere."""
    devices: tuple[Device, ...] = ()
    """None: the pool is the device."""


@dataclass(frozen=True, eq=False)
class NodeView:
    """A node at one moment. Compared by identity: another moment is another view."""

    facts: NodeFacts
    copies: Copies
    instances: Mapping[str, Instance]
    """As reported."""
    planned: Mapping[str, Planned] = field(default_factory=dict)
    """Starts that the control plane has decided on and that have not ended."""
    leaving: frozenset[str] = frozenset()
    """Idle instances that are being stopped: their room counts as free."""
    connected_at: float = 0.0
    """Seconds since the epoch."""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)
    """What was worked out about this view, which cannot change: it lives as long as the view."""

    @property
    def node_id(self) -> str:
        """Unique in the cluster."""
        return self.facts.node_id

    @cached_property
    def present(self) -> tuple[Instance, ...]:
        """Instances that hold room: reported or planned, and not leaving.

        One that is planned counts as STARTING until its start has ended, whatever is reported.
        """
        planned = {key: plan.instance for key, plan in self.planned.items()}
        both = {**self.instances, **planned}
        return tuple(one for key, one in both.items() if key not in self.leaving)

    @cached_property
    def with_leaving(self) -> "NodeView":
        """The node as it is until the instances that are leaving have gone."""
        return replace(self, leaving=frozenset(), memo={}) if self.leaving else self

    def copies_of(self, digest: str) -> list[Copy]:
        """A checkpoint's copies on all tiers."""
        found = (self.copies.get((digest, tier)) for tier in _TIERS)
        return [copy for copy in found if copy]

    @cached_property
    def unseen_reads(self) -> int:
        """Bytes that planned starts will read into the pool and that no report tells of yet."""
        return self._unseen(Tier.DRAM)

    @cached_property
    def unseen_imports(self) -> int:
        """Bytes that planned starts will import, whether a report tells of it or not."""
        return self._unseen(Tier.SSD)

    def _unseen(self, tier: Tier) -> int:
        wanted = {self.key_here(plan.checkpoint): plan for plan in self.planned.values()}
        held = (self.copies.get((key, tier)) for key in wanted)
        return sum(
            plan.size_bytes for plan, copy in zip(wanted.values(), held, strict=True) if not copy
        )

    @cached_property
    def kv_held(self) -> int:
        """Bytes of the KV budget that present instances hold."""
        return sum(instance.kv_bytes for instance in self.present)

    @cached_property
    def weights_tier(self) -> Tier:
        """The tier that weights are served from: the device's own, or else the pool."""
        return Tier.DEVICE if Tier.DEVICE in self.facts.tiers else Tier.DRAM

    @cached_property
    def weights_capacity(self) -> int:
        """Bytes of the tier that weights are served from."""
        usage = self.facts.tiers.get(self.weights_tier)
        return usage.capacity_bytes if usage else 0

    @cached_property
    def kv_free(self) -> int:
        """Bytes of the KV budget that no present instance holds."""
        return self.facts.kv_capacity - self.kv_held

    @cached_property
    def weights_free(self) -> int:
        """Bytes of the weights' tier that a new checkpoint could have."""
        return self.weights_capacity - sum(self.weights_held.values())

    @cached_property
    def weights_held(self) -> Mapping[str, int]:
        """Bytes that cannot be evicted from the weights' tier, by checkpoint."""
        return self.weights_held_without(frozenset())

    def weights_held_without(self, stopped: frozenset[str]) -> Mapping[str, int]:
        """The same, once the instances `stopped` are gone as well."""
        staying = {one.digest for one in self.present if one.instance_id not in stopped}
        released = {
            one.digest
            for key, one in self.instances.items()
            if (key in self.leaving or key in stopped) and one.digest not in staying
        }
        held = {
            copy.digest: copy.size_bytes
            for copy in self.copies.leased
            if copy.tier == self.weights_tier and (copy.holds or copy.digest not in released)
        }
        for plan in self.planned.values():
            held.setdefault(self.key_here(plan.checkpoint), plan.size_bytes)
        return held

    def key_here(self, checkpoint: str) -> str:
        """The digest under which a checkpoint is here, if so far only its source was known."""
        return self.copies.digests.get(checkpoint, checkpoint)


@dataclass(frozen=True, slots=True)
class Typical:
    """What nodes of this fleet observe, for those that have not observed it themselves."""

    bandwidths: Mapping[LinkKey, float]
    """Median bytes per second of each link that any node has observed."""
    init_time: float | None
    """Median seconds. None: no node has observed one."""
    inits: Inits = NO_INITS
    """Medians for each model."""
    slowness: float = 1.0
    """What starts take now, besides the load, for each second that inits let expect."""


UNKNOWN = Typical({}, None)


@dataclass(frozen=True)
class Snapshot:
    """All that a placement decision may look at."""

    nodes: Mapping[str, NodeView]
    instances: Mapping[str, tuple[Instance, ...]] = field(default_factory=dict)
    """Present instances of every deployment."""
    uses: Mapping[str, Use] = field(default_factory=dict)
    """By instance, of those that take requests."""
    holders: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Nodes that hold any part of a checkpoint or have started it, by its digest and sources."""
    protected: frozenset[str] = frozenset()
    """Instances that a deployment's min_replicas keeps."""
    typical: Typical = UNKNOWN
    needs: Mapping[str, Need] = field(default_factory=dict)
    """Of all deployments."""
    running: Mapping[str, tuple[Running, ...]] = field(default_factory=dict)
    """Requests under way, by instance."""
    migration: MigrationCost | None = None
    """None: nobody knows yet, and nothing is migrated."""
    stop_seconds: float = 0.0
    """What ending an idle instance takes, as observed."""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was worked out about this snapshot, or about the one before and still holds."""

    @cached_property
    def idle_nodes(self) -> frozenset[str]:
        """Nodes with instances that have no request."""
        return frozenset(use.node_id for use in self.uses.values() if not use.in_flight)


def keys_of(node: NodeView) -> set[str]:
    """The digests and sources of checkpoints of which any part is there, or was started there."""
    held = {key for copy in node.copies.values() for key in (copy.digest, *copy.sources)}
    return held | {digest for digest, _ in node.facts.inits.times}


Key = TypeVar("Key")
Value = TypeVar("Value")


def without(mapping: Mapping[Key, Value], key: Key) -> dict[Key, Value]:
    """A copy of `mapping` that lacks `key`."""
    return {name: value for name, value in mapping.items() if name != key}
