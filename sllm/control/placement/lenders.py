"""Which nodes compute layers for one that reads a model from its disk: a pure choice.

A start reads all weights before its first token; k nodes that read a part of the layers each need
only so much of that time, until the one that is to serve has read the rest (HydraServe, λScale).
Idle nodes that hold the weights as well do so, in the memory that they have free: nothing leaves
for it, and they end it for whatever else they are to do.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import Kind, NodeView
from sllm.control.cluster.snapshot import Typical
from sllm.control.cluster.tiers import Tier
from sllm.control.placement.forms import Taken
from sllm.control.placement.start_estimate import READ, init_seconds, speed, weights_on
from sllm.control.types.givers import Lender, Loan

MOST_LENDERS: Final = 3
"""Each adds two messages to every token."""
LEAST_GAIN: Final = 0.5
"""Seconds. Below, what is saved is little beside what it costs other nodes."""
_IN_MEMORY: Final = 4.0
"""Times as fast as the borrower's disk: what is in a lender's memory takes no reading."""


class _Reader(NamedTuple):
    node: NodeView
    rate: float
    """Bytes per second."""


def loan_for(
    borrower: NodeView,
    nodes: Mapping[str, NodeView],
    need: Need,
    kv_bytes: int,
    typical: Typical,
    closed: Collection[str] = (),
) -> Loan | None:
    """Who computes layers for a start. None: it does better alone.

    Args:
        borrower: where the instance is started.
        nodes: all that are there.
        need: of the instance.
        kv_bytes: of its KV cache; a lender's is as large.
        typical: what the fleet has observed.
        closed: nodes that are given nothing new.
    """
    rate = speed(borrower, READ)
    taken = weights_on(borrower, need, typical)
    if not (need.layered and rate and _reads_all(borrower, need, taken)):
        return None
    others = (one for key, one in nodes.items() if key not in closed and one is not borrower)
    found = [
        reader
        for one in others
        if (reader := _reader(one, borrower, need, kv_bytes, taken, rate, typical))
    ]
    best = sorted(found, key=lambda one: (-one.rate, one.node.node_id))[:MOST_LENDERS]
    return _loan(borrower, best, rate, need, taken, typical) if best else None


def _loan(
    borrower: NodeView,
    lenders: Sequence[_Reader],
    rate: float,
    need: Need,
    taken: Taken,
    typical: Typical,
) -> Loan | None:
    together = rate + sum(one.rate for one in lenders)
    prepare = init_seconds(borrower, need, typical)[0]
    alone, shared = (max(prepare, taken.size_bytes / one) for one in (rate, together))
    if alone - shared < LEAST_GAIN:
        return None
    named = tuple(
        Lender(one.node.node_id, one.node.facts.address, one.rate / together) for one in lenders
    )
    return Loan(named, alone - shared)


def _reads_all(borrower: NodeView, need: Need, taken: Taken) -> bool:
    """Whether a start has all weights on its disk, and none in memory."""
    on_disk, in_memory = (taken.on(borrower, need, tier) for tier in (Tier.SSD, Tier.DRAM))
    on_processors = not borrower.facts.devices
    return on_processors and on_disk is not None and on_disk.whole and in_memory is None


def _reader(
    node: NodeView,
    borrower: NodeView,
    need: Need,
    kv_bytes: int,
    taken: Taken,
    rate: float,
    typical: Typical,
) -> _Reader | None:
    """A node as a lender. None: it is none."""
    if not _is_idle(node, need, kv_bytes) or weights_on(node, need, typical) != taken:
        return None
    theirs, ours = (taken.on(one, need, Tier.SSD) for one in (node, borrower))
    if theirs is None or ours is None or not theirs.whole or theirs.digest != ours.digest:
        return None
    in_memory = taken.on(node, need, Tier.DRAM)
    if in_memory is not None:
        return _Reader(node, _IN_MEMORY * rate) if in_memory.whole else None
    usage, own = node.facts.tiers.get(Tier.DRAM), speed(node, READ)
    is_free = usage is not None and usage.capacity_bytes - usage.used_bytes >= taken.size_bytes
    return _Reader(node, own) if own and is_free else None


def _is_idle(node: NodeView, need: Need, kv_bytes: int) -> bool:
    """Whether it runs nothing, and could run this."""
    if node.present or node.facts.devices or node.facts.leaving or node.engine_wait(need.engine):
        return False
    memory = node.facts.memory
    kind = Kind.of(need.checkpoint.digest, need.engine)
    own = node.own_alone(kind, need.private_bytes) if memory else 0
    return kv_bytes <= node.kv_free and (memory is None or own <= memory.capacity_bytes)
