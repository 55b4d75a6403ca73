"""A web server of one directory that counts what it is asked for: the object store of a bench.

    python -m bench.sharing.object_store DIRECTORY ADDRESS

Says its port in its first line. Each line that it is sent has it say how many bytes of partitions
it was asked for since the last.
"""

import asyncio
import sys
from pathlib import Path

from aiohttp import web


class Store:
    """Serves, and counts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.asked = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """A file, or a range of it."""
        path = self._root / request.match_info["path"]
        if not path.is_file():
            return web.Response(status=404)
        if request.method == "GET" and path.suffix in (".bin", ".safetensors"):
            size, wanted = path.stat().st_size, request.http_range
            # Every node looks at the header that safetensors begin with.
            if path.suffix == ".bin" or wanted.start:
                self.asked += min(wanted.stop or size, size) - (wanted.start or 0)
        return web.FileResponse(path)


async def main(root: Path, host: str) -> None:
    """Serves until its standard input ends."""
    store = Store(root)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", store.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, host, 0)
    await site.start()
    _say(runner.addresses[0][1])
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        asked, store.asked = store.asked, 0
        _say(asked)
    await runner.cleanup()


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
