"""The control planes behind a gateway: one is asked, and another when it is gone."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import structlog

from sllm import AsyncClient, AsyncStream, Event, errors
from sllm.gateway.failures import invalid

log = structlog.get_logger()

T = TypeVar("T")

_GONE: Final = (errors.Unreachable, errors.ShuttingDown)
_MAKING: Final = frozenset(
    f"sllm.client.wire.{name}" for name in ("requests", "chats", "forms", "embeddings", "batches")
)
"""What makes messages of arguments."""
_CANCEL_SECONDS: Final = 5.0


class ControlPlanes:
    """Clients of all of them; belongs to one event loop."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._clients = [AsyncClient(address) for address in addresses]
        self._current = 0

    @property
    def current(self) -> AsyncClient:
        """The one that answered last."""
        return self._clients[self._current]

    async def ask(self, call: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """What one of them answers.

        Raises:
            errors.SllmError: As it said; or as the last said, if all are gone.
        """
        for _ in self._clients[1:]:
            asked = self._current
            try:
                return await _called(call, self._clients[asked])
            except _GONE as error:
                self._turn_from(asked, error)
        return await _called(call, self.current)

    async def begin(self, deployment: str, arguments: dict[str, Any]) -> tuple[AsyncStream, Event]:
        """A generation that a control plane has taken, and its first event.

        Raises:
            errors.SllmError: Why none has.
        """

        async def begin(client: AsyncClient) -> tuple[AsyncStream, Event]:
            stream = client.generate(deployment, **arguments)
            try:
                return stream, await anext(stream)
            except StopAsyncIteration as error:
                raise errors.Internal("a generation ended without a word") from error
            except BaseException:
                await stream.cancel()
                raise

        return await self.ask(begin)

    async def close(self) -> None:
        """Ends what is under way."""
        for client in self._clients:
            await client.close()

    async def cancel(self, request_id: str) -> None:
        """Has a generation end that would go on without its reader; that it does not is logged."""
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self.ask(lambda client: client.cancel(request_id))
        except errors.RequestNotFound:
            return  # it has ended
        except (errors.SllmError, TimeoutError) as error:
            log.warning("gateway.not_cancelled", request=request_id, error=str(error))

    def _turn_from(self, asked: int, error: errors.SllmError) -> None:
        if self._current == asked:
            self._current = (asked + 1) % len(self._clients)
            address = self.current.address
            log.warning("gateway.control_changed", to=address, error=error.message)


async def _called(call: Callable[[AsyncClient], Awaitable[T]], client: AsyncClient) -> T:
    try:
        return await call(client)
    except (TypeError, AttributeError, RecursionError) as error:
        if not _of_request(error):
            raise
        raise invalid(f"a field is not what it should be: {error}") from error


def _of_request(error: Exception) -> bool:
    """Whether a call's message could not be made of what has come over the wire."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") in _MAKING for frame in frames)
