"""The stream of a migration, as the source holds it: many generations, each with its answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import structlog
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1.migration_service_pb2_grpc import MigrationServiceStub

from sllm import errors, rpc, sending
from sllm.node.generations import wire

log = structlog.get_logger()

OPEN_SECONDS: Final = 5.0
"""Time that a destination has to answer at all."""
END_SECONDS: Final = 2.0

Answers = asyncio.Queue[pb.MigrationServiceMigrateResponse]


class MigrationStream:
    """One call of Migrate."""

    def __init__(self, node_id: str, call: Any, outbox: "Outbox", keep_pages: "KeepPages") -> None:
        self._node_id = node_id
        self._call = call
        self._outbox = outbox
        self._keep_pages = keep_pages
        self._keeping: set[asyncio.Task[None]] = set()
        self._answers: dict[str, Answers] = {}
        self._broken: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def send(
        self,
        *,
        round: pb.MigrationRound | None = None,
        cutover: pb.MigrationCutover | None = None,
        drop: pb.MigrationDrop | None = None,
    ) -> None:
        """Sends a step of a generation."""
        request = pb.MigrationServiceMigrateRequest(round=round, cutover=cutover, drop=drop)
        self._outbox.put_nowait(request)

    async def answer(
        self, request_id: str, kind: str, seconds: float
    ) -> pb.MigrationServiceMigrateResponse:
        """The destination's answer about a generation, which is waited for.

        Raises:
            errors.SllmError: It refuses, or there is none in time.
        """
        queue = self._answers.setdefault(request_id, asyncio.Queue())
        waiting: asyncio.Future[Any] = asyncio.ensure_future(queue.get())
        try:
            either = [waiting, self._broken]
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise self._no_answer(seconds)
            response: pb.MigrationServiceMigrateResponse = waiting.result()
        finally:
            waiting.cancel()
        if response.HasField("refused"):
            raise wire.from_migration_failure(response.refused.failure)
        if response.WhichOneof("step") != kind:
            raise errors.Internal(f"{response.WhichOneof('step')} came where {kind} was due")
        return response

    async def open(self) -> None:
        """Returns once the destination is ready for generations.

        Raises:
            errors.SllmError: It is not.
        """
        try:
            with rpc.typed_errors():
                first = await asyncio.wait_for(self._call.read(), OPEN_SECONDS)
        except TimeoutError as error:
            raise self._no_answer(OPEN_SECONDS) from error
        if first is grpc.aio.EOF or not first.HasField("opened"):
            raise errors.NodeLost(f"node {self._node_id} left the migration without a word")

    @asynccontextmanager
    async def heard(self) -> AsyncIterator[None]:
        """Deals answers out meanwhile; unless the block fails, until the destination has ended.

        The end of the stream is the end of all waiting.
        """
        listening = asyncio.create_task(self._listen(), name=f"migration to {self._node_id}")
        try:
            yield
            await asyncio.wait([listening], timeout=END_SECONDS)
        finally:
            for task in (listening, *self._keeping):
                task.cancel()
            outcome, *_ = await asyncio.gather(listening, *self._keeping, return_exceptions=True)
            if isinstance(outcome, Exception):
                log.error("migration.listener_died", node_id=self._node_id, exc_info=outcome)

    async def _listen(self) -> None:
        error = errors.NodeLost(f"node {self._node_id} has left the migration")
        try:
            with rpc.typed_errors():
                while (response := await self._call.read()) is not grpc.aio.EOF:
                    if response.HasField("pages_wanted"):
                        self._begin_keeping(response.pages_wanted.request_id)
                    elif step := response.WhichOneof("step"):
                        request_id = getattr(response, step).request_id
                        self._answers.setdefault(request_id, asyncio.Queue()).put_nowait(response)
        except errors.SllmError as failure:
            error = errors.NodeLost(f"node {self._node_id}: {failure}")
        finally:
            self._broken.set_result(error)

    def _begin_keeping(self, request_id: str) -> None:
        """Beside what else the destination says: it computes meanwhile, and may be done sooner."""
        task = asyncio.create_task(self._keep(request_id), name="pages of what moves")
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, request_id: str) -> None:
        keys: Sequence[bytes] = ()
        try:
            keys = await self._keep_pages(request_id)
        except Exception:  # it goes by its tokens then
            log.exception("migration.pages_not_kept", request_id=request_id)
        kept = pb.MigrationPagesKept(request_id=request_id, keys=keys)
        self._outbox.put_nowait(pb.MigrationServiceMigrateRequest(pages_kept=kept))

    def _no_answer(self, seconds: float) -> errors.SllmError:
        if self._broken.done():
            error: errors.SllmError = self._broken.result()
            return error
        return errors.NodeLost(f"node {self._node_id} has not answered for {seconds} s")


Outbox = asyncio.Queue[pb.MigrationServiceMigrateRequest | None]
KeepPages = Callable[[str], Awaitable[Sequence[bytes]]]
"""Has the pages of a request be kept here; gives their keys."""


@asynccontextmanager
async def migration_to(
    node_id: str,
    address: str,
    opening: pb.MigrationOpen,
    keep_pages: KeepPages,
    dial: rpc.Dial = rpc.channel,
) -> AsyncIterator[MigrationStream]:
    """A stream to a destination that is ready. Ends in order, unless the block raises.

    Args:
        node_id: the destination.
        address: host:port of it.
        opening: the first message.
        keep_pages: has pages be kept that the destination wants.
        dial: leads there.

    Raises:
        errors.SllmError: The destination is not ready.
    """
    outbox: Outbox = asyncio.Queue()
    outbox.put_nowait(pb.MigrationServiceMigrateRequest(open=opening))
    async with dial(address) as channel:
        # A node that is busy takes a while to answer a new connection.
        call = MigrationServiceStub(channel).Migrate(wait_for_ready=True)
        stream = MigrationStream(node_id, call, outbox, keep_pages)
        async with sending.from_queue(call, outbox):
            try:
                await stream.open()
                async with stream.heard():
                    yield stream
                    outbox.put_nowait(None)
            finally:
                call.cancel()
