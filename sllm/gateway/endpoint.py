"""What every route is wrapped in: its caller's circumstances, errors in its protocol, figures."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

import structlog
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sllm import errors
from sllm.client.credentials import acting_with
from sllm.gateway import failures, metrics, sse
from sllm.gateway.bodies import Gone
from sllm.gateway.context import Context, context, key_of, named
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import Refusal
from sllm.gateway.gateway import GOING_DOWN, Gateway
from sllm.gateway.tracing import span_of

log = structlog.get_logger()

Handle: TypeAlias = Callable[[Exchange], Awaitable[None]]
Tell: TypeAlias = Callable[[errors.SllmError, int, str], bytes]
"""An error, its status, and the request's id, as the body of an answer."""


def as_openai(error: errors.SllmError, status: int, request_id: str) -> bytes:
    """OpenAI's way of telling an error."""
    return failures.encoded(failures.openai_error(error, status))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route, and who answers it."""

    method: str
    path: str
    handle: Handle
    summary: str
    body: type[BaseModel] | None = None
    """Fields of the request's JSON, for those who ask what there is."""
    tell: Tell = as_openai
    event: str = ""
    """Name that an error has as an event of a stream."""

    def route(self, gateway: Gateway) -> Route:
        """The same for a router."""
        return Route(self.path, Answering(gateway, self), methods=[self.method])


class Answering:
    """An endpoint as an ASGI application."""

    def __init__(self, gateway: Gateway, endpoint: Endpoint) -> None:
        self._gateway = gateway
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; see ASGI."""
        exchange = self._exchange(scope, receive, send)
        metrics.under_way.add(1)
        try:
            with acting_with(key_of(exchange.headers)):
                await self._traced(exchange)
        finally:
            exchange.close()
            self._gateway.leave(exchange)
            self._record(exchange)

    def _exchange(self, scope: Scope, receive: Receive, send: Send) -> Exchange:
        request_id, _ = named(Headers(scope=scope))
        return Exchange(self._gateway, Context(request_id, False), scope, receive, send)

    async def _traced(self, exchange: Exchange) -> None:
        """Answers within a span; not what has no body: figures are asked for all the time."""
        one = self._endpoint
        if one.body is None:
            await self._answer(exchange)
            return
        request_id = exchange.context.request_id
        with span_of(one.method, one.path, exchange.headers, request_id) as span:
            await self._answer(exchange)
            span.set_attribute("http.response.status_code", self._status(exchange))

    async def _answer(self, exchange: Exchange) -> None:
        try:
            exchange.context = context(exchange.headers)
            self._gateway.enter(exchange)
            await self._endpoint.handle(exchange)
        except Gone:
            exchange.left = True
        except asyncio.CancelledError:
            if not exchange.excuse():
                raise
            if exchange.ended:
                await self._tell(exchange, Refusal(503, errors.ShuttingDown(GOING_DOWN)))
        except Refusal as refusal:
            await self._tell(exchange, refusal)
        except errors.SllmError as error:
            await self._tell(exchange, Refusal(failures.status_of(error), error))
        except Exception:
            log.exception("gateway.unexpected_error", path=exchange.scope["path"])
            message = f"{self._endpoint.path} failed unexpectedly; the gateway's log tells more"
            await self._tell(exchange, Refusal(500, errors.Internal(message)))

    async def _tell(self, exchange: Exchange, refusal: Refusal) -> None:
        """Says what is wrong: as an answer, or at the end of a stream that has begun."""
        status, error = refusal.status, refusal.error
        body = self._endpoint.tell(error, status, exchange.context.request_id)
        stream = exchange.stream
        if exchange.status:  # a part of the answer has gone: its caller sees that it breaks off
            log.warning("gateway.answer_broken_off", reason=error.reason, error=error.message)
            return
        if stream is None or not stream.opened:
            exchange.stream = None
            await exchange.reply(body, status, failures.headers(error, status))
            return
        name = self._endpoint.event
        await stream.write(sse.event(name, body) if name else sse.data(body))
        await stream.close()
        exchange.status = status

    def _status(self, exchange: Exchange) -> int:
        return 499 if exchange.left else exchange.status or 200

    def _record(self, exchange: Exchange) -> None:
        route = {"route": self._endpoint.path, "status": str(self._status(exchange))}
        metrics.under_way.add(-1)
        metrics.requests.add(1, route)
        metrics.seconds.record(time.monotonic() - exchange.began, {"route": route["route"]})
