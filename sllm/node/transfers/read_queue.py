"""The threads that read chunks from the disk, and the order in which loads have their turns."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Condition, Thread

from sllm import machine
from sllm.checkpoint.reading.chunk_reader import ChunkRead
from sllm.clock import Clock
from sllm.errors import Cancelled
from sllm.node.transfers.round_robin import next_in_line
from sllm.node.transfers.work import Priority

_DIGEST_THREADS = 2
"""Beside those that read. A chunk takes a fraction of its read's time there."""


def _ignore(_: int) -> None:
    return None


def _always(_: int) -> bool:
    return True


class ReadJob:
    """The chunks of one load. Made in the event loop; the rest belongs to the queue."""

    def __init__(
        self,
        reads: Sequence[ChunkRead],
        *,
        priority: Callable[[], Priority],
        cancelled: Callable[[], bool],
        advance: Callable[[int], None],
        landed: Callable[[int], None] = _ignore,
        take: Callable[[int], bool] = _always,
        order: Iterable[int] | None = None,
    ) -> None:
        """Describes a job.

        Args:
            reads: the chunks.
            priority: asked before every turn, in any thread.
            cancelled: asked before every turn, in any thread.
            advance: told the bytes of each chunk that has arrived, in the event loop.
            landed: told the index of each chunk that has arrived and was checked, in the thread
                that has read it.
            take: asked before a chunk's turn whether there is memory for it, which is taken then,
                in any thread. Whoever has refused calls `ReadQueue.wake` when there is.
            order: in which chunks have their turns, by index, each once. None: as they come.
        """
        loop = asyncio.get_running_loop()
        self.digests = [""] * len(reads)
        """xxh3_128 of every chunk, once it is read."""
        self.began: float | None = None
        """When the first chunk's turn came, by the queue's clock."""
        self.error: BaseException | None = None
        """What went wrong first."""
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when no chunk is being read any more, nor will be."""
        self.reads = reads
        self.priority = priority
        self.cancelled = cancelled
        self.landed = landed
        self.take = take
        self.waiting = deque(range(len(reads)) if order is None else order)
        self.running = 0
        self.arrived: Callable[[int], object] = lambda size: loop.call_soon_threadsafe(
            advance, size
        )
        self.end: Callable[[], object] = lambda: loop.call_soon_threadsafe(
            self.ended.set_result, None
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waiting and not self.running

    def stop(self, error: BaseException) -> None:
        """Drops the chunks that wait for their turn."""
        self.error = self.error or error
        self.waiting.clear()


def _has_memory(job: ReadJob) -> bool:
    return bool(job.waiting) and job.take(job.waiting[0])


class ReadQueue:
    """A few threads with a chunk in hand each: that bounds what is in flight.

    Loads take turns at the disk; see `next_in_line`.

    A thread that has its chunk gives its place at the disk to another before it computes the
    digest, so that the disk never waits for processors.
    """

    def __init__(self, reads: int, clock: Clock) -> None:
        """Starts the threads.

        Args:
            reads: chunks that are read at once.
            clock: measures.
        """
        self._clock = clock
        self._places = reads
        """Chunks that may be begun now."""
        self._jobs: list[ReadJob] = []
        """In the order of their next turns. The lock of `_changed` guards it and what is in it."""
        self._changed = Condition()
        self._closed = False
        self._in_flight = 0
        self._threads = [
            Thread(target=self._work, name=f"chunk-read_{number}")
            for number in range(reads + machine.threads(_DIGEST_THREADS))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of the chunks that are being read."""
        return self._in_flight

    async def read(self, job: ReadJob) -> None:
        """Reads a job's chunks. When it returns or raises, none is being written any more.

        Raises:
            Cancelled: the job was cancelled.
            CheckpointCorrupt: a chunk cannot be read, or is not what was written; names file and
                offset.
        """
        if job.reads:
            with self._changed:
                self._jobs.append(job)
                self._changed.notify_all()
            await job.ended
        if job.error is not None:
            raise job.error

    def _work(self) -> None:
        while (turn := self._await_turn()) is not None:
            self._carry_out(*turn)

    def _await_turn(self) -> tuple[ReadJob, int] | None:
        """A job and the index of one of its chunks; None: the queue is closed."""
        with self._changed:
            while not self._closed:
                self._drop_cancelled()
                if self._places and (job := next_in_line(self._jobs, _has_memory)):
                    return job, self._begin(job)
                self._changed.wait()
        return None

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._jobs if job.waiting and job.cancelled()]:
            job.stop(Cancelled("the load was cancelled"))
            self._settle(job)

    def wake(self) -> None:
        """Has the threads look again for what may have its turn. In any thread."""
        with self._changed:
            self._changed.notify_all()

    def _begin(self, job: ReadJob) -> int:
        index = job.waiting.popleft()
        job.running += 1
        job.began = self._clock.now() if job.began is None else job.began
        self._places -= 1
        self._in_flight += job.reads[index].size
        return index

    def _carry_out(self, job: ReadJob, index: int) -> None:
        read, error = job.reads[index], None
        try:
            job.digests[index] = self._read(read)
            job.landed(index)
            job.arrived(read.size)
        except BaseException as caught:  # whoever waits must hear of it, whatever it is
            error = caught
        with self._changed:
            job.running -= 1
            if error is not None:
                job.stop(error)
            self._settle(job)

    def _read(self, read: ChunkRead) -> str:
        """Brings a chunk, and says its digest."""
        with ExitStack() as held:
            with self._place(read.size):
                memory = held.enter_context(read.blocks())
                read.bring(memory)
            return read.check(memory)

    @contextmanager
    def _place(self, size: int) -> Iterator[None]:
        """Ends with the use of a place at the disk that `_begin` has taken."""
        try:
            yield
        finally:
            with self._changed:
                self._places += 1
                self._in_flight -= size
                self._changed.notify()

    def _settle(self, job: ReadJob) -> None:
        if job.idle:
            self._jobs.remove(job)
            job.end()

    def close(self) -> None:
        """Ends the threads. No job may be under way."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
