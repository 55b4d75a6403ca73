"""A worker made ready for weights that are on their way: it reads the model's small files."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from sllm.errors import SllmError
from sllm.node.device.interface import Placed
from sllm.node.instances.phases import PhaseKind, Timeline
from sllm.node.instances.spec import EngineSpec
from sllm.node.instances.worker_client import Worker
from sllm.node.worker.messages import ModelDescription


class Preparation:
    """Of the workers of one start."""

    def __init__(
        self, engine: EngineSpec, find: Callable[[], Awaitable[Path]], timeline: Timeline
    ) -> None:
        """Begins nothing yet.

        Args:
            engine: what the workers run.
            find: gives the directory in which the small files can be read now.
            timeline: gets the phases.
        """
        self._engine = engine
        self._find = find
        self._timeline = timeline

    async def prepare(
        self, worker: Worker, directory: Path, weights: "asyncio.Task[Placed]"
    ) -> ModelDescription:
        """Has a worker read the small files of the source, which was found to lie in `directory`.

        A copy whose weights turn out to be bad is set aside meanwhile. What was read of it may lack
        any of its files, so that those of the copy that takes its place are read.

        Raises:
            SllmError: they cannot be read, or the weights cannot be had.
        """
        before = await asyncio.to_thread(_stamp, directory)
        failure: SllmError | None = None
        try:
            model = await self._prepare_from(directory, worker)
        except SllmError as error:
            failure = error
        after = await asyncio.to_thread(_stamp, directory)
        if failure is None and after:
            return model
        # The one in its place has its name, and may be there already.
        if failure and after and after == before:
            raise failure
        await asyncio.wait([weights])
        weights.result()
        return await self._prepare_from(await self._find(), worker)

    async def _prepare_from(self, directory: Path, worker: Worker) -> ModelDescription:
        with self._timeline.phase(PhaseKind.PREPARE):
            prepared = await worker.prepare(directory, self._engine)
        if prepared.warm_up is not None:
            after = prepared.seconds - prepared.warm_up
            self._timeline.add_ending_now(PhaseKind.WARM_UP, prepared.warm_up, before=after)
        return prepared.model


def _stamp(directory: Path) -> tuple[int, int] | None:
    """Tells a directory from others that have had its name. None: there is none."""
    try:
        found = directory.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns
