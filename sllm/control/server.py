"""The control plane as a process: puts the parts together, serves, and takes them apart again."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final

import grpc
import structlog

from sllm import errors, rpc
from sllm.clock import MonotonicClock
from sllm.control import services
from sllm.control.batches.store import BatchStore
from sllm.control.cluster.specs import DeploymentState
from sllm.control.config import Addresses, ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.control.state.sqlite import SqliteStore
from sllm.control.state.statuses import status_of
from sllm.control.tenants.names import DEFAULT, tenant_of
from sllm.listening import is_loopback
from sllm.process import keep_private, make_private, return_large_memory
from sllm.server_process import server_process
from sllm.tls.cluster import ClusterTls
from sllm.tls.identity import Role

log = structlog.get_logger()

_LOOK_SECONDS: Final = 1.0
"""Between two looks at whether what is stored is still there."""
_ASKS_NOBODY: Final = (
    "whoever reaches the port, or a gateway, may do all that an admin may, and make keys that "
    "count later: have it ask for keys (--auth), unless something else keeps others away"
)


async def serve(config: ControlConfig) -> None:
    """Runs a control plane until the process gets SIGTERM or SIGINT.

    Raises:
        errors.SllmError: The address cannot be bound, or what was stored cannot be read.
    """
    return_large_memory()
    keep_private()
    for kept in (config.state_path, config.batches_path):
        for path in kept.parent.glob(f"{kept.name}*"):
            make_private(path)
    tls, host = await _tls(config), _host(config.listen_address)
    about = ("sllm-control", "control", host, config.metrics_port, tls)
    async with server_process(*about) as process, running(config, tls) as addresses:
        to_peers = [f"peers on {addresses.peers}"] if tls else []
        await process.serve(*to_peers, f"listening on {addresses.callers}")


async def _tls(config: ControlConfig) -> ClusterTls | None:
    return await ClusterTls.open(config.tls, Role.CONTROL)


@asynccontextmanager
async def running(config: ControlConfig, tls: ClusterTls | None = None) -> AsyncIterator[Addresses]:
    """Serves within the context, on the addresses that it gives.

    If the control plane's loop dies, what runs inside is cancelled and the error raised.
    """
    tls = tls or await _tls(config)
    async with _one_of_several(config, tls) if config.etcd else _alone(config, tls) as addresses:
        yield addresses


def _one_of_several(
    config: ControlConfig, tls: ClusterTls | None
) -> AbstractAsyncContextManager[Addresses]:
    from sllm.control.replicas.replica import Duties, serving  # only this needs a client of etcd

    duties = Duties(
        services=services.SERVICES,
        add_services=services.add_services,
        doors=partial(_all_doors, config),
        prepare=partial(services.have_admin, config),
        work=partial(_work, config),
        listen=lambda server: _listen(server, config, tls),
        to_nodes=tls.dial(Role.NODE) if tls else rpc.channel,
        to_leader=tls.dial(Role.CONTROL) if tls else rpc.channel,
    )
    return serving(config, duties, rpc.Server(before=_guards(tls)))


def _all_doors(config: ControlConfig, plane: ControlPlane) -> Sequence[grpc.aio.ServerInterceptor]:
    doors = services.doors(config, plane)
    return *doors.before, *doors.within


@asynccontextmanager
async def _alone(config: ControlConfig, tls: ClusterTls | None) -> AsyncIterator[Addresses]:
    """The only control plane, on SQLite."""
    store, batches = await asyncio.to_thread(_open_stores, config)
    to_nodes = tls.dial(Role.NODE) if tls else rpc.channel
    plane = ControlPlane(config, store, batches, MonotonicClock(), to_nodes)
    doors = services.doors(config, plane)
    server = rpc.Server(before=[*_guards(tls), *doors.before], within=doors.within)
    services.add_services(server.grpc, plane)
    try:
        await plane.load()
        await services.have_admin(config, plane)
        addresses = await _listen(server, config, tls)
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(part) for part in _work(config, plane, server)]
            yield addresses
            plane.end_streams()
            await server.stop(config.stop_grace_seconds)
            for task in work:
                task.cancel()
    finally:
        await server.stop(0)
        await plane.close()


async def _listen(server: rpc.Server, config: ControlConfig, tls: ClusterTls | None) -> Addresses:
    addresses = await _serve(server, config, tls)
    if not config.asks_callers and not is_loopback(_host(config.listen_address)):
        log.warning("control.asks_nobody", listen=config.listen_address, problem=_ASKS_NOBODY)
    if config.probe_port is not None:
        log.info("control.probes_served", port=await server.serve_probes(config.probe_port))
    return addresses


async def _serve(server: rpc.Server, config: ControlConfig, tls: ClusterTls | None) -> Addresses:
    if tls is None:
        port = await server.start(
            config.listen_address, services.SERVICES, insecure=config.insecure
        )
        address = f"{_host(config.listen_address)}:{port}"
        return Addresses(address, address)
    peers = server.bind(config.peer_address, tls.for_peers())
    callers = tls.for_callers()
    port = await server.start(config.listen_address, services.SERVICES, credentials=callers)
    return Addresses(
        f"{_host(config.listen_address)}:{port}", f"{_host(config.peer_address)}:{peers}"
    )


def _guards(tls: ClusterTls | None) -> list[grpc.aio.ServerInterceptor]:
    return [tls.guard(services.PEERS)] if tls else []


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _open_stores(config: ControlConfig) -> tuple[SqliteStore, BatchStore]:
    store = SqliteStore(config.state_path)
    try:
        return store, BatchStore(config.batches_path)
    except BaseException:
        store.close()
        raise


def _work(
    config: ControlConfig, plane: ControlPlane, server: rpc.Server
) -> list[Coroutine[Any, Any, None]]:
    """What goes on beside its callers, until it is cancelled."""
    follow = services.follow_admin(config, plane)
    parts = [plane.run(), _tell_state(plane, server), follow]
    if not config.asks_callers:  # names of deployments are not for everybody
        parts.append(_tell_health(plane, server))
    return parts


async def _tell_health(plane: ControlPlane, server: rpc.Server) -> None:
    """Keeps one name on the health service for each deployment that can serve."""
    async for names in plane.state.changes.follow():
        for name in names:
            if tenant_of(name) != DEFAULT:
                continue  # whoever asks for health is not asked who he is
            known = name in plane.state.deployments
            serving = known and status_of(plane.state, name).state is DeploymentState.AVAILABLE
            await server.set_serving(name, serving)


async def _tell_state(plane: ControlPlane, server: rpc.Server) -> None:
    """Has the health service say whether deployments can be stored, and the log why not."""
    told: errors.SllmError | None = None
    while True:
        problem = await plane.state_problem()
        if problem and not told:
            log.error("control.state_unavailable", problem=problem.message)
        if bool(problem) != bool(told):
            await server.set_serving(services.DEPLOYMENTS.full_name, not problem)
        told = problem
        await asyncio.sleep(_LOOK_SECONDS)
