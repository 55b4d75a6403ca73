"""What a request has to expect when it comes."""

from sllm.clock import Clock
from sllm.control import placement
from sllm.control.admission import Prospect
from sllm.control.decisions import MigrateThenStart, Start
from sllm.control.experience import Expectation
from sllm.control.orchestrator import Orchestrator
from sllm.control.state import State
from sllm.control.tickets import Ticket


class Prospects:
    """Looks at what there is and at what is on its way."""

    def __init__(self, state: State, orchestrator: Orchestrator, clock: Clock) -> None:
        self._state = state
        self._orchestrator = orchestrator
        self._clock = clock

    def of(self, ticket: Ticket) -> Prospect:
        """What a request that is about to be queued has to expect."""
        name, queue = ticket.deployment, self._state.queue
        ahead = queue.ahead(name, ticket.turn)
        expected = self._state.experience.expectation(name)
        return Prospect(
            deployment=name,
            ahead=ahead,
            waiting=queue.count(name),
            waiting_in_all=len(queue),
            wait=self._wait(name, ahead, expected),
            first_token=expected.first_token_seconds if expected else 0.0,
        )

    def _wait(self, name: str, ahead: int, expected: Expectation | None) -> float | None:
        """Seconds until it would be with an instance, if anyone knows."""
        instances, need = self._state.fleet.instances_of(name), self._state.needs[name]
        uses, most = self._state.slots.uses, need.max_concurrency
        if placement.free_instance(instances, uses, most) and not self._state.queue.count(name):
            return 0.0
        ways = [self._start_wait(name), self._turn_wait(name, ahead, expected)]
        if not instances:
            ways.append(self._new_wait(name))
        return min((way for way in ways if way is not None), default=None)

    def _start_wait(self, name: str) -> float | None:
        """Until the first of the starts that are under way has ended."""
        starts = [one for one in self._state.starts.values() if one.deployment.name == name]
        known = [one.decided_at + one.estimate for one in starts if one.estimate is not None]
        return max(0.0, min(known) - self._clock.now()) if known else None

    def _turn_wait(self, name: str, ahead: int, expected: Expectation | None) -> float | None:
        """Until the ready instances, all of them busy, have served those ahead."""
        slots = len(self._state.ready_replicas(name)) * self._state.needs[name].max_concurrency
        return expected.seconds * (ahead + 1) / slots if slots and expected else None

    def _new_wait(self, name: str) -> float | None:
        """Until an instance that would be started now is ready."""
        placer = self._orchestrator.placer
        action = placer.decide(placer.demand(name)).action
        return action.estimate if isinstance(action, Start | MigrateThenStart) else None
