"""The source's end of a migration: whose turn it is for a round, and for the cutover.

Each generation's own rounds and cutover are in `outgoing_generation`.

A round sends the tokens that the destination lacks, which computes their KV cache. Meanwhile the
engine has put out more: the gap. Once it is a few tokens, or does not shrink any more, the
generation is stopped right after a token, and the rest is sent with the cutover.

Generations that move together take their rounds together, so that none is stopped while the
destination computes the whole cache of another. They are cut over one after the other, each after
a round of its own: while one stands still, the destination computes nothing but its gap. If there
are many, a few are cut over at a time, so that it does not take too long altogether.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1 import node_service_pb2 as node_pb

from sllm import errors, rpc
from sllm.clock import Clock
from sllm.node.generations import wire
from sllm.node.generations.generation import Generation
from sllm.node.generations.migration_stream import migration_to
from sllm.node.generations.outgoing_generation import SMALL_GAP, OutgoingGeneration, Terms

MAX_ROUNDS: Final = 16
KEEP_SECONDS: Final = 30.0
"""Time that a worker has to give pages; the destination may wait for less."""
MAX_CUTS: Final = 16
"""Times that generations are stopped, one or some of them."""

Step = Callable[[OutgoingGeneration], Awaitable[None]]


class OutgoingMigration:
    """Moves generations of one instance over one stream to the destination."""

    def __init__(self, terms: Terms, node_id: str, clock: Clock, dial: rpc.Dial) -> None:
        self._terms = terms
        self._node_id = node_id
        self._clock = clock
        self._dial = dial
        self._news: asyncio.Queue[node_pb.StartMigrationResponse | None] = asyncio.Queue()

    async def run(
        self, generations: Sequence[Generation]
    ) -> AsyncGenerator[node_pb.StartMigrationResponse]:
        """Moves all of them; what has come of each is its last response.

        A caller that leaves ends it: what has not been cut over stays.

        Raises:
            errors.SllmError: The destination takes none of them.
        """
        to, tell = self._terms.destination, self._news.put_nowait
        opening = pb.MigrationOpen(
            instance_id=to.instance_id,
            from_node_id=self._node_id,
            identity=self._terms.identity,
            pages=wire.pages_message(self._terms.pages, self._terms.here),
            way=self._terms.way,
        )
        by_id = {one.request_id: one for one in generations}
        keep = partial(self._keep_pages, by_id)
        async with migration_to(to.node_id, to.address, opening, keep, self._dial) as stream:
            outgoing = [
                OutgoingGeneration(one, self._terms, stream, self._clock, tell)
                for one in generations
            ]
            moving = asyncio.create_task(self._move(outgoing), name=f"migration to {to.node_id}")
            try:
                while (news := await self._news.get()) is not None:
                    yield news
                await moving
            finally:
                moving.cancel()
                await asyncio.gather(moving, return_exceptions=True)

    async def _keep_pages(
        self, by_id: Mapping[str, Generation], request_id: str
    ) -> Sequence[bytes]:
        one, pages = by_id.get(request_id), self._terms.pages
        if one is None or pages is None or not one.request_id_in_worker:
            return ()
        return await pages.keep_running(one.request_id_in_worker, KEEP_SECONDS)

    async def _move(self, outgoing: Sequence[OutgoingGeneration]) -> None:
        try:
            left = await _catch_up(await _take(outgoing, OutgoingGeneration.begin))
            together = math.ceil(len(left) / MAX_CUTS) or 1
            for first in range(0, len(left), together):
                few = await _take(left[first : first + together], OutgoingGeneration.catch_up)
                await _take(few, OutgoingGeneration.cut_over)
        finally:
            self._news.put_nowait(None)


async def _catch_up(left: Sequence[OutgoingGeneration]) -> Sequence[OutgoingGeneration]:
    """Rounds of all, until no gap is worth another, or the widest does not shrink any more."""
    widest: int | None = None
    for _ in range(MAX_ROUNDS):
        left = await _take(left, OutgoingGeneration.round)
        before, widest = widest, max((one.gap for one in left), default=0)
        if widest <= SMALL_GAP or (before is not None and widest >= before):
            break
    return left


async def _take(outgoing: Sequence[OutgoingGeneration], step: Step) -> list[OutgoingGeneration]:
    """Has all take a step, side by side; who fails or has ended stays behind."""
    outcomes = await asyncio.gather(*map(partial(_goes_on, step), outgoing))
    return [one for one, goes_on in zip(outgoing, outcomes, strict=True) if goes_on]


async def _goes_on(step: Step, one: OutgoingGeneration) -> bool:
    try:
        await step(one)
    except errors.SllmError as error:
        one.stay(error)
        return False
    if one.over and not one.moved:
        one.stay(_meanwhile(one))
    return not one.over


def _meanwhile(one: OutgoingGeneration) -> errors.SllmError | None:
    """Why one that is over has not moved. None: it has come to its end."""
    if place := one.moved_by_another:
        return errors.RequestNotFound(
            f"it has moved to {place.instance_id} on {place.node_id} meanwhile"
        )
    return None
