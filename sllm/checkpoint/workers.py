"""Threads that fill chunks, and the memory that they fill."""

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

THREADS = 4
"""Where nobody says otherwise."""

_Result = TypeVar("_Result")


class ChunkWorkers:
    """A few threads, each with a chunk in hand at most, whatever the imports that share them.

    That bounds their memory: as many chunks as there are threads.
    """

    def __init__(self, chunk_bytes: int, threads: int = THREADS) -> None:
        """Starts no thread and takes no memory before there is something to do.

        Args:
            chunk_bytes: size of a chunk.
            threads: how many.
        """
        self._chunk_bytes = chunk_bytes
        self._count = threads
        self._threads = ThreadPoolExecutor(threads, "chunk-fill")
        self._buffers: deque[memoryview] = deque()

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

    def run(self, works: Iterable[Callable[[], _Result]]) -> list[_Result]:
        """The results of all works, in their order.

        No more of them than there are threads wait here at once, so that several callers get on
        side by side. When it returns or raises, none of them is running any more.
        """
        futures: list[Future[_Result]] = []
        running: set[Future[_Result]] = set()
        try:
            for work in works:
                if len(running) == self._count:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    _check(done)
                futures.append(self._threads.submit(work))
                running.add(futures[-1])
            return [future.result() for future in futures]
        finally:
            for future in running:
                future.cancel()
            wait(running)

    def close(self) -> None:
        """Ends the threads. No work may be under way."""
        self._threads.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _check(done: Iterable[Future[_Result]]) -> None:
    for future in done:
        future.result()
