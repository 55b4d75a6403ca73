"""Where a request is served: a pure function of an immutable snapshot.

The nearest weights win: of all nodes that are large enough and have room, or can make room by
ending idle instances, the one with the lowest estimate is taken; or one where running instances
are migrated away first, if the start is ready sooner all the same. A demand that finds no room
waits; once its patience has ended, busy instances of other deployments are named to be drained,
so that first come, first served holds over all models. Instances of one deployment are spread.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from sllm import errors
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.usage import Use
from sllm.control.placement import room
from sllm.control.placement.decisions import (
    Action,
    Blocked,
    Candidate,
    Demand,
    MigrateThenStart,
    Reuse,
    Start,
    Wait,
)
from sllm.control.placement.fitting import lacks_devices, lacks_engine, too_large
from sllm.control.placement.ranking import Rank, Ranking
from sllm.control.placement.relocation import Relief, Relocations
from sllm.control.placement.start_estimate import start_seconds
from sllm.control.placement.victims import barred, idle_victims, yielding

SPREAD_SECONDS = 5.0
"""A start that requests wait for may take so much longer, to be on a node of its own."""
_RELIEFS_COMPARED = 16
"""Nodes on which migrations are worked out at most."""
_DRAINS_COMPARED = 32
"""Nodes on which a drain is worked out at most."""


@dataclass(frozen=True)
class Decision:
    """What to do, with what it was decided from, so that it can be explained and replayed."""

    action: Action
    snapshot: Snapshot
    demand: Demand

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every node with its estimate or the reason why it was rejected, in order of id."""
        nodes = self.snapshot.nodes
        return tuple(_explain(self.snapshot, self.demand, nodes[key]) for key in sorted(nodes))


def place(snapshot: Snapshot, demand: Demand) -> Decision:
    """Decides where `demand` is met. The same arguments always give the same decision."""
    action: Action | None = _reuse(snapshot, demand)
    if action is None:
        ranking = Ranking(snapshot, demand.need)
        action = _spread(snapshot, demand, ranking, _start(snapshot, demand, ranking))
        if action is None or _is_slower(action, demand):
            action = _wait(snapshot, demand, ranking)
    return Decision(action, snapshot, demand)


# --- reuse ------------------------------------------------------------------------------------


def free_instance(
    instances: Iterable[Instance], uses: Mapping[str, Use], max_concurrency: int
) -> Instance | None:
    """The least busy ready instance that has a free slot."""
    least: tuple[int, str] | None = None
    chosen = None
    for instance in instances:
        use = uses.get(instance.instance_id)
        if use is None or use.in_flight >= max_concurrency or not _is_ready(instance):
            continue
        rank = (use.in_flight, instance.instance_id)
        if least is None or rank < least:
            least, chosen = rank, instance
    return chosen


def free_slots(instances: Iterable[Instance], uses: Mapping[str, Use], max_concurrency: int) -> int:
    """How many requests ready instances would take at once: others that nobody waits for leave."""
    used = [
        uses[one.instance_id] for one in instances if _is_ready(one) and one.instance_id in uses
    ]
    return sum(max(0, max_concurrency - use.in_flight + use.background) for use in used)


def _is_ready(instance: Instance) -> bool:
    return instance.state is InstanceState.READY


def _reuse(snapshot: Snapshot, demand: Demand) -> Reuse | None:
    if not demand.waiting:
        return None
    present = snapshot.instances.get(demand.need.deployment, ())
    instances = [one for one in present if one.instance_id not in snapshot.outdated]
    chosen = free_instance(instances, snapshot.uses, demand.need.max_concurrency)
    return Reuse(chosen) if chosen else None


# --- start ------------------------------------------------------------------------------------


def _start(snapshot: Snapshot, demand: Demand, ranking: Ranking) -> Start | MigrateThenStart | None:
    """The node where it is ready soonest, of those that have room or can make it."""
    best: Start | MigrateThenStart | None = None
    reliefs = 0
    for rank in ranking.best_first():
        # A rank's estimate leaves making room aside: none of the others can be sooner.
        if best and _seconds(best) <= rank.seconds:
            break
        if barred(demand, rank.node_id) or not _may_have_room(snapshot, demand, rank):
            continue
        node = snapshot.nodes[rank.node_id]
        found: Start | MigrateThenStart | None = _here(snapshot, demand, node, rank.seconds)
        # Where something has to end, moving busy instances may be sooner. Working that out is dear
        # (every set of instances, and a place for each of them), hence the bound.
        if demand.may_migrate and reliefs < _RELIEFS_COMPARED and not _is_free(found):
            reliefs += 1
            relief = Relocations(snapshot, demand).relieve(node)
            found = _sooner(found, _migration(relief, rank.seconds, node, demand.need))
        best = _sooner(best, found)
    return best


def _spread(
    snapshot: Snapshot,
    demand: Demand,
    ranking: Ranking,
    soonest: Start | MigrateThenStart | None,
) -> Start | MigrateThenStart | None:
    """A node with fewer instances of the deployment, if that costs others nothing.

    Two on one node share its processors, and are lost together. Those who wait come first.
    """
    crowd = Counter(one.node_id for one in snapshot.instances.get(demand.need.deployment, ()))
    if soonest is None or not crowd[soonest.node_id]:
        return soonest
    latest = _seconds(soonest) + SPREAD_SECONDS if demand.waiting else math.inf
    best = soonest
    for rank in ranking.best_first():
        if rank.lacks_room or rank.seconds > latest or barred(demand, rank.node_id):
            continue
        if crowd[rank.node_id] < crowd[best.node_id]:
            here = _here(snapshot, demand, snapshot.nodes[rank.node_id], rank.seconds)
            if here and not here.victims and not _is_slower(here, demand):
                best = here
    return best


