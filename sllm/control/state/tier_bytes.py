"""What tenants' checkpoints take of each tier, against what each tenant may have there.

What nothing may evict counts against starts, pins and prefetches: an instance that would need more
waits. What is idle beyond a bound has to leave.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sllm.control.cluster.needs import Need, need_of
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.specs import Deployment
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.state.state import State
from sllm.control.tenants.limits import check_bytes
from sllm.control.tenants.names import tenant_of
from sllm.control.types.pins import Place


@dataclass(frozen=True, slots=True)
class Account:
    """The checkpoints of one tenant, at one moment."""

    state: State
    tenant: str
    parts: Mapping[str, float]
    """How much of each of its checkpoints counts as its own, by digest and by source: of one that
    two tenants have deployed, half."""
    served_to: Mapping[str, set[str]]
    """Names of all deployments of each of these."""

    @classmethod
    def of(cls, state: State, tenant: str) -> "Account":
        """Looked up anew: what is there changes with every report."""
        names: dict[str, set[str]] = defaultdict(set)
        own = set[str]()
        for name, deployment in state.deployments.items():
            keys = {deployment.model.digest, deployment.spec.source} - {""}
            own.update(keys if tenant_of(name) == tenant else ())
            for key in keys:
                names[key].add(name)
        parts = {key: 1 / len(set(map(tenant_of, names[key]))) for key in own}
        return cls(state, tenant, parts, {key: names[key] for key in own})

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
        fleet = self.state.fleet
        having = frozenset[str]().union(*map(fleet.holders, self.parts))
        starting = (key for key, view in fleet.nodes.items() if view.planned)
        return [fleet.nodes[node_id] for node_id in sorted(having.union(starting))]

    def kept(self, tier: Tier) -> float:
        """Bytes of its checkpoints on a tier that nothing may evict, over all nodes."""
        return sum(
            size * self.part(key)
            for view in self.views
            for key, size in _kept_on(view, tier).items()
        )

    def pinned(self, tier: Tier) -> float:
        """Of these, those that stay whatever instance ends."""
        return sum(
            copy.size_bytes * self.part(copy.serves)
            for view, copy in self.copies(tier)
            if any(one.holds for one in _it_and_above(view, copy))
        )

    def copies(self, tier: Tier) -> Iterator[tuple[NodeView, Copy]]:
        """All copies on a tier that are its own, or in part."""
        for view in self.views:
            for copy in view.copies.values():
                if copy.tier is tier and self.part(copy.serves):
                    yield view, copy


def check(state: State, place: Place, others: Iterable[Place]) -> None:
    """Refuses to hold a deployment's checkpoint somewhere beyond its tenant's bytes.

    Args:
        state: What is known.
        place: Where. What is held in memory is held on SSD as well.
        others: Where checkpoints are held, or are about to be: a node tells of it a moment later.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    account = Account.of(state, tenant_of(place.deployment))
    known = [
        one
        for one in (*others, place)
        if one.node_id in state.fleet.nodes and one.deployment in state.needs
    ]
    for tier in (Tier.SSD, Tier.DRAM):
        if tier in account.bounds and place.takes(tier):
            _check_on(account, tier, place, [one for one in known if one.takes(tier)])


def _check_on(account: Account, tier: Tier, place: Place, held: Iterable[Place]) -> None:
    state = account.state
    wanted = [(state.fleet.nodes[one.node_id], state.needs[one.deployment]) for one in held]
    new = {
        (view.node_id, need.checkpoint.key): _more(account, need)
        for view, need in wanted
        if not _is_kept(view, tier, need)
    }
    if (place.node_id, state.needs[place.deployment].checkpoint.key) in new:
        size = account.kept(tier) + sum(new.values())
        check_bytes(account.tenant, state.tenants.limits_of(account.tenant), tier.name, size)


def check_deployment(state: State, deployment: Deployment) -> None:
    """Refuses a deployment whose tenant's checkpoints would not all be somewhere on SSD, once each.

    One that takes no more than it did is never refused, whatever was bounded since: to lower what
    it keeps is a way back within the bounds.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    tenant = tenant_of(deployment.name)
    limits = state.tenants.limits_of(tenant)
    if not limits.bytes_by_tier or _takes_no_more(state, deployment):
        return
    its = {name: one for name, one in state.deployments.items() if tenant_of(name) == tenant}
    its[deployment.name] = deployment
    sizes = {one.model.digest or one.spec.source: one.model.size_bytes for one in its.values()}
    check_bytes(tenant, limits, Tier.SSD.name, sum(sizes.values()))
    pool_bytes = need_of(deployment).pool_bytes
    for tier in {view.weights_tier for view in state.fleet.nodes.values()}:
        check_bytes(tenant, limits, tier.name, pool_bytes)


def _takes_no_more(state: State, deployment: Deployment) -> bool:
    before, after = state.needs.get(deployment.name), need_of(deployment)
    return (
        before is not None
        and before.checkpoint.key == after.checkpoint.key
        and before.pool_bytes >= after.pool_bytes
    )


def closed(state: State, name: str) -> Mapping[str, Tier]:
    """Nodes where an instance would take its tenant beyond its bytes, and of which tier."""
    if not state.tenants.limits_of(tenant_of(name)).bytes_by_tier:
        return {}
    account, need = Account.of(state, tenant_of(name)), state.needs[name]
    bounds, more = account.bounds, _more(account, need)
    full = {tier for tier, most in bounds.items() if account.kept(tier) + more > most}
    if not full:
        return {}
    found: dict[str, Tier] = {}
    for node_id, view in state.fleet.nodes.items():
        tiers = [one for one in _needed_on(view, need) if one in full]
        beyond = [one for one in tiers if not _is_kept(view, one, need)]
        found.update((node_id, one) for one in beyond[:1])
    return found


def never_fits(state: State, name: str, tier: Tier) -> bool:
    """Whether a deployment's checkpoint takes more of a tier than what is pinned leaves there."""
    account = Account.of(state, tenant_of(name))
    most = account.bounds.get(tier, math.inf)
    return account.pinned(tier) + _more(account, state.needs[name]) > most


