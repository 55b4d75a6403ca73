"""What tenants' checkpoints take of each tier, against what each tenant may have there.

What nothing may evict counts against starts, pins and prefetches: an instance that would need more
waits. What is idle beyond a bound has to leave.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sllm.control.cluster.needs import Need, need_of
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.specs import Deployment
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.placement import fitting
from sllm.control.state.accounts import Account, in_instances, is_held
from sllm.control.state.state import State
from sllm.control.tenants.limits import check_bytes
from sllm.control.tenants.names import tenant_of
from sllm.control.types.pins import Keep


def check(state: State, keep: Keep) -> None:
    """Refuses to hold a checkpoint somewhere beyond its tenant's bytes.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    if (view := state.fleet.nodes.get(keep.node_id)) is None:
        return  # it has just gone
    account, checkpoint = Account.of(state, keep.tenant), keep.checkpoint
    limits = state.tenants.limits_of(keep.tenant)
    for tier in keep.tiers:
        if view.key_here(checkpoint.key) not in account.kept_on(view, tier):
            more = checkpoint.size_bytes * account.part(checkpoint.key)
            check_bytes(keep.tenant, limits, tier.name, account.kept(tier) + more)


def check_deployment(state: State, deployment: Deployment) -> None:
    """Refuses a deployment whose tenant's checkpoints could never be where they have to be.

    On SSD there is room for each once, and wherever min_replicas keeps instances for what these
    take at least. One that takes no more than it did is never refused, whatever was bounded since:
    to lower what it keeps is a way back within the bounds.

    Raises:
        errors.TenantLimit: With the numbers.
    """
    tenant = tenant_of(deployment.name)
    limits = state.tenants.limits_of(tenant)
    if not limits.bytes_by_tier or _takes_no_more(state, deployment):
        return
    others = (one for name, one in state.deployments.items() if tenant_of(name) == tenant)
    its = [deployment, *(one for one in others if one.name != deployment.name)]
    nodes = _nodes_kept(state, its)
    on_disk = {one.checkpoint.key: one.checkpoint.size_bytes for one in map(need_of, its)}
    size = sum(each * max(1, nodes[key]) for key, each in on_disk.items())
    check_bytes(tenant, limits, Tier.SSD.name, size)
    need = need_of(deployment)
    tiers = {view.weights_tier for view in state.fleet.nodes.values()}
    for tier in {Tier.DRAM} if need.on_disk else tiers:
        check_bytes(tenant, limits, tier.name, need.own_weights_bytes or need.pool_bytes)
    if deployment.spec.scaling.min_replicas and len(tiers) == 1:  # else they may be on either
        kept = _kept_in_memory(state, its)
        check_bytes(tenant, limits, tiers.pop().name, kept, "lower min_replicas")


def _kept_in_memory(state: State, deployments: Sequence[Deployment]) -> int:
    """Bytes of weights that min_replicas keeps in memory at least."""
    pooled = [one for one in deployments if not need_of(one).on_disk]
    nodes = _nodes_kept(state, pooled)
    sizes = {one.checkpoint.key: one.pool_bytes for one in map(need_of, pooled)}
    shared = sum(size * nodes[key] for key, size in sizes.items())
    own = (need_of(one).own_weights_bytes * one.spec.scaling.min_replicas for one in deployments)
    return shared + sum(own)


def _nodes_kept(state: State, deployments: Iterable[Deployment]) -> Mapping[str, int]:
    """On how many nodes min_replicas keeps each checkpoint at least, by its key."""
    snapshot, found = state.snapshot(), Counter[str]()
    for one in deployments:
        if least := one.spec.scaling.min_replicas:
            need = need_of(one)
            nodes = fitting.least_nodes(snapshot, need, least)
            found[need.checkpoint.key] = max(nodes, found[need.checkpoint.key])
    return found


def _takes_no_more(state: State, deployment: Deployment) -> bool:
    before, after = state.needs.get(deployment.name), need_of(deployment)
    least = deployment.spec.scaling.min_replicas
    return (
        before is not None
        and before.checkpoint.key == after.checkpoint.key
        and before.pool_bytes >= after.pool_bytes
        and before.own_weights_bytes >= after.own_weights_bytes
        and state.kept_replicas.get(deployment.name, 0) >= least
    )


