"""Has nodes free what nothing uses there, each copy once at a time."""

import structlog

from sllm import errors
from sllm.control.cluster.tiers import Copy, Tier
from sllm.control.tasks import Tasks
from sllm.control.wire.nodes import Nodes

log = structlog.get_logger()


class Evictions:
    """Those under way. Belongs to the event loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._tasks = Tasks()
        self._asked: set[tuple[str, str, Tier]] = set()

    def begin(self, node_id: str, copy: Copy) -> None:
        """Asks a node to free a copy, unless it has been asked and has not answered yet."""
        key = (node_id, copy.digest, copy.tier)
        if key not in self._asked:
            self._asked.add(key)
            self._tasks.spawn(self._evict(*key), name=f"evict {copy.digest} on {node_id}")

    async def _evict(self, node_id: str, digest: str, tier: Tier) -> None:
        try:
            if node := self._nodes.by_id.get(node_id):
                await node.evict(digest, tier)
        except errors.SllmError as error:  # in use again, or gone: the next report says
            log.info("control.not_evicted", node=node_id, digest=digest, problem=error.message)
        finally:
            self._asked.discard((node_id, digest, tier))

    async def close(self) -> None:
        """Ends what is under way; the nodes carry out what they were asked."""
        await self._tasks.close()
