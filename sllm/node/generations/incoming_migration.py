"""The destination's end of a migration: computes what comes in rounds, and goes on at the cutover.

A request for one token has the engine compute the KV cache, but for pages of it that have come; see
`incoming_pages`. The next round and the generation itself find it in the engine's cache: prefix
sharing makes each cost its new tokens only. The request gives way to all that the engine generates
already.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog
from serverlessllm.v1 import inference_service_pb2 as inference_pb
from serverlessllm.v1 import migration_service_pb2 as pb
from serverlessllm.v1 import types_pb2 as types_pb

from sllm import errors
from sllm.clock import Clock
from sllm.node.generations import wire
from sllm.node.generations.generation import Generation
from sllm.node.generations.generations import Generations
from sllm.node.generations.incoming_pages import IncomingPages
from sllm.node.instances.adapter_use import AdapterUse
from sllm.node.instances.adapters import InstanceAdapters
from sllm.node.instances.worker_client import Worker

log = structlog.get_logger()


@dataclass(slots=True)
class _Coming:
    """A generation on its way."""

    request: inference_pb.GenerateRequest
    token_ids: list[int] = field(default_factory=list)
    rounds: int = 0
    computed: int = 0
    """Tokens whose KV cache the engine here has, the first ones."""
    over: bool = False
    use: AdapterUse | None = None
    """Of its adapter, from the first round on: no other takes the place between two of them."""

    @property
    def count(self) -> int:
        """Tokens so far, of prompt and generation."""
        return len(self.request.token_ids.ids) + len(self.token_ids)

    def hold(self, use: AdapterUse) -> None:
        """Keeps an adapter for it, unless it is over by now."""
        if self.over or self.use:
            use.release()
        else:
            self.use = use

    def end(self) -> None:
        """It does not come, or has come."""
        self.over = True
        if self.use:
            self.use.release()


class IncomingMigration:
    """One stream from a source."""

    def __init__(
        self,
        generations: Generations,
        worker: Worker,
        adapters: InstanceAdapters | None,
        node_id: str,
        clock: Clock,
        pages: IncomingPages,
    ) -> None:
        self._pages = pages
        self._generations = generations
        self._worker = worker
        self._adapters = adapters
        self._node_id = node_id
        self._clock = clock
        self._coming: dict[str, _Coming] = {}
        self._adopted: dict[str, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: asyncio.Queue[pb.MigrationServiceMigrateResponse | None] = asyncio.Queue()

    async def follow(
        self, requests: AsyncIterator[pb.MigrationServiceMigrateRequest]
    ) -> AsyncGenerator[pb.MigrationServiceMigrateResponse]:
        """Answers the source until it ends the stream; if that breaks, ends what nobody reads."""
        taking = asyncio.create_task(self._take_all(requests), name="migration steps")
        orderly = False
        try:
            while (response := await self._outbox.get()) is not None:
                yield response
            await taking
            orderly = True
        finally:
            tasks = [taking, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._pages.close()
            for coming in self._coming.values():
                coming.end()
            if not orderly:
                self._give_up()

    async def _take_all(self, requests: AsyncIterator[pb.MigrationServiceMigrateRequest]) -> None:
        try:
            async for request in requests:
                match request.WhichOneof("step"):
                    case "round":
                        self._begin_round(request.round)
                    case "cutover":
                        self._take_over(request.cutover)
                    case "drop":
                        self._drop(request.drop.request_id)
                    case "pages_kept":
                        self._pages.answer(request.pages_kept)
        finally:
            self._outbox.put_nowait(None)

    def _begin_round(self, step: pb.MigrationRound) -> None:
        if step.HasField("request"):
            self._coming[step.request_id] = _Coming(step.request)
        if coming := self._coming.get(step.request_id):
            coming.token_ids.extend(step.token_ids)
            coming.rounds += 1
            task = asyncio.create_task(self._round(coming))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _round(self, coming: _Coming) -> None:
        request_id = coming.request.request_id
        try:
            cache = await self._have_computed(coming)
        except errors.SllmError as error:
            self._refuse(request_id, error)
        except Exception as error:
            log.exception("node.round_failed", request=request_id)
            self._refuse(request_id, errors.Internal(f"a round failed: {error}"))
        else:
            computed = pb.MigrationComputed(request_id=request_id, cache=cache)
            self._outbox.put_nowait(pb.MigrationServiceMigrateResponse(computed=computed))

    async def _have_computed(self, coming: _Coming) -> types_pb.CacheMove:
        """Has the engine have the KV cache of all tokens so far; tells how it came to it."""
        request_id, before, total = coming.request.request_id, coming.computed, coming.count
        async with self._pages.round(request_id, before, total, self._ask_pages) as cache:
            cache.page_tokens = await self._compute(coming)
        coming.computed = total
        return cache

    def _ask_pages(self, request_id: str) -> None:
        wanted = pb.MigrationPagesWanted(request_id=request_id)
        self._outbox.put_nowait(pb.MigrationServiceMigrateResponse(pages_wanted=wanted))

    async def _compute(self, coming: _Coming) -> int:
        """Has the engine compute the KV cache of all tokens so far; gives how many it had not to.

        These are tokens whose pages were kept here, and not in its cache.

        Raises:
            errors.SllmError: It cannot.
        """
        await self._hold_adapter(coming)
        probe = inference_pb.GenerateRequest(
            # Of its own for each round: the engine may not have let go of the last one yet.
            request_id=f"{coming.request.request_id}/ahead/{coming.rounds}",
            token_ids=types_pb.TokenIds(ids=[*coming.request.token_ids.ids, *coming.token_ids]),
            sampling=types_pb.SamplingParams(temperature=0),
            max_tokens=1,
            ignore_eos=True,
        )
        if coming.request.HasField("adapter"):
            probe.adapter.CopyFrom(coming.request.adapter)
        ahead = Generation(
            probe,
            self._worker,
            self._node_id,
            self._clock,
            adapters=self._adapters,
            gives_way=True,
        )
        try:
            async with aclosing(ahead.events(self)) as events:
                async for event in events:
                    if event.HasField("finished"):
                        return sum(one.tokens for one in event.finished.receipt.kept_prompt)
        finally:
            ahead.close()
        raise errors.Internal("the engine's answer has no end")

    async def _hold_adapter(self, coming: _Coming) -> None:
        """Keeps the adapter of one that somebody waits for until it goes on here."""
        request = coming.request
        if coming.use or request.background or not (request.HasField("adapter") and self._adapters):
            return
        coming.hold(await self._adapters.take(wire.adapter_spec(request.adapter)))

    def _take_over(self, step: pb.MigrationCutover) -> None:
        coming = self._coming.pop(step.request_id, None)
        if coming is None:
            return
        try:
            self._go_on(coming, step)
        except errors.SllmError as error:
            self._refuse(step.request_id, error)
        else:
            taken = pb.MigrationTaken(request_id=step.request_id)
            self._outbox.put_nowait(pb.MigrationServiceMigrateResponse(taken=taken))
        finally:
            coming.end()

    def _go_on(self, coming: _Coming, step: pb.MigrationCutover) -> None:
        tokens = [*coming.token_ids, *step.token_ids]
        digest = wire.token_digest(coming.request.token_ids.ids, tokens)
        if len(tokens) != step.total_tokens or digest != step.digest:
            raise errors.Internal(f"the tokens of {step.request_id} are not those of the source")
        coming.request.continuation.token_ids.extend(tokens)
        adopted = self._generations.adopt(coming.request, self._worker, coming.use)
        coming.use = None  # it is the generation's
        self._adopted[adopted.request_id] = adopted

    def _refuse(self, request_id: str, error: errors.SllmError) -> None:
        refused = pb.MigrationRefused(request_id=request_id, failure=wire.migration_failure(error))
        self._outbox.put_nowait(pb.MigrationServiceMigrateResponse(refused=refused))

    def _give_up(self) -> None:
        """Drops what nobody reads: the source goes on with it, or is gone."""
        for request_id in list(self._adopted):
            self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        if coming := self._coming.pop(request_id, None):
            coming.end()
        generation = self._adopted.pop(request_id, None)
        if generation and generation.reader is None and not generation.closed:
            self._generations.drop(generation)
