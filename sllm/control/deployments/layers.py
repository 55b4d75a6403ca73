"""What an idle instance, and then its weights in DRAM, cost and save: pure."""

import math

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Typical
from sllm.control.cluster.tiers import Tier
from sllm.control.placement.start_estimate import approach, start_estimate
from sllm.control.requests.keep_times import Layer


def layers_of(
    node: NodeView,
    instance: Instance,
    need: Need,
    typical: Typical,
    worth: float,
    keep_alive: float,
) -> tuple[Layer, Layer] | None:
    """The instance itself, and its weights, in the order in which they are given up.

    Below them is the copy on SSD, which costs no memory. None: nobody knows what a start takes.

    Args:
        node: Where it runs.
        instance: Which.
        need: Of its deployment.
        typical: What is taken for what the node has not observed.
        worth: Seconds for which a whole node may be held so that one of waiting is saved.
        keep_alive: Seconds that the instance stays at most.
    """
    again = start_estimate(node, need, typical)  # with the weights in DRAM, where they are now
    pace, size = approach(node, typical).read, need.checkpoint.size_bytes
    start = again.transfer + again.init
    if not math.isfinite(start):
        return None
    pool = node.facts.tiers.get(Tier.DRAM)
    weights = Layer(
        _part(size, pool.capacity_bytes if pool else 0) / worth,
        max(0.0, size * pace.per_byte - start),
    )
    if not math.isfinite(pace.wait):
        weights = Layer(0.0, 0.0)  # nobody knows what they save: they are not called worthless
    return Layer(_share(node, instance) / worth, start, keep_alive), weights


def _share(node: NodeView, instance: Instance) -> float:
    """What it takes beside weights in DRAM, as a part of the node: of what it takes most of.

    It is no dearer where little is free: an idle instance ends at once for whoever needs its room.
    """
    memory = node.facts.memory
    parts = [_part(instance.kv_bytes, node.facts.kv_capacity)]
    if memory:
        parts.append(_part(node.own_bytes(instance), memory.capacity_bytes))
    if node.weights_tier is Tier.DEVICE:
        held = node.weights_held.items()
        weights = sum(size for one, size in held if one.key == instance.digest)  # in any form
        parts.append(_part(weights, node.weights_capacity))
    return max(parts)


def _part(of: int, whole: int) -> float:
    return min(1.0, of / whole) if whole > 0 else 0.0
