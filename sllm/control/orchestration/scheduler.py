"""Who gets room, and what becomes of those who find none."""

from collections.abc import Mapping
from functools import partial

from sllm.clock import Clock
from sllm.control.cluster.tiers import Tier
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.evacuator import Evacuator
from sllm.control.orchestration.line import Line, Turn
from sllm.control.orchestration.placer import Placer, Way
from sllm.control.orchestration.residency import Residency
from sllm.control.placement import placement
from sllm.control.placement.decisions import Blocked, MigrateThenStart, Start, Wait
from sllm.control.placement.placement import Decision
from sllm.control.state import tenancy, tier_bytes
from sllm.control.state.state import State
from sllm.control.tenants.limits import never_an_instance, never_room
from sllm.control.tenants.names import tenant_of
from sllm.control.tenants.shares import Shares


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

        Where there are several tenants, whoever has least of its share comes before that.
        Deployments that are unmet have to be among them: who is unmet is found anew.
        """
        self._state.unmet.clear()
        if not wanted:
            return
        closed: dict[str, str] = {}
        left, shares = dict(wanted), tenancy.shares(self._state)
        contested = len(set(map(tenant_of, wanted))) > 1
        line = Line(partial(self._turn, shares=shares if contested else None), wanted)
        for name in line:
            if self._place(name, closed, shares):
                shares.took(name)
                left[name] -= 1
                if left[name]:
                    line.put(name)

    def _turn(self, name: str, shares: Shares | None) -> Turn:
        head, share = self._state.queue.head(name), shares.used(name) if shares else 0.0
        return Turn(head is None, share, head.turn if head else 0.0, name)

    def _place(self, name: str, closed: dict[str, str], shares: Shares) -> bool:
        """Finds a node for one more instance; says whether it is on its way.

        `closed` are nodes where room is being made for older requests, and for whom: others leave
        them alone, or the room would go to whoever asks at the right moment.
        """
        if name in self._state.making_way:  # what was decided is being done
            self._state.unmet.add(name)
            return False
        beyond = tier_bytes.closed(self._state, name)
        if shares.is_full(name) or (beyond and beyond.keys() >= self._state.fleet.nodes.keys()):
            self._wait_for_own(name, beyond)
            return False
        barred = {
            **closed,
            **dict.fromkeys(beyond, "its tenant may have no more bytes there"),
        }
        decision = self._placer.decide(self._placer.demand(name, barred, shares))
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

    def _wait_for_own(self, name: str, beyond: Mapping[str, Tier]) -> None:
        """Waits for an instance of the same tenant to end, which has as many as it may have.

        Or as many bytes: `beyond` are nodes where it would have more, and of which tier.
        """
        state, now = self._state, self._clock.now()  # as of before anything is decided
        state.unmet.add(name)
        turns = self._residency.resident(now).values()
        if not self._takes_a_place(name):
            return
        nowhere = bool(beyond) and beyond.keys() >= state.fleet.nodes.keys()
        too_large = nowhere and all(
            tier_bytes.never_fits(state, name, tier) for tier in set(beyond.values())
        )
        way = Way.NEVER if too_large else self._placer.make_own_way(name)
        if way is Way.MADE or state.fleet.instances_of(name) or not state.queue.head(name):
            return
        never = way is Way.NEVER
        config = self._config
        patience = config.node_patience_seconds if never else config.drain_patience_seconds
        left = patience - state.queue.waited(name, now)
        if left > 0:
            self._agenda.later(name, now + left)
        elif never:
            self._fail_for_own(name, beyond)
        elif turns:  # what starts, or drains, wakes whoever waits for it
            self._agenda.later(name, min(turns))

    def _takes_a_place(self, name: str) -> bool:
        """Whether another instance of the same tenant is to end for one of a deployment.

        Requests wait without any instance, or min_replicas asks for one, or others from before a
        change are to be replaced.
        """
        state, count = self._state, len(self._state.fleet.instances_of(name))
        least = state.kept_replicas.get(name, 0)
        alone = count == 0 and state.queue.head(name) is not None
        return alone or count < least or bool(state.outdated_replicas(name))

    def _fail_for_own(self, name: str, beyond: Mapping[str, Tier]) -> None:
        tenant, kept = tenant_of(name), len(self._placer.own_instances(name))
        limits = self._state.tenants.limits_of(tenant)
        error = never_an_instance(tenant, limits, kept)
        if beyond and (limits.replicas is None or kept < limits.replicas):
            error = never_room(tenant, min(beyond.values()).name)
        self._state.fail_waiting(name, error)

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
