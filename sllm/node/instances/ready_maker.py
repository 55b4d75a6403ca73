"""Has weights made ready for the engines that serve them, in the background, one model at a time.

What another node has made already is fetched from it, and made here where that fails.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from sllm import errors
from sllm.checkpoint.format.form import WeightForm
from sllm.clock import Clock
from sllm.config import format_bytes
from sllm.node.device.interface import InPool
from sllm.node.instances.forms import form_of
from sllm.node.instances.launching import LaunchRanks
from sllm.node.instances.running import Running
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.unmade import Problems, Unmade
from sllm.node.instances.worker_client import Worker
from sllm.node.peers.types import FormPeers
from sllm.node.store.lease import Lease
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.checkpoints import SourceRecord
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import Form, Priority

log = structlog.get_logger()

Brought = TypeVar("Brought")

CALM_SECONDS = 3.0
"""Without a start before anything is made."""
_SPACE = 2.0
"""What ready-made weights take at most on the disk, of what they are made of: heads that share
their weights with embeddings are there twice."""
_MEMORY = 2.5
"""What making them takes of memory, the same."""
_TRIES = 2
"""Of what fails for another reason than for lack of room."""
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class _Job:
    source: str
    engine: EngineSpec
    form: WeightForm
    digest: str
    identity: str
    """What the source must be still."""
    offered: tuple[FormPeers, ...]
    """What other nodes have made already."""

    @property
    def key(self) -> tuple[str, str]:
        return self.digest, self.form.name

    @property
    def unmade(self) -> Unmade:
        return Unmade(self.digest, self.form.label)


class ReadyMaker:
    """Belongs to the event loop."""

    def __init__(
        self,
        store: TierStore,
        launch: LaunchRanks,
        free_bytes: Callable[[], int],
        least_bytes: int | None,
        clock: Clock,
        calm_seconds: float = CALM_SECONDS,
    ) -> None:
        """Makes nothing yet.

        Args:
            store: has the weights, and gets what is made of them.
            launch: gives workers, which do it.
            free_bytes: of the memory that instances may take, what they leave.
            least_bytes: of the models that it is done for; None: it is done for none.
            clock: tells when the last start was.
            calm_seconds: for how long there has to have been none.
        """
        self._clock = clock
        self._calm_seconds = calm_seconds
        self._last_start = -math.inf
        self._is_making = False
        self._store = store
        self._launch = launch
        self._free_bytes = free_bytes
        self._least_bytes = least_bytes
        self._gains: dict[tuple[str, str | None, str], float] = {}
        """What starts over weights as published have taken, by source, dtype and label of form."""
        self._jobs: deque[_Job] = deque()
        self._failures: dict[tuple[str, str], int] = {}
        self.problems = Problems()
        """Why what was started lately was not made."""
        self._task: asyncio.Task[None] | None = None
        self._memory_bytes = 0
        self._worker: Worker | None = None
        self._gives_way = False

    @property
    def is_working(self) -> bool:
        """Whether something is being made, or waits for it."""
        return bool(self._jobs)

    def form(self, spec: InstanceSpec) -> Form | None:
        """What weights of an instance may have been made ready for. None: they are not."""
        if self._least_bytes is None or spec.engine.expert_bytes is not None:
            return None
        return Form(_form(spec).name, self._gains.get(_kind(spec), 0.0))

    def started(self, spec: InstanceSpec, running: Running, attach_seconds: float | None) -> None:
        """Learns of a start, and has what it lacked made.

        Args:
            spec: what was started.
            running: what that has brought up.
            attach_seconds: what it has taken behind its load. None: it has not waited for that.
        """
        self._last_start = self._clock.now()
        if self._least_bytes is None or running.ready_made:
            return
        if spec.engine.expert_bytes is not None:
            return  # what stays on disk is read as it was published
        if attach_seconds is not None:
            self._gains[_kind(spec)] = attach_seconds
        # What has turned out to be of no use is made here, whoever else has it.
        offered = () if running.dropped_ready else spec.forms
        job = _Job(spec.source, spec.engine, _form(spec), running.digest, running.identity, offered)
        if running.dropped_ready:
            self._failed(job)  # it may be a fault of the disk, once
        if running.size_bytes < self._least_bytes or self._is_known(job):
            return
        self._jobs.append(job)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), name="ready-maker")

    def give_way(self, free_bytes: int) -> None:
        """Ends what is being made if memory is needed that only that has."""
        if free_bytes < self._memory_bytes:
            self._end_job()

    async def with_room(self, bring_up: Callable[[], Awaitable[Brought]]) -> Brought:
        """Brings weights up. What is being made ends if there is no room for them otherwise.

        Raises:
            errors.NoCapacity: There is none even so.
            errors.SllmError: Whatever else `bring_up` raises.
        """
        try:
            return await bring_up()
        except errors.NoCapacity:
            if not await self.make_room():
                raise
        return await bring_up()

    async def make_room(self) -> bool:
        """Ends what is being made, which holds room on SSD and in the pool; whether any was."""
        job = self._jobs[0] if self._jobs else None
        if job is None or self._task is None or not self._is_making:
            return False
        self._end_job()
        while job in self._jobs and not self._task.done():
            await asyncio.wait([self._task], timeout=_LOOK_SECONDS)
        return True

    async def close(self) -> None:
        """Gives up what is being made."""
        self._least_bytes = None
        self._end_job()
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _end_job(self) -> None:
        self._gives_way = bool(self._jobs)
        self._store.forms_from_peers.end()
        if self._worker:
            self._worker.kill("has given way to an instance")

    def _is_known(self, job: _Job) -> bool:
        failed = self._failures.get(job.key, 0) >= _TRIES
        return failed or any(job.key == one.key for one in self._jobs)

    def _failed(self, job: _Job, times: int = 1) -> None:
        self._failures[job.key] = self._failures.get(job.key, 0) + times

    async def _work(self) -> None:
        while self._jobs:
            job = self._jobs[0]
            await self._calm()
            try:
                self._is_making, self._gives_way = True, False
                await self._make(job)
                self.problems.clear(job.unmade)
            except errors.SllmError as error:
                log.info("ready_made.not_made", digest=job.digest, problem=error.message)
                self.problems.note(job.unmade, error.message)
                if isinstance(error, errors.UnsupportedModel):
                    self._failed(job, _TRIES)
                elif not (self._gives_way or isinstance(error, errors.NoCapacity)):
                    self._failed(job)
            except Exception as error:
                self._failed(job, _TRIES)
                self.problems.note(job.unmade, repr(error))
                log.exception("ready_made.failed", digest=job.digest)
            finally:
                self._is_making = self._gives_way = False
                self._memory_bytes = 0
                self._jobs.popleft()

    async def _calm(self) -> None:
        """Returns once nothing has been started for a while.

        Where models take turns all the time, nothing would ever be made to its end, and each start
        would find the processors busy with what it is about to stop.
        """
        while (left := self._last_start + self._calm_seconds - self._clock.now()) > 0:
            await self._clock.sleep(left)

    async def _make(self, job: _Job) -> None:
        """Makes one of a checkpoint that is in the pool, and has it there too, if that has room.

        Raises:
            errors.SllmError: why not.
        """
        store = self._store
        if not store.is_in_pool(job.digest):
            return  # whoever needed it has gone, and others have its room
        lease = await store.promote(
            job.source,
            job.engine.dtype,
            Tier.DRAM,
            priority=Priority.PREFETCH,
            identity=job.identity,
        )
        try:
            record = replace(lease.record, form=job.form.name, made_of=lease.digest)
            if store.ready_made.is_lacking(record):
                with store.keeping.yielding(lease):
                    await self._make_of(lease, record, job)
        finally:
            lease.release()
        await self._read_ahead(job.source, job.engine.dtype, job.form)

    async def read_ahead(
        self, source: str, dtype: str | None, engine: str, tensor_parallel: int
    ) -> None:
        """Reads what was made ready of a source into the pool, as far as there is room.

        Args:
            source: its URL.
            dtype: name of a torch dtype that weights were converted to. None: as stored.
            engine: for which it was made.
            tensor_parallel: on as many devices together.
        """
        if self._least_bytes is not None:
            await self._read_ahead(source, dtype, form_of(engine, tensor_parallel))

    async def _read_ahead(self, source: str, dtype: str | None, form: WeightForm) -> None:
        try:
            await self._store.read_ahead(source, dtype, Form(form.name))
        except errors.SllmError as error:  # whoever starts does without it
            log.info("ready_made.not_read_ahead", url=source, problem=error.message)

    async def _make_of(self, lease: Lease, record: SourceRecord, job: _Job) -> None:
        shelf, room = self._store.ready_made, int(lease.size_bytes * _SPACE)
        await shelf.drop_obsolete(record)
        if not shelf.has_room(room):
            raise errors.NoCapacity(f"the SSD tier does not have {format_bytes(room)} free")
        self._check_room_is_spared()
        if await self._store.forms_from_peers.fetch(record, job.offered, room):
            return
        self._check_room_is_spared()
        async with shelf.making(room) as directory:
            seconds = await self._write(lease, job, directory)
            await shelf.add(record, directory, room)
        log.info("ready_made.made", digest=lease.digest, form=record.form, seconds=seconds)

    def _check_room_is_spared(self) -> None:
        if self._gives_way:
            raise errors.NoCapacity("an instance needs the room")

    async def _write(self, lease: Lease, job: _Job, directory: Path) -> float:
        """Has a worker of its own do it, so that none that serves grows by it."""
        self._memory_bytes = int(lease.size_bytes * _MEMORY)
        if self._free_bytes() < self._memory_bytes:
            raise errors.NoCapacity(
                f"instances do not leave the {format_bytes(self._memory_bytes)} that it takes"
            )
        engine, form = job.engine, replace(job.form, made_of=lease.digest)
        name = f"ready {lease.digest}"
        worker = self._worker = await self._launch(engine.engine, name, engine.tensor_parallel)
        try:
            if self._gives_way:
                raise errors.NoCapacity("an instance needs the memory")
            await worker.wait_until_serving()
            await worker.prepare(lease.directory, engine)
            place = InPool(lease.chunks, self._store.chunk_bytes)
            return await worker.make_ready(lease.manifest, place, directory, form)
        finally:
            self._worker = None
            await worker.stop()


def _form(spec: InstanceSpec) -> WeightForm:
    return form_of(spec.engine.engine, spec.engine.tensor_parallel)


def _kind(spec: InstanceSpec) -> tuple[str, str | None, str]:
    return spec.source, spec.engine.dtype, _form(spec).label
