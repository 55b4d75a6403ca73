"""A worker's part in keeping pages, with an agent that answers late, wrongly, or not at all."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

import pytest
import xxhash

from sllm.node.tiers.pool import Pool
from sllm.node.worker import page_keeping
from sllm.node.worker.engine.interface import EngineRequest
from sllm.node.worker.engine.pages import PageLayout, Prefix
from sllm.node.worker.page_keeping import PageKeeping
from sllm.node.worker.page_keys import page_keys, space_key
from sllm.node.worker.page_messages import (
    NO_TOKENS,
    Done,
    KeptTokens,
    Message,
    Named,
    Offered,
    Place,
    Room,
    Wanted,
    Written,
)
from sllm.prompt_prefixes import Prefixes
from sllm.sampling import Sampling
from tests.support import assert_eventually

CHUNK = 64 * 1024
LAYOUT = PageLayout("an engine", 4, 4096)
PROMPT = tuple(range(14))
"""Three whole pages, and a little more."""
CONTENT = [bytes([number]) * LAYOUT.size_bytes for number in range(1, 4)]


class Pages:
    """A cache in the place of an engine's."""

    layout = LAYOUT
    seconds_per_token: float | None = None

    def __init__(self) -> None:
        self.there: dict[int, bytes] = {}
        """Pages of PROMPT by their index."""
        self.let_go_of: list[str] = []
        self.putting, self.may_put = threading.Event(), threading.Event()
        self.may_put.set()
        self.on_end: Callable[[Prefix], None] = lambda _: None

    def subscribe(self, on_end: Callable[[Prefix], None]) -> None:
        self.on_end = on_end

    def present(self, prefix: Prefix) -> int:
        return next(n for n in range(len(prefix.tokens)) if n not in self.there)

    def put(self, prefix: Prefix, first: int, pages: Sequence[memoryview], holder: str) -> int:
        self.putting.set()
        assert self.may_put.wait(30)
        self.there |= {first + n: bytes(page) for n, page in enumerate(pages)}
        return len(pages)

    def let_go(self, holder: str) -> None:
        self.let_go_of.append(holder)

    def copy(self, prefix: Prefix, wanted: Sequence[int], into: Sequence[memoryview]) -> list[bool]:
        for index, memory in zip(wanted, into, strict=True):
            memory[:] = self.there.get(index, memory)
        return [index in self.there for index in wanted]


@pytest.fixture
def pages() -> Pages:
    return Pages()


@pytest.fixture
async def keeping(pages: Pages, pool: Pool) -> AsyncIterator[PageKeeping]:
    keeping = PageKeeping(pages, pool.fd, "scope")
    assert await keeping.next_message() == LAYOUT
    yield keeping
    keeping.close()


def request(prompt: tuple[int, ...] = PROMPT) -> EngineRequest:
    return EngineRequest("r", prompt, Sampling(), 1)


def places(pool: Pool, contents: Sequence[bytes] = CONTENT) -> tuple[Place, ...]:
    """Pages as the agent has them, at the pool's end."""
    offset = pool.capacity_bytes - len(contents) * LAYOUT.size_bytes
    found = []
    for content in contents:
        chunk, within = divmod(offset, pool.chunk_bytes)
        pool.view(chunk)[within : within + len(content)] = content
        found.append(Place(offset, xxhash.xxh3_128_digest(content), 3))
        offset += LAYOUT.size_bytes
    return tuple(found)


async def wanted(keeping: PageKeeping) -> Wanted:
    message = await keeping.next_message()
    assert isinstance(message, Wanted)
    return message


async def test_pages_are_brought_as_far_as_they_are_what_they_were(
    keeping: PageKeeping, pages: Pages, pool: Pool
) -> None:
    bringing = asyncio.create_task(keeping.bring(request()))
    asked = await wanted(keeping)
    assert list(asked.keys) == page_keys(space_key("scope", LAYOUT), LAYOUT, Prefix(PROMPT), 3)
    good = places(pool)
    keeping.answer(asked.number, (good[0], Place(good[1].offset, b"another", 3), good[2]))
    assert await bringing == KeptTokens(((3, 4),))
    assert pages.there == {0: CONTENT[0]}
    done = await keeping.next_message()
    assert isinstance(done, Done)
    assert (done.number, done.read_bytes, done.bad) == (asked.number, 4096, (1,))
    # What is in the cache is not asked for again.
    bringing = asyncio.create_task(keeping.bring(request()))
    asked = await wanted(keeping)
    assert len(asked.keys) == 2
    keeping.answer(asked.number, good[1:])
    assert await bringing == KeptTokens(((3, 8),))
    assert await keeping.bring(request()) == NO_TOKENS


async def test_a_request_of_which_nothing_is_kept_does_not_wait_for_what_others_copy(
    keeping: PageKeeping, pages: Pages, pool: Pool
) -> None:
    pages.may_put.clear()
    bringing = asyncio.create_task(keeping.bring(request()))
    keeping.answer((await wanted(keeping)).number, places(pool))
    await assert_eventually(pages.putting.is_set)
    other = asyncio.create_task(keeping.bring(request(PROMPT[::-1])))
    keeping.answer((await wanted(keeping)).number, ())
    assert await asyncio.wait_for(other, 10) == NO_TOKENS
    pages.may_put.set()
    assert await bringing == KeptTokens(((3, 12),))


