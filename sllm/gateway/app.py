"""The ASGI application: routes, from lists, and what is none of them."""

from collections.abc import Sequence
from typing import Final

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sllm import errors
from sllm.gateway import openapi, service, tokens
from sllm.gateway.anthropic import routes as anthropic_routes
from sllm.gateway.endpoint import Answering, Endpoint
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import Refusal
from sllm.gateway.gateway import Gateway
from sllm.gateway.openai import routes as openai_routes

ENDPOINTS: Final[Sequence[Endpoint]] = (
    *service.ENDPOINTS,
    *tokens.ENDPOINTS,
    *openai_routes.ENDPOINTS,
    *anthropic_routes.ENDPOINTS,
)
"""Everything that is answered in JSON or events."""


class Application:
    """A gateway as an ASGI application."""

    def __init__(self, gateway: Gateway, mounted: Sequence[BaseRoute] = ()) -> None:
        """`mounted`: routes beside those of `ENDPOINTS`, such as those of other protocols."""
        self.gateway = gateway
        description = openapi.endpoint(ENDPOINTS)
        routes = [one.route(gateway) for one in (*ENDPOINTS, description)]
        self._router = Router([*routes, *mounted], redirect_slashes=False)
        self._router.default = self._unknown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; see ASGI."""
        try:
            await self._router({**scope, "app": self}, receive, send)
        except HTTPException:  # the path is known, the method is not
            await self._unknown(scope, receive, send)

    async def _unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        unknown = Endpoint(scope.get("method", ""), "unknown", _refuse, "What is not there.")
        if scope["type"] == "http":
            await Answering(self.gateway, unknown)(scope, receive, send)


async def _refuse(exchange: Exchange) -> None:
    method, path = exchange.scope["method"], exchange.scope["path"]
    message = f"there is no {method} {path}; /openapi.json tells what there is"
    raise Refusal(404, errors.NotServed(message))


def application(gateway: Gateway, mounted: Sequence[BaseRoute] = ()) -> ASGIApp:
    """The application of a gateway, which is closed by whoever has made it."""
    return Application(gateway, mounted)
