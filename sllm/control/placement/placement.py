"""Where a request is served: a pure function of an immutable snapshot.

The nearest weights win: of all nodes that are large enough and have room, or can make room by
ending idle instances, the one with the lowest estimate is taken; or one where running instances
are migrated away first, if the start is ready sooner all the same. A demand that finds no room
waits; once its patience has ended, busy instances of other deployments are named to be drained,
so that first come, first served holds over all models. Instances of one deployment are spread.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from sllm import errors
from sllm.control.cluster.instances import Instance, InstanceState
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
)
from sllm.control.placement.fitting import lacks_devices, lacks_engine, too_large
from sllm.control.placement.ranking import Rank, Ranking
from sllm.control.placement.relocation import Relief, Relocations
from sllm.control.placement.start_estimate import need_on, start_seconds
from sllm.control.placement.victims import barred, idle_victims
from sllm.control.placement.waiting import wait

SPREAD_SECONDS = 5.0
"""A start that requests wait for may take so much longer, to be on a node of its own."""
_EVEN = 4
"""Requests by which an instance may be busier than another and yet have what its node keeps."""
_NOTHING_SAVED: Final[Mapping[str, float]] = MappingProxyType({})
_RELIEFS_COMPARED = 16
"""Nodes on which migrations are worked out at most."""


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
        ranking = Ranking(snapshot, demand.need, demand)
        action = _spread(snapshot, demand, ranking, _start(snapshot, demand, ranking))
        if action is None or _is_slower(action, demand):
            action = wait(snapshot, demand, ranking)
    return Decision(action, snapshot, demand)


# --- reuse ------------------------------------------------------------------------------------


def near(_: Instance) -> float:
    """The way to an instance, where none is farther than another."""
    return 0.0


def free_instance(
    instances: Iterable[Instance],
    uses: Mapping[str, Use],
    max_concurrency: int,
    distance: Callable[[Instance], float] = near,
    *,
    background: bool = False,
    saved: Mapping[str, float] = _NOTHING_SAVED,
) -> Instance | None:
    """The nearest ready instance that has a free slot; of equals the least busy.

    Args:
        instances: To choose from.
        uses: What each of them has to do, by its id.
        max_concurrency: Requests at once for each, where it has no lower limit of its own.
        distance: What the way to one costs, in seconds.
        background: For a request that nobody waits for.
        saved: Seconds that nodes save the request, by what they keep of its prompt. They count
            for instances that are about as busy as the least busy one: whatever begins alike
            would else wait for one instance beside others that have nothing to do.
    """
    free = [
        (use.in_flight, one)
        for one in instances
        if (use := uses.get(one.instance_id)) and _is_ready(one)
        if use.in_flight < (use.most_with_background if background else use.most)(max_concurrency)
    ]
    even = min((in_flight for in_flight, _ in free), default=0) + _EVEN

    def rank(each: tuple[int, Instance]) -> tuple[float, int, str]:
        in_flight, one = each
        less = saved.get(one.node_id, 0.0) if in_flight <= even else 0.0
        return distance(one) - less, in_flight, one.instance_id

    return min(free, key=rank)[1] if free else None


def free_slots(instances: Iterable[Instance], uses: Mapping[str, Use], max_concurrency: int) -> int:
    """How many requests ready instances would take at once: others that nobody waits for leave."""
    used = [
        uses[one.instance_id] for one in instances if _is_ready(one) and one.instance_id in uses
    ]
    free = (use.most(max_concurrency) - use.in_flight + use.background for use in used)
    return sum(max(0, count) for count in free)


def slots_each(instances: Iterable[Instance], uses: Mapping[str, Use], max_concurrency: int) -> int:
    """How many requests an instance works on at once, by those that are ready; at least one."""
    ready = [uses[one.instance_id] for one in instances if one.instance_id in uses]
    found = [use.most(max_concurrency) for use in ready]
    return max(1, sum(found) // len(found)) if found else max_concurrency


def _is_ready(instance: Instance) -> bool:
    return instance.state is InstanceState.READY


def _reuse(snapshot: Snapshot, demand: Demand) -> Reuse | None:
    if not demand.waiting:
        return None
    present = snapshot.instances.get(demand.need.deployment, ())
    instances = [one for one in present if one.instance_id not in snapshot.outdated]

    def distance(instance: Instance) -> float:
        return _distance(snapshot, demand, instance.node_id)

    chosen = free_instance(instances, snapshot.uses, demand.need.max_concurrency, distance)
    return Reuse(chosen, distance(chosen)) if chosen else None


def _distance(snapshot: Snapshot, demand: Demand, node_id: str) -> float:
    """`Demand.distance` to a node, which may have gone."""
    node = snapshot.nodes.get(node_id)
    return demand.distance(node) if node else 0.0


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
        seconds = rank.seconds - rank.distance
        found: Start | MigrateThenStart | None = _here(snapshot, demand, node, seconds)
        # Where something has to end, moving busy instances may be sooner. Working that out is dear
        # (every set of instances, and a place for each of them), hence the bound.
        if demand.may_migrate and reliefs < _RELIEFS_COMPARED and not _is_free(found):
            reliefs += 1
            relief = Relocations(snapshot, demand).relieve(node)
            found = _sooner(found, _migration(relief, seconds, node, demand))
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
            seconds = rank.seconds - rank.distance
            here = _here(snapshot, demand, snapshot.nodes[rank.node_id], seconds)
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
    return Start(
        node.node_id, room.kv_grant(node, demand.need), estimate, victims, demand.distance(node)
    )


def _seconds(start: Start | MigrateThenStart) -> float:
    """Until those who wait are served there."""
    return math.inf if start.estimate is None else start.estimate + start.distance


def _migration(
    relief: Relief | None, seconds: float, node: NodeView, demand: Demand
) -> MigrateThenStart | None:
    if relief is None or math.isinf(seconds):
        return None
    return MigrateThenStart(
        node_id=node.node_id,
        kv_bytes=room.kv_grant(node, demand.need),
        estimate=relief.seconds + seconds,
        moves=relief.moves,
        victims=relief.victims,
        distance=demand.distance(node),
    )


def _known(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds


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
        return Candidate(node.node_id, None, 0.0, rejected=lacking, unfit=True)
    need = need_on(node, demand.need, snapshot.typical)
    if small := room.too_small(node, need):
        return Candidate(node.node_id, None, 0.0, rejected=f"too small: {small}", unfit=True)
    seconds = start_seconds(node, demand.need, snapshot.typical)
    distance = demand.distance(node)
    if reason := barred(demand, node.node_id):
        return Candidate(node.node_id, _known(seconds + distance), distance, rejected=reason)
    start = _here(snapshot, demand, node, seconds)
    relief = None if _is_free(start) else Relocations(snapshot, demand).relieve(node)
    match _sooner(start, _migration(relief, seconds, node, demand)):
        case Start() as best:
            return Candidate(node.node_id, _known(_seconds(best)), distance, best.victims)
        case MigrateThenStart() as best:
            found = _known(_seconds(best))
            return Candidate(node.node_id, found, distance, best.victims, best.moves)
    short = room.shortage(node, need, room.kv_grant(node, need))
    why = f"no room: {short.text}"
    return Candidate(node.node_id, _known(seconds + distance), distance, rejected=why)
