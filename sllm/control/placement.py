"""Where a request is served: a pure function of an immutable snapshot.

The nearest weights win: of all nodes that are large enough and have room, or can make room by
ending idle instances, the one with the lowest estimate is taken. A demand that finds no room
waits; once its patience has ended, busy instances of other deployments are named to be drained,
so that first come, first served holds over all models.
"""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sllm import errors
from sllm.control import room
from sllm.control.cost import Estimate, estimate_start
from sllm.control.decisions import Blocked, Candidate, Demand, Need, Reuse, Start, Wait
from sllm.control.topology import IDLE, Instance, InstanceState, NodeView, Snapshot, Typical, Use

_SHOWN = 8
"""Nodes that an error names at most."""


@dataclass(frozen=True)
class Decision:
    """What to do, with what it was decided from, so that it can be explained and replayed."""

    action: Reuse | Start | Wait
    snapshot: Snapshot
    demand: Demand

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every node with its estimate or the reason why it was rejected, in order of id."""
        nodes = self.snapshot.nodes
        return tuple(_explain(self.snapshot, self.demand, nodes[key]) for key in sorted(nodes))


def place(snapshot: Snapshot, demand: Demand) -> Decision:
    """Decides where `demand` is met. The same arguments always give the same decision."""
    action = _reuse(snapshot, demand) or _start(snapshot, demand) or _wait(snapshot, demand)
    return Decision(action, snapshot, demand)


def check_fits(snapshot: Snapshot, need: Need) -> None:
    """Refuses a model for which every node is too small, even when empty.

    Raises:
        errors.ModelTooLarge: With the numbers.
    """
    reasons = [_too_small(node, need) for node in snapshot.nodes.values()]
    if reasons and all(reasons):
        raise _too_large(snapshot, need)


def _too_large(snapshot: Snapshot, need: Need) -> errors.ModelTooLarge:
    reasons = sorted(str(_too_small(node, need)) for node in snapshot.nodes.values())
    return errors.ModelTooLarge(f"{need.deployment} fits no node: {'; '.join(reasons[:_SHOWN])}")


# --- reuse ------------------------------------------------------------------------------------


def free_instance(
    instances: Iterable[Instance], uses: Mapping[str, Use], max_concurrency: int
) -> Instance | None:
    """The least busy ready instance that has a free slot."""
    least: tuple[int, str] | None = None
    chosen = None
    for instance in instances:
        in_flight = uses.get(instance.instance_id, IDLE).in_flight
        if instance.state is not InstanceState.READY or in_flight >= max_concurrency:
            continue
        rank = (in_flight, instance.instance_id)
        if least is None or rank < least:
            least, chosen = rank, instance
    return chosen


def _reuse(snapshot: Snapshot, demand: Demand) -> Reuse | None:
    if not demand.waiting:
        return None
    instances = snapshot.instances.get(demand.need.deployment, ())
    chosen = free_instance(instances, snapshot.uses, demand.need.max_concurrency)
    return Reuse(chosen) if chosen else None


# --- start ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fit:
    """How a need fits a node, whatever the router does meanwhile."""

    node: NodeView
    kv_bytes: int
    estimate: Estimate
    has_room: bool
    """Without ending anything."""
    too_small: str | None
    """Why not even the empty node would do."""
    rank: tuple[float, int, bool, int, str]
    """Order of preference, the best first; unique."""


def _fit(node: NodeView, need: Need, typical: Typical) -> _Fit:
    """Worked out once for a view of a node, unless it rests on what other nodes observed."""
    known: _Fit | None = node.memo.get(need)
    if known:
        return known
    fit = _work_out(node, need, typical)
    if fit.estimate.observed:
        node.memo[need] = fit
    return fit


def _work_out(node: NodeView, need: Need, typical: Typical) -> _Fit:
    estimate = estimate_start(node, need.checkpoint, typical)
    kv_bytes = min(need.kv_bytes, node.facts.kv_capacity)
    free_kv = node.facts.kv_capacity - node.kv_held
    has_room = room.shortage(node, need.checkpoint, kv_bytes).none
    seconds = float("inf") if estimate.seconds is None else estimate.seconds
    return _Fit(
        node,
        kv_bytes,
        estimate,
        has_room,
        _too_small(node, need),
        (seconds, estimate.missing_bytes, not has_room, -free_kv, node.node_id),
    )


def _too_small(node: NodeView, need: Need) -> str | None:
    size, capacity = need.checkpoint.size_bytes, node.weights_capacity
    if size > capacity:
        return f"{node.node_id}: weights of {size} bytes, {node.weights_tier.name} of {capacity}"
    least, budget = need.least_kv_bytes, node.facts.kv_capacity
    if least > budget:
        return f"{node.node_id}: KV cache of at least {least} bytes, budget of {budget}"
    return None


def _start(snapshot: Snapshot, demand: Demand) -> Start | None:
    """The best node that has room or can make it at once."""
    fits = [_fit(node, demand.need, snapshot.typical) for node in snapshot.nodes.values()]
    heap = [(fit.rank, fit) for fit in fits if not fit.too_small]
    heapq.heapify(heap)  # seldom more than the first is needed: sorting all would be dearer
    while heap:
        _, fit = heapq.heappop(heap)
        victims = None if _barred(demand, fit.node) else _victims(snapshot, demand, fit)
        if victims is not None:
            return Start(fit.node.node_id, fit.kv_bytes, fit.estimate.seconds, victims)
    return None


def _barred(demand: Demand, node: NodeView) -> str | None:
    """Why a node must not be taken, whatever room it has."""
    if node.node_id in demand.failed:
        return "a start has failed there"
    return demand.closed.get(node.node_id)


def _victims(snapshot: Snapshot, demand: Demand, fit: _Fit) -> tuple[str, ...] | None:
    """Idle instances to end, least recently used first. None: that would not be enough."""
    if fit.has_room:
        return ()
    idle = [one for one in _others(snapshot, demand, fit.node) if not _in_flight(snapshot, one)]
    return room.make(fit.node, demand.need.checkpoint, fit.kv_bytes, idle, snapshot.uses)


def _others(snapshot: Snapshot, demand: Demand, node: NodeView) -> list[Instance]:
    """Ready instances of other deployments that nothing protects."""
    return [
        one
        for one in node.present
        if one.state is InstanceState.READY
        and one.deployment != demand.need.deployment
        and one.instance_id not in snapshot.protected
    ]


def _in_flight(snapshot: Snapshot, instance: Instance) -> int:
    return snapshot.uses.get(instance.instance_id, IDLE).in_flight


# --- wait -------------------------------------------------------------------------------------


def _wait(snapshot: Snapshot, demand: Demand) -> Wait:
    fits = [_fit(node, demand.need, snapshot.typical) for node in snapshot.nodes.values()]
    large = sorted((fit for fit in fits if not fit.too_small), key=lambda fit: fit.rank)
    if not large:
        blocked = Blocked.TOO_SMALL if fits else Blocked.NO_NODES
        return Wait(blocked.value, blocked=blocked)
    if all(fit.node.node_id in demand.failed for fit in large):
        return Wait(Blocked.FAILED.value, blocked=Blocked.FAILED)
    open_fits = [fit for fit in large if not _barred(demand, fit.node)]
    ways = [way for fit in open_fits if (way := _drain(snapshot, demand, fit)) is not None]
    if not ways:
        return _no_way(snapshot, demand, large)
    if not demand.impatient:
        return Wait("every node that is large enough is busy")
    cost, drain, node_id = min(ways, key=lambda way: way[0])
    why = f"room is being made on {node_id}, where {cost} requests have to end first"
    return Wait(why, drain, node_id)


def _drain(
    snapshot: Snapshot, demand: Demand, fit: _Fit
) -> tuple[int, tuple[str, ...], str] | None:
    """Requests to wait for, the instances to drain, and the node. None: that is not enough.

    What drains or starts there already is waited for before anything else is drained.
    """
    node, uses = fit.node, snapshot.uses
    draining = [one for one in node.present if one.state is InstanceState.DRAINING]
    idle_or_busy = [*draining, *_others(snapshot, demand, node)]
    first = {one.instance_id: Use(0, float("-inf")) for one in draining}
    chosen = room.make(node, demand.need.checkpoint, fit.kv_bytes, idle_or_busy, {**uses, **first})
    if chosen is None:
        return None
    cost = sum(uses.get(key, IDLE).in_flight for key in chosen)
    return cost, tuple(key for key in chosen if key not in first), node.node_id


def _no_way(snapshot: Snapshot, demand: Demand, large: list[_Fit]) -> Wait:
    """Nothing can be drained: something starts or is closed, or everything is kept."""
    holders = [one for fit in large for one in fit.node.present]
    kept = all(one.instance_id in snapshot.protected for one in holders)
    if holders and kept and not any(_barred(demand, fit.node) for fit in large):
        return Wait(Blocked.KEPT.value, blocked=Blocked.KEPT)
    return Wait("every node that is large enough is starting something, or is closed")


def blocked_error(decision: Decision, blocked: Blocked) -> errors.SllmError:
    """What those are told who have waited in vain."""
    name = decision.demand.need.deployment
    if blocked is Blocked.NO_NODES:
        return errors.NoNodes("no node is connected; start one and try again", retry_after=1.0)
    if blocked is Blocked.TOO_SMALL:
        return _too_large(decision.snapshot, decision.demand.need)
    return errors.NoCapacity(
        f"no room for {name}: {blocked.value}; add a node or lower min_replicas", retry_after=5.0
    )


# --- explain ----------------------------------------------------------------------------------


def _explain(snapshot: Snapshot, demand: Demand, node: NodeView) -> Candidate:
    fit = _fit(node, demand.need, snapshot.typical)
    seconds = fit.estimate.seconds
    if fit.too_small:
        rejected = f"too small: {fit.too_small}"
        return Candidate(node.node_id, None, rejected=rejected, too_small=True)
    if barred := _barred(demand, node):
        return Candidate(node.node_id, seconds, rejected=barred)
    victims = _victims(snapshot, demand, fit)
    if victims is None:
        short = room.shortage(node, demand.need.checkpoint, fit.kv_bytes)
        return Candidate(node.node_id, seconds, rejected=f"no room: {short.text}")
    return Candidate(node.node_id, seconds, victims)
