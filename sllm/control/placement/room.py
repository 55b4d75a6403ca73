"""Room on one node: what a start lacks there, and what would have to end for it.

What a start needs depends on the form of the weights that it takes there: `forms.need_over`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import Held, Kind, NodeView
from sllm.control.placement import device_room

_UNBOUNDED: Final = 1 << 62
_UNKNOWN: Final = Kind.of("", "")


class Bounds(NamedTuple):
    """Bytes that one start could have on a node: its weights, its KV cache, and both together."""

    weights: int
    kv: int
    both: int


def capacity(node: NodeView) -> Bounds:
    """What the empty node has; if it has devices, what the largest of them has."""
    devices = node.facts.devices
    if not devices:
        return Bounds(node.weights_capacity, node.facts.kv_capacity, _UNBOUNDED)
    largest = max(one.weights_capacity_bytes for one in devices)
    return Bounds(largest, max(one.kv_capacity_bytes for one in devices), largest)


def too_small(node: NodeView, need: Need) -> str | None:
    """Why not even the empty node would do."""
    size, bounds = need.pool_bytes, capacity(node)
    if size > bounds.weights:
        tier = node.weights_tier.name
        return f"{node.node_id}: weights of {size} bytes, {tier} of {bounds.weights}"
    least, budget = need.least_kv_bytes, min(bounds.kv, bounds.both - size)
    if least > budget:
        return f"{node.node_id}: KV cache of at least {least} bytes, budget of {budget}"
    if (memory := node.facts.memory) is None:
        return None
    own = node.own_alone(_kind(node, need), need.private_bytes)
    if own <= memory.capacity_bytes:
        return None
    return (
        f"{node.node_id}: {own} bytes of memory for an instance itself, {memory.capacity_bytes} "
        "beside pool and KV caches"
    )


def most_instances(node: NodeView, need: Need) -> float:
    """How many instances the empty node has room for, if it has room for one; they share weights.

    Infinite: whatever bounds them is not told.
    """
    return max(1, min(_most_by_caches(node, need), _most_by_memory(node, need)))


def _most_by_caches(node: NodeView, need: Need) -> float:
    if not (kv := kv_grant(node, need)):
        return math.inf
    weights = device_room.in_pages(need.checkpoint.size_bytes)
    each = [
        min(one.kv_capacity_bytes, one.weights_capacity_bytes - weights)
        for one in node.facts.devices
    ]
    return sum(max(0, one) // kv for one in each or [node.facts.kv_capacity])


def _most_by_memory(node: NodeView, need: Need) -> float:
    if (memory := node.facts.memory) is None:
        return math.inf
    own = node.own_alone(_kind(node, need), need.private_bytes)
    return min(memory.max_instances or math.inf, memory.capacity_bytes // own if own else math.inf)


def _kind(node: NodeView, need: Need) -> Kind:
    key = node.key_here(need.checkpoint.key)
    ranks, experts = need.tensor_parallel, need.expert_memory
    return Kind.of(key, need.engine, ranks, experts, ready_made=need.over_ready)


def free(node: NodeView) -> Bounds:
    """What no present instance holds, on the device with most of that; idle copies are free."""
    if not node.facts.devices:
        return Bounds(node.weights_free, node.kv_free, _UNBOUNDED)
    found = device_room.rooms(node)
    most = max(one.free for one in found)
    return Bounds(most, max(min(one.kv_free, one.free) for one in found), most)


def beside(node: NodeView, private_bytes: int | None) -> int:
    """Bytes that an instance of what the node has never run leaves of the memory for instances.

    Negative: there is no room for one, or the node takes no more.

    Args:
        node: on which.
        private_bytes: for copies of its own. None: not known.
    """
    memory = node.facts.memory
    if memory is None:
        return _UNBOUNDED
    if memory.max_instances and len(node.present) >= memory.max_instances:
        return -1
    return memory.capacity_bytes - node.own_held - node.own_expected(_UNKNOWN, private_bytes)


def beside_in_empty(node: NodeView) -> int:
    """The same of the empty node and an instance without copies."""
    memory = node.facts.memory
    return memory.capacity_bytes - memory.instance_bytes if memory else _UNBOUNDED


def kv_grant(node: NodeView, need: Need) -> int:
    """Bytes of KV cache that an instance gets on a node: what it should have, or what there is."""
    size = need.checkpoint.size_bytes
    bounds = [
        min(one.kv_capacity_bytes, one.weights_capacity_bytes - device_room.in_pages(size))
        for one in node.facts.devices
    ]
    return min(need.kv_bytes, max(bounds, default=node.facts.kv_capacity))


@dataclass(frozen=True, slots=True)
class Shortage:
    """Bytes that a start lacks on a node; nothing is lacking where they are not positive."""

    kv_bytes: int
    weights_bytes: int
    device_bytes: int = 0
    """For both, on that of the node's devices which lacks the least."""
    own_bytes: int = 0
    """For the instance itself."""
    instances: int = 0
    """Instances above as many as the node takes."""

    @property
    def none(self) -> bool:
        """Whether there is room."""
        of_bytes = max(self.kv_bytes, self.weights_bytes, self.device_bytes, self.own_bytes)
        return max(of_bytes, self.instances) <= 0

    @property
    def text(self) -> str:
        """What is lacking, for people."""
        parts = (
            ("KV cache", self.kv_bytes),
            ("weights", self.weights_bytes),
            ("weights and KV cache on any one device", self.device_bytes),
            ("the instance itself", self.own_bytes),
        )
        short = [f"{count} bytes short for {what}" for what, count in parts if count > 0]
        if self.instances > 0:
            short.append("it runs as many instances as it may")
        return ", ".join(short)


