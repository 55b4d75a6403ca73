"""Pages that come with a migration, and all that may go wrong with them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from serverlessllm.v1 import migration_service_pb2 as migration_pb
from serverlessllm.v1 import types_pb2 as pb

from sllm import rpc
from sllm.clock import MonotonicClock
from sllm.node.generations.cache_choice import Way
from sllm.node.generations.incoming_pages import Asking, IncomingPages, PagesThere
from sllm.node.instances.page_keeping import WorkersPages
from sllm.node.peers.types import Network, Peer
from sllm.node.tiers.types import Tier
from tests.node.kept.test_from_peers import Lying, page_of
from tests.node.kept.test_kept_pages import KEYS, PAGE_BYTES, KeptBench
from tests.node.serving import serving
from tests.support import assert_eventually

PAGE = 16
TOTAL = 6 * PAGE + 5
SLOW_PACE = 10.0
"""Seconds per token: pages are always sooner."""


class Destination:
    """A node whose worker keeps pages, and what its rounds have come to."""

    def __init__(self, bench: KeptBench) -> None:
        self.bench = bench
        self.here: Any = SimpleNamespace(layout=object(), space="a", seconds_per_token=SLOW_PACE)
        self.asked: list[str] = []
        self.answers: Callable[[], Sequence[bytes] | None] = lambda: KEYS[:6]
        """What the source keeps. None: it does not say."""
        self.asking = Asking()
        self.wanted: Way | None = None
        self.pages: IncomingPages | None = None

    def know_link(self, bytes_per_second: float = 1e9) -> None:
        self.bench.store.fetching_pages.links.observe("giver", int(bytes_per_second), 0.0, 1.0)

    async def round(
        self, giver: Peer | None, computed: int = 0, total: int = TOTAL, *, space: str = "a"
    ) -> pb.CacheMove:
        """What a round has come to."""
        there = PagesThere(giver, space, PAGE, PAGE_BYTES) if giver else None
        store = self.bench.store
        self.pages = IncomingPages(
            there,
            cast(WorkersPages, self.here),
            store.kept,
            store.fetching_pages,
            self.asking,
            MonotonicClock(),
            self.wanted,
        )
        async with self.pages.round("one", computed, total, self._ask) as cache:
            pass
        return cache

    def _ask(self, request_id: str) -> None:
        self.asked.append(request_id)
        keys = self.answers()
        assert self.pages
        if keys is not None:
            step = migration_pb.MigrationPagesKept(request_id=request_id, keys=keys)
            asyncio.get_running_loop().call_soon(self.pages.answer, step)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Destination]:
    bench = KeptBench(tmp_path / "here")
    bench.network = Network("here", rpc.thread_channel)
    await bench.open()
    destination = Destination(bench)
    yield destination
    if destination.pages:
        await destination.pages.close()
    await bench.close()


@asynccontextmanager
async def giving(count: int = 6, *, then_fails: bool = False) -> AsyncIterator[Peer]:
    """A node that gives so many pages, and then a page that is not what it should be."""
    lie = [page_of(KEYS[count], digest=bytes(16))] if then_fails else []
    async with serving(Lying(*map(page_of, KEYS[:count]), *lie)) as giver:
        yield giver


async def test_pages_come_where_that_is_sooner(here: Destination) -> None:
    here.know_link()
    async with giving() as giver:
        cache = await here.round(giver)
    assert cache.way == pb.MOVE_WAY_PAGES
    assert cache.page_bytes == 6 * PAGE_BYTES
    assert cache.HasField("by_tokens")
    assert cache.HasField("by_pages")
    assert await here.bench.read(KEYS) == [Tier.DRAM] * 6


async def test_a_later_round_brings_what_is_new(here: Destination) -> None:
    here.know_link()
    async with giving() as giver:
        await here.round(giver)
        here.answers = lambda: KEYS[:8]
        async with serving(Lying(*map(page_of, KEYS[6:8]))) as later:
            cache = await here.round(later, TOTAL, 8 * PAGE + 1)
    assert (cache.way, cache.page_bytes) == (pb.MOVE_WAY_PAGES, 2 * PAGE_BYTES)
    assert await here.bench.read(KEYS) == [Tier.DRAM] * 8


async def test_all_is_computed_where_that_is_sooner(here: Destination) -> None:
    here.know_link()
    here.here.seconds_per_token = 1e-9
    async with giving() as giver:
        cache = await here.round(giver)
    assert cache.way == pb.MOVE_WAY_TOKENS
    assert not here.asked


async def test_it_comes_as_it_is_asked_for(here: Destination) -> None:
    here.wanted = Way.PAGES
    async with giving() as giver:
        assert (await here.round(giver)).way == pb.MOVE_WAY_PAGES, "nothing was known"
        assert (await here.round(giver, TOTAL - 3)).way == pb.MOVE_WAY_TOKENS, "there is no page"
        assert (await here.round(None)).way == pb.MOVE_WAY_TOKENS
        here.wanted, here.asked = Way.TOKENS, []
        here.know_link()
        assert (await here.round(giver)).way == pb.MOVE_WAY_TOKENS
    assert not here.asked


@pytest.mark.parametrize("what", ["source", "destination", "layout", "space"])
async def test_nobody_is_asked_where_pages_are_of_no_use(here: Destination, what: str) -> None:
    here.know_link()
    space = "another engine" if what == "space" else "a"
    if what == "destination":
        here.here = None
    elif what == "layout":
        here.here.layout = None
    async with giving() as giver:
        cache = await here.round(None if what == "source" else giver, space=space)
    assert cache.way == pb.MOVE_WAY_TOKENS
    assert cache.why
    assert not here.asked
    assert not cache.HasField("by_pages")


@pytest.mark.parametrize("source", ["a", "a, int8"])
@pytest.mark.parametrize("destination", ["a", "a, int8"])
async def test_no_page_comes_that_is_not_exact(
    here: Destination, source: str, destination: str
) -> None:
    """Tokens of a move are what they would have been; of pages of int8 they may not be."""
    here.know_link()
    here.here.space = destination
    exact = source == destination == "a"
    async with giving() as giver:
        cache = await here.round(giver, space=source)
    assert cache.way == (pb.MOVE_WAY_PAGES if exact else pb.MOVE_WAY_TOKENS)
    assert ("int8" in cache.why) is not exact
    assert bool(here.asked) is exact


async def test_a_link_that_is_not_known_is_learned_beside(here: Destination) -> None:
    async with giving() as giver:
        cache = await here.round(giver)
        assert cache.way == pb.MOVE_WAY_TOKENS
        links = here.bench.store.fetching_pages.links
        await assert_eventually(lambda: links.bytes_per_second("giver"))
        here.answers = lambda: KEYS[:6]
        assert (await here.round(giver)).way == pb.MOVE_WAY_PAGES


async def test_what_came_before_the_source_failed_is_used(here: Destination) -> None:
    here.know_link()
    async with giving(3, then_fails=True) as giver:
        cache = await here.round(giver)
    assert (cache.way, cache.page_bytes) == (pb.MOVE_WAY_PAGES, 3 * PAGE_BYTES)
    assert await here.bench.read(KEYS) == [Tier.DRAM] * 3


FAILURES: dict[str, Callable[[], Sequence[bytes] | None]] = {
    "it keeps none": lambda: (),
    "it does not say": lambda: None,
    "they are gone": lambda: KEYS[10:16],
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_all_is_computed_where_no_page_comes(here: Destination, failure: str) -> None:
    here.know_link()
    here.here.seconds_per_token = 0.01
    here.answers = FAILURES[failure]
    async with giving(0) as giver:
        cache = await here.round(giver)
    assert here.asked == ["one"]
    assert (cache.way, cache.page_bytes) == (pb.MOVE_WAY_TOKENS, 0)


async def test_a_source_that_is_gone_costs_no_more_than_the_try(here: Destination) -> None:
    here.know_link()
    async with giving() as giver:
        pass
    cache = await here.round(giver)
    assert cache.way == pb.MOVE_WAY_TOKENS


async def test_there_is_no_more_room(here: Destination) -> None:
    here.know_link()
    taken = here.bench.kept.make_room("b", PAGE_BYTES, [bytes([n]) for n in range(100)], None)
    async with giving() as giver:
        cache = await here.round(giver)
    assert cache.way == pb.MOVE_WAY_TOKENS
    here.bench.kept.keep(taken, ())


async def test_an_error_of_pages_is_none_of_the_move(
    here: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.know_link()

    def fail(*_: object) -> None:
        raise OSError("the pool has gone")

    monkeypatch.setattr(here.bench.kept, "make_room", fail)
    async with giving() as giver:
        assert (await here.round(giver)).way == pb.MOVE_WAY_TOKENS


async def test_an_answer_that_nobody_waits_for_is_left(here: Destination) -> None:
    here.know_link()
    async with giving() as giver:
        await here.round(giver)
    assert here.pages
    here.pages.answer(migration_pb.MigrationPagesKept(request_id="one", keys=KEYS))
    here.pages.answer(migration_pb.MigrationPagesKept(request_id="another", keys=KEYS))


def test_only_a_round_that_is_alone_tells_of_itself() -> None:
    asking = Asking()
    with asking.alone() as first:
        assert first()
        with asking.alone() as second:
            assert not second()
        assert not first()
    with asking.alone() as third:
        assert third()
    before = asking.seconds
    asking.observe(before + 1.0)
    assert before < asking.seconds < before + 1.0
    for _ in range(99):
        asking.observe(-1.0)
    assert asking.seconds == pytest.approx(0.0, abs=1e-6)
