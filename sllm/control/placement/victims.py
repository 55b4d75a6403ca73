"""Which instances may have to go for a start, and which nodes must not be taken."""

import math
from dataclasses import dataclass
from typing import Final

from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.placement import room
from sllm.control.placement.decisions import Demand
from sllm.control.placement.start_estimate import need_on, start_seconds

_LEAST: Final = 0.001
_MOST: Final = 1e6
"""Bounds in seconds for what a start is taken to take, also where nobody knows."""


def barred(demand: Demand, node_id: str) -> str | None:
    """Why a node must not be taken, whatever room it has."""
    if node_id in demand.failed:
        return "a start has failed there"
    if node_id in demand.draining:
        return "it is being drained"
    return demand.closed.get(node_id)


def idle_victims(
    snapshot: Snapshot, demand: Demand, node: NodeView, gone: frozenset[str] = frozenset()
) -> tuple[str, ...] | None:
    """The idle instances to end so that there is room once `gone` have gone, least missed first.

    None: not even all of them would do.
    """
    need = need_on(node, demand.need, snapshot.typical)
    kv_bytes = room.kv_grant(node, need)
    if room.shortage(node, need, kv_bytes, gone).none:
        return ()
    idle = [one for one in yielding(snapshot, demand, node) if not keeps(snapshot, demand, one)]
    idle.sort(key=lambda one: missed(snapshot, node, one))
    return room.make(node, need, kv_bytes, idle, gone)


def yielding(snapshot: Snapshot, demand: Demand, node: NodeView) -> list[Instance]:
    """Ready instances of other deployments that nothing protects, and those it may replace."""
    return [
        one
        for one in node.present
        if one.state is InstanceState.READY
        and one.instance_id in snapshot.uses
        and (one.instance_id in demand.gives_way or _yields(snapshot, demand, one))
    ]


def _yields(snapshot: Snapshot, demand: Demand, instance: Instance) -> bool:
    return (
        instance.instance_id not in snapshot.protected
        and instance.instance_id not in demand.resident
        and instance.deployment != demand.need.deployment
    )


def may_drain(snapshot: Snapshot, demand: Demand, instance: Instance) -> bool:
    """Whether an instance may have to end, with what it has to do, by the shares of tenants."""
    owed = demand.owed is None or instance.deployment in demand.owed
    return owed or not is_busy(snapshot, instance)


@dataclass(frozen=True, slots=True)
class Yield:
    """An instance that makes room for one of its own tenant's."""

    instance_id: str
    busy: bool
    """Whether it ends only once its requests have."""


def cheapest(snapshot: Snapshot, demand: Demand) -> Yield | None:
    """Of all instances that `demand` is owed, on any node, the one whose end costs least.

    An idle one, the least missed first; a busy one only if the demand is impatient, that with the
    fewest requests first. None: there is none.
    """
    owed = [
        (node, one)
        for node in snapshot.nodes.values()
        for one in yielding(snapshot, demand, node)
        if demand.owed is None or one.deployment in demand.owed
    ]
    idle = [(node, one) for node, one in owed if not keeps(snapshot, demand, one)]
    if idle:
        _, least = min(idle, key=lambda place: missed(snapshot, *place))
        return Yield(least.instance_id, busy=False)
    if not (owed and demand.impatient):
        return None
    busy = min((one for _, one in owed), key=lambda one: load(snapshot, one))
    return Yield(busy.instance_id, busy=True)


def load(snapshot: Snapshot, instance: Instance) -> tuple[int, float, str]:
    """How much would have to end with an instance, the least first."""
    use = snapshot.uses[instance.instance_id]
    return use.in_flight, use.last_used, instance.instance_id


def missed(snapshot: Snapshot, node: NodeView, instance: Instance) -> tuple[float, float, str]:
    """How much an idle instance would be missed, the least first.

    Seconds to bring it back, times how likely it is asked for, for each byte that it frees, as a
    logarithm; among equals the one that was used longest ago.
    """
    use = snapshot.uses[instance.instance_id]
    need = snapshot.needs.get(instance.deployment)
    worth = -math.inf
    if need:
        seconds = min(max(start_seconds(node, need, snapshot.typical), _LEAST), _MOST)
        size = need.weights_bytes + instance.kv_bytes
        beside = len(snapshot.instances.get(instance.deployment, ())) or 1
        worth = use.demand + math.log2(seconds / max(size, 1) / beside)
    return worth, use.last_used, instance.instance_id


def is_busy(snapshot: Snapshot, instance: Instance) -> bool:
    """Whether an instance has requests that somebody waits for."""
    return snapshot.uses[instance.instance_id].is_busy


def keeps(snapshot: Snapshot, demand: Demand, instance: Instance) -> bool:
    """Whether an instance keeps its room: it is busy, or nobody waits for what asks for it.

    Then it ends only if all that it ever had was of that kind, and has ended.
    """
    use = snapshot.uses[instance.instance_id]
    if demand.background:
        return use.asked_for or use.in_flight > 0
    return use.is_busy
