"""Instances on simulated servers: started, moved and ended, in simulated time.

Stands where the real system has the launcher, the nodes and their workers. What has happened is
told to the control plane's own `Fleet` and `Slots`, as reports would tell it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from bench.simulation.events import Events
from bench.simulation.node import SimulatedNode
from bench.simulation.request import Request
from sllm.control.cluster.instances import Instance, InstanceState, Planned
from sllm.control.cluster.needs import Need
from sllm.control.cluster.usage import Running as RunningRequest
from sllm.control.orchestration.residency import Residency
from sllm.control.placement.decisions import Move
from sllm.control.requests.service_times import ServiceTimes
from sllm.control.requests.slots import Slots
from sllm.control.state.fleet import Fleet
from sllm.control.types.reports import Delta, Full, Report


@dataclass(slots=True)
class Running:
    """An instance, from the decision to start it to its end."""

    instance: Instance
    need: Need
    gpus: int
    decided_at: float
    estimate: float | None
    """Seconds that placement expects. None: not known."""
    holds_gpus: bool = False
    ready: bool = False
    requests: list[Request] = field(default_factory=list)
    busy_since: float = 0.0
    """Clock's seconds since which it has had requests."""
    after: set[str] = field(default_factory=set)
    """Instances that have to go before its weights can be loaded."""
    takes_over: str = ""
    """Instance whose request it was started for. Empty: for any that waits."""
    leaving: bool = False
    """It ends with its requests."""
    held_since: float = 0.0
    """Clock's seconds since which it has its GPUs."""

    @property
    def instance_id(self) -> str:
        """Unique in the simulation."""
        return self.instance.instance_id


