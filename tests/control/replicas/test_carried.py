"""One carried stream, with a real node and a leader that says what the test wants."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import replica_service_pb2 as pb
from serverlessllm.v1 import types_pb2

from sllm import errors, rpc
from sllm.clock import MonotonicClock
from sllm.control.replicas.carried import Carried
from sllm.control.replicas.carrying import Carrying, NotCarried
from sllm.control.replicas.forwarding import LeaderGone
from sllm.control.replicas.node_links import NodeLinks
from sllm.control.replicas.replica_service import _Stream
from sllm.control.replicas.transcript import Transcript
from tests.control.fake_node import FakeNode
from tests.support import assert_eventually

TOKENS = 12
HELD = 3


class Leader:
    """What each call of Carry is told, and what it tells."""

    def __init__(self) -> None:
        self.begins: list[pb.CarryBegin] = []
        self.outputs: list[list[node_pb.CallOutput]] = []
        self.says: asyncio.Queue[pb.CarryResponse | Exception] = asyncio.Queue()
        self.there = True

    async def carry(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        if not self.there:
            raise LeaderGone("nobody leads")
        self.begins.append(pb.CarryRequest.FromString(await anext(requests)).begin)
        outputs: list[node_pb.CallOutput] = []
        self.outputs.append(outputs)
        listening = asyncio.create_task(self._listen(requests, outputs))
        try:
            while True:
                said = await self.says.get()
                if isinstance(said, Exception):
                    raise said
                yield said.SerializeToString()
        finally:
            listening.cancel()

    async def _listen(
        self, requests: AsyncIterator[bytes], outputs: list[node_pb.CallOutput]
    ) -> None:
        async for request in requests:
            output = pb.CarryRequest.FromString(request).output
            outputs.append(output)
            told = [one for one in outputs if one.event.HasField("tokens")]
            if output.HasField("event") and (
                not output.event.HasField("tokens") or told == [output]
            ):
                self.says.put_nowait(pb.CarryResponse(event=output.event))

    def order(self, node: FakeNode, number: int = 1, term: int = 1) -> None:
        """Has the node called, as a leader does that goes on after what its follower has said."""
        begin = self.begins[-1].request
        call = node_pb.CallBegin(number=number, request=begin)
        call.request.instance_id = "one"
        order = pb.CarryOpen(node_id="n1", node_address=node.address, term=term, call=call)
        self.says.put_nowait(pb.CarryResponse(open=order))


class Caller:
    """Reads a carried stream beside the test."""

    def __init__(self, leader: Leader, patience: float = 10.0) -> None:
        request = inference_pb.GenerateRequest(deployment="tiny", text="hi", max_tokens=TOKENS)
        self.nodes = NodeLinks(rpc.channel)
        clock = MonotonicClock()
        self.carried = Carried(Transcript(request), leader.carry, self.nodes, clock, patience)
        self.events: list[inference_pb.GenerateResponse] = []
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async with aclosing(self.carried.events()) as events:
            async for event in events:
                self.events.append(event)

    @property
    def token_ids(self) -> list[int]:
        return [one for event in self.events for one in event.tokens.token_ids]

    async def had(self, count: int) -> None:
        await assert_eventually(lambda: len(self.token_ids) >= count)

    def check_whole(self) -> None:
        assert self.token_ids == list(range(TOKENS))
        assert [one.sequence for one in self.events] == list(range(len(self.events)))
        assert self.events[-1].HasField("finished")


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode("n1")
    await node.start("127.0.0.1:1")  # it reports to nobody
    ready = types_pb2.INSTANCE_STATE_READY
    node.instances["one"] = types_pb2.Instance(instance_id="one", state=ready)
    node.script.tokens_before_gate = HELD
    node.script.amid_tokens.shut()
    yield node
    await node.die()


@pytest.fixture
def leader() -> Leader:
    return Leader()


@pytest.fixture
async def caller(leader: Leader, node: FakeNode) -> AsyncIterator[Caller]:
    """One that has had the first tokens straight from the node."""
    caller = Caller(leader)
    await assert_eventually(lambda: leader.begins)
    leader.order(node)
    await caller.had(HELD)
    yield caller
    caller.reading.cancel()
    await asyncio.gather(caller.reading, return_exceptions=True)
    await caller.nodes.close()


async def test_tokens_go_on_while_nobody_leads(
    leader: Leader, node: FakeNode, caller: Caller
) -> None:
    leader.there = False
    leader.says.put_nowait(LeaderGone("it was killed"))
    node.script.amid_tokens.open()
    await caller.had(TOKENS)
    assert not caller.reading.done(), "it has ended without a leader's word"
    leader.there = True
    await assert_eventually(lambda: len(leader.begins) == 2)
    begin = leader.begins[1]
    assert list(begin.request.continuation.token_ids) == list(range(TOKENS))
    assert begin.request.resume_from_sequence == len(caller.events)
    assert begin.instance_id == "one"
    leader.order(node, term=2)
    await caller.reading
    caller.check_whole()
    assert len([one for one in node.calls if isinstance(one, inference_pb.GenerateRequest)]) == 1


async def test_the_next_leader_hears_what_came_before_its_order(
    leader: Leader, node: FakeNode, caller: Caller
) -> None:
    leader.says.put_nowait(errors.ShuttingDown("it goes down"))
    await assert_eventually(lambda: len(leader.begins) == 2)
    assert len(leader.begins[1].request.continuation.token_ids) == HELD
    node.script.amid_tokens.open()
    await caller.had(TOKENS)
    leader.order(node, term=2)
    await caller.reading
    caller.check_whole()
    told = [one.event.tokens for one in leader.outputs[1] if one.event.HasField("tokens")]
    assert [(one.first_index, len(one.token_ids)) for one in told] == [(HELD, TOKENS - HELD)]


async def test_a_node_that_obeys_a_later_leader_is_called_again_by_its_order(
    leader: Leader, node: FakeNode, caller: Caller
) -> None:
    await node._server.stop(0)
    await assert_eventually(lambda: any(one.HasField("failure") for one in leader.outputs[0]))
    assert from_failure(leader.outputs[0]) == "NODE_LOST"
    leader.says.put_nowait(errors.NotLeader("another one leads"))
    await assert_eventually(lambda: len(leader.begins) == 2)
    other = FakeNode("n1")
    await other.start("127.0.0.1:1")
    other.instances.update(node.instances)
    leader.order(other, term=2)
    await caller.reading
    caller.check_whole()
    await other.die()


def from_failure(outputs: list[node_pb.CallOutput]) -> str:
    return next(one.failure.reason for one in outputs if one.HasField("failure"))


async def test_what_is_given_up_ends_with_all_that_came_before(
    leader: Leader, node: FakeNode, caller: Caller
) -> None:
    leader.says.put_nowait(pb.CarryResponse(give_up=1))
    await assert_eventually(lambda: any(one.HasField("failure") for one in leader.outputs[0]))
    await assert_eventually(lambda: not node.running)
    told = [one.event.tokens for one in leader.outputs[0] if one.event.HasField("tokens")]
    assert sum(len(one.token_ids) for one in told) == len(caller.token_ids) == HELD


async def test_without_a_leader_and_without_tokens_it_ends(node: FakeNode) -> None:
    leader = Leader()
    leader.there = False
    caller = Caller(leader, patience=0.3)
    with pytest.raises(errors.NoLeader):
        await caller.reading
    await caller.nodes.close()


async def test_a_control_plane_that_goes_down_says_so(caller: Caller, node: FakeNode) -> None:
    caller.carried.end()
    with pytest.raises(errors.ShuttingDown):
        await caller.reading
    await assert_eventually(lambda: not node.running)


async def test_a_leader_that_refuses_is_heard(leader: Leader, caller: Caller) -> None:
    leader.says.put_nowait(errors.Cancelled("somebody has cancelled it"))
    with pytest.raises(errors.Cancelled):
        await caller.reading


@pytest.mark.parametrize(
    "end", [grpc.aio.AbortError("it was told already"), RuntimeError("a fault of ours")]
)
async def test_whatever_ends_the_leaders_part_ends_the_stream(
    leader: Leader, caller: Caller, end: Exception
) -> None:
    """This control plane has come to lead, and refuses its caller as any other."""
    leader.says.put_nowait(end)
    with pytest.raises(type(end)):
        await asyncio.wait_for(caller.reading, 10.0)


async def test_a_stream_that_was_begun_is_not_begun_again_by_an_earlier_version(
    leader: Leader, node: FakeNode
) -> None:
    """Its caller reads on, and gets nothing twice."""
    clock = MonotonicClock()
    carrying = Carrying(rpc.channel, lambda requests, _: leader.carry(requests), clock, 10.0)
    request = inference_pb.GenerateRequest(deployment="tiny", text="hi", max_tokens=TOKENS)
    had = asyncio.Event()

    async def read() -> None:
        async with aclosing(carrying.answers(request.SerializeToString(), None)) as events:
            async for _ in events:
                had.set()

    none = grpc.aio.Metadata()
    unknown = grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, none, none, "Method not found!")
    leader.says.put_nowait(unknown)
    with pytest.raises(NotCarried):
        await read()
    reading = asyncio.create_task(read())
    await assert_eventually(lambda: len(leader.begins) == 2)
    leader.order(node)
    await assert_eventually(had.is_set)
    leader.says.put_nowait(unknown)
    with pytest.raises(errors.NoLeader, match="read on"):
        await asyncio.wait_for(reading, 10.0)
    await carrying.close()


async def test_connections_that_nothing_uses_are_closed(
    leader: Leader, node: FakeNode, caller: Caller, monkeypatch: Any
) -> None:
    monkeypatch.setattr("sllm.control.replicas.node_links._IDLE_SECONDS", 0.01)
    node.script.amid_tokens.open()
    await caller.reading
    caller.check_whole()
    await assert_eventually(lambda: not caller.nodes.open_links)


async def test_whatever_ends_a_followers_part_ends_the_leaders() -> None:
    """Nothing would be heard of it any more."""

    async def requests() -> AsyncIterator[pb.CarryRequest]:
        raise RuntimeError("a fault of ours")
        yield pb.CarryRequest()

    async def events() -> AsyncGenerator[inference_pb.GenerateResponse]:
        await asyncio.Event().wait()
        yield inference_pb.GenerateResponse()

    async with aclosing(_Stream(pb.CarryBegin(), events()).run(requests())) as told:
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await asyncio.wait_for(anext(told), 10.0)
