"""What every gRPC server and client here shares: options, addresses, and how calls are made."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import quote

import grpc
from google.protobuf import descriptor
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import DESCRIPTOR as HEALTH_DESCRIPTOR
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)
from grpc_reflection.v1alpha import reflection
from opentelemetry import propagate
from opentelemetry.context import Context

from sllm import bounds, errors, handlers, listening, statuses

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
TERM_HEADER: Final = "sllm-term"
"""Of several control planes' calls to nodes: the number of the caller's leadership."""
FORWARDED_HEADER: Final = "sllm-forwarded"
"""Of a call that one of several control planes has passed on to the one that leads: whose it is, as
gRPC names peers. Whoever calls may say so: it proves nothing of a peer that is no control plane."""
_HEALTH_SECONDS: Final = 5.0
_ADDRESS: Final = re.compile(r"unix:.+|.+:(?P<port>\d{1,5})")

_SIZES: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
_OPTIONS: Final = (
    *_SIZES,
    # A peer that is stopped or cut off, rather than dead, is noticed by the lack of an answer.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Without this one gRPC waits for a minute, whatever the other says.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
CHANNEL_OPTIONS: Final = (
    *_OPTIONS,
    # http_proxy and its like are meant for sources: a cluster does not lie behind a proxy.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # The time that a connection has to come about, whatever its name: a busy server needs some.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
THREAD_OPTIONS: Final = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
"""For channels of threads: each has a connection of its own, which ends with it."""
_NEVER_MS: Final = 2**31 - 1
PROCESS_OPTIONS: Final = (
    *_SIZES,
    # The end of a process on this machine closes its socket. One that is stopped for a while goes
    # on where it was, and must find its streams.
    ("grpc.keepalive_time_ms", _NEVER_MS),
    ("grpc.http2.ping_timeout_ms", _NEVER_MS),
    ("grpc.enable_http_proxy", 0),
)
"""For both ends of a Unix socket between a process and its child."""
SERVER_OPTIONS: Final = (
    *_OPTIONS,
    ("grpc.so_reuseport", 0),  # two servers on one port would share its callers by chance
    # A client that looks after its quiet stream is not cut off for it (GOAWAY, too_many_pings),
    # unless it pings without a pause: ours do so every 5 s, others as their users have set them.
    ("grpc.http2.min_ping_interval_without_data_ms", 100),
    ("grpc.keepalive_permit_without_calls", 1),
    # Calls that come while the event loop is busy: of more than 1,000 gRPC would cancel some, and
    # not say why. How many may wait is for those to say who know what they wait for.
    ("grpc.server.max_pending_requests", 1_000_000),
    ("grpc.server.max_pending_requests_hard_limit", 1_000_000),
)


Options: TypeAlias = Sequence[tuple[str, int | str]]


class Dial(Protocol):
    """Makes channels to servers of one kind, with credentials of its own."""

    def __call__(self, target: str, options: Options = CHANNEL_OPTIONS) -> grpc.aio.Channel:
        """A channel to `target`: host:port, or unix:PATH."""
        ...


def unix_address(socket: Path) -> str:
    """The address of a Unix socket: a URI, to which `#`, `?` and `%` mean something."""
    return f"unix:{quote(str(socket))}"


def channel(target: str, options: Options = CHANNEL_OPTIONS) -> grpc.aio.Channel:
    """A channel in the clear, as within a machine; see Dial."""
    return grpc.aio.insecure_channel(target, options=list(options))


def thread_channel(target: str) -> grpc.Channel:
    """A channel in the clear for threads, whose calls block."""
    return grpc.insecure_channel(target, options=list(THREAD_OPTIONS))


def trace_headers(context: Context | None = None) -> dict[str, str]:
    """Headers that carry a trace, or else the current one (W3C trace context)."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return carrier


def trace_metadata() -> grpc.aio.Metadata:
    """Call metadata that carries the current trace."""
    return grpc.aio.Metadata(*trace_headers().items())


def order_metadata(term: int | None, trace: Mapping[str, str] | None = None) -> grpc.aio.Metadata:
    """Metadata of a control plane's call to a node: a trace, or else the current one, and the term.

    None: the control plane is the only one.
    """
    headers = dict(trace_headers() if trace is None else trace)
    if term is not None:
        headers[TERM_HEADER] = str(term)
    return grpc.aio.Metadata(*headers.items())


# --- calls --------------------------------------------------------------------------------------


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raises the typed error of any call that fails inside.

    A context manager and no client interceptor: those of grpc.aio add a task to every stream.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise statuses.from_rpc_error(error) from error


async def is_serving(address: str, name: str, dial: Dial = channel) -> bool:
    """Whether the server at `address` answers, and its health service calls `name` serving."""
    async with dial(address) as to_server:
        asked = HealthCheckRequest(service=name)
        try:
            answer = await health_pb2_grpc.HealthStub(to_server).Check(
                asked, timeout=_HEALTH_SECONDS
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)


# --- servers ----------------------------------------------------------------------------------


