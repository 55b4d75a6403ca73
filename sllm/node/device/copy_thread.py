"""The one thread of the agent that calls CUDA for a device, and the order of what it copies."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TypeVar

import structlog

from sllm.clock import Clock
from sllm.errors import Cancelled, DeviceFailed
from sllm.node.device.driver import CudaError, Driver
from sllm.node.transfers.round_robin import next_in_line
from sllm.node.transfers.work import Priority, nothing

_log = structlog.get_logger()

Result = TypeVar("Result")

COPIES_IN_FLIGHT = 8
"""Chunks in the stream at once: enough that it never runs dry while one is waited for."""


@dataclass(frozen=True, slots=True)
class ChunkCopy:
    """One chunk's way from pinned memory to the device."""

    source: int
    """Address in the host's memory, which stays as it is until `done` is called."""
    target: int
    """Address in the device's."""
    size: int
    """Bytes."""
    done: Callable[[], None] = nothing
    """Called in the thread when the copy is done, or never will be."""


class CopyJob:
    """The copies of one load. Made in the event loop; the rest belongs to the thread's lock."""

    def __init__(self, *, priority: Callable[[], Priority], advance: Callable[[int], None]) -> None:
        """Describes a job to which copies will be added.

        Args:
            priority: asked before every turn, in any thread.
            advance: told the bytes of each chunk that has arrived, in the event loop.
        """
        loop = asyncio.get_running_loop()
        self.error: BaseException | None = None
        """What went wrong first."""
        self.priority = priority
        self.waiting: deque[ChunkCopy] = deque()
        self.flying = 0
        self.quiet: list[Callable[[], object]] = []
        """Called as soon as nothing waits or is being copied."""
        self.arrived: Callable[[int], object] = lambda size: loop.call_soon_threadsafe(
            advance, size
        )

    @property
    def idle(self) -> bool:
        """Whether nothing of it is being copied, nor waits to be."""
        return not self.waiting and not self.flying


@dataclass(frozen=True, slots=True)
class _Flight:
    job: CopyJob
    copy: ChunkCopy
    event: int
    began: float
    """Clock's seconds."""