def _is_free(start: Start | MigrateThenStart | None) -> bool:
    """Whether it ends nothing, so that nothing could be sooner on its node."""
    return start is not None and not start.victims


def _is_slower(start: Start | MigrateThenStart, demand: Demand) -> bool:
    """Whether those who wait are expected to have a slot before an instance could be ready."""
    return demand.waiting > 0 and demand.slot_wait <= _seconds(start) < math.inf


def _sooner(
    one: Start | MigrateThenStart | None, other: Start | MigrateThenStart | None
) -> Start | MigrateThenStart | None:
    """The first one, unless the other is sooner."""
    if one is None or other is None:
        return one or other
    return other if _seconds(other) < _seconds(one) else one


def _may_have_room(snapshot: Snapshot, demand: Demand, rank: Rank) -> bool:
    """False where it is plain that nothing can be done now."""
    return not rank.lacks_room or demand.may_migrate or rank.node_id in snapshot.idle_nodes


def _here(snapshot: Snapshot, demand: Demand, node: NodeView, seconds: float) -> Start | None:
    """A start that needs no more than idle instances to end."""
    victims = idle_victims(snapshot, demand, node)
    if victims is None:
        return None
    estimate = _known(seconds + (snapshot.stop_seconds if victims else 0.0))
    return Start(node.node_id, room.kv_grant(node, demand.need), estimate, victims)


def _seconds(start: Start | MigrateThenStart) -> float:
    return math.inf if start.estimate is None else start.estimate


def _migration(
    relief: Relief | None, seconds: float, node: NodeView, need: Need
) -> MigrateThenStart | None:
    if relief is None or math.isinf(seconds):
        return None
    return MigrateThenStart(
        node_id=node.node_id,
        kv_bytes=room.kv_grant(node, need),
        estimate=relief.seconds + seconds,
        moves=relief.moves,
        victims=relief.victims,
    )


def _known(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


# --- wait -------------------------------------------------------------------------------------


def _wait(snapshot: Snapshot, demand: Demand, ranking: Ranking) -> Wait:
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
    busy = sorted(yielding(snapshot, demand, node), key=lambda one: _requests(snapshot, one))
    kv_bytes, candidates = room.kv_grant(node, demand.need), [*draining, *busy]
    chosen = room.make(node, demand.need, kv_bytes, candidates)
    if chosen is None:
        return None
    present = [snapshot.uses[key] for key in chosen if key in snapshot.uses]
    return _Drain(
        node_id=node.node_id,
        instances=tuple(key for key in chosen if key not in first),
        requests=sum(use.in_flight for use in present),
    )


def _requests(snapshot: Snapshot, instance: Instance) -> tuple[int, float, str]:
    use = snapshot.uses[instance.instance_id]
    return use.in_flight, use.last_used, instance.instance_id


def blocked_error(decision: Decision, blocked: Blocked) -> errors.SllmError:
    """What requests are told that have waited in vain."""
    name = decision.demand.need.deployment
    if blocked is Blocked.NO_NODES:
        return errors.NoNodes("no node is connected; start one and try again", retry_after=1.0)
    if blocked is Blocked.NO_ENGINE:
        engine = decision.demand.need.engine
        return errors.NoNodes(
            f"no node for {name}: none that is connected has {engine}; start one that has, or "
            "deploy it with another engine",
            retry_after=5.0,
        )
    if blocked is Blocked.DRAINING:
        return errors.NoNodes(
            f"no node for {name}: {blocked.value}; undrain one, or add another", retry_after=5.0
        )
    if blocked is Blocked.TOO_SMALL:
        return too_large(decision.snapshot, decision.demand.need)
    return errors.NoCapacity(
        f"no room for {name}: {blocked.value}; add a node or lower min_replicas", retry_after=5.0
    )


# --- explain ----------------------------------------------------------------------------------


def _explain(snapshot: Snapshot, demand: Demand, node: NodeView) -> Candidate:
    if lacking := lacks_engine(node, demand.need) or lacks_devices(node, demand.need):
        return Candidate(node.node_id, None, rejected=lacking, unfit=True)
    if small := room.too_small(node, demand.need):
        return Candidate(node.node_id, None, rejected=f"too small: {small}", unfit=True)
    seconds = start_seconds(node, demand.need, snapshot.typical)
    if reason := barred(demand, node.node_id):
        return Candidate(node.node_id, _known(seconds), rejected=reason)
    start = _here(snapshot, demand, node, seconds)
    relief = None if _is_free(start) else Relocations(snapshot, demand).relieve(node)
    match _sooner(start, _migration(relief, seconds, node, demand.need)):
        case Start() as best:
            return Candidate(node.node_id, best.estimate, best.victims)
        case MigrateThenStart() as best:
            return Candidate(node.node_id, best.estimate, best.victims, best.moves)
    short = room.shortage(node, demand.need, room.kv_grant(node, demand.need))
    return Candidate(node.node_id, _known(seconds), rejected=f"no room: {short.text}")
