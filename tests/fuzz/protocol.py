"""The RPCs of both servers, as the protocol's descriptors tell them."""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from serverlessllm.v1 import (
    batch_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    embedding_service_pb2,
    fleet_service_pb2,
    inference_service_pb2,
    key_service_pb2,
    migration_service_pb2,
    model_service_pb2,
    node_service_pb2,
    peer_service_pb2,
    tenant_service_pb2,
)


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of one server."""

    server: str
    """"control" or "node"."""
    service: str
    """Full name."""
    name: str
    request: type[Message]
    response: type[Message]
    sends_stream: bool
    """Whether the caller sends a stream."""
    gives_stream: bool
    """Whether the answer is a stream."""

    @property
    def path(self) -> str:
        """As gRPC calls it."""
        return f"/{self.service}/{self.name}"

    @property
    def key(self) -> str:
        """Service and name, without the package."""
        return f"{self.service.rpartition('.')[2]}.{self.name}"


_COMMON: tuple[FileDescriptor, ...] = (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
_SERVED: dict[str, tuple[FileDescriptor, ...]] = {
    "control": (
        batch_service_pb2.DESCRIPTOR,
        cluster_service_pb2.DESCRIPTOR,
        deployment_service_pb2.DESCRIPTOR,
        embedding_service_pb2.DESCRIPTOR,
        fleet_service_pb2.DESCRIPTOR,
        inference_service_pb2.DESCRIPTOR,
        key_service_pb2.DESCRIPTOR,
        model_service_pb2.DESCRIPTOR,
        tenant_service_pb2.DESCRIPTOR,
    ),
    "node": (
        embedding_service_pb2.DESCRIPTOR,
        inference_service_pb2.DESCRIPTOR,
        migration_service_pb2.DESCRIPTOR,
        model_service_pb2.DESCRIPTOR,
        node_service_pb2.DESCRIPTOR,
        peer_service_pb2.DESCRIPTOR,
    ),
}


def _method(server: str, service: ServiceDescriptor, method: MethodDescriptor) -> Method:
    return Method(
        server=server,
        service=service.full_name,
        name=method.name,
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        sends_stream=method.client_streaming,
        gives_stream=method.server_streaming,
    )


def _methods(server: str, files: Iterable[FileDescriptor]) -> list[Method]:
    services = [service for file in files for service in file.services_by_name.values()]
    return [_method(server, service, one) for service in services for one in service.methods]


METHODS: tuple[Method, ...] = tuple(
    method for server, files in _SERVED.items() for method in _methods(server, (*files, *_COMMON))
)
"""Every RPC of the control plane, then every RPC of the node."""
