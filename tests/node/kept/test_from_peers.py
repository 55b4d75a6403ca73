"""Pages that come from another node: real stores, with a real server between them."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from serverlessllm.v1 import peer_service_pb2 as pb

from sllm import rpc
from sllm.clock import ManualClock, MonotonicClock
from sllm.node.api.peer_service import PeerServicer
from sllm.node.kept import giving
from sllm.node.kept.fetching import Fetched, PageFetcher, PagesAsked
from sllm.node.kept.from_peers import Offer, PagesFromPeers
from sllm.node.kept.giving import PageGiver
from sllm.node.kept.links import LinkSpeeds
from sllm.node.kept.records import KeptBudget, PageWish
from sllm.node.peers import turns
from sllm.node.peers.pages import Filling, PageCall
from sllm.node.peers.types import Network, Peer
from sllm.node.tiers.types import Tier
from sllm.prompt_prefixes import Keeper
from tests.node.kept.test_kept_pages import KEYS, PAGE_BYTES, KeptBench, content_of, key_of
from tests.node.serving import serving
from tests.node.stores import settle
from tests.support import assert_eventually

SECONDS = 30.0


class Lying(PeerServicer):
    """Gives messages that were written down, then does nothing until it is left."""

    def __init__(self, *messages: pb.FetchPagesResponse, goes_on: bool = False) -> None:
        self._messages = messages
        self._goes_on = goes_on
        self.asked = 0

    async def FetchPages(
        self, request: pb.FetchPagesRequest, context: Any
    ) -> AsyncIterator[pb.FetchPagesResponse]:
        self.asked += 1
        for message in self._messages:
            yield message
        if self._goes_on:
            await asyncio.Event().wait()


def page_of(key: bytes, *, digest: bytes = b"") -> pb.FetchPagesResponse:
    """A message with one page."""
    content = content_of(key)
    return pb.FetchPagesResponse(digests=[digest or xxhash.xxh3_128_digest(content)], data=content)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[KeptBench]:
    """The node that lacks pages."""
    bench = KeptBench(tmp_path / "here")
    bench.network = Network("here", rpc.thread_channel)
    await bench.open()
    yield bench
    await assert_eventually(lambda: not leases(bench))
    await bench.close()


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[KeptBench]:
    """The node that has them."""
    bench = KeptBench(tmp_path / "there")
    await bench.open()
    yield bench
    await assert_eventually(lambda: not leases(bench))
    await bench.close()


@pytest.fixture
async def giver(there: KeptBench) -> AsyncIterator[Peer]:
    store = there.store
    async with serving(PeerServicer(store.sharing, store.giving_pages)) as peer:
        yield peer


def leases(bench: KeptBench) -> int:
    return sum(one.holding.leases for one in bench.kept._dram.kept.values())


async def fetch(
    bench: KeptBench,
    giver: Peer,
    keys: Sequence[bytes] = KEYS,
    *,
    page_bytes: int = PAGE_BYTES,
    seconds: float = SECONDS,
) -> Fetched:
    asked = PagesAsked(giver, "a", page_bytes, tuple(keys), 1.0)
    return await bench.store.fetching_pages.fetch(asked, seconds)


async def test_pages_come_and_are_kept_here(here: KeptBench, there: KeptBench, giver: Peer) -> None:
    links = here.store.fetching_pages.links
    assert links.bytes_per_second("giver") is None
    there.write(KEYS[:6])
    here.write(KEYS[:2])
    fetched = await fetch(here, giver)
    assert (fetched.pages, fetched.size_bytes) == (6, 4 * PAGE_BYTES), "none comes twice"
    assert (links.bytes_per_second("giver") or 0) > 0
    assert await here.read(KEYS) == [Tier.DRAM] * 6
    again = await fetch(here, giver, KEYS[:6])
    assert (again.pages, again.size_bytes) == (6, 0)


async def test_pages_that_are_on_ssd_alone_come_as_well(
    here: KeptBench, there: KeptBench, giver: Peer
) -> None:
    there.write(KEYS[:4])
    await there.until_stored()
    for name in list(there.kept._dram.kept):
        there.kept._dram.drop(name)
    assert (await fetch(here, giver)).pages == 4
    assert await here.read(KEYS) == [Tier.DRAM] * 4


async def test_as_many_come_as_there_is_room_for(
    here: KeptBench, there: KeptBench, giver: Peer
) -> None:
    there.write(KEYS)
    lease = here.kept.make_room("b", PAGE_BYTES, [key_of(n) for n in range(100, 118)], None)
    fetched = await fetch(here, giver)
    assert fetched.pages == len(await here.read(KEYS)) < len(KEYS)
    here.kept.keep(lease, ())


async def test_nothing_comes_where_nothing_is_or_it_is_of_another_kind(
    here: KeptBench, there: KeptBench, giver: Peer
) -> None:
    assert (await fetch(here, giver)).pages == 0
    there.write(KEYS[1:3])
    assert (await fetch(here, giver)).pages == 0, "there is none before them"
    there.write(KEYS[:1])
    assert (await fetch(here, giver, page_bytes=PAGE_BYTES // 2)).pages == 0
    for size in (0, -1):
        assert [one async for one in there.store.giving_pages.pieces(KEYS, size)] == []


async def test_nobody_is_asked_by_a_node_that_keeps_nothing(
    tmp_path: Path, there: KeptBench, giver: Peer
) -> None:
    there.write(KEYS)
    bench = KeptBench(tmp_path / "off")
    bench.network = Network("off", rpc.thread_channel)
    bench.budget = KeptBudget()
    await bench.open()
    assert not bench.store.fetching_pages.is_on
    assert await fetch(bench, giver) == Fetched(0)
    await bench.close()


async def test_a_node_that_is_gone_costs_nothing(here: KeptBench) -> None:
    async with serving(Lying()) as gone:
        pass
    fetched = await fetch(here, gone)
    assert (fetched.pages, fetched.size_bytes) == (0, 0)


LIES = {
    "another digest": [page_of(KEYS[2], digest=bytes(16))],
    "no digest": [pb.FetchPagesResponse(data=content_of(KEYS[2]))],
    "half a page": [pb.FetchPagesResponse(digests=[b"d"], data=b"half")],
    "digests alone": [pb.FetchPagesResponse(digests=[bytes(16)])],
}


@pytest.mark.parametrize("lie", LIES)
async def test_what_comes_before_a_lie_is_kept(here: KeptBench, lie: str) -> None:
    async with serving(Lying(page_of(KEYS[0]), page_of(KEYS[1]), *LIES[lie])) as liar:
        assert (await fetch(here, liar)).pages == 2
    assert await here.read(KEYS) == [Tier.DRAM] * 2


async def test_more_than_was_asked_for_is_not_taken(here: KeptBench) -> None:
    async with serving(Lying(*map(page_of, KEYS))) as liar:
        assert (await fetch(here, liar, KEYS[:2])).pages == 2


async def test_what_has_come_in_time_is_kept(here: KeptBench) -> None:
    async with serving(Lying(page_of(KEYS[0]), goes_on=True)) as slow:
        assert (await fetch(here, slow, seconds=1.0)).pages == 1


async def test_a_caller_that_leaves_holds_what_is_written_to_until_nobody_writes(
    here: KeptBench, giver: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is cancelled meanwhile."""
    writing, may_end = threading.Event(), threading.Event()

    def fill(*_: Any) -> list[bytes]:
        writing.set()
        assert may_end.wait(SECONDS)
        return []

    monkeypatch.setattr(PageCall, "fill", fill)
    monkeypatch.setattr(PageCall, "end", lambda _: True)
    fetching = asyncio.create_task(fetch(here, giver))
    await assert_eventually(writing.is_set)
    for _ in range(3):
        fetching.cancel()
        await settle()
        assert leases(here)
    may_end.set()
    await asyncio.gather(fetching, return_exceptions=True)
    assert fetching.cancelled()
    assert not leases(here)


