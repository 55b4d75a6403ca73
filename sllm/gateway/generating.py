"""Generations behind an answer: there for as long as its caller is, and read event by event."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from sllm import AsyncStream, Event, Loading, Queued, Result, Tokens, errors
from sllm.config import format_bytes
from sllm.gateway import metrics
from sllm.gateway.attempts import new_attempt
from sllm.gateway.exchange import Exchange

Arrivals: TypeAlias = asyncio.Queue[tuple[int, Event | Exception | None]]
"""What has come, and of which generation. None: all of it has."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Generations of one model that are answered together."""

    model: str
    """Name of the deployment."""
    arguments: Mapping[str, Any]
    """Of `generate`, but for the prompts."""
    prompts: Sequence[Mapping[str, Any]]
    """Of each its argument: there is one generation for each."""

    @property
    def n(self) -> int:
        """Samples of each prompt."""
        return int(self.arguments.get("n", 1))


@dataclass(slots=True)
class _Together:
    """Generations of one ask: all are taken, or none is."""

    refused: bool = False
    """Whether one was not, for a reason of its own: the others are for nobody then."""


@dataclass(slots=True)
class Generation:
    """One that has begun."""

    request_id: str
    stream: AsyncStream
    first: Event
    """Its first event, which the stream does not give any more."""
    over: bool = False
    """Whether it has been read to its end."""

    async def events(self) -> AsyncIterator[Event]:
        """All events."""
        yield self.first
        async for event in self.stream:
            yield event
        self.over = True

    async def result(self) -> Result:
        """All of it, once it has ended."""
        result = await self.stream.result()
        self.over = True
        return result


@asynccontextmanager
async def begun(exchange: Exchange, ask: Ask) -> AsyncIterator[list[Generation]]:
    """All generations of an ask; those that have not ended when this is left are ended.

    If the gateway goes down, those that their caller has named go on: it may come back to them.

    Raises:
        errors.SllmError: Why one of them was refused.
    """
    async with AsyncExitStack() as stack:
        together = _Together()
        contexts = [_begun(exchange, ask, part, together) for part in range(len(ask.prompts))]
        if len(contexts) == 1:
            yield [await stack.enter_async_context(contexts[0])]
            return
        yield await _entered(stack, contexts)


async def _entered(
    stack: AsyncExitStack, contexts: Sequence[AbstractAsyncContextManager[Generation]]
) -> list[Generation]:
    """Enters them side by side: all, or none."""
    try:
        async with asyncio.TaskGroup() as group:
            entering = [group.create_task(stack.enter_async_context(one)) for one in contexts]
    except* errors.SllmError as failed:
        raise _first(failed) from failed
    return [one.result() for one in entering]


def _first(failed: ExceptionGroup[errors.SllmError]) -> errors.SllmError:
    """What the others have failed by, in whichever group it is."""
    found: Any = failed
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    return found  # type: ignore[no-any-return]  # groups of these have no other leaves


@asynccontextmanager
async def _begun(
    exchange: Exchange, ask: Ask, part: int, together: _Together
) -> AsyncIterator[Generation]:
    context, planes = exchange.context, exchange.gateway.planes
    request_id = context.generation_id(exchange.digest, part)
    attempt, failed = new_attempt(), False
    circumstances = _circumstances(exchange, request_id, attempt)
    arguments = {**ask.arguments, **ask.prompts[part], **circumstances}
    generation: Generation | None = None
    try:
        generation = Generation(request_id, *await planes.begin(ask.model, arguments))
        yield generation
    except errors.SllmError as error:
        failed = generation is None
        together.refused |= failed and not isinstance(error, errors.Cancelled)
        raise
    finally:
        # What has failed may be read on by now, by the same caller at any gateway.
        nobody = exchange.left or (together.refused and not failed)
        if context.named and nobody:
            exchange.gateway.cancels.begin(request_id, attempt)
        if generation is not None:
            await generation.stream.cancel()


def _circumstances(exchange: Exchange, request_id: str, attempt: str) -> dict[str, Any]:
    context = exchange.context
    found: dict[str, Any] = {
        "request_id": request_id,
        "priority": context.priority,
        "keep_alive": context.keep_alive,
        "timeout": context.deadline,
        "zone": exchange.gateway.settings.zone or None,
    }
    if context.named:
        linger = exchange.gateway.settings.linger_seconds
        found |= {"attach": True, "attempt": attempt, "linger": linger}
    return found


async def results(exchange: Exchange, ask: Ask) -> list[tuple[str, Result]]:
    """The whole of each generation, and its id.

    Raises:
        errors.SllmError: Why one of them has failed.
    """
    async with begun(exchange, ask) as generations:
        if len(generations) == 1:
            found = [await generations[0].result()]
        else:
            found = await asyncio.gather(*(one.result() for one in generations))
        metrics.tokens.add(sum(one.usage.completion_tokens for one in found))
        return [(one.request_id, result) for one, result in zip(generations, found, strict=True)]


async def events(
    exchange: Exchange, generations: Sequence[Generation]
) -> AsyncGenerator[tuple[int, Event]]:
    """What comes of generations, and of which; how far they are is told beside.

    Raises:
        errors.SllmError: Why one of them has failed.
    """
    waiting = True
    async for part, event in _merged(generations):
        if isinstance(event, Tokens):
            if waiting:
                waiting = False
                metrics.first_token.record(time.monotonic() - exchange.began)
            metrics.tokens.add(len(event.token_ids))
        elif exchange.stream and isinstance(event, Queued | Loading):
            await exchange.stream.comment(progress(event))
            continue
        yield part, event


async def _merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Event]]:
    if len(generations) == 1:
        async for event in generations[0].events():
            yield 0, event
        return
    # Of one event: whoever reads slowly holds all of its generations back.
    arrived: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(1)
    reading = [asyncio.create_task(_read(*one, arrived)) for one in enumerate(generations)]
    try:
        left = len(generations)
        while left:
            part, found = await arrived.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield part, found
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def _read(
    part: int,
    generation: Generation,
    arrived: Arrivals,
) -> None:
    try:
        async for event in generation.events():
            await arrived.put((part, event))
        await arrived.put((part, None))
    except Exception as error:  # the answer ends with it, whatever it is
        await arrived.put((part, error))


def progress(event: Queued | Loading) -> str:
    """How far a request is, in words."""
    if isinstance(event, Queued):
        wait = "" if event.estimated_wait is None else f", about {event.estimated_wait:.1f} s"
        return f"queued, {event.position} ahead{wait}"
    left = event.estimated_remaining
    rest = "" if left is None else f", about {left:.1f} s left"
    done = f"{format_bytes(event.loaded_bytes)} of {format_bytes(event.total_bytes)}"
    source = f" from {event.from_tier}" if event.from_tier else ""
    amount = f" {done}{source}" if event.total_bytes else ""
    return f"loading: {event.phase}{amount}{rest}"
