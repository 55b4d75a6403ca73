"""Messages sent over a stream that the server ends meanwhile: what it says is what one hears."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from serverlessllm.v1 import inference_service_pb2 as pb

from sllm import errors, rpc, sending
from sllm.client.connection import Connection

ROOT = Path(__file__).resolve().parent.parent
UNTIL_IT_ENDS = 0.1
"""Seconds for which a server lets a stream be: its client has a connection by then."""
UNTIL_IT_IS_HERE = 0.3
"""Seconds after which gRPC knows that a stream has ended; the event loop is not asked meanwhile."""
REQUEST = pb.CancelRequest(request_id="r")
MESSAGE = (pb.CancelRequest.FromString, pb.CancelRequest.SerializeToString)


class Ended:
    """Streams that end before anything was sent: with a reason of ours, of gRPC's, or in order."""

    async def refused(self, requests: object, context: Any) -> AsyncIterator[pb.CancelRequest]:
        """Never gives anything."""
        await asyncio.sleep(UNTIL_IT_ENDS)
        raise errors.InstanceNotFound("there is no i")
        yield REQUEST

    async def aborted(self, requests: object, context: Any) -> AsyncIterator[pb.CancelRequest]:
        """Never gives anything."""
        await asyncio.sleep(UNTIL_IT_ENDS)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more today")
        yield REQUEST

    async def in_order(self, requests: object, context: Any) -> AsyncIterator[pb.CancelRequest]:
        """Never gives anything."""
        await asyncio.sleep(UNTIL_IT_ENDS)
        return
        yield REQUEST

    async def answered(self, requests: object, context: Any) -> pb.CancelRequest:
        """Waits for no request."""
        return REQUEST

    async def refused_to_answer(self, requests: object, context: Any) -> pb.CancelRequest:
        """Waits for no request."""
        raise errors.InstanceNotFound("there is no i")

    def handlers(self) -> grpc.GenericRpcHandler:
        """Of all of them, by name."""
        streams = {
            name: grpc.stream_stream_rpc_method_handler(getattr(self, name), *MESSAGE)
            for name in ("refused", "aborted", "in_order")
        }
        answers = {
            name: grpc.stream_unary_rpc_method_handler(getattr(self, name), *MESSAGE)
            for name in ("answered", "refused_to_answer")
        }
        return grpc.method_handlers_generic_handler("tests.Ended", streams | answers)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server with an event loop of its own, so that it answers while the test's stands."""
    loop = asyncio.new_event_loop()
    server = threading.Thread(target=loop.run_forever, daemon=True)
    server.start()

    async def start() -> tuple[rpc.Server, int]:
        started = rpc.Server()
        started.grpc.add_generic_rpc_handlers((Ended().handlers(),))
        return started, await started.start("127.0.0.1:0", [])

    started, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(started.stop(0), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    server.join()
    loop.close()


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with rpc.channel(address) as to_server:
        yield to_server


async def stream(channel: grpc.aio.Channel, name: str) -> Any:
    """A stream that has ended, of which the event loop has not heard."""
    call = channel.stream_stream(f"/tests.Ended/{name}", MESSAGE[1], MESSAGE[0])()
    with suppress(grpc.aio.AioRpcError):  # a busy machine has heard already
        await call.wait_for_connection()
    time.sleep(UNTIL_IT_IS_HERE)  # noqa: ASYNC251  # so that it does not
    return call


OUTCOMES = [
    ("refused", grpc.StatusCode.NOT_FOUND),
    ("aborted", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ("in_order", grpc.StatusCode.OK),
]


@pytest.mark.parametrize(("name", "code"), OUTCOMES)
async def test_a_message_that_comes_too_late_hides_no_status(
    channel: grpc.aio.Channel, name: str, code: grpc.StatusCode
) -> None:
    call = await stream(channel, name)
    while await sending.write(call, REQUEST):
        pass  # a busy machine has not heard yet that it ended
    assert await call.code() == code
    assert not await sending.write(call, REQUEST)


@pytest.mark.parametrize(("name", "code"), OUTCOMES)
async def test_a_queue_that_nobody_takes_from_hides_no_status(
    channel: grpc.aio.Channel, name: str, code: grpc.StatusCode
) -> None:
    call = await stream(channel, name)
    requests: asyncio.Queue[Any] = asyncio.Queue()
    requests.put_nowait(REQUEST)
    async with sending.from_queue(call, requests):
        assert await asyncio.wait_for(call.code(), 10) == code


async def many() -> AsyncIterator[pb.CancelRequest]:
    for _ in range(3):
        yield REQUEST
        time.sleep(UNTIL_IT_IS_HERE)  # noqa: ASYNC251  # so that the event loop hears nothing


async def test_a_server_that_has_heard_enough_has_answered(address: str) -> None:
    connection = Connection(address, 10.0)
    async with rpc.channel(address) as to_server:
        answered = to_server.stream_unary("/tests.Ended/answered", MESSAGE[1], MESSAGE[0])
        assert await connection.send_all(answered, many(), 10.0) == REQUEST
        refused = to_server.stream_unary("/tests.Ended/refused_to_answer", MESSAGE[1], MESSAGE[0])
        with pytest.raises(errors.InstanceNotFound, match="there is no i"):
            await connection.send_all(refused, many(), 10.0)
    await connection.close()


def test_nothing_else_writes_to_a_stream() -> None:
    """As gRPC's own way to do so loses what the server has said."""
    sources = {path: path.read_text() for path in (ROOT / "sllm").rglob("*.py")}
    assert [path.name for path, text in sources.items() if "call.write(" in text] == []
