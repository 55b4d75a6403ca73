"""Asks placement on behalf of deployments, and has instances started where it says."""

import itertools
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Final

import structlog

from sllm.clock import Clock
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.zones import Origins
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.residency import Residency
from sllm.control.placement import placement
from sllm.control.placement.decisions import Demand, Start, Wait
from sllm.control.placement.placement import Decision
from sllm.control.placement.victims import cheapest
from sllm.control.state import tenancy
from sllm.control.state.state import State
from sllm.control.tenants.names import tenant_of
from sllm.control.tenants.shares import Shares

log = structlog.get_logger()

_ORIGINS_COUNTED: Final = 64
"""Requests of a line whose zones are looked at."""
_PROMPTS_LOOKED_UP: Final = 8
"""Requests of a line of whose prompts it is looked up where they are kept."""


class Way(Enum):
    """What becomes of a place for a deployment among its tenant's own instances."""

    MADE = "one of them is about to end"
    LATER = "one may end later"
    NEVER = "min_replicas keeps all of them"


class Placer:
    """What placement is asked for a deployment now, what it says, and the start that follows."""

    def __init__(
        self,
        state: State,
        launcher: Launcher,
        residency: Residency,
        agenda: Agenda,
        clock: Clock,
        config: ControlConfig,
    ) -> None:
        self._state = state
        self._launcher = launcher
        self._residency = residency
        self._agenda = agenda
        self._clock = clock
        self._config = config
        self._unmoved_until: dict[str, float] = {}
        """Until when nothing is migrated away for a deployment, in the clock's seconds."""

    # --- questions ----------------------------------------------------------------------------

    def demand(
        self, name: str, closed: Mapping[str, str] | None = None, shares: Shares | None = None
    ) -> Demand:
        """What a deployment wants now.

        Args:
            name: The deployment.
            closed: Nodes that must not be taken, and why.
            shares: What tenants have of theirs. None: it is looked up.
        """
        state, now = self._state, self._clock.now()
        failed = state.failed_starts.get(name)
        alone = not state.fleet.instances_of(name)
        waiting = state.queue.count(name)
        impatient = alone and state.queue.waited(name, now) >= self._config.drain_patience_seconds
        return Demand(
            need=state.needs[name],
            waiting=waiting,
            slot_wait=self._slot_wait(name),
            impatient=impatient,
            failed=failed.nodes if failed else frozenset(),
            closed=closed or {},
            draining=frozenset(state.draining),
            resident=frozenset(self._residency.resident(now)),
            owed=self._owed(name, shares) if impatient else None,  # else nothing is drained
            background=not waiting and self._is_for_background(name),
            origins=self._origins(name),
            kept=self._kept(name),
        )

    def _origins(self, name: str) -> Origins:
        """Where those who have waited longest are."""
        first = itertools.islice(self._state.queue.of(name), _ORIGINS_COUNTED)
        return Origins.of(self._state.zones, (one.zone for one in first))

    def _kept(self, name: str) -> Mapping[str, float]:
        """What nodes save those who have waited longest."""
        first = itertools.islice(self._state.queue.of(name), _PROMPTS_LOOKED_UP)
        return self._state.kept_prefixes.saved_on_average([one.prefixes for one in first])

    def _owed(self, name: str, shares: Shares | None) -> frozenset[str] | None:
        """`Demand.owed`, which matters only where there are several tenants."""
        shares = shares or tenancy.shares(self._state)
        if shares.of_one:
            return None
        deployments = self._state.deployments
        return frozenset(one for one in deployments if shares.owes(one, name))

    def _is_for_background(self, name: str) -> bool:
        """Whether an instance more is wanted for nothing but what nobody waits for."""
        state = self._state
        least = state.deployments[name].spec.scaling.min_replicas
        return state.background.count(name) > 0 and len(state.fleet.instances_of(name)) >= least

    def _slot_wait(self, name: str) -> float:
        """`Demand.slot_wait`, from how long requests take and how many slots there are."""
        state, scaling = self._state, self._state.deployments[name].spec.scaling
        instances, most = state.fleet.instances_of(name), state.needs[name].max_concurrency
        each = placement.slots_each(instances, state.slots.uses, most)
        expected = state.service_times.expectation(name)
        spread = (scaling.target_concurrency or most) < most  # more instances than slots ask for
        if expected is None or spread or len(instances) < scaling.min_replicas:
            return math.inf
        if state.outdated_replicas(name):
            return math.inf  # their slots are no reason to wait: they are to be replaced
        starting = sum(one.state is InstanceState.STARTING for one in instances)
        beyond = max(0, state.queue.count(name) - starting * each)
        return expected.slot_wait(beyond, (len(instances) - starting) * each)

    def decide(self, demand: Demand) -> Decision:
        """What placement says to a demand now. Changes nothing."""
        decision = self._decide(demand)
        if isinstance(decision.action, Wait) and (idle := self._idle_outdated(demand)):
            # There is no room beside what is to be replaced.
            return self._decide(replace(demand, gives_way=idle))
        return decision

    def _idle_outdated(self, demand: Demand) -> frozenset[str]:
        """Instances of a deployment that are to be replaced, and have nothing to lose."""
        uses = self._state.slots.uses
        return frozenset(
            one.instance_id
            for one in self._state.outdated_replicas(demand.need.deployment)
            if not (one.running or one.unread)
            and (use := uses.get(one.instance_id))
            and not use.in_flight
        )

    def _decide(self, demand: Demand) -> Decision:
        state = self._state
        may_migrate = self._config.migrate and not demand.background
        if may_migrate and demand.need.deployment not in self._unmoved():
            demand = replace(demand, may_migrate=True)
            return placement.place(state.snapshot_for_moves(), demand)
        return placement.place(state.snapshot(), demand)

    def _unmoved(self) -> set[str]:
        """Deployments for which nothing is migrated away now."""
        now = self._clock.now()
        kept = {name: moment for name, moment in self._unmoved_until.items() if moment > now}
        self._unmoved_until = kept
        return set(kept)

    # --- what follows -------------------------------------------------------------------------

    def start(self, name: str, start: Start, *, for_move: bool = False) -> Instance:
        """Begins an instance where placement has decided; it is in the fleet from now on."""
        deployment = self._state.deployments[name]
        for victim in start.victims:
            self._displace(victim, self._launcher.end)
        instance = Instance(
            instance_id=f"{name}-{uuid.uuid4().hex[:12]}",
            deployment=name,
            node_id=start.node_id,
            state=InstanceState.STARTING,
            kv_bytes=start.kv_bytes,
            engine=deployment.spec.engine.engine,
            private_bytes=self._state.needs[name].private_bytes,
            config=deployment.spec.engine,
        )
        log.info(
            "control.start",
            instance=instance.instance_id,
            node=start.node_id,
            estimate=start.estimate,
            victims=start.victims,
        )
        self._launcher.begin(deployment, instance, start.estimate, for_move=for_move)
        return instance

    def drain(self, instance_id: str) -> None:
        """Has a busy instance end with the requests that it has, so that another finds room."""
        self._displace(instance_id, self._launcher.drain)

    def make_own_way(self, name: str) -> Way:
        """Has an instance of the same tenant end, or drain, for one of a deployment."""
        own = self.own_instances(name)
        if any(one.state is InstanceState.DRAINING for one in own):
            return Way.MADE
        demand = replace(self.demand(name), owed=frozenset(one.deployment for one in own))
        demand = replace(demand, gives_way=self._idle_outdated(demand))
        snapshot = self._state.snapshot()
        if yields := cheapest(snapshot, demand):
            change = self._launcher.drain if yields.busy else self._launcher.end
            self._displace(yields.instance_id, change)
            return Way.MADE
        kept = all(one.instance_id in snapshot.protected for one in own)
        return Way.NEVER if kept else Way.LATER

    def own_instances(self, name: str) -> list[Instance]:
        """All instances of the tenant of a deployment, those that leave among them."""
        tenant, known = tenant_of(name), self._state.fleet.known_instances()
        return [one for one in known if tenant_of(one.deployment) == tenant]

    def _displace(self, instance_id: str, change: Callable[[Instance], None]) -> None:
        """Ends or drains an instance so that another one finds room."""
        if instance := self._state.fleet.instance(instance_id):
            log.info("control.yield", instance=instance_id, node=instance.node_id)
            change(instance)
            self._residency.displaced(instance.deployment, self._clock.now())
            self._state.changes.notify(instance.deployment)

    def way_made(self, name: str) -> None:
        """Takes in that what was to make room for a deployment has gone, or stays.

        If any of it stays, nothing is asked to go again for a while: it would most likely stay as
        well.
        """
        asked = self._state.making_way.pop(name, ())
        if any(map(self._state.fleet.instance, asked)):
            moment = self._clock.now() + self._config.drain_patience_seconds
            self._unmoved_until[name] = moment
            self._agenda.later(name, moment)
        self._agenda.wake(name)
        self._agenda.wake_for_room()
