"""Clients that were generated from an earlier protocol go on working, and see what they saw.

`old_protocol.binpb` has the descriptors of the protocol as it was before requests said more of
tokens, texts and conversations than temperature and stop strings. No generated file of today has
a part in these calls.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

import sllm
from tests.e2e.cluster import Cluster

PACKAGE = "serverlessllm.v1"
TIMEOUT = 60.0


class OldClient:
    """Calls by name, with messages of the earlier protocol."""

    def __init__(self, address: str) -> None:
        files = descriptor_pb2.FileDescriptorSet()
        files.ParseFromString((Path(__file__).parent / "old_protocol.binpb").read_bytes())
        self.pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            self.pool.Add(file)
        self.channel = grpc.insecure_channel(address)

    def message(self, name: str, **fields: Any) -> Any:
        descriptor = self.pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        return message_factory.GetMessageClass(descriptor)(**fields)

    def call(self, service: str, method: str, **fields: Any) -> Any:
        """One answer, or an iterator of them, as the method has it."""
        described = self.pool.FindServiceByName(f"{PACKAGE}.{service}").methods_by_name[method]
        request = message_factory.GetMessageClass(described.input_type)
        answer = message_factory.GetMessageClass(described.output_type)
        make = self.channel.unary_stream if described.server_streaming else self.channel.unary_unary
        call = make(
            f"/{PACKAGE}.{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request(**fields), timeout=TIMEOUT)


@pytest.fixture(scope="module")
def deployed(cluster: Cluster, models: Path) -> Iterator[str]:
    """On one engine: no call of a client says anything to another that it does not say to this."""
    source = f"file://{models / 'tiny-llama'}"
    cluster.client.deploy("old", source, engine="transformers", keep_alive=60.0)
    yield "old"
    cluster.client.delete("old")
    cluster.wait_for_instances(0)


@pytest.fixture
def old(cluster: Cluster) -> Iterator[OldClient]:
    client = OldClient(cluster.control.address)
    yield client
    client.channel.close()


def test_they_know_nothing_of_what_came_since(old: OldClient) -> None:
    known = old.message("GenerateRequest").DESCRIPTOR.fields_by_name
    assert "linger" in known
    assert "structured_output" not in known
    assert "repetition_penalty" not in old.message("SamplingParams").DESCRIPTOR.fields_by_name


def test_they_generate_what_clients_of_today_do(
    old: OldClient, cluster: Cluster, deployed: str
) -> None:
    sampling = old.message("SamplingParams", temperature=0.8, top_p=0.9, seed=5)
    events = list(
        old.call(
            "InferenceService",
            "Generate",
            deployment=deployed,
            text="Once upon",
            sampling=sampling,
            stop=["never"],
            max_tokens=24,
        )
    )
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "queued"
    assert kinds[-1] == "finished"
    assert [event.sequence for event in events] == list(range(len(events)))
    expected = cluster.client.complete(
        deployed, "Once upon", temperature=0.8, top_p=0.9, seed=5, stop="never", max_tokens=24
    )
    assert "".join(event.tokens.text for event in events) == expected.text
    tokens = [token for event in events for token in event.tokens.token_ids]
    assert tuple(tokens) == tuple(expected.token_ids)
    assert events[-1].finished.usage.completion_tokens == len(tokens)
    assert events[-1].finished.receipt.node_id


def test_they_talk(old: OldClient, cluster: Cluster, deployed: str) -> None:
    message = old.message("ChatMessage", role="user", content="Hi")
    events = list(
        old.call(
            "InferenceService",
            "Generate",
            deployment=deployed,
            messages=old.message("ChatMessages", messages=[message]),
            sampling=old.message("SamplingParams", temperature=0.0),
            max_tokens=8,
        )
    )
    said: list[sllm.ChatMessage] = [{"role": "user", "content": "Hi"}]
    expected = cluster.client.complete(deployed, messages=said, temperature=0.0, max_tokens=8)
    assert "".join(event.tokens.text for event in events) == expected.text


def test_they_see_deployments_nodes_and_errors(old: OldClient, deployed: str) -> None:
    listed = old.call("DeploymentService", "ListDeployments")
    assert deployed in [one.name for one in listed.deployments]
    nodes = old.call("ClusterService", "ListNodes").nodes
    assert len(nodes) == 2
    with pytest.raises(grpc.RpcError) as caught:
        list(old.call("InferenceService", "Generate", deployment="nobody", text="a"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
