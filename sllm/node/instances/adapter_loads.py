"""Brings adapters into the pool and an instance's worker, and away again."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.node.device.interface import InPool
from sllm.node.instances.adapter_use import AdapterSpec
from sllm.node.instances.worker_client import Worker
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Tier

log = structlog.get_logger()


class AdapterLoads:
    """Belongs to the event loop."""

    def __init__(self, store: TierStore, worker: Callable[[], Worker], clock: Clock) -> None:
        """See `InstanceAdapters`."""
        self._store = store
        self._worker = worker
        self._clock = clock
        self._leaving: set[asyncio.Task[None]] = set()
        self._stuck: list[Lease] = []
        """Of adapters that the worker has not let go of."""
        self._closed = False

    async def load(
        self, adapter_id: str, spec: AdapterSpec, make_room: Callable[[], Awaitable[bool]]
    ) -> Lease:
        """Loads an adapter. Where the pool has no room, `make_room` says whether it may have now.

        Raises:
            errors.SllmError: Why it cannot be loaded.
        """
        began = self._clock.now()
        lease = await self._lease(spec, make_room)
        try:
            place = InPool(lease.chunks, self._store.chunk_bytes)
            told = adapter_id, spec.name, lease.directory, lease.manifest, place
            await self._worker().load_adapter(*told)
        except BaseException:
            # It may have got there all the same.
            await asyncio.shield(self.spawn(self.end(adapter_id, lease)))
            raise
        seconds = self._clock.now() - began
        log.info("adapter.loaded", adapter=spec.deployment, seconds=round(seconds, 4))
        return lease

    async def _lease(self, spec: AdapterSpec, make_room: Callable[[], Awaitable[bool]]) -> Lease:
        while True:
            try:
                return await self._store.promote(
                    spec.source, spec.dtype, Tier.DRAM, pack=spec.pack, identity=spec.identity
                )
            except errors.NoCapacity:
                if not await make_room():
                    raise

    async def end(self, adapter_id: str, lease: Lease) -> None:
        """Has the worker let go of an adapter, and then its weights."""
        if self._closed:
            return lease.release()
        try:
            await self._worker().unload_adapter(adapter_id)
        except (errors.WorkerDied, errors.InstanceNotFound):
            self._stuck.append(lease)  # until that is gone for sure
        except errors.SllmError as error:
            log.error("adapter.not_unloaded", adapter=adapter_id, problem=error.message)
            self._stuck.append(lease)
        else:
            lease.release()
        return None

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Goes on with what makes an adapter leave, whoever waits for it."""
        task = asyncio.create_task(work, name="adapter leaves")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    def begin_to_close(self) -> None:
        """The worker has ended: nothing is asked of it any more."""
        self._closed = True

    async def close(self) -> None:
        """Gives the weights back that are left."""
        while self._leaving:
            await asyncio.gather(*self._leaving, return_exceptions=True)
        for lease in self._stuck:
            lease.release()
