"""Bringing an instance up: its weights and its worker, side by side."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path

import structlog

from sllm import errors
from sllm.checkpoint.format.experts import expert_bytes
from sllm.checkpoint.format.manifest import corrupt
from sllm.embedding.purpose import Task
from sllm.errors import SllmError
from sllm.node.device.interface import Devices, InPool, OnDisk, Placed, Seat, WeightsWish
from sllm.node.instances.arriving import Arriving
from sllm.node.instances.attachment import Attachment, runs_in_parts
from sllm.node.instances.phases import PhaseKind, Timeline
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.preparation import Preparation
from sllm.node.instances.private_memory import logits_bytes
from sllm.node.instances.running import Running
from sllm.node.instances.spec import InstanceSpec
from sllm.node.instances.step_kinds import record_step
from sllm.node.instances.worker_client import Worker
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form, Found, Progress
from sllm.node.worker.messages import DEFAULT_CONCURRENCY, ModelDescription

log = structlog.get_logger()

LaunchWorker = Callable[[str, Mapping[str, str]], Awaitable[Worker]]
"""Forks a worker for an instance's id, with these variables."""

WithRoom = Callable[[Callable[[], Awaitable[Placed]]], Awaitable[Placed]]
"""See `ReadyMaker.with_room`."""

WORKERS = 3
"""Workers that are brought up, one after the other, where each dies with its zygote."""

_OF_THE_FORM = (
    errors.UnsupportedModel,
    errors.CheckpointCorrupt,
    errors.InvalidArgument,
    errors.WorkerDied,
    errors.Internal,
)
"""What may be the fault of weights that were made ready."""


