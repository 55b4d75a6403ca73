"""Who gets room, and when those who find none are looked at again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from serverlessllm.v1 import inference_service_pb2 as inference_pb

from sllm.control.cluster.instances import Instance
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.outcomes import Outcomes
from sllm.control.orchestration.placer import Placer
from sllm.control.orchestration.residency import Residency
from sllm.control.orchestration.scheduler import Scheduler
from sllm.control.placement.decisions import Move
from sllm.control.requests.tickets import Ticket
from sllm.control.state.state import State
from sllm.control.tenants.limits import Limits
from sllm.control.types.reports import Full, Report
from sllm.control.wire.nodes import Nodes
from tests.control import shapes

SECONDS = 20.0
CONFIG = ControlConfig(Path("unused"))


class Jump:
    """A clock that tells a moment after the other, and then stands still."""

    def __init__(self, *moments: float) -> None:
        self._moments = list(moments)

    def now(self) -> float:
        """Seconds."""
        return self._moments.pop(0) if len(self._moments) > 1 else self._moments[0]

    async def sleep(self, seconds: float) -> None:
        """Nobody sleeps here."""
        raise AssertionError


class NobodyMoves:
    """An Evacuator that must not be asked."""

    def move_away(self, instance: Instance) -> None:
        """Nothing leaves."""
        raise AssertionError

    def make_way(self, name: str, moves: Sequence[Move]) -> None:
        """Nothing makes way."""
        raise AssertionError


def full_node(state: State, *names: str) -> None:
    """Deployments, and a node whose room is all taken by a busy instance of the last."""
    for name in names:
        state.set_deployment(shapes.deployment(name))
    busy = shapes.instance("i1", names[-1], kv=2000)
    full = Full(shapes.facts(dram=100, kv=2000), instances=(busy,))
    state.fleet.apply(Report("n1", 1, full), 1.0)
    state.slots.add("i1", "n1", 0.0)


def scheduler_of(state: State, residency: Residency, agenda: Agenda, clock: Jump) -> Scheduler:
    outcomes = Outcomes(state, residency, clock)
    launcher = Launcher(state, Nodes(), outcomes, agenda, clock, CONFIG)
    placer = Placer(state, launcher, residency, agenda, clock, CONFIG)
    return Scheduler(state, placer, residency, NobodyMoves(), agenda, clock, CONFIG)


async def is_due_at_once(agenda: Agenda, now: float) -> bool:
    async with asyncio.timeout(SECONDS):
        await agenda.until_due()
    return agenda.take(now, ()) == {"tiny"}


async def test_a_turn_that_ends_while_placement_decides_makes_who_waits_for_it_due_at_once() -> (
    None
):
    state, clock = State(), Jump(20.5, 30.0)
    full_node(state, "tiny", "other")
    agenda = Agenda(state.changes, clock)
    residency = Residency(CONFIG.residency_factor, CONFIG.longest_residency_seconds)
    residency.displaced("other", 10.0)
    residency.ready("i1", "other", 1.0, 20.0)  # its turn ends at 21

    scheduler_of(state, residency, agenda, clock).schedule({"tiny": 1})
    assert state.unmet == {"tiny"}
    assert await is_due_at_once(agenda, 30.0)


async def test_patience_that_ends_while_placement_decides_makes_impatient_at_once() -> None:
    patience = CONFIG.drain_patience_seconds
    state, clock = State(), Jump(0.0, patience - 0.1, patience + 0.1)
    full_node(state, "tiny", "other")
    state.slots.take("i1", "other", 0.0)
    request = inference_pb.GenerateRequest(deployment="tiny", request_id="r", text="hi")
    state.queue.add(Ticket(request, None, clock, step_seconds=1.0))
    agenda = Agenda(state.changes, clock)
    residency = Residency(CONFIG.residency_factor, CONFIG.longest_residency_seconds)

    scheduler_of(state, residency, agenda, clock).schedule({"tiny": 1})
    assert await is_due_at_once(agenda, clock.now())


def room_for(state: State, instances: int, *names: str) -> None:
    """Deployments, and a node that has room for so many instances of them."""
    for name in names:
        state.set_deployment(shapes.deployment(name))
    kv_bytes = state.needs[names[0]].kv_bytes
    facts = shapes.facts(dram=100 * len(names), kv=kv_bytes * instances)
    state.fleet.apply(Report("n1", 1, Full(facts)), 1.0)


def waits(state: State, name: str, clock: Jump) -> None:
    """A request comes for a deployment."""
    request = inference_pb.GenerateRequest(deployment=name, request_id=name, text="hi")
    state.queue.add(Ticket(request, None, clock, step_seconds=1.0))


def started(state: State) -> list[str]:
    return sorted(one.deployment.name for one in state.starts.values())


async def test_who_has_less_of_its_share_comes_before_who_has_waited_longer() -> None:
    state, clock = State(), Jump(0.0)
    names = ("a:1", "a:2", "a:3", "b:1")
    room_for(state, 2, *names)
    for moment, name in enumerate(names):
        waits(state, name, Jump(float(moment)))
    agenda = Agenda(state.changes, clock)
    scheduler_of(state, Residency(1.0, 1.0), agenda, clock).schedule(dict.fromkeys(names, 1))
    assert started(state) == ["a:1", "b:1"]
    assert state.unmet == {"a:2", "a:3"}


async def test_weights_tell_how_much_is_a_share() -> None:
    state, clock = State(), Jump(0.0)
    names = ("a:1", "a:2", "a:3", "b:1", "b:2")
    room_for(state, 3, *names)
    state.tenants.limits["a"] = Limits(weight=2.0)
    for moment, name in enumerate(names):
        waits(state, name, Jump(float(moment)))
    agenda = Agenda(state.changes, clock)
    scheduler_of(state, Residency(1.0, 1.0), agenda, clock).schedule(dict.fromkeys(names, 1))
    assert started(state) == ["a:1", "a:2", "b:1"]


async def test_a_tenant_gets_no_more_instances_than_it_may_have() -> None:
    state, clock = State(), Jump(0.0)
    names = ("a:1", "a:2", "b:1")
    room_for(state, 3, *names)
    state.tenants.limits["a"] = Limits(replicas=1)
    for name in names:
        waits(state, name, clock)
    agenda = Agenda(state.changes, clock)
    scheduler_of(state, Residency(1.0, 1.0), agenda, clock).schedule(dict.fromkeys(names, 1))
    assert started(state) == ["a:1", "b:1"]
    assert state.unmet == {"a:2"}