class _Health(health.aio.HealthServicer):  # type: ignore[misc]  # untyped library
    """The health service, with the one call that grpc_health's own lacks."""

    def __init__(self) -> None:
        super().__init__()
        self._listed: set[str] = {""}

    async def set(self, service: str, status: HealthCheckResponse.ServingStatus) -> None:
        """See HealthServicer."""
        self._listed.add(service)
        await super().set(service, status)

    async def List(self, request: HealthListRequest, context: Any) -> HealthListResponse:
        """How every service does."""
        statuses = {
            name: await self.Check(HealthCheckRequest(service=name), context)
            for name in sorted(self._listed)
        }
        return HealthListResponse(statuses=statuses)


class _Probes(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped library
    """One question of the health service alone, about services alone: no names of deployments."""

    def __init__(self, of: _Health, services: Collection[str]) -> None:
        self._of = of
        self._services = services

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:
        """See HealthServicer."""
        if request.service not in ("", *self._services):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return await self._of.Check(request, context)


class Server:
    """A gRPC server with health and reflection, on a port that it may choose itself."""

    def __init__(
        self,
        options: Options = SERVER_OPTIONS,
        before: Sequence[grpc.aio.ServerInterceptor] = (),
        within: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """Makes one that does not listen yet.

        Args:
            options: Of gRPC.
            before: What may refuse a call before anything of it is read.
            within: What sees each call's messages, and the typed errors of its handler.
        """
        around = [*before, handlers.ErrorsAndTraces(), *within]
        self.grpc = grpc.aio.server(interceptors=around, options=list(options))
        self._health = _Health()
        self._probes: grpc.aio.Server | None = None
        self._names: list[str] = []

    async def start(
        self,
        address: str,
        services: Sequence[descriptor.ServiceDescriptor],
        *,
        not_yet: Collection[str] = (),
        credentials: grpc.ServerCredentials | None = None,
        insecure: bool = False,
    ) -> int:
        """Serves on an address, beside those that it was bound to before, and returns the port.

        The services' handlers must have been added to `grpc` before.

        Args:
            address: host:port, port 0 for any that is free; or unix:PATH.
            services: What it serves.
            not_yet: Full names of those that the health service calls not serving at first.
            credentials: See `bind`.
            insecure: See `bind`.

        Raises:
            errors.InvalidArgument: It is no such address, or may not be listened on so.
            errors.Unavailable: The address cannot be bound.
        """
        port = self.bind(address, credentials, insecure=insecure)
        self._names = [service.full_name for service in services]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        health_name = HEALTH_DESCRIPTOR.services_by_name["Health"].full_name
        visible = (*self._names, health_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(visible, self.grpc)
        await self.grpc.start()
        for name in ("", *self._names):
            await self.set_serving(name, name not in not_yet)
        return port

    def bind(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None = None,
        *,
        insecure: bool = False,
    ) -> int:
        """Has it listen on an address, once it is started, and returns the port.

        Args:
            address: host:port, port 0 for any that is free; or unix:PATH.
            credentials: How it meets its callers. None: in the clear.
            insecure: Whether that may be so beyond this machine.

        Raises:
            errors.InvalidArgument: It is no such address, or may not be listened on so.
            errors.Unavailable: The address cannot be bound.
        """
        _check_listen_address(address)
        if not address.startswith("unix:"):
            host = address.rpartition(":")[0]
            listening.check(host, secured=credentials is not None, insecure=insecure)
        try:
            if credentials is None:
                return self.grpc.add_insecure_port(address)
            return self.grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise errors.Unreachable(f"cannot listen on {address}: {error}") from error

    async def serve_probes(self, port: int) -> int:
        """Answers health checks alone as well, in the clear and on all interfaces.

        For probes of a supervisor, such as a kubelet's, which have no certificates. Whoever asks
        there is told whether the server serves, and nothing else. It must have been started.

        Args:
            port: Of the machine; 0 takes any that is free.

        Returns:
            The port.

        Raises:
            errors.Unavailable: The port cannot be bound.
        """
        self._probes = grpc.aio.server(options=list(SERVER_OPTIONS))
        probes = _Probes(self._health, self._names)
        health_pb2_grpc.add_HealthServicer_to_server(probes, self._probes)
        try:
            bound = self._probes.add_insecure_port(f"[::]:{port}")
        except RuntimeError as error:
            raise errors.Unreachable(f"cannot listen on port {port} for probes: {error}") from error
        await self._probes.start()
        return bound

    async def set_serving(self, name: str, serving: bool) -> None:
        """Says on the health service whether `name` serves."""
        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Takes no new calls, waits up to `grace` seconds for those under way, then ends them."""
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace)
        if self._probes:
            await self._probes.stop(None)


def _check_listen_address(address: str) -> None:
    """Of gRPC alone it would have a port modulo 65536, and that of HTTPS where none is given."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"] or 0) > bounds.MAX_PORT:
        raise errors.InvalidArgument(
            f"cannot listen on {address!r}: write host:port, the port up to {bounds.MAX_PORT}"
        )
