"""The source's end of a migration: rounds while the engine goes on decoding, and the cutover.

A round sends the tokens that the destination lacks, which computes their KV cache. Meanwhile the
engine has put out more: the gap. Once it is a few tokens, or does not shrink any more, the
generation is stopped right after a token, and the rest is sent with the cutover.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1 import node_service_pb2 as node_pb

from sllm import errors
from sllm.clock import Clock
from sllm.node import wire
from sllm.node.generate import Generation, until_grown
from sllm.node.migration_stream import MigrationStream, migration_to

SMALL_GAP: Final = 4
"""Tokens that are not worth another round."""
MAX_ROUNDS: Final = 16
BEGIN_SECONDS: Final = 60.0
"""Time that a request has to be taken by the engine."""
ROUND_SECONDS: Final = 120.0
"""Time that a destination has to compute a round."""
BOUNDARY_SECONDS: Final = 2.0
"""How long the next token is waited for, to stop right after it."""
CUTOVER_SECONDS: Final = 2.0
"""Time that a destination has to go on; after it the generation goes on here."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where generations are to go on."""

    node_id: str
    address: str
    """host:port."""
    instance_id: str


class Emigration:
    """Moves generations of one instance over one stream to the destination."""

    def __init__(
        self,
        destination: Destination,
        reason: inference_pb.MigrationReason.ValueType,
        node_id: str,
        context_tokens: int,
        clock: Clock,
    ) -> None:
        """`context_tokens`: what one request may have here, which it keeps wherever it goes."""
        self._destination = destination
        self._reason = reason
        self._node_id = node_id
        self._context_tokens = context_tokens
        self._clock = clock
        self._news: asyncio.Queue[node_pb.StartMigrationResponse | None] = asyncio.Queue()

    async def run(
        self, generations: Sequence[Generation]
    ) -> AsyncGenerator[node_pb.StartMigrationResponse]:
        """Moves all of them side by side; what has come of each is its last response.

        A caller that leaves ends it: what has not been cut over stays.

        Raises:
            errors.SllmError: The destination takes none of them.
        """
        to = self._destination
        opening = pb.MigrationOpen(instance_id=to.instance_id, from_node_id=self._node_id)
        async with migration_to(to.node_id, to.address, opening) as stream:
            moving = [asyncio.create_task(self._follow(one, stream)) for one in generations]
            try:
                async for news in self._until_done(len(generations)):
                    yield news
            finally:
                for task in moving:
                    task.cancel()
                await asyncio.gather(*moving, return_exceptions=True)

    async def _until_done(self, count: int) -> AsyncIterator[node_pb.StartMigrationResponse]:
        while count:
            news = await self._news.get()
            if news is None:
                count -= 1
            else:
                yield news

    # --- one generation -----------------------------------------------------------------------

    async def _follow(self, one: Generation, stream: MigrationStream) -> None:
        try:
            done = await self._move(one, stream)
        except errors.SllmError as error:
            stream.send(drop=pb.MigrationDrop(request_id=one.request_id))
            self._tell(one, failure=wire.migration_failure(error))
        else:
            if done:
                self._tell(one, done=done)
            else:
                stream.send(drop=pb.MigrationDrop(request_id=one.request_id))
                self._tell(one, ended=node_pb.MigrationEnded())
        finally:
            self._news.put_nowait(None)

    async def _move(self, one: Generation, stream: MigrationStream) -> node_pb.MigrationDone | None:
        """Returns when it goes on at the destination; None: it has ended before."""
        await _until_begun(one)
        began = self._clock.now()
        rounds, sent = await self._rounds(one, stream)
        if one.outputs.token_ids:
            await until_grown(one, BOUNDARY_SECONDS)
        if one.over:
            return None
        stopped = self._clock.now()
        await self._cut_over(one, stream, sent)
        now = self._clock.now()
        return node_pb.MigrationDone(
            rounds=rounds,
            tokens=len(one.outputs.prompt) + len(one.outputs.token_ids),
            duration=wire.duration(now - began),
            cutover=wire.duration(now - stopped),
        )

    async def _rounds(self, one: Generation, stream: MigrationStream) -> tuple[int, int]:
        """How many there were, and how many tokens have been sent in them."""
        tokens, sent, gap = one.outputs.token_ids, 0, MAX_ROUNDS * ROUND_SECONDS
        for count in range(1, MAX_ROUNDS + 1):
            step = pb.MigrationRound(request_id=one.request_id, token_ids=tokens[sent:])
            if count == 1:
                step.request.CopyFrom(self._request(one))
            sent = len(tokens)
            stream.send(round=step)
            await stream.answer(one.request_id, "computed", ROUND_SECONDS)
            before, gap = gap, len(tokens) - sent
            computed = len(one.outputs.prompt) + sent
            self._tell(one, progress=_progress(count, computed, gap))
            if one.over or gap <= SMALL_GAP or gap >= before:
                break
        return count, sent

    async def _cut_over(self, one: Generation, stream: MigrationStream, sent: int) -> None:
        """Stops it here; it goes on there, or here again."""
        one.halt()
        tokens = one.outputs.token_ids
        try:
            cutover = pb.MigrationCutover(
                request_id=one.request_id,
                token_ids=tokens[sent:],
                total_tokens=len(tokens),
                digest=wire.token_digest(one.outputs.prompt, tokens),
            )
            stream.send(cutover=cutover)
            await stream.answer(one.request_id, "taken", CUTOVER_SECONDS)
            if one.closed:
                raise errors.Cancelled(f"request {one.request_id} was cancelled")
        except BaseException:
            _resume(one)
            raise
        one.outputs.move(self._moved(len(tokens)))

    def _moved(self, tokens: int) -> inference_pb.Moved:
        return inference_pb.Moved(
            node_id=self._destination.node_id,
            instance_id=self._destination.instance_id,
            reason=self._reason,
            tokens=tokens,
        )

    def _request(self, one: Generation) -> inference_pb.GenerateRequest:
        """The request as the destination is to have it: its limit is that of its beginning."""
        request = one.portable()
        request.instance_id = self._destination.instance_id
        if not request.HasField("max_tokens"):
            request.max_tokens = self._context_tokens - len(one.outputs.prompt)
        return request

    def _tell(
        self,
        one: Generation,
        *,
        progress: node_pb.MigrationProgress | None = None,
        done: node_pb.MigrationDone | None = None,
        failure: pb.MigrationFailure | None = None,
        ended: node_pb.MigrationEnded | None = None,
    ) -> None:
        self._news.put_nowait(
            node_pb.StartMigrationResponse(
                request_id=one.request_id,
                progress=progress,
                done=done,
                failure=failure,
                ended=ended,
            )
        )


async def _until_begun(one: Generation) -> None:
    """Returns once the prompt's tokens are known and something has come out.

    Raises:
        errors.DeadlineExceeded: The engine has not taken it.
    """
    while not one.outputs.prompt and not one.over:
        if not await until_grown(one, BEGIN_SECONDS):
            raise errors.DeadlineExceeded("the engine has not taken the request in time")


def _resume(one: Generation) -> None:
    try:
        one.resume()
    except errors.SllmError as error:
        one.outputs.fail(error)


def _progress(count: int, computed: int, gap: int) -> node_pb.MigrationProgress:
    return node_pb.MigrationProgress(round=count, computed_tokens=computed, gap_tokens=gap)
