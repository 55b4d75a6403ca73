"""The agent's end of what a worker has kept of its KV cache."""

import asyncio
from collections.abc import Sequence

import grpc
import structlog
from serverlessllm.v1 import types_pb2 as types_pb
from serverlessllm.v1 import worker_service_pb2 as pb
from serverlessllm.v1.worker_service_pb2_grpc import WorkerServiceStub

from sllm import sending
from sllm.durations import to_seconds
from sllm.node.instances.worker_client import Worker
from sllm.node.kept.from_peers import PagesFromPeers
from sllm.node.kept.prefixes import NamedPages
from sllm.node.kept.records import PageLease, PageWish, Place
from sllm.prompt_prefixes_wire import keeper

log = structlog.get_logger()

_BEGIN_SECONDS = 1.0
"""What a worker may take to begin; requests that come before are computed."""
_FINISH_SECONDS = 2.0
"""What a worker that is to end may take to give what its last requests have left."""
_END_SECONDS = 1.0
"""What giving leases back may take, once the worker has ended."""


def scope_of(deployment: str, identity: str) -> str:
    """Whose pages those of a deployment are, as long as it serves what it does.

    No two deployments share any, and so no two tenants: who could have others' pages found for
    prompts of their own would learn, by the time to a first token, what the others have sent.
    """
    return f"{len(deployment)} {deployment} {identity}"


class _Serving:
    """Gives one worker what it wants, and takes what it offers, until it ends."""

    def __init__(self, from_peers: PagesFromPeers) -> None:
        self.begun = asyncio.Event()
        """Whether the worker asks for what its requests need."""
        self._from_peers = from_peers
        self._kept = from_peers.kept
        self._answers: asyncio.Queue[pb.KeepPagesRequest] = asyncio.Queue()
        self.layout = pb.PageLayout()
        self._scope = ""
        self._finding: dict[int, asyncio.Task[None]] = {}
        self._found: dict[int, PageLease] = {}
        self._rooms: dict[int, PageLease] = {}
        self._ended = False
        self._running: dict[str, list[asyncio.Future[tuple[bytes, ...]]]] = {}
        """Requests whose pages the worker is asked for, and who waits for that."""
        self._offered: dict[int, pb.PagesOffered] = {}
        """Those of such requests."""

    @property
    def space(self) -> str:
        """That its pages are of; see `Segment`."""
        return f"{self._scope}, {self.layout.name}"

    async def serve(self, worker: Worker, scope: str) -> None:
        """Returns once the worker has ended, or keeps nothing; its leases are given back then.

        Args:
            worker: attached.
            scope: whose the pages are, and what computes them.
        """
        self._scope = scope
        self._answers.put_nowait(
            pb.KeepPagesRequest(begin=pb.KeepPagesBegin(scope=scope, int8=self._kept.int8))
        )
        call = WorkerServiceStub(worker.channel).KeepPages()
        try:
            async with sending.from_queue(call, self._answers):
                async for message in call:
                    self._take(message)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            log.debug("worker.pages_ended", pid=worker.pid, error=str(error))
        except Exception:
            log.exception("worker.pages_not_understood", pid=worker.pid)
        finally:
            for finding in self._finding.values():
                finding.cancel()
            await asyncio.gather(*self._finding.values(), return_exceptions=True)
            if self._found or self._rooms:  # it may read and write them to its end
                await asyncio.wait([worker.process.ended])
            self._let_go()

    def finish(self) -> None:
        """Has the worker offer what its last requests have left, and `serve` return."""
        self._answers.put_nowait(pb.KeepPagesRequest(finish=pb.KeepPagesFinish()))

    async def keep_running(self, request_id: str) -> tuple[bytes, ...]:
        """See `WorkersPages.keep_running`; waits for as long as it takes."""
        if self._ended:
            return ()
        waiting: asyncio.Future[tuple[bytes, ...]] = asyncio.get_running_loop().create_future()
        others = self._running.setdefault(request_id, [])
        others.append(waiting)
        running = pb.PagesOfRequest(request_id=request_id)
        self._answers.put_nowait(pb.KeepPagesRequest(running=running))
        try:
            return await waiting
        finally:
            others.remove(waiting)
            if not others and self._running.get(request_id) is others:
                del self._running[request_id]

    def _answer_running(self, request_id: str, keys: tuple[bytes, ...]) -> None:
        for waiting in self._running.pop(request_id, ()):
            if not waiting.done():
                waiting.set_result(keys)

    def _let_go(self) -> None:
        self._ended = True
        for request_id in list(self._running):
            self._answer_running(request_id, ())
        for lease in self._found.values():
            self._kept.release(lease)
        for lease in self._rooms.values():
            self._kept.keep(lease, ())
        self._found.clear()
        self._rooms.clear()

    def _take(self, message: pb.KeepPagesResponse) -> None:
        match message.WhichOneof("message"):
            case "layout":
                self.layout = message.layout
                self.begun.set()
            case "wanted":
                finding = asyncio.create_task(self._find(message.wanted), name="kept pages")
                self._finding[message.wanted.number] = finding
                finding.add_done_callback(lambda _: self._finding.pop(message.wanted.number, None))
            case "named":
                self._note(message.named)
            case "done":
                self._end_reading(message.done)
            case "offered":
                self._make_room(message.offered)
            case "written":
                self._end_writing(message.written)

    def _note(self, named: pb.PagesNamed) -> None:
        pages = zip(named.names, named.keys, named.pages, strict=False)
        tokens = self.layout.tokens
        self._kept.prefixes.note(NamedPages(*one, page_tokens=tokens) for one in pages)

    async def _find(self, wanted: pb.PagesWanted) -> None:
        per_token = self._note_pace(wanted)
        wish = PageWish(tuple(wanted.keys), self.layout.tokens, per_token)
        here = len(wish.keys)
        if wanted.HasField("keeper"):
            asked = keeper(wanted.keeper), wish, self.space, self.layout.size_bytes
            here = await self._from_peers.fetch(*asked)
        lease = await self._kept.find(wish)
        lease.came_from_peer(here)
        self._found[wanted.number] = lease
        found = pb.PagesFound(number=wanted.number, pages=map(self._page, lease.places))
        self._answers.put_nowait(pb.KeepPagesRequest(found=found))

    def _end_reading(self, done: pb.PagesDone) -> None:
        if finding := self._finding.pop(done.number, None):
            finding.cancel()  # it was not waited for
        lease = self._found.pop(done.number, PageLease())
        self._kept.release(lease, [index for index in done.bad if index < len(lease.segments)])
        if done.read_bytes:
            self._kept.observe_read(lease, done.read_bytes, to_seconds(done.duration))

    def _make_room(self, offered: pb.PagesOffered) -> None:
        if offered.request_id:
            self._offered[offered.number] = offered
        size, pace = self.layout.size_bytes, self._note_pace(offered)
        lease = self._kept.make_room(self.space, size, offered.keys, pace)
        self._rooms[offered.number] = lease
        indices = _indices(offered.keys, lease.places)
        pages = map(self._page, lease.places)
        room = pb.PagesRoom(number=offered.number, pages=pages, indices=indices)
        self._answers.put_nowait(pb.KeepPagesRequest(room=room))

    def _end_writing(self, written: pb.PagesWritten) -> None:
        self._kept.keep(self._rooms.pop(written.number, PageLease()), written.digests)
        if offered := self._offered.pop(written.number, None):
            keys = tuple(offered.keys)
            self._answer_running(offered.request_id, keys[: self._kept.count(keys)])

    @property
    def pace(self) -> float | None:
        """Seconds per token of a prompt; see `WorkersPages.seconds_per_token`."""
        return self._kept.pace(self.space)

    def _note_pace(self, message: pb.PagesWanted | pb.PagesOffered) -> float | None:
        if message.HasField("per_token"):
            self._kept.note_pace(self.space, to_seconds(message.per_token))
        return self.pace

    def _page(self, place: Place) -> pb.KeptPage:
        return pb.KeptPage(
            offset=place.chunk * self._kept.chunk_bytes + place.offset,
            digest=place.digest,
            tier=types_pb.Tier.ValueType(place.tier),
        )


