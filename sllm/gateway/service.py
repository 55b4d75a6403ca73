"""Routes of the gateway itself: whether it serves, and what it has measured."""

import asyncio
from collections.abc import Sequence
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sllm import AsyncClient, errors, rpc
from sllm.gateway.endpoint import Endpoint
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import encoded


async def health(exchange: Exchange) -> None:
    """Whether a control plane can be asked."""
    exchange.watch()
    address = await exchange.gateway.planes.ask(_serving)
    await exchange.reply(encoded({"status": "ok", "control": address}))


async def _serving(client: AsyncClient) -> str:
    if not await rpc.is_serving(client.address, ""):
        raise errors.Unreachable(f"the control plane at {client.address} does not answer")
    return client.address


async def metrics(exchange: Exchange) -> None:
    """What has been measured, as Prometheus reads it."""
    exchange.watch()
    found = await asyncio.to_thread(generate_latest)
    await exchange.reply(found, headers={"content-type": CONTENT_TYPE_LATEST})


ENDPOINTS: Final[Sequence[Endpoint]] = (
    Endpoint("GET", "/health", health, "Whether a control plane can be asked."),
    Endpoint("GET", "/metrics", metrics, "Figures, as Prometheus reads them."),
)
