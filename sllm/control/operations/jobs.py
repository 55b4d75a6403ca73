"""Work that callers follow, and that goes on when they leave."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from sllm import errors
from sllm.broadcast import Broadcast

Step = TypeVar("Step")
Result = TypeVar("Result")

Work = Callable[[Callable[[Step], None]], Coroutine[Any, Any, Result]]
"""The work itself. It is given a function that it tells its progress with."""


class Job(Generic[Step, Result]):
    """One piece of work. A slow follower skips steps."""

    def __init__(self, work: Work[Step, Result]) -> None:
        self._progress: Broadcast[Step] = Broadcast()
        self.task = asyncio.create_task(work(self._progress.publish))
        self.task.add_done_callback(self._ended)

    def follow(self) -> AsyncGenerator[Step]:
        """The progress, until the work has ended."""
        return self._progress.follow()

    async def result(self) -> Result:
        """The result, once it is there.

        Raises:
            errors.SllmError: What it has failed with.
            errors.ShuttingDown: The control plane is going down; the nodes go on.
        """
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError as error:
            if not self.task.cancelled():
                raise
            raise errors.ShuttingDown("the control plane is going down; try again") from error

    def _ended(self, task: asyncio.Task[Result]) -> None:
        self._progress.close()
        if not task.cancelled():
            task.exception()  # seen here: whoever began the work may have left


Key = TypeVar("Key")


class Jobs(Generic[Key, Step, Result]):
    """Jobs under way, by key."""

    def __init__(self) -> None:
        self._jobs: dict[Key, Job[Step, Result]] = {}

    def get(self, key: Key) -> Job[Step, Result] | None:
        """The job that is under way."""
        return self._jobs.get(key)

    def begin(self, key: Key, work: Work[Step, Result]) -> Job[Step, Result]:
        """Begins a job. An earlier one of its key goes on, but `get` no longer finds it."""
        job = self._jobs[key] = Job(work)
        job.task.add_done_callback(lambda _: self._forget(key, job))
        return job

    def close(self) -> None:
        """Ends all jobs; those who follow them get ShuttingDown."""
        for job in list(self._jobs.values()):
            job.task.cancel()

    def _forget(self, key: Key, job: Job[Step, Result]) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
