"""What is done for a demand for which nothing can be started now."""

import itertools
import math
from dataclasses import dataclass

from sllm.control.cluster.instances import InstanceState
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.placement import room
from sllm.control.placement.decisions import Blocked, Demand, Wait
from sllm.control.placement.fitting import lacks_engine
from sllm.control.placement.ranking import Ranking
from sllm.control.placement.start_estimate import need_on
from sllm.control.placement.victims import barred, load, may_drain, yielding

_DRAINS_COMPARED = 32
"""Nodes on which a drain is worked out at most."""


def wait(snapshot: Snapshot, demand: Demand, ranking: Ranking) -> Wait:
    """For what, and what is made ready meanwhile."""
    if demand.waiting and demand.slot_wait < math.inf:
        return Wait(f"a slot is expected in {demand.slot_wait:.1f} s, sooner than from a start")
    # What waiting alone does not help with comes first, each only if nothing before it holds.
    if not ranking.node_ids:
        blocked = _why_none(snapshot, demand.need)
        return Wait(blocked.value, blocked=blocked)
    if demand.failed.issuperset(ranking.node_ids):
        return Wait(Blocked.FAILED.value, blocked=Blocked.FAILED)
    if demand.draining.issuperset(ranking.node_ids):
        return Wait(Blocked.DRAINING.value, blocked=Blocked.DRAINING)
    open_to_it = [node_id for node_id in ranking.node_ids if not barred(demand, node_id)]
    if not open_to_it:
        return Wait("room is being made for older requests")
    if _all_kept(snapshot, open_to_it):
        return Wait(Blocked.KEPT.value, blocked=Blocked.KEPT)
    drain = _best_drain(snapshot, demand, ranking) if demand.impatient else None
    return drain or Wait("every node that is large enough is busy")


def _why_none(snapshot: Snapshot, need: Need) -> Blocked:
    if not snapshot.nodes:
        return Blocked.NO_NODES
    without = all(lacks_engine(node, need) for node in snapshot.nodes.values())
    return Blocked.NO_ENGINE if without else Blocked.TOO_SMALL


def _all_kept(snapshot: Snapshot, node_ids: list[str]) -> bool:
    if not snapshot.protected:
        return False
    present = [one for node_id in node_ids for one in snapshot.nodes[node_id].present]
    return bool(present) and all(one.instance_id in snapshot.protected for one in present)


def _best_drain(snapshot: Snapshot, demand: Demand, ranking: Ranking) -> Wait | None:
    """Makes room where the fewest requests have to end first, of the nearest nodes."""
    near = (one.node_id for one in ranking.best_first() if not barred(demand, one.node_id))
    drains = (_drain(snapshot, demand, snapshot.nodes[node_id]) for node_id in near)
    possible = itertools.islice((one for one in drains if one), _DRAINS_COMPARED)
    best = min(possible, key=lambda drain: drain.requests, default=None)
    if best is None:
        return None
    why = f"room is being made on {best.node_id}, where {best.requests} requests have to end first"
    return Wait(why, best.instances, best.node_id)


@dataclass(frozen=True, slots=True)
class _Drain:
    """What would have to end on one node."""

    node_id: str
    instances: tuple[str, ...]
    requests: int


def _drain(snapshot: Snapshot, demand: Demand, node: NodeView) -> _Drain | None:
    """What has to end on a node: what drains there already, and only then busy instances.

    None: not even all that may be drained would make room.
    """
    # What drains already is counted on first; its requests have to end as well, and so they count.
    draining = [one for one in node.present if one.state is InstanceState.DRAINING]
    first = {one.instance_id for one in draining}
    owed = (one for one in yielding(snapshot, demand, node) if may_drain(snapshot, demand, one))
    busy = sorted(owed, key=lambda one: load(snapshot, one))
    need = need_on(node, demand.need, snapshot.typical)
    chosen = room.make(node, need, room.kv_grant(node, need), [*draining, *busy])
    if chosen is None:
        return None
    present = [snapshot.uses[key] for key in chosen if key in snapshot.uses]
    return _Drain(
        node_id=node.node_id,
        instances=tuple(key for key in chosen if key not in first),
        requests=sum(use.in_flight for use in present),
    )
