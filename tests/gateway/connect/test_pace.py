"""Nothing is kept for a reader that does not read, and traces go along."""

import asyncio
from typing import Any

import aiohttp
import grpc
from serverlessllm.v1 import inference_service_pb2 as inference_pb

from tests.control.clusters import Cluster
from tests.control.fake_node import FakeNode
from tests.gateway.connect.serving import Door, door_of
from tests.support import assert_eventually

PIECE = 256 * 1024
PIECES = 2000
BOUND = 64 * 1024 * 1024
"""What sockets and flow control may keep between the two ends, generously."""


class Talker(grpc.GenericRpcHandler):
    """A control plane that says more than any buffer should hold."""

    def __init__(self) -> None:
        self.said = 0

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_stream_rpc_method_handler(self._talk)

    async def _talk(self, request: bytes, context: Any) -> None:
        tokens = inference_pb.Tokens(text="x" * PIECE)
        piece = inference_pb.GenerateResponse(tokens=tokens).SerializeToString()
        for _ in range(PIECES):
            await context.write(piece)
            self.said += 1


async def test_a_reader_that_stops_stops_the_stream() -> None:
    talker = Talker()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((talker,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with (
        door_of(f"127.0.0.1:{port}") as door,
        aiohttp.ClientSession(read_bufsize=PIECE) as session,
    ):
        reply = await session.post(door.path("InferenceService/Generate"), json={"text": "x"})
        await reply.content.readany()
        await assert_eventually(_stands_still(talker))
        assert 0 < talker.said * PIECE < BOUND
        before = talker.said
        while talker.said < before + 10:
            await reply.content.readany()
        reply.close()
    await server.stop(None)


def _stands_still(talker: Talker) -> Any:
    async def check() -> bool:
        before = talker.said
        await asyncio.sleep(0.5)
        return before == talker.said > 0

    return check


async def test_traces_go_along(cluster: Cluster, node: FakeNode, door: Door) -> None:
    await cluster.caller.deploy()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    prompt = {"deployment": "tiny", "text": "hello"}
    await door.lines("InferenceService/Generate", prompt, **headers)
    assert trace in node.traceparents[-1]
