"""Threads that fill chunks, and the memory that they fill."""

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from sllm.process import give_way

THREADS = 4
"""Where nobody says otherwise."""

_Result = TypeVar("_Result")

Urgency = Callable[[], int]
"""Asked before every turn, in any thread: what is lowest goes first."""


class _Job(Generic[_Result]):
    """The works of one caller. The lock of the workers guards it."""

    def __init__(self, works: Iterable[Callable[[], _Result]], urgency: Urgency) -> None:
        self.waiting = deque(enumerate(works))
        self.urgency = urgency
        self.running = 0
        self.results: dict[int, _Result] = {}
        self.error: BaseException | None = None
        """What went wrong first."""

    @property
    def ended(self) -> bool:
        return not self.waiting and not self.running

    def stop(self, error: BaseException) -> None:
        self.error = self.error or error
        self.waiting.clear()


class ChunkWorkers:
    """A few threads, each with a chunk in hand at most, whatever the imports that share them.

    That bounds their memory: as many chunks as there are threads. Imports that are equally urgent
    take turns, a chunk each.
    """

    def __init__(self, chunk_bytes: int, threads: int = THREADS) -> None:
        """Starts no thread and takes no memory before there is something to do.

        Args:
            chunk_bytes: size of a chunk.
            threads: how many.
        """
        self._chunk_bytes = chunk_bytes
        self._count = threads
        self._threads: list[Thread] = []
        self._buffers: deque[memoryview] = deque()
        self._jobs: list[_Job[Any]] = []
        """In the order of their next turns. The lock of `_changed` guards it and what is in it."""
        self._changed = Condition()
        self._closed = False

    @contextmanager
    def buffer(self) -> Iterator[memoryview]:
        """Block-aligned memory for a chunk. For the workers' own threads, one at a time each."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = memoryview(mmap.mmap(-1, self._chunk_bytes))
        try:
            yield buffer
        finally:
            self._buffers.append(buffer)

    def run(
        self, works: Iterable[Callable[[], _Result]], urgency: Urgency = lambda: 0
    ) -> list[_Result]:
        """The results of all works, in their order.

        When it returns or raises, none of them is running any more.

        Args:
            works: each is done in one of the threads.
            urgency: of this call's works among those of others.
        """
        job = _Job(works, urgency)
        with self._changed:
            self._start_threads()
            self._jobs.append(job)
            self._changed.notify_all()
            self._changed.wait_for(lambda: job.ended)
            self._jobs.remove(job)
        if job.error is not None:
            raise job.error
        return [job.results[number] for number in sorted(job.results)]

    def _start_threads(self) -> None:
        for number in range(len(self._threads), self._count):
            self._threads.append(Thread(target=self._work, name=f"chunk-fill_{number}"))
            self._threads[-1].start()

    def _work(self) -> None:
        give_way()
        while (turn := self._await_turn()) is not None:
            self._carry_out(*turn)

    def _await_turn(self) -> tuple[_Job[Any], int, Callable[[], Any]] | None:
        """A job, and one of its works with its number; None: there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_waiting())
            if self._closed:
                return None
            job = min((job for job in self._jobs if job.waiting), key=lambda job: job.urgency())
            self._jobs.remove(job)
            self._jobs.append(job)  # to the end of those that are equally urgent
            job.running += 1
            return job, *job.waiting.popleft()

    def _has_waiting(self) -> bool:
        return any(job.waiting for job in self._jobs)

    def _carry_out(self, job: _Job[Any], number: int, work: Callable[[], Any]) -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        with self._changed:
            job.running -= 1
            job.results[number] = result
            if error is not None:
                job.stop(error)
            if job.ended:
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the threads. No work may be under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
