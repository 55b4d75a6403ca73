"""The node agent: what this node holds, what it runs, and what it may still take on."""

import asyncio
from collections import ChainMap, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from hashlib import blake2s
from pathlib import Path

from sllm import errors, rpc
from sllm.clock import Clock
from sllm.node.config import INSTANCE_BYTES, SOCKET_NAME, NodeConfig
from sllm.node.contents import Contents
from sllm.node.device.interface import Devices
from sllm.node.instances.books import Books
from sllm.node.instances.borrowing import Borrowing
from sllm.node.instances.init_times import InitKey, InitTime, InitTimes
from sllm.node.instances.inspection import Inspector
from sllm.node.instances.instance import Instance, InstanceState
from sllm.node.instances.launching import launch
from sllm.node.instances.lending import Lending
from sllm.node.instances.memory import NodeMemory
from sllm.node.instances.ready_maker import Brought, ReadyMaker
from sllm.node.instances.spec import InstanceSpec, check_same
from sllm.node.instances.text_workers import SHORT_BYTES, TextSource, TextWorkers
from sllm.node.instances.unmade import Unmade
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.zygote_client import Zygote
from sllm.node.instances.zygotes import AUTO, EngineState, Zygotes
from sllm.node.kept import metrics as kept_metrics
from sllm.node.peers.types import Peers
from sllm.node.store.holds import Holds, HoldSpec
from sllm.node.store.promotions import Promotions
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers import metrics
from sllm.node.tiers.types import Tier
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Priority, Progress

_STOPPED_IDS = 1024
"""Instances of which it is known that they were stopped, the last ones."""