class CopyThread:
    """Puts copies into a stream of its own, a few at a time, and notes by events which are done.

    Loads take turns in it; see `next_in_line`. Everything else that is asked of the device is done
    between copies, in the order of asking.
    """

    def __init__(
        self,
        driver: Driver,
        index: int,
        clock: Clock,
        observe: Callable[[int, float, float], None],
        in_flight: int = COPIES_IN_FLIGHT,
    ) -> None:
        """Starts the thread, in the event loop that it reports to.

        Args:
            driver: CUDA's.
            index: of the device.
            clock: measures copies.
            observe: told the bytes of each copy, and when it began and ended, in the event loop.
            in_flight: copies in the stream at once.
        """
        loop = asyncio.get_running_loop()
        self._observed: Callable[[int, float, float], object] = lambda size, began, ended: (
            loop.call_soon_threadsafe(observe, size, began, ended)
        )
        self._clock = clock
        self._driver = driver
        self._index = index
        self._limit = in_flight
        self._stream = 0
        self._flights: deque[_Flight] = deque()
        self._events: list[int] = []
        self._commands: deque[Callable[[], None]] = deque()
        self._jobs: list[CopyJob] = []
        """Those with copies that wait, in the order of their next turns."""
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name=f"cuda-{index}")
        self._thread.start()

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of the chunks that are being copied. In any thread."""
        return sum(flight.copy.size for flight in list(self._flights))

    async def open(self) -> None:
        """Makes the device's context; before anything else.

        Raises:
            CudaError: CUDA cannot.
        """
        await self.run(self._open)

    async def run(self, command: Callable[[], Result]) -> Result:
        """The result of `command`, which may call CUDA, done in the thread.

        The thread carries it out even if the caller is cancelled meanwhile.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def carry_out() -> None:
            try:
                result = command()
            except BaseException as error:
                loop.call_soon_threadsafe(_fail, answer, error)
            else:
                loop.call_soon_threadsafe(_resolve, answer, result)

        with self._changed:
            assert not self._closed, "the device is closed"
            self._commands.append(carry_out)
            self._changed.notify()
        return await asyncio.shield(answer)

    def add(self, job: CopyJob, copies: Iterable[ChunkCopy]) -> None:
        """Lets copies have their turns; a job that has failed takes none. In any thread."""
        with self._changed:
            taken = list(copies)
            if job.error is None and not self._closed:
                job.waiting.extend(taken)
                taken = []
                if job not in self._jobs:
                    self._jobs.append(job)
                self._changed.notify()
        for copy in taken:
            copy.done()

    def stop(self, job: CopyJob, error: BaseException | None = None) -> None:
        """Drops the copies of a job that wait; those in the stream come to their end."""
        with self._changed:
            dropped = self._drop(job, error or Cancelled("the load was cancelled"))
        for copy in dropped:
            copy.done()

    async def settle(self, job: CopyJob) -> None:
        """Returns once nothing of a job waits or is being copied: its chunks may be used again."""
        loop = asyncio.get_running_loop()
        quiet = asyncio.Event()
        with self._changed:
            if job.idle:
                return
            job.quiet.append(lambda: loop.call_soon_threadsafe(quiet.set))
        await quiet.wait()

    async def finish(self, job: CopyJob) -> None:
        """Returns once all copies that were added are done.

        Raises:
            DeviceFailed: CUDA has failed.
            Cancelled: the job was stopped.
        """
        await self.settle(job)
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """Ends the thread. No job may be under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _open(self) -> None:
        self._driver.enter(self._index)
        self._stream = self._driver.create_stream()
        self._events = [self._driver.create_event() for _ in range(self._limit)]

    def _work(self) -> None:
        while (commands := self._await_work()) is not None:
            for command in commands:
                command()
            self._launch()
            self._await_oldest()
        if self._stream:
            self._shut()

    def _shut(self) -> None:
        try:
            for event in self._events:
                self._driver.destroy_event(event)
            self._driver.destroy_stream(self._stream)
            self._driver.leave(self._index)
        except CudaError as error:
            _log.warning("device.not_closed", index=self._index, problem=str(error))

    def _await_work(self) -> list[Callable[[], None]] | None:
        """Commands, if any; None: the thread is to end."""
        with self._changed:
            while not (self._commands or self._jobs or self._flights):
                if self._closed:
                    return None
                self._changed.wait()
            commands = list(self._commands)
            self._commands.clear()
            return commands

    def _launch(self) -> None:
        while self._events and (turn := self._next()):
            job, copy = turn
            event = self._events.pop()
            self._flights.append(_Flight(job, copy, event, self._clock.now()))
            try:
                self._driver.copy_to_device(copy.target, copy.source, copy.size, self._stream)
                self._driver.record(event, self._stream)
            except CudaError as error:
                # It stays among the flights, which give its event and its place back.
                self.stop(job, _failed(error))

    def _next(self) -> tuple[CopyJob, ChunkCopy] | None:
        with self._changed:
            job = next_in_line(self._jobs)
            if job is None:
                return None
            copy = job.waiting.popleft()
            job.flying += 1
            if not job.waiting:
                self._jobs.remove(job)
            return job, copy

    def _await_oldest(self) -> None:
        if not self._flights:
            return
        flight = self._flights.popleft()
        job = flight.job
        try:
            self._driver.wait(flight.event)
            self._note_arrival(flight)
        except CudaError as error:
            self.stop(job, _failed(error))
        self._events.append(flight.event)
        flight.copy.done()
        with self._changed:
            job.flying -= 1
            self._note_quiet(job)

    def _note_arrival(self, flight: _Flight) -> None:
        if flight.job.error is None:
            self._observed(flight.copy.size, flight.began, self._clock.now())
            flight.job.arrived(flight.copy.size)

    def _drop(self, job: CopyJob, error: BaseException) -> list[ChunkCopy]:
        job.error = job.error or error
        dropped = list(job.waiting)
        job.waiting.clear()
        if job in self._jobs:
            self._jobs.remove(job)
        self._note_quiet(job)
        return dropped

    def _note_quiet(self, job: CopyJob) -> None:
        if job.idle:
            for tell in job.quiet:
                tell()
            job.quiet.clear()


def _failed(error: CudaError) -> DeviceFailed:
    return DeviceFailed(f"the device has failed: {error}; restart the node")


def _resolve(answer: "asyncio.Future[Result]", result: Result) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: "asyncio.Future[Result]", error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
