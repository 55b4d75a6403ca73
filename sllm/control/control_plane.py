"""The control plane's parts, put together: what its servicers call."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

from sllm import errors
from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.specs import DeploymentSpec
from sllm.control.config import ControlConfig
from sllm.control.deployments.catalog import Catalog
from sllm.control.deployments.clearing import Clearing
from sllm.control.deployments.preparation import Preparation
from sllm.control.operations.drains import Drains
from sllm.control.operations.pinning import Pinning
from sllm.control.operations.prefetching import Prefetching
from sllm.control.operations.watch import Watch
from sllm.control.orchestration.membership import Membership
from sllm.control.orchestration.orchestrator import Orchestrator
from sllm.control.placement.explain import Coming, explain
from sllm.control.routing.evacuation import Evacuation
from sllm.control.routing.migrator import Migrator
from sllm.control.routing.router import Router
from sllm.control.state.durable import Durable
from sllm.control.state.state import StartUnderWay, State
from sllm.control.state.store import Store
from sllm.control.types.calls import Call
from sllm.control.types.operations import Explanation
from sllm.control.types.status import DeploymentStatus
from sllm.control.wire.node_client import Nodes


class ControlPlane:
    """Deployments, nodes and requests, and the loop that brings them together."""

    def __init__(self, config: ControlConfig, store: Store, clock: Clock) -> None:
        self.config = config
        self._clock = clock
        self.state = State()
        self._nodes = Nodes()
        self._durable = Durable(store)
        self._catalog = Catalog(self._durable, self.state, self._nodes)
        self._orchestrator = Orchestrator(self.state, self._nodes, clock, config)
        self._preparation = Preparation(self.state, self._nodes, self._catalog, clock, config)
        self.pinning = Pinning(self._durable, self.state, self._nodes, clock, config)
        self.prefetching = Prefetching(
            self._durable, self.state, self._nodes, self._catalog, config
        )
        self.drains = Drains(self._durable, self.state, self._orchestrator, clock)
        self.cluster = Watch(self.state, clock)
        self._clearing = Clearing(self.state, self._nodes)
        self.membership = Membership(
            self.state,
            self._nodes,
            self._orchestrator,
            self._preparation,
            self._node_joined,
            self._clearing.consider,
            config,
        )
        self.router = Router(self.state, self._orchestrator, clock, config)
        self.migrator = Migrator(self.state, self._nodes, self._orchestrator, clock)
        self._evacuation = Evacuation(self.state, self.migrator, self._orchestrator, clock)
        self._orchestrator.evacuator = self._evacuation
        self._closing = asyncio.Event()
        metrics.observe_queue(lambda: len(self.state.queue))

    async def load(self) -> None:
        """Takes in what was stored before a restart."""
        await self._catalog.load()
        await self.pinning.load()
        await self.drains.load()

    async def run(self) -> None:
        """Works until it is cancelled."""
        await self._orchestrator.run()

    def end_streams(self) -> None:
        """Ends the streams of callers and nodes with ShuttingDown, and takes no new ones."""
        self._closing.set()
        self.router.close()
        self.membership.end_streams()
        self.pinning.end_streams()
        self.prefetching.end_streams()
        self.drains.end_streams()
        self.cluster.end_streams()
        for name in self.state.deployments:
            self.state.changes.notify(name)

    async def close(self) -> None:
        """Leaves the nodes with what they do, and closes the store."""
        await self._evacuation.close()
        await self.router.stop()
        await self._orchestrator.close()
        await self._preparation.close()
        await self.pinning.close()
        await self._clearing.close()
        await self.cluster.close()
        await self.membership.close()
        await self._nodes.close()
        await self._durable.close()

    async def deploy(self, spec: DeploymentSpec, call: Call) -> bytes:
        """Creates or changes a deployment, and begins to prepare it; see Catalog."""
        before = self.state.deployments.get(spec.name)
        answer = await self._catalog.deploy(spec, call)
        now = self.state.deployments.get(spec.name)
        if before and now and before.model.identity not in ("", now.model.identity):
            self._orchestrator.rolled_over(spec.name)
            self._preparation.begin_anew(spec.name)
        elif now:
            self._preparation.consider(spec.name)
            self._orchestrator.wake(spec.name)
        return answer

    async def delete(self, name: str, call: Call) -> None:
        """Ends a deployment with all its requests and instances; see Catalog."""
        if await self._catalog.delete(name, call):
            self._preparation.deployment_deleted(name)
            self._orchestrator.deployment_deleted(name)
            self.pinning.deployment_deleted(name)
            self._clearing.consider_all()

    def explain(self, name: str) -> Explanation:
        """What placement would decide now for one more request, and why.

        Raises:
            errors.DeploymentNotFound: There is no such deployment.
        """
        deployment = self.state.deployment(name)
        demand = self._orchestrator.placer.demand(name)
        demand = replace(demand, waiting=demand.waiting + 1)
        decision = self._orchestrator.placer.decide(demand)
        if self._orchestrator.scaler.would_add(name):
            return explain(decision)
        start, most = self.state.first_start(name), deployment.spec.scaling.max_replicas
        full = (
            f"no instance has a free slot, and there may be no more of them (max_replicas {most})"
        )
        return explain(decision, self._coming(start) if start else None, full)

    def _coming(self, start: StartUnderWay) -> Coming:
        if start.estimate is None:
            return Coming(start.instance, None)
        remaining = start.decided_at + start.estimate - self._clock.now()
        return Coming(start.instance, max(0.0, remaining))

    async def watch(self, name: str) -> AsyncGenerator[DeploymentStatus]:
        """How a deployment is doing, now and whenever that changes, until it is deleted.

        Raises:
            errors.DeploymentNotFound: There is none of this name.
            errors.ShuttingDown: The control plane is going down.
        """
        status = self.state.status(name)
        changed = self.state.changes.changed(name)  # before the yield: it changes meanwhile as well
        yield status
        while True:
            await changed.wait()
            if self._closing.is_set():
                raise errors.ShuttingDown("the control plane is going down; watch again")
            if name not in self.state.deployments:
                return
            changed = self.state.changes.changed(name)
            if (now := self.state.status(name)) != status:
                status = now
                yield status

    def _node_joined(self, view: NodeView) -> None:
        self._preparation.consider_all()
        self.drains.node_joined(view)
        self.pinning.node_joined(view)
