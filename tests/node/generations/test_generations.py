"""A request that comes again: read on where it goes on, begun anew where it does not."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import inference_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1 import worker_service_pb2 as worker_pb

from sllm import errors
from sllm.clock import MonotonicClock
from sllm.node.generations.generations import Generations
from sllm.node.instances.instances import Instances
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.worker_client import Worker
from sllm.prompt_size import BYTES_BESIDE, MAX_BYTES_PER_TOKEN
from tests.support import assert_eventually

CONTEXT = 16
LINGER = Duration(seconds=60)
DIED = errors.WorkerDied("killed")


class WrittenWorker:
    """A worker whose outputs the test writes."""

    def __init__(self) -> None:
        self.streams: list[OutputStream] = []
        """Of what was submitted, in order."""

    def submit(self, request: pb.GenerateRequest, stream: OutputStream, **options: Any) -> None:
        self.streams.append(stream)

    def release(self, request_id: str) -> None:
        """Nothing runs."""


class OneInstance:
    """All instances of a node, which are one, and what they are told of it."""

    def __init__(self, worker: WrittenWorker) -> None:
        self._worker = worker
        self.running = SimpleNamespace(context_tokens=CONTEXT)
        self.unread: frozenset[str] = frozenset()
        self.identity = "one"
        self.adapters = None
        self.arriving = None

    def check_identity(self, identity: str, served: str) -> None:
        """It serves what every generation here was begun with."""
        assert identity in ("", self.identity)

    def find(self, instance_id: str) -> "OneInstance":
        return self

    def ready_worker(self) -> WrittenWorker:
        return self._worker

    def set_unread(self, instance_id: str, request_ids: frozenset[str]) -> None:
        self.unread = request_ids


class Node:
    def __init__(self) -> None:
        self.worker = WrittenWorker()
        self.instances = OneInstance(self.worker)
        instances = cast(Instances, self.instances)
        self.generations = Generations(instances, self._leave, "node", MonotonicClock())

    def _leave(self) -> None:
        """What runs here stays."""

    async def begin(self, request: pb.GenerateRequest) -> "Reader":
        """Reads a request, once it has been submitted."""
        count = len(self.worker.streams)
        reader = Reader(self.generations, request)
        await assert_eventually(lambda: len(self.worker.streams) > count)
        return reader


class Reader:
    """A call of Generate, and what it has been told."""

    def __init__(self, generations: Generations, request: pb.GenerateRequest) -> None:
        self.events: list[pb.GenerateResponse] = []
        self.task = asyncio.create_task(self._read(generations, request))

    async def _read(self, generations: Generations, request: pb.GenerateRequest) -> None:
        async with aclosing(generations.read(request)) as events:
            async for event in events:
                self.events.append(event)

    @property
    def kinds(self) -> list[str | None]:
        return [event.WhichOneof("event") for event in self.events]

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.fixture
def node() -> Node:
    return Node()


def ask(
    generated: Sequence[int] | None = None, *, linger: bool = True, attempt: str | None = None
) -> pb.GenerateRequest:
    """A request of always the same id. `generated`: None if it begins."""
    continuation = None if generated is None else pb.Continuation(token_ids=generated)
    return pb.GenerateRequest(
        request_id="one",
        instance_id="instance",
        token_ids=types_pb.TokenIds(ids=[5]),
        linger=LINGER if linger else None,
        continuation=continuation,
        attempt=attempt,
    )


def accept(stream: OutputStream) -> None:
    accepted = worker_pb.Accepted(prompt_tokens=1, prompt_token_ids=[5])
    stream.put(worker_pb.RequestOutput(accepted=accepted))


def put_tokens(stream: OutputStream, count: int) -> None:
    tokens = pb.Tokens(token_ids=[7] * count)
    stream.put(worker_pb.RequestOutput(tokens=tokens))


def complete(stream: OutputStream, *token_ids: int) -> None:
    tokens = pb.Tokens(token_ids=token_ids)
    completed = worker_pb.Completed(tokens=tokens, reason=types_pb.FINISH_REASON_LENGTH)
    stream.put(worker_pb.RequestOutput(completed=completed))


async def test_one_that_begins_while_it_is_under_way_is_refused(node: Node) -> None:
    first = await node.begin(ask())
    with pytest.raises(errors.RequestIdInUse):
        await Reader(node.generations, ask()).task
    await first.leave()


@pytest.mark.parametrize("linger", [False, True])
@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_one_that_was_lost_before_its_first_token_begins_again(
    node: Node, linger: bool, accepted: bool, goes_on: bool
) -> None:
    reader = await node.begin(ask(linger=linger))
    if accepted:
        accept(node.worker.streams[0])
    node.worker.streams[0].fail(DIED)
    with pytest.raises(errors.WorkerDied):
        await reader.task
    assert not node.instances.unread, "nobody comes for what has failed"
    again = await node.begin(ask(() if goes_on else None, linger=linger))
    accept(node.worker.streams[1])
    complete(node.worker.streams[1], 10)
    await again.task
    assert again.kinds == ["started", "tokens", "finished"]


async def test_one_that_failed_while_nobody_read_it_begins_again(node: Node) -> None:
    reader = await node.begin(ask())
    await reader.leave()
    assert node.instances.unread == {"one"}
    node.worker.streams[0].fail(DIED)
    again = await node.begin(ask())
    assert not again.task.done()
    await again.leave()


async def test_one_that_has_come_without_a_token_is_read_from_its_beginning(node: Node) -> None:
    """As after a migration: the control plane has no token of it, and the destination may."""
    node.generations.adopt(ask(), cast(Worker, node.worker))
    (stream,) = node.worker.streams
    accept(stream)
    complete(stream, 10, 11)
    reader = Reader(node.generations, ask(()))
    await reader.task
    assert reader.kinds == ["started", "tokens", "finished"]
    assert len(node.worker.streams) == 1, "it was begun a second time"


async def test_one_that_ended_unread_is_read_again(node: Node) -> None:
    reader = await node.begin(ask())
    accept(node.worker.streams[0])
    await assert_eventually(lambda: reader.kinds)
    await reader.leave()
    complete(node.worker.streams[0], 10)
    again = Reader(node.generations, ask(()))
    await again.task
    assert again.kinds == ["started", "tokens", "finished"]


@pytest.mark.parametrize("reads", [True, False])
async def test_a_late_cancel_leaves_who_reads_on_alone(node: Node, reads: bool) -> None:
    first = await node.begin(ask(attempt="first"))
    accept(node.worker.streams[0])
    await assert_eventually(lambda: first.kinds)
    second = Reader(node.generations, ask((), attempt="second"))
    await assert_eventually(lambda: second.kinds)
    if not reads:
        await second.leave()
    with pytest.raises(errors.RequestNotFound, match="of attempt 'first'"):
        node.generations.cancel("one", "first")
    assert node.generations.of_instance("instance")
    node.generations.cancel("one", "second")
    assert not node.generations.of_instance("instance")
    await asyncio.gather(first.task, second.task, return_exceptions=True)


async def test_a_prompt_that_no_context_holds_goes_to_no_worker(node: Node) -> None:
    size = BYTES_BESIDE + MAX_BYTES_PER_TOKEN * CONTEXT
    request = pb.GenerateRequest(request_id="one", instance_id="instance", text="x" * size)
    with pytest.raises(errors.ContextExceeded) as caught:
        await Reader(node.generations, request).task
    assert caught.value.metadata["max_bytes"] == str(size)
    assert not node.worker.streams
