"""A worker's weights mapped and its engine started, all of them there or still arriving."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from sllm.embedding.purpose import Task
from sllm.errors import CheckpointCorrupt, SllmError
from sllm.node.device.interface import InPool, OnDisk, Placed
from sllm.node.instances.arriving import Arriving
from sllm.node.instances.phases import PhaseKind, Timeline
from sllm.node.instances.spec import EngineSpec, InstanceSpec
from sllm.node.instances.step_kinds import record_step
from sllm.node.instances.worker_client import Worker
from sllm.node.instances.worker_messages import Attached
from sllm.node.store.first_uses import FirstUses
from sllm.node.tiers.first_use import FirstUse
from sllm.node.tiers.types import Tier
from sllm.node.transfers.work import LoadPhase, Progress
from sllm.node.worker.backends.names import TRANSFORMERS
from sllm.node.worker.messages import ModelDescription

log = structlog.get_logger()


class Attachment:
    """Of the workers of one start."""

    def __init__(
        self,
        spec: InstanceSpec,
        first_uses: FirstUses,
        timeline: Timeline,
        publish: Callable[[Progress], None],
        set_aside: Callable[[str, CheckpointCorrupt], None],
    ) -> None:
        """Begins nothing yet.

        Args:
            spec: what is started.
            first_uses: in which order models use their weights.
            timeline: gets the phases.
            publish: is told that the engine starts.
            set_aside: takes a checkpoint on disk for corrupt, by its digest.
        """
        self._set_aside = set_aside
        self._spec = spec
        self._first_uses = first_uses
        self._timeline = timeline
        self._publish = publish
        self._noting: asyncio.Task[None] | None = None
        """Keeps in which order weights are used."""

    async def attach(
        self,
        worker: Worker,
        placed: Placed,
        model: ModelDescription,
        arriving: Arriving | None,
        more_kv_bytes: int = 0,
    ) -> Attached:
        """Has a worker map the weights and start its engine, while they arrive if need be.

        Raises:
            SllmError: the worker cannot, or what was arriving does not.
        """
        size = placed.manifest.size_bytes
        attaching = partial(
            worker.attach,
            placed.manifest,
            placed.place,
            self._spec.kv_bytes,
            placed.ready_made,
            more_kv_bytes=more_kv_bytes,
            on_first_use=self._watch_first_use(placed, model),
            on_corrupt=partial(self._found_corrupt, placed),
        )
        if arriving is None or not arriving.is_used:
            self._publish(Progress(LoadPhase.INIT, Tier.DRAM, size, size))
            attached = await self._unless_corrupt(placed, attaching())
        else:
            borrowing = arriving.borrowing
            borrowed = borrowing.ranges if borrowing else ()
            attached = await arriving.unless_failed(
                attaching(awaited=arriving.awaited, borrowed=borrowed)
            )
            arriving.pass_on(worker.arrived)
            if borrowing:
                borrowing.serve(worker)
            if so_far := arriving.told():
                record_step(self._timeline, so_far)
        self._record(attached)
        return attached

    async def _unless_corrupt(self, placed: Placed, attaching: Awaitable[Attached]) -> Attached:
        try:
            return await attaching
        except CheckpointCorrupt as error:
            self._found_corrupt(placed, error)
            raise

    def _found_corrupt(self, placed: Placed, error: SllmError) -> None:
        """What a worker has read by itself: of what lies in the pool the store knows better."""
        if isinstance(placed.place, OnDisk) and isinstance(error, CheckpointCorrupt):
            self._set_aside(placed.manifest.digest, error)

    def _watch_first_use(
        self, placed: Placed, model: ModelDescription
    ) -> Callable[[FirstUse], None] | None:
        """What is told in which order the weights are used. None: that is known, or of no use."""
        digest = placed.manifest.digest
        waits = runs_in_parts(self._spec.engine) and model.purpose.task is Task.GENERATE
        in_pool = isinstance(placed.place, InPool)
        if not (waits and in_pool and self._first_uses.is_lacking(digest)):
            return None

        def note(use: FirstUse) -> None:
            self._noting = asyncio.create_task(self._note_first_use(digest, use))

        return note

    async def _note_first_use(self, digest: str, use: FirstUse) -> None:
        try:
            await self._first_uses.note(digest, use)
        except (SllmError, ValueError, OSError) as error:  # it is seen again with the next start
            log.warning("instance.first_use_not_kept", digest=digest, problem=str(error))

    def _record(self, attached: Attached) -> None:
        """Records the parts of an attachment that has just ended, by the worker's own clock."""
        engine, read = attached.engine_init_seconds, attached.read_seconds
        built = attached.attach_seconds - read
        self._timeline.add_ending_now(PhaseKind.ENGINE_INIT, engine)
        self._timeline.add_ending_now(PhaseKind.ATTACH, built, before=engine)
        if size := attached.read_bytes:
            self._timeline.add_ending_now(
                PhaseKind.READ_SSD, read, before=built + engine, size_bytes=size
            )


def runs_in_parts(engine: EngineSpec) -> bool:
    """Whether an engine runs its model in parts that can wait, each for its own weights."""
    alone = engine.tensor_parallel == 1 and engine.expert_bytes is None
    return engine.engine == TRANSFORMERS and alone
