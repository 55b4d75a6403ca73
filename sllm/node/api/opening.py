"""The message that opens a stream, which says what the rest is about."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from sllm import errors

Message = TypeVar("Message")

OPEN_SECONDS: Final = 5.0
"""Within which it has to come."""


async def opening(messages: AsyncIterator[Message]) -> Message | None:
    """The first message of a stream. None: it ends without one.

    Raises:
        errors.DeadlineExceeded: Nothing has come.
    """
    try:
        return await asyncio.wait_for(anext(messages, None), OPEN_SECONDS)
    except TimeoutError as error:
        raise errors.DeadlineExceeded(f"no message has come within {OPEN_SECONDS:g} s") from error
