"""Brings the checkpoints of deployments to a node, in the background."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.control.cluster.needs import need_of
from sllm.control.cluster.specs import Deployment, ModelInfo
from sllm.control.cluster.tiers import Tier
from sllm.control.config import ControlConfig
from sllm.control.deployments.catalog import Catalog
from sllm.control.placement import placement
from sllm.control.placement.decisions import Demand
from sllm.control.state.state import State
from sllm.control.tasks import Tasks
from sllm.control.types.status import Loading
from sllm.control.wire.node_client import Node
from sllm.control.wire.nodes import Nodes

log = structlog.get_logger()

_RETRY_SECONDS = 1.0
"""Until nodes are looked for again after one was lost."""


class Preparation:
    """Sees to it that every deployment's checkpoint is on some node's SSD tier."""

    def __init__(
        self, state: State, nodes: Nodes, catalog: Catalog, clock: Clock, config: ControlConfig
    ) -> None:
        self._state = state
        self._nodes = nodes
        self._catalog = catalog
        self._clock = clock
        self._config = config
        self._tasks = Tasks()
        self._under_way: dict[str, asyncio.Task[None]] = {}
        """By deployment."""

    def consider_all(self) -> None:
        """Begins what is missing, after nodes have come or gone, or take new work again."""
        for name in self._state.deployments:
            if name not in self._state.unprepared:
                self.consider(name)

    def consider(self, name: str) -> None:
        """Begins a deployment's preparation, unless it is done, under way or without any node.

        Without one it stays to be prepared, and is considered again with the next.
        """
        deployment = self._state.deployments[name]
        held = self._state.fleet.holds(deployment.model.digest)
        if held or name in self._state.preparing or not self._some_node_works():
            return
        self._state.unprepared.pop(name, None)
        self._state.preparing[name] = None
        work = self._tasks.spawn(self._prepare(deployment), name=f"prepare {name}")
        self._under_way[name] = work

    def begin_anew(self, name: str) -> None:
        """Drops what is under way, or has failed, for what a deployment was before."""
        self.deployment_deleted(name)
        self._state.preparing.pop(name, None)
        self._state.unprepared.pop(name, None)
        self.consider(name)

    def deployment_deleted(self, name: str) -> None:
        """Ends its preparation, on the node as well: a fetch from afar would go on for long."""
        if work := self._under_way.pop(name, None):
            work.cancel()

    async def close(self) -> None:
        """Ends all work. What nodes have by then is what the next process goes on with."""
        await self._tasks.close()

    def _some_node_works(self) -> bool:
        return bool(self._nodes.by_id.keys() - self._state.draining)

    async def _prepare(self, deployment: Deployment) -> None:
        error: errors.SllmError | None = None
        try:
            error = await self._try_tiers(deployment)
        except Exception as fault:
            log.exception("control.preparation_broken", deployment=deployment.name)
            error = errors.Internal(f"{deployment.name} could not be prepared: {fault!r}")
        if isinstance(error, errors.NodeLost):
            await self._clock.sleep(_RETRY_SECONDS)  # the fleet may not have noticed yet
        self._ended(deployment, error)

    async def _try_tiers(self, deployment: Deployment) -> errors.SllmError | None:
        """Tries the disks of nodes; what none of them takes is served from memory all the same."""
        error: errors.SllmError | None = None
        stays = deployment.spec.engine.expert_memory is not None
        for tier in (Tier.SSD,) if stays else (Tier.SSD, Tier.DRAM):
            error = await self._try_nodes(deployment, tier)
            if not isinstance(error, errors.NoCapacity | errors.ModelTooLarge):
                break
        return error

    async def _try_nodes(self, deployment: Deployment, tier: Tier) -> errors.SllmError | None:
        """Tries nodes in the order in which a start would, a second one if the first fails.

        Returns:
            Why none has it now. None: one has, or there is none that may be tried.
        """
        tried: set[str] = set()
        error: errors.SllmError | None = None
        while len(tried) < 2 and (node := self._best_node(deployment, tried)):
            tried.add(node.node_id)
            try:
                await self._promote(deployment, node, tier)
                return None
            except errors.SllmError as failure:
                error = failure
                log.warning(
                    "control.preparation_failed",
                    deployment=deployment.name,
                    node=node.node_id,
                    error=str(error),
                )
        return error

    def _best_node(self, deployment: Deployment, tried: set[str]) -> Node | None:
        """Where the deployment would start fastest, room or not."""
        need = self._state.needs.get(deployment.name)
        if need is None:
            return None
        decision = placement.place(self._state.snapshot(), Demand(need, waiting=0))
        ranked = sorted(
            (one.estimate if one.estimate is not None else float("inf"), one.node_id)
            for one in decision.candidates
            if one.node_id not in tried | self._state.draining and not one.unfit
        )
        return self._nodes.by_id.get(ranked[0][1]) if ranked else None

    async def _promote(self, deployment: Deployment, node: Node, tier: Tier) -> None:
        spec, timeout = deployment.spec, self._config.start_timeout_seconds
        checkpoint = need_of(deployment).checkpoint
        with self._state.deliveries.to(node.node_id, checkpoint) as givers:
            promotion = node.promote(
                spec.source,
                spec.engine.dtype,
                tier,
                timeout,
                pack=spec.engine.pack,
                give_up=True,
                identity=deployment.model.identity,
                engine=spec.engine.engine,
                tensor_parallel=spec.engine.tensor_parallel,
                givers=givers,
            )
            await self._follow(deployment, promotion)

    async def _follow(
        self, deployment: Deployment, promotion: AsyncGenerator[Loading | ModelInfo, None]
    ) -> None:
        async with aclosing(promotion) as steps:
            async for step in steps:
                if isinstance(step, ModelInfo):
                    await self._catalog.learn_model(deployment.name, step)
                else:
                    self._state.preparing[deployment.name] = step
                    self._state.changes.notify(deployment.name)

    def _ended(self, deployment: Deployment, error: errors.SllmError | None) -> None:
        name = deployment.name
        self._under_way.pop(name, None)
        if self._state.deployments.get(name) is None:
            return
        self._state.preparing.pop(name, None)
        if isinstance(error, errors.NodeLost):
            self.consider(name)
        elif error:
            self._state.unprepared[name] = str(error)
        self._state.changes.notify(name)
