"""What is served is told, in both versions of the service that tells it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from sllm.gateway.connect.services import SERVICES
from tests.gateway.connect.serving import Door, door_of

VERSIONS = ("v1", "v1alpha")


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """Reflection needs no control plane."""
    async with door_of("127.0.0.1:1") as door:
        yield door


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", ["connect", "connect+json", "grpc-web"])
async def test_services_and_their_files_are_told(door: Door, protocol: str, version: str) -> None:
    symbol = "serverlessllm.v1.InferenceService"
    listed, found = await _asked(
        door, protocol, version, {"list_services": ""}, {"file_containing_symbol": symbol}
    )
    names = {one.name for one in listed.list_services_response.service}
    assert names >= {service.full_name for service in SERVICES}
    assert f"grpc.reflection.{version}.ServerReflection" in names
    assert "serverlessllm.v1.FleetService" not in names
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(one)
        for one in found.file_descriptor_response.file_descriptor_proto
    ]
    assert any(service.name == "InferenceService" for one in files for service in one.service)


async def test_what_is_not_there_is_said(door: Door) -> None:
    (answer,) = await _asked(door, "connect", "v1", {"file_by_filename": "nothing.proto"})
    assert answer.error_response.error_code == 5


async def _asked(door: Door, protocol: str, version: str, *asks: dict[str, str]) -> list[Any]:
    async def requests() -> AsyncIterator[Any]:
        for ask in asks:
            yield reflection_pb2.ServerReflectionRequest(**ask)

    method: MethodInfo[Any, Any] = MethodInfo(
        name="ServerReflectionInfo",
        service_name=f"grpc.reflection.{version}.ServerReflection",
        input=reflection_pb2.ServerReflectionRequest,
        output=reflection_pb2.ServerReflectionResponse,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.BIDI_STREAM,
    )
    stream = door.client(protocol).execute_bidi_stream(request=requests(), method=method)
    try:
        return [one async for one in stream]
    except ConnectError as error:
        pytest.fail(f"{error.code}: {error.message}")
