"""Bringing an instance up: its weights and its worker, side by side."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from sllm.node.phases import PhaseKind, Timeline
from sllm.node.tiers import Lease, LoadPhase, Progress, Step, Tier, TierStore
from sllm.node.workers import Attached, EngineSpec, Worker

LaunchWorker = Callable[[str], Awaitable[Worker]]
"""Forks a worker for an instance's id."""

_STEP_KINDS = {LoadPhase.IMPORT: PhaseKind.IMPORT, LoadPhase.READ: PhaseKind.READ_SSD}


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """What the control plane asks for."""

    instance_id: str
    deployment: str
    source: str
    engine: EngineSpec
    kv_bytes: int
    """Share of the node's KV budget."""


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


class Start:
    """One start. What it takes, it leaves in an exit stack that ends with the instance."""

    def __init__(
        self,
        spec: InstanceSpec,
        store: TierStore,
        launch: LaunchWorker,
        timeline: Timeline,
        publish: Callable[[Progress], None],
    ) -> None:
        self._spec = spec
        self._store = store
        self._launch = launch
        self._timeline = timeline
        self._publish = publish
        self._leases: list[Lease] = []

    async def run(self, held: AsyncExitStack) -> Running:
        """Promotes, forks, prepares and attaches.

        `held` lets go in reverse order: the worker is gone before the chunks that it maps are
        given back.

        Raises:
            errors.SllmError: Whatever kept the instance from starting.
        """
        held.callback(self._release)
        files = await self._promote(Tier.SSD)
        weights = asyncio.create_task(self._promote(Tier.DRAM))
        held.push_async_callback(_end, weights)
        worker = await self._launch_worker(files.directory, held)
        lease = await weights
        self._publish(Progress(LoadPhase.INIT, Tier.DRAM, lease.size_bytes, lease.size_bytes))
        attached = await worker.attach(lease.chunks, self._spec.kv_bytes)
        self._record(attached)
        return Running(
            worker, lease.digest, lease.size_bytes, files.from_tier, attached.context_tokens
        )

    async def _promote(self, tier: Tier) -> Lease:
        lease = await self._store.promote(
            self._spec.source, self._spec.engine.dtype, tier, self._publish
        )
        self._leases.append(lease)
        for step in lease.steps:
            self._record_step(step)
        return lease

    async def _launch_worker(self, directory: Path, held: AsyncExitStack) -> Worker:
        with self._timeline.phase(PhaseKind.WORKER_START):
            worker = await self._launch(self._spec.instance_id)
            held.push_async_callback(worker.stop)
            await worker.wait_until_serving()
        with self._timeline.phase(PhaseKind.PREPARE):
            await worker.prepare(directory, self._spec.engine)
        return worker

    def _record_step(self, step: Step) -> None:
        self._timeline.add(_STEP_KINDS[step.phase], step.start, step.duration, step.size_bytes)

    def _record(self, attached: Attached) -> None:
        """Files the parts of an attachment that has just ended, by the worker's own clock."""
        self._timeline.add_ending_now(PhaseKind.ENGINE_INIT, attached.engine_init_seconds)
        self._timeline.add_ending_now(
            PhaseKind.ATTACH, attached.attach_seconds, before=attached.engine_init_seconds
        )

    def _release(self) -> None:
        for lease in self._leases:
            lease.release()


async def _end(task: asyncio.Task[Lease]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen here, so that asyncio does not report it as never retrieved
