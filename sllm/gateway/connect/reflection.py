"""gRPC's server reflection over Connect and gRPC-Web: what is served, and its descriptors."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

from connectrpc.method import StreamType
from connectrpc.server import Endpoint
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection, reflection_pb2

from sllm import errors
from sllm.gateway.connect import failures
from sllm.gateway.connect.codecs import Encoded, from_wire
from sllm.gateway.connect.services import SERVICES, Method

_V1: Final = "grpc.reflection.v1.ServerReflection"
_NAMES: Final = (_V1, reflection.SERVICE_NAME)
"""Both versions have the same messages."""


def endpoints() -> dict[str, Any]:
    """What answers, by path."""
    return {method.path: _endpoint(method) for method in map(_method, _NAMES)}


def names() -> tuple[str, ...]:
    """The services of both versions."""
    return _NAMES


def _method(service: str) -> Method:
    return Method(
        path=f"/{service}/ServerReflectionInfo",
        stream_type=StreamType.BIDI_STREAM,
        request=reflection_pb2.ServerReflectionRequest,
        response=reflection_pb2.ServerReflectionResponse,
    )


def _endpoint(method: Method) -> Any:
    visible = (*(service.full_name for service in SERVICES), *_NAMES)
    servicer = reflection.aio.ReflectionServicer(visible)
    return Endpoint.bidi_stream(method=method.info(), function=_serving(method, servicer))


def _serving(method: Method, servicer: Any) -> Callable[..., AsyncGenerator[bytes]]:
    async def serve(requests: AsyncIterator[Encoded], context: Any) -> AsyncGenerator[bytes]:
        with failures.told(method.path, ""):
            async for request in requests:
                asked = _message(await request.to_wire(method.request), method)
                async for answer in servicer.ServerReflectionInfo(_one(asked), None):
                    wire = answer.SerializeToString()
                    yield await from_wire(request.codec, wire, method.response)

    return serve


def _message(wire: bytes, method: Method) -> Any:
    try:
        return method.request.FromString(wire)
    except DecodeError as error:
        said = f"the request is not a message of this call: {error}"
        raise errors.InvalidArgument(said) from error


async def _one(message: Any) -> AsyncIterator[Any]:
    yield message
