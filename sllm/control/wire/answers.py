"""Calls of nodes that are answered at once."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from sllm import errors

Answer = TypeVar("Answer")


class AnswerCall(Generic[Answer]):
    """One call on a node, which somebody else than who waits for it may end."""

    def __init__(self, answering: Coroutine[Any, Any, Answer]) -> None:
        """Begins it."""
        self._task = asyncio.create_task(answering, name="call of a node")
        self._error: errors.SllmError | None = None

    async def answer(self) -> Answer:
        """What the node answers; whoever waits and leaves ends the call.

        Raises:
            errors.SllmError: Why there is no answer.
        """
        try:
            return await self._task
        except asyncio.CancelledError as cancelled:
            waiting = asyncio.current_task()
            if self._error is None or (waiting and waiting.cancelling()):
                raise
            raise self._error from cancelled

    def hang_up(self, error: errors.SllmError | None = None) -> None:
        """Ends it at once, for who waits with `error`; one that has ended is left as it is."""
        self._error = error
        self._task.cancel()
