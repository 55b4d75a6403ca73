"""Nodes at one moment: what they report, and immutable views of what they hold and run."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from sllm import own_memory
from sllm.checkpoint.format.form import form_label
from sllm.control.cluster.init_times import NO_INIT_TIMES, InitTimes
from sllm.control.cluster.instances import Instance, Planned
from sllm.control.cluster.specs import TRANSFORMERS, EngineConfig
from sllm.control.cluster.tiers import Copies, Copy, Link, LinkKey, Tier, TierUsage

_TIERS = tuple(Tier)
_IMPORT_SECONDS = 15.0
"""What an engine that a node is still importing is expected to take, until it is ready."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator of a node; see the protocol's Device."""

    index: int
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    """As measured, whoever uses the rest."""
    weights_capacity_bytes: int
    weights_used_bytes: int
    kv_capacity_bytes: int
    kv_used_bytes: int
    reserved_bytes: int = 0
    idle_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """Memory that instances take for themselves; see the protocol's NodeMemory."""

    total_bytes: int
    capacity_bytes: int
    used_bytes: int
    instance_bytes: int
    max_instances: int = 0
    """0: no bound."""


@dataclass(frozen=True, slots=True)
class UnmadeForm:
    """A checkpoint that a node has not made ready for an engine; see the protocol's UnmadeForm."""

    digest: str
    made_for: str
    problem: str


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
    init_times: InitTimes = NO_INIT_TIMES
    """The same for each model."""
    leaving: bool = False
    """Whether it is about to go down, and what it runs is to go on elsewhere."""
    devices: tuple[Device, ...] = ()
    """None: the pool is the device."""
    memory: NodeMemory | None = None
    """None: the node does not tell, and has no bound."""
    engines: Mapping[str, bool] = field(default_factory=lambda: {TRANSFORMERS: True})
    """What instances can run on, the one that the node prefers first, and whether it is ready."""
    max_tensor_parallel: int = 1
    """Devices that one instance may run on together."""
    zone: str = ""
    """Part of the cluster that it is in. Empty: nobody has said."""
    unmade_forms: tuple[UnmadeForm, ...] = ()


class Kind(NamedTuple):
    """What instances have in common that take about the same for themselves."""

    checkpoint: str
    """Its key on the node. Empty: not known."""
    engine: str
    tensor_parallel: int = 1
    """Devices that run it together."""
    expert_memory: int | None = None
    """Bytes of its experts in memory, where others stay on SSD."""
    ready_made: bool = False
    """Whether weights were made ready for the engine, which copies next to nothing of them then."""

    @classmethod
    def of(
        cls,
        checkpoint: str,
        engine: str,
        tensor_parallel: int = 1,
        expert_memory: int | None = None,
        *,
        ready_made: bool = False,
    ) -> "Kind":
        """Of a checkpoint and an engine, which nodes of earlier versions do not name."""
        named = engine or TRANSFORMERS
        return cls(checkpoint, named, tensor_parallel, expert_memory, ready_made)

    @classmethod
    def of_instance(cls, instance: Instance, checkpoint: str) -> "Kind":
        """Of an instance of a checkpoint."""
        config, ready_made = instance.config or EngineConfig(), instance.ready_made
        ranks, experts = config.tensor_parallel, config.expert_memory
        return cls.of(checkpoint, instance.engine, ranks, experts, ready_made=ready_made)


