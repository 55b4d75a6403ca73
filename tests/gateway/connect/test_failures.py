"""What goes wrong is told as it is in gRPC, and what nobody waits for any more ends."""

import asyncio
import json
from base64 import b64decode
from typing import Any

import aiohttp
import grpc
import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from google.rpc import error_details_pb2
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import errors
from sllm.gateway.connect.failures import to_connect
from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.gateway.connect.serving import METHODS, PROTOCOLS, Door, door_of
from tests.gateway.raw import connected, post
from tests.support import assert_eventually

GENERATE = "InferenceService/Generate"
PROMPT = {"deployment": "tiny", "text": "hello"}


@pytest.mark.parametrize("reason", sorted(errors.BY_REASON))
def test_every_error_keeps_its_code_and_reason(reason: str) -> None:
    error = errors.BY_REASON[reason]("why", metadata={"a": "b"}, retry_after=1.5)
    told = to_connect(error)
    name = "CANCELLED" if told.code is Code.CANCELED else told.code.name
    assert grpc.StatusCode[name].value[0] == error.code
    info = _info([(one.type_name, one.message_bytes) for one in told.details])
    assert (info.reason, info.domain, dict(info.metadata)) == (reason, errors.DOMAIN, {"a": "b"})
    assert [one.type_name for one in told.details][1:] == ["google.rpc.RetryInfo"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_errors_of_calls_and_streams(cluster: Cluster, door: Door, protocol: str) -> None:
    client = door.client(protocol)
    with pytest.raises(ConnectError, match="no deployment is named 'nope'") as of_call:
        await client.execute_unary(
            request=deployment_pb.GetDeploymentRequest(name="nope"),
            method=METHODS["DeploymentService/GetDeployment"].info(),
        )
    with pytest.raises(ConnectError, match="no deployment is named 'nope'") as of_stream:
        await _read_all(door, protocol, "nope")
    for found in (of_call.value, of_stream.value):
        assert found.code is Code.NOT_FOUND
        info = _info([(one.type_name, one.message_bytes) for one in found.details])
        assert info.reason == "DEPLOYMENT_NOT_FOUND"


BAD_REQUESTS: dict[str, tuple[str, str, bytes]] = {
    "a field that there is not": ("ClusterService/ListNodes", "application/json", b'{"pages": 1}'),
    "no JSON": ("ClusterService/ListNodes", "application/json", b"{"),
    "no UTF-8": ("ClusterService/ListNodes", "application/json", b'{"pageToken": "\xff"}'),
    "JSON of another type": ("ClusterService/ListNodes", "application/json", b"[]"),
    "too deep": ("InferenceService/Generate", "application/json", b"[" * 100_000),
    "no message": ("ClusterService/ListNodes", "application/proto", b"\xff"),
    "a stream of no JSON": (GENERATE, "application/json", b"{"),
    "no name": ("DeploymentService/GetDeployment", "application/json", b"{}"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_what_is_no_request_is_refused(cluster: Cluster, door: Door, case: str) -> None:
    method, kind, body = BAD_REQUESTS[case]
    async with aiohttp.ClientSession() as session:
        headers = {"content-type": kind}
        reply = await session.post(door.path(method), data=body, headers=headers)
        told = await reply.json()
    assert reply.status in (400, 404), told
    assert _reason(told) in ("INVALID_ARGUMENT", "INVALID_NAME", "DEPLOYMENT_NOT_FOUND"), told


async def test_a_header_that_is_no_text_is_refused(door: Door) -> None:
    async with connected(door.url) as (reader, writer):
        more = b"connection: close\r\nuser-agent: \xca"
        asked = post(f"/serverlessllm.v1.{GENERATE}", {}).replace(b"host:", more + b"\r\nhost:")
        writer.write(asked)
        answer = await asyncio.wait_for(reader.read(), 10)
    assert b" 400 " in answer[:20]
    assert b"INVALID_ARGUMENT" in answer or b"invalid_argument" in answer


async def test_a_failed_stream_of_lines_says_so(
    cluster: Cluster, node: FakeNode, door: Door
) -> None:
    """Before its first message by its status, afterwards in its last line."""
    await cluster.caller.deploy()
    status, told = await door.ask(GENERATE, {"deployment": "nope", "text": "hello"})
    assert (status, _reason(told)) == (404, "DEPLOYMENT_NOT_FOUND")
    node.script.generate_errors = [errors.Internal("it broke")]
    *_, last = await door.lines(GENERATE, PROMPT)
    assert (last["error"]["code"], _reason(last["error"])) == ("internal", "INTERNAL")


async def test_a_caller_that_leaves_ends_its_generation(
    cluster: Cluster, node: FakeNode, door: Door
) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    async with aiohttp.ClientSession() as session:
        reply = await session.post(door.path(GENERATE), json=PROMPT)
        while "started" not in json.loads(await reply.content.readline()):
            pass
        reply.close()
        await assert_eventually(lambda: node.cancelled)


async def test_a_caller_that_leaves_ends_its_call(
    cluster: Cluster, node: FakeNode, door: Door
) -> None:
    node.script.model.purpose.task = pb.MODEL_TASK_EMBED
    await cluster.caller.deploy()
    node.script.before_ready.shut()
    ask = {"deployment": "tiny", "inputs": [{"text": "hello"}]}
    asking = asyncio.create_task(door.ask("EmbeddingService/Embed", ask))
    await assert_eventually(lambda: _queued(cluster, 1))
    asking.cancel()
    await assert_eventually(lambda: _queued(cluster, 0))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_deadlines_go_along(
    cluster: Cluster, node: FakeNode, door: Door, protocol: str
) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    with pytest.raises(ConnectError) as failed:
        await _read_all(door, protocol, "tiny", timeout_ms=300)
    assert failed.value.code is Code.DEADLINE_EXCEEDED
    await assert_eventually(lambda: node.cancelled)


async def test_a_deadline_is_told_with_its_reason(
    cluster: Cluster, node: FakeNode, door: Door
) -> None:
    await cluster.caller.deploy()
    node.script.before_tokens.shut()
    *_, last = await door.lines(GENERATE, PROMPT, **{"connect-timeout-ms": "300"})
    assert last["error"]["code"] == "deadline_exceeded"
    assert _reason(last["error"]) == "DEADLINE_EXCEEDED"


async def test_a_control_plane_that_is_away() -> None:
    async with door_of("127.0.0.1:1") as door:
        status, told = await door.ask("ClusterService/ListNodes", {})
    assert (status, told["code"], _reason(told)) == (503, "unavailable", "UNREACHABLE")
    assert "127.0.0.1:1" in told["message"]


async def test_another_control_plane_is_asked_next(cluster: Cluster, node: FakeNode) -> None:
    async with door_of("127.0.0.1:1", cluster.address) as door:
        told = [await door.ask("ClusterService/ListNodes", {}) for _ in range(2)]
    assert [status for status, _ in told] == [503, 200]


async def test_a_gateway_that_goes_down_says_so(cluster: Cluster, node: FakeNode) -> None:
    """Streams without an end are ended at once: their readers look for another gateway."""
    async with aiohttp.ClientSession() as session:
        async with door_of(cluster.address, stop_seconds=600.0) as door:
            reply = await session.post(door.path("ClusterService/WatchCluster"), json={})
            await reply.content.readline()
        *_, last = [json.loads(line) async for line in reply.content]
        reply.close()
    assert (last["error"]["code"], _reason(last["error"])) == ("unavailable", "SHUTTING_DOWN")


async def begun(door: Door, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A call whose head has been sent."""
    address, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    path = METHODS["ClusterService/ListNodes"].path
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n"
    writer.write(f"{head}content-type: application/json\r\n\r\n".encode())
    return reader, writer


async def test_a_body_that_does_not_come_is_not_waited_for(cluster: Cluster) -> None:
    async with door_of(cluster.address, body_seconds=0.1) as door:
        reader, writer = await begun(door, 9)
        assert b"499" in await reader.readline()
        writer.close()


async def test_a_body_has_one_time_for_all_of_it(cluster: Cluster) -> None:
    """However steadily it comes."""
    async with door_of(cluster.address, body_seconds=0.3) as door:
        reader, writer = await begun(door, 1000)
        said = asyncio.create_task(reader.readline())
        while not said.done():
            writer.write(b" ")
            await asyncio.wait([said], timeout=0.05)
        assert b"499" in said.result()
        writer.close()


async def test_a_call_is_one_of_those_under_way_from_its_head_on(cluster: Cluster) -> None:
    async with door_of(cluster.address, max_requests=1) as door:
        _, writer = await begun(door, 1000)

        async def refused() -> bool:
            status, told = await door.ask("ClusterService/ListNodes", {})
            return (status, told["code"]) == (429, "resource_exhausted")

        await assert_eventually(refused)
        writer.close()


async def test_what_parts_of_the_cluster_say_to_one_another_is_not_served(door: Door) -> None:
    async with aiohttp.ClientSession() as session:
        for name in ("FleetService/Report", "NodeService/StopInstance", "Nothing/At"):
            async with session.post(f"{door.url}/serverlessllm.v1.{name}", json={}) as reply:
                assert reply.status == 404


async def test_grpc_itself_has_another_port(door: Door) -> None:
    headers = {"content-type": "application/grpc"}
    async with aiohttp.ClientSession() as session:
        path = door.path("ClusterService/ListNodes")
        reply = await session.post(path, data=b"", headers=headers)
        assert reply.status == 415
        assert "own port" in await reply.text()


async def _queued(cluster: Cluster, count: int) -> bool:
    return (await cluster.caller.deployment("tiny")).queued_requests == count


async def _read_all(door: Door, protocol: str, deployment: str, **options: Any) -> None:
    stream = door.client(protocol, **options).execute_server_stream(
        request=inference_pb.GenerateRequest(deployment=deployment, text="hello"),
        method=METHODS[GENERATE].info(),
    )
    async for _ in stream:
        pass


def _reason(told: dict[str, Any]) -> str:
    """The reason in an error of Connect in JSON: in its bytes, and in words beside them."""
    details = told["details"]
    info = _info([(one["type"], b64decode(one["value"] + "===")) for one in details])
    assert details[0]["debug"]["reason"] == info.reason
    return str(info.reason)


def _info(details: list[tuple[str, bytes]]) -> error_details_pb2.ErrorInfo:
    found = dict(details)["google.rpc.ErrorInfo"]
    return error_details_pb2.ErrorInfo.FromString(found)
