"""All nodes that are large enough for a model, in one go: the inner loop of placement.

Most nodes hold nothing of a checkpoint; for them the estimate is a formula of its size, whose
coefficients are worked out once per view of a node. Only the few that hold some of it are looked
at one by one.
"""

from typing import NamedTuple

from sllm.control import room
from sllm.control.cost import Pace, approach, start_seconds
from sllm.control.needs import Need
from sllm.control.topology import NodeView, Snapshot, Typical

Rank = tuple[float, int, bool, int, str]
"""A node's place in the order of preference, the least first; no two are equal.

Seconds of the estimate (infinite: nobody knows), bytes that the tier of the weights lacks, whether
something would have to end first, minus the free bytes of the KV budget, the node's id. A plain
tuple: one is made and compared for every node.
"""


class _Standing(NamedTuple):
    """What the formula needs of a node."""

    wait: float
    per_byte: float
    """Of the link that is the slowest for any size of model, in most cases."""
    rest: tuple[Pace, ...]
    """The links that may be slower than that one for some size; mostly none."""
    init: float
    weights_capacity: int
    weights_free: int
    kv_capacity: int
    kv_free: int
    node_id: str


def rank(snapshot: Snapshot, need: Need) -> list[Rank]:
    """The nodes that are large enough, in no order."""
    near = snapshot.holders.get(need.checkpoint.key, frozenset())
    ranks = _far_ranks(snapshot, need, near)
    for node_id in near:
        node = snapshot.nodes[node_id]
        if _is_large_enough(node, need):
            ranks.append(_near_rank(node, need, snapshot.typical))
    return ranks


def _far_ranks(snapshot: Snapshot, need: Need, near: frozenset[str]) -> list[Rank]:
    """The nodes that hold nothing of the checkpoint. Hardly anything is called in this loop."""
    size, least_kv, kv = need.checkpoint.size_bytes, need.least_kv_bytes, need.kv_bytes
    ranks: list[Rank] = []
    for wait, per_byte, rest, init, capacity, free, budget, kv_free, node_id in _standings(
        snapshot
    ):
        if size > capacity or least_kv > budget or node_id in near:
            continue
        slowest = wait + size * per_byte
        for other in rest:
            slowest = max(slowest, other.wait + size * other.per_byte)
        lacks_room = size > free or kv > kv_free < budget
        ranks.append((slowest + init, size, lacks_room, -kv_free, node_id))
    return ranks


def _is_large_enough(node: NodeView, need: Need) -> bool:
    fits = need.checkpoint.size_bytes <= node.weights_capacity
    return fits and need.least_kv_bytes <= node.facts.kv_capacity


def _near_rank(node: NodeView, need: Need, typical: Typical) -> Rank:
    """A node that holds some of the checkpoint, looked at by itself."""
    kv_bytes = min(need.kv_bytes, node.facts.kv_capacity)
    held = [copy.resident_bytes for copy in node.copies_of(need.checkpoint.digest)]
    return (
        start_seconds(node, need.checkpoint, typical),
        need.checkpoint.size_bytes - max(held, default=0),
        not room.shortage(node, need.checkpoint, kv_bytes).none,
        -node.kv_free,
        node.node_id,
    )


def _standings(snapshot: Snapshot) -> list[_Standing]:
    typical = snapshot.typical
    return [
        known[1]
        if (known := node.memo.get(_Standing)) and known[0] is typical
        else _standing(node, typical)
        for node in snapshot.nodes.values()
    ]


def _standing(node: NodeView, typical: Typical) -> _Standing:
    imported, read, copied, init = approach(node, typical)
    slowest, *others = sorted((imported, read, copied), key=lambda pace: -pace.per_byte)
    standing = _Standing(
        wait=slowest.wait,
        per_byte=slowest.per_byte,
        rest=tuple(pace for pace in others if pace.wait > slowest.wait),
        init=init,
        weights_capacity=node.weights_capacity,
        weights_free=node.weights_free,
        kv_capacity=node.facts.kv_capacity,
        kv_free=node.kv_free,
        node_id=node.node_id,
    )
    node.memo[_Standing] = (typical, standing)
    return standing
