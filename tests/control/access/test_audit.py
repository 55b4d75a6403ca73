"""One line for each change, whoever wanted it and whatever came of it."""

from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.cluster_service_pb2_grpc import ClusterServiceStub
from structlog.testing import capture_logs

from sllm import errors, rpc
from sllm.control.access.rules import RULES
from tests.control.access.conftest import Guarded
from tests.control.clusters import Cluster, cluster_of
from tests.control.fake_node import FakeNode
from tests.fuzz.protocol import METHODS
from tests.support import assert_eventually

Lines = list[MutableMapping[str, Any]]


def audited(lines: Lines) -> list[tuple[Any, ...]]:
    """Who, what, and what came of it."""
    return [
        (one["method"].rpartition(".")[2], one["key"], one["target"], one["outcome"])
        for one in lines
        if one["event"] == "audit"
    ]


async def test_who_has_made_and_revoked_keys(guarded: Guarded) -> None:
    with capture_logs() as lines:
        async with guarded.client(guarded.first_key) as admin:
            (first,) = await admin.keys()
            made = await admin.create_key(role="user", tenant="acme")
            await admin.revoke_key(made.key.key_id)
            with pytest.raises(errors.KeyNotFound):
                await admin.revoke_key("key-none")
    who = first.key_id
    assert audited(lines) == [
        ("KeyService/CreateKey", who, {"tenant": "acme", "key.key_id": made.key.key_id}, "OK"),
        ("KeyService/RevokeKey", who, {"key_id": made.key.key_id}, "OK"),
        ("KeyService/RevokeKey", who, {"key_id": "key-none"}, "KEY_NOT_FOUND"),
    ]
    line = next(one for one in lines if one["event"] == "audit")
    assert (line["tenant"], line["role"]) == ("default", "admin")
    assert line["peer"].startswith("ipv4:127.0.0.1:")


async def test_who_was_refused(guarded: Guarded) -> None:
    async with guarded.client(guarded.first_key) as admin:
        user = await admin.create_key(role="user")
    with capture_logs() as lines:
        for secret in (user.secret, "sllm_nobodys"):
            async with guarded.client(secret) as caller:
                for call in (caller.deploy("tiny", "/models/tiny"), caller.nodes()):
                    with pytest.raises((errors.PermissionDenied, errors.Unauthenticated)):
                        await call
    assert audited(lines) == [
        ("DeploymentService/Deploy", user.key.key_id, {}, "PERMISSION_DENIED"),
        ("DeploymentService/Deploy", None, {}, "UNAUTHENTICATED"),
    ]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with cluster_of(tmp_path) as one:
        yield one


async def test_what_is_done_where_nobody_is_asked(cluster: Cluster) -> None:
    """The names of what is changed, and nothing else of what was sent."""
    node: FakeNode = await cluster.add_node()
    with capture_logs() as lines:
        await cluster.caller.deploy(source="s3://models/tiny?secret=planted")
        await cluster.caller.complete(text="a planted prompt")
        drain = cluster_pb.DrainNodeRequest(node_id=node.node_id, force=True)
        await cluster.caller.stream("DrainNode", drain)
        await cluster.caller.delete("tiny")
    assert audited(lines) == [
        ("DeploymentService/Deploy", "", {"name": "tiny"}, "OK"),
        ("ClusterService/DrainNode", "", {"node_id": "n1"}, "OK"),
        ("DeploymentService/DeleteDeployment", "", {"name": "tiny"}, "OK"),
    ]
    written = [line for line in lines if line["event"] == "audit"]
    assert "planted" not in repr(written)


async def test_a_batch_is_named_by_its_answer_and_who_leaves_is_told(cluster: Cluster) -> None:
    await cluster.add_node()
    await cluster.caller.deploy()
    pin = cluster_pb.PinRequest(deployment="tiny", node_id="n1", tier=types_pb.TIER_DRAM)
    with capture_logs() as lines:
        with pytest.raises(errors.InvalidArgument):
            await cluster.caller.submit([], batch_id="b1")
        async with rpc.channel(cluster.address) as channel:
            call = ClusterServiceStub(channel).Pin(pin)
            await call.read()
            call.cancel()
        await assert_eventually(lambda: len(audited(lines)) == 2)
    refused, left = audited(lines)
    assert (refused[0], refused[3]) == ("BatchService/SubmitBatch", "INVALID_ARGUMENT")
    assert left[0] == "ClusterService/Pin"


def test_what_a_rule_names_is_in_the_messages_of_its_method() -> None:
    for method in METHODS:
        for path in RULES[method.path].changes if method.server == "control" else ():
            in_request = _has(method.request.DESCRIPTOR, path)
            assert in_request or _has(method.response.DESCRIPTOR, path), (method.path, path)


def _has(message: Any, path: str) -> bool:
    first, _, rest = path.partition(".")
    field = message.fields_by_name.get(first)
    return field is not None and (not rest or _has(field.message_type, rest))


async def test_of_a_name_without_end_a_part_is_written(cluster: Cluster) -> None:
    with capture_logs() as lines, pytest.raises(errors.DeploymentNotFound):
        await cluster.caller.delete("n" * 100_000)
    assert audited(lines)[0][2] == {"name": "n" * 256}


async def test_for_whom_a_call_was_passed_on_is_told_beside_its_peer(cluster: Cluster) -> None:
    request = deployment_pb.DeleteDeploymentRequest(name="none")
    metadata = [(rpc.FORWARDED_HEADER, "ipv4:10.0.0.9:1")]
    with capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError):
        await cluster.caller.deployments.DeleteDeployment(request, metadata=metadata)
    (line,) = [one for one in lines if one["event"] == "audit"]
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["forwarded_for"] == "ipv4:10.0.0.9:1"
