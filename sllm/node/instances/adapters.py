"""The adapters of one instance: leased in the pool, and loaded into its worker for who asks.

A request holds the adapter that it is for until it has ended. Where there are as many as there may
be, one that no request holds leaves: the least used. Where all are held, requests for another wait
in line, and after a while those for the ones that are there stand behind them: else it would never
be their turn.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from sllm import errors
from sllm.clock import Clock
from sllm.decay import Decaying
from sllm.node.device.interface import InPool
from sllm.node.instances.adapter_use import AdapterSpec, AdapterUse
from sllm.node.instances.worker_client import Worker
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.types import Tier

log = structlog.get_logger()

PATIENCE_SECONDS: Final = 1.0
"""For which others go on getting an adapter that is there while one waits for room."""
HALF_LIFE_SECONDS: Final = 600.0
"""A request counts half as much for its adapter after this time."""
_numbers = itertools.count()


@dataclass(slots=True, eq=False)
class _Loaded:
    """An adapter in the worker, or on its way there."""

    adapter_id: str
    spec: AdapterSpec
    loading: asyncio.Task[Lease]
    users: int = 0
    demand: Decaying = field(default_factory=Decaying)
    expiry: asyncio.Task[None] | None = None
    """While nobody uses it."""


class InstanceAdapters:
    """Belongs to the event loop."""

    def __init__(
        self,
        store: TierStore,
        worker: Callable[[], Worker],
        most: int,
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        """There are none.

        Args:
            store: has their weights.
            worker: gives the instance's; raises while it takes no requests.
            most: adapters at once.
            clock: waits.
            changed: called whenever one has come or gone.
        """
        self._store = store
        self._worker = worker
        self._most = most
        self._clock = clock
        self._changed = changed
        self._by_key: dict[tuple[str, str | None], _Loaded] = {}
        self._turn = asyncio.Lock()
        """Held by the one that is to bring another here; others wait in their order."""
        self._waits_since: float | None = None
        """When that began to wait for room. None: it does not."""
        self._freed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._stuck: list[Lease] = []
        """Of adapters that the worker has not let go of."""
        self._closed = False

    @property
    def there(self) -> tuple[AdapterSpec, ...]:
        """Those that requests need not wait for."""
        return tuple(one.spec for one in self._by_key.values() if _is_there(one))

    async def take(self, spec: AdapterSpec) -> AdapterUse:
        """Loads an adapter unless it is there, and holds it.

        Raises:
            errors.SllmError: Why it cannot be loaded.
        """
        loaded = self._by_key.get(spec.key)
        was_there = loaded is not None and _is_there(loaded)
        if loaded is None or self._others_wait_long():
            async with self._turn:
                loaded = self._by_key.get(spec.key) or await self._begin(spec)
                self._hold(loaded, spec)
        else:
            self._hold(loaded, spec)
        try:
            lease = await asyncio.shield(loaded.loading)
        except asyncio.CancelledError:
            self._release(loaded)
            if loaded.loading.cancelled():
                raise errors.ShuttingDown("the instance was stopped") from None
            raise
        except errors.SllmError as error:
            self._release(loaded)
            raise error.for_one() from error
        except BaseException:
            self._release(loaded)
            raise
        steps = None if was_there else lease.steps
        return AdapterUse(loaded.adapter_id, lambda: self._release(loaded), steps)

    async def close(self) -> None:
        """Gives their weights back; the worker has ended."""
        self._closed = True
        for loaded in [*self._by_key.values()]:
            loaded.loading.cancel()
            self._begin_unloading(loaded)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        for lease in self._stuck:
            lease.release()

    # --- room ---------------------------------------------------------------------------------

    def _others_wait_long(self) -> bool:
        since = self._waits_since
        return since is not None and self._clock.now() - since > PATIENCE_SECONDS

    async def _begin(self, spec: AdapterSpec) -> _Loaded:
        """Begins to load one, once there is room for it."""
        self._waits_since = self._clock.now()
        try:
            while len(self._by_key) >= self._most and not await self._make_room():
                self._freed.clear()
                await self._freed.wait()
        finally:
            self._waits_since = None
        adapter_id = f"{spec.identity}/{next(_numbers)}"
        loading = asyncio.create_task(self._load(adapter_id, spec), name=f"adapter {adapter_id}")
        loaded = self._by_key[spec.key] = _Loaded(adapter_id, spec, loading)
        loading.add_done_callback(lambda _: self._note(loaded))
        return loaded

    async def _make_room(self) -> bool:
        """Has the least used of those leave that nobody holds; false if all are held."""
        idle = [one for one in self._by_key.values() if not one.users]
        if not idle:
            return False
        await self._unload(min(idle, key=lambda one: one.demand.level(HALF_LIFE_SECONDS)))
        return True

    # --- loading ------------------------------------------------------------------------------

    async def _load(self, adapter_id: str, spec: AdapterSpec) -> Lease:
        began = self._clock.now()
        lease = await self._lease(spec)
        try:
            place = InPool(lease.chunks, self._store.chunk_bytes)
            told = adapter_id, spec.identity, lease.directory, lease.manifest, place
            await self._worker().load_adapter(*told)
        except BaseException:
            await self._end(adapter_id, lease)  # it may have got there all the same
            raise
        seconds = self._clock.now() - began
        log.info("adapter.loaded", adapter=spec.deployment, seconds=round(seconds, 4))
        return lease

    async def _lease(self, spec: AdapterSpec) -> Lease:
        """Brings its weights into the pool; others leave that where there is no room for them."""
        while True:
            try:
                return await self._store.promote(
                    spec.source, spec.dtype, Tier.DRAM, pack=spec.pack, identity=spec.identity
                )
            except errors.NoCapacity:
                if not await self._make_room():
                    raise

    def _note(self, loaded: _Loaded) -> None:
        """Takes note of the end of a load."""
        if loaded.loading.cancelled() or loaded.loading.exception():
            self._forget(loaded)
        self._changed()

    def _hold(self, loaded: _Loaded, spec: AdapterSpec) -> None:
        loaded.spec = spec
        loaded.users += 1
        loaded.demand = loaded.demand.plus_one(self._clock.now(), HALF_LIFE_SECONDS)
        if loaded.expiry:
            loaded.expiry.cancel()
            loaded.expiry = None

    def _release(self, loaded: _Loaded) -> None:
        loaded.users -= 1
        if loaded.users or self._by_key.get(loaded.spec.key) is not loaded:
            return
        self._freed.set()
        loaded.expiry = asyncio.create_task(self._expire(loaded))

    async def _expire(self, loaded: _Loaded) -> None:
        await self._clock.sleep(loaded.spec.keep_alive)
        loaded.expiry = None
        self._begin_unloading(loaded)

    # --- leaving ------------------------------------------------------------------------------

    async def _unload(self, loaded: _Loaded) -> None:
        """Returns once its room is free. Whoever waits for that may leave."""
        await asyncio.shield(self._begin_unloading(loaded))

    def _begin_unloading(self, loaded: _Loaded) -> asyncio.Task[None]:
        self._forget(loaded)
        return self._spawn(self._give_back(loaded))

    async def _give_back(self, loaded: _Loaded) -> None:
        (lease,) = await asyncio.gather(loaded.loading, return_exceptions=True)
        if isinstance(lease, Lease):
            await self._end(loaded.adapter_id, lease)
        self._changed()

    async def _end(self, adapter_id: str, lease: Lease) -> None:
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

    def _forget(self, loaded: _Loaded) -> None:
        if loaded.expiry:
            loaded.expiry.cancel()
            loaded.expiry = None
        if self._by_key.get(loaded.spec.key) is loaded:
            del self._by_key[loaded.spec.key]
            self._freed.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="adapter leaves")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task


def _is_there(loaded: _Loaded) -> bool:
    loading = loaded.loading
    return loading.done() and not loading.cancelled() and loading.exception() is None
