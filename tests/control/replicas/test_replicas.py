"""Several control planes on a real etcd: whichever is asked, the one that leads answers."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import deployment_service_pb2 as deployment_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb

import sllm
from sllm import errors, rpc
from sllm.control.config import ControlConfig
from sllm.control.replicas.forwarding import FORWARDED
from sllm.control.server import running
from tests.control.clusters import SECONDS
from tests.control.fake_node import FakeNode
from tests.control.replicas.replicas import Replica, Replicas, replicas_of
from tests.etcd import EtcdServer, running_etcd
from tests.support import assert_eventually
from tests.tls.certs import Certs


async def test_whichever_is_asked_the_leader_answers(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    node = FakeNode("n1")
    await node.start(leader.address)
    try:
        await assert_eventually(lambda: follower.caller.nodes())
        await follower.caller.deploy("tiny")
        assert (await leader.caller.deployment("tiny")).name == "tiny"
        stream = await follower.caller.complete("tiny", max_tokens=5)
        assert (stream.kinds[0], stream.kinds[-1]) == ("queued", "finished")
        with pytest.raises(errors.DeploymentNotFound, match="no deployment is named 'nobody'"):
            await follower.caller.complete("nobody")
        with pytest.raises(errors.DeploymentNotFound):
            await follower.caller.deployment("nobody")
    finally:
        await node.die()


async def test_what_is_no_message_is_its_callers_error(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    for replica in (leader, follower):
        for kind, method in (("unary_unary", "Deploy"), ("unary_stream", "WatchDeployment")):
            ask = getattr(replica.channel, kind)(f"/serverlessllm.v1.DeploymentService/{method}")
            with pytest.raises(errors.InvalidArgument, match="not a message"), rpc.typed_errors():
                await _end_of(ask(b"\xff", timeout=SECONDS))


async def _end_of(call: Any) -> None:
    if isinstance(call, grpc.aio.UnaryUnaryCall):
        await call
    else:
        async for _ in call:
            pass


async def test_a_caller_that_leaves_a_follower_ends_its_request(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    node = FakeNode("n1")
    await node.start(leader.address)
    try:
        await assert_eventually(lambda: follower.caller.nodes())
        await follower.caller.deploy("tiny")
        node.script.tokens_before_gate = 2
        node.script.amid_tokens.shut()
        stream = await follower.caller.generate("tiny", max_tokens=50).until("tokens")
        stream.call.cancel()
        await assert_eventually(lambda: not node.running)
    finally:
        await node.die()


async def test_a_node_of_a_follower_is_known_as_soon_as_that_leads(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    nodes = FakeNode("n1"), FakeNode("n2")
    await nodes[0].start(leader.address)
    await nodes[1].start(follower.address)
    try:
        await assert_eventually(lambda: leader.caller.nodes())
        assert [one.node_id for one in await leader.caller.nodes()] == ["n1"]
        await leader.caller.deploy("tiny")
        await pair.remove(leader)
        await assert_eventually(lambda: follower.caller.nodes())
        assert [one.node_id for one in await follower.caller.nodes()] == ["n2"]
        assert (await follower.caller.deployment("tiny")).name == "tiny", "deployments are lost"
        await follower.caller.complete("tiny", max_tokens=5)
    finally:
        for node in nodes:
            await node.die()


async def test_a_stream_goes_on_at_the_next_leader(pair: Replicas) -> None:
    """Its caller knows both; its node reports to both."""
    leader, follower = await pair.leader(), await pair.follower()
    node = FakeNode("n1")
    await node.start(leader.address)
    try:
        async with sllm.AsyncClient(f"{leader.address},{follower.address}") as client:
            await client.deploy("tiny", "file:///models/tiny")
            await assert_eventually(lambda: client.nodes())
            node.script.tokens_before_gate = 2
            node.script.amid_tokens.shut()
            stream = client.generate("tiny", "hello", max_tokens=6)
            seen = [await anext(stream)]
            while not isinstance(seen[-1], sllm.Tokens):
                seen.append(await anext(stream))
            await node.leave()
            node.begin_reports(follower.address)
            await pair.remove(leader)
            node.script.amid_tokens.open()
            result = await stream.result()
            assert len(result.token_ids) == 6
    finally:
        await node.die()


async def test_calls_wait_for_a_leader(etcd_server: EtcdServer, tmp_path: Path) -> None:
    """Also those of a control plane that is the first to come up."""
    async with replicas_of(tmp_path, etcd_server.config()) as replicas:
        await asyncio.gather(*(one.caller.nodes() for one in replicas.all))


async def test_without_etcd_nobody_leads_and_callers_are_told(tmp_path: Path) -> None:
    with running_etcd() as server:
        patience = {"leader_patience_seconds": 0.5, "leader_lease_seconds": 2}
        async with replicas_of(tmp_path, server.config(), **patience) as replicas:
            leader = await replicas.leader()
            server.pause()
            await assert_eventually(lambda: _refusal(leader))
            assert "a majority of etcd's members" in await _refusal(leader)
            server.go_on()

            async def serves() -> bool:
                return not await _refusal(leader)

            await assert_eventually(serves)


async def _refusal(replica: Replica) -> str:
    """Why it answers nothing; empty if it does."""
    try:
        await replica.caller.ask("ListNodes", cluster_pb.ListNodesRequest())
    except errors.NoLeader as error:
        return error.message
    return ""


async def test_a_call_is_passed_on_once(pair: Replicas) -> None:
    """Two that take each other for the leader do not keep a call to themselves."""
    follower = await pair.follower()
    request = deployment_pb.ListDeploymentsRequest()
    with pytest.raises(errors.NotLeader), rpc.typed_errors():
        await follower.caller.deployments.ListDeployments(
            request, metadata=((FORWARDED, "1"),), timeout=SECONDS
        )


async def test_a_batch_goes_on_at_the_next_leader(brisk: Replicas) -> None:
    """Each of its requests is answered once."""
    pair = brisk
    leader, follower = await pair.leader(), await pair.follower()
    node = FakeNode("n1")
    await node.start(leader.address)
    try:
        await assert_eventually(lambda: leader.caller.nodes())
        await leader.caller.deploy("tiny", max_concurrency=4)
        node.script.tokens_before_gate = 2
        node.script.amid_tokens.shut()
        asked = [inference_pb.GenerateRequest(deployment="tiny", text="hello", max_tokens=5)] * 40
        await follower.caller.submit(asked, "many")
        await assert_eventually(lambda: len(node.running) == 4)
        await node.leave()
        node.begin_reports(follower.address)
        await pair.remove(leader)
        node.script.amid_tokens.open()
        results = await follower.caller.results("many")
        assert [one.number for one in results] == list(range(40))
        assert {one.request_id for one in results} == set(map(str, range(40)))
        assert all(list(one.answer.tokens.token_ids) == [0, 1, 2, 3, 4] for one in results)
        assert len(await follower.caller.results("many")) == 40
    finally:
        await node.die()


# --- who is calling ------------------------------------------------------------------------------


def _shows(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


async def test_whoever_leads_asks_who_is_calling(etcd_server: EtcdServer, tmp_path: Path) -> None:
    """Also those who called before anybody led, and those who ask another control plane."""
    listing = deployment_pb.ListDeploymentsRequest()
    async with replicas_of(tmp_path, etcd_server.config(), auth=True) as pair:
        leader, follower = await pair.leader(), await pair.follower()
        await assert_eventually((tmp_path / "admin-key").exists)
        shown = _shows((tmp_path / "admin-key").read_text().strip())
        for replica in (leader, follower):
            deployments = replica.caller.deployments
            with pytest.raises(errors.Unauthenticated), rpc.typed_errors():
                await deployments.ListDeployments(listing, timeout=SECONDS)
            await deployments.ListDeployments(listing, timeout=SECONDS, metadata=shown)
        await pair.remove(leader)  # the next call waits for whoever comes to lead
        with pytest.raises(errors.Unauthenticated), rpc.typed_errors():
            await follower.caller.deployments.ListDeployments(listing, timeout=SECONDS)
        await follower.caller.deployments.ListDeployments(listing, timeout=SECONDS, metadata=shown)


async def test_names_are_of_their_tenants_whichever_control_plane_is_asked(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    async with replicas_of(tmp_path, etcd_server.config(), auth=True) as pair:
        leader, follower = await pair.leader(), await pair.follower()
        await assert_eventually((tmp_path / "admin-key").exists)
        key = (tmp_path / "admin-key").read_text().strip()
        node = FakeNode("n1")
        await node.start(leader.address)
        try:
            async with sllm.AsyncClient(follower.address, api_key=key) as admin:
                await assert_eventually(admin.nodes)
                secret = (await admin.create_key(tenant="acme", role="operator")).secret
                async with sllm.AsyncClient(follower.address, api_key=secret) as acme:
                    await acme.deploy("llama", "file:///models/a")
                    assert (await acme.complete("llama", "hello")).text
                    with pytest.raises(errors.DeploymentNotFound, match="named 'other';"):
                        await acme.deployment("other")
                assert [one.name for one in await admin.deployments()] == ["acme:llama"]
        finally:
            await node.die()


async def test_one_that_others_could_not_reach_is_refused(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    config = ControlConfig(
        tmp_path, listen_address="0.0.0.0:0", insecure=True, etcd=etcd_server.config()
    )
    with pytest.raises(errors.InvalidArgument, match="say --advertise"):
        async with running(config):
            pass


async def test_they_know_each_other_by_their_certificates(
    etcd_server: EtcdServer, tmp_path: Path
) -> None:
    certs = Certs(tmp_path / "ca")
    async with replicas_of(tmp_path, etcd_server.config(), certs=certs) as replicas:
        leader, follower = await replicas.leader(), await replicas.follower()
        assert leader.peers != leader.address
        assert await follower.caller.nodes() == []
        with pytest.raises(errors.DeploymentNotFound):
            await follower.caller.deployment("nobody")