class Agent:
    """Ties the tier store, the zygotes and the instances of one node together.

        agent = Agent(config, clock, store, PoolDevice(store, config.pool_kv_bytes), zygotes)
        engine = EngineSpec("transformers", dtype=None, kv_cache_tokens=None, max_concurrency=None)
        instance = agent.start_instance(
            InstanceSpec("i-1", "llama", "/models/llama", engine, kv_bytes=1 << 30)
        )
        async for progress in instance.follow_start():
            print(progress.loaded_bytes, "of", progress.total_bytes)
        instance.ready_worker()  # takes requests
        await agent.stop_instance("i-1", grace=5.0)

    Belongs to the event loop.
    """

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        store: TierStore,
        devices: Devices,
        zygotes: Zygotes,
        dial: rpc.Dial = rpc.channel,
    ) -> None:
        """`dial` leads to other nodes."""
        self.config = config
        self.store = store
        self.devices = devices
        self.holds = Holds(clock, self._changed, store.keeping.pinned)
        self.contents = Contents(store, devices)
        self.instances: dict[str, Instance] = {}
        self.lending = Lending(store, self._begin_lent)
        self._dial = dial
        self.books = Books(
            ChainMap(self.instances, self.lending.instances),
            devices,
            self._memory_without_instances(),
            self._ready_of,
        )
        self.init_times = InitTimes()
        self._clock = clock
        self._zygotes = zygotes
        self._stopped: deque[str] = deque(maxlen=_STOPPED_IDS)
        """Ids of instances that were asked to stop, whether they were there or not."""
        self._belated: set[str] = set()
        """Instances whose start has had to wait for the zygote's own."""
        self._watchers: list[Callable[[], None]] = []
        self._promotions = Promotions()
        self._ready_maker = ReadyMaker(
            store,
            self._launch_engine,
            lambda: self.books.memory.free_bytes,
            None if devices.infos() else config.ready_made_bytes,
            clock,
        )
        self.inspector = Inspector(store, devices, zygotes)
        self._text_workers = TextWorkers(store, self._launch_engine, clock)
        self.leaving = False
        """Whether this node is about to go down, and what it runs is to go on elsewhere."""
        self._closing = False
        store.subscribe(self._changed)
        devices.subscribe(self._changed)
        zygotes.subscribe(self._changed)
        metrics.observe(
            self._used_bytes,
            self._capacity_bytes,
            lambda: len(self.instances),
            self.contents.links,
        )
        kept_metrics.observe(store.kept.used_bytes)

    @property
    def engines(self) -> tuple[EngineState, ...]:
        """What instances can run on here, the one that is preferred first."""
        return self._zygotes.states

    @property
    def unmade_forms(self) -> Mapping[Unmade, str]:
        """Why weights of late starts were not made ready for their engine."""
        return self._ready_maker.problems.kept

    def kept_prefixes(self) -> dict[int, float]:
        """What is kept of prompts, by names of what these begin with; see `NamedPrefixes.saved`."""
        return self.store.kept.prefixes.saved()

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` after every change of contents or instances."""
        self._watchers.append(watcher)

    def promote(
        self,
        source: str,
        dtype: str | None,
        tier: Tier,
        hold: HoldSpec | None = None,
        *,
        pack: bool = False,
        give_up: bool = False,
        identity: str = "",
        engine: str = AUTO,
        tensor_parallel: int = 1,
        peers: Peers | None = None,
    ) -> AsyncGenerator[Progress]:
        """Brings a checkpoint up to `tier`, giving progress until it is there, and held.

        A caller that leaves does not end the work, unless it says that it would `give_up`; a hold
        is made in any case. Of what is held in memory, that which was made ready for the engine is
        read as well, as far as there is room.

        Raises:
            errors.SllmError: As `TierStore.promote`.
            errors.ShuttingDown: The node is going down.
        """
        self._check_staying()

        async def promote(tell: Tell) -> None:
            reach = partial(
                self.store.promote,
                source,
                dtype,
                tier,
                tell,
                priority=Priority.PREFETCH,
                pack=pack,
                identity=identity,
                peers=peers,
            )
            bring_up = partial(self._with_room, reach)
            if hold:
                await self.holds.bring_up(hold, tier, bring_up)
                if tier is Tier.DRAM and engine != AUTO:
                    await self._ready_maker.read_ahead(source, dtype, engine, tensor_parallel)
            else:
                (await bring_up()).release()

        return self._promotions.follow(promote, give_up=give_up and not hold)

    def start_instance(self, spec: InstanceSpec) -> Instance:
        """Begins an instance, or finds the one that has this id.

        Raises:
            errors.InvalidArgument: The instance of this id is a different one.
            errors.Cancelled: It was asked to stop before.
            errors.EngineUnavailable: This node does not have its engine.
            errors.NoCapacity: The KV budget has no room for it, the memory, or the node.
            errors.ShuttingDown: The node is going down.
        """
        if known := self.instances.get(spec.instance_id):
            check_same(known.spec, spec)
            return known
        # Two calls have no order: what ends an instance may overtake what begins it.
        if spec.instance_id in self._stopped:
            raise errors.Cancelled(f"instance {spec.instance_id} was stopped before it began")
        zygote = self._zygotes.of(spec.engine.engine)
        self._check_staying()
        self.lending.give_way()
        over_ready = self.books.check_room(spec)
        instance = Instance(spec, self._clock, self._instance_changed, self.config.patience)
        instance.over_ready = over_ready
        self.instances[spec.instance_id] = instance
        maker, early = self._ready_maker, self.config.early_starts
        borrows = early and spec.lenders
        instance.begin(
            self.store,
            self.devices,
            partial(self._launch, zygote, spec.engine.tensor_parallel),
            maker.form(spec),
            self._with_room,
            on_adapters=self._changed,
            check_published=partial(self.own_books.check_published, instance),
            early=early,
            borrowing=Borrowing(spec, self.store.first_uses, self._dial) if borrows else None,
        )
        maker.give_way(self.books.memory.free_bytes)
        self._text_workers.give_way(self.books.memory.free_bytes)
        self._changed()
        return instance

    @property
    def own_books(self) -> Books:
        """Without instances that compute layers for others: these give way to any start."""
        return self.books.of(self.instances)

    def _begin_lent(self, spec: InstanceSpec, layers: range) -> Instance:
        """See `Begin`. Nothing leaves for it.

        Raises:
            errors.SllmError: As `start_instance`.
        """
        zygote = self._zygotes.of(spec.engine.engine)
        self._check_staying()
        if self.devices.infos():
            raise errors.NoCapacity("layers are computed for others on processors alone")
        over_ready = self.books.check_room(spec)
        instance = Instance(spec, self._clock, lambda _: None, self.config.patience)
        instance.over_ready = over_ready
        instance.begin(
            self.store,
            self.devices,
            partial(self._launch, zygote, spec.engine.tensor_parallel),
            self._ready_maker.form(spec),
            check_published=partial(self.books.check_published, instance),
            early=self.config.early_starts,
            lent=layers,
        )
        return instance

    async def _with_room(self, bring_up: Callable[[], Awaitable[Brought]]) -> Brought:
        """Brings weights up. What nobody waits for leaves if there is no room for them otherwise.

        Raises:
            errors.NoCapacity: There is none even so.
            errors.SllmError: Whatever else `bring_up` raises.
        """
        while True:
            try:
                return await self._ready_maker.with_room(bring_up)
            except errors.NoCapacity:
                if not (await self.lending.has_given_way() or await self._an_adapter_leaves()):
                    raise

    async def _an_adapter_leaves(self) -> bool:
        """Has one leave that no request uses; whether there was any."""
        for one in list(self.instances.values()):
            if one.adapters and await one.adapters.make_room():
                return True
        return False

    @asynccontextmanager
    async def text_worker(self, source: TextSource, size_bytes: int) -> AsyncIterator[Worker]:
        """A worker to ask of what a model makes of text: an instance's, or one without weights.

        What is long is nothing for an instance, whose requests would wait for it.

        Raises:
            errors.EngineUnavailable: This node does not have its engine.
            errors.NoCapacity: All that there may be are busy.
            errors.SllmError: Why it cannot be started; whatever the block raises.
        """
        if size_bytes <= SHORT_BYTES and (serving := self._serving(source)):
            yield serving
        else:
            async with self._text_workers.of(source) as worker:
                yield worker

    def _serving(self, source: TextSource) -> Worker | None:
        for one in self.instances.values():
            if one.state is InstanceState.READY and source.is_of(one.spec, one.identity):
                return one.ready_worker()
        return None

    def instance(self, instance_id: str) -> Instance:
        """The instance of this id.

        Raises:
            errors.InstanceNotFound: There is none.
        """
        try:
            return self.instances[instance_id]
        except KeyError:
            raise errors.InstanceNotFound(f"no instance {instance_id} on this node") from None

    def set_unread(self, instance_id: str, request_ids: frozenset[str]) -> None:
        """Notes which requests of an instance go on although nobody reads them."""
        instance = self.instances.get(instance_id)
        if instance and instance.unread != request_ids:
            instance.unread = request_ids
            self._changed()

    async def stop_instance(self, instance_id: str, grace: float) -> None:
        """Ends an instance; one that is not there has ended, and never begins."""
        self._stopped.append(instance_id)
        instance = self.instances.get(instance_id)
        if instance:
            await instance.stop(grace)

    def leave(self) -> None:
        """Asks the control plane to have what this node runs go on elsewhere."""
        self.leaving = True
        self._changed()

    async def close(self, grace: float) -> None:
        """Stops all instances and takes no new ones."""
        self._closing = True
        self.holds.close()
        await self._promotions.close()
        await self._ready_maker.close()
        await self._text_workers.close()
        await self.lending.close()
        stops = [instance.stop(grace) for instance in list(self.instances.values())]
        await asyncio.gather(*stops)

    def _memory_without_instances(self) -> NodeMemory:
        # On devices the KV caches are in the devices' memory.
        kv_bytes = 0 if self.devices.infos() else self.devices.kv_capacity_bytes
        own = self.config.instances_bytes(kv_bytes)
        return NodeMemory(self.config.memory_bytes, own, INSTANCE_BYTES)

    def _used_bytes(self) -> dict[str, int]:
        tiers = {usage.tier.name: usage.used_bytes for usage in self.contents.usage()}
        return {**tiers, "KV": self.books.kv_used_bytes}

    def _capacity_bytes(self) -> dict[str, int]:
        tiers = {usage.tier.name: usage.capacity_bytes for usage in self.contents.usage()}
        return {**tiers, "KV": self.devices.kv_capacity_bytes}

    def _ready_of(self, spec: InstanceSpec) -> str:
        form = self._ready_maker.form(spec)
        if form is None:
            return ""
        return self.store.ready_made.made_of(spec.source, spec.engine.dtype, form.name)

    def _check_staying(self) -> None:
        if self._closing:
            raise errors.ShuttingDown("this node is going down and starts nothing new")

    async def _launch(
        self, zygote: Zygote, ranks: int, instance_id: str, environment: Mapping[str, str]
    ) -> Worker:
        if not zygote.is_ready and instance_id in self.instances:
            self._belated.add(instance_id)
        return await launch(zygote, instance_id, self._socket(instance_id), environment, ranks)

    async def _launch_engine(self, engine: str, name: str, ranks: int = 1) -> Worker:
        return await launch(self._zygotes.of(engine), name, self._socket(name), {}, ranks)

    def _socket(self, instance_id: str) -> Path:
        name = blake2s(instance_id.encode(), digest_size=SOCKET_NAME // 2).hexdigest()
        return self.config.socket_dir / f"{name}.sock"  # whatever the id is made of

    def _instance_changed(self, instance: Instance) -> None:
        if instance.state is InstanceState.READY:
            self._observe_init(instance)
            if running := instance.running:
                self._ready_maker.started(instance.spec, running, _attach_seconds(instance))
        elif instance.state is InstanceState.GONE:
            self.books.note_end(instance)
            self.instances.pop(instance.spec.instance_id, None)
            self._belated.discard(instance.spec.instance_id)
        self._changed()

    def _observe_init(self, instance: Instance) -> None:
        """Learns from a start, unless it had to wait for the zygote: later ones will not.

        Nor from one that was ready before its weights were: others may have to wait for them.
        """
        running, attach = instance.running, _attach_seconds(instance)
        if running and attach is not None and instance.spec.instance_id not in self._belated:
            prepare = instance.timeline.prepare_seconds
            seen = InitTime(running.size_bytes, prepare, attach)
            engine = instance.spec.engine.engine
            key = InitKey(running.digest, engine, running.ready_made)
            self.init_times.observe(key, seen)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()


def _attach_seconds(instance: Instance) -> float | None:
    """What a start has taken behind its load. None: it has not waited for that."""
    running = instance.running
    return None if running and running.arriving else instance.timeline.attach_seconds