def shortage(
    node: NodeView,
    need: Need,
    kv_bytes: int,
    stopped: frozenset[str] = frozenset(),
) -> Shortage:
    """What an instance for `need` lacks on `node` once the instances `stopped` are gone.

    Unleased copies are no obstacle: the node evicts them as it needs their room.
    """
    checkpoint, memory = need.checkpoint, _memory_shortage(node, need, stopped)
    if node.facts.devices:
        key = node.key_here(checkpoint.key)
        wanted = device_room.Wanted(key, checkpoint.size_bytes, kv_bytes)
        return Shortage(0, 0, device_room.lacking(node, wanted, stopped), *memory)
    kv_freed = sum(one.kv_bytes for one in node.present if one.instance_id in stopped)
    held = node.weights_held_without(stopped) if stopped else node.weights_held
    same = Held(node.key_here(checkpoint.key), need.made_for)
    others = sum(size for key, size in held.items() if key != same)
    return Shortage(
        kv_bytes=node.kv_held - kv_freed + kv_bytes - node.facts.kv_capacity,
        weights_bytes=others + need.pool_bytes - node.weights_capacity,
        own_bytes=memory.own_bytes,
        instances=memory.instances,
    )


class _MemoryShortage(NamedTuple):
    own_bytes: int
    instances: int


def _memory_shortage(node: NodeView, need: Need, stopped: frozenset[str]) -> _MemoryShortage:
    memory = node.facts.memory
    if memory is None:
        return _MemoryShortage(0, 0)
    ending = [one for one in node.present if one.instance_id in stopped]
    staying = node.own_held - sum(map(node.own_bytes, ending))
    needed = node.own_expected(_kind(node, need), need.private_bytes)
    count = len(node.present) - len(ending) + 1
    return _MemoryShortage(
        own_bytes=staying + needed - memory.capacity_bytes,
        instances=count - memory.max_instances if memory.max_instances else 0,
    )


def make(
    node: NodeView,
    need: Need,
    kv_bytes: int,
    instances: Sequence[Instance],
    gone: frozenset[str] = frozenset(),
) -> tuple[str, ...] | None:
    """The instances to end so that there is room, those that come first in `instances` first.

    `gone` are on their way out anyhow. None: not even all of them would do.
    """
    chosen = [one.instance_id for one in instances]
    if not shortage(node, need, kv_bytes, gone.union(chosen)).none:
        return None
    # All of them would do. Each is spared if the others do, the last first: none ends in vain.
    for spared in reversed(instances):
        fewer = [key for key in chosen if key != spared.instance_id]
        if shortage(node, need, kv_bytes, gone.union(fewer)).none:
            chosen = fewer
    return tuple(chosen)
