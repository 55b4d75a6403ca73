"""Placement's decisions in words and numbers: a pure function of a decision."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from sllm.control.cluster.instances import Instance
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot, Typical
from sllm.control.cluster.tiers import Tier
from sllm.control.placement.decisions import Candidate, Demand, MigrateThenStart, Reuse, Start
from sllm.control.placement.forms import Taken, need_over
from sllm.control.placement.lenders import loan_for
from sllm.control.placement.placement import Decision
from sllm.control.placement.start_estimate import start_estimate, way_of_fetch, weights_on
from sllm.control.types.operations import ActionKind, EstimateParts, ExplainedNode, Explanation

_SAME_SECONDS: Final = 0.0005
"""Estimates that differ by less are called the same."""
_HEIGHT: Final = (Tier.REMOTE, Tier.PEER, Tier.SSD, Tier.DRAM, Tier.DEVICE)
"""Tiers, each nearer to the kernels than the one before."""
_APART: Final = "has fewer instances of it"
_HOLDING: Final = {
    Tier.DEVICE: "its device holds the weights",
    Tier.DRAM: "its DRAM holds the weights",
    Tier.SSD: "it has the weights on SSD",
    Tier.REMOTE: "it has to fetch the weights from their source",
    Tier.PEER: "it has to fetch the weights from other nodes",
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
    """Seconds until the request begins. None: nobody knows, or nothing is done."""


def explain(
    decision: Decision, coming: Coming | None = None, full: str = "", *, lends: bool = False
) -> Explanation:
    """Says what a decision is, and how every node compares.

    Args:
        decision: For one more request.
        coming: An instance on its way that will have a slot for it.
        full: Why no instance would be added, if none would.
        lends: Whether idle nodes compute layers for one that starts.
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
        why=_why(decision, choice, chosen, ordered, full) + _lent(decision, lends and not full),
        candidates=tuple(ordered),
        engine=decision.demand.need.engine,
    )


def _choice(decision: Decision, coming: Coming | None, full: str) -> _Choice:
    action = decision.action
    if isinstance(action, Reuse):
        instance = action.instance
        return _Choice(ActionKind.REUSE, instance.node_id, instance.instance_id, action.distance)
    if coming:
        instance = coming.instance
        return _Choice(ActionKind.JOIN, instance.node_id, instance.instance_id, coming.seconds)
    if isinstance(action, Start | MigrateThenStart) and not full:
        migrates = isinstance(action, MigrateThenStart)
        kind = ActionKind.MIGRATE_THEN_START if migrates else ActionKind.START
        estimate = action.estimate + action.distance if action.estimate is not None else None
        return _Choice(kind, action.node_id, "", estimate)
    return _Choice(ActionKind.WAIT, "", "", None)


# --- one node ---------------------------------------------------------------------------------


def _explained(decision: Decision, candidate: Candidate) -> ExplainedNode:
    node, need = decision.snapshot.nodes[candidate.node_id], decision.demand.need
    taken = weights_on(node, need, decision.snapshot.typical)
    return ExplainedNode(
        node_id=candidate.node_id,
        from_tier=_held_on(node, need, taken, decision.snapshot.typical),
        ready_made=taken.ready_made,
        estimate=candidate.estimate,
        parts=_parts(decision.snapshot, node, decision.demand, candidate),
        victims=candidate.victims,
        migrated=tuple(move.instance_id for move in candidate.moves),
        evicted_bytes=_evicted(node, need, taken),
        rejected=(candidate.rejected or "").replace(f"{candidate.node_id}: ", ""),
        fetch_way=way_of_fetch(node, need.checkpoint, decision.snapshot.typical) or 0.0,
    )


def _held_on(node: NodeView, need: Need, taken: Taken, typical: Typical) -> Tier:
    """The highest tier that has all of what a start would take."""
    elsewhere = way_of_fetch(node, need.checkpoint, typical) is not None
    copies = [copy for tier in Tier if (copy := taken.on(node, need, tier))]
    far = Tier.PEER if elsewhere else Tier.REMOTE
    return max((copy.tier for copy in copies if copy.whole), default=far)


def _holding(one: ExplainedNode) -> str:
    """Where a node has the weights, in which form, and how far it is to who has them instead."""
    form = ", made ready" if one.ready_made else ""
    way = f", the way to which costs {_seconds(one.fetch_way)}" if one.fetch_way else ""
    return f"{_HOLDING[one.from_tier]}{form}{way if one.from_tier is Tier.PEER else ''}"


def _parts(
    snapshot: Snapshot, node: NodeView, demand: Demand, candidate: Candidate
) -> EstimateParts | None:
    start = start_estimate(node, demand.need, snapshot.typical)
    if candidate.estimate is None or math.isinf(start.seconds):
        return None
    return EstimateParts(
        max(0.0, candidate.estimate - start.seconds - candidate.distance),
        start.queue,
        start.transfer,
        start.init,
        distance=demand.origins.seconds(node.facts.zone),
        saved=demand.kept.get(node.node_id, 0.0),
    )


def _evicted(node: NodeView, need: Need, taken: Taken) -> int:
    """Bytes that the tier of the weights lacks, and that idle checkpoints have to give."""
    usage = node.facts.tiers.get(node.weights_tier)
    if usage is None:
        return 0
    copy = taken.on(node, need, node.weights_tier)
    missing = need_over(taken, need).pool_bytes - (copy.resident_bytes if copy else 0)
    free = usage.capacity_bytes - usage.used_bytes
    return min(usage.used_bytes, max(0, missing - free))


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
        return f"could be ready in {_seconds(one.estimate)}: {_holding(one)}"
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
    return f"chosen: {_holding(one)}{_kept(one)}{_first(one)}"


def _kept(one: ExplainedNode) -> str:
    """What a node saves those who wait."""
    saved = one.parts.saved if one.parts else 0.0
    return f", and keeps {_seconds(saved)} of computing the prompt" if saved else ""


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
    because = f": {longer}" if longer else f": {_holding(one)}"
    return f"{_seconds(estimate - chosen.estimate)} later than {chosen.node_id}{because}"


def _preferred(decision: Decision, chosen: ExplainedNode, one: ExplainedNode) -> str:
    """What decides between estimates that are the same; see `ranking.Rank`."""
    if _is_apart(decision, chosen, one):
        return _APART
    if _HEIGHT.index(chosen.from_tier) > _HEIGHT.index(one.from_tier):
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
        ("the way there", chosen.distance, other.distance),
    )
    longer = [
        f"{name} takes {_seconds(there)}, not {_seconds(here)}"
        for name, here, there in named
        if there - here >= _SAME_SECONDS
    ]
    if chosen.saved - other.saved >= _SAME_SECONDS:
        kept = f"what it keeps of the prompt saves {_seconds(other.saved)}"
        longer.append(f"{kept}, not {_seconds(chosen.saved)}")
    return ", ".join(longer)


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
    return f"{first}: {_holding(chosen)}{_rest(nodes)}"


def _lent(decision: Decision, lends: bool) -> str:
    action, snapshot, demand = decision.action, decision.snapshot, decision.demand
    if not (lends and isinstance(action, Start)):
        return ""
    borrower, closed = snapshot.nodes[action.node_id], demand.draining
    named = (borrower, snapshot.nodes, demand.need, action.kv_bytes, snapshot.typical, closed)
    loan = loan_for(*named)
    if loan is None:
        return ""
    nodes = ", ".join(one.node_id for one in loan.lenders)
    sooner = f"the first token is expected {_seconds(loan.gain)} sooner"
    return f"; layers are computed on {nodes} until their weights are there: {sooner}"


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
