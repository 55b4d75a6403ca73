"""A generation on its way to another node: its last rounds; of several migrations, one takes it."""

import asyncio
from typing import Any, cast

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import node_service_pb2 as node_pb
from serverlessllm.v1 import types_pb2

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.generations.generation import Generation
from sllm.node.generations.migration_stream import MigrationStream
from sllm.node.generations.outgoing_generation import Destination, OutgoingGeneration, Terms
from sllm.node.instances.worker_client import Worker
from tests.node.generations.test_generations import WrittenWorker, accept, put_tokens
from tests.support import assert_eventually


class WrittenStream:
    """A stream to a destination whose answers the test gives."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, **step: Any) -> None:
        self.sent += step

    async def answer(
        self, request_id: str, kind: str, seconds: float
    ) -> migration_pb.MigrationServiceMigrateResponse:
        await self._answer
        return migration_pb.MigrationServiceMigrateResponse()

    def take(self) -> None:
        self._answer.set_result(None)

    def refuse(self) -> None:
        self._answer.set_exception(errors.NoCapacity("no"))


class Way:
    """One of the migrations of a generation."""

    def __init__(self, one: Generation, node_id: str, stream: WrittenStream | None = None) -> None:
        self.stream = stream or WrittenStream()
        self.told: list[node_pb.StartMigrationResponse] = []
        to = Destination(node_id, "host:1", f"on-{node_id}")
        terms = Terms(to, inference_pb.MIGRATION_REASON_OPERATOR, 100, identity="one")
        self.outgoing = OutgoingGeneration(
            one, terms, cast(MigrationStream, self.stream), MonotonicClock(), self.told.append
        )


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
    cuts = [asyncio.create_task(way.outgoing.cut_over()) for way in (first, second)]
    await assert_eventually(lambda: first.stream.sent)
    assert not second.stream.sent, "it would go on in two places"
    first.stream.take()
    await asyncio.gather(*cuts)
    assert first.outgoing.moved
    assert not second.outgoing.moved
    assert second.outgoing.over
    assert second.outgoing.moved_by_another
    assert second.outgoing.moved_by_another.node_id == "n1"
    assert not second.stream.sent


async def test_the_other_takes_it_if_the_first_fails(generation: Generation) -> None:
    first, second = Way(generation, "n1"), Way(generation, "n2")
    cuts = [asyncio.create_task(way.outgoing.cut_over()) for way in (first, second)]
    await assert_eventually(lambda: first.stream.sent)
    first.stream.refuse()
    with pytest.raises(errors.NoCapacity):
        await cuts[0]
    await assert_eventually(lambda: second.stream.sent)
    second.stream.take()
    await cuts[1]
    assert second.outgoing.moved
    assert not first.outgoing.moved


class ComputingStream(WrittenStream):
    """A destination during whose rounds the source puts out some more tokens each time."""

    def __init__(self, generation: Generation, more: list[int]) -> None:
        super().__init__()
        self._generation = generation
        self._more = iter(more)

    async def answer(
        self, request_id: str, kind: str, seconds: float
    ) -> migration_pb.MigrationServiceMigrateResponse:
        put_tokens(self._generation.outputs, next(self._more))
        return migration_pb.MigrationServiceMigrateResponse()


@pytest.mark.parametrize(
    ("more", "rounds"),
    [
        pytest.param([3], 1, id="a few are left"),
        pytest.param([20, 8, 2], 3, id="it shrinks until a few are left"),
        pytest.param([20, 20], 2, id="it does not shrink any more"),
        pytest.param([40, 30, 20, 10], 4, id="there is an end to it"),
    ],
)
async def test_the_last_rounds_go_on_while_the_gap_shrinks(
    generation: Generation, more: list[int], rounds: int
) -> None:
    put_tokens(generation.outputs, 50)
    way = Way(generation, "n1", ComputingStream(generation, more))
    await way.outgoing.catch_up()
    assert len(way.stream.sent) == rounds
    assert way.outgoing.gap == more[rounds - 1]


async def test_a_small_gap_is_worth_no_round(generation: Generation) -> None:
    put_tokens(generation.outputs, 4)
    way = Way(generation, "n1", ComputingStream(generation, []))
    await way.outgoing.catch_up()
    assert not way.stream.sent
