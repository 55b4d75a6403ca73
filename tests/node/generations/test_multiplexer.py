import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as pb

from sllm import errors
from sllm.durations import to_duration
from sllm.node.generations.multiplexer import Multiplexer
from sllm.statuses import from_failure
from tests.support import assert_eventually

SECONDS = 10.0


class Requests:
    """What calls read: each gives its request's tokens, once it may."""

    def __init__(self) -> None:
        self.may: dict[str, asyncio.Event] = {}
        self.left: list[str] = []
        self.given: dict[str, int] = {}
        self.error: Exception | None = None

    async def read(
        self, request: inference_pb.GenerateRequest
    ) -> AsyncGenerator[inference_pb.GenerateResponse]:
        try:
            await self.may.setdefault(request.request_id, asyncio.Event()).wait()
            if self.error:
                raise self.error
            for index in range(request.max_tokens):
                tokens = inference_pb.Tokens(first_index=index, token_ids=[index])
                yield inference_pb.GenerateResponse(tokens=tokens)
                self.given[request.request_id] = index + 1
            yield inference_pb.GenerateResponse(finished=inference_pb.Finished())
        finally:
            self.left.append(request.request_id)

    def let(self, *request_ids: str) -> None:
        for one in request_ids:
            self.may.setdefault(one, asyncio.Event()).set()


class Stream:
    """A stream of commands, and what comes of them."""

    def __init__(self, requests: Requests) -> None:
        self.commands: asyncio.Queue[pb.MultiplexRequest | None] = asyncio.Queue()
        self.steps = Multiplexer(requests.read).follow(self._commands())

    async def _commands(self) -> AsyncIterator[pb.MultiplexRequest]:
        while (command := await self.commands.get()) is not None:
            yield command

    def begin(self, number: int, request_id: str, tokens: int = 2, timeout: float = 0.0) -> None:
        request = inference_pb.GenerateRequest(request_id=request_id, max_tokens=tokens)
        begin = pb.CallBegin(number=number, request=request)
        if timeout:
            begin.timeout.CopyFrom(to_duration(timeout))
        self.commands.put_nowait(pb.MultiplexRequest(begin=begin))

    def hang_up(self, number: int) -> None:
        self.commands.put_nowait(pb.MultiplexRequest(hang_up=number))

    def end(self) -> None:
        self.commands.put_nowait(None)

    async def outputs(self) -> list[pb.CallOutput]:
        async with asyncio.timeout(SECONDS):
            return [output async for step in self.steps for output in step.outputs]

    async def failure(self) -> errors.SllmError:
        self.end()
        (output,) = await self.outputs()
        return from_failure(output.failure)


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
def stream(requests: Requests) -> Stream:
    return Stream(requests)


async def test_what_calls_give_while_nobody_reads_leaves_together(
    requests: Requests, stream: Stream
) -> None:
    stream.begin(1, "a")
    first = asyncio.create_task(anext(stream.steps))
    await assert_eventually(lambda: "a" in requests.may)
    requests.let("a", "b", "c")
    await first
    stream.begin(2, "b")
    stream.begin(3, "c")
    await assert_eventually(lambda: requests.given == {"a": 2, "b": 2, "c": 2})
    step = await anext(stream.steps)
    assert [output.number for output in step.outputs] == [2, 2, 2, 3, 3, 3]
    stream.end()
    assert await stream.outputs() == []


async def test_a_call_is_over_when_its_last_output_has_been_sent(
    requests: Requests, stream: Stream
) -> None:
    requests.let("a")
    stream.begin(1, "a")
    await anext(stream.steps)
    for _ in range(10):
        await asyncio.sleep(0)
    assert requests.left == []
    following = asyncio.create_task(stream.outputs())
    await assert_eventually(lambda: requests.left == ["a"])
    stream.end()
    assert await following == []


