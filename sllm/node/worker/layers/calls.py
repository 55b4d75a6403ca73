"""Between the event loop, which has the calls, and the threads in which layers are computed."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from sllm.node.worker.engine.niceness import stand_back
from sllm.node.worker.engine.threads import threads_for
from sllm.node.worker.layers.borrowed import BorrowedLayers
from sllm.node.worker.layers.lent import LentLayers
from sllm.node.worker.layers.passes import Answer, Pass


class Borrowing:
    """Passes of borrowed layers, as the event loop sends them. One is under way at a time."""

    def __init__(self, layers: BorrowedLayers) -> None:
        """Has the layers send passes from now on."""
        self._layers = layers
        self._passes: asyncio.Queue[Pass | None] = asyncio.Queue()
        tell = partial(_tell, asyncio.get_running_loop(), self._passes.put_nowait)
        layers.ready(tell, partial(tell, None))

    async def next_pass(self) -> Pass | None:
        """The next to be computed. None: no others come."""
        return await self._passes.get()

    def close(self) -> None:
        """Has the layers do without."""
        self._layers.lost()


class Lending:
    """A thread that computes lent layers. Belongs to the event loop."""

    def __init__(self, layers: LentLayers) -> None:
        self._layers = layers
        self._thread = ThreadPoolExecutor(
            1, "lent-layers", initializer=_begin, initargs=(layers.weight_bytes,)
        )

    async def answers(self, one: Pass) -> AsyncGenerator[Answer]:
        """What comes of a pass, as it is there.

        Raises:
            Exception: As `LentLayers.compute`.
        """
        loop, found = asyncio.get_running_loop(), asyncio.Queue[Answer | None]()
        tell = partial(_tell, loop, found.put_nowait)
        end = loop.run_in_executor(self._thread, self._layers.compute, one, tell)
        end.add_done_callback(partial(_ended, found))
        while (answer := await found.get()) is not None:
            yield answer
        yield await end

    def close(self) -> None:
        """Ends the thread after the pass under way."""
        self._thread.shutdown(wait=False)


def _ended(found: "asyncio.Queue[Answer | None]", end: "asyncio.Future[Answer]") -> None:
    if not end.cancelled():
        end.exception()  # seen here: whoever has left does not read it
    found.put_nowait(None)


def _tell(loop: asyncio.AbstractEventLoop, put: Callable[[Any], None], what: object) -> None:
    """From another thread; nobody is told any more once the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(put, what)


def _begin(weight_bytes: int) -> None:
    torch.set_num_threads(threads_for(weight_bytes))
    stand_back()