def idle_beyond(state: State, tenant: str) -> Iterator[tuple[str, Copy]]:
    """Nodes and copies there that have to leave for a tenant to have no more than it may.

    Copies that others have a part in stay, and so does the last of a checkpoint. What was asked for
    least lately goes first.
    """
    account = Account.of(state, tenant)
    lost = Counter[str]()
    for tier, most in account.bounds.items():
        copies = list(account.copies(tier))
        beyond = sum(one.resident_bytes * account.part(one.serves) for _, one in copies) - most
        own = [(view, one) for view, one in copies if account.part(one.serves) == 1]
        for view, copy in sorted(own, key=lambda both: _last_asked(account, both[1])):
            if beyond <= 0:
                break
            loses = _is_the_nodes_last(view, copy)
            spare = _holders(state, copy.digest) - 1 - lost[copy.digest]
            if _is_held(view, copy) or (loses and not copy.made_of and spare < 1):
                continue
            lost[copy.digest] += loses
            beyond -= copy.resident_bytes
            yield view.node_id, copy


def _more(account: Account, need: Need) -> float:
    return need.checkpoint.size_bytes * account.part(need.checkpoint.key)


def _needed_on(view: NodeView, need: Need) -> tuple[Tier, ...]:
    """Tiers of a node that an instance has its weights on."""
    return (Tier.SSD,) if need.on_disk else (Tier.SSD, view.weights_tier)


def _is_kept(view: NodeView, tier: Tier, need: Need) -> bool:
    return view.key_here(need.checkpoint.key) in _kept_on(view, tier)


def _kept_on(view: NodeView, tier: Tier) -> Mapping[str, int]:
    """Bytes on a tier of a node that nothing may evict, by checkpoint; starts are among them."""
    key = (_kept_on, tier)
    if (known := view.memo.get(key)) is None:
        known = view.memo[key] = _look_up_kept(view, tier)
    return known


def _look_up_kept(view: NodeView, tier: Tier) -> Mapping[str, int]:
    kept = Counter[str]()  # all forms of a checkpoint together
    if tier is view.weights_tier:
        for weights, size in view.weights_held.items():
            kept[weights.key] += size
        return kept
    for copy in view.copies.values():
        if copy.tier is tier and _is_held(view, copy):
            kept[copy.serves] += copy.size_bytes
    if tier is Tier.SSD:
        for plan in view.planned.values():
            kept.setdefault(view.key_here(plan.checkpoint), plan.size_bytes)
    return kept


def _is_held(view: NodeView, copy: Copy) -> bool:
    """Whether a node would not free a copy."""
    return any(one.leased for one in _it_and_above(view, copy))


def _it_and_above(view: NodeView, copy: Copy) -> Iterable[Copy]:
    """A copy, and those for whose sake it stays: on SSD, those above it."""
    return (copy, *view.copies_of(copy.digest)) if copy.tier is Tier.SSD else (copy,)


def _is_the_nodes_last(view: NodeView, copy: Copy) -> bool:
    """Whether a node without this copy does not hold the checkpoint: the pool's goes with SSD's."""
    if copy.tier is Tier.DRAM:
        return (copy.digest, Tier.SSD) not in view.copies
    return copy.tier is Tier.SSD


def _holders(state: State, digest: str) -> int:
    """How many nodes have any of a checkpoint."""
    nodes = (state.fleet.nodes[node_id] for node_id in state.fleet.holders(digest))
    return sum(bool(view.copies_of(digest)) for view in nodes)


def _last_asked(account: Account, copy: Copy) -> float:
    """When anybody last asked for what a copy serves, in the clock's seconds."""
    state, names = account.state, account.served_to.get(copy.serves, ())
    if any(map(state.is_asked_for, names)):
        return math.inf
    return max(map(state.arrivals.left_at, names), default=0.0)
