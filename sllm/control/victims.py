"""Which instances may have to go for a start, and which nodes must not be taken."""

from sllm.control import room
from sllm.control.decisions import Demand
from sllm.control.needs import Need
from sllm.control.topology import Instance, InstanceState, NodeView, Snapshot


def kv_grant(node: NodeView, need: Need) -> int:
    """Bytes of KV cache that an instance gets on a node."""
    return min(need.kv_bytes, node.facts.kv_capacity)


def barred(demand: Demand, node_id: str) -> str | None:
    """Why a node must not be taken, whatever room it has."""
    if node_id in demand.failed:
        return "a start has failed there"
    if node_id in demand.draining:
        return "it is being drained"
    return demand.closed.get(node_id)


def idle_victims(
    snapshot: Snapshot, need: Need, node: NodeView, gone: frozenset[str] = frozenset()
) -> tuple[str, ...] | None:
    """Idle instances to end so that there is room once `gone` have gone; the worst to lose stay.

    None: not even all of them would do.
    """
    kv_bytes = kv_grant(node, need)
    if room.shortage(node, need.checkpoint, kv_bytes, gone).none:
        return ()
    idle = [one for one in yielding(snapshot, need, node) if not is_busy(snapshot, one)]
    return room.make(node, need.checkpoint, kv_bytes, idle, snapshot.uses, gone)


def yielding(snapshot: Snapshot, need: Need, node: NodeView) -> list[Instance]:
    """Ready instances of other deployments that nothing protects."""
    return [
        one
        for one in node.present
        if one.state is InstanceState.READY
        and one.instance_id in snapshot.uses
        and one.instance_id not in snapshot.protected
        and one.deployment != need.deployment
    ]


def is_busy(snapshot: Snapshot, instance: Instance) -> bool:
    """Whether an instance has requests."""
    return snapshot.uses[instance.instance_id].in_flight > 0
