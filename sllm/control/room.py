"""Room on one node: what a start lacks there, and what would have to end for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sllm.control.needs import Checkpoint
from sllm.control.topology import Instance, NodeView


@dataclass(frozen=True, slots=True)
class Shortage:
    """Bytes that a start lacks on a node; nothing is lacking where they are not positive."""

    kv_bytes: int
    weights_bytes: int

    @property
    def none(self) -> bool:
        """Whether there is room."""
        return self.kv_bytes <= 0 and self.weights_bytes <= 0

    @property
    def text(self) -> str:
        """What is lacking, for people."""
        parts = (("KV cache", self.kv_bytes), ("weights", self.weights_bytes))
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
    for spared in reversed(instances):
        fewer = [key for key in chosen if key != spared.instance_id]
        if shortage(node, checkpoint, kv_bytes, gone.union(fewer)).none:
            chosen = fewer
    return tuple(chosen)
