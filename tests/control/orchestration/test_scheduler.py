"""Who gets room, and when those who find none are looked at again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sllm.control.cluster.instances import Instance
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.outcomes import Outcomes
from sllm.control.orchestration.placer import Placer
from sllm.control.orchestration.residency import Residency
from sllm.control.orchestration.scheduler import Scheduler
from sllm.control.placement.decisions import Move
from sllm.control.state.state import State
from sllm.control.types.reports import Full, Report
from sllm.control.wire.node_client import Nodes
from tests.control import shapes

SECONDS = 5.0


class Jump:
    """A clock that jumps ahead after it was first looked at."""

    def __init__(self, before: float, after: float) -> None:
        self._moments = [before, after]

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


async def test_a_turn_that_ends_while_placement_decides_makes_who_waits_for_it_due_at_once() -> (
    None
):
    state, config = State(), ControlConfig(Path("unused"))
    clock = Jump(before=20.5, after=30.0)
    for name in ("tiny", "other"):
        state.set_deployment(shapes.deployment(name))
    busy = shapes.instance("i1", "other", kv=2000)
    full = Full(shapes.facts(dram=100, kv=2000), instances=(busy,))
    state.fleet.apply(Report("n1", 1, full), 1.0)
    state.slots.add("i1", "n1", 0.0)
    agenda = Agenda(state.changes, clock)
    residency = Residency(config.residency_factor, config.longest_residency_seconds)
    outcomes = Outcomes(state, residency, clock)
    launcher = Launcher(state, Nodes(), outcomes, agenda, clock, config)
    placer = Placer(state, launcher, residency, agenda, clock, config)
    scheduler = Scheduler(state, placer, residency, NobodyMoves(), agenda, clock, config)
    residency.displaced("other", 10.0)
    residency.ready("i1", "other", 1.0, 20.0)  # its turn ends at 21

    scheduler.schedule({"tiny": 1})
    assert state.unmet == {"tiny"}
    async with asyncio.timeout(SECONDS):
        await agenda.until_due()
    assert agenda.take(30.0, ()) == {"tiny"}
