"""Streams that have begun, and what becomes of their caller's key meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb

import sllm
from sllm import errors, rpc
from sllm.control.access import expiry
from sllm.control.access.rules import RULES
from tests.control.clusters import SECONDS, cluster_of
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually


async def test_a_stream_goes_on_when_its_key_is_revoked(tmp_path: Path) -> None:
    """It was let in; the next one is not."""
    async with cluster_of(tmp_path, auth=True) as cluster:
        node = FakeNode("n1")
        await node.start(cluster.address)
        secret = (tmp_path / "admin-key").read_text().strip()
        async with sllm.AsyncClient(cluster.address, api_key=secret) as admin:
            await assert_eventually(admin.nodes)
            await admin.deploy("tiny", "file:///models/tiny")
            user = await admin.create_key(role="user")
            node.script.before_finish.shut()
            async with (
                sllm.AsyncClient(cluster.address, api_key=user.secret) as caller,
                caller.generate("tiny", "hello") as stream,
            ):
                while not isinstance(await stream.receive(), sllm.Tokens):
                    pass
                await admin.revoke_key(user.key.key_id)
                with pytest.raises(errors.Unauthenticated):
                    await caller.complete("tiny", "hello")
                node.script.before_finish.open()
                assert (await stream.result()).finish_reason
        await node.leave()
        await node.die()


async def test_a_watch_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no other end, whether anything changes meanwhile or not."""
    monkeypatch.setattr(expiry, "_LOOK_SECONDS", 0.05)
    async with cluster_of(tmp_path, auth=True) as cluster:
        secret = (tmp_path / "admin-key").read_text().strip()
        node = FakeNode("n1")
        await node.start(cluster.address)
        async with sllm.AsyncClient(cluster.address, api_key=secret) as admin:
            await assert_eventually(admin.nodes)
            await admin.deploy("tiny", "file:///models/tiny")
            made = await admin.create_key(role="operator")
            shown = [("authorization", f"Bearer {made.secret}")]
            watches = [
                cluster.caller.cluster.WatchCluster(
                    cluster_pb.WatchClusterRequest(), metadata=shown
                ),
                cluster.caller.deployments.WatchDeployment(
                    deployment_pb.WatchDeploymentRequest(name="tiny"), metadata=shown
                ),
            ]
            one = deployment_pb.WatchDeploymentRequest(name="tiny")
            others = [("authorization", f"Bearer {secret}")]
            goes_on = cluster.caller.deployments.WatchDeployment(one, metadata=others)
            for watch in (*watches, goes_on):
                assert await watch.read() is not grpc.aio.EOF
            await admin.nodes()
            await admin.revoke_key(made.key.key_id)
            for watch in watches:
                with pytest.raises(errors.Unauthenticated):
                    await _to_end(watch)
            await admin.deploy("tiny", "file:///models/tiny", keep_alive=5.0)
            assert await goes_on.read() is not grpc.aio.EOF
        await node.leave()
        await node.die()


async def _to_end(watch: Any) -> None:
    with rpc.typed_errors():
        async with asyncio.timeout(SECONDS):
            while await watch.read() is not grpc.aio.EOF:
                pass


def test_every_watch_ends_with_its_key() -> None:
    endless = {path for path, rule in RULES.items() if rule.endless}
    watches = {path for path in RULES if "/Watch" in path and "grpc.health" not in path}
    assert endless == watches
