"""The same services by Connect, gRPC-Web and plain JSON, of a real control plane."""

import asyncio
import json
from typing import Any

import pytest
from serverlessllm.v1 import batch_service_pb2 as batch_pb
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.gateway.connect.serving import METHODS, PROTOCOLS, Door

protocols = pytest.mark.parametrize("protocol", PROTOCOLS)


@protocols
async def test_calls_are_answered(
    cluster: Cluster, node: FakeNode, door: Door, protocol: str
) -> None:
    client = door.client(protocol)
    method = METHODS["ClusterService/ListNodes"].info()
    answer = await client.execute_unary(
        request=cluster_pb.ListNodesRequest(page_size=7), method=method
    )
    assert [one.node_id for one in answer.nodes] == ["n1"]
    assert answer == await cluster.caller.ask("ListNodes", cluster_pb.ListNodesRequest())


@protocols
async def test_streams_are_those_of_grpc(
    cluster: Cluster, node: FakeNode, door: Door, protocol: str
) -> None:
    await cluster.caller.deploy()
    events = await _generate(door, protocol, max_tokens=50)
    assert [one.sequence for one in events] == list(range(len(events)))
    assert [token for one in events for token in one.tokens.token_ids] == list(range(50))
    assert events[-1].finished.receipt.cold


@protocols
async def test_callers_send_streams(
    cluster: Cluster, node: FakeNode, door: Door, protocol: str
) -> None:
    await cluster.caller.deploy()
    parts = [
        batch_pb.SubmitBatchRequest(header=batch_pb.BatchHeader(batch_id="b")),
        *(
            batch_pb.SubmitBatchRequest(
                request=inference_pb.GenerateRequest(deployment="tiny", text="hello")
            )
            for _ in range(3)
        ),
        batch_pb.SubmitBatchRequest(end=batch_pb.BatchEnd(requests=3)),
    ]

    async def sent() -> Any:
        for part in parts:
            yield part

    answer = await door.client(protocol).execute_client_stream(
        request=sent(), method=METHODS["BatchService/SubmitBatch"].info()
    )
    assert (answer.batch.batch_id, answer.batch.requests) == ("b", 3)


async def test_curl_needs_nothing_but_json(cluster: Cluster, node: FakeNode, door: Door) -> None:
    await cluster.caller.deploy()
    listed = await _curl(door.path("DeploymentService/ListDeployments"), "{}")
    assert [one["name"] for one in json.loads(listed)["deployments"]] == ["tiny"]
    prompt = '{"deployment": "tiny", "text": "hello", "maxTokens": 4}'
    lines = await _curl(door.path("InferenceService/Generate"), prompt)
    events = [json.loads(line) for line in lines.splitlines()]
    said = "".join(one["tokens"].get("text", "") for one in events if "tokens" in one)
    assert said == "0 1 2 3 "
    assert "finished" in events[-1]


async def test_large_messages_pass(cluster: Cluster, node: FakeNode, door: Door) -> None:
    """Also those that JSON is made of beside the event loop."""
    await cluster.caller.deploy()
    tokens = list(range(600))
    prompt = {"deployment": "tiny", "tokenIds": {"ids": tokens}, "stop": ["x" * 60_000]}
    events = await door.lines("InferenceService/Generate", prompt)
    assert "finished" in events[-1]


async def test_health_is_told(cluster: Cluster, node: FakeNode, door: Door) -> None:
    service = "serverlessllm.v1.ClusterService"
    assert await door.ask("Health/Check", {"service": service}) == (200, {"status": "SERVING"})


async def _generate(door: Door, protocol: str, **fields: Any) -> list[Any]:
    request = inference_pb.GenerateRequest(deployment="tiny", text="hello", **fields)
    method = METHODS["InferenceService/Generate"].info()
    stream = door.client(protocol).execute_server_stream(request=request, method=method)
    return [event async for event in stream]


async def _curl(url: str, body: str) -> bytes:
    command = ["curl", "-sSf", "-m", "20", "-H", "content-type: application/json", "-d", body, url]
    try:
        running = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    except FileNotFoundError:
        pytest.skip("there is no curl")
    answer, _ = await running.communicate()
    assert running.returncode == 0
    return answer
