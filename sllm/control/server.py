"""The control plane as a process: puts the parts together, serves, and takes them apart again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from serverlessllm.v1 import (
    batch_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    fleet_service_pb2,
    inference_service_pb2,
    model_service_pb2,
)
from serverlessllm.v1.batch_service_pb2_grpc import add_BatchServiceServicer_to_server
from serverlessllm.v1.cluster_service_pb2_grpc import add_ClusterServiceServicer_to_server
from serverlessllm.v1.deployment_service_pb2_grpc import add_DeploymentServiceServicer_to_server
from serverlessllm.v1.fleet_service_pb2_grpc import add_FleetServiceServicer_to_server
from serverlessllm.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from serverlessllm.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server

from sllm import errors, rpc, telemetry
from sllm.clock import MonotonicClock
from sllm.control.api.batch_service import BatchServicer
from sllm.control.api.cluster_service import ClusterServicer
from sllm.control.api.deployment_service import DeploymentServicer
from sllm.control.api.fleet_service import FleetServicer
from sllm.control.api.inference_service import InferenceServicer
from sllm.control.api.model_service import ModelServicer
from sllm.control.batches.store import BatchStore
from sllm.control.cluster.specs import DeploymentState
from sllm.control.config import ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.control.state.sqlite import SqliteStore
from sllm.process import (
    keep_private,
    leave_out_of_collections,
    make_private,
    return_large_memory,
    until_terminated,
)

log = structlog.get_logger()

_LOOK_SECONDS: Final = 1.0
"""Between two looks at whether what is stored is still there."""
_DEPLOYMENTS: Final = deployment_service_pb2.DESCRIPTOR.services_by_name["DeploymentService"]
_SERVICES: Final = (
    batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"],
    cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"],
    _DEPLOYMENTS,
    fleet_service_pb2.DESCRIPTOR.services_by_name["FleetService"],
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
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
    configured = telemetry.configure(
        "sllm-control", instance_id="control", metrics_port=config.metrics_port
    )
    asked_to_end = asyncio.create_task(until_terminated())  # before anybody knows that we are here
    try:
        async with running(config) as address:
            print(f"listening on {address}", flush=True)  # noqa: T201 - for who started us
            leave_out_of_collections()
            await asked_to_end
    finally:
        configured.shutdown()


@asynccontextmanager
async def running(config: ControlConfig) -> AsyncIterator[str]:
    """Serves within the context, on the address (host:port) that it gives.

    If the control plane's loop dies, what runs inside is cancelled and the error raised.
    """
    store, batches = await asyncio.to_thread(_open_stores, config)
    plane = ControlPlane(config, store, batches, MonotonicClock())
    server = rpc.Server()
    _add_services(server, plane)
    try:
        await plane.load()
        port = await server.start(config.listen_address, _SERVICES)
        async with asyncio.TaskGroup() as group:
            parts = (plane.run(), _tell_health(plane, server), _tell_state(plane, server))
            work = [group.create_task(part) for part in parts]
            yield f"{config.listen_address.rpartition(':')[0]}:{port}"
            plane.end_streams()
            await server.stop(config.stop_grace_seconds)
            for task in work:
                task.cancel()
    finally:
        await server.stop(0)
        await plane.close()


def _open_stores(config: ControlConfig) -> tuple[SqliteStore, BatchStore]:
    store = SqliteStore(config.state_path)
    try:
        return store, BatchStore(config.batches_path)
    except BaseException:
        store.close()
        raise


def _add_services(server: rpc.Server, plane: ControlPlane) -> None:
    add_DeploymentServiceServicer_to_server(DeploymentServicer(plane), server.grpc)
    add_InferenceServiceServicer_to_server(InferenceServicer(plane), server.grpc)
    add_ModelServiceServicer_to_server(ModelServicer(plane), server.grpc)
    add_BatchServiceServicer_to_server(BatchServicer(plane), server.grpc)
    add_ClusterServiceServicer_to_server(ClusterServicer(plane), server.grpc)
    add_FleetServiceServicer_to_server(FleetServicer(plane), server.grpc)


async def _tell_health(plane: ControlPlane, server: rpc.Server) -> None:
    """Keeps one name on the health service for each deployment that can serve."""
    async for names in plane.state.changes.follow():
        for name in names:
            known = name in plane.state.deployments
            serving = known and plane.state.status(name).state is DeploymentState.AVAILABLE
            await server.set_serving(name, serving)


async def _tell_state(plane: ControlPlane, server: rpc.Server) -> None:
    """Has the health service say whether deployments can be stored, and the log why not."""
    told: errors.SllmError | None = None
    while True:
        problem = await plane.state_problem()
        if problem and not told:
            log.error("control.state_unavailable", problem=problem.message)
        if bool(problem) != bool(told):
            await server.set_serving(_DEPLOYMENTS.full_name, not problem)
        told = problem
        await asyncio.sleep(_LOOK_SECONDS)
