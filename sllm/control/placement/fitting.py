"""Whether a node could serve a model at all, if it were empty."""

import itertools
import math
from collections.abc import Sequence

from sllm import errors
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.placement import room
from sllm.control.placement.start_estimate import need_on

_SHOWN = 8
"""Nodes that an error names at most."""


def check_fits(snapshot: Snapshot, need: Need) -> None:
    """Refuses a model that no node could serve, even when empty.

    Raises:
        errors.EngineUnavailable: None has its engine.
        errors.ModelTooLarge: Each that has it is too small; with the numbers.
    """
    nodes = snapshot.nodes.values()
    if nodes and all(lacks_engine(node, need) for node in nodes):
        raise errors.EngineUnavailable(
            f"{need.deployment} is to run on {need.engine}, which no node has; start a node that "
            "has it, or name another engine"
        )
    if nodes and all(_unfit_there(snapshot, node, need) for node in nodes):
        raise too_large(snapshot, need)


def too_large(snapshot: Snapshot, need: Need) -> errors.ModelTooLarge:
    """The refusal of a model that is too large for each node, with the numbers."""
    nodes = snapshot.nodes.values()
    reasons = sorted(str(_unfit_there(snapshot, node, need)) for node in nodes)
    return errors.ModelTooLarge(f"{need.deployment} fits no node: {'; '.join(reasons[:_SHOWN])}")


def most_instances(snapshot: Snapshot, need: Need) -> Sequence[float]:
    """How many instances each node would have room for if it were empty, the most first."""
    found = (
        room.most_instances(node, there)
        for node in snapshot.nodes.values()
        if not unfit(node, there := need_on(node, need, snapshot.typical))
    )
    return sorted(found, reverse=True)


def least_nodes(snapshot: Snapshot, need: Need, instances: int) -> int:
    """On how many nodes so many instances are at least; those that are lacking are like the best.

    One, where no node would do, or none is there: nobody knows better.
    """
    each = most_instances(snapshot, need)
    for count, most in enumerate(itertools.accumulate(each), start=1):
        if most >= instances:
            return count
    return len(each) + math.ceil((instances - sum(each)) / each[0]) if each else 1


def check_replicas(snapshot: Snapshot, need: Need, instances: int) -> str:
    """Why the nodes that are there could never have so many instances. Empty: they could.

    That is no reason to refuse them: nodes may come.
    """
    most = sum(most_instances(snapshot, need)) if snapshot.nodes and instances > 1 else math.inf
    if most >= instances:
        return ""
    return (
        f"min_replicas is {instances}, and the {len(snapshot.nodes)} nodes there are would have "
        f"room for {most:g} instances if they ran nothing else: add nodes, or lower it"
    )


def _unfit_there(snapshot: Snapshot, node: NodeView, need: Need) -> str | None:
    return unfit(node, need_on(node, need, snapshot.typical))


def unfit(node: NodeView, need: Need) -> str | None:
    """Why not even the empty node would do, for what a start there needs."""
    return lacks_engine(node, need) or lacks_devices(node, need) or room.too_small(node, need)


def lacks_devices(node: NodeView, need: Need) -> str | None:
    """Why the node cannot run the model, if it has an instance run on fewer devices, or on any."""
    if need.on_disk and node.facts.devices:
        return f"{node.node_id}: has accelerators, where experts are not read as they are used"
    if need.tensor_parallel <= node.facts.max_tensor_parallel:
        return None
    return (
        f"{node.node_id}: tensor_parallel is {need.tensor_parallel}, and "
        f"{node.facts.max_tensor_parallel} of its devices may run an instance together"
    )


def lacks_engine(node: NodeView, need: Need) -> str | None:
    """Why the node cannot run the model, if it does not have its engine."""
    if math.isfinite(node.engine_wait(need.engine)):
        return None
    return f"{node.node_id}: does not have the engine {need.engine}"
