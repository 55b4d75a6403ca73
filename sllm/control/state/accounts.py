"""What a tenant has of each tier: all that is kept for it there, or is about to be.

What its deployments name is a tenant's own, and so is what is held for it by a pin or a prefetch,
whatever was deleted since. Starts, pins and prefetches that nodes do not tell of yet count like
what they tell of: all are known here, so that two which come together count together.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.state.state import State
from sllm.control.tenants.names import tenant_of
from sllm.control.types.pins import Keep, tenant_of_hold

Sizes = Mapping[str, int]
"""Bytes by the key of a checkpoint on its node."""


@dataclass(frozen=True, slots=True)
class Account:
    """The checkpoints of one tenant, at one moment."""

    state: State
    tenant: str
    parts: Mapping[str, float]
    """How much of each of its checkpoints counts as its own, by digest and by source: of one that
    two tenants have, half."""
    coming: Mapping[tuple[str, Tier], Sizes]
    """By node: what is to be held there, for whomever, whether or not its node tells so already."""

    @classmethod
    def of(cls, state: State, tenant: str) -> "Account":
        """Looked up anew: what is there changes with every report."""
        parts = {key: 1 / len(its) for key, its in owners(state).items() if tenant in its}
        return cls(state, tenant, parts, _coming(state))

    @property
    def bounds(self) -> Mapping[Tier, int]:
        """Bytes that it may have, of those tiers that are bounded."""
        bounds = self.state.tenants.limits_of(self.tenant).bytes_by_tier
        return {Tier[name]: most for name, most in bounds.items()}

    def part(self, checkpoint: str) -> float:
        """How much of a checkpoint counts as this tenant's."""
        return self.parts.get(checkpoint, 0.0)

    @property
    def views(self) -> list[NodeView]:
        """The nodes that have any of its checkpoints, or are about to; of many, these are few."""
        nodes = self.state.fleet.nodes
        having = frozenset[str]().union(*map(self.state.fleet.holders, self.parts))
        starting = (key for key, view in nodes.items() if view.planned)
        coming = (node_id for node_id, _ in self.coming)
        return [nodes[node_id] for node_id in sorted(having.union(starting, coming))]

    def kept(self, tier: Tier) -> float:
        """Bytes of its checkpoints on a tier that nothing may evict, over all nodes."""
        own = in_instances(self.state)[self.tenant] if tier is Tier.DRAM else 0
        return self._own(lambda view: self.kept_on(view, tier)) + own

    def pinned(self, tier: Tier) -> float:
        """Of these, those that stay whatever instance ends."""
        return self._own(lambda view: {**self._coming_to(view, tier), **_pinned_on(view, tier)})

    def kept_on(self, view: NodeView, tier: Tier) -> Sizes:
        """Bytes on a tier of a node that nothing may evict, for whomever; all to come are in it."""
        kept, coming = _kept_on(view, tier), self._coming_to(view, tier)
        return {**coming, **kept} if coming else kept

    def copies(self, tier: Tier) -> Iterator[tuple[NodeView, Copy]]:
        """All copies on a tier that are its own, or in part."""
        for view in self.views:
            for copy in view.copies.values():
                if copy.tier is tier and self.part(copy.serves):
                    yield view, copy

    def _coming_to(self, view: NodeView, tier: Tier) -> Sizes:
        return self.coming.get((view.node_id, tier), {})

    def _own(self, look: Callable[[NodeView], Sizes]) -> float:
        """Bytes that a look finds on all nodes, as far as they are this tenant's."""
        return sum(size * self.part(key) for view in self.views for key, size in look(view).items())


def owners(state: State) -> Mapping[str, set[str]]:
    """The tenants that have each checkpoint, by its digest and by its source."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, deployment in state.deployments.items():
        for key in {deployment.model.digest, deployment.spec.source} - {""}:
            found[key].add(tenant_of(name))
    for view in state.fleet.nodes.values():
        for key, hold_id in view.copies.holds:
            if tenant := tenant_of_hold(hold_id):
                found[key].add(tenant)
    for keep in state.prefetching.values():
        found[keep.checkpoint.key].add(keep.tenant)
    return found


def in_instances(state: State) -> Counter[str]:
    """Bytes of weights that each tenant's instances have in memory of their own: in no pool."""
    found = Counter[str]()
    for name, need in state.needs.items():
        if need.own_weights_bytes:
            count = len(state.fleet.instances_of(name))
            found[tenant_of(name)] += count * need.own_weights_bytes
    return found


def is_held(view: NodeView, copy: Copy) -> bool:
    """Whether a node would not free a copy."""
    return any(one.leased for one in _it_and_above(view, copy))


def _keeps(state: State) -> Iterable[Keep]:
    """All that is to be held."""
    needs = state.needs
    for place in state.pinned:
        if need := needs.get(place.deployment):
            tenant = tenant_of(place.deployment)
            yield Keep(tenant, need.checkpoint, place.tier, place.node_id)
    yield from state.prefetching.values()


def _coming(state: State) -> Mapping[tuple[str, Tier], Sizes]:
    found: dict[tuple[str, Tier], dict[str, int]] = defaultdict(dict)
    for keep in _keeps(state):
        if view := state.fleet.nodes.get(keep.node_id):
            key = view.key_here(keep.checkpoint.key)
            for tier in keep.tiers:
                found[keep.node_id, tier][key] = keep.checkpoint.size_bytes
    return found


def _kept_on(view: NodeView, tier: Tier) -> Sizes:
    """Bytes on a tier of a node that nothing may evict; starts are among them."""
    key = (_kept_on, tier)
    if (known := view.memo.get(key)) is None:
        known = view.memo[key] = _look_up_kept(view, tier)
    return known


def _look_up_kept(view: NodeView, tier: Tier) -> Sizes:
    kept = Counter[str]()  # all forms of a checkpoint together
    if tier is view.weights_tier:
        for weights, size in view.weights_held.items():
            kept[weights.key] += size
        return kept
    for copy in view.copies.values():
        if copy.tier is tier and is_held(view, copy):
            kept[copy.serves] += copy.size_bytes
    if tier is Tier.SSD:
        for plan in view.planned.values():
            kept.setdefault(view.key_here(plan.checkpoint), plan.size_bytes)
    return kept


def _pinned_on(view: NodeView, tier: Tier) -> Sizes:
    """Bytes on a tier of a node that stay whatever instance ends."""
    kept = Counter[str]()
    for copy in view.copies.values():
        if copy.tier is tier and any(one.holds for one in _it_and_above(view, copy)):
            kept[copy.serves] += copy.size_bytes
    return kept


def _it_and_above(view: NodeView, copy: Copy) -> Iterable[Copy]:
    """A copy, and those for whose sake it stays: on SSD, those above it."""
    return (copy, *view.copies_of(copy.digest)) if copy.tier is Tier.SSD else (copy,)
