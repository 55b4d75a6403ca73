"""The control plane's parts, put together: what its servicers call."""

from collections.abc import Sequence
from dataclasses import dataclass

from sllm.clock import Clock
from sllm.control import metrics
from sllm.control.cluster.instances import Instance
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.specs import DeploymentSpec
from sllm.control.config import ControlConfig
from sllm.control.deployments.catalog import Catalog
from sllm.control.deployments.clearing import Clearing
from sllm.control.deployments.preparation import Preparation
from sllm.control.operations.cluster_watch import ClusterWatch
from sllm.control.operations.deployment_watch import DeploymentWatch
from sllm.control.operations.drains import Drains
from sllm.control.operations.explaining import Explaining
from sllm.control.operations.pinning import Pinning
from sllm.control.operations.prefetching import Prefetching
from sllm.control.orchestration.membership import Membership
from sllm.control.orchestration.orchestrator import Orchestrator
from sllm.control.routing.evacuation import Evacuation
from sllm.control.routing.migrator import Migrator
from sllm.control.routing.router import Router
from sllm.control.state.durable import Durable
from sllm.control.state.state import State
from sllm.control.state.store import Store
from sllm.control.types.calls import Call, Done
from sllm.control.types.status import DeploymentStatus
from sllm.control.wire.node_client import Nodes


@dataclass(frozen=True)
class Reactions:
    """What follows from what becomes of nodes: a `NodeListener` that tells all the others."""

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
    """Deployments, nodes and requests, and the loop that brings them together."""

    def __init__(self, config: ControlConfig, store: Store, clock: Clock) -> None:
        self.config = config
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
        self.cluster_watch = ClusterWatch(self.state, clock)
        self.deployment_watch = DeploymentWatch(self.state)
        self.explaining = Explaining(self.state, self._orchestrator, clock)
        self._clearing = Clearing(self.state, self._nodes)
        reactions = Reactions(
            self.state,
            self._orchestrator,
            self._preparation,
            self._clearing,
            self.drains,
            self.pinning,
        )
        self.membership = Membership(self.state, self._nodes, reactions, config)
        self.router = Router(self.state, self._orchestrator, clock, config)
        self.migrator = Migrator(self.state, self._nodes, self._orchestrator, clock)
        self._evacuation = Evacuation(self.state, self.migrator, self._orchestrator, clock)
        self._orchestrator.evacuator = self._evacuation
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
        self.router.close()
        self.membership.end_streams()
        self.pinning.end_streams()
        self.prefetching.end_streams()
        self.drains.end_streams()
        self.cluster_watch.end_streams()
        self.deployment_watch.end_streams()

    async def close(self) -> None:
        """Leaves the nodes with what they do, and closes the store."""
        await self._evacuation.close()
        await self.router.stop()
        await self._orchestrator.close()
        await self._preparation.close()
        await self.pinning.close()
        await self._clearing.close()
        await self.cluster_watch.close()
        await self.membership.close()
        await self._nodes.close()
        await self._durable.close()

    async def deploy(self, spec: DeploymentSpec, call: Call[DeploymentStatus]) -> DeploymentStatus:
        """Creates or changes a deployment, and begins to prepare it; see Catalog."""
        status = await self._catalog.deploy(spec, call)
        if spec.name in self.state.deployments:
            self._preparation.consider(spec.name)
            self._orchestrator.wake(spec.name)
        return status

    async def delete(self, name: str, call: Call[Done]) -> None:
        """Ends a deployment with all its requests and instances; see Catalog."""
        if await self._catalog.delete(name, call):
            self._preparation.deployment_deleted(name)
            self._orchestrator.deployment_deleted(name)
            self.pinning.deployment_deleted(name)
            self._clearing.consider_all()
