"""Has pages of the engine's cache be kept by the agent, and brings kept ones back.

The agent is told keys and says where in the pool pages are, or may be written; the bytes never
leave shared memory. They are copied, and their digests computed, in threads of their own, which
give way to all others.
"""

import asyncio
import itertools
import mmap
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, TypeVar

import structlog
import xxhash

from sllm.node.worker.engine.interface import EngineRequest
from sllm.node.worker.engine.pages import EnginePages, Prefix
from sllm.node.worker.page_keys import page_keys, space_key
from sllm.node.worker.page_messages import (
    NO_TOKENS,
    Answer,
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
from sllm.process import give_way
from sllm.prompt_prefixes import NAMELESS, Keeper, Prefixes

log = structlog.get_logger()

_MAX_WAITING: Final = 64
"""Requests whose pages are to be offered, and were not yet; older ones are not."""
_ROOM_SECONDS: Final = 10.0
"""What an agent may take to say where offered pages go."""
_LEAST_SECONDS: Final = 0.1
_MOST_SECONDS: Final = 30.0
"""What it may take to find pages: as long as computing them would take, within these bounds."""

_NOTHING: Final = Prefix(())

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt of which pages may be kept."""

    prefix: Prefix
    count: int
    """Pages that may come: the last token is computed."""
    sent: int
    """Of these, those of what the caller has sent: the rest was generated."""
    prefixes: Prefixes

    def named(self, keys: Sequence[bytes]) -> Named | None:
        """Which pages the beginnings of its bytes fill, if bytes are spread evenly over tokens."""
        filled = {name: int(share * self.sent) for name, share in self.prefixes.shares()}
        pages = {name: count for name, count in filled.items() if count}
        last = tuple(keys[count - 1] for count in pages.values())
        return Named(tuple(pages), last, tuple(pages.values())) if pages else None


class PageKeeping:
    """Belongs to the event loop."""

    def __init__(
        self,
        pages: EnginePages,
        pool_fd: int,
        scope: str,
        running: Callable[[str], Prefix | None] = lambda _: None,
    ) -> None:
        """Offers what requests leave in the cache from now on.

        Args:
            pages: of the engine.
            pool_fd: the agent's pool.
            scope: whose pages these are.
            running: tells what a request that is under way has in the cache, or will have soon.
                None: nothing that could be kept.
        """
        self._pages = pages
        self._space = space_key(scope, pages.layout)
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._messages.put_nowait(pages.layout)
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._running = running
        self._leave: deque[_Leaving] = deque(maxlen=_MAX_WAITING)
        self._any_leaves = asyncio.Event()
        self._finishing = False
        self._looking = ThreadPoolExecutor(1, "pages-sought", give_way)
        """Apart from those that copy: most requests have nothing to copy, and wait for nobody's."""
        self._coming = ThreadPoolExecutor(1, "pages-in", give_way)
        self._leaving = ThreadPoolExecutor(1, "pages-out", give_way)
        self._pool = _Pool(pool_fd)
        self._offering = asyncio.create_task(self._offer_all(), name="pages to keep")
        pages.subscribe(self._hear_end)

    # --- the agent ------------------------------------------------------------------------------

    async def next_message(self) -> Message | None:
        """What the agent is to be told next; None: nothing more."""
        return await self._messages.get()

    def answer(self, number: int, answer: Answer) -> None:
        """What the agent says of pages that were wanted or offered."""
        waiting = self._answers.get(number)
        if waiting and not waiting.done():
            waiting.set_result(answer)

    def finish(self) -> None:
        """Offers what has ended already, and then has nothing more to tell."""
        self._finishing = True
        self._any_leaves.set()

    def offer_running(self, request_id: str) -> None:
        """Offers the pages of a request that is under way, before those of all that have ended."""
        self._leave.appendleft(_Leaving(self._running(request_id), request_id))
        self._any_leaves.set()

    def close(self) -> None:
        """Ends without a word; what is being copied is copied to its end."""
        self._pages.subscribe(lambda _: None)
        self._offering.cancel()
        self._messages.put_nowait(None)
        for waiting in self._answers.values():
            if not waiting.done():  # whoever waits goes on without
                waiting.set_exception(TimeoutError("the agent keeps pages no more"))
        self._looking.shutdown(wait=False)
        self._coming.shutdown(wait=False)
        self._leaving.shutdown(wait=False)

    # --- pages that come ------------------------------------------------------------------------

    async def bring(self, request: EngineRequest, prefixes: Prefixes = NAMELESS) -> KeptTokens:
        """Puts what is kept of a request's prompt into the cache, if that is sooner than computing.

        Raises nothing unless the caller is cancelled: what is not brought is computed. The agent is
        told which pages are those of `prefixes`.
        """
        prefix = Prefix(request.prompt, request.adapter)
        count = (len(request.prompt) - 1) // self._pages.layout.tokens  # the last is computed
        if request.prompt_logprobs is not None or request.images or not count:
            return NO_TOKENS
        sent = (len(request.prompt) - request.first_position) // self._pages.layout.tokens
        wanted = _Prompt(prefix, count, min(count, sent), prefixes)
        bringing = asyncio.create_task(self._bring(wanted, request.request_id))
        try:
            return await asyncio.shield(bringing)
        except asyncio.CancelledError:  # it goes on to its end, as the agent waits for that
            bringing.add_done_callback(lambda _: self._pages.let_go(request.request_id))
            raise

    async def _bring(self, prompt: _Prompt, holder: str) -> KeptTokens:
        prefix = prompt.prefix
        try:
            first, keys = await self._on(self._looking, partial(self._lacking, prompt))
        except Exception:
            log.exception("worker.pages_not_brought")
            return NO_TOKENS
        if not keys:
            return NO_TOKENS
        number, done = next(self._numbers), Done(0)
        try:
            if not (places := await self._ask(number, keys, prompt.prefixes.keeper)):
                return NO_TOKENS
            done = await self._on(self._coming, partial(self._put, prefix, first, places, holder))
            return _by_tier(places[: done.pages], self._pages.layout.tokens)
        except TimeoutError:
            log.warning("worker.pages_too_late", pages=len(keys))
        except Exception:
            log.exception("worker.pages_not_brought")
        finally:
            self._messages.put_nowait(replace(done, number=number))
        return NO_TOKENS

    def _lacking(self, prompt: _Prompt) -> tuple[int, list[bytes]]:
        """Index of the first page that is not in the cache, and the keys from there on."""
        first = min(prompt.count, self._pages.present(prompt.prefix))
        if first == prompt.count and not prompt.prefixes.names:
            return first, []
        keys = page_keys(self._space, self._pages.layout, prompt.prefix, prompt.count)
        if named := prompt.named(keys):
            self._tell(named)
        return first, keys[first:]

    async def _ask(
        self, number: int, keys: Sequence[bytes], keeper: Keeper | None
    ) -> tuple[Place, ...]:
        """Where pages are; waits for no longer than computing them would take."""
        per_token = self._pages.seconds_per_token
        tokens = len(keys) * self._pages.layout.tokens
        patience = _MOST_SECONDS if per_token is None else per_token * tokens
        patience = min(max(patience, _LEAST_SECONDS), _MOST_SECONDS)
        answer = await self._answer_to(Wanted(number, tuple(keys), per_token, keeper), patience)
        assert isinstance(answer, tuple), "the agent answers with a room for what was not offered"
        return answer

    def _put(self, prefix: Prefix, first: int, places: Sequence[Place], holder: str) -> Done:
        """Copies pages from the pool into the cache, up to the first that is not what it was."""
        size, began = self._pages.layout.size_bytes, time.monotonic()
        pages: list[memoryview] = []
        bad: tuple[int, ...] = ()
        for index, place in enumerate(places):
            page = self._pool.view(place.offset, size)
            if xxhash.xxh3_128_digest(page) != place.digest:
                bad = (index,)
                break
            pages.append(page)
        count = self._pages.put(prefix, first, pages, holder) if pages else 0
        return Done(0, count, count * size, time.monotonic() - began, bad)

    # --- pages that leave -----------------------------------------------------------------------

    def _hear_end(self, prefix: Prefix) -> None:
        """In the engine's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._note_end, prefix)

    def _note_end(self, prefix: Prefix) -> None:
        self._leave.append(_Leaving(prefix))
        self._any_leaves.set()

    async def _offer_all(self) -> None:
        while True:
            await self._any_leaves.wait()
            self._any_leaves.clear()
            while self._leave:
                try:
                    await self._offer(self._leave.popleft())
                except Exception:
                    log.exception("worker.pages_not_kept")
            if self._finishing:
                self._messages.put_nowait(None)

    async def _offer(self, leaving: "_Leaving") -> None:
        layout, prefix = self._pages.layout, leaving.prefix or _NOTHING
        count = len(prefix.tokens) // layout.tokens
        if not (count or leaving.request_id):
            return
        keys = await self._on(self._leaving, partial(page_keys, self._space, layout, prefix, count))
        number, written = next(self._numbers), Written(0)
        pace, request_id = self._pages.seconds_per_token, leaving.request_id
        offered = Offered(number, tuple(keys), pace, request_id)
        try:
            room = await self._answer_to(offered, _ROOM_SECONDS)
            assert isinstance(room, Room), "the agent answers with pages that nobody wants"
            if room.places:
                written = await self._on(self._leaving, partial(self._copy, prefix, room))
        except TimeoutError:
            log.warning("worker.no_answer_to_pages")
        finally:
            self._messages.put_nowait(replace(written, number=number))

    def _copy(self, prefix: Prefix, room: Room) -> Written:
        """Copies pages from the cache into the pool."""
        size = self._pages.layout.size_bytes
        views = [self._pool.view(place.offset, size) for place in room.places]
        copied = self._pages.copy(prefix, room.indices, views)
        digests = (
            xxhash.xxh3_128_digest(view) if there else b""
            for view, there in zip(views, copied, strict=True)
        )
        return Written(0, tuple(digests))

    # --------------------------------------------------------------------------------------------

    def _tell(self, message: Message) -> None:
        """In any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._messages.put_nowait, message)

    async def _answer_to(self, asked: Wanted | Offered, seconds: float) -> Answer:
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers[asked.number] = answer
        self._messages.put_nowait(asked)
        try:
            return await asyncio.wait_for(answer, seconds)
        finally:
            del self._answers[asked.number]

    async def _on(self, threads: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await self._loop.run_in_executor(threads, work)


@dataclass(frozen=True, slots=True)
class _Leaving:
    """What is to be offered."""

    prefix: Prefix | None
    request_id: str = ""
    """Set: it is under way, and the agent waits for an answer, whatever there is of it."""


class _Pool:
    """The agent's pool, mapped whole: it takes addresses, and memory where pages are read."""

    def __init__(self, fd: int) -> None:
        self._memory = memoryview(mmap.mmap(fd, os.fstat(fd).st_size))

    def view(self, offset: int, size: int) -> memoryview:
        """A part of it, writable."""
        return self._memory[offset : offset + size]


def _by_tier(places: Sequence[Place], page_tokens: int) -> KeptTokens:
    pages = Counter(place.tier for place in places)
    return KeptTokens(tuple((tier, count * page_tokens) for tier, count in sorted(pages.items())))
