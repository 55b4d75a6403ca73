"""Carries placement's decisions out, in the order of whose turn it is."""

import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.config import ControlConfig
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.residency import Residency
from sllm.control.placement import placement
from sllm.control.placement.decisions import Blocked, Demand, MigrateThenStart, Start, Wait
from sllm.control.placement.placement import Decision
from sllm.control.state import failed_starts
from sllm.control.state.state import StartUnderWay, State

log = structlog.get_logger()


class Placer:
    """Starts, drains, or tells those who wait in vain."""

    def __init__(
        self,
        state: State,
        launcher: Launcher,
        clock: Clock,
        config: ControlConfig,
        later: Callable[[str, float], None],
        make_way: Callable[[str, MigrateThenStart], None],
    ) -> None:
        """`later` is told when time alone makes a deployment due, in the clock's seconds.

        `make_way` migrates instances away for a deployment, which is among `making_way` until then.
        """
        self.unmet: set[str] = set()
        """Deployments that wanted room and found none."""
        self.making_way: set[str] = set()
        """Deployments for which running instances are being migrated away."""
        self._state = state
        self._launcher = launcher
        self._clock = clock
        self._config = config
        self._later = later
        self.residency = Residency(config.residency_factor, config.longest_residency_seconds)
        self._make_way = make_way
        self._unmoved_until: dict[str, float] = {}
        """In the clock's seconds."""

    def place_all(self, wanted: Mapping[str, int]) -> None:
        """Finds nodes for as many more instances of each deployment, the longest wait first.

        Those that were unmet have to be among them.
        """
        self.unmet.clear()
        closed: dict[str, str] = {}
        for name in sorted(wanted, key=self._age):
            for _ in range(wanted[name]):
                if not self._place(name, closed):
                    break

    def demand(self, name: str, closed: Mapping[str, str] | None = None) -> Demand:
        """What a deployment wants now.

        Args:
            name: The deployment.
            closed: Nodes where room is being made for older requests, and for whom.
        """
        failed = self._state.failed_starts.get(name)
        patience = self._config.drain_patience_seconds
        alone = not self._state.fleet.instances_of(name)
        return Demand(
            need=self._state.needs[name],
            waiting=self._state.queue.count(name),
            slot_wait=self._slot_wait(name),
            impatient=alone and self._waited(name) >= patience,
            failed=failed.nodes if failed else frozenset(),
            closed=closed or {},
            draining=frozenset(self._state.draining),
            resident=frozenset(self.residency.resident(self._clock.now())),
        )

    def _slot_wait(self, name: str) -> float:
        """See `Demand.slot_wait`: as long as requests take, and slots there are."""
        state, scaling = self._state, self._state.deployments[name].spec.scaling
        instances, most = state.fleet.instances_of(name), state.needs[name].max_concurrency
        expected = state.service_times.expectation(name)
        spread = (scaling.target_concurrency or most) < most  # more instances than slots ask for
        if expected is None or spread or len(instances) < scaling.min_replicas:
            return math.inf
        starting = sum(one.state is InstanceState.STARTING for one in instances)
        beyond = max(0, state.queue.count(name) - starting * most)
        return expected.slot_wait(beyond, (len(instances) - starting) * most)

    def decide(self, demand: Demand) -> Decision:
        """What placement says to a demand now. Changes nothing."""
        state = self._state
        if self._config.migrate and demand.need.deployment not in self._unmoved():
            demand = replace(demand, may_migrate=True)
            return placement.place(state.snapshot_for_moves(), demand)
        return placement.place(state.snapshot(), demand)

    def way_failed(self, name: str) -> None:
        """Notes that what was to make way for a deployment has stayed.

        For a while nothing is asked to again: it would most likely stay as well.
        """
        moment = self._clock.now() + self._config.drain_patience_seconds
        self._unmoved_until[name] = moment
        self._later(name, moment)

    def _unmoved(self) -> set[str]:
        """Deployments for which nothing is migrated away now."""
        now = self._clock.now()
        kept = {name: moment for name, moment in self._unmoved_until.items() if moment > now}
        self._unmoved_until = kept
        return set(kept)

    def start_succeeded(self, start: StartUnderWay) -> None:
        """An instance is ready; if it comes back from making room, its turn begins."""
        now = self._clock.now()
        instance_id, name = start.instance.instance_id, start.deployment.name
        self.residency.ready(instance_id, name, now - start.decided_at, now)

    def start_failed(self, start: StartUnderWay, error: errors.SllmError) -> None:
        """A start that fails is tried once more, on another node; then those who wait are told."""
        name, node_id = start.deployment.name, start.instance.node_id
        error = failed_starts.start_error(name, node_id, error)
        log.warning("control.start_failed", instance=start.instance.instance_id, error=str(error))
        before = self._state.failed_starts.get(name)
        failed = failed_starts.another(before, node_id, error, self._clock.now())
        self._state.failed_starts[name] = failed
        if failed.exhausted and not self._state.fleet.instances_of(name):
            self._fail_waiting(name, error)

    def _age(self, name: str) -> tuple[bool, float, str]:
        head = self._state.queue.head(name)
        return head is None, head.turn if head else 0.0, name

    def _waited(self, name: str) -> float:
        """Seconds that the oldest request has waited; 0 if there is none."""
        since = self._state.queue.waiting_since(name)
        return 0.0 if since is None else self._clock.now() - since

    def _place(self, name: str, closed: dict[str, str]) -> bool:
        """Finds a node for one more instance; says whether it is on its way."""
        if name in self.making_way:  # what was decided is being done
            self.unmet.add(name)
            return False
        decision = self.decide(self.demand(name, closed))
        match decision.action:
            case Start() as start:
                self.start(name, start)
                return True
            case MigrateThenStart() as action:
                self.unmet.add(name)
                closed[action.node_id] = f"room is being made there for {name}"
                self._make_way(name, action)
            case Wait() as wait:
                self._wait(name, decision, wait, closed)
        return False

    def start(self, name: str, start: Start, *, for_move: bool = False) -> Instance:
        """Begins an instance where placement has decided; it is in the fleet from now on."""
        for victim in start.victims:
            self._change(victim, self._launcher.end)
        instance = Instance(
            instance_id=f"{name}-{uuid.uuid4().hex[:12]}",
            deployment=name,
            node_id=start.node_id,
            state=InstanceState.STARTING,
            kv_bytes=start.kv_bytes,
        )
        log.info(
            "control.start",
            instance=instance.instance_id,
            node=start.node_id,
            estimate=start.estimate,
            victims=start.victims,
        )
        deployment = self._state.deployments[name]
        self._launcher.begin(deployment, instance, start.estimate, for_move=for_move)
        return instance

    def _wait(self, name: str, decision: Decision, wait: Wait, closed: dict[str, str]) -> None:
        self.unmet.add(name)
        if decision.demand.resident:
            now = self._clock.now()
            turns = self.residency.resident(now).values()
            self._later(name, min(turns, default=now))  # the last may have ended just now
        if wait.node_id:
            closed[wait.node_id] = f"room is being made there for {name}"
        for instance_id in wait.drain:
            self._change(instance_id, self._launcher.drain)
        if self._state.queue.head(name) and not self._state.fleet.instances_of(name):
            self._wait_alone(name, decision, wait)

    def _wait_alone(self, name: str, decision: Decision, wait: Wait) -> None:
        """What becomes of requests for which no instance is there, nor on its way."""
        if wait.blocked is Blocked.FAILED:
            self._fail_waiting(name, self._state.failed_starts[name].error)
            return
        config, waited = self._config, self._waited(name)
        patience = config.node_patience_seconds if wait.blocked else config.drain_patience_seconds
        if waited < patience:
            self._later(name, self._clock.now() + patience - waited)
        elif wait.blocked:
            self._fail_waiting(name, placement.blocked_error(decision, wait.blocked))

    def _change(self, instance_id: str, change: Callable[[Instance], None]) -> None:
        """Ends or drains an instance so that another one finds room."""
        if instance := self._state.fleet.instance(instance_id):
            log.info("control.yield", instance=instance_id, node=instance.node_id)
            change(instance)
            self.residency.displaced(instance.deployment, self._clock.now())
            self._state.changes.notify(instance.deployment)

    def _fail_waiting(self, name: str, error: errors.SllmError) -> None:
        for ticket in self._state.queue.of(name):
            self._state.queue.remove(ticket)
            ticket.fail(error)
        if failed := self._state.failed_starts.get(name):
            self._state.failed_starts[name] = failed.forgiven()
        self._state.changes.notify(name)
