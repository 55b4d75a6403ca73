"""The control plane of a simulation: its passes, over the real queue, autoscaler and placement."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.simulation.conversations import Caches
from bench.simulation.events import Events
from bench.simulation.hardware import MIGRATION_SECONDS
from bench.simulation.instances import Instances
from bench.simulation.mechanisms import PLAIN, Keeper, Mechanisms, Tuner
from bench.simulation.needs import need_of, scaling_of, seconds_per_token
from bench.simulation.node import SimulatedNode
from bench.simulation.policies import Policy, PreemptThenStart
from bench.simulation.request import Request
from bench.simulation.workload import Trace
from sllm.control.cluster.instances import Instance, InstanceState
from sllm.control.cluster.snapshot import Snapshot
from sllm.control.cluster.specs import EngineConfig
from sllm.control.cluster.usage import MigrationCost
from sllm.control.config import ControlConfig
from sllm.control.deployments import autoscaler
from sllm.control.orchestration.residency import Residency
from sllm.control.placement import placement
from sllm.control.placement.decisions import Demand, MigrateThenStart, Start, Wait
from sllm.control.requests.pauses import Arrivals
from sllm.control.requests.queue import RequestQueue

CONFIG = ControlConfig(directory=Path())
"""The control plane's defaults."""
CONCURRENCY = EngineConfig().max_concurrency
"""Requests that an instance works on at once: a deployment's default. Decoding is taken to be no
slower for that: it is the reading of the weights, which is done once for all of them."""


