"""Starts and stops instances on nodes, and follows each until it has ended."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace

import structlog
from opentelemetry import trace
from opentelemetry.context import Context

from sllm import errors
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.cluster.instances import Instance, Planned
from sllm.control.cluster.needs import Need, need_of
from sllm.control.cluster.specs import Deployment
from sllm.control.config import ControlConfig
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.outcomes import Outcomes
from sllm.control.placement import room
from sllm.control.placement.lenders import loan_for
from sllm.control.placement.start_estimate import need_on
from sllm.control.state.starts import StartUnderWay
from sllm.control.state.state import State
from sllm.control.tasks import Tasks
from sllm.control.types.givers import Helpers, Loan
from sllm.control.types.receipts import StartRecord
from sllm.control.types.status import Loading
from sllm.control.wire.node_messages import Ready, StopOrder
from sllm.control.wire.nodes import Nodes

log = structlog.get_logger()
tracer = trace.get_tracer("sllm")

_FAILED_KEPT = 256
_LOOK_SECONDS = 0.02
"""Between two looks at how far a start is."""
_STOP_TRIES = 3
_RETRY_SECONDS = 0.5
LONGEST_GRACE = 7 * 24 * 3600.0
"""Seconds that stand for as long as it takes."""
_LATER_SECONDS = 2.0
"""Between later tries to stop an instance: its node is there, and cannot be reached."""


class Launcher:
    """The work on nodes that the orchestrator decides on."""

    def __init__(
        self,
        state: State,
        nodes: Nodes,
        outcomes: Outcomes,
        agenda: Agenda,
        clock: Clock,
        config: ControlConfig,
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._outcomes = outcomes
        self._agenda = agenda
        self._clock = clock
        self._config = config
        self._tasks = Tasks()
        self._failed: deque[str] = deque(maxlen=_FAILED_KEPT)
        """Instances whose start has failed, the latest."""
        self._stops: dict[str, dict[str, asyncio.Task[None]]] = {}
        """Stops without grace that are under way, by node and instance."""

    def begin(
        self,
        deployment: Deployment,
        instance: Instance,
        estimate: float | None = None,
        *,
        for_move: bool = False,
    ) -> None:
        """Keeps room for an instance and starts it; `for_move`: see `StartUnderWay`."""
        need = self._need_on(instance.node_id, self._state.needs[deployment.name])
        instance = replace(instance, ready_made=instance.ready_made or need.over_ready)
        size, form = need.pool_bytes, need.made_for
        self._state.fleet.plan(Planned(instance, need.checkpoint.key, size, form))
        now = self._clock.now()
        start = StartUnderWay(deployment, instance, now, estimate, for_move=for_move)
        self._state.starts[instance.instance_id] = start
        self._tasks.spawn(self._start(start), name=f"start {instance.instance_id}")

    def _need_on(self, node_id: str, need: Need) -> Need:
        """What a start on a node needs there, by what the node says now."""
        fleet = self._state.fleet
        node = fleet.nodes.get(node_id)
        return need_on(node, need, fleet.typical) if node else need

    def join(self, deployment: Deployment, instance: Instance) -> None:
        """Follows a start that a node has begun for an earlier control plane.

        A start that has failed is not followed: a report from before its end may be late.
        """
        if instance.instance_id not in (*self._state.starts, *self._failed):
            self.begin(deployment, instance)

    def end(self, instance: Instance, keep_weights: float | None = None) -> None:
        """Stops an instance at once; its room counts as free from now on.

        `keep_weights`: seconds for which its weights are worth their room in DRAM. None: not known.
        """
        for ticket in self._state.background_on(instance.instance_id):
            ticket.give_way()
        self._state.fleet.leave(instance.instance_id)
        self.forget([instance.instance_id])
        if start := self._state.starts.get(instance.instance_id):
            start.withdrawn = True
        stops = self._stops.setdefault(instance.node_id, {})
        stops[instance.instance_id] = self._stop_later(instance, 0.0, keep_weights)

    def dismiss(self, instance_id: str, keep_weights: float | None = None) -> None:
        """Stops an instance that nobody needs, or that has failed a request, unless it is gone.

        `keep_weights`: as `end` has it.
        """
        if instance := self._state.fleet.instance(instance_id):
            self.end(instance, keep_weights)
            self._agenda.wake(instance.deployment)

    def drain(self, instance: Instance, grace: float | None = None) -> None:
        """Stops an instance once its requests have ended; it gets no more.

        Args:
            instance: Which.
            grace: Seconds that they have at most. None: as long as when it yields to others.
        """
        self._state.fleet.drain(instance.instance_id)
        self._stop_later(instance, self._config.drain_grace_seconds if grace is None else grace)

    def retire(self, instance_id: str) -> None:
        """Has an instance that is replaced end with what it has, however long that takes."""
        if instance := self._state.fleet.instance(instance_id):
            log.info("control.replaced", instance=instance_id, node=instance.node_id)
            self.drain(instance, LONGEST_GRACE)
            self._state.changes.notify(instance.deployment)

    def forget(self, instance_ids: Iterable[str]) -> None:
        """Drops what is kept of instances that are gone."""
        for instance_id in instance_ids:
            self._state.outdated.discard(instance_id)
            self._state.slots.forget(instance_id)
            self._state.records.pop(instance_id, None)

    async def follow(self, instance: Instance) -> AsyncGenerator[Loading]:
        """How far the start of an instance is, until it is ready.

        Raises:
            errors.SllmError: It has failed.
        """
        start = self._state.starts.get(instance.instance_id)
        told: Loading | None = None
        while start and instance.instance_id in self._state.starts:
            if start.loading and start.loading != told:
                told = start.loading
                yield told
            await self._clock.sleep(_LOOK_SECONDS)
        if start and start.error:
            raise start.error

    async def close(self) -> None:
        """Leaves all work to the nodes, which go on with it."""
        await self._tasks.close()

    # --- starts -------------------------------------------------------------------------------

    async def _start(self, start: StartUnderWay) -> None:
        name, instance = start.deployment.name, start.instance
        attributes = {"sllm.deployment": name, "sllm.node": instance.node_id}
        error: errors.SllmError | None = None
        try:
            cause = self._cause(name)
            with tracer.start_as_current_span("sllm.start", cause, attributes=attributes):
                await self._room_made(start)
                self._ready(start, await self._call(start))
        except errors.SllmError as failure:
            error = start.error = failure
            self._failed.append(instance.instance_id)
            self._state.fleet.settle(instance.node_id, instance.instance_id, None)
        finally:
            self._state.starts.pop(instance.instance_id, None)
        metrics.instance_starts.add(
            1, {"deployment": name, "outcome": error.reason if error else "ok"}
        )
        if error:
            self._outcomes.failed(start, error)
        else:
            self._outcomes.succeeded(start)
        self._agenda.wake(name)
        self._agenda.wake_for_room()

    def _cause(self, name: str) -> Context | None:
        """The trace of the request that waits longest, of which the start is a part."""
        first = next(iter(self._state.queue.of(name)), None)
        return trace.set_span_in_context(first.span) if first else None

    async def _room_made(self, start: StartUnderWay) -> None:
        """Returns once the room of a start is free; it counts so since others were told to end."""
        need = self._state.needs.get(start.deployment.name)
        if need is None:
            return  # the deployment was deleted: its start is withdrawn
        need = self._need_on(start.instance.node_id, need)
        stops = self._stops.get(start.instance.node_id)
        view = self._state.fleet.nodes.get(start.instance.node_id)
        # Where the weights fit beside those that end, the load goes ahead meanwhile.
        if stops and view and not room.shortage(view.with_leaving, need, 0).none:
            await asyncio.wait(list(stops.values()))

    async def _call(self, start: StartUnderWay) -> Ready:
        instance = start.instance
        node = self._nodes.by_id.get(instance.node_id)
        if start.withdrawn or node is None:
            raise errors.NodeLost(f"node {instance.node_id} went before the start began")
        start.called_at = self._clock.now()
        timeout = self._config.start_timeout_seconds
        need = need_of(start.deployment)
        loan = self._loan(need, instance)
        forms = self._state.deliveries.forms(instance.node_id, need)
        with self._state.deliveries.to(instance.node_id, need.checkpoint) as givers:
            helpers = Helpers(givers, loan, forms)
            starting = node.start_instance(start.deployment, instance, timeout, helpers)
            async with aclosing(starting) as steps:
                async for step in steps:
                    if isinstance(step, Ready):
                        return step
                    self._show(start, step)
        raise errors.StartFailed(f"node {instance.node_id} left the start without an answer")

    def _loan(self, need: Need, instance: Instance) -> Loan | None:
        """Who computes layers for a start until its weights are there."""
        fleet = self._state.fleet
        view = fleet.nodes.get(instance.node_id)
        if not self._config.lend_layers or view is None:
            return None
        closed = self._state.draining
        loan = loan_for(view, fleet.nodes, need, instance.kv_bytes, fleet.typical, closed)
        if loan:
            lenders = [one.node_id for one in loan.lenders]
            about = {"instance": instance.instance_id, "node": instance.node_id}
            log.info("control.layers_lent", lenders=lenders, gain=round(loan.gain, 3), **about)
        return loan

    def _show(self, start: StartUnderWay, loading: Loading) -> None:
        """Tells those who wait how far a start is; of several starts, how far the first is."""
        if loading.remaining is None and start.estimate is not None:
            remaining = start.decided_at + start.estimate - self._clock.now()
            loading = replace(loading, remaining=max(0.0, remaining))
        start.loading = loading
        name = start.deployment.name
        if self._state.first_start(name) is start:
            for ticket in self._state.queue.of(name):
                ticket.show(loading)

    def _ready(self, start: StartUnderWay, ready: Ready) -> None:
        instance = ready.instance
        now = self._clock.now()
        # The report that tells of it comes later; those who wait need not wait for that.
        self._state.fleet.settle(start.instance.node_id, instance.instance_id, instance)
        if start.withdrawn:
            return  # it is being stopped already: nobody would drop what is kept of it
        self._state.slots.add(instance.instance_id, start.instance.node_id, now)
        record = StartRecord(
            decided_at=start.decided_at,
            called_at=start.called_at,
            ready_at=now,
            phases=ready.phases,
            from_tier=ready.from_tier,
            estimate=start.estimate,
        )
        self._state.records[instance.instance_id] = record
        metrics.record_start(record)
        if record.estimate is not None and not ready.weights_arriving:
            self._state.fleet.start_ended(record.estimate, record.seconds)
        self._state.learn_model(start.deployment.name, ready.model)

    # --- stops --------------------------------------------------------------------------------

    def _stop_later(
        self, instance: Instance, grace: float, keep_weights: float | None = None
    ) -> asyncio.Task[None]:
        stop = self._stop(instance, StopOrder(grace, keep_weights))
        return self._tasks.spawn(stop, name=f"stop {instance.instance_id}")

    async def _stop(self, instance: Instance, order: StopOrder) -> None:
        """Tries until it has ended or its node is gone."""
        began = self._clock.now()
        try:
            for _ in range(_STOP_TRIES):
                if await self._try_stop(instance, order):
                    if not order.grace:
                        self._state.service_times.stopped(self._clock.now() - began)
                    return
                await self._clock.sleep(_RETRY_SECONDS)
        finally:
            self._stop_ended(instance)
        # Nobody knows when it will end: what counted on its room is to look elsewhere meanwhile.
        self._state.fleet.stay(instance.node_id, instance.instance_id)
        self._agenda.wake(instance.deployment)
        self._agenda.wake_for_room()
        while not await self._try_stop(instance, order):
            await self._clock.sleep(_LATER_SECONDS)

    async def _try_stop(self, instance: Instance, order: StopOrder) -> bool:
        node = self._nodes.by_id.get(instance.node_id)
        if node is None:
            return True  # it went with its node
        try:
            await node.stop_instance(instance.instance_id, order)
        except errors.SllmError as error:
            log.warning("control.stop_failed", instance=instance.instance_id, error=str(error))
            return False
        return True

    def _stop_ended(self, instance: Instance) -> None:
        stops = self._stops.get(instance.node_id, {})
        stops.pop(instance.instance_id, None)
        if not stops:
            self._stops.pop(instance.node_id, None)
