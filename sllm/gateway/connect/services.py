"""What is served: the services that callers and operators use, read from their descriptors."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2
from serverlessllm.v1 import (
    batch_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    embedding_service_pb2,
    inference_service_pb2,
    key_service_pb2,
    model_service_pb2,
    tenant_service_pb2,
)

SERVICES: Final[tuple[ServiceDescriptor, ...]] = (
    deployment_service_pb2.DESCRIPTOR.services_by_name["DeploymentService"],
    inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    embedding_service_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    tenant_service_pb2.DESCRIPTOR.services_by_name["TenantService"],
    key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
    batch_service_pb2.DESCRIPTOR.services_by_name["BatchService"],
    cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
"""Those that nodes and workers have for one another are not among them."""

_STREAM_TYPES: Final = {
    (False, False): StreamType.UNARY,
    (True, False): StreamType.CLIENT_STREAM,
    (False, True): StreamType.SERVER_STREAM,
    (True, True): StreamType.BIDI_STREAM,
}


@dataclass(frozen=True, slots=True)
class Method:
    """A method, and its messages."""

    path: str
    """As in a URL, and in a call of gRPC: `/package.Service/Method`."""
    stream_type: StreamType
    request: type[Any]
    response: type[Any]

    def info(self) -> MethodInfo[Any, Any]:
        """The same for the library."""
        _, service, name = self.path.split("/")
        return MethodInfo(
            name=name,
            service_name=service,
            input=self.request,
            output=self.response,
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=self.stream_type,
        )


def methods() -> Iterator[Method]:
    """All methods of all services."""
    for service in SERVICES:
        for descriptor in service.methods:
            yield _method(service, descriptor)


def _method(service: ServiceDescriptor, descriptor: MethodDescriptor) -> Method:
    streams = (descriptor.client_streaming, descriptor.server_streaming)
    return Method(
        path=f"/{service.full_name}/{descriptor.name}",
        stream_type=_STREAM_TYPES[streams],
        request=message_factory.GetMessageClass(descriptor.input_type),
        response=message_factory.GetMessageClass(descriptor.output_type),
    )
