"""Generations that come from other nodes."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1.migration_service_pb2_grpc import MigrationServiceServicer

from sllm import errors
from sllm.clock import Clock
from sllm.node.agent import Agent
from sllm.node.api.opening import opening
from sllm.node.generations import wire
from sllm.node.generations.generations import Generations
from sllm.node.generations.incoming_migration import IncomingMigration
from sllm.node.generations.incoming_pages import Asking, IncomingPages


class MigrationServicer(MigrationServiceServicer):
    """What the source of a migration asks of this node; see migration_service.proto."""

    def __init__(self, agent: Agent, generations: Generations, node_id: str, clock: Clock) -> None:
        self._agent = agent
        self._generations = generations
        self._node_id = node_id
        self._clock = clock
        self._asking = Asking()

    async def Migrate(
        self,
        request_iterator: AsyncIterator[pb.MigrationServiceMigrateRequest],
        context: Any,
    ) -> AsyncIterator[pb.MigrationServiceMigrateResponse]:
        """Computes what comes, and goes on with it."""
        asked = await _opened(request_iterator)
        instance = self._agent.instances.find(asked.instance_id)
        worker = instance.ready_worker()
        instance.check_identity(asked.identity)
        context_tokens = instance.running.context_tokens if instance.running else 0
        pages = IncomingPages(
            wire.pages_there(asked),
            instance.kept_pages,
            self._agent.store.kept,
            self._agent.store.fetching_pages,
            self._asking,
            self._clock,
            wire.way_of(asked),
        )
        opened = pb.MigrationOpened(context_tokens=context_tokens)
        yield pb.MigrationServiceMigrateResponse(opened=opened)
        migration = IncomingMigration(
            self._generations, worker, instance.adapters, self._node_id, self._clock, pages
        )
        async with aclosing(migration.follow(request_iterator)) as answers:
            async for answer in answers:
                yield answer


async def _opened(
    steps: AsyncIterator[pb.MigrationServiceMigrateRequest],
) -> pb.MigrationOpen:
    """A migration's first message, which names the instance.

    Raises:
        errors.InvalidArgument: It names none, or there is no message.
        errors.DeadlineExceeded: Nothing has come.
    """
    first = await opening(steps)
    if first is None or not first.HasField("open"):
        raise errors.InvalidArgument("a migration begins with `open`, which names the instance")
    return first.open
