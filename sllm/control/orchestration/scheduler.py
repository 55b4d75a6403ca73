"""Who gets room, and what becomes of those who find none."""

from collections.abc import Mapping

from sllm.clock import Clock
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.evacuator import Evacuator
from sllm.control.orchestration.placer import Placer
from sllm.control.orchestration.residency import Residency
from sllm.control.placement import placement
from sllm.control.placement.decisions import Blocked, MigrateThenStart, Start, Wait
from sllm.control.placement.placement import Decision
from sllm.control.state.state import State


class Scheduler:
    """Carries placement's decisions out, in the order of whose turn it is."""

    def __init__(
        self,
        state: State,
        placer: Placer,
        residency: Residency,
        evacuator: Evacuator,
        agenda: Agenda,
        clock: Clock,
        config: ControlConfig,
    ) -> None:
        self._state = state
        self._placer = placer
        self._residency = residency
        self._evacuator = evacuator
        self._agenda = agenda
        self._clock = clock
        self._config = config

    def schedule(self, wanted: Mapping[str, int]) -> None:
        """Finds nodes for as many more instances of each deployment, the longest wait first.

        Deployments that are unmet have to be among them: who is unmet is found anew.
        """
        self._state.unmet.clear()
        closed: dict[str, str] = {}
        for name in sorted(wanted, key=self._turn):
            for _ in range(wanted[name]):
                if not self._place(name, closed):
                    break

    def _turn(self, name: str) -> tuple[bool, float, str]:
        head = self._state.queue.head(name)
        return head is None, head.turn if head else 0.0, name

    def _place(self, name: str, closed: dict[str, str]) -> bool:
        """Finds a node for one more instance; says whether it is on its way.

        `closed` are nodes where room is being made for older requests, and for whom: others leave
        them alone, or the room would go to whoever asks at the right moment.
        """
        if name in self._state.making_way:  # what was decided is being done
            self._state.unmet.add(name)
            return False
        decision = self._placer.decide(self._placer.demand(name, closed))
        match decision.action:
            case Start() as start:
                self._placer.start(name, start)
                return True
            case MigrateThenStart() as action:
                self._make_way(name, action, closed)
            case Wait() as wait:
                self._wait(name, decision, wait, closed)
        return False

    def _make_way(self, name: str, action: MigrateThenStart, closed: dict[str, str]) -> None:
        """Has running instances go on elsewhere; the start is decided on anew once they have."""
        self._state.unmet.add(name)
        closed[action.node_id] = f"room is being made there for {name}"
        self._state.making_way[name] = [move.instance_id for move in action.moves]
        self._evacuator.make_way(name, action.moves)

    def _wait(self, name: str, decision: Decision, wait: Wait, closed: dict[str, str]) -> None:
        self._state.unmet.add(name)
        if decision.demand.resident:
            now = self._clock.now()
            turns = self._residency.resident(now).values()
            self._agenda.later(name, min(turns, default=now))  # the last may have ended just now
        if wait.node_id:
            closed[wait.node_id] = f"room is being made there for {name}"
        for instance_id in wait.drain:
            self._placer.drain(instance_id)
        if self._state.queue.head(name) and not self._state.fleet.instances_of(name):
            self._wait_alone(name, decision, wait)

    def _wait_alone(self, name: str, decision: Decision, wait: Wait) -> None:
        """What becomes of requests for which no instance is there, nor on its way."""
        if wait.blocked is Blocked.FAILED:
            self._state.fail_waiting(name, self._state.failed_starts[name].error)
            return
        config, now = self._config, self._clock.now()
        patience = config.node_patience_seconds if wait.blocked else config.drain_patience_seconds
        left = patience - self._state.queue.waited(name, now)
        # Patience may have ended while placement decided: then that is asked again, impatiently.
        decided_before = not (wait.blocked or decision.demand.impatient)
        if left > 0 or decided_before:
            self._agenda.later(name, now + max(0.0, left))
        elif wait.blocked:
            self._state.fail_waiting(name, placement.blocked_error(decision, wait.blocked))
