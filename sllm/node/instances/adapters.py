"""The adapters of one instance: leased in the pool, and loaded into its worker for who asks.

A request holds the adapter that it is for until it has ended. Where there are as many as there may
be, one that no request holds leaves: the least used. Where all are held, requests for another wait
in line, and after a while those for the ones that are there stand behind them: else it would never
be their turn. Requests that nobody waits for get what others leave, and give back what others need.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Final

from sllm import errors
from sllm.clock import Clock
from sllm.node.instances.adapter_loads import AdapterLoads
from sllm.node.instances.adapter_use import AdapterSpec, AdapterUse
from sllm.node.instances.loaded_adapter import GiveWay, LoadedAdapter
from sllm.node.instances.worker_client import Worker
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore

PATIENCE_SECONDS: Final = 1.0
"""For which others go on getting an adapter that is there while one waits for room."""
HALF_LIFE_SECONDS: Final = 600.0
"""A request counts half as much for its adapter after this time."""
_numbers = itertools.count()


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
        self._loads = AdapterLoads(store, worker, clock)
        self._most = most
        self._clock = clock
        self._changed = changed
        self._by_key: dict[tuple[str, str | None], LoadedAdapter] = {}
        self._turn = asyncio.Lock()
        """Held by the one that is to bring another here; others wait in their order."""
        self._background_turn = asyncio.Lock()
        """The same of those that nobody waits for, who take a turn only where there is room."""
        self._waits_since: dict[bool, float] = {}
        """When one began to wait for room, if one does; True: of those that nobody waits for."""
        self._freed = asyncio.Event()
        self._closed = False

    @property
    def there(self) -> tuple[tuple[AdapterSpec, str], ...]:
        """Those that requests need not wait for, each with the digest of its checkpoint."""
        found = [one for one in self._by_key.values() if one.is_there]
        return tuple((one.spec, one.loading.result().digest) for one in found)

    async def take(self, spec: AdapterSpec, give_way: GiveWay | None = None) -> AdapterUse:
        """Loads an adapter unless it is there, and holds it.

        Args:
            spec: the adapter.
            give_way: ends the use where others need its room. None: somebody waits for it.

        Raises:
            errors.ShuttingDown: The instance has ended.
            errors.SllmError: Why it cannot be loaded.
        """
        self._check_open()
        user, loaded = object(), self._by_key.get(spec.key)
        was_there = loaded is not None and loaded.is_there
        if loaded is None or self._stands_behind(give_way):
            loaded = await self._in_turn(spec, user, give_way)
        else:
            self._hold(loaded, spec, user, give_way)
        try:
            lease = await self._loaded(loaded)
        except BaseException:
            self._release(loaded, user)
            raise
        steps = None if was_there else lease.steps
        return AdapterUse(loaded.adapter_id, lambda: self._release(loaded, user), steps)

    async def make_room(self) -> bool:
        """Has the least used of those leave that nobody holds; false if all are held."""
        idle = [one for one in self._by_key.values() if one.is_there and not one.users]
        if not idle:
            return False
        await self._unload(min(idle, key=lambda one: one.demand.level(HALF_LIFE_SECONDS)))
        return True

    async def close(self) -> None:
        """Gives their weights back; the worker has ended."""
        self._closed = True
        self._freed.set()  # whoever waits for room is told
        self._loads.begin_to_close()
        for loaded in [*self._by_key.values()]:
            loaded.loading.cancel()
            self._begin_unloading(loaded)
        await self._loads.close()

    # --- room ---------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise errors.ShuttingDown("the instance has ended")

    def _stands_behind(self, give_way: GiveWay | None) -> bool:
        """Whether it is others' turn, even if the adapter is there."""
        if give_way and False in self._waits_since:
            return True
        since = self._waits_since.get(give_way is not None)
        return since is not None and self._clock.now() - since > PATIENCE_SECONDS

    async def _in_turn(
        self, spec: AdapterSpec, user: object, give_way: GiveWay | None
    ) -> LoadedAdapter:
        """Holds an adapter, which begins to load, once it is its turn and there is room."""
        if give_way is None:
            async with self._turn:
                await self._wait_for_room(spec)
                return self._hold(self._found(spec), spec, user, None)
        async with self._background_turn:
            return await self._in_background_turn(spec, user, give_way)

    async def _wait_for_room(self, spec: AdapterSpec) -> None:
        self._waits_since[False] = self._clock.now()
        try:
            while not await self._has_room(spec):
                self._freed.clear()
                self._have_given_way()
                await self._freed.wait()
        finally:
            del self._waits_since[False]

    async def _in_background_turn(
        self, spec: AdapterSpec, user: object, give_way: GiveWay
    ) -> LoadedAdapter:
        self._waits_since[True] = self._clock.now()
        try:
            while True:
                async with self._turn:  # and not while it waits: others go before it
                    if await self._has_room(spec):
                        return self._hold(self._found(spec), spec, user, give_way)
                    self._freed.clear()
                await self._freed.wait()
        finally:
            del self._waits_since[True]

    async def _has_room(self, spec: AdapterSpec) -> bool:
        self._check_open()
        room = spec.key in self._by_key or len(self._by_key) < self._most
        return room or await self.make_room()

    def _have_given_way(self) -> bool:
        """Has the uses of an adapter end that nobody waits for; whether there was such a one."""
        found = [one for one in self._by_key.values() if one.yields]
        if found:
            min(found, key=lambda one: len(one.users)).give_way()
        return bool(found)

    # --- loading ------------------------------------------------------------------------------

    def _found(self, spec: AdapterSpec) -> LoadedAdapter:
        """The one that is there, or begins to load."""
        if loaded := self._by_key.get(spec.key):
            return loaded
        self._check_open()
        adapter_id = f"{spec.identity}/{next(_numbers)}"
        load = self._loads.load(adapter_id, spec, lambda: self._make_room_for(spec))
        loading = asyncio.create_task(load, name=f"adapter {adapter_id}")
        loaded = self._by_key[spec.key] = LoadedAdapter(adapter_id, spec, loading)
        loading.add_done_callback(lambda _: self._note(loaded))
        return loaded

    async def _make_room_for(self, spec: AdapterSpec) -> bool:
        """Has another leave, for one that is loading; false if all are held."""
        if await self.make_room():
            return True
        loaded = self._by_key.get(spec.key)
        if loaded is None or not loaded.is_awaited or not self._have_given_way():
            return False
        await asyncio.sleep(0)  # those that were waiting for it leave now
        return True

    async def _loaded(self, loaded: LoadedAdapter) -> Lease:
        """Its weights, once it is there.

        Raises:
            errors.SllmError: Why it is not.
        """
        try:
            return await asyncio.shield(loaded.loading)
        except asyncio.CancelledError:
            if loaded.loading.cancelled():
                raise errors.ShuttingDown("the instance has ended") from None
            raise
        except errors.SllmError as error:
            self._check_open()  # what has failed because of that is tried elsewhere
            raise error.for_one() from error

    def _note(self, loaded: LoadedAdapter) -> None:
        """Takes note of the end of a load."""
        if loaded.loading.cancelled() or loaded.loading.exception():
            self._forget(loaded)
        self._changed()

    def _hold(
        self, loaded: LoadedAdapter, spec: AdapterSpec, user: object, give_way: GiveWay | None
    ) -> LoadedAdapter:
        loaded.spec = spec
        loaded.users[user] = give_way
        loaded.demand = loaded.demand.plus_one(self._clock.now(), HALF_LIFE_SECONDS)
        loaded.stay()
        return loaded

    def _release(self, loaded: LoadedAdapter, user: object) -> None:
        loaded.users.pop(user, None)
        if loaded.users or self._by_key.get(loaded.spec.key) is not loaded:
            return
        if not loaded.is_there:  # nobody wants it any more
            loaded.loading.cancel()
            self._begin_unloading(loaded)
            return
        self._freed.set()
        loaded.idle.enter_context(self._store.keeping.yielding(loaded.loading.result()))
        loaded.expiry = asyncio.create_task(self._expire(loaded))

    async def _expire(self, loaded: LoadedAdapter) -> None:
        await self._clock.sleep(loaded.spec.keep_alive)
        loaded.expiry = None
        self._begin_unloading(loaded)

    # --- leaving ------------------------------------------------------------------------------

    async def _unload(self, loaded: LoadedAdapter) -> None:
        """Returns once its room is free. Whoever waits for that may leave."""
        await asyncio.shield(self._begin_unloading(loaded))

    def _begin_unloading(self, loaded: LoadedAdapter) -> asyncio.Task[None]:
        self._forget(loaded)
        return self._loads.spawn(self._give_back(loaded))

    async def _give_back(self, loaded: LoadedAdapter) -> None:
        (lease,) = await asyncio.gather(loaded.loading, return_exceptions=True)
        if isinstance(lease, Lease):
            await self._loads.end(loaded.adapter_id, lease)
        loaded.idle.close()
        self._changed()

    def _forget(self, loaded: LoadedAdapter) -> None:
        loaded.expire_no_more()
        if self._by_key.get(loaded.spec.key) is loaded:
            del self._by_key[loaded.spec.key]
            self._freed.set()
