"""What a request has to expect when it comes."""

from sllm.clock import Clock
from sllm.control.orchestration.placer import Placer
from sllm.control.placement import placement
from sllm.control.placement.decisions import MigrateThenStart, Start, Wait
from sllm.control.placement.placement import Decision
from sllm.control.requests.service_times import Expectation
from sllm.control.requests.tickets import Ticket
from sllm.control.routing.admission import WaitEstimate
from sllm.control.state.state import State


class WaitEstimates:
    """Looks at what there is and at what is on its way."""

    def __init__(self, state: State, placer: Placer, clock: Clock) -> None:
        self._state = state
        self._placer = placer
        self._clock = clock

    def of(self, ticket: Ticket, count: int = 1) -> WaitEstimate:
        """What the last of `count` requests that are about to be queued together has to expect."""
        name, queue = ticket.deployment, self._state.queue
        ahead = queue.ahead(name, ticket.turn) + count - 1
        expected = self._state.service_times.expectation(name)
        return WaitEstimate(
            deployment=name,
            ahead=ahead,
            waiting=queue.count(name),
            waiting_in_all=len(queue),
            to_wait=max(0, count - self._free_slots(name)),
            wait=self._wait(ticket, ahead, expected),
            first_token=expected.first_token_seconds if expected else 0.0,
        )

    def _wait(self, ticket: Ticket, ahead: int, expected: Expectation | None) -> float | None:
        """Seconds until it would be with an instance, if anyone knows."""
        name, free = ticket.deployment, self._free_slots(ticket.deployment)
        if free > ahead:
            return 0.0
        # Whatever is first serves it: a start under way, a slot of a busy instance, or a new start.
        ways = [self._start_wait(name), self._turn_wait(name, ahead - free, expected)]
        if not self._state.fleet.instances_of(name):
            ways.append(self._new_wait(ticket))
        return min((way for way in ways if way is not None), default=None)

    def _free_slots(self, name: str) -> int:
        """Slots of a deployment's ready instances that nobody waits for."""
        if self._state.queue.count(name):
            return 0
        instances, need = self._state.fleet.instances_of(name), self._state.needs[name]
        return placement.free_slots(instances, self._state.slots.uses, need.max_concurrency)

    def _start_wait(self, name: str) -> float | None:
        """Seconds until the first of the starts that are under way has ended."""
        starts = [one for one in self._state.starts.values() if one.deployment.name == name]
        known = [one.decided_at + one.estimate for one in starts if one.estimate is not None]
        return max(0.0, min(known) - self._clock.now()) if known else None

    def _turn_wait(self, name: str, ahead: int, expected: Expectation | None) -> float | None:
        """Seconds until the ready instances, all of them busy, have served those ahead."""
        ready, most = self._state.ready_replicas(name), self._state.needs[name].max_concurrency
        slots = len(ready) * placement.slots_each(ready, self._state.slots.uses, most)
        return expected.slot_wait(ahead + 1, slots) if slots and expected else None

    def _new_wait(self, ticket: Ticket) -> float | None:
        """Seconds until an instance is ready that starts now, or once there is room."""
        decision = self._placer.decide(self._placer.demand(ticket.deployment))
        match decision.action:
            case Start() | MigrateThenStart() as start:
                return None if start.estimate is None else start.estimate + start.distance
            case Wait(blocked=None):
                return self._room_wait(ticket, decision)
        return None

    def _room_wait(self, ticket: Ticket, decision: Decision) -> float | None:
        """Seconds until there is room: for each deployment ahead a busy instance has to end."""
        starts = [one.estimate for one in decision.candidates if one.estimate is not None]
        ends = sorted(filter(None, map(self._busy_seconds, self._state.slots.uses)))
        if not starts or not ends:
            return None
        rounds, place = divmod(self._deployments_ahead(ticket), len(ends))
        making_room = rounds * ends[-1] + ends[place] + self._state.service_times.stop_seconds
        return making_room + min(starts)

    def _busy_seconds(self, instance_id: str) -> float | None:
        """For how long an instance is expected to be busy. None: it is not, or nobody knows."""
        instance = self._state.fleet.instance(instance_id)
        if instance is None or not self._state.slots.uses[instance_id].in_flight:
            return None
        expected = self._state.service_times.expectation(instance.deployment)
        return expected.seconds if expected else None

    def _deployments_ahead(self, ticket: Ticket) -> int:
        """Deployments that have found no room and whose turn comes before a request's."""
        heads = map(self._state.queue.head, self._state.unmet - {ticket.deployment})
        return sum(head is not None and head.turn <= ticket.turn for head in heads)