async def test_each_call_ends_with_its_last_event_in_order(
    requests: Requests, stream: Stream
) -> None:
    requests.let("a", "b")
    stream.begin(7, "a", tokens=3)
    stream.begin(9, "b", tokens=1)
    stream.end()
    outputs = await stream.outputs()
    for number, count in ((7, 3), (9, 1)):
        mine = [output.event for output in outputs if output.number == number]
        assert [event.tokens.first_index for event in mine[:-1]] == list(range(count))
        assert mine[-1].HasField("finished")


async def test_hanging_up_ends_one_call_alone(requests: Requests, stream: Stream) -> None:
    stream.begin(1, "a")
    stream.begin(2, "b")
    reading = asyncio.create_task(stream.outputs())
    await assert_eventually(lambda: len(requests.may) == 2)
    stream.hang_up(1)
    await assert_eventually(lambda: requests.left == ["a"])
    requests.let("b")
    stream.end()
    assert {output.number for output in await reading} == {2}


async def test_hanging_up_before_a_call_has_begun_to_run_leaves_nothing(
    requests: Requests, stream: Stream
) -> None:
    stream.begin(1, "a")
    stream.hang_up(1)
    stream.hang_up(1)
    stream.hang_up(5)
    stream.end()
    assert await stream.outputs() == []
    assert requests.left in ([], ["a"])


@pytest.mark.parametrize(
    "error",
    [
        errors.WorkerDied("killed by SIGKILL", metadata={"pid": "7"}),
        errors.NoCapacity("none is left", retry_after=1.5),
    ],
)
async def test_a_failure_is_told_as_it_is(
    requests: Requests, stream: Stream, error: errors.SllmError
) -> None:
    requests.error = error
    requests.let("a")
    stream.begin(1, "a")
    told = await stream.failure()
    assert (type(told), told.message, told.metadata) == (type(error), error.message, error.metadata)
    assert told.retry_after == error.retry_after


async def test_a_fault_of_ours_ends_its_call_alone(requests: Requests, stream: Stream) -> None:
    requests.error = RuntimeError("never thought of")
    requests.let("a")
    stream.begin(1, "a")
    assert isinstance(await stream.failure(), errors.Internal)


async def test_a_call_has_a_deadline(requests: Requests, stream: Stream) -> None:
    stream.begin(1, "a", timeout=0.01)
    assert isinstance(await stream.failure(), errors.DeadlineExceeded)
    assert requests.left == ["a"]


@pytest.mark.parametrize("nonsense", ["twice", "empty"])
async def test_commands_that_make_no_sense_end_all(
    requests: Requests, stream: Stream, nonsense: str
) -> None:
    stream.begin(1, "a")
    reading = asyncio.create_task(stream.outputs())
    await assert_eventually(lambda: "a" in requests.may)
    if nonsense == "twice":
        stream.begin(1, "a")
    else:
        stream.commands.put_nowait(pb.MultiplexRequest())
    with pytest.raises(errors.InvalidArgument):
        await reading
    assert requests.left == ["a"]


async def test_a_reader_that_leaves_ends_all(requests: Requests, stream: Stream) -> None:
    stream.begin(1, "a")
    stream.begin(2, "b")
    reading = asyncio.create_task(stream.outputs())
    await assert_eventually(lambda: len(requests.may) == 2)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await stream.steps.aclose()
    assert sorted(requests.left) == ["a", "b"]


async def test_a_message_has_a_bound(stream: Stream) -> None:
    async def read(
        request: inference_pb.GenerateRequest,
    ) -> AsyncGenerator[inference_pb.GenerateResponse]:
        for _ in range(4):
            yield inference_pb.GenerateResponse(tokens=inference_pb.Tokens(text="x" * 700_000))

    stream.steps = Multiplexer(read).follow(stream._commands())
    stream.begin(1, "a")
    stream.end()
    async with asyncio.timeout(SECONDS):
        sizes = [step.ByteSize() async for step in stream.steps]
    assert len(sizes) == 4
    assert max(sizes) < 1_000_000