class Simulation:
    """One trace on one cluster under one policy.

    Each pass is the orchestrator's: dispatch, scale, then place, the longest wait first.
    """

    def __init__(
        self,
        nodes: Iterable[SimulatedNode],
        trace: Trace,
        policy: Policy,
        concurrency: int = CONCURRENCY,
        mechanisms: Mechanisms = PLAIN,
    ) -> None:
        self._nodes = list(nodes)
        self._server = self._nodes[0].server
        self._decide = policy
        self._events = Events()
        self._clock = self._events.clock
        self._due: set[str] = set()
        self._unmet: set[str] = set()
        self._queue: RequestQueue[Request] = RequestQueue()
        self._room_changed = False
        self._residency = Residency(CONFIG.residency_factor, CONFIG.longest_residency_seconds)
        self.instances = Instances(
            self._events, self._nodes, self._residency, self._due.add, self._more_room
        )
        self._mechanisms = mechanisms
        self._arrivals = Arrivals()
        keeper = Keeper(self.instances.fleet, self._arrivals)
        self._keeper = keeper if mechanisms.learned else None
        self._tuner = Tuner(mechanisms.target) if mechanisms.target else None
        self.instances.request_ended = self._ended
        self.requests = [Request(one, trace.models[one.deployment]) for one in trace.arrivals]
        self.waiting_at_last = 0
        """Requests that waited when the last one came."""
        self.decision_seconds: list[float] = []
        """Real time of every decision."""
        self._models = trace.models
        self._caches = Caches(self._server, mechanisms.kept_bytes)
        link = self._server.remote_bytes_per_second if mechanisms.moves_caches else None
        if link:
            for one in self.requests:
                one.move_per_token = trace.models[one.deployment].kv_bytes_per_token / link
        self._concurrency = concurrency
        self._needs = {
            name: need_of(name, one, self._server, concurrency)
            for name, one in self._models.items()
        }
        per_token = seconds_per_token(self._models.values(), link)
        self._migration = MigrationCost(per_token, MIGRATION_SECONDS)
        self._scaling = {
            name: scaling_of(one, self._server, mechanisms.keep_alive)
            for name, one in self._models.items()
        }
        for request in self.requests:
            self._events.at(request.arrival.at, partial(self._arrive, request))

    def run(self) -> None:
        """Runs until every request has ended."""
        self._events.run(self._passes)
        left = [one for one in self.requests if one.ended_at is None]
        assert not left, f"{len(left)} requests never ended"

    @property
    def utilisation(self) -> float:
        """Share of all GPUs' time that requests and loads took, until all had ended."""
        gpus = sum(one.server.gpus for one in self._nodes)
        return self.instances.busy_gpu_seconds / (gpus * self._clock.now())

    def check_integrity(self) -> None:
        """Raises AssertionError if anything is used twice or counted wrongly."""
        self.instances.check_integrity()
        for node in self._nodes:
            node.check_integrity()

    def _arrive(self, request: Request) -> None:
        name, now = request.deployment, self._clock.now()
        uses = (self.instances.slots.uses.get(one.instance_id) for one in self._present(name))
        alone = not self._queue.count(name) and not any(use and use.in_flight for use in uses)
        self._arrivals.arrived(name, now, alone=alone)
        self._queue.add(request)
        self._due.add(request.deployment)
        if request is self.requests[-1]:
            self.waiting_at_last = len(self._queue)

    def _present(self, name: str) -> tuple[Instance, ...]:
        return self.instances.fleet.instances_of(name)

    def _ended(self, instance_id: str, request: Request) -> None:
        """A request has ended: that is when something is learned of it."""
        now, use = self._clock.now(), self.instances.slots.uses.get(instance_id)
        instance = self.instances.running[instance_id].instance
        self._caches.leave(request, instance, self._models[request.deployment])
        self._arrivals.ended(request.deployment, now)
        if self._tuner and use:
            limit = self._tuner.ended(instance_id, use, request.pace, self._concurrency, now)
            self.instances.slots.limit(instance_id, limit)

    def _more_room(self) -> None:
        self._room_changed = True

    # --- a pass -------------------------------------------------------------------------------

    def _passes(self) -> None:
        """What a pass changes may be reason for another, at the same moment."""
        while self._due or self._room_changed:
            self._pass()

    def _pass(self) -> None:
        due = self._due | self._unmet if self._room_changed else set(self._due)
        self._due.clear()
        self._room_changed = False
        for name in sorted(due):
            self._dispatch(name)
        wanted = self._wanted(due)
        if wanted:  # room goes to whoever has waited longest, not to whoever was woken
            unmet, self._unmet = self._unmet, set()
            self._place_all(wanted | self._wanted(unmet - due))

    def _wanted(self, names: Iterable[str]) -> dict[str, int]:
        """How many instances to add, for each deployment that lacks any."""
        return {name: count for name in sorted(names) if (count := self._scale(name))}

    def _dispatch(self, name: str) -> None:
        while request := self._queue.head(name):
            instances, uses = self._present(name), self.instances.slots.uses
            way = partial(self._way, request.arrival.zone)
            chosen = placement.free_instance(instances, uses, self._concurrency, way)
            if chosen is None:
                return
            self._begin(self._queue.pop(name), chosen)

    def _way(self, origin: str, instance: Instance) -> float:
        return self._mechanisms.way(origin, self.instances.zone_of(instance))

    def _begin(self, request: Request, instance: Instance) -> None:
        beside = self.instances.slots.uses[instance.instance_id].in_flight
        zone = self.instances.zone_of(instance)
        way = self._mechanisms.zones.seconds(request.arrival.zone, zone)
        prefill = self._caches.seconds(request, instance, self._models[request.deployment])
        request.begin(1 + self._mechanisms.slowdown * beside, way, prefill)
        self.instances.serve(instance.instance_id, request)

    def _scale(self, name: str) -> int:
        scaling, weights = self._scaling[name], None
        if self._keeper and (times := self._keeper.times(self._needs[name], scaling.keep_alive)):
            scaling, weights = replace(scaling, keep_alive=times[0]), times[1] - times[0]
        plan = autoscaler.plan(self._load(name), scaling, self._clock.now())
        for instance_id in plan.stop:
            self.instances.end(instance_id, weights)
        if plan.next_expiry is not None:
            self._events.at(plan.next_expiry, lambda: self._due.add(name))
        return plan.start

    def _load(self, name: str) -> autoscaler.Load:
        instances, uses = self._present(name), self.instances.slots.uses
        ready = [one.instance_id for one in instances if one.state is InstanceState.READY]
        return autoscaler.Load(
            waiting=self._queue.count(name),
            ready=[
                autoscaler.Replica(key, uses[key].in_flight, uses[key].last_used) for key in ready
            ],
            starting=sum(one.state is InstanceState.STARTING for one in instances),
            max_concurrency=placement.slots_each(instances, uses, self._concurrency),
        )

    def _place_all(self, wanted: Mapping[str, int]) -> None:
        """Those who have waited longest come first."""
        closed: dict[str, str] = {}
        for name in sorted(wanted, key=self._age):
            for _ in range(wanted[name]):
                if not self._place(name, closed):
                    self._unmet.add(name)
                    break

    def _age(self, name: str) -> tuple[float, str]:
        head = self._queue.head(name)
        return (head.enqueued_at if head else self._clock.now()), name

    def _place(self, name: str, closed: dict[str, str]) -> bool:
        self.instances.report()
        snapshot = self._snapshot()
        demand = self._demand(name, closed)
        began = time.perf_counter()
        action = self._decide(snapshot, demand)
        self.decision_seconds.append(time.perf_counter() - began)
        match action:
            case Start() as start:
                self._start(name, start)
            case MigrateThenStart() as migration:
                self._migrate(name, migration)
            case PreemptThenStart(start):
                self._preempt(name, start)
            case Wait() as wait:
                self._wait(name, wait, closed)
                return False
        return True

    def _snapshot(self) -> Snapshot:
        instances = self.instances
        snapshot = instances.fleet.snapshot(instances.slots.uses, frozenset())
        running = instances.requests_by_instance()
        return replace(snapshot, needs=self._needs, running=running, migration=self._migration)

    def _start(self, name: str, start: Start) -> None:
        self._end_all(start.victims)
        self.instances.start(self._needs[name], start.node_id, estimate=start.estimate)

    def _end_all(self, victims: Iterable[str]) -> None:
        """Ends idle instances so that others find room."""
        for victim in victims:
            self._displaced(victim)
            self.instances.end(victim)

    def _displaced(self, instance_id: str) -> None:
        deployment = self.instances.running[instance_id].instance.deployment
        self._residency.displaced(deployment, self._clock.now())

    def _migrate(self, name: str, migration: MigrateThenStart) -> None:
        self._end_all(migration.victims)
        for move in migration.moves:
            self._end_all(move.victims)
            self.instances.migrate(move)
        leaving = [move.instance_id for move in migration.moves]
        need, estimate = self._needs[name], migration.estimate
        self.instances.start(need, migration.node_id, estimate=estimate, after=leaving)

    def _preempt(self, name: str, start: Start) -> None:
        for victim in start.victims:
            self._displaced(victim)
            for request in self.instances.preempt(victim):
                self._queue.add(request)  # it regains its place
                self._due.add(request.deployment)
        self._start(name, replace(start, victims=()))

    def _demand(self, name: str, closed: Mapping[str, str]) -> Demand:
        waited = self._clock.now() - self._age(name)[0]
        alone = not self.instances.fleet.instances_of(name)
        return Demand(
            need=self._needs[name],
            waiting=self._queue.count(name),
            slot_wait=self._slot_wait(name),
            impatient=alone and waited >= CONFIG.drain_patience_seconds,
            closed=closed,
            resident=frozenset(self._residency.resident(self._clock.now())),
            origins=self._mechanisms.origins([one.arrival.zone for one in self._queue.of(name)]),
        )

    def _slot_wait(self, name: str) -> float:
        """As the control plane's placer has it."""
        expected = self.instances.service_times.expectation(name)
        instances = self.instances.fleet.instances_of(name)
        if expected is None:
            return math.inf
        each = placement.slots_each(instances, self.instances.slots.uses, self._concurrency)
        starting = sum(one.state is InstanceState.STARTING for one in instances)
        beyond = max(0, self._queue.count(name) - starting * each)
        return expected.slot_wait(beyond, (len(instances) - starting) * each)

    def _wait(self, name: str, wait: Wait, closed: dict[str, str]) -> None:
        if wait.node_id:
            closed[wait.node_id] = f"room is being made there for {name}"
        for instance_id in wait.drain:
            self._displaced(instance_id)
            self.instances.drain(instance_id)
        resident = self._residency.resident(self._clock.now())
        if resident:
            self._events.at(min(resident.values()), lambda: self._due.add(name))
        due = self._age(name)[0] + CONFIG.drain_patience_seconds
        if due > self._clock.now():
            self._events.at(due, lambda: self._due.add(name))
