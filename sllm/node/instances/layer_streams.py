"""Streams of passes between an agent, its worker and another agent."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from sllm import rpc, sending

Wrap = Callable[[Any], Any]
"""Makes a message of one call of that of another."""


async def relay(source: Any, sink: Any, wrap: Wrap) -> None:
    """Passes on what a call gives, until that ends or the other takes no more.

    One message is on its way at a time: whoever is slow is waited for.

    Raises:
        errors.SllmError: What either has failed with.
    """
    with rpc.typed_errors():
        while (message := await source.read()) is not grpc.aio.EOF:
            if not await sending.write(sink, wrap(message)):
                return


async def until_one_ends(*work: Coroutine[Any, Any, None]) -> None:
    """Returns when the first has ended; the others are cancelled, and have ended as well.

    Raises:
        errors.SllmError: What that has failed with.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
