"""The gateway as a process: listens, serves, and ends in order."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import structlog
import uvicorn

from sllm import errors, telemetry
from sllm.gateway.app import application
from sllm.gateway.connect.app import Connect
from sllm.gateway.console import page
from sllm.gateway.console.same_origin import SameOrigin
from sllm.gateway.gateway import Gateway
from sllm.gateway.protocol import protocol
from sllm.gateway.settings import GatewaySettings
from sllm.process import (
    keep_private,
    leave_out_of_collections,
    return_large_memory,
    until_terminated,
)

log = structlog.get_logger()

_BACKLOG: Final = 4096
_LOOK_SECONDS: Final = 0.05
_LAST_WORDS_SECONDS: Final = 1.0
"""For those to be told who are ended."""


async def serve(settings: GatewaySettings) -> None:
    """Runs a gateway until the process gets SIGTERM or SIGINT.

    Raises:
        errors.Unreachable: The address cannot be bound.
    """
    return_large_memory()
    keep_private()
    configured = telemetry.configure("sllm-gateway", instance_id="gateway", collects=True)
    asked_to_end = asyncio.create_task(until_terminated())  # before anybody knows that we are here
    try:
        async with running(settings) as address:
            print(f"listening on {address}", flush=True)  # noqa: T201 - for who started us
            leave_out_of_collections()
            await asked_to_end
    finally:
        configured.shutdown()


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncIterator[str]:
    """Serves within the context, on the address (host:port) that it gives.

    If the server dies, what runs inside is cancelled and the error raised.
    """
    listening = _bound(settings)
    gateway = Gateway(settings)
    connect = Connect(gateway)
    server = _Server(_config(settings, gateway, connect))
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve([listening]), name="http")
            await _started(server, serving)
            yield f"{settings.host}:{listening.getsockname()[1]}"
            await _end(gateway, connect, settings)
            server.should_exit = True
    finally:
        listening.close()
        await connect.close()
        await gateway.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to whoever runs it."""
        yield


def _bound(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise errors.Unreachable(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    return listening


def _config(settings: GatewaySettings, gateway: Gateway, connect: Connect) -> uvicorn.Config:
    everything = application(gateway, [*connect.routes(), *page.routes()])
    return uvicorn.Config(
        SameOrigin(everything, settings.allowed_hosts),
        http=protocol(settings.header_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=int(settings.idle_seconds),
        timeout_graceful_shutdown=int(_LAST_WORDS_SECONDS) + 1,
    )


async def _started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event
        await asyncio.sleep(0.005)


async def _end(gateway: Gateway, connect: Connect, settings: GatewaySettings) -> None:
    """Takes nothing more, lets what is under way end, and ends what does not."""
    gateway.close_door()
    connect.end_watches()
    for seconds, then in ((settings.stop_seconds, gateway.end_all), (_LAST_WORDS_SECONDS, None)):
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not gateway.idle:  # noqa: ASYNC110 - nothing waits for it but this
                    await asyncio.sleep(_LOOK_SECONDS)
        if then:
            then()
