"""A migration's stream that breaks: the source is told why, and nothing of it stays."""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1.migration_service_pb2_grpc import (
    MigrationServiceServicer,
    add_MigrationServiceServicer_to_server,
)

from sllm import errors, rpc
from sllm.node.generations import migration_stream
from sllm.node.generations.migration_stream import migration_to
from tests.support import assert_eventually, tasks_beside_this

OPEN = pb.MigrationOpen(instance_id="i", from_node_id="source")
OPENED = pb.MigrationServiceMigrateResponse(opened=pb.MigrationOpened(context_tokens=1))


class Destination(MigrationServiceServicer):
    """Behaves as it is told to."""

    def __init__(self) -> None:
        self.behaviour = "answers"
        self.heard: list[str | None] = []
        self.keys: list[bytes] = []
        """Of pages that the source keeps."""

    async def Migrate(
        self, requests: AsyncIterator[pb.MigrationServiceMigrateRequest], context: Any
    ) -> AsyncIterator[pb.MigrationServiceMigrateResponse]:
        if self.behaviour == "refuses":
            raise errors.InstanceNotFound("there is no i")
        yield OPENED
        async for request in requests:
            self.heard.append(step := request.WhichOneof("step"))
            if step == "round" and self.behaviour == "breaks off":
                raise errors.WorkerDied("it has just gone")
            if step == "round" and self.behaviour == "leaves":
                return
            if self.behaviour == "wants pages" and step == "round":
                wanted = pb.MigrationPagesWanted(request_id=request.round.request_id)
                yield pb.MigrationServiceMigrateResponse(pages_wanted=wanted)
                continue
            if step == "pages_kept":
                self.keys = list(request.pages_kept.keys)
            if step in ("round", "pages_kept"):
                computed = pb.MigrationComputed(request_id="r")
                yield pb.MigrationServiceMigrateResponse(computed=computed)


@pytest.fixture
def destination() -> Destination:
    return Destination()


@pytest.fixture
async def address(destination: Destination) -> AsyncIterator[str]:
    server = rpc.Server()
    add_MigrationServiceServicer_to_server(destination, server.grpc)
    port = await server.start("127.0.0.1:0", [])
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def no_pages(request_id: str) -> Sequence[bytes]:
    return ()


async def one_round(address: str) -> None:
    async with migration_to("n", address, OPEN, no_pages) as stream:
        stream.send(round=pb.MigrationRound(request_id="r"))
        await stream.answer("r", "computed", 10.0)


async def nothing_left() -> None:
    gc.collect()  # a task that nothing holds any more is told of when it is collected
    await assert_eventually(lambda: not tasks_beside_this())


async def test_a_stream_ends_in_order(destination: Destination, address: str) -> None:
    await one_round(address)
    assert destination.heard == ["open", "round"]
    await nothing_left()


@pytest.mark.parametrize(
    ("behaviour", "error", "match"),
    [
        ("refuses", errors.InstanceNotFound, "there is no i"),
        ("breaks off", errors.NodeLost, "it has just gone"),
        ("leaves", errors.NodeLost, "has left the migration"),
    ],
)
async def test_a_stream_that_breaks_leaves_no_task(
    destination: Destination,
    address: str,
    behaviour: str,
    error: type[errors.SllmError],
    match: str,
) -> None:
    destination.behaviour = behaviour
    for _ in range(3):
        with pytest.raises(error, match=match):
            await one_round(address)
    await nothing_left()


@pytest.mark.parametrize("fails", [False, True])
async def test_pages_that_are_wanted_are_kept_beside_what_else_is_said(
    destination: Destination, address: str, fails: bool
) -> None:
    destination.behaviour = "wants pages"
    asked: list[str] = []

    async def keep(request_id: str) -> Sequence[bytes]:
        asked.append(request_id)
        if fails:
            raise OSError("the worker has gone")
        return [b"first", b"second"]

    async with migration_to("n", address, OPEN, keep) as stream:
        stream.send(round=pb.MigrationRound(request_id="r"))
        await stream.answer("r", "computed", 10.0)
    assert asked == ["r"]
    assert destination.keys == ([] if fails else [b"first", b"second"])
    await nothing_left()


async def test_a_destination_that_is_not_there_leaves_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migration_stream, "OPEN_SECONDS", 0.2)
    with pytest.raises(errors.NodeLost, match="has not answered"):
        await one_round("127.0.0.1:1")
    await nothing_left()


async def test_a_source_that_is_cancelled_leaves_no_task(
    destination: Destination, address: str
) -> None:
    async def wait_for_ever() -> None:
        async with migration_to("n", address, OPEN, no_pages) as stream:
            await stream.answer("another", "computed", 60.0)

    waiting = asyncio.create_task(wait_for_ever())
    await assert_eventually(lambda: destination.heard)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await nothing_left()
