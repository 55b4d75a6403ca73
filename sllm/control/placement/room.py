"""Room on one node: what a start lacks there, and what would have to end for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.placement import device_room

_UNBOUNDED: Final = 1 << 62


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


def free(node: NodeView) -> Bounds:
    """What no present instance holds, on the device with most of that; idle copies are free."""
    if not node.facts.devices:
        return Bounds(node.weights_free, node.kv_free, _UNBOUNDED)
    found = device_room.rooms(node)
    most = max(one.free for one in found)
    return Bounds(most, max(min(one.kv_free, one.free) for one in found), most)


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

    @property
    def none(self) -> bool:
        """Whether there is room."""
        return max(self.kv_bytes, self.weights_bytes, self.device_bytes) <= 0

    @property
    def text(self) -> str:
        """What is lacking, for people."""
        parts = (
            ("KV cache", self.kv_bytes),
            ("weights", self.weights_bytes),
            ("weights and KV cache on any one device", self.device_bytes),
        )
        return ", ".join(f"{count} bytes short for {what}" for what, count in parts if count > 0)


def shortage(
    node: NodeView,
    checkpoint: Checkpoint,
    kv_bytes: int,
    stopped: frozenset[str] = frozenset(),
) -> Shortage:
    """What an instance of `checkpoint` lacks on `node` once the instances `stopped` are gone.

    Unleased copies are no obstacle: the node evicts them as it needs their room.
    """
    if node.facts.devices:
        key = node.key_here(checkpoint.key)
        wanted = device_room.Wanted(key, checkpoint.size_bytes, kv_bytes)
        return Shortage(0, 0, device_room.lacking(node, wanted, stopped))
    kv_freed = sum(one.kv_bytes for one in node.present if one.instance_id in stopped)
    held = node.weights_held_without(stopped) if stopped else node.weights_held
    others = sum(size for key, size in held.items() if key != checkpoint.key)
    return Shortage(
        kv_bytes=node.kv_held - kv_freed + kv_bytes - node.facts.kv_capacity,
        weights_bytes=others + checkpoint.size_bytes - node.weights_capacity,
    )


def make(
    node: NodeView,
    checkpoint: Checkpoint,
    kv_bytes: int,
    instances: Sequence[Instance],
    gone: frozenset[str] = frozenset(),
) -> tuple[str, ...] | None:
    """The instances to end so that there is room, those that come first in `instances` first.

    `gone` are on their way out anyhow. None: not even all of them would do.
    """
    chosen = [one.instance_id for one in instances]
    if not shortage(node, checkpoint, kv_bytes, gone.union(chosen)).none:
        return None
    # All of them would do. Each is spared if the others do, the last first: none ends in vain.
    for spared in reversed(instances):
        fewer = [key for key in chosen if key != spared.instance_id]
        if shortage(node, checkpoint, kv_bytes, gone.union(fewer)).none:
            chosen = fewer
    return tuple(chosen)
