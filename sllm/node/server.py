"""The node agent as a process: puts the parts together, serves, and takes them apart again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import structlog
from serverlessllm.v1 import (
    embedding_service_pb2,
    inference_service_pb2,
    migration_service_pb2,
    model_service_pb2,
    node_service_pb2,
    peer_service_pb2,
)
from serverlessllm.v1.embedding_service_pb2_grpc import add_EmbeddingServiceServicer_to_server
from serverlessllm.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from serverlessllm.v1.migration_service_pb2_grpc import add_MigrationServiceServicer_to_server
from serverlessllm.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from serverlessllm.v1.node_service_pb2_grpc import add_NodeServiceServicer_to_server
from serverlessllm.v1.peer_service_pb2_grpc import add_PeerServiceServicer_to_server

from sllm import listening, rpc
from sllm.clock import Clock, MonotonicClock
from sllm.errors import DeviceUnavailable
from sllm.node.agent import Agent
from sllm.node.api.embedding_service import EmbeddingServicer
from sllm.node.api.inference_service import InferenceServicer
from sllm.node.api.migration_service import MigrationServicer
from sllm.node.api.model_service import ModelServicer
from sllm.node.api.node_service import NodeServicer
from sllm.node.api.peer_service import PeerServicer
from sllm.node.api.reporter import Reporter
from sllm.node.api.terms import ObeysLatest, Terms
from sllm.node.config import NodeConfig
from sllm.node.device.cuda_devices import Budget, CudaDevices, Probe
from sllm.node.device.interface import Devices
from sllm.node.device.pool_device import PoolDevice
from sllm.node.device.selection import Selected, parse_device, select
from sllm.node.directory import kept_node_id, with_sockets
from sllm.node.generations.generations import Generations
from sllm.node.instances.zygotes import Zygotes
from sllm.node.kept.records import KeptBudget
from sllm.node.peers.types import Network
from sllm.node.store.tier_store import TierStore
from sllm.node.tiers.pool import Pool
from sllm.process import home_variables, keep_private, make_private
from sllm.server_process import server_process
from sllm.tls.cluster import ClusterTls
from sllm.tls.identity import Role
from sllm.tls.peers import PeerRules

log = structlog.get_logger()

STOP_GRACE = 2.0
"""Seconds that running requests have when the node is asked to end."""


async def serve(config: NodeConfig) -> None:
    """Runs a node agent until the process gets SIGTERM or SIGINT.

    Raises:
        errors.SllmError: It cannot run so, or not here.
    """
    keep_private()
    for directory in (config.checkpoint_dir, config.socket_dir):
        make_private(directory)
    config.check()
    tls, host = await ClusterTls.open(config.tls, Role.NODE), _host(config)
    node_id = config.node_id or kept_node_id(config.directory)
    about = ("sllm-node", node_id, host, config.metrics_port, tls)
    async with server_process(*about) as process, AsyncExitStack() as stack:
        listening.check(host, secured=tls is not None, insecure=config.insecure)
        port = await _start(config, node_id, tls, stack)
        await process.serve(f"listening on {host}:{port}")


async def _start(
    config: NodeConfig, node_id: str, tls: ClusterTls | None, stack: AsyncExitStack
) -> int:
    """Starts every part; `stack` ends them in reverse order. Returns the port."""
    clock = MonotonicClock()
    selected = await asyncio.to_thread(select, parse_device(config.device))
    config.check_memory(on_devices=selected is not None)
    pool = Pool(config.pool_bytes, config.chunk_bytes, huge_pages=config.huge_pages)
    stack.callback(pool.close)
    log.info("node.pool", size_bytes=pool.capacity_bytes, pages=str(pool.pages))
    pool.start_populating()
    variables = home_variables(config.directory / "home") | config.kernel_variables
    zygotes = Zygotes(config.engines, variables)
    stack.push_async_callback(zygotes.close)
    zygotes.start(pool.fd)
    network = _network(config, node_id, tls)
    store = await TierStore.open(
        config.checkpoint_dir,
        config.ssd_bytes,
        pool,
        clock=clock,
        read_threads=config.read_threads,
        fetch_threads=config.fetch_threads,
        policy=config.sources,
        network=network,
        kept=KeptBudget(
            config.kv_cache_dram_bytes, config.kv_cache_ssd_bytes, config.kv_cache_int8
        ),
    )
    stack.push_async_callback(store.close)
    config = with_sockets(config, stack)
    devices = await open_devices(config, selected, store, pool, clock, zygotes.probe, stack)
    to_nodes = tls.dial(Role.NODE) if tls else rpc.channel
    agent = Agent(config, clock, store, devices, zygotes, to_nodes)
    generations = Generations(agent.instances, agent.leave, node_id, clock)
    port = await _listen(config, tls, agent, generations, node_id, zygotes, stack)
    if network is not None:
        network.address = _address(config, port)
    to_control = tls.dial(Role.CONTROL) if tls else rpc.channel
    await stack.enter_async_context(_reporting(config, to_control, agent, node_id, port, clock))
    stack.push_async_callback(agent.close, STOP_GRACE)
    stack.push_async_callback(generations.hand_over, config.leave_seconds)
    return port


def _network(config: NodeConfig, node_id: str, tls: ClusterTls | None) -> Network | None:
    """How chunks of checkpoints are had from other nodes. None: they are not."""
    if not config.peers:
        return None
    return Network(node_id, tls.dial_for_threads(Role.NODE) if tls else rpc.thread_channel)


async def open_devices(
    config: NodeConfig,
    selected: Selected | None,
    store: TierStore,
    pool: Pool,
    clock: Clock,
    probe: Probe,
    stack: AsyncExitStack,
) -> Devices:
    """What kernels run on: the devices that were selected, or else the processors.

    If devices were not asked for by name and cannot be used, the node serves without them.
    """
    if selected is None:
        return PoolDevice(store, config.pool_kv_bytes)
    devices = CudaDevices(store, pool, clock)
    async with AsyncExitStack() as opening:
        opening.push_async_callback(devices.close)
        try:
            budget = Budget(config.kv_bytes, config.device_reserve_bytes)
            await devices.open(selected, budget, probe)
        except DeviceUnavailable as error:
            if selected.required:
                raise
            log.warning("node.devices_unused", problem=error.message)
            config.check_memory(on_devices=False)
            return PoolDevice(store, config.pool_kv_bytes)
        stack.push_async_callback(opening.pop_all().aclose)
    return devices


async def _listen(
    config: NodeConfig,
    tls: ClusterTls | None,
    agent: Agent,
    generations: Generations,
    node_id: str,
    zygotes: Zygotes,
    stack: AsyncExitStack,
) -> int:
    terms = Terms()
    server = rpc.Server(
        before=[tls.guard(PEERS)] if tls else (), within=[ObeysLatest(terms, _ORDERING)]
    )
    about = (agent, generations, node_id, MonotonicClock())
    to_nodes = tls.dial(Role.NODE) if tls else rpc.channel
    add_NodeServiceServicer_to_server(NodeServicer(*about, terms, to_nodes), server.grpc)
    add_InferenceServiceServicer_to_server(InferenceServicer(generations), server.grpc)
    add_MigrationServiceServicer_to_server(MigrationServicer(*about), server.grpc)
    add_PeerServiceServicer_to_server(
        PeerServicer(agent.store.sharing, agent.store.giving_pages, agent.instances.lending),
        server.grpc,
    )
    add_ModelServiceServicer_to_server(ModelServicer(agent.instances.text_workers), server.grpc)
    add_EmbeddingServiceServicer_to_server(EmbeddingServicer(agent.instances), server.grpc)
    port = await server.start(
        config.listen_address,
        _SERVICES,
        not_yet=[_NODE_SERVICE.full_name],
        credentials=tls.for_peers() if tls else None,
        insecure=config.insecure,
    )
    stack.push_async_callback(server.stop, STOP_GRACE)
    if config.probe_port is not None:
        log.info("node.probes_served", port=await server.serve_probes(config.probe_port))
    telling = asyncio.create_task(_tell_that_it_is_ready(server, zygotes), name="telling-ready")
    stack.callback(telling.cancel)
    return port


async def _tell_that_it_is_ready(server: rpc.Server, zygotes: Zygotes) -> None:
    """Calls the node's service serving once models can be looked at, which takes the zygotes.

    They are still importing for some seconds when the node listens, and have calls wait.
    """
    while not zygotes.settled:  # noqa: ASYNC110 - the event is in another process
        await asyncio.sleep(_READY_POLL_SECONDS)
    await server.set_serving(_NODE_SERVICE.full_name, True)


_READY_POLL_SECONDS = 0.1
_NODE_SERVICE = node_service_pb2.DESCRIPTOR.services_by_name["NodeService"]
_SERVICES = (
    _NODE_SERVICE,
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    migration_service_pb2.DESCRIPTOR.services_by_name["MigrationService"],
    peer_service_pb2.DESCRIPTOR.services_by_name["PeerService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
)
PEERS: PeerRules = {
    "serverlessllm.v1.NodeService": (Role.CONTROL,),
    "serverlessllm.v1.InferenceService": (Role.CONTROL,),
    "serverlessllm.v1.MigrationService": (Role.NODE,),
    "serverlessllm.v1.PeerService": (Role.NODE,),
    "serverlessllm.v1.ModelService": (Role.CONTROL,),
    "serverlessllm.v1.EmbeddingService": (Role.CONTROL,),
}
"""Who may call what, by their certificates."""
_ORDERING: Final = [service for service, roles in PEERS.items() if {*roles} == {Role.CONTROL}]
"""What control planes alone call."""


@asynccontextmanager
async def _reporting(
    config: NodeConfig, dial: rpc.Dial, agent: Agent, node_id: str, port: int, clock: Clock
) -> AsyncIterator[None]:
    address = _address(config, port)
    async with AsyncExitStack() as stack:
        for control in config.control_addresses:
            channel = await stack.enter_async_context(dial(control))
            reporter = Reporter(agent, node_id, address, channel, clock)
            task = asyncio.create_task(reporter.run(), name=f"reporter to {control}")
            stack.push_async_callback(_ended, task)
        yield


async def _ended(task: asyncio.Task[None]) -> None:
    """Ends a task, and returns when it has."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _address(config: NodeConfig, port: int) -> str:
    """Where others reach this node."""
    return f"{config.advertise_host or _host(config)}:{port}"


def _host(config: NodeConfig) -> str:
    return config.listen_address.rpartition(":")[0]
