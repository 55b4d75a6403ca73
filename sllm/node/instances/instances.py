"""The instances of one node: begun where there is room, found by their ids, and ended."""

import asyncio
from collections import ChainMap, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sllm import errors, rpc
from sllm.clock import Clock
from sllm.node.device.interface import Devices
from sllm.node.instances.books import Books
from sllm.node.instances.borrowing import Borrowing
from sllm.node.instances.init_times import InitKey, InitTime, InitTimes
from sllm.node.instances.instance import Instance, InstanceState
from sllm.node.instances.launching import Launcher
from sllm.node.instances.lending import Lending
from sllm.node.instances.memory import NodeMemory
from sllm.node.instances.ready_maker import ReadyMaker
from sllm.node.instances.room import Room
from sllm.node.instances.spec import InstanceSpec, check_same
from sllm.node.instances.start import LaunchWorker
from sllm.node.instances.text_workers import TextSource, TextWorkers
from sllm.node.instances.unmade import Unmade
from sllm.node.instances.watchdog import Patience
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.zygote_client import Zygote
from sllm.node.instances.zygotes import Zygotes
from sllm.node.store.tier_store import TierStore

_STOPPED_IDS = 1024
"""Instances of which it is known that they were stopped, the last ones."""


@dataclass(frozen=True, slots=True)
class InstanceSettings:
    """How a node runs its instances."""

    memory: NodeMemory
    """What they take from, while there are none."""
    socket_dir: Path
    """The workers' sockets."""
    ready_made_bytes: int | None
    """Size from which a model's weights are made ready for its engine. None: never."""
    early_starts: bool
    """Whether one may be READY before all of its weights are there."""
    patience: Patience
    """How long a worker that has requests may be silent before it is ended."""


