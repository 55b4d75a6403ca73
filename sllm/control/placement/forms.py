"""Which form of a checkpoint a start on a node would take, as the node itself chooses.

See `ReadyMade.soonest` in sllm/node/store/ready_made.py: whichever serves sooner.
"""

import math
from dataclasses import replace
from typing import NamedTuple

from sllm.control.cluster.init_times import InitKey, InitTime
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Typical
from sllm.control.cluster.tiers import Copy, Tier


class Taken(NamedTuple):
    """The weights that a start is expected to take."""

    size_bytes: int
    """Of all of them; those that were made ready have another size than those published."""
    made_for: str = ""
    """What they were made ready for. Empty: they are as published."""
    private_bytes: int | None = None
    """Memory that an instance over them takes for copies of its own, as measured on the node. None:
    it was not, or they are as published."""

    @property
    def ready_made(self) -> bool:
        """Whether they were made ready for the engine."""
        return bool(self.made_for)

    def on(self, node: NodeView, need: Need, tier: Tier) -> Copy | None:
        """The node's copy of them on one tier."""
        return node.copies.find(digest_on(node, need), tier, self.made_for)


def digest_on(node: NodeView, need: Need) -> str:
    """Digest of what is published, as far as it is known."""
    return need.checkpoint.digest or node.key_here(need.checkpoint.source)


def taken_on(node: NodeView, need: Need, read_seconds_per_byte: float, typical: Typical) -> Taken:
    """What a start on a node would take.

    Args:
        node: which one.
        need: of the model.
        read_seconds_per_byte: of the way from its SSD to its pool. Infinite: nobody knows.
        typical: what the fleet has observed.
    """
    published = Taken(need.checkpoint.size_bytes)
    digest, label = digest_on(node, need), need.form_label
    in_pool = node.copies.find(digest, Tier.DRAM, label)
    on_disk = node.copies.find(digest, Tier.SSD, label)
    made = in_pool or on_disk
    if made is None or need.on_disk or made.size_bytes > node.weights_capacity:
        return published
    ready = Taken(made.size_bytes, label, node.copied_over(digest, label))
    if in_pool or published.on(node, need, Tier.DRAM) is None:
        return ready
    seen = init_seen(node, need, typical, ready_made=False)
    reading = ready.size_bytes * read_seconds_per_byte
    pays = reading <= (seen.attach if seen else 0.0)
    return ready if pays and ready.size_bytes <= _free(node) else published


def need_over(taken: Taken, need: Need) -> Need:
    """What a start needs of a node where it takes these weights.

    Until it was measured there what it copies, that is foretold as of what is published.
    """
    if not taken.ready_made:
        return need
    copied = taken.private_bytes
    return replace(
        need,
        checkpoint=replace(need.checkpoint, size_bytes=taken.size_bytes),
        private_bytes=need.private_bytes if copied is None else copied,
        made_for=taken.made_for,
        over_ready=copied is not None,
    )


def init_seen(node: NodeView, need: Need, typical: Typical, *, ready_made: bool) -> InitTime | None:
    """What starts over one form of a checkpoint took, on the node or else in the fleet."""
    key = InitKey(need.checkpoint.digest, need.engine, ready_made)
    return node.facts.init_times.by_model.get(key) or typical.init_times.by_model.get(key)


def _free(node: NodeView) -> float:
    usage = node.facts.tiers.get(Tier.DRAM)
    return usage.capacity_bytes - usage.used_bytes if usage else math.inf
