"""Promotions that go on when their callers have left."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import structlog

from sllm.broadcast import Broadcast
from sllm.errors import ShuttingDown
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Progress

_log = structlog.get_logger()


class Promotions:
    """Each is a task of its own, so that it can outlive its caller. Belongs to the event loop."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[None]] = set()
        self._closing = False

    async def follow(
        self, promote: Callable[[Tell], Coroutine[Any, Any, None]], *, give_up: bool
    ) -> AsyncGenerator[Progress]:
        """Begins a promotion, and gives its progress until it has ended.

        Args:
            promote: does it, and tells its progress to what it is given.
            give_up: end it when the caller leaves. Otherwise it goes on then.

        Raises:
            SllmError: what the promotion failed with.
            ShuttingDown: `close` has ended it, or was called before.
        """
        if self._closing:
            raise ShuttingDown("this node is going down and starts nothing new")
        progress: Broadcast[Progress] = Broadcast()
        work = asyncio.create_task(promote(progress.publish))
        self._under_way.add(work)
        work.add_done_callback(self._ended)
        work.add_done_callback(lambda _: progress.close())
        try:
            async with aclosing(progress.follow()) as steps:
                async for step in steps:
                    yield step
        finally:
            if give_up:
                work.cancel()
        if work.cancelled():
            raise ShuttingDown("the node is going down")
        work.result()  # it is done, as its progress has ended; this raises what it failed with

    async def close(self) -> None:
        """Ends all that are under way, and returns when they have; begins no more."""
        self._closing = True
        for work in self._under_way:
            work.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _ended(self, work: asyncio.Task[None]) -> None:
        self._under_way.discard(work)
        if not work.cancelled() and (error := work.exception()):
            # Logged although a caller is told as well: the caller may have left.
            _log.warning("node.promotion_failed", problem=str(error))