class Instances:
    """Those that the control plane asks for, and beside them those lent to other nodes.

        instances = Instances(store, devices, zygotes, settings, clock, changed)
        instance = instances.start(InstanceSpec("i-1", "llama", "/models/llama", engine, kv_bytes))
        async for progress in instance.follow_start():
            print(progress.loaded_bytes, "of", progress.total_bytes)
        instances.find("i-1").ready_worker()  # takes requests
        await instances.stop("i-1", grace=5.0)

    Belongs to the event loop.
    """

    def __init__(
        self,
        store: TierStore,
        devices: Devices,
        zygotes: Zygotes,
        settings: InstanceSettings,
        clock: Clock,
        changed: Callable[[], None],
        dial: rpc.Dial = rpc.channel,
    ) -> None:
        """There are none. `changed` is called after every change; `dial` leads to other nodes."""
        self._store = store
        self._devices = devices
        self._zygotes = zygotes
        self._settings = settings
        self._clock = clock
        self._changed = changed
        self._dial = dial
        self._launcher = Launcher(zygotes, settings.socket_dir)
        self.by_id: dict[str, Instance] = {}
        """Those that the control plane has asked for."""
        self._stopped: deque[str] = deque(maxlen=_STOPPED_IDS)
        """Ids of instances that were asked to stop, whether they were there or not."""
        self._closing = False
        self.init_times = InitTimes()
        self.lending = Lending(store, self._begin_lent)
        every = ChainMap(self.by_id, self.lending.instances)
        self.books = Books(every, devices, settings.memory, self._made_of)
        self.ready_maker = ReadyMaker(
            store,
            self._launcher.launch,
            lambda: self.books.memory.free_bytes,
            settings.ready_made_bytes,
            clock,
        )
        self.text_workers = TextWorkers(store, self._launcher.launch, self._serving, clock)
        self.room = Room(self.by_id, self.lending, self.ready_maker, self.text_workers)

    @property
    def own_books(self) -> Books:
        """Without instances that compute layers for others: these give way to any start."""
        return self.books.of(self.by_id)

    @property
    def unmade_forms(self) -> Mapping[Unmade, str]:
        """Why weights of late starts were not made ready for their engine."""
        return self.ready_maker.problems.kept

    def find(self, instance_id: str) -> Instance:
        """The instance of this id.

        Raises:
            errors.InstanceNotFound: There is none.
        """
        try:
            return self.by_id[instance_id]
        except KeyError:
            raise errors.InstanceNotFound(f"no instance {instance_id} on this node") from None

    def start(self, spec: InstanceSpec) -> Instance:
        """Begins an instance, or finds the one that has this id.

        Raises:
            errors.InvalidArgument: The instance of this id is a different one.
            errors.Cancelled: It was asked to stop before.
            errors.EngineUnavailable: This node does not have its engine.
            errors.NoCapacity: The KV budget has no room for it, the memory, or the node.
            errors.ShuttingDown: The node is going down.
        """
        if known := self.by_id.get(spec.instance_id):
            check_same(known.spec, spec)
            return known
        # Two calls have no order: what ends an instance may overtake what begins it.
        if spec.instance_id in self._stopped:
            raise errors.Cancelled(f"instance {spec.instance_id} was stopped before it began")
        zygote = self._staying_zygote(spec)
        self.lending.give_way()
        instance = self._with_room(spec, self._instance_changed)
        self.by_id[spec.instance_id] = instance
        early = self._settings.early_starts
        borrows = early and spec.lenders
        instance.begin(
            self._store,
            self._devices,
            self._launch(instance, zygote),
            self.ready_maker.form(spec),
            self.room.bring_up,
            on_adapters=self._changed,
            check_published=partial(self.own_books.check_published, instance),
            early=early,
            borrowing=Borrowing(spec, self._store.first_uses, self._dial) if borrows else None,
        )
        self.room.give_way(self.books.memory.free_bytes)
        self._changed()
        return instance

    def set_unread(self, instance_id: str, request_ids: frozenset[str]) -> None:
        """Notes which requests of an instance go on although nobody reads them."""
        instance = self.by_id.get(instance_id)
        if instance and instance.unread != request_ids:
            instance.unread = request_ids
            self._changed()

    async def stop(self, instance_id: str, grace: float) -> None:
        """Ends an instance; one that is not there has ended, and never begins.

        `grace`: seconds that its requests have to finish.
        """
        self._stopped.append(instance_id)
        if instance := self.by_id.get(instance_id):
            await instance.stop(grace)

    def take_no_more(self) -> None:
        """Has every start be refused from now on."""
        self._closing = True

    async def close(self, grace: float) -> None:
        """Ends all, and the workers beside them; requests have `grace` seconds to finish."""
        self.take_no_more()
        await self.ready_maker.close()
        await self.text_workers.close()
        await self.lending.close()
        stops = [instance.stop(grace) for instance in list(self.by_id.values())]
        await asyncio.gather(*stops)

    def _begin_lent(self, spec: InstanceSpec, layers: range) -> Instance:
        """See `Begin`. Nothing leaves for it.

        Raises:
            errors.SllmError: As `start`.
        """
        zygote = self._staying_zygote(spec)
        if self._devices.infos():
            raise errors.NoCapacity("layers are computed for others on processors alone")
        instance = self._with_room(spec, lambda _: None)
        instance.begin(
            self._store,
            self._devices,
            self._launch(instance, zygote),
            self.ready_maker.form(spec),
            check_published=partial(self.books.check_published, instance),
            early=self._settings.early_starts,
            lent=layers,
        )
        return instance

    def _staying_zygote(self, spec: InstanceSpec) -> Zygote:
        zygote = self._zygotes.of(spec.engine.engine)
        if self._closing:
            raise errors.ShuttingDown("this node is going down and starts nothing new")
        return zygote

    def _with_room(self, spec: InstanceSpec, on_change: Callable[[Instance], None]) -> Instance:
        """One that the books have room for.

        Raises:
            errors.SllmError: As `Books.check_room`.
        """
        over_ready = self.books.check_room(spec)
        instance = Instance(spec, self._clock, on_change, self._settings.patience)
        instance.over_ready = over_ready
        return instance

    def _launch(self, instance: Instance, zygote: Zygote) -> LaunchWorker:
        async def launch(instance_id: str, environment: Mapping[str, str]) -> Worker:
            instance.belated |= not zygote.is_ready
            ranks = instance.spec.engine.tensor_parallel
            return await self._launcher.fork(zygote, instance_id, environment, ranks)

        return launch

    def _serving(self, source: TextSource) -> Worker | None:
        """The worker of an instance that has this model, if there is one that is READY."""
        for one in self.by_id.values():
            if one.state is InstanceState.READY and source.is_of(one.spec, one.identity):
                return one.ready_worker()
        return None

    def _made_of(self, spec: InstanceSpec) -> str:
        """See `Books`."""
        form = self.ready_maker.form(spec)
        if form is None:
            return ""
        return self._store.ready_made.made_of(spec.source, spec.engine.dtype, form.name)

    def _instance_changed(self, instance: Instance) -> None:
        if instance.state is InstanceState.READY:
            self._learn(instance)
        elif instance.state is InstanceState.GONE:
            self.books.note_end(instance)
            self.by_id.pop(instance.spec.instance_id, None)
        self._changed()

    def _learn(self, instance: Instance) -> None:
        """Learns from a start what later ones take, and has what it lacked made ready.

        One that had to wait for the zygote tells nothing of the time: later ones will not. Nor one
        that was ready before its weights were: others may have to wait for them.
        """
        if (running := instance.running) is None:
            return
        timeline = instance.timeline
        attach = None if running.arriving else timeline.attach_seconds
        if attach is not None and not instance.belated:
            key = InitKey(running.digest, instance.spec.engine.engine, running.ready_made)
            seen = InitTime(running.size_bytes, timeline.prepare_seconds, attach)
            self.init_times.observe(key, seen)
        self.ready_maker.started(instance.spec, running, attach)
