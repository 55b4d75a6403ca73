"""The control plane's parts, put together: what its servicers call."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sllm import errors, rpc
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.access.key_ring import KeyRing
from sllm.control.batches.batches import Batches
from sllm.control.batches.keeper import BatchKeeper
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.specs import DeploymentSpec
from sllm.control.cluster.zones import zones_of
from sllm.control.config import ControlConfig
from sllm.control.deployments.catalog import Catalog
from sllm.control.deployments.clearing import Clearing
from sllm.control.deployments.evictions import Evictions
from sllm.control.deployments.inspection import Inspector
from sllm.control.deployments.keeping import Keeping
from sllm.control.deployments.preparation import Preparation
from sllm.control.deployments.scaler import Scaler
from sllm.control.operations.cluster_watch import ClusterWatch
from sllm.control.operations.deployment_watch import DeploymentWatch
from sllm.control.operations.drains import Drains
from sllm.control.operations.explaining import Explaining
from sllm.control.operations.pinning import Pinning
from sllm.control.operations.prefetching import Prefetching
from sllm.control.operations.tenancy import Tenancy
from sllm.control.operations.text_questions import TextQuestions
from sllm.control.orchestration.adoption import Adoption
from sllm.control.orchestration.agenda import Agenda
from sllm.control.orchestration.dispatcher import Dispatcher
from sllm.control.orchestration.launcher import Launcher
from sllm.control.orchestration.membership import Membership
from sllm.control.orchestration.orchestrator import Orchestrator
from sllm.control.orchestration.outcomes import Outcomes
from sllm.control.orchestration.placer import Placer
from sllm.control.orchestration.residency import Residency
from sllm.control.orchestration.roll_over import RollOver
from sllm.control.orchestration.scheduler import Scheduler
from sllm.control.routing.encodings import Encodings
from sllm.control.routing.evacuation import Evacuation
from sllm.control.routing.migrator import Migrator
from sllm.control.routing.router import Router
from sllm.control.routing.streams import Streams
from sllm.control.routing.wait_estimates import WaitEstimates
from sllm.control.state.durable import Durable
from sllm.control.state.fleet import Fleet
from sllm.control.state.state import State
from sllm.control.state.store import Store
from sllm.control.types.authority import ALONE, Authority
from sllm.control.types.calls import Call, Done
from sllm.control.types.status import DeploymentStatus
from sllm.control.wire.nodes import Nodes


@dataclass(frozen=True)
class Reactions:
    """Tells all parts what becomes of nodes, each when its turn is: the `NodeListener` here."""

    state: State
    orchestrator: Orchestrator
    preparation: Preparation
    clearing: Clearing
    drains: Drains
    pinning: Pinning

    def node_reported(self, before: NodeView | None, view: NodeView) -> None:
        """See NodeListener."""
        self.orchestrator.node_reported(before, view)
        self.state.tell_of_copies(before, view)
        self.clearing.consider(view)
        if before is None:
            self.preparation.consider_all()
            self.drains.node_joined(view)
            self.pinning.node_joined(view)

    def node_lost(self, node_id: str, instances: Sequence[Instance]) -> None:
        """See NodeListener."""
        self.orchestrator.node_lost(node_id, instances)
        for name in self.state.deployments:
            self.state.changes.notify(name)
        self.preparation.consider_all()


class ControlPlane:
    """Deployments, nodes and requests, and the loop that brings them together.

    `server.running` puts one behind gRPC. By itself it is used like this:

        stores = SqliteStore(config.state_path), BatchStore(config.batches_path)
        plane = ControlPlane(config, *stores, MonotonicClock())
        await plane.load()
        loop = asyncio.create_task(plane.run())
        stream = plane.membership.open()
        async for answer, revision in plane.membership.follow(stream, reports_of_a_node):
            ...  # meanwhile callers deploy, and open their streams at `plane.streams`
        plane.membership.leave(stream)
        plane.end_streams()
        loop.cancel()
        await plane.close()
    """

    def __init__(
        self,
        config: ControlConfig,
        store: Store,
        batch_store: BatchKeeper,
        clock: Clock,
        dial: rpc.Dial = rpc.channel,
        authority: Authority = ALONE,
    ) -> None:
        """`dial` leads to nodes, which are given orders by `authority`."""
        self.config = config
        zones = zones_of(config.zone_links)
        self.state = state = State(zones, fleet=Fleet(zones, peers=config.peers))
        self._nodes = nodes = Nodes(dial, authority)
        self._durable = durable = Durable(store)
        self.keys = KeyRing(durable)
        self._agenda = agenda = Agenda(state.changes, clock)
        residency = Residency(config.residency_factor, config.longest_residency_seconds)
        outcomes = Outcomes(state, residency, clock)
        self._launcher = launcher = Launcher(state, nodes, outcomes, agenda, clock, config)
        placer = Placer(state, launcher, residency, agenda, clock, config)
        scaler = Scaler(
            state,
            Keeping(state, config),
            clock,
            launcher.dismiss,
            launcher.retire,
            agenda.later,
            config.lease_seconds,
        )

        dispatcher = Dispatcher(state, nodes, launcher, agenda, clock)
        wait_estimates = WaitEstimates(state, placer, clock)
        self.router = Router(state, dispatcher, wait_estimates, clock, config)
        self.encodings = Encodings(state, dispatcher, wait_estimates, clock, config)
        self.streams = Streams(self.router)
        self.migrator = Migrator(state, nodes, placer, launcher, agenda, clock)
        self._evacuation = Evacuation(state, self.migrator, placer, clock)
        self.batches = Batches(batch_store, self.router, self.encodings, config)

        scheduler = Scheduler(state, placer, residency, self._evacuation, agenda, clock, config)
        adoption = Adoption(state, launcher, agenda, clock, config)
        roll_over = RollOver(state, launcher)
        self._orchestrator = Orchestrator(
            state,
            agenda,
            launcher,
            dispatcher,
            scaler,
            scheduler,
            self._evacuation,
            adoption,
            roll_over,
            clock,
        )

        inspector = Inspector(state, nodes)
        self._catalog = Catalog(durable, state, inspector)
        self._preparation = Preparation(state, nodes, self._catalog, clock, config)
        self._evictions = evictions = Evictions(nodes)
        self._clearing = Clearing(state, evictions)
        self.pinning = Pinning(durable, state, nodes, clock, config)
        self.prefetching = Prefetching(durable, state, nodes, inspector, config)
        self.drains = Drains(
            durable, state, self._orchestrator, agenda, self._preparation.consider_all, clock
        )
        self.tenancy = Tenancy(durable, state, self.pinning, evictions, clock, config.max_queued)
        self.text_questions = TextQuestions(state, inspector)
        self.explaining = Explaining(state, placer, scaler, clock, lends=config.lend_layers)
        self.cluster_watch = ClusterWatch(state, clock)
        self.deployment_watch = DeploymentWatch(state)

        reactions = Reactions(
            state,
            self._orchestrator,
            self._preparation,
            self._clearing,
            self.drains,
            self.pinning,
        )
        self.membership = Membership(state, nodes, reactions, config)
        self._observed = metrics.Observed(state.queue.counts, state.tenants.usage.of)
        metrics.observe(self._observed)

    async def load(self) -> None:
        """Takes in what was stored before a restart."""
        await self.keys.load()
        await self._catalog.load()
        await self.pinning.load()
        await self.drains.load()
        await self.tenancy.load()
        await self.batches.load()

    async def state_problem(self) -> errors.SllmError | None:
        """Why nothing can be stored any more. None: what was stored is where it should be."""
        try:
            await self._durable.run(self._durable.store.check)
        except errors.SllmError as error:
            return error
        return None

    async def run(self) -> None:
        """Works until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._orchestrator.run())
            group.create_task(self.batches.run())
            group.create_task(self.tenancy.run())

    def end_streams(self) -> None:
        """Ends the streams of callers and nodes with ShuttingDown, and takes no new ones."""
        self.batches.end_streams()
        self.encodings.close()
        self.router.close()
        self.membership.end_streams()
        self.pinning.end_streams()
        self.prefetching.end_streams()
        self.drains.end_streams()
        self.cluster_watch.end_streams()
        self.deployment_watch.end_streams()

    async def close(self) -> None:
        """Leaves the nodes with what they do, and closes the store."""
        metrics.observe_no_more(self._observed)
        await self._evacuation.close()
        await self.batches.close()
        await self.router.stop()
        await self._launcher.close()
        await self._preparation.close()
        await self.pinning.close()
        await self._evictions.close()
        await self.cluster_watch.close()
        await self.membership.close()
        await self._nodes.close()
        await self._durable.close()

    async def deploy(self, spec: DeploymentSpec, call: Call[DeploymentStatus]) -> DeploymentStatus:
        """Creates or changes a deployment, and begins to prepare it; see Catalog."""
        before = self.state.deployments.get(spec.name)
        status = await self._catalog.deploy(spec, call)
        now = self.state.deployments.get(spec.name)
        if before and now and before.model.identity not in ("", now.model.identity):
            self._orchestrator.rolled_over(spec.name)
            self._preparation.begin_anew(spec.name)
        elif now:
            self._preparation.consider(spec.name)
            self._orchestrator.deployment_made(spec.name)
        return status

    async def delete(self, name: str, call: Call[Done]) -> None:
        """Ends a deployment with all its requests and instances; see Catalog."""
        if await self._catalog.delete(name, call):
            self._preparation.deployment_deleted(name)
            self._orchestrator.deployment_deleted(name)
            self.pinning.deployment_deleted(name)
            self._clearing.consider_all()
