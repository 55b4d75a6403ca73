"""Generations that a control plane carries while another leads: none of their tokens is lost."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import cluster_service_pb2 as cluster_pb
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import replica_service_pb2 as pb
from serverlessllm.v1.replica_service_pb2_grpc import ReplicaServiceStub

from sllm import errors, rpc
from sllm.control.replicas.carrying import CARRY
from sllm.control.replicas.handlers import Handlers
from sllm.tls.identity import Role
from tests.control.clusters import SECONDS, Caller, Stream
from tests.control.fake_node import FakeNode
from tests.control.replicas.replicas import Replica, Replicas, replicas_of
from tests.etcd import EtcdServer
from tests.support import assert_eventually
from tests.tls.certs import Certs, dial_with

TOKENS = 40


@asynccontextmanager
async def nodes_of(replica: Replica, *names: str) -> AsyncIterator[list[FakeNode]]:
    """Nodes that have "tiny", as a control plane knows them."""
    nodes = [FakeNode(name) for name in names]
    for node in nodes:
        await node.start(replica.address)
    try:

        async def all_there() -> bool:
            return len(await replica.caller.nodes()) == len(nodes)

        await assert_eventually(all_there)
        await replica.caller.deploy("tiny", max_replicas=len(nodes))
        yield nodes
    finally:
        for node in nodes:
            await node.die()


def check_whole(stream: Stream, count: int = TOKENS) -> None:
    """Nothing is missing, and nothing came twice."""
    assert stream.token_ids == list(range(count))
    assert [event.sequence for event in stream.events] == list(range(len(stream.events)))
    text = "".join(event.tokens.text for event in stream.events)
    assert text == "".join(f"{token} " for token in range(count))
    assert stream.kinds[-1] == "finished"
    assert stream.events[-1].finished.usage.completion_tokens == count


async def held(node: FakeNode, at: Caller, tokens: int = 3, **fields: Any) -> Stream:
    """A stream whose node has given some tokens, and waits."""
    node.script.tokens_before_gate = tokens
    node.script.amid_tokens.shut()
    stream = at.generate("tiny", max_tokens=TOKENS, **fields)
    return await stream.until_tokens(tokens)


async def test_a_carried_stream_is_what_the_leader_would_give(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    async with nodes_of(leader, "n1"):
        streams = [
            await one.caller.generate("tiny", max_tokens=TOKENS, prompt_logprobs=0).end()
            for one in (leader, follower)
        ]
        for stream in streams:
            check_whole(stream)
            told = [one.prompt_logprobs for one in stream.events if one.HasField("prompt_logprobs")]
            assert [token.token_id for one in told for token in one.tokens] == [7, 8]
        receipt = streams[1].events[-1].finished.receipt
        assert receipt.node_id == "n1"
        assert receipt.deployment == "tiny"
        assert len({one.events[-1].finished.usage.prompt_tokens for one in streams}) == 1


async def test_it_goes_on_when_its_control_plane_comes_to_lead(brisk: Replicas) -> None:
    leader, follower = await brisk.leader(), await brisk.follower()
    async with nodes_of(leader, "n1") as (node,):
        stream = await held(node, follower.caller)
        await node.leave()
        node.begin_reports(follower.address)
        await brisk.remove(leader)
        node.script.amid_tokens.open()
        check_whole(await stream.end())


async def test_it_goes_on_when_a_third_one_comes_to_lead(brisk: Replicas) -> None:
    leader, follower = await brisk.leader(), await brisk.follower()
    async with nodes_of(leader, "n1") as (node,):
        stream = await held(node, follower.caller)
        third = await brisk.add()
        await node.leave()
        await brisk.remove(leader)
        node.begin_reports((await brisk.leader()).address)
        node.script.amid_tokens.open()
        check_whole(await stream.end())
        assert third in brisk.all


@pytest.mark.parametrize("error", [errors.WorkerDied("it was killed"), errors.ShuttingDown("gone")])
async def test_it_goes_on_elsewhere_when_its_worker_dies(
    pair: Replicas, error: errors.SllmError
) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    async with nodes_of(leader, "n1", "n2") as nodes:
        for node in nodes:
            node.script.tokens_before_gate = 7
        nodes[0].script.amid_errors = [error]
        nodes[1].script.amid_errors = [error]
        stream = await follower.caller.generate("tiny", max_tokens=TOKENS).end()
        check_whole(stream)
        assert "migrated" in stream.kinds


async def test_it_follows_a_migration(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    async with nodes_of(leader, "n1", "n2") as nodes:
        for node in nodes:
            node.script.tokens_before_gate = 7
            node.script.amid_tokens.shut()
        stream = await follower.caller.generate("tiny", max_tokens=TOKENS).until_tokens(7)
        there = next(one for one in nodes if one.running)
        (request_id,) = there.running
        to = next(one.node_id for one in nodes if one is not there)
        asked = cluster_pb.MigrateRequest(request_id=request_id, to_node_id=to)
        async for _ in leader.caller.cluster.Migrate(asked, timeout=SECONDS):
            pass
        for node in nodes:
            node.script.amid_tokens.open()
        check_whole(await stream.end())
        assert stream.kinds.count("migrated") == 1


async def test_it_goes_on_when_its_node_dies(brisk: Replicas) -> None:
    leader, follower = await brisk.leader(), await brisk.follower()
    async with nodes_of(leader, "n1", "n2") as nodes:
        for node in nodes:
            node.script.tokens_before_gate = 7
            node.script.amid_tokens.shut()
        stream = await follower.caller.generate("tiny", max_tokens=TOKENS).until_tokens(7)
        there = next(one for one in nodes if one.running)
        await there.die()
        for node in nodes:
            node.script.amid_tokens.open()
        check_whole(await stream.end())


async def test_it_leaves_a_node_that_the_leader_hears_no_more_of(brisk: Replicas) -> None:
    leader, follower = await brisk.leader(), await brisk.follower()
    async with nodes_of(leader, "n1", "n2") as nodes:
        for node in nodes:
            node.script.tokens_before_gate = 7
            node.script.amid_tokens.shut()
        stream = await follower.caller.generate("tiny", max_tokens=TOKENS).until_tokens(7)
        there = next(one for one in nodes if one.running)
        await there.leave()  # it serves on
        other = next(one for one in nodes if one is not there)
        other.script.amid_tokens.open()
        check_whole(await stream.end())


async def test_it_is_cancelled_wherever_it_is_asked_for(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    async with nodes_of(leader, "n1") as (node,):
        for replica in (leader, follower):
            stream = await held(node, follower.caller, request_id="mine")
            await replica.caller.cancel("mine")
            with pytest.raises(errors.Cancelled):
                await stream.end()
            await assert_eventually(lambda: not node.running)


async def test_its_caller_reads_on_at_the_leader_when_its_control_plane_ends(
    brisk: Replicas,
) -> None:
    leader, follower = await brisk.leader(), await brisk.follower()
    async with nodes_of(leader, "n1") as (node,), rpc.channel(follower.address) as channel:
        stream = await held(node, Caller(channel), request_id="mine")
        await brisk.remove(follower)
        with pytest.raises(errors.ShuttingDown):
            await stream.end()
        node.script.amid_tokens.open()
        started = next(one.started for one in stream.events if one.HasField("started"))
        had = inference_pb.Continuation(token_ids=stream.token_ids, identity=started.identity)
        rest = leader.caller.generate(
            "tiny",
            max_tokens=TOKENS,
            request_id="mine",
            continuation=had,
            resume_from_sequence=len(stream.events),
        )
        stream.events += (await rest.end()).events
        check_whole(stream)


async def test_several_samples_are_passed_on(pair: Replicas) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    async with nodes_of(leader, "n1"):
        stream = await follower.caller.generate("tiny", max_tokens=4, n=3).end()
        assert sorted(stream.token_ids) == sorted([0, 1, 2, 3] * 3)


async def test_to_a_leader_of_an_earlier_version_it_is_passed_on(
    pair: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = await pair.leader(), await pair.follower()
    find = Handlers.find

    def of_before(self: Handlers, call: grpc.HandlerCallDetails) -> Any:
        return None if call.method == CARRY else find(self, call)

    monkeypatch.setattr(Handlers, "find", of_before)
    async with nodes_of(leader, "n1"):
        check_whole(await follower.caller.generate("tiny", max_tokens=TOKENS).end())


async def test_what_the_leader_refuses_is_refused(pair: Replicas) -> None:
    follower = await pair.follower()
    with pytest.raises(errors.DeploymentNotFound, match="no deployment is named 'nobody'"):
        await follower.caller.generate("nobody").end()
    async with nodes_of(await pair.leader(), "n1"):
        with pytest.raises(errors.InvalidArgument):
            await follower.caller.generate("tiny", max_tokens=-1).end()


# --- the protocol --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        None,
        pb.CarryRequest(),
        pb.CarryRequest(output=node_pb.CallOutput(number=1)),
        pb.CarryRequest(begin=pb.CarryBegin(request=inference_pb.GenerateRequest(n=2))),
    ],
    ids=["nothing", "empty", "an output", "several samples"],
)
async def test_what_is_no_beginning_is_refused(
    pair: Replicas, first: pb.CarryRequest | None
) -> None:
    leader = await pair.leader()
    call: Any = ReplicaServiceStub(leader.channel).Carry(timeout=SECONDS)
    if first is not None:
        await call.write(first)
    await call.done_writing()
    with pytest.raises(errors.InvalidArgument), rpc.typed_errors():
        await call.read()


async def test_outputs_that_make_no_sense_end_their_request_alone(pair: Replicas) -> None:
    leader = await pair.leader()
    async with nodes_of(leader, "n1"):
        request = inference_pb.GenerateRequest(deployment="tiny", text="hello", max_tokens=5)
        call: Any = ReplicaServiceStub(leader.channel).Carry(timeout=SECONDS)
        await call.write(pb.CarryRequest(begin=pb.CarryBegin(request=request)))
        while not (response := await call.read()).HasField("open"):
            pass
        for number in (-1, 99, response.open.call.number):
            tokens = inference_pb.Tokens(first_index=3, token_ids=[1])
            event = inference_pb.GenerateResponse(tokens=tokens)
            output = node_pb.CallOutput(number=number, event=event)
            await call.write(pb.CarryRequest(output=output))
        with pytest.raises(errors.Internal):
            await _to_the_end(call)
        check_whole(await leader.caller.generate("tiny", max_tokens=TOKENS).end())


async def test_control_planes_alone_may_carry(etcd_server: EtcdServer, tmp_path: Path) -> None:
    certs = Certs(tmp_path / "ca")
    async with replicas_of(tmp_path, etcd_server.config(), certs=certs) as replicas:
        leader = await replicas.leader()
        for role, refusal in (
            (Role.NODE, errors.PermissionDenied),
            (Role.GATEWAY, errors.PermissionDenied),
            (Role.CONTROL, errors.InvalidArgument),
        ):
            dial = dial_with(certs.of(role), certs.authority, Role.CONTROL)
            async with dial(leader.peers) as channel:
                call: Any = ReplicaServiceStub(channel).Carry(timeout=SECONDS)
                asked = asyncio.create_task(_ask(call, pb.CarryRequest()))
                with pytest.raises(refusal):
                    await _to_the_end(call)
                await asked


async def _ask(call: Any, request: pb.CarryRequest) -> None:
    with suppress(grpc.aio.AioRpcError):  # whoever reads is told
        await call.write(request)
        await call.done_writing()


async def _to_the_end(call: Any) -> None:
    with rpc.typed_errors():
        while await call.read() is not grpc.aio.EOF:
            pass