class Instances:
    """All that run or are about to."""

    def __init__(
        self,
        events: Events,
        nodes: Iterable[SimulatedNode],
        residency: Residency,
        changed: Callable[[str], None],
        room_changed: Callable[[], None],
    ) -> None:
        """Both are told as the orchestrator is.

        Args:
            events: Time.
            nodes: All servers.
            residency: Told of every start.
            changed: Told of deployments whose instances or requests have changed.
            room_changed: Told when a node has, or may have, more room than before.
        """
        self.fleet = Fleet()
        self.slots = Slots()
        self.service_times = ServiceTimes()
        self.running: dict[str, Running] = {}
        self.migrations = 0
        self.preemptions = 0
        self.starts: list[tuple[float, float]] = []
        """Of every start, seconds that were expected, and seconds that it took."""
        self.busy_gpu_seconds = 0.0
        """GPUs with a request or a load on them, times seconds."""
        self.held_gpu_seconds = 0.0
        """GPUs that instances had, times seconds."""
        self.held_byte_seconds = 0.0
        """Bytes of weights on them, times seconds."""
        self.request_ended: Callable[[str, Request], None] = lambda _, __: None
        """Told of each request that has ended, and of its instance."""
        self._events = events
        self._clock = events.clock
        self._nodes: Mapping[str, SimulatedNode] = {one.node_id: one for one in nodes}
        self._residency = residency
        self._changed = changed
        self._room_changed = room_changed
        self._revisions = dict.fromkeys(self._nodes, 1)
        self._stale: set[str] = set()
        """Nodes that something was done to since they last reported."""
        self._loading: set[str] = set()
        """Those whose contents change with time."""
        self._reported_at = 0.0
        self._known: Mapping[str, tuple[RunningRequest, ...]] | None = None
        self._known_at = 0.0
        self._count = 0
        for node in self._nodes.values():
            full = Full(node.facts(0.0), (*node.ssd_copies, *node.changed_copies(0.0)))
            self.fleet.apply(Report(node.node_id, 1, full), 0.0)

    # --- reports ------------------------------------------------------------------------------

    def report(self) -> None:
        """Every node whose contents have changed tells how they are now."""
        now = self._clock.now()
        if now > self._reported_at:
            self._stale |= self._loading
        for node_id in sorted(self._stale):
            node = self._nodes[node_id]
            self._tell(node_id, Delta(node.facts(now), node.changed_copies(now)))
        self._loading = {
            key for key in self._loading | self._stale if not self._nodes[key].settled(now)
        }
        self._stale.clear()
        self._reported_at = now

    def _tell(self, node_id: str, delta: Delta) -> None:
        self._revisions[node_id] += 1
        self.fleet.apply(Report(node_id, self._revisions[node_id], delta), self._clock.now())

    # --- starts -------------------------------------------------------------------------------

    def start(
        self,
        need: Need,
        node_id: str,
        *,
        estimate: float | None,
        after: Iterable[str] = (),
    ) -> str:
        """Starts an instance once those in `after` are gone; returns its id."""
        self._count += 1
        state, digest = InstanceState.STARTING, need.checkpoint.digest
        name = f"{need.deployment}#{self._count}"
        instance = Instance(name, need.deployment, node_id, state, need.kv_bytes, digest)
        self.fleet.plan(Planned(instance, need.checkpoint.key, need.checkpoint.size_bytes))
        gpus = need.kv_bytes // self._nodes[node_id].server.gpu_bytes
        started = Running(instance, need, gpus, self._clock.now(), estimate)
        started.after = {one for one in after if one in self.running}
        self.running[name] = started
        self._load_if_room(started)
        return name

    def _load_if_room(self, one: Running) -> None:
        if one.after:
            return
        now = self._clock.now()
        node = self._nodes[one.instance.node_id]
        node.take_gpus(one.gpus)
        one.holds_gpus, one.held_since = True, now
        load = node.begin_load(one.need.checkpoint.digest, now)
        self._stale.add(node.node_id)
        self.busy_gpu_seconds += one.gpus * (load.ready_at - now)

        def loaded() -> None:
            node.end_load(load)
            self._stale.add(node.node_id)
            self._ready(one)

        self._events.at(load.ready_at, loaded)

    def _ready(self, one: Running) -> None:
        now = self._clock.now()
        took = now - one.decided_at
        if one.estimate is not None:
            self.starts.append((one.estimate, took))
        self._residency.ready(one.instance_id, one.instance.deployment, took, now)
        one.ready = True
        one.instance = replace(one.instance, state=InstanceState.READY)
        self.fleet.settle(one.instance.node_id, one.instance_id, one.instance)
        self.slots.add(one.instance_id, one.instance.node_id, now)
        source = self.running.get(one.takes_over)
        if source:  # one whose requests have all ended is gone, and leaves the destination idle
            self._take_over(one, source)
        self._changed(one.instance.deployment)
        self._room_changed()

    # --- requests -----------------------------------------------------------------------------

    def serve(self, instance_id: str, request: Request) -> None:
        """Gives a request to an instance that is ready and has a free slot."""
        now = self._clock.now()
        one = self.running[instance_id]
        assert one.ready
        assert len(one.requests) < one.need.max_concurrency
        self.slots.take(instance_id, request.deployment, now)
        if not one.requests:
            one.busy_since = now
        one.requests.append(request)
        self._known = None
        ends_at, epoch = request.serve(now), request.epoch
        self._events.at(ends_at, lambda: self._end_request(one, request, epoch))

    def _end_request(self, one: Running, request: Request, epoch: int) -> None:
        if request.epoch == epoch:
            request.end(self._clock.now())
            self.service_times.served(request.deployment, request.served)
            self.request_ended(one.instance_id, request)
            self._release(one, request)
            self._changed(request.deployment)

    def _release(self, one: Running, request: Request) -> None:
        """Takes a request from an instance, which ends if it was only staying for its requests."""
        now = self._clock.now()
        one.requests.remove(request)
        self._known = None
        self.slots.release(one.instance_id, now)
        if not one.requests:
            self.busy_gpu_seconds += one.gpus * (now - one.busy_since)
            self._room_changed()
            if one.leaving:
                self._gone(one)

    def requests_by_instance(self) -> Mapping[str, tuple[RunningRequest, ...]]:
        """What placement may know of the requests under way; worked out once for each moment."""
        now = self._clock.now()
        if self._known is None or self._known_at < now:
            self._known_at = now
            self._known = {
                key: tuple(RunningRequest(r.name, r.tokens_at(now)) for r in one.requests)
                for key, one in self.running.items()
                if one.requests
            }
        return self._known

    def zone_of(self, instance: Instance) -> str:
        """Where an instance runs."""
        return self._nodes[instance.node_id].zone

    # --- ends ---------------------------------------------------------------------------------

    def end(self, instance_id: str, keep_weights: float | None = None) -> None:
        """Ends an idle instance; its weights are wanted in DRAM for so many seconds. None: on."""
        one = self.running[instance_id]
        assert not one.requests
        self._gone(one)
        if keep_weights is not None:
            node, now = self._nodes[one.instance.node_id], self._clock.now()
            node.wanted_for(one.need.checkpoint.digest, keep_weights, now)

    def drain(self, instance_id: str) -> None:
        """Ends an instance once its requests have ended; it gets no more."""
        one = self.running[instance_id]
        self.fleet.drain(instance_id)
        one.leaving = True
        if not one.requests:
            self._gone(one)

    def preempt(self, instance_id: str) -> tuple[Request, ...]:
        """Ends an instance at once; returns its requests, which have to go on elsewhere."""
        one = self.running[instance_id]
        one.leaving = True
        stopped = self._interrupt(one)
        if not stopped:
            self._gone(one)
        self.preemptions += len(stopped)
        return stopped

    def _interrupt(self, one: Running) -> tuple[Request, ...]:
        stopped = tuple(one.requests)
        for request in stopped:
            request.interrupt(self._clock.now())
            self._release(one, request)
        return stopped

    def _gone(self, one: Running) -> None:
        self.fleet.leave(one.instance_id)
        del self.running[one.instance_id]
        self.slots.forget(one.instance_id)
        self._nodes[one.instance.node_id].release_gpus(one.gpus)
        held = self._clock.now() - one.held_since
        self.held_gpu_seconds += one.gpus * held
        self.held_byte_seconds += one.need.checkpoint.size_bytes * held
        gone = replace(one.instance, state=InstanceState.GONE)
        self._tell(gone.node_id, Delta(None, instances=(gone,)))
        for other in list(self.running.values()):
            if one.instance_id in other.after:
                other.after.discard(one.instance_id)
                self._load_if_room(other)
        self._changed(gone.deployment)
        self._room_changed()

    # --- migration ----------------------------------------------------------------------------

    def migrate(self, move: Move) -> None:
        """Moves a running instance's requests to another node, then ends it."""
        source = self.running[move.instance_id]
        source.leaving = True
        self.fleet.drain(move.instance_id)  # it holds its room until it is gone
        if move.into:
            self._take_over(self.running[move.into], source)
        else:
            destination = self.start(source.need, move.to_node, estimate=move.start_seconds)
            self.running[destination].takes_over = move.instance_id

    def _take_over(self, destination: Running, source: Running) -> None:
        """The destination, which is ready, computes the KV caches and takes the requests over.

        They pause meanwhile, and the source keeps its GPUs until the last of them goes on.
        """
        now = self._clock.now()
        source.leaving = False  # until the last of them goes on
        moved = self._interrupt(source)
        self.migrations += len(moved)
        for request in moved:
            self.serve(destination.instance_id, request)
        pause = max(request.resume_seconds for request in moved)
        self._events.at(now + pause, lambda: self._gone(source))

    def check_integrity(self) -> None:
        """Raises AssertionError if GPUs or slots are counted wrongly."""
        self.fleet.check_integrity()
        held = dict.fromkeys(self._nodes, 0)
        for one in self.running.values():
            assert len(one.requests) <= one.need.max_concurrency
            held[one.instance.node_id] += one.gpus if one.holds_gpus else 0
        assert held == {key: node.gpus_used for key, node in self._nodes.items()}
