"""Room made by migrating running instances away: which of them, where to, and what it takes.

After ServerlessLLM (Fu et al., OSDI '24), section 6.3: a migration takes the start at its
destination, and then a · (tokens so far + expected) + b. Instances that leave a node together go
to different nodes at the same time, so that the longest move decides.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import islice, permutations
from typing import NamedTuple

from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.needs import Need
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.usage import MigrationCost, Running
from sllm.control.placement import room
from sllm.control.placement.decisions import Demand, Move
from sllm.control.placement.ranking import Rank, Ranking
from sllm.control.placement.victims import idle_victims, is_busy, yielding

_SETS_COMPARED = 64
"""Sets of instances that are worked out on one node at most, small ones first."""


class Relief(NamedTuple):
    """How a node comes by room."""

    seconds: float
    """Of the longest move, and of ending the victims beside it."""
    moves: tuple[Move, ...]
    victims: tuple[str, ...]
    """Idle instances that end on the node."""


class Relocations:
    """The moves that one decision may consider."""

    def __init__(self, snapshot: Snapshot, demand: Demand) -> None:
        self._snapshot = snapshot
        self._demand = demand
        self._ranks: dict[str, list[Rank]] = {}

    def relieve(self, node: NodeView) -> Relief | None:
        """The soonest way to make room on `node`. None: there is none."""
        cost = self._snapshot.migration
        if cost is None or not self._demand.may_migrate:
            return None
        movable = [one for one in self._busy(node) if self._is_known(one)]
        reliefs = (self._relief(node, group, cost) for group in _groups(movable))
        found = (relief for relief in islice(reliefs, _SETS_COMPARED) if relief)
        return min(found, key=lambda relief: relief.seconds, default=None)

    def _busy(self, node: NodeView) -> list[Instance]:
        others = yielding(self._snapshot, self._demand, node)
        return [one for one in others if is_busy(self._snapshot, one)]

    def _is_known(self, instance: Instance) -> bool:
        """Whether all of its requests are known, and may move: none would be left behind."""
        if instance.instance_id in self._snapshot.outdated:
            return False  # they may run on another engine than whatever is started for them
        requests = self._snapshot.running.get(instance.instance_id, ())
        in_flight = self._snapshot.uses[instance.instance_id].in_flight
        return len(requests) == in_flight and instance.deployment in self._snapshot.needs

    def _relief(
        self, node: NodeView, group: Sequence[Instance], cost: MigrationCost
    ) -> Relief | None:
        gone = frozenset(one.instance_id for one in group)
        victims = idle_victims(self._snapshot, self._demand, node, gone)
        if victims is None:
            return None
        taken = {node.node_id}  # no two go to one node: they would share its links
        moves = []
        for instance in group:
            move = self._move(instance, taken, cost)
            if move is None:
                return None
            taken.add(move.to_node)
            moves.append(move)
        ending = self._snapshot.stop_seconds if victims else 0.0
        return Relief(max(ending, *(move.seconds for move in moves)), tuple(moves), victims)

    def _move(self, instance: Instance, taken: set[str], cost: MigrationCost) -> Move | None:
        """The move to where an instance can go on soonest, `taken` nodes left out."""
        requests = self._snapshot.running[instance.instance_id]
        found = self._beside(instance, len(requests), taken) or self._elsewhere(instance, taken)
        if found is None:
            return None
        return Move(
            instance_id=instance.instance_id,
            deployment=instance.deployment,
            to_node=found.node_id,
            into=found.into,
            kv_bytes=found.kv_bytes,
            victims=found.victims,
            requests=tuple(one.request_id for one in requests),
            start_seconds=found.seconds,
            transfer_seconds=transfer_seconds(requests, cost),
        )

    def _beside(
        self, instance: Instance, slots: int, taken: AbstractSet[str]
    ) -> "_Destination | None":
        """Another instance of its deployment that is ready and has as many free slots."""
        need, uses = self._snapshot.needs[instance.deployment], self._snapshot.uses
        for other in self._snapshot.instances.get(instance.deployment, ()):
            use = uses.get(other.instance_id)
            ready = other.state is InstanceState.READY
            current = other.instance_id not in self._snapshot.outdated
            open_to_it = ready and current and other.node_id not in taken
            if use and open_to_it and use.in_flight + slots <= use.most(need.max_concurrency):
                return _Destination(other.node_id, 0.0, 0, other.instance_id)
        return None

    def _elsewhere(self, instance: Instance, taken: AbstractSet[str]) -> "_Destination | None":
        """The node where it starts soonest, with a KV cache that is not smaller."""
        barred = taken | self._demand.closed.keys() | self._demand.draining
        best: _Destination | None = None
        for rank in self._ranked(self._snapshot.needs[instance.deployment]):
            if best and best.seconds <= rank.seconds:
                break
            found = None if rank.node_id in barred else self._start(instance, rank)
            if found and (best is None or found.seconds < best.seconds):
                best = found  # one that ends nothing may be sooner than one before it that does
        return best

    def _start(self, instance: Instance, rank: Rank) -> "_Destination | None":
        """Another instance of the same deployment on one node. None: it has no room for that."""
        need = self._snapshot.needs[instance.deployment]
        node = self._snapshot.nodes[rank.node_id]
        kv_bytes = room.kv_grant(node, need)
        if kv_bytes < instance.kv_bytes:
            return None
        victims = idle_victims(self._snapshot, replace(self._demand, need=need), node)
        if victims is None:
            return None
        seconds = rank.seconds + (self._snapshot.stop_seconds if victims else 0.0)
        return _Destination(rank.node_id, seconds, kv_bytes, None, victims)

    def _ranked(self, need: Need) -> list[Rank]:
        """The nodes for one more instance, those of which nothing is known left out."""
        if need.deployment not in self._ranks:
            ranking = Ranking(self._snapshot, need).best_first()
            known = [one for one in ranking if not math.isinf(one.seconds)]
            self._ranks[need.deployment] = known
        return self._ranks[need.deployment]


class _Destination(NamedTuple):
    node_id: str
    seconds: float
    kv_bytes: int
    into: str | None
    victims: tuple[str, ...] = ()


def transfer_seconds(requests: Iterable[Running], cost: MigrationCost) -> float:
    """What moving `requests` takes, once their destination is ready."""
    tokens = sum(one.tokens + one.expected for one in requests)
    return cost.per_token * tokens + cost.base


def _groups(instances: Sequence[Instance]) -> Iterator[tuple[Instance, ...]]:
    """Yields every set of instances but the empty one, small ones first, in every order.

    The first of a set chooses its destination first: some order leads to the best ones in all.
    """
    ordered = sorted(instances, key=lambda one: one.instance_id)
    for size in range(1, len(ordered) + 1):
        yield from permutations(ordered, size)
