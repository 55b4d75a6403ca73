"""A web server of directories on loopback, with ranges; it can be told to misbehave."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Hit:
    """A request that came in."""

    method: str
    path: str
    """Without the slash that it begins with."""
    start: int
    """First byte that was asked for."""
    size: int
    """Bytes that were asked for; of the whole file, if no range was."""
    tag: str
    """The file's entity tag, as aiohttp makes it."""
    headers: dict[str, str]

    @property
    def name(self) -> str:
        """The file's."""
        return self.path.rpartition("/")[2]


Fault = Callable[[web.Request, Hit, bytes], Awaitable[web.StreamResponse | None]]
"""Answers a request in another way than it should be, given the file; None: as it should be."""


class WebServer:
    """Serves a directory, by aiohttp, in a thread of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hits: list[Hit] = []
        self.fault: Fault | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = web.AppRunner(self._app(), shutdown_timeout=0.1)
        self.url = self._call(self._start())

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _start(self) -> str:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = self.root / request.match_info["path"]
        hit = _hit(request, path)
        self.hits.append(hit)
        if self.fault:
            content = path.read_bytes() if path.is_file() else b""
            answer = await self.fault(request, hit, content)
            if answer is not None:
                return answer
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def _end(self) -> None:
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def asked(self, name: str) -> int:
        """Bytes of files of this name that were asked for, weights' headers included."""
        return sum(hit.size for hit in self.hits if hit.name == name and hit.method == "GET")

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        """Ends the server."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _hit(request: web.Request, path: Path) -> Hit:
    size = path.stat().st_size if path.is_file() else 0
    wanted = request.http_range
    start = wanted.start or 0
    end = min(wanted.stop, size) if wanted.stop is not None else size
    return Hit(
        method=request.method,
        path=request.match_info["path"],
        start=start,
        size=end - start,
        tag=f'"{path.stat().st_mtime_ns:x}-{size:x}"' if size else '""',
        headers=dict(request.headers),
    )


async def answer_with(
    request: web.Request,
    hit: Hit,
    body: bytes,
    total: int,
    *,
    tag: str | None = None,
    claimed: int | None = None,
    stop_after: int | None = None,
    stall: float = 0.0,
) -> web.StreamResponse:
    """A partial answer, with a say in everything.

    Args:
        request: what is answered.
        hit: its range.
        body: what the answer says that it brings.
        total: what it says is the size of the file.
        tag: what it says is its entity tag; None: that of the file.
        claimed: how many bytes it says that the range has; None: as many as come.
        stop_after: how many bytes of it come, before the connection is cut or silent.
        stall: seconds of silence before it is cut.
    """
    answer = web.StreamResponse(status=206, headers={"ETag": tag or hit.tag})
    size = len(body) if claimed is None else claimed
    answer.headers["Content-Range"] = f"bytes {hit.start}-{hit.start + size - 1}/{total}"
    answer.content_length = len(body)
    await answer.prepare(request)
    if stop_after is None:
        await answer.write(body)
        return answer
    await answer.write(body[:stop_after])
    await asyncio.sleep(stall)
    if request.transport is not None:
        request.transport.close()
    return answer