class WorkersPages:
    """Pages of one worker's cache that are kept, from its being attached to its end."""

    def __init__(self, from_peers: PagesFromPeers, worker: Worker, scope: str) -> None:
        """Begins to keep them; see `_Serving.serve`."""
        self._serving = _Serving(from_peers)
        work = self._serving.serve(worker, scope)
        self._task = asyncio.create_task(work, name="kept pages")

    async def begun(self) -> None:
        """Returns once requests get what is kept, or never will; it does not take long."""
        begun = asyncio.create_task(self._serving.begun.wait())
        await asyncio.wait(
            [begun, self._task], timeout=_BEGIN_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        begun.cancel()

    @property
    def layout(self) -> pb.PageLayout | None:
        """What a page is. None: the worker has not told, or has none that could be kept."""
        return self._serving.layout if self._serving.begun.is_set() else None

    @property
    def space(self) -> str:
        """That its pages are of; see `Segment`. Of the layout, once that is known."""
        return self._serving.space

    @property
    def seconds_per_token(self) -> float | None:
        """Of computing a prompt, here or in an instance before it. None: not known."""
        return self._serving.pace

    async def keep_running(self, request_id: str, seconds: float) -> tuple[bytes, ...]:
        """Has the whole pages of a request that is under way be kept; gives the keys of those.

        Args:
            request_id: as the worker knows it.
            seconds: what that may take. What is not kept by then is not waited for: empty.
        """
        if not self._serving.begun.is_set():
            return ()
        try:
            return await asyncio.wait_for(self._serving.keep_running(request_id), seconds)
        except TimeoutError:
            return ()

    async def finish(self) -> None:
        """Takes what the last requests have left; it does not take long, or is left out."""
        if not self._serving.begun.is_set():
            return
        self._serving.finish()
        await asyncio.wait([self._task], timeout=_FINISH_SECONDS)

    async def end(self) -> None:
        """Returns once nothing is leased, if the worker has ended; otherwise that goes on."""
        await asyncio.wait([self._task], timeout=_END_SECONDS)


def _indices(keys: Sequence[bytes], places: Sequence[Place]) -> list[int]:
    index = {key: number for number, key in enumerate(keys)}
    return [index[place.key] for place in places]
