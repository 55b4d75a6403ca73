"""Promotions under way, and what becomes of them when their callers leave."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from sllm.node.store.lease import Lease
from sllm.node.transfers.loads import Tell
from sllm.node.transfers.work import Progress

_log = structlog.get_logger()


class Promotions:
    """Each is a task of its own, so that it can outlive its caller. Belongs to the event loop."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[Lease]] = set()

    async def run(
        self,
        promote: Callable[[Tell], Coroutine[Any, Any, Lease]],
        on_progress: Tell | None,
        *,
        give_up: bool,
    ) -> Lease:
        """The lease that a promotion ends with.

        Args:
            promote: begins it, with what it is to tell its progress to.
            on_progress: told how far it is, for as long as the caller waits.
            give_up: end it when the caller is cancelled. Otherwise it goes on then, and its lease
                is released at its end.

        Raises:
            SllmError: what the promotion failed with.
        """
        listener = _Listener(on_progress)
        promotion = asyncio.create_task(promote(listener.tell))
        self._under_way.add(promotion)
        promotion.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(promotion)
        except asyncio.CancelledError:
            listener.leave()
            promotion.add_done_callback(_release)
            if give_up:
                promotion.cancel()
            raise

    async def ended(self) -> None:
        """Returns when all that are under way have ended, however they have."""
        await asyncio.gather(*self._under_way, return_exceptions=True)


class _Listener:
    """Passes progress on to a caller, until it leaves."""

    def __init__(self, on_progress: Tell | None) -> None:
        self._on_progress = on_progress

    def tell(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)

    def leave(self) -> None:
        self._on_progress = None


def _release(promotion: asyncio.Task[Lease]) -> None:
    """Ends a promotion that nobody waits for any more."""
    if promotion.cancelled():
        return
    error = promotion.exception()
    if error is None:
        promotion.result().release()
    else:
        _log.warning("node.promotion_failed", problem=str(error))
