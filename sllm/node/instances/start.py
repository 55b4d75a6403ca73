"""Bringing an instance up: its weights and its worker, side by side."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from sllm import errors
from sllm.checkpoint.format.manifest import corrupt
from sllm.errors import SllmError
from sllm.node.device.interface import Devices, Placed, Seat, WeightsWish
from sllm.node.instances.phases import PhaseKind, Timeline
from sllm.node.instances.pidfd import ProcessHandle
from sllm.node.instances.spec import InstanceSpec
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.worker_messages import Attached
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form, Found, LoadPhase, Progress, Step
from sllm.node.worker.messages import ModelDescription

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

STEP_KINDS = {
    LoadPhase.IMPORT: PhaseKind.IMPORT,
    LoadPhase.READ: PhaseKind.READ_SSD,
    LoadPhase.COPY: PhaseKind.DEVICE_COPY,
}
"""As receipts call the steps of a load."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a start has brought up."""

    worker: Worker
    digest: str
    size_bytes: int
    """Of the checkpoint."""
    from_tier: Tier
    """Highest tier that held the weights when the start began."""
    context_tokens: int
    """What prompt and generation of one request may have together."""
    model: ModelDescription
    """What its configuration says of it."""
    tensor_bytes: int
    """Of the weights, without what lies between them."""
    identity: str
    """Of what it serves; see `sllm.checkpoint.sources.identity`."""
    ready_made: bool = False
    """Whether its weights were made ready for the engine."""
    dropped_ready: bool = False
    """Whether such weights were there, and have turned out to be of no use."""


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
        """
        self._form = form
        self._with_room = with_room
        self._dropped_ready = False
        self._spec = spec
        self._store = store
        self._devices = devices
        self._launch = launch
        self._timeline = timeline
        self._publish = publish
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
        found = await self._look()
        seat = await taken.enter_async_context(self._devices.seat(found, self._spec.kv_bytes))
        self.device = seat.index
        try:
            return await self._bring_up_all(found, seat, taken, held)
        except _OF_THE_FORM as error:
            ready = self._placed[-1].record if self._placed else None
            if ready is None or not ready.form:
                raise
            log.error("instance.ready_made_dropped", url=ready.url, problem=error.message)
            await self._give_up_ready(ready)
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
        for worker in self._workers:
            await worker.stop()
            if not worker.process.ended.done():
                raise errors.StartFailed(
                    f"worker process {worker.pid} cannot be ended, and may read its weights still"
                )
        self._release()
        await self._store.ready_made.drop(record)

    async def _bring_up_any_worker(
        self, found: Found, seat: Seat, weights: asyncio.Task[Placed], held: AsyncExitStack
    ) -> Running:
        """A worker, with the weights; one that merely dies with its zygote is replaced."""
        while True:
            try:
                return await self._bring_up_worker(found, seat, weights, held)
            except errors.WorkerDied:
                last = self._workers[-1]
                if not last.orphaned or len(self._workers) == WORKERS:
                    raise
                log.warning("worker.orphaned", pid=last.pid, instance=self._spec.instance_id)
                await last.stop()

    async def _bring_up_worker(
        self, found: Found, seat: Seat, weights: asyncio.Task[Placed], held: AsyncExitStack
    ) -> Running:
        worker = await self._launch_worker(seat, held)
        model = await self._prepare(worker, found, weights)
        placed = await weights
        _check_same(found, placed.record)
        if found.digest is None:
            # The worker has read the small files at the source itself, at another moment.
            _check_same(found, (await self._look()).record)
        size = placed.manifest.size_bytes
        self._publish(Progress(LoadPhase.INIT, Tier.DRAM, size, size))
        attached = await worker.attach(
            placed.manifest, placed.place, self._spec.kv_bytes, placed.ready_made
        )
        self._record(attached)
        return Running(
            worker,
            placed.digest,
            size,
            placed.from_tier,
            attached.context_tokens,
            model,
            found.size_bytes,
            found.record.identity,
            placed.ready_made is not None,
            self._dropped_ready,
        )

    async def _look(self) -> Found:
        spec = self._spec
        return await self._store.inspect(
            spec.source, spec.engine.dtype, fresh=False, identity=spec.identity
        )

    async def _bring_up(self, seat: Seat) -> Placed:
        engine = self._spec.engine
        wish = WeightsWish(self._spec.source, engine.dtype, engine.pack, self._form)
        bring_up = partial(seat.bring_up, wish, self._publish)
        placed = await (self._with_room(bring_up) if self._with_room else bring_up())
        self._placed.append(placed)
        for step in placed.steps:
            self._record_step(step)
        return placed

    async def _launch_worker(self, seat: Seat, held: AsyncExitStack) -> Worker:
        with self._timeline.phase(PhaseKind.WORKER_START):
            worker = await self._launch(self._spec.instance_id, seat.environment)
            self._workers.append(worker)
            held.push_async_callback(worker.stop)
            await worker.wait_until_serving()
        return worker

    async def _prepare(
        self, worker: Worker, found: Found, weights: "asyncio.Task[Placed]"
    ) -> ModelDescription:
        """Has the worker read the small files.

        A copy whose weights turn out to be bad is set aside meanwhile. What was read of it may lack
        any of its files, so that those of the copy that takes its place are read.
        """
        before = await asyncio.to_thread(_stamp, found.directory)
        failure: SllmError | None = None
        try:
            model = await self._prepare_from(found.directory, worker)
        except SllmError as error:
            failure = error
        after = await asyncio.to_thread(_stamp, found.directory)
        if failure is None and after:
            return model
        # The one in its place has its name, and may be there already.
        if failure and after and after == before:
            raise failure
        await asyncio.wait([weights])
        weights.result()
        return await self._prepare_from((await self._look()).directory, worker)

    async def _prepare_from(self, directory: Path, worker: Worker) -> ModelDescription:
        with self._timeline.phase(PhaseKind.PREPARE):
            prepared = await worker.prepare(directory, self._spec.engine)
        if prepared.warm_up is not None:
            after = prepared.seconds - prepared.warm_up
            self._timeline.add_ending_now(PhaseKind.WARM_UP, prepared.warm_up, before=after)
        return prepared.model

    def _record_step(self, step: Step) -> None:
        self._timeline.add(STEP_KINDS[step.phase], step.start, step.duration, step.size_bytes)

    def _record(self, attached: Attached) -> None:
        """Records the parts of an attachment that has just ended, by the worker's own clock."""
        self._timeline.add_ending_now(PhaseKind.ENGINE_INIT, attached.engine_init_seconds)
        self._timeline.add_ending_now(
            PhaseKind.ATTACH, attached.attach_seconds, before=attached.engine_init_seconds
        )

    async def _give_back(self, taken: AsyncExitStack) -> None:
        """Gives weights and room back once the worker has gone: until then it may use them.

        One that not even the kernel can end keeps them for as long as that lasts.
        """
        processes = [worker.process for worker in self._workers]
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


def _stamp(directory: Path) -> tuple[int, int] | None:
    """Tells a directory from others that have had its name. None: there is none."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


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
