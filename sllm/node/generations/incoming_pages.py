"""Pages of KV caches that come with a migration, where they are sooner had than computed.

The destination chooses: it knows what computing takes here, and how fast bytes come from the
source. It asks the source to keep the generation's whole pages, and fetches those that it lacks,
while the source decodes on; the request that has the rest be computed finds them as it finds
whatever is kept here. Whatever goes wrong with pages, that request computes all.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from google.protobuf.duration_pb2 import Duration
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm.clock import Clock
from sllm.durations import to_duration
from sllm.node.generations.cache_choice import Costs, Estimate, Lack, Way, estimate
from sllm.node.instances.page_keeping import WorkersPages
from sllm.node.kept.fetching import Fetched, PageFetcher, PagesAsked
from sllm.node.kept.kept_pages import KeptPages
from sllm.node.peers.types import Peer
from sllm.node.worker.messages import INT8_PAGES

log = structlog.get_logger()

SAMPLE_BYTES: Final = 4 << 20
"""Of a link that is not known: pages of so many bytes tell, while all tokens are computed."""
_FIRST_ASKING_SECONDS: Final = 0.05
_NEWEST: Final = 0.3
"""Weight of the newest observation among all."""
_LEAST_SECONDS: Final = 0.2
_MOST_SECONDS: Final = 60.0
"""What pages may take before the rest is computed: as long as all of it, within these bounds."""

Ask = Callable[[str], None]
"""Asks the source for the pages of a request."""


class Asking:
    """What asking for pages takes on a node, whatever their number; learned of those that came."""

    def __init__(self) -> None:
        self.seconds = _FIRST_ASKING_SECONDS
        """As learned so far."""
        self._begun = self._under_way = 0

    @contextmanager
    def alone(self) -> Iterator[Callable[[], bool]]:
        """Yields what says, at the end, whether no other round was under way meanwhile.

        One that has waited for others tells nothing of itself.
        """
        first, self._begun = self._under_way == 0, self._begun + 1
        begun, self._under_way = self._begun, self._under_way + 1
        try:
            yield lambda: first and self._begun == begun
        finally:
            self._under_way -= 1

    def observe(self, seconds: float) -> None:
        """Takes one into account."""
        self.seconds += _NEWEST * (max(0.0, seconds) - self.seconds)


@dataclass(frozen=True, slots=True)
class PagesThere:
    """What the source of a migration has."""

    giver: Peer
    space: str
    page_tokens: int
    page_bytes: int


class IncomingPages:
    """Of one migration."""

    def __init__(
        self,
        there: PagesThere | None,
        here: WorkersPages | None,
        kept: KeptPages,
        fetcher: PageFetcher,
        asking: Asking,
        clock: Clock,
        wanted: Way | None = None,
    ) -> None:
        """Has nothing come yet.

        Args:
            there: what the source has. None: it keeps no pages.
            here: of the instance that the generations go on at. None: it keeps none.
            kept: where they are kept here.
            fetcher: brings them.
            asking: what that takes at least; learns.
            clock: measures.
            wanted: how they are to come, where they can. None: by what is sooner.
        """
        self._wanted = wanted
        self._there = there
        self._here = here
        self._kept = kept
        self._fetcher = fetcher
        self._asking = asking
        self._clock = clock
        self._waiting: dict[str, asyncio.Future[Sequence[bytes]]] = {}
        """For the keys of pages that the source was asked for, by request."""
        self._sample: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def round(
        self, request_id: str, computed: int, total: int, ask: Ask
    ) -> AsyncIterator[pb.CacheMove]:
        """Brings what is worth it of a round's tokens; the block computes what has not come.

        Args:
            request_id: of the generation.
            computed: tokens that were computed here before.
            total: tokens so far.
            ask: asks the source for its pages; what it answers is given to `answer`.

        Yields:
            How it comes; the block adds how many tokens it has not computed. What it took is added
            when the block ends.
        """
        began = self._clock.now()
        lack, expected, move = self._choose(computed, total)
        with self._asking.alone() as alone:
            came = 0
            if lack and move.way == pb.MOVE_WAY_PAGES:
                came = await self._bring(request_id, lack, expected, move, ask)
            elif lack and lack.pages and expected.by_pages is None and self._wanted is None:
                self._learn_link(request_id, lack, ask)
            yield move
            took = self._clock.now() - began
            move.took.CopyFrom(to_duration(took))
            if lack and came == lack.pages and expected.by_pages is not None and alone():
                self._asking.observe(self._asking.seconds + took - expected.by_pages)

    def answer(self, step: migration_pb.MigrationPagesKept) -> None:
        """Takes what the source says of a request's pages."""
        waiting = self._waiting.get(step.request_id)
        if waiting and not waiting.done():
            waiting.set_result(tuple(step.keys))

    async def close(self) -> None:
        """Ends what goes on beside."""
        if self._sample:
            self._sample.cancel()
            await asyncio.gather(self._sample, return_exceptions=True)

    # --- the choice -----------------------------------------------------------------------------

    def _choose(self, computed: int, total: int) -> tuple[Lack | None, Estimate, pb.CacheMove]:
        there, problem = self._there, self._problem()
        if there is None or problem:
            return None, Estimate(None, None), pb.CacheMove(way=pb.MOVE_WAY_TOKENS, why=problem)
        lack = Lack(computed, total, there.page_tokens, there.page_bytes)
        costs = self._costs(there)
        expected = estimate(lack, costs)
        way = self._wanted or expected.way
        move = pb.CacheMove(
            way=pb.MoveWay.ValueType(way if lack.pages else Way.TOKENS),
            by_tokens=_duration(expected.by_tokens),
            by_pages=_duration(expected.by_pages),
            why=_why(lack, costs) if self._wanted is None else "it was asked for",
        )
        return lack, expected, move

    def _problem(self) -> str:
        """Why no page can come; empty if any can."""
        if self._there is None:
            return "the source keeps no pages"
        if self._here is None or self._here.layout is None or not self._fetcher.is_on:
            return "the destination keeps no pages"
        if any(one.space.endswith(INT8_PAGES) for one in (self._here, self._there)):
            return "pages of int8 are not exact"
        if self._here.space != self._there.space:
            return "the engines lay their pages out differently"
        return ""

    def _costs(self, there: PagesThere) -> Costs:
        return Costs(
            seconds_per_token=self._here.seconds_per_token if self._here else None,
            link_bytes_per_second=self._fetcher.links.bytes_per_second(there.giver.node_id),
            memory_bytes_per_second=self._kept.bytes_per_second,
            asking_seconds=self._asking.seconds,
        )

    # --- pages ----------------------------------------------------------------------------------

    async def _bring(
        self, request_id: str, lack: Lack, expected: Estimate, move: pb.CacheMove, ask: Ask
    ) -> int:
        """Gives how many of the pages are here now."""
        patience = min(max(expected.by_tokens or 0.0, _LEAST_SECONDS), _MOST_SECONDS)
        if self._wanted is Way.PAGES:
            patience = _MOST_SECONDS
        fetched = Fetched(0)
        try:
            fetched = await self._fetch(request_id, lack, lack.pages, patience, ask)
        except Exception:
            log.exception("node.pages_not_brought", request=request_id)
        move.page_bytes = fetched.size_bytes
        if not fetched.pages:
            move.way, move.why = pb.MOVE_WAY_TOKENS, "no page has come in time"
        return fetched.pages

    async def _fetch(
        self, request_id: str, lack: Lack, pages: int, seconds: float, ask: Ask
    ) -> Fetched:
        """Brings the first of the pages that are lacking."""
        assert self._there, "somebody has them"
        until = self._clock.now() + seconds
        keys = await self._keys(request_id, seconds, ask)
        wanted = tuple(keys[lack.first_page : lack.first_page + pages])
        left = until - self._clock.now()
        if not wanted or left <= 0:
            return Fetched(0)
        there, pace = self._there, self._here.seconds_per_token if self._here else None
        asked = PagesAsked(there.giver, there.space, there.page_bytes, wanted, pace)
        return await self._fetcher.fetch(asked, left)

    async def _keys(self, request_id: str, seconds: float, ask: Ask) -> Sequence[bytes]:
        """Of the pages that the source keeps now; none if it does not say in time."""
        waiting = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        try:
            ask(request_id)
            return await asyncio.wait_for(waiting, seconds)
        except TimeoutError:
            return ()
        finally:
            del self._waiting[request_id]

    def _learn_link(self, request_id: str, lack: Lack, ask: Ask) -> None:
        """Has a few pages come, beside what is computed: the next choice knows the link."""
        if self._sample is None:
            pages = min(lack.pages, max(1, SAMPLE_BYTES // lack.page_bytes))
            work = self._fetch(request_id, lack, pages, _MOST_SECONDS, ask)
            self._sample = asyncio.create_task(_quietly(work), name="sample of a link")


async def _quietly(work: Awaitable[Fetched]) -> None:
    try:
        await work
    except Exception:
        log.exception("node.link_not_sampled")


def _why(lack: Lack, costs: Costs) -> str:
    if not lack.pages:
        return "there is no whole page more"
    if costs.seconds_per_token is None:
        return "what computing takes here is not known yet"
    if costs.link_bytes_per_second is None:
        return "how fast the link is is not known yet"
    return "it was expected to be sooner"


def _duration(seconds: float | None) -> Duration | None:
    return None if seconds is None else to_duration(seconds)
