"""Placement's decisions as they are carried out."""

from pathlib import Path

from sllm.control.config import ControlConfig
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.placer import Placer
from sllm.control.state.state import State
from sllm.control.types.reports import Full, Report
from sllm.control.wire.node_client import Nodes
from tests.control import shapes


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


def test_a_turn_that_ends_while_placement_decides_makes_who_waits_for_it_due_at_once() -> None:
    state, config = State(), ControlConfig(Path("unused"))
    clock = Jump(before=20.5, after=30.0)
    for name in ("tiny", "other"):
        state.set_deployment(shapes.deployment(name))
    busy = shapes.instance("i1", "other", kv=2000)
    full = Full(shapes.facts(dram=100, kv=2000), instances=(busy,))
    state.fleet.apply(Report("n1", 1, full), 1.0)
    state.slots.add("i1", "n1", 0.0)
    launcher = Launcher(state, Nodes(), clock, config, lambda *_: None, lambda _: None)
    due: dict[str, float] = {}
    placer = Placer(state, launcher, clock, config, due.__setitem__, lambda *_: None)
    placer.residency.displaced("other", 10.0)
    placer.residency.ready("i1", "other", 1.0, 20.0)  # its turn ends at 21

    placer.place_all({"tiny": 1})
    assert placer.unmet == {"tiny"}
    assert due == {"tiny": 30.0}