class Start:
    """One start. An exit stack that ends with the instance gives back what it takes."""

    def __init__(
        self,
        spec: InstanceSpec,
        store: TierStore,
        devices: Devices,
        launch: LaunchWorker,
        timeline: Timeline,
        publish: Callable[[Progress], None],
        form: Form | None = None,
        with_room: WithRoom | None = None,
        check_published: Callable[[], None] = lambda: None,
        arriving: Arriving | None = None,
    ) -> None:
        """Begins nothing yet.

        Args:
            spec: what is started.
            store: has the weights.
            devices: the node's.
            launch: gives workers.
            timeline: gets the start's phases.
            publish: is told how far it is.
            form: what weights may have been made ready for. None: they are as published.
            with_room: brings weights up although what nobody waits for has the room. None: nothing
                has.
            check_published: raises NoCapacity if there is no room for weights as published.
            arriving: lets the worker begin before all weights are there, if its engine can wait.
                None: it does not.
        """
        self._check_published = check_published
        self._form = form
        self._arriving = arriving if runs_in_parts(spec.engine) else None
        self._with_room = with_room
        self._dropped_ready = False
        self._spec = spec
        self._store = store
        self._devices = devices
        self._launch = launch
        self._timeline = timeline
        self._publish = publish
        self._preparation = Preparation(spec.engine, self._directory, timeline)
        self._attachment = Attachment(spec, store.first_uses, timeline, publish, store.set_aside)
        self._placed: list[Placed] = []
        self._workers: list[Worker] = []
        """There is one, unless zygotes were lost meanwhile."""
        self._giving_back: asyncio.Task[None] | None = None
        """Waits for workers that could not be ended."""
        self.device: int | None = None
        """Index of the device that was chosen; None: none was yet, or the pool is the device."""

    async def run(self, held: AsyncExitStack) -> Running:
        """Promotes, and meanwhile forks and prepares; then attaches.

        `held` lets go in reverse order: the worker is gone before the weights that it reads are
        given back.

        Raises:
            errors.SllmError: Whatever kept the instance from starting.
        """
        taken = AsyncExitStack()
        held.push_async_callback(self._give_back, taken)
        taken.callback(self._release)
        taken.push_async_callback(self._end_early)
        found = await self._look()
        seat = await taken.enter_async_context(self._devices.seat(found, self._spec.kv_bytes))
        self.device = seat.index
        try:
            return await self._bring_up_all(found, seat, taken, held)
        except _OF_THE_FORM as error:
            ready = self._placed[-1].record if self._placed else None
            if ready is not None and ready.form:
                log.error("instance.ready_made_dropped", url=ready.url, problem=error.message)
                await self._give_up_ready(ready)
            elif self._was_set_aside(error):
                await self._end_workers()
                self._release()
            else:
                raise
        return await self._bring_up_all(found, seat, taken, held)

    async def _bring_up_all(
        self, found: Found, seat: Seat, taken: AsyncExitStack, held: AsyncExitStack
    ) -> Running:
        weights = asyncio.create_task(self._bring_up(seat))
        taken.push_async_callback(_end, weights)
        return await self._bring_up_any_worker(found, seat, weights, held)

    async def _give_up_ready(self, record: SourceRecord) -> None:
        """Goes on with weights as they are published: they can be made ready anew."""
        self._form, self._dropped_ready = None, True
        await self._end_workers()
        self._release()
        await self._store.ready_made.drop(record)

    def _was_set_aside(self, error: SllmError) -> bool:
        """Whether a copy on disk was found to be corrupt, and another can take its place."""
        if not isinstance(error, errors.CheckpointCorrupt) or not self._placed:
            return False
        last = self._placed[-1]
        return isinstance(last.place, OnDisk) and not self._store.holds(last.digest)

    async def _end_workers(self) -> None:
        """Returns once none reads its weights any more."""
        for worker in self._workers:
            await worker.stop()
            if not worker.process.ended.done():
                raise errors.StartFailed(
                    f"worker process {worker.pid} cannot be ended, and may read its weights still"
                )

    async def _end_early(self) -> None:
        """Goes on without weights that are still arriving: no worker is left that reads them."""
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return
        try:
            if arriving.may_have_lacked and any(one.faulted for one in self._workers):
                await self._store.first_uses.distrust(arriving.digest)
        except (SllmError, OSError) as error:  # what ends has its own reason for it
            log.warning("instance.first_use_trusted", digest=arriving.digest, problem=str(error))
        finally:
            await arriving.do_without_others()
            arriving.leave()

    async def _bring_up_any_worker(
        self, found: Found, seat: Seat, weights: asyncio.Task[Placed], held: AsyncExitStack
    ) -> Running:
        """A worker, with the weights; one that merely dies with its zygote is replaced.

        So is one that was to begin before all weights were there.
        """
        while True:
            try:
                return await self._bring_up_worker(found, seat, weights, held)
            except errors.SllmError as error:
                if not await self._try_again_after(error):
                    raise

    async def _try_again_after(self, error: SllmError) -> bool:
        """Whether another worker may do better; then the last one has ended."""
        about = {"instance": self._spec.instance_id, "problem": error.message}
        if isinstance(error, errors.NoCapacity):
            return False  # it is the same for all of them
        if self._is_early:
            log.warning("instance.early_start_failed", **about)
            await self._end_workers()
            await self._end_early()
            return True
        last = self._workers[-1] if self._workers else None
        died = isinstance(error, errors.WorkerDied) and last is not None and last.orphaned
        if last is None or not died or len(self._workers) == WORKERS:
            return False
        log.warning("worker.orphaned", pid=last.pid, **about)
        await last.stop()
        return True

    async def _bring_up_worker(
        self, found: Found, seat: Seat, weights: asyncio.Task[Placed], held: AsyncExitStack
    ) -> Running:
        worker = await self._launch_worker(seat, held)
        model = await self._preparation.prepare(worker, found.directory, weights)
        placed = await self._usable(weights)
        _check_same(found, placed.record)
        if found.digest is None:
            # The worker has read the small files at the source itself, at another moment.
            _check_same(found, (await self._look()).record)
        if placed.ready_made is None:
            self._check_published()
        share = seat.kv_share
        if share:
            await share.wait()
        more = share.more_bytes if share and self._may_resize(model) else 0
        attached = await self._attachment.attach(worker, placed, model, self._arriving, more)
        if share and attached.resizes_cache:
            share.follow(worker)
        return Running(
            worker,
            placed.digest,
            placed.manifest.size_bytes,
            placed.from_tier,
            attached.context_tokens,
            model,
            found.size_bytes,
            found.record.identity,
            placed.ready_made is not None,
            self._dropped_ready,
            self._arriving if self._is_early else None,
            self._expert_bytes(placed),
            self._logits_bytes(model),
            share,
        )

    def _may_resize(self, model: ModelDescription) -> bool:
        """Whether its cache may get another size: nobody else has one like it."""
        is_alone = self._spec.engine.tensor_parallel == 1
        is_whole = self._arriving is None or self._arriving.is_alone
        return is_alone and is_whole and model.purpose.task is Task.GENERATE

    def _logits_bytes(self, model: ModelDescription) -> int:
        """Memory of a full step's logits, if the model gives any."""
        if self.device is not None or model.purpose.task is not Task.GENERATE:
            return 0
        requests = self._spec.engine.max_concurrency or DEFAULT_CONCURRENCY
        return requests * logits_bytes(model.vocabulary, self._spec.engine.tensor_parallel)

    def _expert_bytes(self, placed: Placed) -> int:
        """Memory that experts may come to take in the worker, beside what it has when it starts."""
        most = self._spec.engine.expert_bytes
        found = None if most is None else expert_bytes(placed.manifest.tensors)
        return min(most or 0, found.total) if found else 0

    @property
    def _is_early(self) -> bool:
        return self._arriving is not None and self._arriving.is_used

    async def _usable(self, weights: asyncio.Task[Placed]) -> Placed:
        """The weights: all of them, or enough to begin with."""
        arrival = await self._arriving.usable(weights) if self._arriving else None
        if arrival is None:
            if self._arriving:
                await self._arriving.do_without_others()
            return await weights
        place = InPool(arrival.chunks, self._store.chunk_bytes)
        directory = arrival.directory if arrival.record.form else None
        return Placed(arrival.manifest, arrival.record, place, Tier.SSD, (), ExitStack(), directory)

    async def _look(self) -> Found:
        spec = self._spec
        return await self._store.inspect(
            spec.source, spec.engine.dtype, fresh=False, identity=spec.identity
        )

    async def _directory(self) -> Path:
        return (await self._look()).directory

    async def _bring_up(self, seat: Seat) -> Placed:
        engine = self._spec.engine
        source = self._spec.source
        wish = WeightsWish(
            source,
            engine.dtype,
            engine.pack,
            self._form,
            self._arriving,
            engine.expert_bytes,
            self._spec.peers,
        )
        bring_up = partial(seat.bring_up, wish, self._publish)
        placed = await (self._with_room(bring_up) if self._with_room else bring_up())
        self._placed.append(placed)
        for step in placed.steps if not self._is_early else ():
            record_step(self._timeline, step)
        return placed

    async def _launch_worker(self, seat: Seat, held: AsyncExitStack) -> Worker:
        with self._timeline.phase(PhaseKind.WORKER_START):
            worker = await self._launch(self._spec.instance_id, seat.environment)
            self._workers.append(worker)
            held.push_async_callback(worker.stop)
            await worker.wait_until_serving()
        return worker

    async def _give_back(self, taken: AsyncExitStack) -> None:
        """Gives weights and room back once the worker has gone: until then it may use them.

        One that not even the kernel can end keeps them for as long as that lasts.
        """
        processes = [one for worker in self._workers for one in worker.processes]
        left = [process for process in processes if not process.ended.done()]
        if left:
            pids = [process.pid for process in left]
            log.error("worker.not_ended", pids=pids, instance=self._spec.instance_id)
            self._giving_back = asyncio.create_task(_close_after(left, taken))
        else:
            await taken.aclose()

    def _release(self) -> None:
        for placed in self._placed:
            placed.release()


def _check_same(found: Found, record: SourceRecord) -> None:
    """Refuses weights of another state of the source than that whose small files were read."""
    if found.record != record.published:
        raise corrupt(found.directory, "was changed while an instance of it started; try again")


async def _close_after(processes: Sequence[ProcessHandle], taken: AsyncExitStack) -> None:
    await asyncio.wait([process.ended for process in processes])
    await taken.aclose()


async def _end(task: asyncio.Task[Placed]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen here, so that asyncio does not report it as never retrieved
