"""The node agent: what this node holds, what it runs, and what it may still take on."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from hashlib import blake2s
from pathlib import Path

from sllm import errors
from sllm.clock import Clock
from sllm.node.config import INSTANCE_BYTES, SOCKET_NAME, NodeConfig
from sllm.node.device.interface import Devices
from sllm.node.instances.init_times import InitTime, InitTimes
from sllm.node.instances.inspection import AdapterInfo, Base, Inspector, ModelInfo
from sllm.node.instances.instance import Instance, InstanceState
from sllm.node.instances.launching import launch
from sllm.node.instances.memory import NodeMemory
from sllm.node.instances.ready_maker import Brought, ReadyMaker
from sllm.node.instances.spec import InstanceSpec, check_same
from sllm.node.instances.text_workers import SHORT_BYTES, TextSource, TextWorkers
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.zygote_client import Zygote
from sllm.node.instances.zygotes import AUTO, EngineState, Zygotes
from sllm.node.store.holds import Holds, HoldSpec
from sllm.node.store.promotions import Promotions
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers import metrics
from sllm.node.tiers.types import Copy, Link, Tier, TierUsage
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Priority, Progress
from sllm.node.worker.messages import NO_PARSERS, ParserNames
from sllm.own_memory import Taken

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
    ) -> None:
        self.config = config
        self.store = store
        self.devices = devices
        self.holds = Holds(clock, self._changed)
        self.instances: dict[str, Instance] = {}
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
            lambda: self.memory.free_bytes,
            None if devices.infos() else config.ready_made_bytes,
            clock,
        )
        self._inspector = Inspector(store, devices, zygotes)
        self._text_workers = TextWorkers(store, self._launch_engine, clock)
        self.leaving = False
        """Whether this node is about to go down, and what it runs is to go on elsewhere."""
        self._closing = False
        store.subscribe(self._changed)
        devices.subscribe(self._changed)
        zygotes.subscribe(self._changed)
        metrics.observe(
            self._used_bytes, self._capacity_bytes, lambda: len(self.instances), self.links
        )

    @property
    def kv_used_bytes(self) -> int:
        """What the instances hold of the KV budget."""
        instances = list(self.instances.values())  # at once: metrics are read in another thread
        return sum(instance.spec.kv_bytes for instance in instances)

    @property
    def engines(self) -> tuple[EngineState, ...]:
        """What instances can run on here, the one that is preferred first."""
        return self._zygotes.states

    @property
    def memory(self) -> NodeMemory:
        """The memory that instances take for themselves."""
        # On devices the KV caches are in the devices' memory.
        kv_bytes = 0 if self.devices.infos() else self.devices.kv_capacity_bytes
        return NodeMemory(
            self.config.memory_bytes,
            self.config.instances_bytes(kv_bytes),
            INSTANCE_BYTES,
            tuple(self._taken(one) for one in self.instances.values()),
        )

    def copies(self) -> tuple[Copy, ...]:
        """Every checkpoint on every tier, and those on their way."""
        return (*self.store.copies(), *self.devices.copies())

    def usage(self) -> tuple[TierUsage, ...]:
        """How full the tiers are."""
        return (*self.store.usage(), *self.devices.usage())

    def links(self) -> tuple[Link, ...]:
        """How fast bytes move between the tiers, and how many are waiting to."""
        return tuple(
            replace(
                link,
                queued_bytes=self.devices.queued_bytes,
                in_flight_bytes=self.devices.in_flight_bytes,
            )
            if link.to_tier is Tier.DEVICE
            else link
            for link in self.store.links()
        )

    async def evict(self, digest: str, tier: Tier) -> None:
        """Frees a checkpoint's room on a tier.

        Raises:
            errors.CheckpointNotFound: The tier does not hold it.
            errors.CheckpointLeased: It is in use, or being loaded.
        """
        if tier is Tier.DEVICE:
            await self.devices.evict(digest)
        else:
            await self.store.evict(digest, tier)

    def subscribe(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` after every change of contents or instances."""
        self._watchers.append(watcher)

    async def inspect(
        self,
        source: str,
        dtype: str | None,
        identity: str = "",
        engine: str = AUTO,
        parsers: ParserNames = NO_PARSERS,
        *,
        takes_adapters: bool = False,
        tensor_parallel: int = 1,
    ) -> ModelInfo:
        """What the model at `source` needs, which must be of this identity unless that is empty.

        Args:
            source: its URL.
            dtype: name of a torch dtype that weights are converted to. None: as stored.
            identity: of what the source must be.
            engine: on which it is to run. `AUTO`: the first of this node's that can.
            parsers: that are to take its answers apart.
            tensor_parallel: devices that run it together.
            takes_adapters: whether it is to be run with adapters.

        Raises:
            errors.SllmError: Why it cannot be served here.
        """
        return await self._inspector.inspect(
            source,
            dtype,
            identity,
            engine,
            parsers,
            takes_adapters=takes_adapters,
            ranks=tensor_parallel,
        )

    async def inspect_adapter(self, source: str, dtype: str | None, base: Base) -> AdapterInfo:
        """What the adapter at `source` is, which must fit its base.

        Args:
            source: its URL.
            dtype: name of a torch dtype that weights are converted to. None: as stored.
            base: what it is held against.

        Raises:
            errors.SllmError: Why it cannot be served.
        """
        return await self._inspector.inspect_adapter(source, dtype, base)

    async def describe_promoted(
        self,
        source: str,
        dtype: str | None,
        identity: str,
        engine: str,
        tensor_parallel: int = 1,
    ) -> ModelInfo | AdapterInfo:
        """What was brought up.

        Raises:
            errors.SllmError: As `inspect`.
        """
        adapter = await self._inspector.held_adapter(source, dtype, identity)
        return adapter or await self.inspect(
            source, dtype, identity, engine, tensor_parallel=tensor_parallel
        )

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
    ) -> AsyncGenerator[Progress]:
        """Brings a checkpoint up to `tier`, giving progress until it is there, and held.

        A caller that leaves does not end the work, unless it says that it would `give_up`; a hold
        is made in any case.

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
            )
            bring_up = partial(self._with_room, reach)
            if hold:
                await self.holds.bring_up(hold, tier, bring_up)
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
        self._check_room(spec)
        instance = Instance(spec, self._clock, self._instance_changed, self.config.patience)
        self.instances[spec.instance_id] = instance
        launch = partial(self._launch, zygote)
        maker = self._ready_maker
        instance.begin(
            self.store,
            self.devices,
            launch,
            maker.form(spec),
            self._with_room,
            on_adapters=self._changed,
        )
        maker.give_way(self.memory.free_bytes)
        self._text_workers.give_way(self.memory.free_bytes)
        self._changed()
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
                if not await self._an_adapter_leaves():
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
        stops = [instance.stop(grace) for instance in list(self.instances.values())]
        await asyncio.gather(*stops)

    def _used_bytes(self) -> dict[str, int]:
        tiers = {usage.tier.name: usage.used_bytes for usage in self.usage()}
        return {**tiers, "KV": self.kv_used_bytes}

    def _capacity_bytes(self) -> dict[str, int]:
        tiers = {usage.tier.name: usage.capacity_bytes for usage in self.usage()}
        return {**tiers, "KV": self.devices.kv_capacity_bytes}

    def _check_staying(self) -> None:
        if self._closing:
            raise errors.ShuttingDown("this node is going down and starts nothing new")

    def _check_room(self, spec: InstanceSpec) -> None:
        self._check_staying()
        self._check_devices(spec)
        capacity = self.devices.kv_capacity_bytes
        free = capacity - self.kv_used_bytes
        if spec.kv_bytes > free:
            raise errors.NoCapacity(
                f"{spec.deployment} needs {spec.kv_bytes} bytes of KV cache; {free} of "
                f"{capacity} are free on this node"
            )
        self.memory.check_room(spec.deployment, spec.kind, self._private_bytes(spec))

    def _check_devices(self, spec: InstanceSpec) -> None:
        asked, most = spec.engine.tensor_parallel, self.devices.max_together
        if asked > 1 and spec.engine.max_adapters:
            raise errors.InvalidArgument(
                f"{spec.deployment} runs on {asked} devices together, which take no adapters: "
                "leave out tensor_parallel or max_adapters"
            )
        if asked > most:
            raise errors.NoCapacity(
                f"{spec.deployment} runs on {asked} devices together, and {most} may run one "
                "instance on this node"
            )

    def _taken(self, instance: Instance) -> Taken:
        spec = instance.spec
        return Taken(spec.kind, instance.memory.bytes, self._private_bytes(spec))

    def _private_bytes(self, spec: InstanceSpec) -> int | None:
        # Where weights are on devices, copies of them are there as well.
        return None if self.devices.infos() else spec.private_bytes

    async def _launch(
        self, zygote: Zygote, instance_id: str, environment: Mapping[str, str]
    ) -> Worker:
        if not zygote.is_ready:
            self._belated.add(instance_id)
        ranks = self.instances[instance_id].spec.engine.tensor_parallel
        return await launch(zygote, instance_id, self._socket(instance_id), environment, ranks)

    async def _launch_engine(self, engine: str, name: str) -> Worker:
        return await launch(self._zygotes.of(engine), name, self._socket(name), {})

    def _socket(self, instance_id: str) -> Path:
        name = blake2s(instance_id.encode(), digest_size=SOCKET_NAME // 2).hexdigest()
        return self.config.socket_dir / f"{name}.sock"  # whatever the id is made of

    def _instance_changed(self, instance: Instance) -> None:
        if instance.state is InstanceState.READY:
            self._observe_init(instance)
            if running := instance.running:
                attach = instance.timeline.attach_seconds
                self._ready_maker.started(instance.spec, running, attach)
        elif instance.state is InstanceState.GONE:
            self.instances.pop(instance.spec.instance_id, None)
            self._belated.discard(instance.spec.instance_id)
        self._changed()

    def _observe_init(self, instance: Instance) -> None:
        """Learns from a start, unless it had to wait for the zygote: later ones will not."""
        running, timeline = instance.running, instance.timeline
        if running and instance.spec.instance_id not in self._belated:
            prepare, attach = timeline.prepare_seconds, timeline.attach_seconds
            seen = InitTime(running.size_bytes, prepare, attach)
            self.init_times.observe((running.digest, instance.spec.engine.engine), seen)

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()
