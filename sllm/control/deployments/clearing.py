"""Weights that no deployment uses any more leave the devices at once: memory there is dear.

On the tiers below they stay until their room is needed.
"""

import structlog

from sllm import errors
from sllm.control.cluster.nodes import NodeView
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.state.state import State
from sllm.control.tasks import Tasks
from sllm.control.wire.node_client import Nodes

log = structlog.get_logger()


class Clearing:
    """Looks at nodes when they have reported, and at all of them when a deployment was deleted."""

    def __init__(self, state: State, nodes: Nodes) -> None:
        self._state = state
        self._nodes = nodes
        self._tasks = Tasks()
        self._asked: set[tuple[str, str]] = set()
        """Nodes and digests that are being evicted there."""

    def consider_all(self) -> None:
        """Has every node free what is not used any more."""
        for view in self._state.fleet.nodes.values():
            self.consider(view)

    def consider(self, view: NodeView) -> None:
        """The same for one node. What its instances still use is reported again once it is idle."""
        idle = [one for one in view.copies.values() if one.tier is Tier.DEVICE and not one.leased]
        if not idle:
            return
        deployments = self._state.deployments.values()
        used = {key for one in deployments for key in (one.model.digest, one.spec.source)}
        for copy in idle:
            if used.isdisjoint((copy.digest, *copy.sources)):
                self._evict_later(view.node_id, copy)

    def _evict_later(self, node_id: str, copy: Copy) -> None:
        key = (node_id, copy.digest)
        if key not in self._asked:
            self._asked.add(key)
            self._tasks.spawn(self._evict(*key), name=f"evict {copy.digest} on {node_id}")

    async def _evict(self, node_id: str, digest: str) -> None:
        try:
            if node := self._nodes.by_id.get(node_id):
                await node.evict(digest, Tier.DEVICE)
        except errors.SllmError as error:  # in use again, or gone: the next report says
            log.info("control.not_evicted", node=node_id, digest=digest, problem=error.message)
        finally:
            self._asked.discard((node_id, digest))

    async def close(self) -> None:
        """Ends what is under way; the nodes carry out what they were asked."""
        await self._tasks.close()
