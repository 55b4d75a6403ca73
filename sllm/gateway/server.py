"""The gateway as a process: listens, serves, and ends in order."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import structlog
import uvicorn

from sllm import errors, listening, rpc
from sllm.gateway.app import application
from sllm.gateway.connect.app import Connect
from sllm.gateway.console import page
from sllm.gateway.console.same_origin import SameOrigin
from sllm.gateway.gateway import Gateway
from sllm.gateway.lingering import Lingering
from sllm.gateway.protocol import protocol
from sllm.gateway.settings import GatewaySettings
from sllm.process import keep_private, return_large_memory
from sllm.server_process import server_process
from sllm.tls.cluster import ClusterTls
from sllm.tls.https import server_context
from sllm.tls.identity import Role

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
    tls, port = await _tls(settings), settings.metrics_port
    about = server_process(
        "sllm-gateway", "gateway", settings.host, port, tls, collects=port is None
    )
    async with about as process, running(settings, tls) as address:
        await process.serve(f"listening on {address}")


async def _tls(settings: GatewaySettings) -> ClusterTls | None:
    return await ClusterTls.open(settings.tls, Role.GATEWAY)


@asynccontextmanager
async def running(settings: GatewaySettings, tls: ClusterTls | None = None) -> AsyncIterator[str]:
    """Serves within the context, on the address (host:port) that it gives.

    If the server dies, what runs inside is cancelled and the error raised.
    """
    tls = tls or await _tls(settings)
    dial = tls.dial(Role.CONTROL) if tls else rpc.channel
    context = await asyncio.to_thread(server_context, settings.https) if settings.https else None
    listening.check(settings.host, secured=context is not None, insecure=settings.insecure)
    bound = _bound(settings)
    gateway = Gateway(settings, dial)
    connect = Connect(gateway)
    server = _Server(_config(settings, gateway, connect, context))
    try:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve([bound]), name="http")
            await _started(server, serving)
            yield f"{settings.host}:{bound.getsockname()[1]}"
            await _end(gateway, connect, settings)
            server.should_exit = True
    finally:
        bound.close()
        await connect.close()
        await gateway.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to whoever runs it."""
        yield


def _bound(settings: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise errors.Unreachable(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    return bound


def _config(
    settings: GatewaySettings, gateway: Gateway, connect: Connect, context: ssl.SSLContext | None
) -> uvicorn.Config:
    everything = application(gateway, [*connect.routes(), *page.routes()])
    config = uvicorn.Config(
        Lingering(SameOrigin(everything, settings.allowed_hosts)),
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
    config.load()
    config.ssl = context
    return config


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
