"""The router's calls on one node, over a real stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1.node_service_pb2_grpc import NodeServiceStub

from sllm import errors, rpc
from sllm.control.wire.multiplex import GenerateCall, Multiplex
from sllm.control.wire.node_client import Node
from sllm.node.generations.multiplexer import Multiplexer
from tests.control.shapes import facts
from tests.support import assert_eventually

SERVICE = "serverlessllm.v1.NodeService"
SECONDS = 10.0


class Server:
    """A node that gives each request as many tokens as it asks for, and no more than it may."""

    def __init__(self) -> None:
        self.streams = 0
        self.traces: list[str] = []
        self.given: dict[str, int] = {}
        self.left: list[str] = []
        self.may = asyncio.Event()
        self.may.set()

    async def start(self, address: str = "127.0.0.1:0") -> str:
        self._server = rpc.Server()
        multiplex = grpc.stream_stream_rpc_method_handler(
            self._multiplex, pb.MultiplexRequest.FromString, pb.MultiplexResponse.SerializeToString
        )
        handler = grpc.method_handlers_generic_handler(SERVICE, {"Multiplex": multiplex})
        self._server.grpc.add_generic_rpc_handlers((handler,))
        return f"127.0.0.1:{await self._server.start(address, [])}"

    async def stop(self) -> None:
        await self._server.stop(0)

    async def _multiplex(
        self, requests: AsyncIterator[pb.MultiplexRequest], context: Any
    ) -> AsyncIterator[pb.MultiplexResponse]:
        self.streams += 1
        async for step in Multiplexer(self._read).follow(requests):
            yield step

    async def _read(
        self, request: inference_pb.GenerateRequest
    ) -> AsyncGenerator[inference_pb.GenerateResponse]:
        self.traces.append(rpc.trace_headers().get("traceparent", ""))
        try:
            for index in range(request.max_tokens):
                await self.may.wait()
                logprobs = [types_pb.TokenLogprob(logprob=-index)]
                tokens = inference_pb.Tokens(
                    first_index=index, token_ids=[index], text=f"{index} ", logprobs=logprobs
                )
                yield inference_pb.GenerateResponse(tokens=tokens)
                self.given[request.request_id] = index + 1
            if request.max_tokens == 13:
                raise errors.NoCapacity("unlucky", retry_after=2.0)
            yield inference_pb.GenerateResponse(finished=inference_pb.Finished())
        finally:
            self.left.append(request.request_id)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.stop()


@pytest_asyncio.fixture
async def node(server: Server) -> AsyncIterator[Node]:
    node = Node(replace(facts(), address=await server.start()))
    yield node
    await node.close()


def begin(node: Node, request_id: str, tokens: int, **fields: Any) -> GenerateCall:
    request = inference_pb.GenerateRequest(request_id=request_id, max_tokens=tokens, **fields)
    return node.generate(request, SECONDS, {})


async def read(call: GenerateCall) -> list[inference_pb.GenerateResponse]:
    async with asyncio.timeout(SECONDS):
        return [event async for event in call]


def assert_whole(events: list[inference_pb.GenerateResponse], count: int) -> None:
    parts = [event.tokens for event in events[:-1]]
    assert [token for part in parts for token in part.token_ids] == list(range(count))
    assert "".join(part.text for part in parts) == "".join(f"{index} " for index in range(count))
    assert [one.logprob for part in parts for one in part.logprobs] == [-k for k in range(count)]
    assert events[-1].HasField("finished")


async def test_calls_share_one_stream(server: Server, node: Node) -> None:
    calls = [begin(node, str(number), tokens=number) for number in range(1, 9)]
    for number, events in enumerate(await asyncio.gather(*map(read, calls)), 1):
        assert_whole(events, number)
    assert_whole(await read(begin(node, "later", tokens=2)), 2)
    assert server.streams == 1


async def test_a_caller_that_reads_nothing_holds_up_nobody_and_costs_little(
    server: Server, node: Node
) -> None:
    slow = begin(node, "slow", tokens=2_000)
    assert_whole(await read(begin(node, "quick", tokens=50)), 50)
    await assert_eventually(lambda: server.given.get("slow") == 2_000)
    await assert_eventually(lambda: "slow" in server.left)
    assert_whole(await read(begin(node, "next", tokens=5)), 5)  # all of before has come by now
    events = await read(slow)
    assert_whole(events, 2_000)
    assert len(events) < 20, "what waits is put together"


async def test_a_failure_ends_its_call_alone_after_what_it_has_given(
    server: Server, node: Node
) -> None:
    call, other = begin(node, "fails", tokens=13), begin(node, "other", tokens=20)
    await assert_eventually(lambda: "fails" in server.left)
    given = (await anext(call)).tokens.token_ids
    while len(given) < 13:
        given += (await anext(call)).tokens.token_ids
    with pytest.raises(errors.NoCapacity, match="unlucky") as caught:
        await anext(call)
    assert caught.value.retry_after == 2.0
    assert given == list(range(13))
    assert_whole(await read(other), 20)


async def test_hanging_up_ends_the_call_with_its_error_and_is_told_to_the_node(
    server: Server, node: Node
) -> None:
    server.may.clear()
    call, other = begin(node, "leaves", tokens=5), begin(node, "stays", tokens=5)
    reading = asyncio.create_task(read(call))
    await assert_eventually(lambda: len(server.traces) == 2)
    call.hang_up(errors.ShuttingDown("going down"))
    call.hang_up(errors.Cancelled("too late"))
    with pytest.raises(errors.ShuttingDown):
        await reading
    await assert_eventually(lambda: server.left == ["leaves"])
    server.may.set()
    assert_whole(await read(other), 5)


async def test_the_end_of_the_stream_fails_all_and_the_next_call_opens_another(
    server: Server, node: Node
) -> None:
    server.may.clear()
    calls = [begin(node, name, tokens=5) for name in ("a", "b")]
    await assert_eventually(lambda: len(server.traces) == 2)
    await server.stop()
    for call in calls:
        with pytest.raises(errors.NodeLost):
            await read(call)
    assert sorted(server.left) == ["a", "b"]
    server.may.set()
    await server.start(node.address)
    await assert_eventually(lambda: rpc.is_serving(node.address, ""))
    assert_whole(await read(begin(node, "c", tokens=3)), 3)
    assert server.streams == 2


async def test_a_closed_node_fails_what_is_under_way_and_what_comes(
    server: Server, node: Node
) -> None:
    server.may.clear()
    call = begin(node, "a", tokens=5)
    await assert_eventually(lambda: len(server.traces) == 1)
    await node.close()
    for one in (call, begin(node, "b", tokens=5)):
        with pytest.raises(errors.NodeLost):
            await read(one)


async def test_calls_whose_stream_is_given_up_here_go_on_elsewhere(node: Node) -> None:
    """gRPC tells of it as a cancelled call now, and as a status another time."""

    @contextmanager
    def given_up() -> Iterator[None]:
        raise errors.Cancelled("Locally cancelled by application!")
        yield

    stub = NodeServiceStub(rpc.channel(node.address))
    multiplex = Multiplex(stub, given_up, rpc.trace_metadata)
    with pytest.raises(errors.NodeLost):
        await read(multiplex.begin(inference_pb.GenerateRequest(), SECONDS, {}))
    await multiplex.close()


async def test_what_is_cancelled_by_closing_a_node_is_its_loss(node: Node) -> None:
    def cancelled() -> None:
        with node.typed_errors():
            raise errors.Cancelled("Locally cancelled by application!")

    with pytest.raises(errors.Cancelled):
        cancelled()
    await node.close()
    with pytest.raises(errors.NodeLost):
        cancelled()


async def test_a_node_that_is_not_there_is_lost() -> None:
    node = Node(replace(facts(), address="127.0.0.1:1"))
    with pytest.raises(errors.NodeLost):
        await read(begin(node, "a", tokens=1))
    await node.close()


async def test_a_request_that_is_too_large_fails_alone(server: Server, node: Node) -> None:
    other = begin(node, "other", tokens=3)
    with pytest.raises(errors.InvalidArgument, match="bytes"):
        await read(begin(node, "large", tokens=3, text="x" * rpc.MAX_MESSAGE_BYTES))
    assert_whole(await read(other), 3)


async def test_each_call_is_within_its_own_trace(server: Server, node: Node) -> None:
    request = inference_pb.GenerateRequest(request_id="traced", max_tokens=1)
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    await read(node.generate(request, SECONDS, {"traceparent": traceparent}))
    await read(begin(node, "other", tokens=1))
    assert server.traces == [traceparent, ""]