async def test_a_caller_that_leaves_before_its_turn_waits_for_nobody(here: KeptBench) -> None:
    stalled = Lying(goes_on=True)
    async with serving(stalled) as slow:
        others = [
            asyncio.create_task(fetch(here, slow, KEYS[number : number + 1])) for number in range(4)
        ]
        await assert_eventually(lambda: stalled.asked == len(others))
        last = asyncio.create_task(fetch(here, slow, KEYS[4:5]))
        await asyncio.sleep(0)
        last.cancel()
        await asyncio.wait([last])
        assert not any(one.done() for one in others)
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    assert stalled.asked == len(others)


async def test_a_store_that_closes_ends_what_is_under_way(tmp_path: Path) -> None:
    bench = KeptBench(tmp_path / "closing")
    bench.network = Network("closing", rpc.thread_channel)
    await bench.open()
    stalled = Lying(goes_on=True)
    async with serving(stalled) as slow:
        fetching = asyncio.create_task(fetch(bench, slow))
        await assert_eventually(lambda: stalled.asked)
        await bench.close()
        assert (await fetching).pages == 0


async def test_few_are_given_at_a_time_and_whoever_takes_nothing_loses_its_turn(
    there: KeptBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.write(KEYS)
    few = PageGiver(there.kept, there.pool, MonotonicClock(), lambda: False)
    given = [few.pieces(KEYS, PAGE_BYTES) for _ in range(giving._STREAMS + 1)]
    for one in given[1:-1]:
        assert (await anext(one)).digests
    monkeypatch.setattr(turns, "_TAKING_SECONDS", 0.01)
    assert (await anext(given[0])).digests
    assert few._turns.locked()
    assert (await anext(given[-1])).digests
    for one in given:
        await one.aclose()
    assert not few._turns.locked()


@pytest.mark.parametrize("busy", [True, False])
async def test_whoever_loads_for_itself_gives_pages_now_and_then(
    there: KeptBench, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr(giving, "PIECE_BYTES", PAGE_BYTES)
    there.write(KEYS[:2])
    clock = ManualClock()
    pieces = PageGiver(there.kept, there.pool, clock, lambda: busy).pieces(KEYS[:2], PAGE_BYTES)
    assert (await anext(pieces)).digests
    clock.advance(1.0)  # so long it took to be taken
    signs = 0
    while not (piece := await _next(pieces, clock)).digests:
        assert piece == giving._LATER
        signs += 1
    assert signs * turns.SIGN_SECONDS == (turns._YIELDED if busy else 0)
    await pieces.aclose()


async def _next(pieces: AsyncGenerator[giving.Piece], clock: ManualClock) -> giving.Piece:
    following = asyncio.ensure_future(anext(pieces))
    await settle()
    clock.advance(turns.SIGN_SECONDS)
    return await following


@given(size=st.integers(1, 40), count=st.integers(0, 9), piece=st.integers(1, 60))
def test_pages_are_the_same_however_they_are_cut(size: int, count: int, piece: int) -> None:
    pages = [bytes([number]) * size for number in range(count)]
    digests = [xxhash.xxh3_128_digest(page) for page in pages]
    into = [memoryview(bytearray(size)) for _ in pages]
    filling = Filling(into, size)
    for one in giving.cut(digests, [memoryview(page) for page in pages], piece):
        assert 0 < len(one.data) <= piece
        filling.take(pb.FetchPagesResponse(digests=one.digests, data=one.data))
    assert filling.whole == digests
    assert [bytes(page) for page in into] == pages


def test_a_link_is_as_fast_as_it_was_of_late() -> None:
    links = LinkSpeeds()
    assert links.bytes_per_second("a") is None
    links.observe("a", 0, 0.0, 1.0)
    assert links.bytes_per_second("a") is None, "nothing has come"
    links.observe("a", 1000, 0.0, 1.0)
    assert links.bytes_per_second("a") == pytest.approx(1000)
    assert links.bytes_per_second("b") is None
    for begin in range(1, 9):
        links.observe("a", 1 << 28, float(begin), begin + 1.0)
    assert links.bytes_per_second("a") == pytest.approx(1 << 28, rel=0.1)


def test_what_comes_together_shares_the_link() -> None:
    links = LinkSpeeds()
    for _ in range(4):
        links.observe("a", 1000, 0.0, 4.0)
    assert links.bytes_per_second("a") == pytest.approx(1000, rel=0.01)


def wish(seconds_per_token: float | None = 1.0) -> PageWish:
    return PageWish(tuple(KEYS[:6]), 16, seconds_per_token)


async def test_pages_of_a_prompt_come_from_the_node_that_keeps_them(
    here: KeptBench, there: KeptBench, giver: Peer
) -> None:
    there.write(KEYS[:5])
    here.write(KEYS[:2])
    keeper = Keeper(giver.node_id, giver.address, SECONDS)
    pages = here.store.pages_from_peers
    assert await pages.fetch(keeper, wish(None), "a", PAGE_BYTES) == 2
    lease = await here.find(KEYS[:6])
    lease.came_from_peer(2)
    assert [place.tier for place in lease.places] == [Tier.DRAM] * 2 + [Tier.PEER] * 3
    here.kept.release(lease)


async def test_pages_that_are_computed_sooner_do_not_come(
    here: KeptBench, there: KeptBench, giver: Peer
) -> None:
    there.write(KEYS[:6])
    keeper = Keeper(giver.node_id, giver.address, SECONDS)
    assert await here.store.pages_from_peers.fetch(keeper, wish(1e-12), "a", PAGE_BYTES) == 0
    assert here.kept.count(KEYS) == 0


async def test_a_keeper_that_gives_nothing_is_left_alone_for_a_while(here: KeptBench) -> None:
    clock, silent = ManualClock(), Lying()
    fetcher = PageFetcher(here.kept, here.pool, here.network, LinkSpeeds(), clock)
    pages = PagesFromPeers(here.kept, fetcher)
    async with serving(silent) as peer:
        keeper = Keeper(peer.node_id, peer.address, SECONDS)
        for asked in (1, 1):
            assert await pages.fetch(keeper, wish(), "a", PAGE_BYTES) == 0
            assert silent.asked == asked
        assert fetcher.gives("another")
        clock.advance(60.0)
        await pages.fetch(keeper, wish(), "a", PAGE_BYTES)
        assert silent.asked == 2
    await fetcher.close()


@pytest.mark.parametrize(
    ("computing", "link", "patience"),
    [
        (8.0, None, 1.0),  # a quarter, less what the pool takes
        (4.0, None, 0.0),
        (8.0, 100.0, 3.0),  # half of it
        (8.0, 10.0, 0.0),  # ten seconds
    ],
)
def test_no_more_time_is_given_than_computing_leaves(
    computing: float, link: float | None, patience: float
) -> None:
    assert Offer(100, computing, link, 100.0).patience == patience
