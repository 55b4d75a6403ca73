"""Room on the devices of a node: a start needs it for its weights and its KV cache on one of them.

A node reports what each device has given out. What it cannot know yet is reckoned here: instances
that are about to end, and starts that have been decided on and have no device so far.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import Device, NodeView
from sllm.control.cluster.tiers import Tier

_PAGE_BYTES: Final = 2 << 20


@dataclass(slots=True)
class DeviceRoom:
    """What one device has left for starts, and which checkpoints are in use there."""

    free: int
    """Bytes for weights and KV caches. What is idle counts as free: it goes when need be."""
    kv_free: int
    """Of these, what KV caches may take at most."""
    held: set[str] = field(default_factory=set)
    """Keys of checkpoints."""

    def lacking(self, wanted: "Wanted") -> int:
        """Bytes that a start lacks. Not positive: there is room."""
        return max(self._to_take(wanted) - self.free, wanted.kv_bytes - self.kv_free)

    def take(self, wanted: "Wanted") -> None:
        """Gives a start what it needs."""
        self.free -= self._to_take(wanted)
        self.kv_free -= wanted.kv_bytes
        self.held.add(wanted.key)

    def _to_take(self, wanted: "Wanted") -> int:
        weights = 0 if wanted.key in self.held else in_pages(wanted.size_bytes)
        return weights + wanted.kv_bytes


class Wanted(NamedTuple):
    """What a start needs."""

    key: str
    """Of its checkpoint, on this node."""
    size_bytes: int
    """Of its weights."""
    kv_bytes: int


def rooms(node: NodeView, stopped: frozenset[str] = frozenset()) -> list[DeviceRoom]:
    """What each device will have left once the instances `stopped`, and those leaving, are gone."""
    gone = stopped | node.leaving
    staying = [one for one in node.instances.values() if one.instance_id not in gone]
    ending = [one for one in node.instances.values() if one.instance_id in gone]
    found = [_room(node, device, staying, ending) for device in node.facts.devices]
    for key, plan in node.planned.items():
        reported = node.instances.get(key)
        # Once its device is reported, its room is among what that device reports as given out.
        if key not in gone and (reported is None or reported.device is None):
            checkpoint = node.key_here(plan.checkpoint)
            _give(found, Wanted(checkpoint, plan.size_bytes, plan.instance.kv_bytes))
    return found


def _give(found: Sequence[DeviceRoom], wanted: Wanted) -> None:
    """Chooses a device as the node will: where the weights are, or else where most is free."""
    fitting = [one for one in found if one.lacking(wanted) <= 0] or found
    max(fitting, key=lambda one: (wanted.key in one.held, one.free)).take(wanted)


def in_pages(size_bytes: int) -> int:
    """What weights of this size take of a device: whole pages."""
    return -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES


def lacking(node: NodeView, wanted: Wanted, stopped: frozenset[str]) -> int:
    """Bytes that a start lacks on the device that lacks the least. Not positive: there is room.

    What earlier starts were promised beyond what there is counts as lacking, too.
    """
    found = rooms(node, stopped)
    overdrawn = max(-room.free for room in found)
    return max(overdrawn, min(room.lacking(wanted) for room in found))


def _room(
    node: NodeView, device: Device, staying: Iterable[Instance], ending: Iterable[Instance]
) -> DeviceRoom:
    here = [one for one in ending if one.device == device.index]
    held = {_key(node, one) for one in staying if one.device == device.index}
    released = {_key(node, one) for one in here} - held
    kv_bytes = sum(one.kv_bytes for one in here)
    weights = sum(_size(node, key) for key in released)
    # Idle weights go when a start asks for their room; what is reserved belongs to starts whose
    # weights are not there yet.
    taken = device.weights_used_bytes - device.idle_bytes + device.reserved_bytes
    free = device.weights_capacity_bytes - taken - device.kv_used_bytes
    return DeviceRoom(
        free=free + kv_bytes + weights,
        kv_free=device.kv_capacity_bytes - device.kv_used_bytes + kv_bytes,
        held=held,
    )


def _key(node: NodeView, instance: Instance) -> str:
    """Key of the checkpoint of an instance; one that starts tells none, but its plan does."""
    plan = node.planned.get(instance.instance_id)
    return instance.digest or (node.key_here(plan.checkpoint) if plan else "")


def _size(node: NodeView, key: str) -> int:
    copy = node.copies.get((key, Tier.DEVICE))
    return in_pages(copy.size_bytes) if copy else 0
