"""The destination's end of a migration: the adapter stays from the first round to the end."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm.clock import MonotonicClock
from sllm.node.generations import wire
from sllm.node.generations.incoming_migration import IncomingMigration
from sllm.node.generations.incoming_pages import Asking, IncomingPages
from sllm.node.instances.adapter_use import AdapterSpec, AdapterUse
from sllm.node.instances.adapters import InstanceAdapters
from sllm.node.instances.outputs import OutputStream
from sllm.node.instances.worker_client import Worker
from tests.node.generations.test_generations import Node, accept, complete
from tests.support import assert_eventually

ADAPTER = inference_pb.AdapterSource(deployment="legal", source="file:///a", identity="L")


class Counted:
    """Adapters that count who uses them."""

    def __init__(self) -> None:
        self.taken = self.used = self.least = 0

    async def take(self, spec: AdapterSpec, give_way: object = None) -> AdapterUse:
        self.taken += 1
        self.used += 1
        return AdapterUse("loaded", self._release, None)

    def _release(self) -> None:
        self.used -= 1


class Answering:
    """A worker that computes at once what is computed ahead."""

    def __init__(self, node: Node) -> None:
        self._written = node.worker

    def submit(self, request: Any, stream: OutputStream, *, gives_way: bool = False) -> None:
        self._written.submit(request, stream)
        if gives_way:
            accept(stream)
            complete(stream, 9)

    def expect(self, request_id: str, stream: OutputStream) -> None:
        """It is submitted soon."""

    def release(self, request_id: str) -> None:
        """Nothing runs."""


def _without_pages() -> IncomingPages:
    unused: Any = None
    return IncomingPages(None, None, unused, unused, Asking(), MonotonicClock())


class Coming:
    """A migration to a node, step by step."""

    def __init__(self) -> None:
        self.node, self.adapters = Node(), Counted()
        self.steps: asyncio.Queue[pb.MigrationServiceMigrateRequest | None] = asyncio.Queue()
        self.answers: list[str | None] = []
        self._migration = IncomingMigration(
            self.node.generations,
            cast(Worker, Answering(self.node)),
            cast(InstanceAdapters, self.adapters),
            "node",
            MonotonicClock(),
            _without_pages(),
        )
        self.task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async for answer in self._migration.follow(self._asked()):
            self.answers.append(answer.WhichOneof("step"))

    async def _asked(self) -> AsyncIterator[pb.MigrationServiceMigrateRequest]:
        while step := await self.steps.get():
            yield step

    async def round(self, *token_ids: int, first: bool = False) -> None:
        request = inference_pb.GenerateRequest(
            request_id="one",
            instance_id="instance",
            adapter=ADAPTER,
            token_ids=types_pb.TokenIds(ids=[5]),
        )
        asked = request if first else None
        step = pb.MigrationRound(request_id="one", request=asked, token_ids=token_ids)
        await self._step("computed", round=step)

    async def cut_over(self, *token_ids: int) -> None:
        digest = wire.token_digest([5], token_ids)
        total = len(token_ids)
        step = pb.MigrationCutover(request_id="one", total_tokens=total, digest=digest)
        await self._step("taken", cutover=step)

    async def _step(self, answer: str, **step: Any) -> None:
        count = len(self.answers)
        self.steps.put_nowait(pb.MigrationServiceMigrateRequest(**step))
        await assert_eventually(lambda: len(self.answers) > count)
        assert self.answers[-1] == answer

    async def end(self) -> None:
        self.steps.put_nowait(None)
        await asyncio.wait_for(self.task, 10)


@pytest.fixture
async def coming() -> AsyncIterator[Coming]:
    coming = Coming()
    yield coming
    coming.task.cancel()
    await asyncio.gather(coming.task, return_exceptions=True)


async def test_the_adapter_is_held_from_the_first_round_to_the_end_of_the_generation(
    coming: Coming,
) -> None:
    await coming.round(1, 2, first=True)
    assert coming.adapters.used == 1
    await coming.round(3)
    assert coming.adapters.used == 1
    taken = coming.adapters.taken
    await coming.cut_over(1, 2, 3)
    assert (coming.adapters.used, coming.adapters.taken) == (1, taken), "it is the same use"
    await coming.end()
    assert coming.adapters.used == 1
    coming.node.generations.cancel("one")
    assert not coming.adapters.used


@pytest.mark.parametrize("dropped", [True, False])
async def test_what_does_not_come_holds_no_adapter(coming: Coming, dropped: bool) -> None:
    await coming.round(1, first=True)
    if dropped:
        drop = pb.MigrationDrop(request_id="one")
        coming.steps.put_nowait(pb.MigrationServiceMigrateRequest(drop=drop))
        await assert_eventually(lambda: not coming.adapters.used)
    await coming.end()
    assert not coming.adapters.used
