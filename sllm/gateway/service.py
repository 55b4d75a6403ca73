"""Routes of the gateway itself: whether it serves, and what it has measured."""

import asyncio
from collections.abc import Sequence
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sllm import errors, rpc
from sllm.gateway.control_planes import PlaneClient
from sllm.gateway.endpoint import Endpoint
from sllm.gateway.exchange import Exchange
from sllm.gateway.failures import Refusal, encoded


async def health(exchange: Exchange) -> None:
    """Whether a control plane can be asked."""
    exchange.watch()
    planes = exchange.gateway.planes

    async def serving(client: PlaneClient) -> str:
        if not await rpc.is_serving(client.preferred, "", planes.dial):
            raise errors.Unreachable(f"the control plane at {client.preferred} does not answer")
        return client.preferred

    address = await planes.ask(serving)
    await exchange.reply(encoded({"status": "ok", "control": address}))


async def metrics(exchange: Exchange) -> None:
    """What has been measured, as Prometheus reads it, unless that has a port of its own."""
    if exchange.gateway.settings.metrics_port is not None:
        raise Refusal(404, errors.NotServed("metrics are on a port of their own: --metrics-port"))
    exchange.watch()
    found = await asyncio.to_thread(generate_latest)
    await exchange.reply(found, headers={"content-type": CONTENT_TYPE_LATEST})


ENDPOINTS: Final[Sequence[Endpoint]] = (
    Endpoint("GET", "/health", health, "Whether a control plane can be asked."),
    Endpoint("GET", "/metrics", metrics, "Figures, as Prometheus reads them."),
)
