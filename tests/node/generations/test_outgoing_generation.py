"""A generation on its way to another node: of several migrations, one takes it."""

import asyncio
from typing import Any, cast

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.generations.generation import Generation
from sllm.node.generations.migration_stream import MigrationStream
from sllm.node.generations.outgoing_generation import Destination, OutgoingGeneration, Terms
from sllm.node.instances.worker_client import Worker
from tests.node.generations.test_generations import WrittenWorker, accept
from tests.support import assert_eventually


class WrittenStream:
    """A stream to a destination whose answers the test gives."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, **step: Any) -> None:
        self.sent += step

    async def answer(self, request_id: str, kind: str, seconds: float) -> None:
        await self._answer

    def take(self) -> None:
        self._answer.set_result(None)

    def refuse(self) -> None:
        self._answer.set_exception(errors.NoCapacity("no"))


class Way:
    """One of the migrations of a generation."""

    def __init__(self, one: Generation, node_id: str) -> None:
        self.stream = WrittenStream()
        self.told: list[node_pb.StartMigrationResponse] = []
        to = Destination(node_id, "host:1", f"on-{node_id}")
        terms = Terms(to, inference_pb.MIGRATION_REASON_OPERATOR, 100, identity="one")
        stream = cast(MigrationStream, self.stream)
        self.outgoing = OutgoingGeneration(one, terms, stream, MonotonicClock(), self.told.append)
        self.cutting = asyncio.create_task(self.outgoing.cut_over())


@pytest.fixture
def generation() -> Generation:
    """One that has been accepted, and has no token yet."""
    request = inference_pb.GenerateRequest(
        request_id="one", token_ids=types_pb2.TokenIds(ids=[5]), instance_id="here"
    )
    worker = WrittenWorker()
    generation = Generation(request, cast(Worker, worker), "n0", MonotonicClock())
    accept(worker.streams[0])
    return generation


async def test_of_two_migrations_at_once_one_takes_it(generation: Generation) -> None:
    first, second = Way(generation, "n1"), Way(generation, "n2")
    await assert_eventually(lambda: first.stream.sent)
    assert not second.stream.sent, "it would go on in two places"
    first.stream.take()
    await asyncio.gather(first.cutting, second.cutting)
    assert first.outgoing.moved
    assert not second.outgoing.moved
    assert second.outgoing.over
    assert second.outgoing.moved_by_another
    assert second.outgoing.moved_by_another.node_id == "n1"
    assert not second.stream.sent


async def test_the_other_takes_it_if_the_first_fails(generation: Generation) -> None:
    first, second = Way(generation, "n1"), Way(generation, "n2")
    await assert_eventually(lambda: first.stream.sent)
    first.stream.refuse()
    with pytest.raises(errors.NoCapacity):
        await first.cutting
    await assert_eventually(lambda: second.stream.sent)
    second.stream.take()
    await second.cutting
    assert second.outgoing.moved
    assert not first.outgoing.moved
