"""The control planes behind a gateway: one is asked, and another when it is gone."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from sllm import AsyncClient, AsyncStream, Event, errors, rpc
from sllm.gateway.failures import invalid

log = structlog.get_logger()

T = TypeVar("T")

_GONE: Final = (errors.Unreachable, errors.ShuttingDown, errors.NotLeader, errors.NoLeader)
_MAKING: Final = frozenset(
    f"sllm.client.wire.{name}" for name in ("requests", "chats", "forms", "embeddings", "batches")
)
"""What makes messages of arguments."""
_CANCEL_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever asks something of a gateway, as a control plane knows it."""

    tenant: str
    sees_all: bool
    """Whether what belongs to other tenants is its to see as well."""

    def sees(self, tenant: str) -> bool:
        """Whether what belongs to a tenant is its to see."""
        return self.sees_all or tenant == self.tenant


class PlaneClient(AsyncClient):
    """A client that shows the gateway's certificate, and a key only if its caller has shown one."""

    def __init__(self, address: str, dial: rpc.Dial) -> None:
        super().__init__(address, api_key="", tls_ca="")
        self.preferred = self.address.partition(",")[0]
        """The one that it asks if it can."""
        self._dial = dial

    async def caller(self) -> Caller:
        """Who is acted for.

        Raises:
            errors.Unauthenticated: It shows no key that is good.
        """
        return Caller(*await self._own_tenant())


class ControlPlanes:
    """Clients of all of them; belongs to one event loop."""

    def __init__(self, addresses: Sequence[str], dial: rpc.Dial = rpc.channel) -> None:
        """`dial` leads to them."""
        self.dial = dial
        # Each prefers another one, and goes to the others where that is gone: a stream that was
        # begun at one is read on at the next.
        self._clients = [
            PlaneClient(",".join((*addresses[first:], *addresses[:first])), dial)
            for first in range(len(addresses))
        ]
        self._current = 0

    @property
    def current(self) -> PlaneClient:
        """The one that answered last."""
        return self._clients[self._current]

    async def ask(self, call: Callable[[PlaneClient], Awaitable[T]]) -> T:
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

    async def cancel(self, request_id: str, attempt: str) -> None:
        """Has a generation end that would go on without its reader; that it does not is logged.

        It goes on if another attempt than this reads it.
        """
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self.ask(lambda client: client.cancel(request_id, attempt=attempt))
        except errors.RequestNotFound:
            return  # it has ended, or is read on elsewhere
        except (errors.SllmError, TimeoutError) as error:
            log.warning("gateway.not_cancelled", request=request_id, error=str(error))

    def _turn_from(self, asked: int, error: errors.SllmError) -> None:
        if self._current == asked:
            self._current = (asked + 1) % len(self._clients)
            address = self.current.preferred
            log.warning("gateway.control_changed", to=address, error=error.message)


async def _called(call: Callable[[PlaneClient], Awaitable[T]], client: PlaneClient) -> T:
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
