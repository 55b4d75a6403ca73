"""What is compared: ways to decide where a model is started, all of them by the real placement.

Each asks `sllm.control.placement.placement.place`, and differs in what it asks; nothing of it is
copied.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

from sllm.control.cluster.snapshot import Snapshot
from sllm.control.placement.decisions import Demand, MigrateThenStart, Reuse, Start, Wait
from sllm.control.placement.placement import place


@dataclass(frozen=True, slots=True)
class PreemptThenStart:
    """Stop running instances, whose requests have to go on elsewhere, and start at once."""

    start: Start
    """Its victims are idle or running."""


Action = Reuse | Start | MigrateThenStart | PreemptThenStart | Wait


class Policy(Protocol):
    """Decides where a demand is met."""

    def __call__(self, snapshot: Snapshot, demand: Demand) -> Action:
        """What to do."""
        ...


class RandomNode:
    """Any node that has room, wherever the weights are: the usual serverless scheduler."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def __call__(self, snapshot: Snapshot, demand: Demand) -> Action:
        """A start on the node that was drawn, or what placement says where none has room."""
        decision = place(snapshot, demand)
        if not isinstance(decision.action, Start):
            return decision.action
        able = [one.node_id for one in decision.candidates if one.rejected is None]
        drawn = self._random.choice(able)
        others = {key: "not drawn" for key in snapshot.nodes if key != drawn}
        return place(snapshot, replace(demand, closed={**demand.closed, **others})).action


def locality(snapshot: Snapshot, demand: Demand) -> Action:
    """Of the nodes that have room, the one where it starts soonest: migration is switched off."""
    return place(snapshot, demand).action


def preemption(snapshot: Snapshot, demand: Demand) -> Action:
    """The node where it starts soonest, what runs there being stopped for it.

    Like Shepherd with the paper's estimates (section 7.3): running instances make way as idle ones
    do. Only while another node has room, so that what was stopped can go on there.
    """
    action = place(snapshot, demand).action
    if not isinstance(action, Start):
        return action
    idle = {key: replace(use, in_flight=0) for key, use in snapshot.uses.items()}
    greedy = place(replace(snapshot, uses=idle), replace(demand, waiting=0)).action
    if isinstance(greedy, Start) and _seconds(greedy) < _seconds(action):
        return PreemptThenStart(greedy)
    return action


def _seconds(start: Start) -> float:
    assert start.estimate is not None, "a simulated node has observed all that there is"
    return start.estimate


def sllm(snapshot: Snapshot, demand: Demand) -> Action:
    """This system: the node where it starts soonest, what runs there being migrated away."""
    return place(snapshot, replace(demand, may_migrate=True)).action


def same_choice_preemption(snapshot: Snapshot, demand: Demand) -> Action:
    """As this system decides, but what it would migrate is stopped instead."""
    action = sllm(snapshot, demand)
    if not isinstance(action, MigrateThenStart):
        return action
    victims = (*(move.instance_id for move in action.moves), *action.victims)
    return PreemptThenStart(Start(action.node_id, action.kv_bytes, action.estimate, victims))
