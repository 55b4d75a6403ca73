"""One instance: STARTING -> READY -> DRAINING -> GONE, its whole life in one coroutine."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

import structlog
from opentelemetry import trace

from sllm import errors
from sllm.broadcast import Broadcast
from sllm.clock import Clock
from sllm.node.device.interface import Devices
from sllm.node.device.kv_shares import CacheSizes
from sllm.node.instances.adapters import InstanceAdapters
from sllm.node.instances.arriving import Arriving
from sllm.node.instances.borrowing import Borrowing
from sllm.node.instances.memory import OwnMemory
from sllm.node.instances.page_keeping import WorkersPages, scope_of
from sllm.node.instances.phases import Timeline
from sllm.node.instances.running import Running
from sllm.node.instances.spec import InstanceSpec
from sllm.node.instances.start import LaunchWorker, Start, WithRoom
from sllm.node.instances.watchdog import Patience, watch
from sllm.node.instances.worker_client import Worker
from sllm.node.kept.from_peers import PagesFromPeers
from sllm.node.store.tier_store import TierStore
from sllm.node.transfers.work import Form, Progress

log = structlog.get_logger()
tracer = trace.get_tracer("sllm")


class InstanceState(IntEnum):
    """Where an instance is in its life; the numbers are those of the protocol."""

    STARTING = 1
    READY = 2
    DRAINING = 3
    GONE = 4


class Instance:
    """One running copy of a deployment on this node."""

    def __init__(
        self,
        spec: InstanceSpec,
        clock: Clock,
        on_change: Callable[["Instance"], None],
        patience: Patience,
    ) -> None:
        self.spec = spec
        self.state = InstanceState.STARTING
        self.started_at = datetime.now(UTC)
        self.timeline = Timeline(clock)
        self.start_seconds = 0.0
        """How long the start took, once READY."""
        self.running: Running | None = None
        """What the start has brought up, from READY on."""
        self.memory = OwnMemory()
        """What its worker takes of the node's memory for itself, from READY on."""
        self.belated = False
        """Whether its start has had to wait for the zygote's own."""
        self.over_ready = False
        """Whether its weights were made ready for its engine; expected, until it is READY."""
        self.adapters: InstanceAdapters | None = None
        """Those that its requests may be for, once it has begun. None: it takes none."""
        self.unread: frozenset[str] = frozenset()
        """Ids of requests that go on although nobody reads them."""
        self.error: errors.SllmError | None = None
        """Why it is GONE, unless it was asked to stop."""
        self._progress: Broadcast[Progress] = Broadcast()
        self._on_change = on_change
        self._clock = clock
        self._patience = patience
        self._stop = asyncio.Event()
        self._grace = math.inf
        """The shortest that was given."""
        self._start: Start | None = None
        self._starting: asyncio.Task[Running] | None = None
        self._life: asyncio.Task[None] | None = None
        self._closing_adapters: asyncio.Task[None] | None = None
        """Waits for a worker that could not be ended."""
        self._pages: PagesFromPeers | None = None
        self._keeping: WorkersPages | None = None

    @property
    def identity(self) -> str:
        """Of what it serves. Empty while it is not known."""
        return self.running.identity if self.running else ""

    def check_identity(self, identity: str, served: str | None = None) -> None:
        """Makes sure that what was begun with one checkpoint does not go on with another.

        Args:
            identity: of what it was begun with. Empty: not known.
            served: of what it would go on with. None: what the instance serves.

        Raises:
            errors.SourceChanged: It does not serve the checkpoint of this identity.
        """
        served = self.identity if served is None else served
        if identity and served and identity != served:
            raise errors.SourceChanged(
                f"the generation was begun with another checkpoint than the one that instance "
                f"{self.spec.instance_id} of {self.spec.deployment} serves; send the request anew"
            )

    @property
    def kept_pages(self) -> WorkersPages | None:
        """Those of the worker's cache that are kept, from READY on. None: none are."""
        return self._keeping

    @property
    def arriving(self) -> Arriving | None:
        """Weights that were on their way when it became READY. None: none were."""
        return self.running.arriving if self.running else None

    @property
    def running_requests(self) -> int:
        """Requests that the worker has taken and not finished."""
        return self.running.worker.running if self.running else 0

    @property
    def worker_pid(self) -> int:
        """Process id of the worker; 0 while there is none."""
        return self.running.worker.pid if self.running else 0

    @property
    def kv_cache(self) -> CacheSizes | None:
        """What its KV cache has, where that follows need. None: `spec.kv_bytes`, and no other."""
        share = self.running.kv_share if self.running else None
        return share.sizes if share else None

    @property
    def device(self) -> int | None:
        """Index of its device on the node. None: not yet chosen, or the pool is the device."""
        return self._start.device if self._start else None

    def begin(
        self,
        store: TierStore,
        devices: Devices,
        launch: LaunchWorker,
        form: Form | None = None,
        with_room: WithRoom | None = None,
        on_adapters: Callable[[], None] = lambda: None,
        check_published: Callable[[], None] = lambda: None,
        *,
        early: bool = False,
        borrowing: Borrowing | None = None,
        lent: range | None = None,
    ) -> None:
        """Begins the life of the instance, which goes on whoever watches it.

        `form`: what its weights may have been made ready for. `with_room`: as `Start` has it.
        `on_adapters` is called when an adapter has come or gone, and `check_published` before
        weights are used as they are published: it raises NoCapacity if they have no room so.
        `early`: it may become READY before all weights are there, where its engine can wait.
        `borrowing` and `lent`: as `Arriving` has them.
        """
        self._pages = store.pages_from_peers
        if most := self.spec.engine.max_adapters:
            self.adapters = InstanceAdapters(store, self._worker, most, self._clock, on_adapters)
        start = self._start = Start(
            self.spec,
            store,
            devices,
            launch,
            self.timeline,
            self._progress.publish,
            form,
            with_room,
            check_published,
            Arriving(self._clock, borrowing, lent) if early else None,
        )
        held = AsyncExitStack()
        self._starting = asyncio.create_task(_run_start(start, held))
        self._life = asyncio.create_task(
            self._live(self._starting, held), name=self.spec.instance_id
        )

    async def follow_start(self) -> AsyncGenerator[Progress]:
        """How far the start is, until it has succeeded.

        Raises:
            errors.SllmError: The start has failed, or the instance is gone.
        """
        async with aclosing(self._progress.follow()) as steps:
            async for progress in steps:
                yield progress
        if self.error:
            raise self.error

    async def stop(self, grace: float) -> None:
        """Lets requests finish for `grace` seconds, then ends; returns when it is GONE."""
        if self._starting is None or self._life is None:
            return
        self._grace = min(grace, self._grace)
        self._stop.set()
        self._starting.cancel()  # the start alone: what it took is let go of undisturbed
        if self.running and self.state is InstanceState.DRAINING:
            await self.running.worker.drain(grace)
        await asyncio.wait([self._life])

    def ready_worker(self) -> Worker:
        """The worker, to submit to.

        Raises:
            errors.InstanceNotFound: The instance takes no requests: not yet, or no longer.
        """
        if self.running is None or self.state is not InstanceState.READY:
            raise errors.InstanceNotFound(
                f"instance {self.spec.instance_id} is {self.state.name} and takes no requests"
            )
        return self.running.worker

    def _worker(self) -> Worker:
        if self.running is None:
            raise errors.InstanceNotFound(f"instance {self.spec.instance_id} has no worker")
        return self.running.worker

    async def _end_adapters(self) -> None:
        """Gives their weights back once the worker has gone, as `Start` does with the model's."""
        if not (self.adapters and self.running):
            return
        closing = _close_after(self.running.worker, self.adapters)
        if self.running.worker.process.ended.done():
            await closing
        else:
            self._closing_adapters = asyncio.create_task(closing, name="adapters of a lost worker")

    async def _live(self, starting: asyncio.Task[Running], held: AsyncExitStack) -> None:
        try:
            async with held:
                self.running = await starting
                self.over_ready = self.running.ready_made
                await self._keep_pages(self.running)
                self._become_ready()
                running, worker = self.running, self.running.worker
                measure = self.memory.measure(
                    worker.pids, lambda: running.kv_bytes, self._clock, running.later_bytes
                )
                for task in (self._watch(running), measure):
                    held.callback(asyncio.create_task(task).cancel)
                await self._serve(worker)
        except asyncio.CancelledError:
            self.error = errors.Cancelled(f"instance {self.spec.instance_id} was stopped")
        except errors.SllmError as error:
            self.error = error
        except Exception as error:
            log.exception("instance.failed", instance_id=self.spec.instance_id)
            self.error = errors.Internal(f"instance {self.spec.instance_id} failed: {error!r}")
        finally:
            await self._end_adapters()
            if self._keeping:
                await self._keeping.end()
            self._become(InstanceState.GONE)
            self._progress.close()

    async def _keep_pages(self, running: Running) -> None:
        if not (self._pages and self._pages.kept.is_on):
            return
        scope = scope_of(self.spec.deployment, running.identity or running.digest)
        self._keeping = WorkersPages(self._pages, running.worker, scope)
        if not (running.arriving and running.arriving.borrowing):  # or it begins with the weights
            await self._keeping.begun()

    async def _watch(self, running: Running) -> None:
        try:
            if running.arriving:  # until then a step may take as long as that
                await _until_whole(running.worker, running.arriving)
                await running.arriving.do_without_others()
            await watch(running.worker, self._patience, self._clock)
        except Exception:  # it serves on, and would hang unnoticed
            log.exception("instance.unwatched", instance_id=self.spec.instance_id)

    def _become_ready(self) -> None:
        self.start_seconds = self.timeline.elapsed
        self._become(InstanceState.READY)
        self._progress.close()

    async def _serve(self, worker: Worker) -> None:
        """Returns when the instance was asked to stop and has drained.

        Raises:
            errors.WorkerDied: The worker has ended by itself.
        """
        stopping = asyncio.create_task(self._stop.wait())
        either: list[asyncio.Future[Any]] = [worker.gone, stopping]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if worker.gone.done():
            raise worker.gone.result()
        self._become(InstanceState.DRAINING)
        await worker.drain(self._grace)
        if self._keeping:
            await self._keeping.finish()

    def _become(self, state: InstanceState) -> None:
        log.info(
            "instance.state",
            instance_id=self.spec.instance_id,
            deployment=self.spec.deployment,
            state=state.name,
            error=str(self.error) if self.error else None,
        )
        self.state = state
        self._on_change(self)


async def _until_whole(worker: Worker, arriving: Arriving) -> None:
    """Ends a worker whose weights do not come: no step that waits for them would ever end."""
    try:
        await arriving.until_whole()
    except Exception as error:
        problem = error.message if isinstance(error, errors.SllmError) else repr(error)
        log.error("instance.weights_lost", pid=worker.pid, problem=problem)
        worker.kill(f"has lost weights that were on their way ({problem})")


async def _close_after(worker: Worker, adapters: InstanceAdapters) -> None:
    await asyncio.wait([worker.process.ended])
    await adapters.close()


async def _run_start(start: Start, held: AsyncExitStack) -> Running:
    with tracer.start_as_current_span("sllm.start_instance"):
        return await start.run(held)
