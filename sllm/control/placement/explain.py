"""Placement's decisions in words and numbers: a pure function of a decision."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Checkpoint, Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.tiers import Tier
from sllm.control.placement.decisions import Candidate, MigrateThenStart, Reuse, Start
from sllm.control.placement.placement import Decision
from sllm.control.placement.start_estimate import start_estimate
from sllm.control.types.operations import ActionKind, EstimateParts, ExplainedNode, Explanation

_SAME_SECONDS: Final = 0.0005
"""Estimates that differ by less are called the same."""
_APART: Final = "has fewer instances of it"
_HOLDING: Final = {
    Tier.DEVICE: "its device holds the weights",
    Tier.DRAM: "its DRAM holds the weights",
    Tier.SSD: "it has the weights on SSD",
    Tier.REMOTE: "it has to fetch the weights from their source",
}


class Coming(NamedTuple):
    """An instance that a request would wait for, rather than for a new one."""

    instance: Instance
    seconds: float | None
    """Until it has a slot, if that is known."""


class _Choice(NamedTuple):
    """What would be done."""

    kind: ActionKind
    node_id: str
    instance_id: str
    estimate: float | None


def explain(decision: Decision, coming: Coming | None = None, full: str = "") -> Explanation:
    """Says what a decision is, and how every node compares.

    Args:
        decision: For one more request.
        coming: An instance on its way that will have a slot for it.
        full: Why no instance would be added, if none would.
    """
    choice = _choice(decision, coming, full)
    nodes = [_explained(decision, one) for one in decision.candidates]
    chosen = next((one for one in nodes if one.node_id == choice.node_id), None)
    judged = [replace(one, verdict=_verdict(decision, choice, chosen, one)) for one in nodes]
    ordered = sorted(judged, key=lambda one: _order(choice, one))
    return Explanation(
        kind=choice.kind,
        node_id=choice.node_id,
        instance_id=choice.instance_id,
        estimate=choice.estimate,
        why=_why(decision, choice, chosen, ordered, full),
        candidates=tuple(ordered),
        engine=decision.demand.need.engine,
    )


def _choice(decision: Decision, coming: Coming | None, full: str) -> _Choice:
    action = decision.action
    if isinstance(action, Reuse):
        instance = action.instance
        return _Choice(ActionKind.REUSE, instance.node_id, instance.instance_id, 0.0)
    if coming:
        instance = coming.instance
        return _Choice(ActionKind.JOIN, instance.node_id, instance.instance_id, coming.seconds)
    if isinstance(action, Start | MigrateThenStart) and not full:
        migrates = isinstance(action, MigrateThenStart)
        kind = ActionKind.MIGRATE_THEN_START if migrates else ActionKind.START
        return _Choice(kind, action.node_id, "", action.estimate)
    return _Choice(ActionKind.WAIT, "", "", None)


# --- one node ---------------------------------------------------------------------------------


def _explained(decision: Decision, candidate: Candidate) -> ExplainedNode:
    node, need = decision.snapshot.nodes[candidate.node_id], decision.demand.need
    return ExplainedNode(
        node_id=candidate.node_id,
        from_tier=_held_on(node, need),
        estimate=candidate.estimate,
        parts=_parts(decision.snapshot, node, need, candidate),
        victims=candidate.victims,
        migrated=tuple(move.instance_id for move in candidate.moves),
        evicted_bytes=_evicted(node, need.checkpoint),
        rejected=(candidate.rejected or "").replace(f"{candidate.node_id}: ", ""),
    )


def _held_on(node: NodeView, need: Need) -> Tier:
    """The highest tier that has all of it, in a form that the engine takes."""
    checkpoint = need.checkpoint
    copies = [
        copy
        for copy in node.copies.values()
        if (checkpoint.key == copy.serves and copy.made_for in ("", need.engine))
        or checkpoint.source in copy.sources
    ]
    return max((copy.tier for copy in copies if copy.whole), default=Tier.REMOTE)


def _parts(
    snapshot: Snapshot, node: NodeView, need: Need, candidate: Candidate
) -> EstimateParts | None:
    start = start_estimate(node, need, snapshot.typical)
    if candidate.estimate is None or math.isinf(start.seconds):
        return None
    making_room = max(0.0, candidate.estimate - start.seconds)
    return EstimateParts(making_room, start.queue, start.transfer, start.init)


def _evicted(node: NodeView, checkpoint: Checkpoint) -> int:
    """Bytes that the tier of the weights lacks, and that idle checkpoints have to give."""
    usage = node.facts.tiers.get(node.weights_tier)
    if usage is None:
        return 0
    there = sum(
        copy.resident_bytes
        for copy in node.copies_of(checkpoint.digest)
        if copy.tier is node.weights_tier
    )
    free = usage.capacity_bytes - usage.used_bytes
    return min(usage.used_bytes, max(0, checkpoint.size_bytes - there - free))


# --- in words ---------------------------------------------------------------------------------


def _order(choice: _Choice, one: ExplainedNode) -> tuple[bool, bool, float, str]:
    estimate = math.inf if one.estimate is None else one.estimate
    return one.node_id != choice.node_id, bool(one.rejected), estimate, one.node_id


def _verdict(
    decision: Decision, choice: _Choice, chosen: ExplainedNode | None, one: ExplainedNode
) -> str:
    if one.node_id == choice.node_id:
        return _of_chosen(choice, one)
    if one.rejected:
        return one.rejected
    if one.estimate is None:
        return _unknown(decision, choice, chosen, one)
    if choice.kind is ActionKind.WAIT or chosen is None:
        return f"could be ready in {_seconds(one.estimate)}: {_HOLDING[one.from_tier]}"
    if choice.kind in (ActionKind.REUSE, ActionKind.JOIN):
        return f"a new instance would take {_seconds(one.estimate)}"
    return _later(decision, chosen, one, one.estimate)


def _unknown(
    decision: Decision, choice: _Choice, chosen: ExplainedNode | None, one: ExplainedNode
) -> str:
    """A node that cannot be compared by its estimate."""
    unknown = "nobody knows yet how long a start takes there"
    if chosen is None or chosen.estimate is not None or choice.kind is not ActionKind.START:
        return unknown
    return f"{unknown}; {chosen.node_id} {_preferred(decision, chosen, one)}"


def _of_chosen(choice: _Choice, one: ExplainedNode) -> str:
    match choice.kind:
        case ActionKind.REUSE:
            return "chosen: a ready instance there has a free slot"
        case ActionKind.JOIN:
            return "chosen: an instance is starting there that will have a free slot"
    return f"chosen: {_HOLDING[one.from_tier]}{_first(one)}"


def _first(one: ExplainedNode) -> str:
    """What has to happen on a node first."""
    parts = [
        _counted(one.victims, "an idle instance ends", "idle instances end"),
        _counted(one.migrated, "a running instance moves", "running instances move"),
        "idle checkpoints are evicted" if one.evicted_bytes else "",
    ]
    named = " and ".join(part for part in parts if part)
    return f"; {named} first" if named else ""


def _counted(things: Sequence[str], one: str, many: str) -> str:
    if not things:
        return ""
    return one if len(things) == 1 else f"{len(things)} {many}"


def _later(decision: Decision, chosen: ExplainedNode, one: ExplainedNode, estimate: float) -> str:
    apart = _is_apart(decision, chosen, one)
    if apart and estimate < (math.inf if chosen.estimate is None else chosen.estimate):
        return f"sooner, but {chosen.node_id} {_APART}"
    if chosen.estimate is None or estimate - chosen.estimate < _SAME_SECONDS:
        return f"no sooner than {chosen.node_id}, which {_preferred(decision, chosen, one)}"
    longer = _longer(chosen.parts, one.parts)
    because = f": {longer}" if longer else f": {_HOLDING[one.from_tier]}"
    return f"{_seconds(estimate - chosen.estimate)} later than {chosen.node_id}{because}"


def _preferred(decision: Decision, chosen: ExplainedNode, one: ExplainedNode) -> str:
    """What decides between estimates that are the same; see `ranking.Rank`."""
    if _is_apart(decision, chosen, one):
        return _APART
    if chosen.from_tier > one.from_tier:
        return "holds more of the weights"
    if len(chosen.victims) < len(one.victims):
        return "has more room"
    nodes = decision.snapshot.nodes
    if nodes[chosen.node_id].kv_free > nodes[one.node_id].kv_free:
        return "has more memory free for KV cache"
    return "comes first by its name"


def _is_apart(decision: Decision, chosen: ExplainedNode, one: ExplainedNode) -> bool:
    """Whether the chosen node has fewer instances of the deployment; see `placement`."""
    present = decision.snapshot.instances.get(decision.demand.need.deployment, ())
    nodes = [instance.node_id for instance in present]
    return nodes.count(chosen.node_id) < nodes.count(one.node_id)


def _longer(chosen: EstimateParts | None, other: EstimateParts | None) -> str:
    """The parts that take longer than on the chosen node."""
    if chosen is None or other is None:
        return ""
    named = (
        ("making room", chosen.making_room, other.making_room),
        ("the queue", chosen.queue, other.queue),
        ("the transfer", chosen.transfer, other.transfer),
        ("init", chosen.init, other.init),
    )
    return ", ".join(
        f"{name} takes {_seconds(there)}, not {_seconds(here)}"
        for name, here, there in named
        if there - here >= _SAME_SECONDS
    )


def _why(
    decision: Decision,
    choice: _Choice,
    chosen: ExplainedNode | None,
    nodes: Sequence[ExplainedNode],
    full: str,
) -> str:
    match choice.kind:
        case ActionKind.REUSE:
            return f"{choice.instance_id} on {choice.node_id} is ready and has a free slot"
        case ActionKind.JOIN:
            soon = "" if choice.estimate is None else f", in about {_seconds(choice.estimate)}"
            return f"{choice.instance_id} on {choice.node_id} is on its way{soon}"
        case ActionKind.WAIT:
            return full or getattr(decision.action, "why", "")
    assert chosen is not None
    if choice.estimate is None:
        first = f"{chosen.node_id} is tried first, as nobody knows yet how long a start takes"
    else:
        first = f"{chosen.node_id} {_lead(decision, chosen, nodes)} {_seconds(choice.estimate)}"
    return f"{first}: {_HOLDING[chosen.from_tier]}{_rest(nodes)}"


def _lead(decision: Decision, chosen: ExplainedNode, nodes: Sequence[ExplainedNode]) -> str:
    others = (one for one in nodes if not one.rejected and _is_apart(decision, chosen, one))
    return f"{_APART}, and is ready in" if any(others) else "is ready soonest, in"


def _rest(nodes: Sequence[ExplainedNode]) -> str:
    rejected = sum(bool(one.rejected) for one in nodes[1:])
    others = len(nodes) - 1 - rejected
    parts = [
        f"{others} would be no sooner" if others else "",
        f"{rejected} cannot take it" if rejected else "",
    ]
    named = ", ".join(part for part in parts if part)
    return f"; of the other nodes {named}" if named else "; there is no other node"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
