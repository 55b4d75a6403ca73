"""What can be seen of a cluster while a trace runs: its instances, and what its pools hold."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import sllm

EVERY_SECONDS = 0.25


class Watching:
    """Looks at nodes and instances again and again. What comes and goes in between is missed."""

    def __init__(self, client: sllm.AsyncClient) -> None:
        self.instances: Mapping[str, sllm.Instance] = {}
        """As last seen, by id."""
        self.evictions: Counter[str] = Counter()
        """Checkpoints that have gone from each node's pool."""
        self.most_instances = 0
        self._client = client
        self._pools: dict[str, frozenset[str]] = {}
        """What each node's pool held when it was last seen, by digest."""

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            with suppress(sllm.errors.Unavailable, sllm.errors.DeadlineExceeded):
                await self._look()  # unless the control plane is away
            await asyncio.sleep(EVERY_SECONDS)

    async def _look(self) -> None:
        self.instances = {one.instance_id: one for one in await self._client.instances()}
        self.most_instances = max(self.most_instances, len(self.instances))
        for node in await self._client.nodes():
            held = frozenset(copy.digest for copy in node.copies if copy.tier == "DRAM")
            before = self._pools.get(node.node_id, frozenset())
            self.evictions[node.node_id] += len(before - held)
            self._pools[node.node_id] = held

    def forget(self, node_id: str) -> None:
        """A node's pool has gone with it, which is no eviction."""
        self._pools.pop(node_id, None)