def closed(state: State, name: str) -> Mapping[str, Tier]:
    """Nodes where an instance would take its tenant beyond its bytes, and of which tier."""
    if not state.tenants.limits_of(tenant_of(name)).bytes_by_tier:
        return {}
    account, need = Account.of(state, tenant_of(name)), state.needs[name]
    full = {
        tier
        for tier, most in account.bounds.items()
        if account.kept(tier) + _more(account, need, tier) > most
    }
    if not full:
        return {}
    found: dict[str, Tier] = {}
    for node_id, view in state.fleet.nodes.items():
        tiers = [one for one in _needed_on(view, need) if one in full]
        key = view.key_here(need.checkpoint.key)
        beyond = [
            one for one in tiers if _is_own(need, one) or key not in account.kept_on(view, one)
        ]
        found.update((node_id, one) for one in beyond[:1])
    return found


def never_fits(state: State, name: str, tier: Tier) -> bool:
    """Whether a deployment's checkpoint takes more of a tier than what is pinned leaves there."""
    account = Account.of(state, tenant_of(name))
    most = account.bounds.get(tier, math.inf)
    return account.pinned(tier) + _more(account, state.needs[name], tier) > most


def idle_beyond(state: State, tenant: str) -> Iterator[tuple[str, Copy]]:
    """Nodes and copies there that have to leave for a tenant to have no more than it may.

    Copies that others have a part in stay, and so does the last of a checkpoint. What was asked for
    least lately goes first.
    """
    account, names = Account.of(state, tenant), _names(state)
    lost = Counter[str]()
    for tier, most in account.bounds.items():
        copies = list(account.copies(tier))
        size = sum(one.resident_bytes * account.part(one.serves) for _, one in copies)
        beyond = size + (in_instances(state)[tenant] if tier is Tier.DRAM else 0) - most
        own = [(view, one) for view, one in copies if account.part(one.serves) == 1]
        for view, copy in sorted(own, key=lambda both: _last_asked(state, names[both[1].serves])):
            if beyond <= 0:
                break
            loses = _is_the_nodes_last(view, copy)
            spare = _holders(state, copy.digest) - 1 - lost[copy.digest]
            if is_held(view, copy) or (loses and not copy.made_of and spare < 1):
                continue
            lost[copy.digest] += loses
            beyond -= copy.resident_bytes
            yield view.node_id, copy


def _more(account: Account, need: Need, tier: Tier) -> float:
    """What one more instance takes of a tier where nothing of its checkpoint is kept."""
    if _is_own(need, tier):
        return need.own_weights_bytes
    return need.checkpoint.size_bytes * account.part(need.checkpoint.key)


def _needed_on(view: NodeView, need: Need) -> tuple[Tier, ...]:
    """Tiers of a node that an instance has its weights on."""
    return Tier.SSD, Tier.DRAM if need.on_disk else view.weights_tier


def _is_own(need: Need, tier: Tier) -> bool:
    """Whether each instance has weights on a tier that no other one shares."""
    return need.on_disk and tier is Tier.DRAM


def _is_the_nodes_last(view: NodeView, copy: Copy) -> bool:
    """Whether a node without this copy does not hold the checkpoint: the pool's goes with SSD's."""
    if copy.tier is Tier.DRAM:
        return (copy.digest, Tier.SSD) not in view.copies
    return copy.tier is Tier.SSD


def _holders(state: State, digest: str) -> int:
    """How many nodes have any of a checkpoint."""
    nodes = (state.fleet.nodes[node_id] for node_id in state.fleet.holders(digest))
    return sum(bool(view.copies_of(digest)) for view in nodes)


def _names(state: State) -> Mapping[str, list[str]]:
    """The deployments of each checkpoint, by its digest."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, deployment in state.deployments.items():
        found[deployment.model.digest].append(name)
    return found


def _last_asked(state: State, names: Iterable[str]) -> float:
    """When anybody last asked for any of these deployments, in the clock's seconds."""
    if any(map(state.is_asked_for, names)):
        return math.inf
    return max(map(state.arrivals.left_at, names), default=0.0)