class Held(NamedTuple):
    """Weights that something keeps in place."""

    key: str
    """Of their checkpoint on the node, as it is published."""
    made_for: str = ""
    """What they were made ready for. Empty: they are as published."""


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

    def engine_wait(self, engine: str) -> float:
        """Seconds until the node can start workers of an engine. Infinite: it does not have it.

        Empty: whichever it has.
        """
        if not engine:
            return 0.0
        ready = self.facts.engines.get(engine)
        return math.inf if ready is None else 0.0 if ready else _IMPORT_SECONDS

    @cached_property
    def present(self) -> tuple[Instance, ...]:
        """Instances that hold room: reported or planned, and not leaving.

        A planned one counts as STARTING until its start has ended, whatever is reported.
        """
        planned = {key: plan.instance for key, plan in self.planned.items()}
        both = {**self.instances, **planned}
        return tuple(one for key, one in both.items() if key not in self.leaving)

    @cached_property
    def with_leaving(self) -> "NodeView":
        """The node as it is until the instances that are leaving have gone."""
        return replace(self, leaving=frozenset(), memo={}) if self.leaving else self

    def copies_of(self, digest: str) -> list[Copy]:
        """A checkpoint's copies on all tiers, as it is published."""
        found = (self.copies.get((digest, tier)) for tier in _TIERS)
        return [copy for copy in found if copy]

    def made_of(self, digest: str, label: str) -> list[Copy]:
        """The same, as it was made ready for what a label names."""
        found = (self.copies.find(digest, tier, label) for tier in _TIERS)
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
        wanted = {self._planned(plan): plan.size_bytes for plan in self.planned.values()}
        return sum(
            size
            for held, size in wanted.items()
            if not self.copies.find(held.key, tier, held.made_for)
        )

    def _planned(self, plan: Planned) -> Held:
        return Held(self.key_here(plan.checkpoint), plan.made_for)

    @cached_property
    def kv_held(self) -> int:
        """Bytes of the KV budget that present instances hold."""
        return sum(instance.kv_bytes for instance in self.present)

    def own_expected(self, kind: Kind, private_bytes: int | None) -> int:
        """Bytes that one more instance is taken to take for itself.

        Args:
            kind: Of the instance.
            private_bytes: For copies of its own, as estimated. None: not known.
        """
        return self._own_expected(kind, private_bytes, self._own_measured)

    def own_alone(self, kind: Kind, private_bytes: int | None) -> int:
        """The same on the empty node: others tell nothing of it."""
        same = [one for one in self._own_measured if one.kind == kind]
        return self._own_expected(kind, private_bytes, same)

    def _own_expected(
        self, kind: Kind, private_bytes: int | None, present: Iterable[own_memory.Taken]
    ) -> int:
        assert self.facts.memory, "the node does not tell of its memory"
        # Where weights are on devices, copies of them are there as well.
        here = None if self.facts.devices else private_bytes
        return own_memory.expected(kind, here, present, self.facts.memory.instance_bytes)

    @cached_property
    def _own_measured(self) -> list[own_memory.Taken]:
        """What present instances take for themselves, where it was measured."""
        return [
            own_memory.Taken(Kind.of_instance(one, one.digest), one.own_bytes, one.private_bytes)
            for one in self.present
            if one.own_bytes
        ]

    def own_bytes(self, instance: Instance) -> int:
        """What an instance takes for itself, as measured or expected."""
        if instance.own_bytes:
            return instance.own_bytes
        plan = self.planned.get(instance.instance_id)
        key = instance.digest or (self.key_here(plan.checkpoint) if plan else "")
        kind, copied = Kind.of_instance(instance, key), instance.private_bytes
        if instance.ready_made:
            measured = self.copied_over(key, form_label(kind.engine, kind.tensor_parallel))
            copied = copied if measured is None else measured
        return self.own_expected(kind, copied)

    def copied_over(self, digest: str, made_for: str) -> int | None:
        """Memory that instances over ready-made weights take for copies, as measured here.

        None: it was not measured.
        """
        found = (self.copies.find(digest, tier, made_for) for tier in (Tier.DRAM, Tier.SSD))
        return next((copy.private_bytes for copy in found if copy), None)

    @cached_property
    def own_held(self) -> int:
        """What present instances take for themselves together; the node tells of its memory."""
        return sum(map(self.own_bytes, self.present))

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
    def weights_held(self) -> Mapping[Held, int]:
        """Bytes that cannot be evicted from the weights' tier."""
        return self.weights_held_without(frozenset())

    def weights_held_without(self, stopped: frozenset[str]) -> Mapping[Held, int]:
        """The same, once the instances `stopped` are gone as well."""
        staying = {
            digest
            for one in self.present
            if one.instance_id not in stopped
            for digest in one.digests
        }
        released = {
            digest
            for key, one in self.instances.items()
            if key in self.leaving or key in stopped
            for digest in one.digests - staying
        }
        held: dict[Held, int] = {}
        for copy in self.copies.leased:
            if copy.tier == self.weights_tier and (copy.holds or copy.serves not in released):
                held[Held(copy.serves, copy.made_for)] = copy.size_bytes
        for plan in self.planned.values():
            held.setdefault(self._planned(plan), plan.size_bytes)
        return held

    def key_here(self, checkpoint: str) -> str:
        """The key of a checkpoint here: its digest, if the node knows where its source leads."""
        return self.copies.digests.get(checkpoint, checkpoint)


def keys_of(node: NodeView) -> set[str]:
    """Digests and sources of the checkpoints that a node holds some of, or has started."""
    held = {key for copy in node.copies.values() for key in (copy.serves, *copy.sources)}
    return held | {key.digest for key in node.facts.init_times.by_model}