async def test_an_agent_that_does_not_answer_is_not_waited_for(
    keeping: PageKeeping, pages: Pages, pool: Pool
) -> None:
    pages.seconds_per_token = 1e-6
    bringing = asyncio.create_task(keeping.bring(request()))
    asked = await wanted(keeping)
    assert await bringing == NO_TOKENS
    assert await keeping.next_message() == Done(asked.number)
    keeping.answer(asked.number, places(pool))  # too late
    assert not pages.there


async def test_an_agent_that_keeps_nothing_more_holds_nobody_up(keeping: PageKeeping) -> None:
    bringing = asyncio.create_task(keeping.bring(request()))
    await wanted(keeping)
    keeping.close()
    assert await bringing == NO_TOKENS
    assert await keeping.bring(request()) == NO_TOKENS


async def test_a_request_that_is_cancelled_leaves_nothing_open(
    keeping: PageKeeping, pages: Pages, pool: Pool
) -> None:
    bringing = asyncio.create_task(keeping.bring(request()))
    asked = await wanted(keeping)
    bringing.cancel()
    await asyncio.gather(bringing, return_exceptions=True)
    assert bringing.cancelled()
    keeping.answer(asked.number, places(pool))
    assert isinstance(await keeping.next_message(), Done)
    await asyncio.sleep(0)
    assert pages.let_go_of == ["r"]


@pytest.mark.parametrize(
    "one",
    [
        request(PROMPT[:4]),
        EngineRequest("r", PROMPT, Sampling(), 1, prompt_logprobs=1),
        EngineRequest("r", PROMPT, Sampling(), 1, images=(object(),)),
    ],
)
async def test_what_pages_are_of_no_use_for_asks_for_none(
    keeping: PageKeeping, one: EngineRequest
) -> None:
    assert await keeping.bring(one) == NO_TOKENS


async def next_offer(keeping: PageKeeping) -> Message | None:
    return await asyncio.wait_for(keeping.next_message(), 10)


async def test_what_a_request_leaves_is_written_where_there_is_room(
    keeping: PageKeeping, pages: Pages, pool: Pool
) -> None:
    pages.there = {0: CONTENT[0], 2: CONTENT[2]}  # the second has gone meanwhile
    pages.on_end(Prefix(PROMPT))
    offered = await next_offer(keeping)
    assert isinstance(offered, Offered)
    assert len(offered.keys) == 3
    empty = places(pool, [bytes(LAYOUT.size_bytes)] * 2)
    keeping.answer(offered.number, Room(empty, (2, 1)))
    digest = xxhash.xxh3_128_digest(CONTENT[2])
    assert await next_offer(keeping) == Written(offered.number, (digest, b""))
    assert places(pool, [CONTENT[2]])[0].digest == digest
    keeping.finish()
    assert await next_offer(keeping) is None


async def test_an_offer_that_nobody_answers_ends(
    keeping: PageKeeping, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_keeping, "_ROOM_SECONDS", 0.01)
    pages.on_end(Prefix(PROMPT[:3]))  # of no whole page
    pages.on_end(Prefix(PROMPT))
    offered = await next_offer(keeping)
    assert isinstance(offered, Offered)
    assert await next_offer(keeping) == Written(offered.number)


def test_keys_tell_scopes_layouts_and_all_tokens_before() -> None:
    prefix = Prefix(PROMPT)
    spaces = [
        space_key("a", LAYOUT),
        space_key("b", LAYOUT),
        space_key("a", PageLayout("another engine", 4, 4096)),
    ]
    keys = [key for space in spaces for key in page_keys(space, LAYOUT, prefix, 3)]
    assert len(set(keys)) == 9
    same = page_keys(spaces[0], LAYOUT, Prefix((*PROMPT[:4], 99, *PROMPT[5:])), 3)
    assert same[0] == keys[0]
    assert not {*same[1:]} & {*keys}


async def test_the_agent_is_told_which_pages_the_beginnings_of_a_prompt_fill(
    keeping: PageKeeping, pages: Pages
) -> None:
    """Of 320 bytes that are three pages; of whom nobody asks, nothing is told."""
    pages.there = dict(enumerate(CONTENT))
    prefixes = Prefixes((11, 12), 320)
    assert await keeping.bring(request(), prefixes) == NO_TOKENS
    keys = page_keys(space_key("scope", LAYOUT), LAYOUT, Prefix(PROMPT), 3)
    assert await keeping.next_message() == Named((11, 12), (keys[1], keys[2]), (2, 3))
    going_on = replace(request(), first_position=6)  # eight tokens that were sent
    assert await keeping.bring(going_on, prefixes) == NO_TOKENS
    assert await keeping.next_message() == Named((11, 12), (keys[0], keys[1]), (1, 2))


async def test_pages_of_a_request_that_is_under_way_are_offered_first(
    pages: Pages, pool: Pool
) -> None:
    under_way = {"r": Prefix(PROMPT)}
    keeping = PageKeeping(pages, pool.fd, "scope", under_way.get)
    assert await keeping.next_message() == LAYOUT
    pages.there = dict(enumerate(CONTENT))
    pages.on_end(Prefix(PROMPT[::-1]))
    keeping.offer_running("r")
    keeping.offer_running("another")
    offers: list[Offered] = []
    for _ in range(3):
        offered = await next_offer(keeping)
        assert isinstance(offered, Offered)
        offers.append(offered)
        keeping.answer(offered.number, Room((), ()))
        assert await next_offer(keeping) == Written(offered.number)
    keys = page_keys(space_key("scope", LAYOUT), LAYOUT, Prefix(PROMPT), 3)
    found = [(one.request_id, list(one.keys)) for one in offers[:2]]
    assert found == [("another", []), ("r", keys)]
    assert offers[2].request_id == ""
    keeping.close()
