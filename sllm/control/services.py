"""What a control plane serves, to whom, and what each call passes before it is answered."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from serverlessllm.v1 import (
    batch_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    embedding_service_pb2,
    fleet_service_pb2,
    inference_service_pb2,
    key_service_pb2,
    model_service_pb2,
    tenant_service_pb2,
)
from serverlessllm.v1.batch_service_pb2_grpc import add_BatchServiceServicer_to_server
from serverlessllm.v1.cluster_service_pb2_grpc import add_ClusterServiceServicer_to_server
from serverlessllm.v1.deployment_service_pb2_grpc import add_DeploymentServiceServicer_to_server
from serverlessllm.v1.embedding_service_pb2_grpc import add_EmbeddingServiceServicer_to_server
from serverlessllm.v1.fleet_service_pb2_grpc import add_FleetServiceServicer_to_server
from serverlessllm.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from serverlessllm.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from serverlessllm.v1.model_service_pb2_grpc import add_ModelServiceServicer_to_server
from serverlessllm.v1.tenant_service_pb2_grpc import add_TenantServiceServicer_to_server

from sllm.clock import MonotonicClock
from sllm.control.access.audit import Auditor
from sllm.control.access.doorkeeper import Doorkeeper, Known
from sllm.control.access.expiry import Expiry
from sllm.control.access.refusing import Refused
from sllm.control.access.scoping import Scoping
from sllm.control.access.turnstile import Turnstile
from sllm.control.api.batch_service import BatchServicer
from sllm.control.api.cluster_service import ClusterServicer
from sllm.control.api.deployment_service import DeploymentServicer
from sllm.control.api.embedding_service import EmbeddingServicer
from sllm.control.api.fleet_service import FleetServicer
from sllm.control.api.inference_service import InferenceServicer
from sllm.control.api.key_service import KeyServicer
from sllm.control.api.model_service import ModelServicer
from sllm.control.api.tenant_service import TenantServicer
from sllm.control.config import ControlConfig
from sllm.control.control_plane import ControlPlane
from sllm.tls.identity import Role
from sllm.tls.peers import PeerRules

DEPLOYMENTS: Final = deployment_service_pb2.DESCRIPTOR.services_by_name["DeploymentService"]
SERVICES: Final = (
    batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"],
    cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"],
    DEPLOYMENTS,
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
    fleet_service_pb2.DESCRIPTOR.services_by_name["FleetService"],
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"],
)
PEERS: Final[PeerRules] = {
    "serverlessllm.v1.FleetService": (Role.NODE,),
    "serverlessllm.v1.ReplicaService": (Role.CONTROL,),
}
"""Who may call what by their certificates; all other services are for callers."""


def add_services(to: Any, plane: ControlPlane) -> None:
    """Adds all servicers to a gRPC server, or to what stands for one."""
    add_DeploymentServiceServicer_to_server(DeploymentServicer(plane), to)
    add_InferenceServiceServicer_to_server(InferenceServicer(plane), to)
    add_ModelServiceServicer_to_server(ModelServicer(plane), to)
    add_EmbeddingServiceServicer_to_server(EmbeddingServicer(plane), to)
    add_BatchServiceServicer_to_server(BatchServicer(plane), to)
    add_TenantServiceServicer_to_server(TenantServicer(plane), to)
    add_ClusterServiceServicer_to_server(ClusterServicer(plane), to)
    add_FleetServiceServicer_to_server(FleetServicer(plane), to)
    add_KeyServiceServicer_to_server(KeyServicer(plane), to)


@dataclass(frozen=True, slots=True)
class Doors:
    """What each call passes, the outermost first."""

    before: Sequence[grpc.aio.ServerInterceptor]
    """What lets callers in, or not."""
    within: Sequence[grpc.aio.ServerInterceptor]
    """What sees the messages of those who were let in."""


def doors(config: ControlConfig, plane: ControlPlane) -> Doors:
    """What stands before a control plane's servicers."""
    turnstile = Turnstile(plane.tenancy.take_call, plane.tenancy.has_all, MonotonicClock())
    keeper = Doorkeeper(_known(config, plane), turnstile)
    return Doors([keeper], [Auditor(), Scoping(), Expiry(keeper), Refused(turnstile)])


def _known(config: ControlConfig, plane: ControlPlane) -> Sequence[Known] | None:
    """What knows callers. None: nobody is asked."""
    if not config.asks_callers:
        return None
    if config.oidc is None:
        return [plane.keys]
    from sllm.control.access.oidc import OidcIssuer  # brings much along

    return [plane.keys, OidcIssuer(config.oidc)]


async def follow_admin(config: ControlConfig, plane: ControlPlane) -> None:
    """Goes by the file of the admin's key as it is, until it is cancelled."""
    if config.asks_callers and config.admin_key_file:
        await plane.keys.follow_admin(config.admin_key_file, MonotonicClock())


async def have_admin(config: ControlConfig, plane: ControlPlane) -> None:
    """Sees to it that an admin can come in."""
    if config.asks_callers and config.admin_key_file:
        await asyncio.to_thread(plane.keys.admit_admin, config.admin_key_file)
    elif config.asks_callers:
        await plane.keys.make_first(config.made_key_path)
